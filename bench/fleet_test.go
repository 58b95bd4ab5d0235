package main

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-egress/caddy-egress/tokensource"
	"github.com/caddy-egress/caddy-egress/tokenstore"
)

// fleet is a number of instances of the gateway with one credential, in synthetic
// time. All of it is real but the server, the storage and the network.
type fleet struct {
	server  *simServer
	storage *simStorage   // nil: the instances share nothing
	every   time.Duration // between two requests of clients at an instance

	instances []*instance
	running   sync.WaitGroup

	mu      sync.Mutex
	clients clients
	before  outcome // what had happened at since
	since   time.Time
}

// clients is what clients have seen.
type clients struct {
	requests, failed int
	slowest          time.Duration
}

// instance is one process.
type instance struct {
	fleet   *fleet
	source  *tokensource.Source
	store   *tokenstore.Store // nil: it shares nothing
	secret  atomic.Pointer[string]
	dead    atomic.Bool
	stopped chan struct{}
}

// simulate runs do in a bubble, and ends the instances that there are then.
func simulate(t *testing.T, f *fleet, do func()) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		do()
		for _, i := range f.instances {
			i.stop()
		}
		f.running.Wait()
		time.Sleep(time.Minute) // whatever is under way ends
	})
}

// startAll starts n instances at the same time.
func (f *fleet) startAll(n int) {
	for range n {
		f.instances = append(f.instances, f.start())
	}
}

// beforeClients is how long after its start clients begin to make requests at an
// instance: a load balancer waits until it is ready.
const beforeClients = 10 * time.Second

// start starts an instance.
func (f *fleet) start() *instance {
	i := &instance{fleet: f, stopped: make(chan struct{})}
	i.secret.Store(&simSecret)
	provider := simProvider{f.server, i}
	fingerprints, _ := tokensource.Fingerprints(provider)
	options := tokensource.Options{
		Name: "fleet", Provider: provider, State: tokensource.NewState(),
		Fingerprints: fingerprints, Logger: zap.NewNop(),
	}
	if f.storage != nil {
		i.store = tokenstore.New(tokenstore.Options{Storage: storageOf{f.storage, i}, Name: "simulated", Logger: zap.NewNop()})
		options.Shared = i.store.Credential("fleet", provider.Grant().Identity())
	}
	i.source = tokensource.New(options)
	i.source.Start()
	f.running.Go(i.serve)
	return i
}

// stop ends an instance in good order.
func (i *instance) stop() {
	close(i.stopped)
	i.source.Stop()
	if i.store != nil {
		i.store.Close()
	}
}

// kill ends an instance, with nothing of what a process does at its end.
func (i *instance) kill() {
	i.dead.Store(true)
	if i.fleet.storage != nil {
		i.fleet.storage.died(i)
	}
	i.stop()
}

// serve makes the requests of clients.
func (i *instance) serve() {
	wait := beforeClients + time.Duration(rand.Int64N(int64(i.fleet.every)))
	for {
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-i.stopped:
			timer.Stop()
			return
		}
		i.call()
		wait = i.fleet.every
	}
}

// rush has a client make a request at each instance, all at the same time.
func (f *fleet) rush() {
	var all sync.WaitGroup
	for _, i := range f.instances {
		all.Go(i.call)
	}
	all.Wait()
}

// call makes one request of a client.
func (i *instance) call() {
	start := time.Now()
	served := i.request()
	took := time.Since(start)
	if i.dead.Load() {
		return // the connection has ended with the process
	}
	f := i.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clients.requests++
	if !served {
		f.clients.failed++
	}
	f.clients.slowest = max(f.clients.slowest, took)
}

// request does what the gateway does with a request, and reports whether the API
// has taken it.
func (i *instance) request() (served bool) {
	ctx := context.Background()
	t, err := i.source.Token(ctx)
	if err != nil {
		return false
	}
	server := i.fleet.server
	if server.accepts(t.Value.Reveal()) {
		return true
	}
	fresh := i.source.Rejected(t, tokensource.Sender{Client: "a client", Method: "GET", Path: "/"})
	if fresh == nil {
		return false
	}
	if t, err = fresh.Token(ctx); err != nil || !server.accepts(t.Value.Reveal()) {
		return false
	}
	fresh.Answered(t, 200)
	return true
}

// outcome is what has happened in some time.
type outcome struct {
	clients

	tokens, mostLive int // token requests, and live tokens at a time
	loads, stores    int // of the storage
	took             time.Duration
}

// perHour returns n as a rate.
func (o outcome) perHour(n int) float64 { return float64(n) / o.took.Hours() }

// during returns what happens while do runs, or since do has called reset.
func (f *fleet) during(do func()) outcome {
	f.reset()
	do()
	after := f.counts()
	f.mu.Lock()
	defer f.mu.Unlock()
	o := after
	o.took = time.Since(f.since)
	o.tokens -= f.before.tokens
	o.loads -= f.before.loads
	o.stores -= f.before.stores
	o.clients = f.clients
	return o
}

// reset has during return what happens from now on.
func (f *fleet) reset() {
	before := f.counts()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before, f.since, f.clients = before, time.Now(), clients{}
}

func (f *fleet) counts() (o outcome) {
	o.tokens, o.mostLive = f.server.measure()
	if f.storage != nil {
		o.loads, o.stores = f.storage.counts()
	}
	return o
}
