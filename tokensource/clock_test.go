package tokensource_test

import (
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-egress/caddy-egress/tokensource"
)

func TestUntil(t *testing.T) {
	now := time.Now()
	then := now.Add(time.Hour)
	for d, want := range map[time.Duration]time.Duration{
		0:               time.Hour,
		2 * time.Hour:   -time.Hour, // suspended
		-24 * time.Hour: time.Hour,  // the wall clock was set back
	} {
		if got := tokensource.Until(tokensource.Suspend(then, d), now); got != want {
			t.Errorf("%v by the monotonic clock, and %v less by the wall clock: got %v, want %v", time.Hour, d, got, want)
		}
	}
}

// In a bubble of synctest there is one clock only, so these run in real time.

func TestTokenThatExpiredWhileTheMachineWasSuspended(t *testing.T) {
	i := &issuer{lifetime: time.Hour, suspended: 2 * time.Hour}
	s := tokensource.New(tokensource.Options{Name: "test", Provider: i, State: tokensource.NewState(), Logger: zap.NewNop()})
	if token, _, err := get(s); err != nil || token != "token-1" {
		t.Fatal(token, err)
	}
	if s.Live() != nil {
		t.Error("the token is in use, although it has expired by the wall clock")
	}
	if token, _, err := get(s); err != nil || token != "token-2" {
		t.Errorf("got %q, error %v; want another token", token, err)
	}
}

func TestRefreshThatFellDueWhileTheMachineWasSuspended(t *testing.T) {
	refresher := tokensource.NewRefresher()
	i := &issuer{lifetime: 24 * time.Hour}
	s := tokensource.New(tokensource.Options{Name: "test", Provider: i, State: tokensource.NewState(), Refresher: refresher, Logger: zap.NewNop()})
	s.Start()
	defer s.Stop()
	if _, _, err := get(s); err != nil {
		t.Fatal(err)
	}
	if due := refresher.Due(); due < 15*time.Hour {
		t.Fatalf("due in %v", due)
	}
	if wait := refresher.Wait(); wait != time.Minute {
		t.Errorf("looks again after %v, want a minute", wait)
	}
	refresher.Suspend(25 * time.Hour)
	if due := refresher.Due(); due > 0 {
		t.Errorf("due in %v, want now", due)
	}
	s.RefreshIfDue()
	if _, _, err := get(s); err != nil || i.count() != 2 {
		t.Errorf("%d token requests, error %v; want 2", i.count(), err)
	}
}
