package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokenprovider/oauth2"
)

func init() {
	caddy.RegisterModule(new(suspended))
}

// suspended is oauth2 on a machine that is suspended for two hours as soon as it
// has the first token: the wall clock goes on meanwhile, the monotonic clock does not.
type suspended struct{ oauth2.Provider }

func (*suspended) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "egress.providers.suspended", New: func() caddy.Module { return new(suspended) }}
}

func (s *suspended) Token(ctx context.Context, client *http.Client) (*tokenprovider.Token, error) {
	token, err := s.Provider.Token(ctx, client)
	if err == nil && token.Value.Reveal() == egresstest.Token(1) {
		// of a time.Time with both clocks, 33 bits above 30 are the seconds of the wall clock
		*(*uint64)(unsafe.Pointer(&token.Expires)) -= uint64(2*time.Hour/time.Second) << 30
	}
	return token, err
}

// The next request after the machine has resumed works, whatever the API says to
// tokens that have expired, and however long the body: nothing is sent twice.
func TestRequestAfterTheMachineWasSuspended(t *testing.T) {
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden} {
		for _, size := range []int{0, 2 << 20} {
			t.Run(fmt.Sprintf("%d/%d bytes", status, size), func(t *testing.T) {
				endpoint := egresstest.NewTokens(t)
				api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					n, _ := io.Copy(io.Discard, r.Body)
					if r.Header.Get("Authorization") != "Bearer "+egresstest.Token(2) {
						w.WriteHeader(status) // two hours old
						return
					}
					fmt.Fprint(w, n)
				}))
				defer api.Close()
				route := strings.Replace(egresstest.Egress(api.URL, endpoint.URL, ""), "egress oauth2", "egress suspended", 1)
				g := egresstest.StartGateway(t, route)
				egresstest.Eventually(t, "the first token", func() bool { return strings.Contains(g.Log(), "obtained a token") })
				for n := range 3 {
					method := http.MethodGet
					if size > 0 {
						method = http.MethodPost
					}
					resp, body := g.Do(g.Request(method, "/v1/x", bytes.NewReader(make([]byte, size))))
					if resp.StatusCode != http.StatusOK || body != fmt.Sprint(size) {
						t.Errorf("request %d was answered %d %s, want 200", n, resp.StatusCode, body)
					}
				}
			})
		}
	}
}
