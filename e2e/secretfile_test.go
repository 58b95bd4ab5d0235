package e2e_test

import (
	"context"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// hang puts a FIFO that nobody writes to in place of the file: reading it hangs,
// as with a network file system that is gone.
func (f *secretFile) hang() {
	f.t.Helper()
	fifo := f.path + ".fifo"
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Link(fifo, f.path+".new"); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(f.path+".new", f.path); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { // whoever reads it still gets nothing
		if writer, err := os.OpenFile(fifo, os.O_RDWR, 0); err == nil {
			writer.Close()
		}
	})
}

func TestSecretFileThatHangs(t *testing.T) {
	f := newSecretFile(t, egresstest.Secret)
	api, endpoint := egresstest.NewRecorder(t), f.endpoint(3)
	admin, option := egresstest.NewAdmin(t)
	route := strings.Replace(f.route(api, endpoint), "{", "{\n token_timeout 1s", 1)
	g := egresstest.StartWatched(t, "egress hanging", egresstest.WithGlobal(option+"egress {\n"+strings.Replace(route, "egress", "credential hanging", 1)+"\n}"))
	// whatever hangs, the test does not
	get := func() (*http.Response, string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		resp, body, err := g.Try(g.Request(http.MethodGet, "/v1/x", nil).WithContext(ctx))
		if err != nil {
			t.Fatalf("a request is not answered: %v", err)
		}
		return resp, body
	}
	status := func() (expires time.Time) {
		t.Helper()
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			expires = admin.Status(t, "hanging").Expires
		}()
		select {
		case <-answered:
		case <-time.After(10 * time.Second):
			t.Fatal("the admin API does not answer")
		}
		return expires
	}

	egresstest.Eventually(t, "the first token", func() bool {
		resp, _ := get()
		return resp.StatusCode == http.StatusOK
	})
	f.hang()
	expires := status()
	var refused *http.Response
	var body string
	egresstest.Eventually(t, "the token to expire", func() bool {
		if refused, body = get(); refused.StatusCode == http.StatusOK {
			return false
		}
		if time.Now().Before(expires) {
			t.Fatalf("answered %d %s while the token lived", refused.StatusCode, body)
		}
		return true
	})
	start := time.Now()
	for range 5 {
		egresstest.CheckNoToken(t, refused, body, http.StatusServiceUnavailable)
		if !strings.Contains(body, "cannot be read") {
			t.Errorf("the answer %s does not say why", body)
		}
		status()
		refused, body = get()
	}
	t.Logf("5 requests without a token took %v", time.Since(start))

	f.write(egresstest.Secret)
	start = time.Now()
	egresstest.Eventually(t, "an answer of the API", func() bool {
		resp, _ := get()
		return resp.StatusCode == http.StatusOK
	})
	t.Logf("served again %v after the file could be read", time.Since(start))
	status()
}
