package e2e_test

import (
	"bytes"
	"fmt"
	"image/png"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// statusScene is a gateway with all that the status page shows, beside which it runs.
type statusScene struct {
	*egresstest.Gateway
	admin           egresstest.Admin
	promo, bookings *egresstest.Service
	routes          string
}

func newStatusScene(t *testing.T) *statusScene {
	t.Helper()
	s := &statusScene{promo: egresstest.NewService(t), bookings: egresstest.NewService(t)}
	s.promo.API.Handler = func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-Rate-Limit-Remaining", "1847") }
	tenants := egresstest.NewTenants(t, "acme", "globex", "initech")
	tenants.Refuse("initech", true)
	admin, option := egresstest.NewAdmin(t)
	s.admin = admin
	option += "egress {\n" + s.promo.Credential("promo", "voucherify", "") + s.bookings.Credential("bookings", "understory", "") +
		tenants.Credential("agency", "oauth2") + egresstest.Caller(t, "web-shop") + egresstest.Caller(t, "nightly") + "}\n"
	s.routes = "log\nhandle_path /ops/* {\negress_status\n}\n" +
		egresstest.Site("/promo", "egress promo {\ngrant web-shop nightly {\nallow GET /promo/*\n}\n}") +
		egresstest.Site("/bookings", "egress bookings") +
		egresstest.Site("/agency", "egress agency {\n"+tenantByHeader+"}")
	s.Gateway = egresstest.StartGateway(t, s.routes, egresstest.WithCallers(option))
	egresstest.Eventually(t, "the first tokens", func() bool {
		return s.admin.Status(t, "promo").State == "fresh" && s.admin.Status(t, "bookings").State == "fresh"
	})
	return s
}

// use has the callers and the tenants send requests.
func (s *statusScene) use(shop, nightly int) {
	send := func(method, path string, header ...string) {
		req := s.Request(method, path, nil)
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		s.Do(req)
	}
	for range shop {
		send("GET", "/promo/v1/vouchers", "Authorization", "Bearer "+egresstest.Key("web-shop"))
	}
	for range nightly {
		send("GET", "/promo/v1/vouchers", "Authorization", "Bearer "+egresstest.Key("nightly"))
	}
	send("DELETE", "/promo/v1/vouchers/x", "Authorization", "Bearer "+egresstest.Key("nightly"))
	for _, name := range []string{"acme", "globex", "initech"} {
		send("GET", "/agency/v1/x", egresstest.TenantHeader, name, egresstest.ExpectHeader, name)
	}
}

// breakBookings has its token endpoint fail, which the gateway notices.
func (s *statusScene) breakBookings(t *testing.T) {
	s.bookings.Tokens.SetAnswer(egresstest.Say(http.StatusServiceUnavailable, `{"error":"temporarily_unavailable"}`))
	s.admin.Ask(t, http.MethodPost, "/egress/tokens/bookings/refresh")
}

func (s *statusScene) mendBookings(t *testing.T) {
	s.bookings.Tokens.SetAnswer(nil)
	s.admin.Ask(t, http.MethodPost, "/egress/tokens/bookings/refresh")
}

const (
	summaryText = "document.getElementById('summary').textContent"
	noticeText  = "document.getElementById('connection').textContent"

	// focused is which element has the focus.
	focused = "(({activeElement: e}) => e.id || e.className || e.tagName)(document)"

	// quick has the page refresh itself 25 times as often as it does.
	quick = "window.slow = window.setTimeout; window.setTimeout = (f, ms) => slow(f, ms / 25)"

	// underWay has refreshes counted that are not answered yet.
	underWay = "window.underWay = 0; window.fetched = window.fetch; window.fetch = (...all) => { underWay++; return fetched(...all).finally(() => underWay--) }"

	// quiet waits for as long as five refreshes of a quick page take.
	quiet = "new Promise((done) => slow(done, 1000))"
)

func TestStatusPageInBrowser(t *testing.T) {
	browser := chromium(t)
	s := newStatusScene(t)
	b := newTab(t, browser)
	b.call("Page.addScriptToEvaluateOnNewDocument", map[string]any{"source": quick + "; " + underWay})
	page := s.URL + "/ops/status"
	fetches := func() int { return len(accesses(s.Gateway, "/ops/status")) }
	shows := func(text string) {
		t.Helper()
		b.waitFor(summaryText + ".includes(" + fmt.Sprintf("%q", text) + ")")
	}
	complains := func(when string, but ...string) {
		t.Helper()
		for _, what := range b.complained(but...) {
			t.Errorf("%s, the browser complains: %s", when, what)
		}
	}
	b.open(page)
	shows("All is well: 2 credentials are in use.")

	t.Run("what changes shows by itself", func(t *testing.T) {
		// a screen reader is told what has changed, and nothing else
		b.eval("window.told = 0; new MutationObserver(() => told++).observe(document.querySelector('[role=status]'), {subtree: true, childList: true, characterData: true, attributes: true})")
		before := fetches()
		egresstest.Eventually(t, "a few refreshes", func() bool { return fetches() > before+3 })
		if told := b.eval("told"); told != "0" {
			t.Errorf("the summary is told %s times, and did not change", told)
		}
		s.breakBookings(t)
		shows("Requests have tokens, but 1 thing needs attention.")
		if got := b.eval("document.title + ' ' + document.querySelector('.problem h3').textContent"); got != "▲ Egress status ▲ bookings: no fresh token" {
			t.Errorf("it shows %s", got)
		}
		if told := b.eval("told > 0"); told != "true" {
			t.Error("the summary has changed, and nobody is told")
		}
		s.mendBookings(t)
		shows("All is well")
		if got := b.eval("document.title + document.querySelector('.problem') + document.getElementById('problems').checkVisibility()"); got != "✓ Egress statusnullfalse" {
			t.Errorf("after it, it shows %s", got)
		}
		complains("with a page that refreshes itself")
	})

	t.Run("a name and password in the address", func(t *testing.T) {
		b.eval("window.before = true")
		b.call("Page.navigate", map[string]any{"url": strings.Replace(page, "://", "://anna:secret@", 1)})
		b.waitFor("!window.before && document.readyState === 'complete'")
		before := fetches()
		egresstest.Eventually(t, "a refresh", func() bool { return fetches() > before+1 })
		if got := b.eval("document.getElementById('connection').textContent"); got != "" {
			t.Errorf("it says %s", got)
		}
		complains("with a name and password in the address")
	})

	t.Run("keyboard", func(t *testing.T) {
		b.open(page)
		b.press("Tab")
		if got := b.eval(focused + " + document.activeElement.getBoundingClientRect().left"); got != "skip16" {
			t.Errorf("the first stop is %s, want the link that skips the header, in sight", got)
		}
		b.press("Enter")
		if got := b.eval(focused); got != "main" {
			t.Errorf("the link leads to %s", got)
		}
		b.open(page)
		var stops []string
		for range 4 {
			b.press("Tab")
			stop := b.eval(focused + " + ' ' + (document.activeElement.getAttribute('aria-labelledby') ?? '')")
			if outline := b.eval("getComputedStyle(document.activeElement).outlineStyle"); outline != "solid" {
				t.Errorf("the focus on %s does not show: its outline is %s", stop, outline)
			}
			stops = append(stops, strings.TrimSpace(stop))
		}
		egresstest.CheckLines(t, "the stops", stops, []string{"skip", "pause", "scroll group-0", "scroll callers"})

		// the focus stays where it is while the page changes around it
		b.open(page)
		for range 3 {
			b.press("Tab")
		}
		s.breakBookings(t)
		shows("1 thing needs attention")
		if got := b.eval(focused); got != "scroll" {
			t.Errorf("the focus went to %s", got)
		}
		s.mendBookings(t)
		shows("All is well")
		complains("used by keyboard")
	})

	t.Run("paused", func(t *testing.T) {
		b.open(page)
		b.press("Tab")
		b.press("Tab")
		b.press(" ")
		b.waitFor("document.getElementById('pause').textContent === 'Resume updates'")
		b.waitFor("underWay === 0") // else it is counted after this
		b.eval(quiet)
		before := fetches()
		b.eval(quiet)
		if n := fetches() - before; n > 0 {
			t.Errorf("%d refreshes while it is paused", n)
		}
		b.press("Enter")
		egresstest.Eventually(t, "refreshes", func() bool { return fetches() > before+1 })
	})

	t.Run("hidden", func(t *testing.T) {
		b.open(page)
		hide := func(hidden bool) {
			b.eval(fmt.Sprintf("Object.defineProperty(document, 'hidden', {configurable: true, get: () => %t}); document.dispatchEvent(new Event('visibilitychange'))", hidden))
		}
		hide(true)
		b.waitFor("underWay === 0")
		b.eval(quiet)
		before := fetches()
		b.eval(quiet)
		if n := fetches() - before; n > 0 {
			t.Errorf("%d refreshes while it is hidden", n)
		}
		hide(false)
		egresstest.Eventually(t, "refreshes", func() bool { return fetches() > before+1 })
	})

	t.Run("in an outage of the gateway", func(t *testing.T) {
		b.open(page)
		complains("before it")
		if err := caddy.Stop(); err != nil {
			t.Fatal(err)
		}
		b.waitFor(noticeText + ".startsWith('The gateway cannot be reached since ')")
		b.waitFor("/^That was [1-9][0-9]* seconds? ago.$/.test(document.getElementById('age').textContent)")
		notice := b.eval(noticeText)
		b.eval(quiet)
		if again := b.eval(noticeText); again != notice {
			t.Errorf("the notice changes from %q to %q", notice, again)
		}
		if err := s.Load(s.routes); err != nil {
			t.Fatal(err)
		}
		b.waitFor(noticeText + " === ''")
		shows("All is well")
		complains("in an outage", "net::ERR_")

		// and where something else answers in its place
		if err := s.Load("respond 502"); err != nil {
			t.Fatal(err)
		}
		b.waitFor(noticeText + ".startsWith('The gateway does not show this page (it answers 502) since ')")
		if err := s.Load(s.routes); err != nil {
			t.Fatal(err)
		}
		b.waitFor(noticeText + " === ''")
		complains("behind another answer", "status of 502", "net::ERR_")

		// and where the gateway is another version by now
		if err := s.Load("header Content-Type text/html\nrespond `<p id=\"summary\">another version</p>`"); err != nil {
			t.Fatal(err)
		}
		b.waitFor("document.documentElement.textContent === 'another version'")
		if err := s.Load(s.routes); err != nil {
			t.Fatal(err)
		}
		s.AwaitReload() // requests follow
		b.complained()
	})

	s.use(3, 2)
	s.breakBookings(t)
	t.Run("without scripts", func(t *testing.T) {
		b.call("Emulation.setScriptExecutionDisabled", map[string]any{"value": true})
		b.open(page)
		if got := b.eval("[document.querySelector('meta[http-equiv=refresh]')?.content, document.getElementById('pause').checkVisibility(), document.querySelectorAll('tbody tr').length].join()"); got != "10,false,7" {
			t.Errorf("refresh, button, rows: %s", got)
		}
		complains("without scripts")
		b.call("Emulation.setScriptExecutionDisabled", map[string]any{"value": false})
	})

	axe, err := os.ReadFile("../testdata/axe/node_modules/axe-core/axe.min.js")
	if err != nil && os.Getenv("EGRESS_REQUIRE_BROWSER") == "1" {
		t.Errorf("axe-core is not installed, and EGRESS_REQUIRE_BROWSER is set: %v", err)
	}
	var shots [][]byte
	for _, scheme := range []string{"light", "dark"} {
		t.Run(scheme, func(t *testing.T) {
			b.prefer("prefers-color-scheme", scheme)
			for _, width := range []int{1100, 320} { // which is also 1280 at 400 %
				b.size(width, 1400)
				b.open(page)
				shows("1 credential has no token")
				if scrolls := b.eval("document.documentElement.scrollWidth > innerWidth"); scrolls != "false" {
					t.Errorf("the page is wider than %d", width)
				}
				if axe != nil {
					b.call("Page.setBypassCSP", map[string]any{"enabled": true}) // for axe, which is not of the page
					b.eval(string(axe))
					if faults := b.eval(`axe.run().then((found) => found.violations.flatMap((v) => v.nodes.map((n) => v.id + ": " + n.failureSummary + " " + n.html)).join("\n"))`); faults != "" {
						t.Errorf("at a width of %d:\n%s", width, faults)
					}
					b.call("Page.setBypassCSP", map[string]any{"enabled": false})
				}
				if width == 1100 {
					shots = append(shots, b.screenshot())
				}
			}
			complains(scheme)
		})
	}
	if len(shots) == 2 && bytes.Equal(shots[0], shots[1]) {
		t.Error("light and dark look the same")
	}
	if colours := b.eval("getComputedStyle(document.body).backgroundColor"); colours != "rgb(20, 23, 26)" {
		t.Errorf("the dark page is %s", colours)
	}
}

// The picture in docs/guides/status-page.md is what this test sees:
//
//	EGRESS_SCREENSHOT=../docs/guides/status-page.png go test -run StatusPageScreenshot ./e2e
func TestStatusPageScreenshot(t *testing.T) {
	file := os.Getenv("EGRESS_SCREENSHOT")
	if file == "" {
		t.Skip("EGRESS_SCREENSHOT names no file")
	}
	browser := chromium(t)
	s := newStatusScene(t)
	s.use(1204, 86)
	s.breakBookings(t)
	b := newTab(t, browser)
	b.size(1040, 100)
	b.open(s.URL + "/ops/status")
	var height int
	if _, err := fmt.Sscan(b.eval("document.getElementById('footer').offsetTop"), &height); err != nil { // without the versions of a test
		t.Fatal(err)
	}
	b.size(1040, height)
	picture, err := png.Decode(bytes.NewReader(b.screenshot()))
	if err != nil {
		t.Fatal(err)
	}
	var small bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&small, picture); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, small.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}
