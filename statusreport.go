package egress

import (
	"cmp"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/caddyserver/caddy/v2"
)

const (
	// mostShown is how many credentials, tenants of one, or callers the status page
	// shows: the worst of them.
	mostShown = 100

	// mostProblems is how many of what needs attention it explains.
	mostProblems = 20
)

// processStart is when this process began, as well as it matters.
var processStart = time.Now()

// health says whether somebody has to do something.
type health string

const (
	healthOK      health = "ok"
	healthWarning health = "warning" // requests go through, and will not for ever
	healthFailing health = "failing" // requests fail
)

// healthSymbols let nobody depend on colours.
var healthSymbols = map[health]string{healthOK: "✓", healthWarning: "▲", healthFailing: "✕"}

// statusReport is what the status page shows.
type statusReport struct {
	Time         time.Time         `json:"time"`
	Started      time.Time         `json:"started"` // when the process did
	Version      string            `json:"version"`
	CaddyVersion string            `json:"caddy_version"`
	Health       health            `json:"health"`
	Summary      string            `json:"summary"`
	Problems     []problemReport   `json:"problems"` // the worst first
	ProblemsLeft int               `json:"problems_left_out,omitempty"`
	Groups       []credentialGroup `json:"credentials"`
	GroupsLeft   int               `json:"credentials_left_out,omitempty"`
	Callers      []callerReport    `json:"callers"`
	CallersLeft  int               `json:"callers_left_out,omitempty"`
	Store        *StoreStatus      `json:"store,omitempty"` // absent if tokens are not shared
}

// problemReport is something that needs attention.
type problemReport struct {
	Health   health    `json:"health"`
	Subject  string    `json:"subject"`          // the name of a credential, or what else it is
	Problem  string    `json:"problem"`          // in a few words
	Error    string    `json:"error,omitempty"`  // what is wrong
	Effect   string    `json:"effect"`           // what it does to requests
	Advice   string    `json:"advice,omitempty"` // what to do
	Commands []string  `json:"commands,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	Attempts int       `json:"attempts,omitempty"`
	Next     time.Time `json:"next_attempt,omitzero"`
}

// credentialGroup is the credentials without tenants, or the tenants of one that
// has them.
type credentialGroup struct {
	Family   string             `json:"tenants_of,omitempty"` // the name of the latter
	Provider string             `json:"provider,omitempty"`   // of the latter
	Requests requestCount       `json:"requests,omitzero"`    // of all tenants
	Total    int                `json:"total"`
	LeftOut  int                `json:"left_out,omitempty"`
	Shown    []credentialReport `json:"shown"`
	Rotated  bool               `json:"-"` // a secret has several values
	Limited  bool               `json:"-"` // an API has said how many calls are left
}

// credentialReport is a credential as the admin API reports it, but for the client
// identifier: some are as good as a secret.
type credentialReport struct {
	CredentialStatus
	ClientID string       `json:"client_id,omitempty"` // always empty; hides that of CredentialStatus
	Health   health       `json:"health"`
	Requests requestCount `json:"requests,omitzero"` // not of a tenant, whose are not counted apart
}

// callerReport is a caller, with its requests since the process started.
type callerReport struct {
	Caller   string       `json:"caller"`
	Requests requestCount `json:"requests"`
}

// requestCount is requests by outcome.
type requestCount struct {
	Total     int64            `json:"total"`
	Forwarded int64            `json:"forwarded"`        // those that were sent a second time included
	Others    map[string]int64 `json:"others,omitempty"` // by outcome
}

// statusReport returns how the gateway is doing.
func (a *App) statusReport(now time.Time) *statusReport {
	r := &statusReport{Time: now, Started: processStart, Problems: []problemReport{}, Groups: []credentialGroup{}, Callers: []callerReport{}}
	r.Version, r.CaddyVersion = versions()
	if a.store != nil {
		r.Store = storeStatus(a.store.Health())
		r.addStoreProblem()
	}

	callers := make(map[string]requestCount)
	var alone credentialGroup // those without tenants
	// where all grants have scopes of their own, what is refused to others counts for
	// the route's credential, whose tokens nobody is sent with
	counted := func(c *activeCredential) bool { return c.sends || c.metrics.used.Load() }
	for _, c := range a.credentialsThat(counted) {
		var requests requestCount
		requests.read(&c.metrics.requests)
		c.metrics.callers.Range(func(caller, of any) bool {
			count := callers[caller.(string)]
			count.read(&of.(*callerMetrics).requests)
			callers[caller.(string)] = count
			return true
		})
		if !c.isFamily() {
			r.add(&alone, c, requests)
			continue
		}
		group := credentialGroup{Family: c.name(), Provider: c.metrics.labels[1], Requests: requests}
		for _, c := range c.tenants.all() {
			r.add(&group, c, requestCount{})
		}
		r.Groups = append(r.Groups, group)
	}
	if alone.Total > 0 {
		r.Groups = slices.Insert(r.Groups, 0, alone)
	}
	total, families := 0, 0
	for i := range r.Groups {
		group := &r.Groups[i]
		if total += group.Total; group.Family != "" {
			families++
		}
		group.Shown, group.LeftOut = group.bounded(mostShown)
	}
	r.Groups, r.GroupsLeft = bounded(r.Groups, mostShown, func(a, b credentialGroup) int { return compareHealth(a.worst(), b.worst()) }, nil)
	for name := range a.Callers {
		r.Callers = append(r.Callers, callerReport{name, callers[name]})
	}
	r.Callers, r.CallersLeft = bounded(r.Callers, mostShown, func(a, b callerReport) int { return cmp.Compare(b.Requests.Total, a.Requests.Total) },
		func(a, b callerReport) int { return strings.Compare(a.Caller, b.Caller) })

	r.summarize(total, families)
	worst := func(a, b problemReport) int {
		return cmp.Or(compareHealth(a.Health, b.Health), a.Since.Compare(b.Since), strings.Compare(a.Subject, b.Subject))
	}
	r.Problems, r.ProblemsLeft = bounded(r.Problems, mostProblems, worst, worst)
	return r
}

// bounded returns the first most of all in the order first, sorted by the order
// then, and how many are left out.
func bounded[T any](all []T, most int, first, then func(a, b T) int) (shown []T, leftOut int) {
	if leftOut = len(all) - most; leftOut > 0 {
		slices.SortStableFunc(all, first)
		all = all[:most]
	}
	if then != nil {
		slices.SortStableFunc(all, then)
	}
	return all, max(leftOut, 0)
}

// bounded returns the worst of the group, by name.
func (g *credentialGroup) bounded(most int) (shown []credentialReport, leftOut int) {
	return bounded(g.Shown, most, func(a, b credentialReport) int { return compareHealth(a.Health, b.Health) },
		func(a, b credentialReport) int { return strings.Compare(a.Credential, b.Credential) })
}

// compareHealth puts the worst first.
func compareHealth(a, b health) int {
	order := []health{healthFailing, healthWarning, healthOK}
	return cmp.Compare(slices.Index(order, a), slices.Index(order, b))
}

// worst returns the health of the worst of the group.
func (g *credentialGroup) worst() health {
	worst := healthOK
	for _, c := range g.Shown {
		if compareHealth(c.Health, worst) < 0 {
			worst = c.Health
		}
	}
	return worst
}

// add adds a credential to a group.
func (r *statusReport) add(g *credentialGroup, c *activeCredential, requests requestCount) {
	report := credentialReport{CredentialStatus: c.status(), Health: healthOK, Requests: requests}
	problems := report.problems(&c.apiHealth, r.Time)
	r.Problems = append(r.Problems, problems...)
	for _, p := range problems {
		if compareHealth(p.Health, report.Health) < 0 {
			report.Health = p.Health
		}
	}
	g.Total++
	g.Rotated = g.Rotated || report.SecretValues > 0
	g.Limited = g.Limited || report.Remaining != nil
	g.Shown = append(g.Shown, report)
}

// summarize says in a sentence how the gateway is doing.
func (r *statusReport) summarize(total, families int) {
	r.Health = healthOK
	failing, withoutToken := 0, 0
	for _, p := range r.Problems {
		if p.Health == healthFailing {
			failing++
		}
		if p.Problem == problemNoToken {
			withoutToken++
		}
	}
	attention := plural(len(r.Problems), "thing needs", "things need") + " attention."
	switch {
	case failing > 0 && failing == withoutToken:
		r.Health = healthFailing
		r.Summary = plural(failing, "credential has", "credentials have") + " no token: requests fail."
	case failing > 0:
		r.Health = healthFailing
		r.Summary = "Requests fail: " + attention
	case len(r.Problems) > 0:
		r.Health = healthWarning
		r.Summary = "Requests have tokens, but " + attention
	case total > 0:
		r.Summary = "All is well: " + plural(total, "credential is", "credentials are") + " in use."
	case families > 0:
		r.Summary = "All is well. No request has named a tenant yet."
	default:
		r.Summary = "No credential is in use: no route of this config has egress."
	}
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return number(int64(n)) + " " + many
}

// read adds what counters of requests by outcome have. Requests are counted anyway,
// and cost nothing more for the status page.
func (c *requestCount) read(counters *[outcomeCount]atomic.Pointer[prometheus.Counter]) {
	for o := range counters {
		counter := counters[o].Load()
		if counter == nil {
			continue
		}
		var value dto.Metric
		if err := (*counter).Write(&value); err == nil {
			c.add(outcomeNames[o], int64(value.GetCounter().GetValue()))
		}
	}
}

func (c *requestCount) add(outcome string, n int64) {
	if n == 0 {
		return
	}
	c.Total += n
	switch outcome {
	case outcomeForwarded.String(), outcomeReplayed.String():
		c.Forwarded += n
		return
	}
	if c.Others == nil {
		c.Others = make(map[string]int64)
	}
	c.Others[outcome] += n
}

// versions returns the versions of this module and of Caddy.
var versions = sync.OnceValues(func() (plugin, ofCaddy string) {
	plugin = "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range append(slices.Clone(info.Deps), &info.Main) {
			if module.Path == reflect.TypeFor[App]().PkgPath() && module.Version != "" {
				plugin = module.Version
			}
		}
	}
	ofCaddy, _ = caddy.Version()
	return plugin, ofCaddy
})
