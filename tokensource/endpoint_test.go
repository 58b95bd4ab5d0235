package tokensource_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// sharing returns an option that has sources share refresher and endpoint.
func sharing() func(*tokensource.Options) {
	refresher, endpoint := tokensource.NewRefresher(), tokensource.NewEndpoint()
	return func(o *tokensource.Options) { o.Refresher, o.Endpoint = refresher, endpoint }
}

// busy occupies all places of an endpoint for latency.
func busy(t *testing.T, share func(*tokensource.Options), latency time.Duration) {
	t.Helper()
	for range tokensource.MaxConcurrent {
		newSource(t, &issuer{latency: latency, lifetime: time.Hour}, share).Start()
	}
	synctest.Wait()
}

func TestAtMost16TokenRequestsAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const latency = time.Second
		share := sharing()
		start := time.Now()
		var issuers []*issuer
		var all []*tokensource.Source
		for range 50 {
			i := &issuer{latency: latency, lifetime: time.Hour}
			s := newSource(t, i, share)
			s.Start()
			time.Sleep(time.Millisecond)
			issuers, all = append(issuers, i), append(all, s)
		}
		for _, s := range all[16:] {
			if got := s.Status(); got.Phase != tokensource.PhaseRefreshing {
				t.Errorf("%s while its token request is queued, want refreshing", got.Phase)
			}
		}
		time.Sleep(5 * time.Second)
		for n, i := range issuers {
			// in order: a place is free a latency after the request that had it was sent
			want := time.Duration(n/16)*latency + time.Duration(n%16)*time.Millisecond
			if got := i.at(0).Sub(start); i.count() != 1 || got != want {
				t.Errorf("%d: sent after %v, want %v", n, got, want)
			}
		}
	})
}

func TestEachEndpointHasItsOwnPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		busy(t, sharing(), time.Hour)
		for name, share := range map[string]func(*tokensource.Options){"another": sharing(), "its own": func(*tokensource.Options) {}} {
			if _, took, err := get(newSource(t, &issuer{lifetime: time.Hour}, share)); err != nil || took != 0 {
				t.Errorf("%s: error %v after %v, want a token at once", name, err, took)
			}
		}
	})
}

// TestRequestsThatClientsWaitForGoFirst queues token requests that no client
// waits for, and then some that one does wait for, in various ways.
func TestRequestsThatClientsWaitForGoFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		share := sharing()
		var mu sync.Mutex
		var ended []string
		named := func(name string, options ...func(*tokensource.Options)) (*issuer, *tokensource.Source) {
			i := &issuer{latency: time.Second, lifetime: time.Hour}
			return i, newSource(t, i, append(options, share, func(o *tokensource.Options) {
				o.OnOutcome = func(outcome tokensource.Outcome) {
					mu.Lock()
					defer mu.Unlock()
					ended = append(ended, name+" "+outcome.Trigger)
				}
			})...)
		}
		_, rejected := named("c")
		token, err := rejected.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, byHand := named("d")
		synctest.Wait()
		mu.Lock()
		ended = nil
		mu.Unlock()

		busy(t, share, 500*time.Millisecond)
		var warmups []*tokensource.Source
		for n := range 16 {
			_, s := named(fmt.Sprintf("w%d", n))
			s.Start()
			synctest.Wait()
			warmups = append(warmups, s)
		}
		// those that a client waits for, in this order
		var wg sync.WaitGroup
		defer wg.Wait()
		wait := func(f func() error) {
			wg.Go(func() {
				if err := f(); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		_, demand := named("a")
		wait(func() error { _, _, err := get(demand); return err })
		wait(func() error { _, _, err := get(warmups[12]); return err })
		wait(func() error { _, _, err := get(warmups[12]); return err }) // another client
		if rejected.Rejected(token, by) == nil {
			t.Error("a 401 asked for no other token")
		}
		wait(func() error { return byHand.Refresh(t.Context()) })
		wait(func() error { return warmups[14].Refresh(t.Context()) })

		time.Sleep(1900 * time.Millisecond) // the first 16 of them have ended
		synctest.Wait()
		mu.Lock()
		got := slices.Clone(ended)
		mu.Unlock()
		slices.Sort(got)
		want := []string{"a demand", "c rejected", "d refresh", "w12 warmup", "w14 warmup"}
		for n := range 11 {
			want = append(want, fmt.Sprintf("w%d warmup", n))
		}
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("the first to end were %q, want %q", got, want)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if len(ended) != 19 {
			t.Errorf("%d token requests have ended, want 19, each once: %q", len(ended), ended)
		}
	})
}

func TestRequestsThatClientsWaitForKeepTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		share := sharing()
		// one place is free each 100 ms
		for n := range tokensource.MaxConcurrent {
			newSource(t, &issuer{latency: 5*time.Second + time.Duration(n)*100*time.Millisecond, lifetime: time.Hour}, share).Start()
		}
		synctest.Wait()
		start := time.Now()
		sent := make(map[string]*issuer)
		queued := func(name string) *tokensource.Source {
			sent[name] = &issuer{latency: time.Hour, lifetime: time.Hour}
			return newSource(t, sent[name], share)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		wait := func(s *tokensource.Source) {
			go func() { _, _ = s.Token(ctx) }()
			synctest.Wait()
		}
		w1, w2, w3, w4 := queued("w1"), queued("w2"), queued("w3"), queued("w4")
		for _, s := range []*tokensource.Source{w1, w2, w3, w4} {
			s.Start()
			synctest.Wait()
		}
		wait(queued("a"))
		wait(w3)
		wait(queued("b"))
		wait(w2)
		time.Sleep(8 * time.Second)
		for n, name := range []string{"a", "w3", "b", "w2", "w1", "w4"} {
			if got, want := sent[name].at(0).Sub(start), 5*time.Second+time.Duration(n)*100*time.Millisecond; got != want || sent[name].count() != 1 {
				t.Errorf("%s: sent after %v, want %v", name, got, want)
			}
		}
	})
}

func TestTimeInTheQueueIsNotTheRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		share := sharing()
		busy(t, share, 8*time.Second)
		recorded, record := record()
		i := &issuer{latency: 8 * time.Second, lifetime: time.Hour}
		s := newSource(t, i, share, record)
		// a client that gives up while it is queued
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.Token(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the context's error", err)
		}
		// and one that waits
		if _, took, err := get(s); err != nil || took != 15*time.Second {
			t.Errorf("error %v after %v, want a token after 15s", err, took)
		}
		if got := recorded.all()[0].Took; got != 8*time.Second {
			t.Errorf("the token request took %v, want 8s", got)
		}
		// its timeout counts from when it is sent
		busy(t, share, 8*time.Second)
		i.set(func(i *issuer) { i.hang = true })
		start := time.Now()
		if err := s.Refresh(t.Context()); err == nil || time.Since(start) != 18*time.Second {
			t.Errorf("error %v after %v, want one after 18s", err, time.Since(start))
		}
	})
}

func TestPlaceIsFreeAfterAPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		share := sharing()
		for range 2 * tokensource.MaxConcurrent {
			if _, _, err := get(newSource(t, &issuer{panics: true}, share)); err == nil {
				t.Error("got a token from a panic")
			}
		}
		if _, took, err := get(newSource(t, &issuer{lifetime: time.Hour}, share)); err != nil || took != 0 {
			t.Errorf("error %v after %v, want a token", err, took)
		}
	})
}

func TestStoppedSourceLeavesTheQueue(t *testing.T) {
	for name, c := range map[string]struct {
		wait   bool // a client waits for the queued request
		reload bool // another config uses the state
		want   int
	}{
		"nobody waits":                {want: 0},
		"a client waits":              {wait: true, want: 1},
		"another config uses it":      {reload: true, want: 1},
		"another does, and one waits": {reload: true, wait: true, want: 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				share := sharing()
				busy(t, share, 5*time.Second)
				state := tokensource.NewState()
				r := &revoker{issuer: &issuer{lifetime: time.Hour}}
				options := func(o *tokensource.Options) { o.Provider, o.State, o.RevokeOnStop = r, state, true }
				s := newSource(t, r.issuer, options, share)
				s.Start()
				synctest.Wait()
				if c.wait {
					go func() {
						if _, took, err := get(s); err != nil || took != 5*time.Second {
							t.Errorf("error %v after %v, want a token", err, took)
						}
					}()
					synctest.Wait()
				}
				if c.reload {
					reloaded := newSource(t, r.issuer, options, share)
					reloaded.Start()
					synctest.Wait()
				}
				s.Stop()
				if want := c.want == 0; (s.Status().Phase == tokensource.PhaseIdle) != want {
					t.Errorf("got %s after the stop, want idle: %v", s.Status().Phase, want)
				}
				if start := time.Now(); c.want == 0 {
					if err := state.Retire(time.Hour, time.Minute); err != nil || time.Since(start) != 0 {
						t.Errorf("retired after %v with error %v, want at once", time.Since(start), err)
					}
				}
				time.Sleep(6 * time.Second)
				if got := r.count(); got != c.want {
					t.Errorf("%d token requests, want %d", got, c.want)
				}
			})
		})
	}
}

func TestRequestThatLeavesTheQueueCostsNoBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		share := sharing()
		i := &issuer{lifetime: time.Nanosecond} // a refresh is due at once
		s := newSource(t, i, share)
		for range 4 {
			_ = s.Refresh(t.Context())
		}
		time.Sleep(time.Nanosecond)
		busy(t, share, 100*time.Millisecond)
		s.Start()
		synctest.Wait()
		s.Stop()
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if _, took, err := get(s); err != nil || took != 0 || i.count() != 5 {
			t.Errorf("error %v after %v, %d token requests; want the fifth at once", err, took, i.count())
		}
	})
}

func TestRetireDoesNotWaitForARequestThatLeavesTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		share := sharing()
		busy(t, share, 5*time.Second)
		r := &revoker{issuer: &issuer{lifetime: time.Hour}}
		state := tokensource.NewState()
		s := newSource(t, r.issuer, share, func(o *tokensource.Options) { o.Provider, o.State, o.RevokeOnStop = r, state, true })
		s.Start()
		synctest.Wait()
		time.AfterFunc(time.Second, s.Stop)
		start := time.Now()
		if err := state.Retire(time.Hour, time.Minute); err != nil || time.Since(start) != time.Second || r.count() != 0 {
			t.Errorf("retired after %v with error %v, %d token requests; want it with the stop", time.Since(start), err, r.count())
		}
	})
}

func TestStoppedSourceDoesNotWaitForTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		share := sharing()
		i := &issuer{lifetime: time.Hour}
		s := newSource(t, i, share)
		for range 5 {
			_ = s.Refresh(t.Context())
		}
		time.Sleep(30 * time.Minute)
		start := time.Now()
		for range 5 {
			_ = s.Refresh(t.Context())
		}
		s.Start()
		i.set(func(i *issuer) { i.lifetime = time.Nanosecond })
		if err := s.Refresh(t.Context()); err != nil || time.Since(start) != time.Second {
			t.Fatalf("error %v after %v, want a token that is dead on arrival after a second", err, time.Since(start))
		}
		time.Sleep(time.Millisecond)
		synctest.Wait() // the next refresh waits for the budget
		if got := s.Status().Phase; got != tokensource.PhaseRefreshing {
			t.Fatalf("got %s, want refreshing", got)
		}
		s.Stop()
		time.Sleep(time.Minute)
		if got := i.count(); got != 11 {
			t.Errorf("%d token requests, want 11", got)
		}
	})
}

func TestWaitForTheBudgetTakesNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		share := sharing()
		var wg sync.WaitGroup
		defer wg.Wait()
		for range tokensource.MaxConcurrent {
			s := newSource(t, &issuer{lifetime: time.Hour}, share)
			for range 5 {
				_ = s.Refresh(t.Context())
			}
			wg.Go(func() {
				if err := s.Refresh(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if _, took, err := get(newSource(t, &issuer{lifetime: time.Hour}, share)); err != nil || took != 0 {
			t.Errorf("error %v after %v, want a token at once", err, took)
		}
	})
}

func TestFreePlaceDoesNotShortenTheWaitForTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		share := sharing()
		i := &issuer{lifetime: time.Hour}
		s := newSource(t, i, share)
		for range 5 {
			_ = s.Refresh(t.Context())
		}
		// a token request of another source ends while s waits
		newSource(t, &issuer{latency: 100 * time.Millisecond, lifetime: time.Hour}, share).Start()
		if err := s.Refresh(t.Context()); err != nil || i.count() != 6 || i.at(5).Sub(i.at(0)) != time.Second {
			t.Errorf("error %v, %d token requests, the last after %v; want it after a second", err, i.count(), i.at(i.count()-1).Sub(i.at(0)))
		}
	})
}

func TestRequestThatWaitedForTheBudgetQueuesWithThoseThatClientsWaitFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		share := sharing()
		s := newSource(t, &issuer{lifetime: time.Hour}, share)
		for range 5 {
			_ = s.Refresh(t.Context())
		}
		busy(t, share, 5*time.Second)
		queue := make([]*issuer, tokensource.MaxConcurrent)
		for n := range queue {
			queue[n] = &issuer{latency: 5 * time.Second, lifetime: time.Hour}
			newSource(t, queue[n], share).Start()
		}
		start := time.Now()
		if err := s.Refresh(t.Context()); err != nil || time.Since(start) != 5*time.Second {
			t.Errorf("error %v after %v, want a token before those that nobody waits for", err, time.Since(start))
		}
	})
}

func TestTimeoutAsLongAsTheWaitForTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Hour}
		s := newSource(t, i, func(o *tokensource.Options) { o.TokenTimeout = time.Second })
		for range 5 {
			_ = s.Refresh(t.Context())
		}
		start := time.Now()
		if err := s.Refresh(t.Context()); err == nil || time.Since(start) != time.Second || i.count() != 5 {
			t.Errorf("error %v after %v, %d token requests; want nothing sent", err, time.Since(start), i.count())
		}
	})
}

func TestTimeoutShorterThanTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Hour}
		recorded, record := record()
		s := newSource(t, i, record, func(o *tokensource.Options) { o.TokenTimeout = 400 * time.Millisecond })
		for range 5 {
			_ = s.Refresh(t.Context())
		}
		start := time.Now()
		err := s.Refresh(t.Context())
		var cause *tokenprovider.Error
		if !errors.As(err, &cause) || cause.Class != tokenprovider.Transient || time.Since(start) != 400*time.Millisecond {
			t.Errorf("got %v after %v, want a transient error after the timeout", err, time.Since(start))
		}
		if got := recorded.all()[5]; i.count() != 5 || got.Took != 0 || got.Err == nil || !got.Live {
			t.Errorf("%d token requests, outcome %+v; want nothing sent", i.count(), got)
		}
		// the place in the budget was given back: 0.4 of it is there, and 0.2 s
		// later enough is left to wait for
		time.Sleep(300 * time.Millisecond)
		start = time.Now()
		if err := s.Refresh(t.Context()); err != nil || time.Since(start) != 300*time.Millisecond {
			t.Errorf("error %v after %v, want a token after 0.3 s", err, time.Since(start))
		}
		// and what is left of the timeout is for the request
		time.Sleep(700 * time.Millisecond)
		i.set(func(i *issuer) { i.hang = true })
		start = time.Now()
		if err := s.Refresh(t.Context()); err == nil || time.Since(start) != 400*time.Millisecond {
			t.Errorf("error %v after %v, want one after the timeout", err, time.Since(start))
		}
	})
}
