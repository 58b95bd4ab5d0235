package e2e_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// chromium returns the path of a Chromium. Where there is none the test is
// skipped; EGRESS_REQUIRE_BROWSER=1 makes that a failure.
func chromium(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("EGRESS_REQUIRE_BROWSER") == "1" {
		t.Fatal("there is no Chromium, and EGRESS_REQUIRE_BROWSER is set")
	}
	t.Skip("there is no Chromium: what real browsers send is not tested")
	return ""
}

// browse runs a browser of its own, to which every name of these tests is this
// machine, with address, until it ends or ctx does, and returns what it prints.
func browse(ctx context.Context, t *testing.T, browser string, arguments ...string) string {
	t.Helper()
	command := exec.CommandContext(ctx, browser, append([]string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
		"--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--user-data-dir=" + t.TempDir(),
		"--host-resolver-rules=MAP evil.test 127.0.0.1, MAP app.test 127.0.0.1, MAP rebound.example 127.0.0.1, MAP gateway.internal 127.0.0.1",
		"--ignore-certificate-errors",
	}, arguments...)...)
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	command.WaitDelay = 10 * time.Second
	var stderr strings.Builder
	command.Stderr = &stderr
	printed, err := command.Output()
	if err != nil && ctx.Err() == nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	return string(printed)
}

// dump returns the page at address as it is once its scripts are done.
func dump(t *testing.T, browser, address string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return browse(ctx, t, browser, "--virtual-time-budget=20000", "--dump-dom", address)
}

// pages serves a page that sends requests to another server, under the names
// evil.test and app.test.
type pages struct {
	*httptest.Server
	saw chan string // what the page reports
}

// newPages serves a file of testdata/browser.
func newPages(t *testing.T, file string) *pages {
	t.Helper()
	page, err := os.ReadFile("../testdata/browser/" + file)
	if err != nil {
		t.Fatal(err)
	}
	p := &pages{saw: make(chan string, 1)}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/saw" {
			saw, _ := io.ReadAll(r.Body)
			p.saw <- string(saw)
			return
		}
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write(page)
	}))
	t.Cleanup(p.Close)
	return p
}

// origin returns the origin of the page under a name.
func (p *pages) origin(name string) string { return "http://" + name + ":" + egresstest.Port(p.URL) }

// visit opens the page at origin against target, and returns what it saw. The browser
// ends once the page has come to its end, and arrived, if any, says that all that it has
// sent has arrived.
func (p *pages) visit(t *testing.T, browser, origin, target string, arrived ...func() bool) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var saw string
	var wg sync.WaitGroup
	wg.Go(func() {
		defer cancel()
		select {
		case saw = <-p.saw:
		case <-ctx.Done():
		}
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil && slices.ContainsFunc(arrived, func(all func() bool) bool { return !all() }) {
			select {
			case <-tick.C:
			case <-ctx.Done(): // the test says what is missing
			}
		}
	})
	browse(ctx, t, browser, origin+"/?target="+url.QueryEscape(target))
	wg.Wait()
	if !strings.HasSuffix(saw, "done") {
		t.Fatalf("the page has not come to its end: %q", saw)
	}
	return saw
}

// accessed is an entry of Caddy's access log.
type accessed struct {
	Logger  string
	Status  int
	Request struct {
		Method, Host, URI string
		Headers           http.Header
	}
}

// accesses returns the requests to paths that begin with prefix.
func accesses(g *egresstest.Gateway, prefix string) []accessed {
	var entries []accessed
	for line := range strings.Lines(g.Log()) {
		var entry accessed
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			continue // other entries have other fields
		}
		if strings.HasPrefix(entry.Logger, "http.log.access") && strings.HasPrefix(entry.Request.URI, prefix) {
			entries = append(entries, entry)
		}
	}
	return entries
}

func TestBrowsers(t *testing.T) {
	browser := chromium(t)
	pages := newPages(t, "page.html")
	evil := pages.origin("evil.test")
	endpoint, api := egresstest.NewTokens(t), egresstest.NewRecorder(t)
	api.Handler = func(w http.ResponseWriter, r *http.Request) {
		// the API is as open as can be: what keeps pages out is the gateway
		header := w.Header()
		header.Set("Access-Control-Allow-Origin", r.Header.Get("Origin"))
		header.Set("Access-Control-Allow-Credentials", "true")
		header.Set("Access-Control-Allow-Methods", "PUT")
		header.Set("Access-Control-Allow-Headers", "X-App-Id")
		if strings.HasSuffix(r.URL.Path, "/page") || strings.HasSuffix(r.URL.Path, "/iframe") {
			header.Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, `<pre id="saw"></pre><script>fetch("fetched", {method: "POST"}).then((r) => r.text()).then((text) => saw.append(text, "done"))</script>`)
			return
		}
		_, _ = io.WriteString(w, "data of the API")
	}

	routes := "log\n" +
		egresstest.Site("/closed", egresstest.Egress(api.URL, endpoint.URL, "")) +
		egresstest.Site("/origins", egresstest.Egress(api.URL, endpoint.URL, "origins "+evil)) +
		egresstest.Site("/hosts", egresstest.Egress(api.URL, endpoint.URL, "hosts rebound.example"))
	cert, key := egresstest.KeyPair(t)
	encrypted := egresstest.FreeAddr(t)
	g := egresstest.StartGateway(t, routes+"}\nhttps://:"+egresstest.Port(encrypted)+" {\nbind 127.0.0.1\ntls "+cert+" "+key+"\n"+routes)

	for scheme, addr := range map[string]string{"http": g.Addr, "https": encrypted} {
		t.Run(scheme+"/page of another origin", func(t *testing.T) {
			prefix := "/closed/" + scheme + "/"
			names := []string{"cors", "no-cors", "credentials", "post", "preflight", "xhr", "img", "script", "iframe", "sandboxed", "form", "events", "websocket", "beacon"}
			arrived := func() bool { // the page does not wait for all of them
				entries := accesses(g, prefix)
				return !slices.ContainsFunc(names, func(name string) bool {
					return !slices.ContainsFunc(entries, func(access accessed) bool { return access.Request.URI == prefix+name })
				})
			}
			if saw := pages.visit(t, browser, evil, scheme+"://"+addr+prefix, arrived); strings.Contains(saw, "data of the API") {
				t.Errorf("the page saw:\n%s", saw)
			}
			if got := api.Under(prefix); len(got) > 0 {
				t.Errorf("%d requests of the page have reached the API: %+v", len(got), got)
			}

			// what was refused is what browsers send
			var seen []string
			for _, access := range accesses(g, prefix) {
				name := strings.TrimPrefix(access.Request.URI, prefix)
				seen = append(seen, name)
				origin, site := access.Request.Headers.Get("Origin"), access.Request.Headers.Get("Sec-Fetch-Site")
				wantOrigin := map[string]string{"no-cors": "", "img": "", "script": "", "iframe": "", "sandboxed": "null"}
				want, listed := wantOrigin[name]
				if !listed {
					want = evil
				}
				wantSite := "cross-site"
				if name == "websocket" { // for which Chromium sends Origin only
					wantSite = ""
				}
				if access.Status != http.StatusForbidden || access.Request.Host != addr || site != wantSite || origin != want {
					t.Errorf("%s: %d with Host %q, Origin %q, Sec-Fetch-Site %q", name, access.Status, access.Request.Host, origin, site)
				}
			}
			for _, name := range names {
				if !slices.Contains(seen, name) {
					t.Errorf("the browser sent no request for %s", name)
				}
			}
		})

		t.Run(scheme+"/page of an origin that is served", func(t *testing.T) {
			prefix := "/origins/" + scheme + "/"
			saw := pages.visit(t, browser, evil, scheme+"://"+addr+prefix)
			for _, line := range []string{"cors: data of the API", "credentials: Failed to fetch", "preflight: data of the API", "xhr: 200"} {
				if !strings.Contains(saw, line) {
					t.Errorf("the page did not see %q:\n%s", line, saw)
				}
			}
			var arrived []string
			for _, request := range api.Under(prefix) {
				arrived = append(arrived, request.Method+" "+strings.TrimPrefix(request.Target, prefix))
				if origin := request.Header.Get("Origin"); origin != evil {
					t.Errorf("%s came with Origin %q", request.Target, origin)
				}
			}
			for _, want := range []string{"GET cors", "GET credentials", "POST post", "PUT preflight", "POST form"} {
				if !slices.Contains(arrived, want) {
					t.Errorf("%s has not reached the API, only %v", want, arrived)
				}
			}
			if slices.Contains(arrived, "OPTIONS preflight") {
				t.Error("the preflight has reached the API")
			}
		})

		t.Run(scheme+"/page under a rebound name", func(t *testing.T) {
			prefix := "/closed/rebound/" + scheme + "/"
			dom := dump(t, browser, scheme+"://rebound.example:"+egresstest.Port(addr)+prefix+"page")
			if !strings.Contains(dom, "host_not_allowed") {
				t.Errorf("the page is\n%s", dom)
			}
			if got := api.Under(prefix); len(got) > 0 {
				t.Errorf("the API got %+v", got)
			}
			egresstest.Eventually(t, "the access log", func() bool { return len(accesses(g, prefix)) > 0 })
			accesses := accesses(g, prefix)
			if accesses[0].Request.Host != "rebound.example:"+egresstest.Port(addr) || accesses[0].Status != http.StatusForbidden {
				t.Errorf("the gateway got %+v", accesses)
			}
		})

		t.Run(scheme+"/page under a name that is served", func(t *testing.T) {
			prefix := "/hosts/" + scheme + "/"
			dom := dump(t, browser, scheme+"://rebound.example:"+egresstest.Port(addr)+prefix+"page")
			if !strings.Contains(dom, `<pre id="saw"></pre>`) {
				t.Errorf("the page is\n%s", dom)
			}
			// its script would have sent another, as a page of the gateway's own
			if got := api.Under(prefix); len(got) != 1 || got[0].Target != prefix+"page" {
				t.Errorf("the API got %+v", got)
			}
		})
	}
	// Over plain HTTP to a name other than localhost, browsers send Origin with
	// the requests that always had it, and Sec-Fetch-Site with none: where simple
	// GETs come from cannot be seen. Their answers stay unread.
	t.Run("http/page of another origin, gateway that is not a secure context", func(t *testing.T) {
		prefix := "/closed/insecure/"
		if saw := pages.visit(t, browser, evil, "http://gateway.internal:"+egresstest.Port(g.Addr)+prefix); strings.Contains(saw, "data of the API") {
			t.Errorf("the page saw:\n%s", saw)
		}
		for _, request := range api.Under(prefix) {
			if request.Method != http.MethodGet || request.Header.Get("Origin") != "" {
				t.Errorf("the API got %+v", request)
			}
		}
	})
}
