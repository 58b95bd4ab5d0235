package egress

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// problemNoToken is that of a credential without a token.
const problemNoToken = "no token"

// problems returns what of a credential needs attention.
func (c *credentialReport) problems(api *apiHealth, now time.Time) (all []problemReport) {
	unanswered, rejected := api.streaks()
	if c.Expires.IsZero() || rejected.last.Before(c.Issued) { // it was about another token
		rejected = streak{}
	}
	if e := c.LastError; e != nil && c.State != string(tokensource.PhaseIdle) { // nobody is waiting for it if it is idle
		p := problemReport{
			Health: healthFailing, Subject: c.Credential, Problem: problemNoToken, Error: e.Message, Since: e.Since, Attempts: e.Attempts, Next: c.NextAttempt,
			Advice: e.Advice, Commands: []string{"caddy egress refresh " + c.Credential},
		}
		refused := e.Class == string(tokenprovider.Refused)
		if refused {
			check := "caddy egress check --config Caddyfile"
			if _, tenant, ok := strings.Cut(c.Credential, "/"); ok {
				check += " --tenant " + tenant
			}
			p.Commands = slices.Insert(p.Commands, 0, check)
		}
		switch {
		case c.Rejected && rejected.isLong():
			p.Problem = "the API rejects the token, and no other can be had"
			p.Effect = "Clients get its answer, such as 401. The token expires " + inSpan(c.Expires.Sub(now)) + "."
		case !c.Expires.IsZero():
			p.Health, p.Problem = healthWarning, "no fresh token"
			p.Effect = "Requests are sent with the token at hand, which expires " + inSpan(c.Expires.Sub(now)) + "."
			if c.Rejected {
				p.Effect += " The API has answered 401 to it, which clients may get."
			}
		case refused:
			p.Effect = fmt.Sprintf("Requests are answered with 502 %s.", outcomeCredentialRefused)
		default:
			p.Effect = fmt.Sprintf("Requests are answered with 503 %s.", outcomeTokenUnavailable)
		}
		all = append(all, p)
	}
	if rejected.isLong() && !c.Rejected {
		all = append(all, problemReport{
			Health: healthFailing, Subject: c.Credential, Problem: fmt.Sprintf("the API has rejected the last %d requests", rejected.times), Since: rejected.since,
			Effect: "Clients got its answer, such as 401, the last one " + span(now.Sub(rejected.last)) + " ago.",
			Advice: "check what clients call, and that the token is for this API: audience, region, scopes, and whether the key may be used from this address",
		})
	}
	if unanswered.isLong() {
		all = append(all, problemReport{
			Health: healthFailing, Subject: c.Credential, Problem: fmt.Sprintf("the API has not answered the last %d requests", unanswered.times), Since: unanswered.since,
			Effect: "Clients got 502, 503 or 504 " + keyAPIUnreachable + ", the last one " + span(now.Sub(unanswered.last)) + " ago.",
			Advice: "the log of http.log.error has the cause; check that this machine reaches the API",
		})
	}
	if c.SecretInUse > 1 {
		all = append(all, problemReport{
			Health: healthWarning, Subject: c.Credential, Problem: "the first value of the secret is not in use",
			Effect: fmt.Sprintf("Requests are sent with a token of value %d of %d.", c.SecretInUse, c.SecretValues),
			Advice: "if the first value should work by now, check it; until it does, do not delete the other",
		})
	}
	if !c.LimitedUntil.IsZero() {
		all = append(all, problemReport{
			Health: healthWarning, Subject: c.Credential, Problem: "rate limited by the API",
			Effect: "Requests may be answered with 429. That is over " + inSpan(c.LimitedUntil.Sub(now)) + ".",
			Advice: "if it happens often, have applications send fewer requests, or give callers a limit in their grants",
		})
	}
	return all
}

func (r *statusReport) addStoreProblem() {
	if r.Store.State == storeOK {
		return
	}
	r.Problems = append(r.Problems, problemReport{
		Health: healthWarning, Subject: "shared tokens", Problem: "the storage " + r.Store.Storage + " is failing", Error: r.Store.Error, Since: r.Store.Since,
		Effect: "Each instance uses tokens of its own meanwhile. No request fails by it.",
		Advice: "see that this host reaches the storage and may write to it; it is tried again by itself",
	})
}
