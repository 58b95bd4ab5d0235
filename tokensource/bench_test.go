package tokensource_test

import (
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-egress/caddy-egress/tokensource"
)

// BenchmarkToken measures the hot path: a live token at hand.
func BenchmarkToken(b *testing.B) {
	state := tokensource.NewState()
	s := tokensource.New(tokensource.Options{Name: "test", Provider: &issuer{lifetime: time.Hour}, State: state, Logger: zap.NewNop()})
	if _, err := s.Token(b.Context()); err != nil {
		b.Fatal(err)
	}
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Token(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSince is the measure for BenchmarkToken: one look at the clock.
func BenchmarkSince(b *testing.B) {
	start := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		if time.Since(start) < 0 {
			b.Fatal("time runs backwards")
		}
	}
}

func TestTokenAllocatesNothing(t *testing.T) {
	s := tokensource.New(tokensource.Options{Name: "test", Provider: &issuer{lifetime: time.Hour}, State: tokensource.NewState(), Logger: zap.NewNop()})
	ctx := t.Context()
	if got := testing.AllocsPerRun(1000, func() { _, _ = s.Token(ctx) }); got != 0 {
		t.Errorf("Token allocates %v times on the hot path, want 0", got)
	}
}

func TestInUseAllocatesNothing(t *testing.T) {
	s := tokensource.New(tokensource.Options{Name: "test", Provider: &issuer{lifetime: time.Hour}, State: tokensource.NewState(), Logger: zap.NewNop()})
	token, err := s.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := testing.AllocsPerRun(1000, func() { done, _ := s.InUse(token); done() }); got != 0 {
		t.Errorf("InUse allocates %v times where no token is revoked, want 0", got)
	}
}
