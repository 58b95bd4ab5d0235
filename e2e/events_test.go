package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// eventRecorder is a handler of events.
type eventRecorder struct {
	Hang bool `json:"hang,omitempty"` // until the config ends
}

// recordedEvents are the events of all eventRecorders.
var recordedEvents struct {
	sync.Mutex
	all []caddy.Event
}

func init() { caddy.RegisterModule(eventRecorder{}) }

func (eventRecorder) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "events.handlers.egress_test", New: func() caddy.Module { return new(eventRecorder) }}
}

func (h *eventRecorder) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	h.Hang = d.NextArg() && d.Val() == "hang"
	return nil
}

func (h *eventRecorder) Handle(ctx context.Context, e caddy.Event) error {
	recordedEvents.Lock()
	recordedEvents.all = append(recordedEvents.all, e)
	recordedEvents.Unlock()
	if h.Hang {
		<-ctx.Done()
	}
	return nil
}

var _ caddyevents.Handler = (*eventRecorder)(nil)

// eventsOf returns the data of the events of a name about a credential.
func eventsOf(name, credential string) (all []map[string]any) {
	recordedEvents.Lock()
	defer recordedEvents.Unlock()
	for _, e := range recordedEvents.all {
		if e.Name() == name && e.Data["credential"] == credential {
			all = append(all, e.Data)
		}
	}
	return all
}

func TestEvents(t *testing.T) {
	recordedEvents.Lock()
	recordedEvents.all = nil
	recordedEvents.Unlock()
	f := newManyCredentials(t)
	_, sandboxServer := egresstest.NewSandbox(t, "voucherify")
	names := []string{"egress.token_obtained", "egress.token_refresh_failed", "egress.credential_refused", "egress.token_rejected", "egress.token_revoked"}
	global := f.global + "events {\n"
	for _, name := range names {
		global += "on " + name + " egress_test\n"
	}
	global = strings.Replace(global+"}\n", "egress {\n", fmt.Sprintf(
		"egress {\n credential vouchers voucherify %s {\n app_id id\n app_token {env.EGRESS_TEST_SECRET}\n scopes api\n}\n", sandboxServer.URL), 1)
	g := egresstest.StartWatched(t, f.routes+"handle_path /vouchers/* {\n egress vouchers\n}\n", egresstest.WithGlobal(global))
	f.warm(t)
	g.Get("/replayed/v1/x")
	g.Get("/forwarded/v1/x")
	g.Get("/vouchers/v1/x")
	if resp, body := f.admin.Ask(t, http.MethodPost, "/egress/tokens/vouchers/revoke"); resp.StatusCode != http.StatusOK {
		t.Fatalf("revoking: %d %s", resp.StatusCode, body)
	}

	for _, want := range []struct {
		event, credential, provider string
		data                        map[string]string
	}{
		{"egress.token_obtained", "forwarded" + f.suffix, "oauth2", map[string]string{"trigger": "warmup"}},
		{"egress.token_refresh_failed", "token_unavailable" + f.suffix, "oauth2", map[string]string{"trigger": "warmup", "live": "false", "error": "token endpoint answered 503 Service Unavailable"}},
		{"egress.credential_refused", "credential_refused" + f.suffix, "oauth2", map[string]string{"trigger": "warmup", "live": "false", "error_code": "invalid_client"}},
		{"egress.token_rejected", "replayed" + f.suffix, "oauth2", nil},
		{"egress.token_revoked", "vouchers", "voucherify", nil},
	} {
		egresstest.Eventually(t, want.event+" about "+want.credential, func() bool { return len(eventsOf(want.event, want.credential)) > 0 })
		got := eventsOf(want.event, want.credential)[0]
		if got["provider"] != want.provider {
			t.Errorf("%s: %v, want provider %s", want.event, got, want.provider)
		}
		for name, value := range want.data {
			if fmt.Sprint(got[name]) != value {
				t.Errorf("%s: %s is %v, want %s", want.event, name, got[name], value)
			}
		}
	}
	if expires, ok := eventsOf("egress.token_obtained", "forwarded"+f.suffix)[0]["expires"].(time.Time); !ok || time.Until(expires) < 58*time.Minute {
		t.Errorf("token_obtained says it expires at %v", expires)
	}
	for _, name := range names {
		if name != "egress.token_obtained" && len(eventsOf(name, "forwarded"+f.suffix)) > 0 {
			t.Errorf("%s about a credential that is well", name)
		}
	}
	recordedEvents.Lock()
	egresstest.CheckLeaks(t, "an event", fmt.Sprintf("%+v", recordedEvents.all))
	recordedEvents.Unlock()
}
