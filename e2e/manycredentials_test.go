package e2e_test

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// manyCredentials is an API and a token endpoint for many credentials, distinguished by
// client id: what either does depends on it. The credentials are named after it,
// with a suffix, since metrics last as long as the process.
type manyCredentials struct {
	suffix string
	api    *egresstest.Recorder
	tokens *egresstest.Tokens
	admin  egresstest.Admin
	global string // the global options
	routes string
	issued atomic.Int64
}

// manyRoutes are these credentials, with the options of their routes.
var manyRoutes = map[string]string{
	"forwarded":             "",
	"replayed":              "",
	"not_replayable":        "replay_buffer 0",
	"always_401":            "",
	"token_unavailable":     "",
	"credential_refused":    "",
	"malformed":             "",
	"rate_limited":          "respect_rate_limit",
	"client_not_allowed":    "clients 10.0.0.0/8",
	"host_not_allowed":      "",
	"origin_not_allowed":    "",
	"operation_not_allowed": "allow GET /v1/only",
	"api_host_not_allowed":  "api_hosts elsewhere.test",
	"bad_request":           "",
	"preflight":             "origins https://app.example.com",
	"short":                 "",
	"silent":                "lb_retries 1",
	"hanging":               "",
}

var suffixes atomic.Int64

func newManyCredentials(t *testing.T) *manyCredentials {
	t.Helper()
	f := &manyCredentials{suffix: fmt.Sprint(".many", suffixes.Add(1)), api: egresstest.NewRecorder(t), tokens: egresstest.NewTokens(t)}
	f.api.Handler = func(w http.ResponseWriter, r *http.Request) {
		credential, token := r.Header.Get("X-Credential"), r.Header.Get("Authorization")
		first := strings.HasSuffix(token, "-first")
		switch {
		case credential == "always_401", first && (credential == "replayed" || credential == "not_replayable"):
			w.WriteHeader(http.StatusUnauthorized)
		case credential == "silent":
			panic(http.ErrAbortHandler) // ends the connection
		case credential == "hanging":
			<-r.Context().Done()
		case credential == "rate_limited":
			w.Header().Set("X-RateLimit-Remaining", "0")
			w.Header().Set("Retry-After", "120")
			w.WriteHeader(http.StatusTooManyRequests)
		case credential == "forwarded":
			w.Header().Set("X-Rate-Limit-Remaining", "1234")
		}
	}
	var seen sync.Map
	f.tokens.Set(func(e *egresstest.Tokens) {
		e.Answer = func(w http.ResponseWriter, r *http.Request) {
			id, _, _ := r.BasicAuth()
			lifetime, suffix := 3600, fmt.Sprint("-", f.issued.Add(1))
			if _, known := seen.LoadOrStore(id, nil); !known {
				suffix = "-first"
			}
			switch id {
			case "token_unavailable":
				egresstest.Say(http.StatusServiceUnavailable, "")(w, r)
				return
			case "credential_refused":
				egresstest.Say(http.StatusUnauthorized, `{"error":"invalid_client"}`)(w, r)
				return
			case "malformed":
				egresstest.Say(http.StatusOK, egresstest.Marker)(w, r)
				return
			case "short":
				lifetime = 1
			}
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"access_token":"%s%s","token_type":"bearer","expires_in":%d}`, egresstest.TokenPrefix, suffix, lifetime)
		}
	})
	var admin string
	f.admin, admin = egresstest.NewAdmin(t)
	f.global = admin + "egress {\n"
	for _, name := range slices.Sorted(maps.Keys(manyRoutes)) {
		f.global += fmt.Sprintf("credential %s oauth2 %s {\n token_url %s\n client_id %s\n client_secret {env.EGRESS_TEST_SECRET}\n}\n",
			name+f.suffix, f.api.URL, f.tokens.URL, name)
		f.routes += fmt.Sprintf("handle_path /%s/* {\n egress %s {\n header_up X-Credential %s\n %s\n }\n}\n", name, name+f.suffix, name, manyRoutes[name])
	}
	f.global += "}\n"
	return f
}

// warm waits until the first token request of each credential has ended.
func (f *manyCredentials) warm(t *testing.T) {
	t.Helper()
	egresstest.Eventually(t, "the first token requests", func() bool {
		metrics := f.admin.Metrics(t, f.suffix)
		for name := range manyRoutes {
			if metrics.Sum("token_requests_total", name) == 0 {
				return false
			}
		}
		return true
	})
}
