package egress

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/caddyserver/caddy/v2"
)

// moodyStorage is a storage module that finds out in Provision whether its server
// is there.
type moodyStorage struct {
	Path string `json:"path,omitempty"`
	Late bool   `json:"late,omitempty"` // it finds out in CertMagicStorage
}

var moody struct {
	down     atomic.Bool
	attempts atomic.Int64
}

func init() { caddy.RegisterModule(new(moodyStorage)) }

func (*moodyStorage) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.storage.moody", New: func() caddy.Module { return new(moodyStorage) }}
}

func (m *moodyStorage) Provision(caddy.Context) error {
	moody.attempts.Add(1)
	if moody.down.Load() && !m.Late {
		return errors.New("connection refused")
	}
	return nil
}

func (m *moodyStorage) CertMagicStorage() (certmagic.Storage, error) {
	if moody.down.Load() {
		return nil, errors.New("connection refused")
	}
	return &certmagic.FileStorage{Path: m.Path}, nil
}

func TestStorageThatIsDownAtStart(t *testing.T) {
	for name, late := range map[string]string{"in Provision": "false", "in CertMagicStorage": "true"} {
		t.Run(name, func(t *testing.T) { testStorageThatIsDown(t, late) })
	}
}

func testStorageThatIsDown(t *testing.T, late string) {
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	defer cancel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		moody.down.Store(true)
		share := &ShareTokens{StorageRaw: json.RawMessage(`{"module":"moody","path":"` + dir + `","late":` + late + `}`)}
		store, err := share.provision(ctx)
		if err != nil {
			t.Fatalf("the config is refused: %v", err)
		}
		c := store.Credential("shop", "identity")
		if _, err := c.Load(context.Background(), nil); err == nil {
			t.Error("loaded from a storage that is down")
		}
		if h := store.Health(); !h.Failing || h.Storage != "caddy.storage.moody" || !strings.Contains(h.Err.Error(), "connection refused") {
			t.Errorf("health %+v, want the reason", h)
		}
		moody.down.Store(false)
		time.Sleep(time.Minute)
		if got, err := c.Load(context.Background(), nil); got != nil || err != nil {
			t.Errorf("got %v, %v; want that there is nothing", got, err)
		}
		tried := moody.attempts.Load()
		_, _ = c.Load(context.Background(), nil)
		if moody.attempts.Load() != tried {
			t.Error("set up again")
		}

		// no longer once the config ends
		moody.down.Store(true)
		share = &ShareTokens{StorageRaw: json.RawMessage(`{"module":"moody","late":` + late + `}`)}
		if store, err = share.provision(ctx); err != nil {
			t.Fatal(err)
		}
		store.CloseSoon()
		tried = moody.attempts.Load()
		if _, err := store.Credential("shop", "identity").Load(context.Background(), nil); err == nil || moody.attempts.Load() != tried {
			t.Error("set up after the end of the config")
		}
	})
}

func TestStorageThatIsNoStorage(t *testing.T) {
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	defer cancel()
	moody.down.Store(false)
	for raw, want := range map[string]string{
		`{"module":"nowhere"}`:          "unknown module: caddy.storage.nowhere",
		`{"module":"moody","pat":"x"}`:  "decoding module config",
		`{"path":"x"}`:                  "module",
		`{"module":"moody","path":"x"}`: "",
	} {
		_, err := (&ShareTokens{StorageRaw: json.RawMessage(raw)}).provision(ctx)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "share_tokens: storage: ")) {
			t.Errorf("%s: error %v, want %q", raw, err, want)
		}
	}
}
