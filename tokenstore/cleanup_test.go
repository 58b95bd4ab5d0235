package tokenstore

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

func TestCleanUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newMemory()
		u := use(storage)
		names := map[string]string{}
		put := func(name, letter string, issuedBefore time.Duration) {
			id := strings.Repeat(letter, 64)
			names["egress/tokens/"+id] = name
			if err := u.Credential(name, id).Store(t.Context(), secret("s"), issued("t", time.Now().Add(-issuedBefore))); err != nil {
				t.Fatal(err)
			}
		}
		put("configured, expired", "a", 10*time.Hour)
		put("gone, expired long ago", "b", 3*time.Hour)
		put("gone, expired just now", "c", 90*time.Minute)
		put("gone, live", "d", 0)
		storage.values["egress/tokens/later"] = []byte(`{"format":2,"expires":"2020-01-01T00:00:00Z"}`)
		storage.values["egress/tokens/foreign"] = []byte(`a file of somebody`)
		storage.values["egress/probes/of-another"] = probeValue
		storage.values["egress/tokens/deeper/entry"] = storage.values["egress/tokens/"+strings.Repeat("b", 64)]
		storage.values["certificates/x"] = []byte(`{"format":1,"expires":"2020-01-01T00:00:00Z"}`)
		u.Credential("gone", strings.Repeat("e", 64)).Join(t.Context(), tokenprovider.Token{Value: tokenprovider.NewSecret("t"), Expires: time.Now().Add(-2 * time.Hour)})
		u.Credential("live", strings.Repeat("f", 64)).Join(t.Context(), tokenprovider.Token{Value: tokenprovider.NewSecret("t"), Expires: time.Now()})

		left := func() (left []string) {
			storage.mu.Lock()
			defer storage.mu.Unlock()
			for _, key := range slices.Sorted(maps.Keys(storage.values)) {
				key, _ = strings.CutSuffix(key, "/"+u.instance)
				left = append(left, strings.TrimPrefix(key, "egress/"))
			}
			return left
		}
		want := func(letters ...string) (want []string) {
			want = append(want, "certificates/x")
			for _, l := range letters {
				if l == "f" {
					want = append(want, "sharers/"+strings.Repeat(l, 64))
				}
			}
			for _, l := range letters {
				if l != "f" {
					want = append(want, "tokens/"+strings.Repeat(l, 64))
				}
			}
			want = append(want, "tokens/deeper/entry", "tokens/foreign", "tokens/later")
			slices.Sort(want)
			return want
		}
		ctx, cancel := context.WithCancel(t.Context())
		go u.CleanUp(ctx, func(id string) bool { return id == strings.Repeat("a", 64) })
		synctest.Wait()
		if got := left(); !slices.Equal(got, want("a", "c", "d", "f")) {
			t.Errorf("left is %q, want %q", got, want("a", "c", "d", "f"))
		}
		time.Sleep(3 * time.Hour)
		if got := left(); !slices.Equal(got, want("a")) {
			t.Errorf("left after 3 h is %q, want %q", got, want("a"))
		}
		cancel()
		synctest.Wait()
		if len(u.logs.All()) != 0 {
			t.Errorf("logged %v", u.logs.All())
		}
	})
}

func TestLeave(t *testing.T) {
	storage := newMemory()
	one, other := use(storage).Credential("shop", identity), use(storage).Credential("shop", identity)
	token := issued("a-token", time.Now())
	ctx := t.Context()
	if err := one.Store(ctx, secret("s"), token); err != nil {
		t.Fatal(err)
	}
	one.Join(ctx, token.Token)
	other.Join(ctx, token.Token)
	if one.Leave(ctx, alternatives("s"), token.Token) {
		t.Error("the first of two is the last")
	}
	if storage.values[key] == nil {
		t.Error("the token is gone, although it is used")
	}
	if !other.Leave(ctx, alternatives("s"), token.Token) {
		t.Error("the last one is not")
	}
	if len(storage.values) != 0 {
		t.Errorf("%d values are left", len(storage.values))
	}

	// others use another token by now
	next := issued("another", time.Now())
	if err := other.Store(ctx, secret("s"), next); err != nil {
		t.Fatal(err)
	}
	other.Join(ctx, next.Token)
	one.Join(ctx, token.Token)
	if !one.Leave(ctx, alternatives("s"), token.Token) || storage.values[key] == nil {
		t.Error("nobody else used the first token, and the other is that of others")
	}

	// what cannot be known counts as in use
	one.Join(ctx, token.Token)
	storage.set(func(m *memory) { m.fails[OperationList] = context.DeadlineExceeded })
	if one.Leave(ctx, alternatives("s"), token.Token) {
		t.Error("the last, although nobody knows")
	}
}
