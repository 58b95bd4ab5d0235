package egress

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// onceWriter is a response that is written once.
type onceWriter struct {
	*httptest.ResponseRecorder
	t       *testing.T
	written bool
}

func (w *onceWriter) WriteHeader(status int) {
	if w.written {
		w.t.Errorf("the answer is written again, with %d", status)
	}
	w.written = true
	w.ResponseRecorder.WriteHeader(status)
}

// An error passes all handlers on its way out, of which one answers.
func TestUnreachableAnswersOnce(t *testing.T) {
	h := &Unreachable{render: problem}
	failed := caddyhttp.HandlerError{Err: errors.New("no upstreams available"), StatusCode: http.StatusServiceUnavailable, Trace: "reverseproxy.test"}
	inner := caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return failed })
	next := caddyhttp.HandlerFunc(func(w http.ResponseWriter, req *http.Request) error { return h.ServeHTTP(w, req, inner) })

	ctx := context.WithValue(t.Context(), caddyhttp.ServerCtxKey, new(caddyhttp.Server))
	ctx = context.WithValue(ctx, caddyhttp.VarsCtxKey, map[string]any{reportVar: &report{failure: failed.Err}})
	ctx = context.WithValue(ctx, caddy.ReplacerCtxKey, caddy.NewReplacer())
	w := &onceWriter{ResponseRecorder: httptest.NewRecorder(), t: t}
	err := h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil), next)
	if !errors.Is(err, failed.Err) {
		t.Errorf("the error that goes on is %v", err)
	}
	if w.Code != http.StatusServiceUnavailable || strings.Count(w.Body.String(), "api_unreachable") != 1 {
		t.Errorf("answered %d %s", w.Code, w.Body)
	}
}
