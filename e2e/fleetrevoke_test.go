package e2e_test

import (
	"slices"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// dropsWithin is how long after a use of a revoked token another one is used.
const dropsWithin = 2 * time.Second

// fleetPatience is how long a client waits for the token of another gateway.
const fleetPatience = 225 * time.Millisecond

// `caddy egress revoke` on one gateway is for all of them, whether or not the API
// notices that a token is revoked.
func TestFleetDropsRevokedTokens(t *testing.T) {
	onEachStorage(t, func(t *testing.T, storage *egresstest.SharedStorage) {
		f := newFleet(t, 3, time.Hour, storage)
		f.start()
		f.checkRevocation("the API refuses it")
		f.issuer.AcceptRevoked()
		f.checkRevocation("the API goes on accepting it")
		f.checkRevocationByTheDead()
		f.checkLogs(map[string]int{sharingFails: 0, unusableSharing: 0})
	})
}

// checkRevocation revokes the token at the first gateway. The last one is not used
// until that is over.
func (f *fleet) checkRevocation(what string) {
	f.t.Helper()
	last := len(f.gateways) - 1
	idle := f.gateways[last]
	f.agree()
	before := f.requests()
	traffic := egresstest.StartTraffic(f.t, fleetTraffic, fleetRequest, f.gateways[:last]...)
	f.pass(time.Second)

	f.gateways[0].Command("revoke", fleetCredential)
	known := time.Now()
	f.pass(dropsWithin + time.Second)
	knownToIdle := time.Now()
	idle.Get(fleetRequest)
	f.pass(dropsWithin)
	idle.Get(fleetRequest)
	report := traffic.Stop()
	f.checkTraffic(report)

	old := before[len(before)-1].Token
	f.checkDropped(old, known, f.gateways[:last]...)
	f.checkDropped(old, knownToIdle, idle)
	if revoked := f.issuer.Revoked(); !slices.Contains(revoked, old) {
		f.late("%s: revoked are %q, want %q to be among them", what, revoked, old)
	}
	most := 1
	if report.Slowest >= fleetPatience { // on a busy machine, others have not waited any longer
		most = len(f.gateways)
	}
	if n := len(f.requests()) - len(before); n < 1 || n > most {
		f.late("%s: %d token requests after the revocation, want %d", what, n, most)
	}
}

// agree has all gateways use one token, a new one, and waits until they do.
func (f *fleet) agree() {
	f.t.Helper()
	f.gateways[0].Command("refresh", fleetCredential)
	f.awaitSharing()
}

// checkRevocationByTheDead revokes the token, and kills the gateway that asks for the
// next: there is none in the storage yet.
func (f *fleet) checkRevocationByTheDead() {
	f.t.Helper()
	f.agree()
	before := f.requests()
	traffic := f.traffic()
	held := f.issuer.Hold()
	f.gateways[0].Command("revoke", fleetCredential)
	known := time.Now()
	asks := <-held
	leader, others := f.split(asks.Process)
	leader.Kill()
	f.pass(dropsWithin + time.Second)
	f.checkTraffic(traffic.Stop())
	f.checkDropped(before[len(before)-1].Token, known, others...)
	// nobody waits for the dead for longer than a client does
	if n := len(f.requests()) - len(before); n < 2 || n > 1+len(others) {
		f.late("%d token requests after the revocation, want that of the dead gateway and one of each other at most", n)
	}
}

// checkDropped checks that gateways do not send a token any more that they could know
// to be revoked.
func (f *fleet) checkDropped(token string, known time.Time, gateways ...*egresstest.Process) {
	f.t.Helper()
	for _, use := range f.issuer.Uses(fleetCredential) {
		late := use.At.Sub(known)
		uses := func(g *egresstest.Process) bool { return g.Name == use.Process }
		if use.Token == token && late > dropsWithin && slices.ContainsFunc(gateways, uses) {
			f.late("%s sends a revoked token %s after it could know", use.Process, late)
		}
	}
}
