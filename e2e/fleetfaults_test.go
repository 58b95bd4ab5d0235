package e2e_test

import (
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// storageFault is something that is wrong with the storage of a fleet.
type storageFault struct {
	begin, end func()

	// locksOnly says that a gateway may not notice: one that finds the token of another
	// whenever it needs one takes no lock.
	locksOnly bool
}

// onEachFault runs a test with each fault at the same time; with one of files and
// those of Redis in the short form.
func onEachFault(t *testing.T, test func(t *testing.T, storage *egresstest.SharedStorage, fault storageFault)) {
	t.Helper()
	t.Parallel()
	short := []egresstest.StorageFault{egresstest.StorageDown}
	for _, fault := range inForm(short, append(short, egresstest.StorageHangs, egresstest.StorageSlow, egresstest.StorageReadOnly,
		egresstest.StorageFull, egresstest.StorageNoLocks, egresstest.StorageForgets, egresstest.StorageBusy)) {
		t.Run("files/"+string(fault), func(t *testing.T) {
			t.Parallel()
			storage := egresstest.NewSharedFiles(t)
			test(t, storage, storageFault{
				begin:     func() { storage.Fault(t, fault) },
				end:       func() { storage.Fault(t, egresstest.StorageWorks) },
				locksOnly: fault == egresstest.StorageNoLocks || fault == egresstest.StorageBusy,
			})
		})
	}
	t.Run("redis/ends", func(t *testing.T) { // and starts without data
		t.Parallel()
		server := egresstest.StartRedis(t)
		test(t, egresstest.NewSharedRedis(t, server), storageFault{begin: server.Stop, end: server.Start})
	})
	t.Run("redis/hangs", func(t *testing.T) {
		t.Parallel()
		server := egresstest.StartRedis(t)
		test(t, egresstest.NewSharedRedis(t, server), storageFault{begin: server.Suspend, end: server.Resume})
	})
}

// Whatever is wrong with the storage costs token requests, one per gateway and
// refresh, but no request to the API. One warning says so, and nobody has to do
// anything once it is over.
func TestFleetDegradesWithItsStorage(t *testing.T) {
	onEachFault(t, checkDegradation)
}

// A gateway that starts without the storage does not wait for it.
func TestFleetStartsWithoutItsStorage(t *testing.T) {
	onEachFault(t, func(t *testing.T, storage *egresstest.SharedStorage, fault storageFault) {
		f := newFleet(t, 2, inForm(5*time.Second, 12*time.Second), storage)
		fault.begin()
		f.startWithFirstRequest()
		traffic := f.traffic()
		f.pass(2 * time.Second) // what hangs is noticed by then
		fault.end()
		f.awaitRecovery()
		f.checkTraffic(traffic.Stop())
		f.checkWarnings(fault)
	})
}

// startWithFirstRequest starts the gateways, and sends each a request as soon as it
// listens.
func (f *fleet) startWithFirstRequest() {
	f.t.Helper()
	starting.Lock()
	defer starting.Unlock()
	for _, g := range f.gateways {
		g.Start()
		g.WaitFor(egresstest.Control)
		start := time.Now()
		g.Get(fleetRequest)
		if took := time.Since(start); took > fleetLimit {
			f.late("the first request to %s took %s", g.Name, took)
		}
	}
	if n := len(f.requests()); n > len(f.gateways) {
		f.late("%d token requests of %d gateways", n, len(f.gateways))
	}
}

// checkDegradation checks a fleet before, in and after a fault that lasts longer than
// a token.
func checkDegradation(t *testing.T, storage *egresstest.SharedStorage, fault storageFault) {
	t.Helper()
	lifetime := inForm(5*time.Second, 12*time.Second)
	f := newFleet(t, 2, lifetime, storage)
	f.start()
	traffic := f.traffic()
	f.awaitOneRefresh()

	start := time.Now()
	fault.begin()
	f.pass(inForm(6*time.Second, 2*lifetime))
	fault.end()
	f.checkOwnRefreshes(start)

	f.awaitRecovery()
	for range inForm(1, 2) {
		f.awaitOneRefresh()
	}
	f.checkTraffic(traffic.Stop())
	f.checkWarnings(fault)
}

// checkWarnings checks that each gateway has warned of the storage once, and said once
// that it works again.
func (f *fleet) checkWarnings(fault storageFault) {
	f.t.Helper()
	for _, g := range f.gateways {
		warnings, ends := len(g.LogLines(sharingFails)), len(g.LogLines(sharingWorks))
		if warnings != ends || warnings > 1 || warnings == 0 && !fault.locksOnly {
			f.late("%s has warned of the storage %d times, and said %d times that it works again, want 1", g.Name, warnings, ends)
		}
	}
	f.checkLogs(map[string]int{unusableSharing: 0})
}

// awaitRecovery waits until all gateways say that the storage works. It is left alone
// for up to 30 seconds at a time.
func (f *fleet) awaitRecovery() {
	f.t.Helper()
	deadline := time.Now().Add(30*time.Second + 2*f.lifetime)
	for tick := time.Tick(50 * time.Millisecond); ; <-tick {
		failing := ""
		for _, g := range f.gateways {
			store := g.Status(fleetCredential).Store
			if store == nil {
				f.t.Fatalf("the status of %s says nothing of the storage", g.Name)
			}
			if store.State != "ok" {
				failing = g.Name + ": " + store.Error
			}
		}
		if failing == "" {
			break
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("the storage works again, but not for %s", failing)
		}
	}
	f.awaitSharing()
}

// checkOwnRefreshes checks that each gateway has made one token request per refresh
// since start.
func (f *fleet) checkOwnRefreshes(start time.Time) {
	f.t.Helper()
	byGateway := make(map[string][]egresstest.TokenRequest)
	for _, request := range f.requests() {
		if request.At.After(start) {
			byGateway[request.Process] = append(byGateway[request.Process], request)
		}
	}
	for _, g := range f.gateways {
		f.checkRefreshes(g.Name, byGateway[g.Name], start)
	}
}
