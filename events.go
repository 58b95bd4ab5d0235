package egress

import (
	"errors"
	"maps"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// Events that are emitted through Caddy's events app. Each has the data
// credential and provider.
const (
	eventTokenObtained      = "egress.token_obtained"       // trigger, expires
	eventTokenRefreshFailed = "egress.token_refresh_failed" // trigger, error, error_code, next_attempt, live: whether a live token remains
	eventCredentialRefused  = "egress.credential_refused"   // as token_refresh_failed
	eventTokenRejected      = "egress.token_rejected"       // the API said 401, and a fresh token is requested
	eventTokenRevoked       = "egress.token_revoked"        // by the admin API
	eventCallerRefused      = "egress.caller_refused"       // caller: empty for nobody known, outcome; one a second for each of both
)

// emitOutcome emits the event of a token request that has ended. Of a token that
// another instance has obtained, that one emits it.
func (a *App) emitOutcome(c *activeCredential, r tokensource.Outcome) {
	if r.Shared {
		return
	}
	if r.Err == nil {
		a.emit(eventTokenObtained, c, map[string]any{"trigger": r.Trigger, "expires": r.Token.Expires})
		return
	}
	name := eventTokenRefreshFailed
	if r.Class == tokenprovider.Refused {
		name = eventCredentialRefused
	}
	code := ""
	if failure, ok := errors.AsType[*tokenprovider.Error](r.Err); ok {
		code = failure.Code
	}
	a.emit(name, c, map[string]any{
		"trigger": r.Trigger, "error": r.Err.Error(), "error_code": code, "next_attempt": r.Next, "live": r.Live,
	})
}

// emit emits an event about a credential in the background, since a handler of it, such
// as a command, may take its time. There is none once the config has been replaced:
// requests that drain later do not emit any.
func (a *App) emit(name string, c *activeCredential, data map[string]any) {
	if a.events == nil || a.ctx.Err() != nil {
		return
	}
	all := map[string]any{"credential": c.name(), "provider": c.metrics.labels[1]}
	maps.Copy(all, data)
	go func() {
		// the events app may still be starting, and subscribers with it: an event
		// would be lost, or race with them
		tick := time.NewTicker(activePoll)
		defer tick.Stop()
		for !a.active() {
			select {
			case <-tick.C:
			case <-a.ctx.Done():
				return
			}
		}
		a.events.Emit(a.ctx, name, all)
	}()
}

// activePoll is how often to look whether a config has started. That takes
// milliseconds, and Caddy notifies only modules that subscribe to events.
const activePoll = 10 * time.Millisecond

// active reports whether all apps of the app's config have started.
func (a *App) active() bool {
	app, err := caddy.ActiveContext().AppIfConfigured("egress")
	return err == nil && app == a
}
