package e2e_test

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// The tests of fleets have gateways in processes of their own, on one storage, under
// traffic. They run in a short form, and at length with EGRESS_FLEET=full.
var fullFleet = os.Getenv("EGRESS_FLEET") == "full"

// inForm returns what a test takes in its short and in its full form.
func inForm[T any](short, full T) T {
	if fullFleet {
		return full
	}
	return short
}

const (
	// fleetLimit is what no request to a fleet may take longer than. In the short form,
	// beside which other tests run, what any request takes is not counted.
	fleetLimit = time.Second

	// fleetTraffic is how often a gateway of a fleet is sent a request.
	fleetTraffic = 150 * time.Millisecond

	sharingFails     = "the storage of shared tokens fails; tokens are not shared meanwhile"
	sharingWorks     = "the storage of shared tokens works again"
	unusableSharing  = "a shared token cannot be used; a token of our own takes its place"
	fleetReady       = "/ready"
	fleetCredential  = "promo"
	fleetRequest     = "/" + fleetCredential + "/v1/x"
	refreshPart      = 2.0 / 3 // of a lifetime passes before a token is due to be replaced
	refreshTolerance = 0.5     // two token requests within this part of a lifetime are for the same refresh
)

// fleet is gateways on one storage.
type fleet struct {
	t        *testing.T
	issuer   *egresstest.Issuer
	storage  *egresstest.SharedStorage
	gateways []*egresstest.Process
	lifetime time.Duration // of tokens
	options  []string      // of each credential
}

// newFleet returns a fleet of n gateways that are not started yet.
func newFleet(t *testing.T, n int, lifetime time.Duration, storage *egresstest.SharedStorage, options ...string) *fleet {
	t.Helper()
	f := &fleet{t: t, issuer: egresstest.NewIssuer(t, lifetime), storage: storage, lifetime: lifetime, options: options}
	for i := range n {
		global, routes := f.config(fleetCredential)
		f.gateways = append(f.gateways, egresstest.NewProcess(t, fmt.Sprint("gateway ", i+1), global, routes))
	}
	return f
}

// config returns the global options and the routes of a gateway with credentials.
func (f *fleet) config(credentials ...string) (global, routes string) {
	global = f.storage.Option + "egress {\n share_tokens\n"
	routes = "egress_ready " + fleetReady + "\nrespond " + egresstest.Control + " 200\n"
	for _, name := range credentials {
		global += f.issuer.Credential(name, f.options...)
		routes += egresstest.Site("/"+name+"/", "egress "+name)
	}
	return global + "}\n", routes
}

// starting is held while a fleet starts: many at a time would keep those busy that
// have started already.
var starting sync.Mutex

// start starts the gateways at the same time, and waits until they serve.
func (f *fleet) start() {
	f.t.Helper()
	starting.Lock()
	defer starting.Unlock()
	for _, g := range f.gateways {
		g.Start()
	}
	for _, g := range f.gateways {
		g.WaitFor(fleetReady)
	}
}

// traffic sends requests to all gateways.
func (f *fleet) traffic() *egresstest.Traffic {
	return egresstest.StartTraffic(f.t, fleetTraffic, fleetRequest, f.gateways...)
}

// checkTraffic checks that no request has failed, and none was slow.
func (f *fleet) checkTraffic(report egresstest.TrafficReport) {
	f.t.Helper()
	f.t.Logf("%d requests, %d failed, p99 %s, slowest %s, longest delay %s", report.Requests, len(report.Failures),
		report.P99.Round(time.Millisecond), report.Slowest.Round(time.Millisecond), report.Delay.Round(time.Millisecond))
	if report.Requests == 0 {
		f.t.Error("no request was sent")
	}
	for _, failure := range report.Failures[:min(3, len(report.Failures))] {
		f.t.Error("a request has failed: ", failure)
	}
	if took := inForm(report.Delay, report.Slowest); took > fleetLimit {
		f.late("the slowest request took %s, want at most %s", took, fleetLimit)
	}
}

// late reports what a gateway does that is too slow for sharing: that waits 750 ms for
// the storage, and 250 ms where a client waits, and then the gateway rightly asks for a
// token of its own. With the race detector gateways are that slow on a busy machine; so
// it is an error without it only.
func (f *fleet) late(format string, args ...any) {
	f.t.Helper()
	if raceDetector {
		f.t.Logf(format, args...)
		return
	}
	f.t.Errorf(format, args...)
}

// pass lets time pass: tokens have to come and go.
func (f *fleet) pass(d time.Duration) {
	f.t.Helper()
	select {
	case <-time.After(d):
	case <-f.t.Context().Done():
	}
}

// requests returns the token requests so far.
func (f *fleet) requests() []egresstest.TokenRequest { return f.issuer.Requests(fleetCredential) }

// checkRefreshes checks that requests are one per refresh, from since on.
func (f *fleet) checkRefreshes(who string, requests []egresstest.TokenRequest, since time.Time) {
	f.t.Helper()
	for i, request := range requests {
		if i == 0 {
			continue
		}
		if gap := request.At.Sub(requests[i-1].At); gap < f.part(refreshTolerance) {
			f.late("%s: %s asks for a token %s after %s has, want at least %s", who, request.Process, gap, requests[i-1].Process, f.part(refreshTolerance))
		}
	}
	passed := time.Since(since)
	if most := 1 + int(math.Ceil(float64(passed)/float64(f.part(refreshPart)))); len(requests) > most {
		f.late("%s: %d token requests in %s, want at most %d", who, len(requests), passed.Round(time.Millisecond), most)
	}
	f.t.Logf("%s: %d token requests in %s", who, len(requests), passed.Round(time.Millisecond))
}

// part returns a part of the lifetime of tokens.
func (f *fleet) part(p float64) time.Duration { return time.Duration(p * float64(f.lifetime)) }

// awaitSharing waits until all gateways use one token, that one of them has asked for.
func (f *fleet) awaitSharing() {
	f.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for tick := time.Tick(100 * time.Millisecond); ; <-tick {
		var own []string
		expiries := make(map[time.Time]bool)
		for _, g := range f.gateways {
			g.Get(fleetRequest) // only whoever is used looks for a newer token
			status := g.Status(fleetCredential)
			expiries[status.Expires.Truncate(0).UTC()] = true
			if status.TokenFrom == "own" {
				own = append(own, g.Name)
			}
		}
		if len(own) <= 1 && len(expiries) == 1 {
			return
		}
		if time.Now().After(deadline) {
			f.late("%q have tokens of their own, and there are %d tokens", own, len(expiries))
			return
		}
	}
}

// checkLogs checks how often each gateway has logged a message, and that it has
// logged nothing worse than warnings.
func (f *fleet) checkLogs(want map[string]int) {
	f.t.Helper()
	for _, g := range f.gateways {
		for message, times := range want {
			if lines := g.LogLines(message); len(lines) != times {
				f.late("%s has logged %q %d times, want %d: %v", g.Name, message, len(lines), times, lines)
			}
		}
		for line := range strings.Lines(g.Log()) { // Caddy itself logs errors if its storage fails
			if strings.Contains(line, `"level":"error"`) && strings.Contains(line, `"logger":"egress`) {
				f.t.Errorf("%s has logged %s", g.Name, line)
			}
		}
	}
}

// onEachStorage runs a test with files and with a Redis, at the same time.
func onEachStorage(t *testing.T, test func(t *testing.T, storage *egresstest.SharedStorage)) {
	t.Helper()
	t.Parallel()
	t.Run("files", func(t *testing.T) {
		t.Parallel()
		test(t, egresstest.NewSharedFiles(t))
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		test(t, egresstest.NewSharedRedis(t, egresstest.StartRedis(t)))
	})
}

// Gateways that are started together ask for one token, and for one each time that
// it is due. Whoever can read the storage learns none of them.
func TestFleetMakesOneTokenRequestPerRefresh(t *testing.T) {
	onEachStorage(t, func(t *testing.T, storage *egresstest.SharedStorage) {
		lifetime, lifetimes := inForm(8*time.Second, 12*time.Second), inForm(2, 10)
		f := newFleet(t, inForm(3, 5), lifetime, storage)
		start := time.Now()
		f.start()
		traffic, before := f.traffic(), len(f.requests())
		for range lifetimes {
			f.pass(lifetime)
			f.checkDump()
		}
		f.checkTraffic(traffic.Stop())
		requests := f.requests()
		f.checkRefreshes("all", requests, start)
		f.checkUsedByAll(requests[before : len(requests)-1]) // the last may be too young
		f.awaitSharing()
		f.checkLogs(map[string]int{sharingFails: 0, unusableSharing: 0})
	})
}

// checkUsedByAll checks that each token was used by each gateway.
func (f *fleet) checkUsedByAll(requests []egresstest.TokenRequest) {
	f.t.Helper()
	used := make(map[string]bool)
	for _, use := range f.issuer.Uses(fleetCredential) {
		used[use.Process+use.Token] = true
	}
	for _, request := range requests {
		for _, g := range f.gateways {
			if !used[g.Name+request.Token] {
				f.late("%s has not used the token that %s has asked for", g.Name, request.Process)
			}
		}
	}
}

// The gateway that asks for a token is killed before it has the answer. Another one
// asks in its place, before the old token expires.
func TestFleetSurvivesItsLeader(t *testing.T) {
	onEachStorage(t, func(t *testing.T, storage *egresstest.SharedStorage) {
		// a lock of a process that was killed is stale after 10 s in files, and after 5 in
		// Redis: that of the refresh before the last is free again
		lifetime, kills := inForm(8*time.Second, 12*time.Second), inForm(1, 10)
		f := newFleet(t, 3, lifetime, storage)
		f.start()
		traffic := f.traffic()
		for range kills {
			before := len(f.requests())
			f.killLeader()
			if got := len(f.requests()) - before; got != 2 {
				f.late("%d token requests, want the one of the leader and one in its place", got)
			}
		}
		f.awaitOneRefresh()
		f.checkTraffic(traffic.Stop())
		f.checkLogs(map[string]int{sharingFails: 0, unusableSharing: 0})

		var answered []egresstest.TokenRequest
		for _, request := range f.requests() {
			if !request.Gone {
				answered = append(answered, request)
			}
		}
		if gone := len(f.requests()) - len(answered); gone != kills {
			t.Errorf("%d token requests were not waited for, want %d", gone, kills)
		}
		for i, request := range answered[1:] {
			if gap := request.At.Sub(answered[i].At); gap < f.part(refreshTolerance) {
				f.late("%s asks for a token %s after %s has got one", request.Process, gap, answered[i].Process)
			}
		}
		t.Logf("%d kills, %d token requests", kills, len(f.requests()))
	})
}

// killLeader kills whichever gateway asks for the next token, and starts it again
// once all others have another token.
func (f *fleet) killLeader() {
	f.t.Helper()
	held := f.awaitHeld()
	leader, others := f.split(held.Process)
	leader.Kill()
	// the new token is the only one that can be fresh
	egresstest.Eventually(f.t, "the token of another gateway", func() bool {
		return !slices.ContainsFunc(others, func(g *egresstest.Process) bool {
			status := g.Status(fleetCredential)
			return status.State != "fresh" || time.Until(status.Expires) < f.part(refreshTolerance)
		})
	})
	leader.Start()
	leader.WaitFor(fleetReady)
}

// split returns the gateway with a name, and all others.
func (f *fleet) split(name string) (named *egresstest.Process, others []*egresstest.Process) {
	f.t.Helper()
	for _, g := range f.gateways {
		if g.Name == name {
			named = g
		} else {
			others = append(others, g)
		}
	}
	if named == nil {
		f.t.Fatalf("%q is not a gateway", name)
	}
	return named, others
}

// awaitHeld waits for the next token request, which is not answered.
func (f *fleet) awaitHeld() *egresstest.HeldRequest {
	f.t.Helper()
	select {
	case held := <-f.issuer.Hold():
		return held
	case <-time.After(20*time.Second + 2*f.lifetime): // it is due before, on a machine that is free
		f.t.Fatal("waited in vain for a token request")
		return nil
	}
}

// awaitOneRefresh waits for the next token request, and then until another one of
// the same refresh would have been made.
func (f *fleet) awaitOneRefresh() {
	f.t.Helper()
	before := len(f.requests())
	f.awaitHeld().Release()
	f.pass(f.part(1 - refreshPart))
	if got := len(f.requests()) - before; got != 1 {
		f.late("%d token requests in a refresh, want 1", got)
	}
}

// A gateway that is restarted again and again asks for no token that it has not to
// ask for anyway.
func TestFleetRestartsCostNoTokens(t *testing.T) {
	onEachStorage(t, func(t *testing.T, storage *egresstest.SharedStorage) {
		f := newFleet(t, 1, inForm(6*time.Second, 4*time.Second), storage)
		g, start := f.gateways[0], time.Now()
		for i := range inForm(4, 20) {
			before := len(f.requests())
			g.Start()
			g.WaitFor(fleetReady)
			g.Get(fleetRequest)
			if from := g.Status(fleetCredential).TokenFrom; len(f.requests()) == before && from != "shared" {
				f.late("start %d: the token is %q", i+1, from)
			}
			// not in the middle of a refresh: that would cost another token request
			egresstest.Eventually(t, "the time between refreshes", func() bool {
				status := g.Status(fleetCredential)
				return status.State == "fresh" && time.Until(status.NextAttempt) > 500*time.Millisecond &&
					f.storedToken(fleetCredential) == f.lastToken(fleetCredential)
			})
			if i%2 == 0 {
				g.Kill()
			} else {
				g.Stop()
			}
		}
		f.checkRefreshes("all", f.requests(), start)
		f.checkLogs(map[string]int{sharingFails: 0, unusableSharing: 0})
	})
}

// A gateway that stops takes no token from the others. With revoke_on_stop, the last
// one revokes it.
func TestFleetRevokesWithTheLast(t *testing.T) {
	onEachStorage(t, func(t *testing.T, storage *egresstest.SharedStorage) {
		f := newFleet(t, 3, time.Hour, storage, "revoke_on_stop")
		f.start()
		for i, g := range f.gateways {
			g.Get(fleetRequest)
			g.Stop()
			if revoked := f.issuer.Revoked(); len(revoked) != 0 && i < len(f.gateways)-1 {
				f.late("%d tokens are revoked, though %d gateways run", len(revoked), len(f.gateways)-1-i)
			}
		}
		if requests, revoked := f.requests(), f.issuer.Revoked(); len(requests) != 1 || len(revoked) != 1 {
			f.late("%d tokens were issued and %d revoked, want one", len(requests), len(revoked))
		}
	})
}
