package main

import (
	"sync"
	"testing"
	"time"
)

// fleetEvent is something that happens to a fleet.
type fleetEvent struct {
	name    string
	sizes   []int
	latency time.Duration     // of token requests; 0: that of all fleets
	storage func(*simStorage) // changes the storage
	cold    bool              // it is the first that happens
	do      func(f *fleet, n int)

	// The token requests that it takes at most, beside those that keep tokens fresh
	// meanwhile, if the instances share nothing, and if they do.
	own, shared func(n int) int

	// asAlone says that a fleet that shares makes as many as one that does not.
	asAlone bool
}

func none(int) int   { return 0 }
func one(int) int    { return 1 }
func two(int) int    { return 2 }
func each(n int) int { return n }

var fleetEvents = []fleetEvent{
	{
		name: "All start at once, before clients come", sizes: []int{10, 100, 1000}, cold: true,
		do:  func(f *fleet, n int) { f.startAll(n); time.Sleep(5 * time.Minute) },
		own: each, shared: one,
	},
	{
		name: "The same; a token request takes 5 s", sizes: []int{10, 100}, cold: true, latency: 5 * time.Second,
		do:  func(f *fleet, n int) { f.startAll(n); time.Sleep(5 * time.Minute) },
		own: each, shared: two,
	},
	{
		name: "All start at once, and each has a client", sizes: []int{10, 100}, cold: true,
		do:  func(f *fleet, n int) { f.startAll(n); f.rush() },
		own: each, shared: one,
	},
	{
		name: "The same; a token request takes 500 ms", sizes: []int{10, 100}, cold: true, latency: 500 * time.Millisecond,
		do:  func(f *fleet, n int) { f.startAll(n); f.rush(); time.Sleep(time.Minute) },
		own: each, shared: each, // nobody waits so long for others
	},
	{
		name: "Rolling restart of all", sizes: []int{10, 100},
		do:  func(f *fleet, _ int) { f.restartAll() },
		own: each, shared: none,
	},
	{
		name: "One crashes every 10 s, for an hour", sizes: []int{10},
		do:  func(f *fleet, _ int) { f.crashLoop() },
		own: func(int) int { return 360 }, shared: none,
	},
	{
		name: "Whoever makes the token request is killed meanwhile, 20 times", sizes: []int{10},
		do:  func(f *fleet, _ int) { f.killWhoAsks(20, func() {}) },
		own: func(int) int { return 2 * 20 }, shared: func(int) int { return 20 },
	},
	{
		name: "The token is revoked at the server; clients notice one after the other", sizes: []int{10, 100},
		do:  func(f *fleet, _ int) { f.server.revokeAll(); time.Sleep(f.every) },
		own: each, shared: one,
	},
	{
		name: "The same; clients of all instances notice at once", sizes: []int{10, 100},
		do:  func(f *fleet, _ int) { f.server.revokeAll(); f.rush() },
		own: each, shared: one,
	},
	{
		name: "The same; whoever makes the token request is killed", sizes: []int{10, 100},
		do:  func(f *fleet, _ int) { f.server.revokeAll(); f.killWhoAsks(1, f.rush) },
		own: each, shared: each, // as above
	},
	{
		name: "The storage is down for an hour", sizes: []int{10}, asAlone: true,
		do:  func(f *fleet, _ int) { f.storageDown(time.Hour) },
		own: none, shared: none,
	},
	{
		name: "The hour after that", sizes: []int{10},
		do: func(f *fleet, _ int) {
			f.storageDown(time.Hour)
			f.reset()
			time.Sleep(time.Hour)
		},
		own: none, shared: one,
	},
	{
		name: "Six hours with locks that lock nothing", sizes: []int{10},
		storage: func(s *simStorage) { s.locksNothing, s.latency = true, 30*time.Millisecond },
		do:      func(*fleet, int) { time.Sleep(6 * time.Hour) },
		own:     none, shared: func(n int) int { return 36 * n }, // some, by chance
	},
	{
		name: "Six hours in which half of the instances have another secret", sizes: []int{10}, asAlone: true,
		do: func(f *fleet, n int) {
			for _, i := range f.instances[:n/2] {
				i.secret.Store(&otherSecret)
			}
			time.Sleep(6 * time.Hour)
		},
		own: none, shared: none,
	},
}

var simSecret, otherSecret = "the secret of the fleet", "the secret that comes after it"

// run returns what happens during e.
func (e fleetEvent) run(t *testing.T, f *fleet, n int) (o outcome) {
	if e.latency > 0 {
		f.server.latency = e.latency
	}
	if e.storage != nil && f.storage != nil {
		e.storage(f.storage)
	}
	simulate(t, f, func() {
		if !e.cold {
			f.startAll(n)
			time.Sleep(35 * time.Minute) // no refresh is due soon
		}
		o = f.during(func() { e.do(f, n) })
	})
	extra, sources := e.own(n), n
	if f.storage != nil {
		extra = e.shared(n)
		if !e.asAlone {
			sources = 1
		}
	}
	most := extra
	if !e.cold {
		most += refreshes(o.took, f.server.lifetime, sources).most
	}
	if o.tokens > most {
		t.Errorf("%d token requests, want %d at most", o.tokens, most)
	}
	if mayTake := f.server.latency + sharingMayTake; o.slowest > mayTake {
		t.Errorf("a client has waited for %v, want %v at most", o.slowest, mayTake)
	}
	return o
}

// restartAll replaces all instances, one by one or, of a large fleet, a hundredth
// at a time, every ten seconds: a new one is started before an old one ends.
func (f *fleet) restartAll() {
	for n, old := range f.instances {
		f.instances[n] = f.start()
		if n%max(1, len(f.instances)/100) == 0 {
			time.Sleep(10 * time.Second)
		}
		old.stop()
	}
}

// crashLoop has the first instance die and start again every ten seconds, for an
// hour.
func (f *fleet) crashLoop() {
	for range 360 {
		f.instances[0].kill()
		f.instances[0] = f.start()
		time.Sleep(10 * time.Second)
	}
}

// killWhoAsks waits for a token request, which meanwhile may cause, kills the
// instance that makes it, and starts it again a second later. It does so several
// times, with time for the others to obtain a token.
func (f *fleet) killWhoAsks(times int, meanwhile func()) {
	for range times {
		asks := make(chan *instance, 1)
		f.server.watch(func(i *instance) {
			select {
			case asks <- i:
			default:
			}
		})
		var causing sync.WaitGroup
		causing.Go(meanwhile)
		dies := <-asks
		f.server.watch(nil)
		dies.kill()
		causing.Wait()
		time.Sleep(time.Second)
		for n := range f.instances {
			if f.instances[n] == dies {
				f.instances[n] = f.start()
			}
		}
		time.Sleep(f.server.lifetime / 3)
	}
}

// storageDown has the storage fail for some time.
func (f *fleet) storageDown(long time.Duration) {
	if f.storage == nil {
		time.Sleep(long)
		return
	}
	f.storage.setDown(true)
	time.Sleep(long)
	f.storage.setDown(false)
}
