package tokensource_test

import (
	"bytes"
	"regexp"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-egress/caddy-egress/tokensource"
)

func TestOneRefresherForSourcesOfDifferentLifetimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		share := sharing()
		var issuers []*issuer
		var all []*tokensource.Source
		// neither in the order in which they are due nor in its reverse
		for n := range 50 {
			i := &issuer{lifetime: time.Duration(n*37%50+1) * time.Minute}
			s := newSource(t, i, share)
			s.Start()
			issuers, all = append(issuers, i), append(all, s)
		}
		for start := time.Now(); time.Since(start) < 4*time.Hour; time.Sleep(30 * time.Second) {
			for _, s := range all {
				if _, took, err := get(s); err != nil || took != 0 {
					t.Fatalf("after %v: error %v after %v, want a token at once", time.Since(start), err, took)
				}
			}
		}
		for _, s := range all {
			s.Stop()
		}
		for n, i := range issuers {
			for _, waited := range i.waits() {
				if least, most := i.lifetime*2/3, i.lifetime*7/10; waited < least || waited > most {
					t.Errorf("source %d: a token of %v was replaced after %v, want %v to %v", n, i.lifetime, waited, least, most)
				}
			}
			if got, least := i.count(), int(4*time.Hour/i.lifetime); got < least {
				t.Errorf("source %d: %d token requests, want %d at least", n, got, least)
			}
		}
	})
}

func TestSourcesStopInAnyOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		share := sharing()
		var issuers []*issuer
		var all []*tokensource.Source
		for n := range 40 {
			i := &issuer{lifetime: time.Duration(n*17%40+10) * time.Minute}
			s := newSource(t, i, share)
			s.Start()
			issuers, all = append(issuers, i), append(all, s)
		}
		synctest.Wait()
		for n, s := range all {
			if n%3 != 0 {
				s.Stop()
				s.Stop() // again does nothing
			}
		}
		for range 35 {
			for _, s := range all {
				s.Live()
			}
			time.Sleep(time.Minute)
		}
		for n, i := range issuers {
			if stopped := n%3 != 0; stopped && i.count() != 1 || !stopped && i.count() < 2 {
				t.Errorf("source %d, stopped %v: %d token requests", n, stopped, i.count())
			}
		}
	})
}

// TestRefreshThatIsNoLongerDue: between the moment that the timer fires and the
// refresh, another config may have refreshed the token, or stopped this one.
func TestRefreshThatIsNoLongerDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Minute}
		s := newSource(t, i)
		s.Start()
		synctest.Wait()
		s.RefreshIfDue()
		synctest.Wait()
		if got := i.count(); got != 1 {
			t.Errorf("%d token requests, want 1: the token is fresh", got)
		}
		s.Stop()
		time.Sleep(50 * time.Second)
		s.RefreshIfDue()
		synctest.Wait()
		if got := i.count(); got != 1 {
			t.Errorf("%d token requests, want 1: the source was stopped", got)
		}
	})
}

func TestRefresherForgetsStoppedSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refresher := tokensource.NewRefresher()
		var all []*tokensource.Source
		for range 10 {
			s := newSource(t, &issuer{lifetime: time.Hour}, func(o *tokensource.Options) { o.Refresher = refresher })
			s.Start()
			all = append(all, s)
		}
		synctest.Wait()
		for n, s := range all {
			if got := refresher.Len(); got != 10-n {
				t.Errorf("%d sources are scheduled, want %d", got, 10-n)
			}
			s.Stop()
		}
		if got := refresher.Len(); got != 0 {
			t.Errorf("%d sources are scheduled after they were stopped", got)
		}
	})
}

func TestIdleSourcesHaveNoGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sources = 1000
		share := sharing()
		before := bubbled(t)
		for range sources {
			i := &issuer{latency: time.Second, lifetime: time.Hour}
			s := newSource(t, i, share)
			s.Start()
			defer s.Stop()
		}
		synctest.Wait()
		// one that waits for the answer, and one that sends
		if got, most := bubbled(t)-before, 2*tokensource.MaxConcurrent+1; got > most {
			t.Errorf("%d more goroutines while tokens are requested, want at most %d", got, most)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := bubbled(t) - before; got > 1 {
			t.Errorf("%d more goroutines for %d sources, want at most 1", got, sources)
		}
	})
}

// bubbled returns the number of goroutines in the test's bubble. Those of the
// runtime and of other tests come and go.
func bubbled(t *testing.T) int {
	t.Helper()
	stacks := make([]byte, 16<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	bubble := regexp.MustCompile(`synctest bubble \d+\b`).Find(stacks) // ours: the caller is the first
	if bubble == nil {
		t.Fatal("the test is in no bubble")
	}
	n := 0
	for line := range bytes.Lines(stacks) {
		if bytes.HasPrefix(line, []byte("goroutine ")) && bytes.Contains(line, append(bubble, ']')) {
			n++
		}
	}
	return n
}

// TestReloadWhileARefreshIsDue: two configs with a refresher each start, stop
// and refresh one state at the same moments.
func TestReloadWhileARefreshIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{latency: 10 * time.Millisecond, lifetime: 3 * time.Second}
		state := tokensource.NewState()
		config := func() *tokensource.Source {
			return newSource(t, i, sharing(), func(o *tokensource.Options) { o.State = state })
		}
		running := config()
		running.Start()
		for range 50 {
			for range 2 {
				if _, _, err := get(running); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
			}
			// it is due about now: after 2 to 2.1 s
			time.Sleep(time.Until(running.Status().Next))
			reloaded := config()
			var wg sync.WaitGroup
			wg.Go(reloaded.Start)
			wg.Go(running.Stop)
			wg.Wait()
			running = reloaded
		}
		running.Stop()
		synctest.Wait()
		for _, waited := range i.waits() {
			if waited < 2*time.Second {
				t.Errorf("two token requests within %v, want one per refresh", waited)
			}
		}
		if got := i.count(); got < 50 {
			t.Errorf("%d token requests, want one per refresh", got)
		}
		stopped := i.count()
		time.Sleep(time.Hour)
		if got := i.count(); got != stopped {
			t.Errorf("%d token requests after the stop", got-stopped)
		}
	})
}

func TestLapsedSourceWakesAmongOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		share := sharing()
		var issuers []*issuer
		var all []*tokensource.Source
		for range 10 {
			i := &issuer{lifetime: 90 * time.Second}
			s := newSource(t, i, share)
			s.Start()
			issuers, all = append(issuers, i), append(all, s)
		}
		time.Sleep(130 * time.Second) // as in TestUseOfATokenKeepsItFresh
		_, _, _ = get(all[3])
		synctest.Wait()
		time.Sleep(time.Hour)
		var counts []int
		for _, i := range issuers {
			counts = append(counts, i.count())
		}
		if want := []int{2, 2, 2, 4, 2, 2, 2, 2, 2, 2}; !slices.Equal(counts, want) {
			t.Errorf("token requests %v, want %v", counts, want)
		}
	})
}

// BenchmarkFirstUse measures what a change of one source costs beside 10,000
// that are idle.
func BenchmarkFirstUse(b *testing.B) {
	refresher, endpoint := tokensource.NewRefresher(), tokensource.NewEndpoint()
	var last *tokensource.Source
	for range 10_000 {
		last = tokensource.New(tokensource.Options{
			Name: "test", Provider: &issuer{lifetime: time.Hour}, State: tokensource.NewState(),
			Refresher: refresher, Endpoint: endpoint, Logger: zap.NewNop(),
		})
		last.Start()
		defer last.Stop()
	}
	token, err := last.Token(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		last.Unuse(token)
		last.Live()
	}
}
