package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// The tests of many tenants run in a short form, and at length with EGRESS_TENANTS=full.
var fullTenants = os.Getenv("EGRESS_TENANTS") == "full"

// inTenantForm returns what a test takes in its short and in its full form.
func inTenantForm[T any](short, full T) T {
	if fullTenants {
		return full
	}
	return short
}

const (
	// lapsedTenantMemory is what a tenant that has lapsed may take: its token, and how to
	// find it.
	lapsedTenantMemory = 4 << 10

	// tenantWorkers send requests at a time.
	tenantWorkers = 8
)

// manyTenants is a gateway in a process of its own, so that what it takes is measured
// without what the tests take.
type manyTenants struct {
	t *testing.T
	*egresstest.Tenants
	p      *egresstest.Process
	names  []string
	failed atomic.Int64
}

func newManyTenants(t *testing.T, tenants, live int, lifetime time.Duration) *manyTenants {
	t.Helper()
	m := &manyTenants{t: t, Tenants: egresstest.NewTenants(t), names: tenantNames(tenants)}
	m.Lifetime = int(lifetime.Seconds())
	m.Add(m.names...)
	credential := m.Credential("tenants", "oauth2", fmt.Sprint("max_tenants ", live))
	routes := "respond " + egresstest.Control + " 200\negress tenants {\n" + tenantByHeader + "}"
	m.p = egresstest.NewProcess(t, "gateway", "egress {\n"+credential+"}\n", routes)
	m.p.Start()
	m.p.WaitFor(egresstest.Control)
	return m
}

// get sends a request for a tenant, which has to be served if it is there.
func (m *manyTenants) get(name string, there bool) {
	want := http.StatusOK
	if !there {
		want = http.StatusForbidden
	}
	resp, body, err := m.p.Try("/v1/x", egresstest.TenantHeader, name, egresstest.ExpectHeader, name)
	if err == nil && resp.StatusCode == want {
		return
	}
	if m.failed.Add(1) <= 3 {
		m.t.Errorf("a request for %s: %v %v %s", name, err, resp, body)
	}
}

// inTurn sends a request for each of the tenants.
func (m *manyTenants) inTurn(names []string) {
	var wg sync.WaitGroup
	var next atomic.Int64
	for range tenantWorkers {
		wg.Go(func() {
			for n := next.Add(1) - 1; n < int64(len(names)); n = next.Add(1) - 1 {
				m.get(names[n], true)
			}
		})
	}
	wg.Wait()
}

// spread sends requests to tenants, few of which have most of them, and to some that are
// not there, until done says that it is over.
func (m *manyTenants) spread(done func(sent int64) bool) (sent, unknown int64) {
	var wg sync.WaitGroup
	var all, strangers atomic.Int64
	order := rand.Perm(len(m.names))
	for worker := range tenantWorkers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(worker), 12))
			zipf := rand.NewZipf(random, 1.1, 1, uint64(len(m.names)-1))
			for !done(all.Add(1)) {
				if random.IntN(100) == 0 {
					strangers.Add(1)
					m.get(fmt.Sprintf("stranger-%d", random.IntN(1000)), false)
					continue
				}
				m.get(m.names[order[zipf.Uint64()]], true)
			}
		})
	}
	wg.Wait()
	return all.Load() - tenantWorkers, strangers.Load()
}

// usage returns what the gateway takes once it has at most so many goroutines: what has
// answered a request may have something to do still, and so may what lapses.
func (m *manyTenants) usage(goroutines int) (usage egresstest.Usage) {
	m.t.Helper()
	egresstest.Eventually(m.t, fmt.Sprintf("%d goroutines at most", goroutines), func() bool {
		usage = m.p.Usage()
		return usage.Goroutines <= goroutines
	})
	return usage
}

// Far more tenants than are live at a time are served, and those that are not used take
// next to nothing.
func TestManyTenants(t *testing.T) {
	live := inTenantForm(50, 1000)
	tenants := 10 * live
	lapsed := tenants - live
	m := newManyTenants(t, tenants, live, inTenantForm(time.Hour, 4*time.Minute))
	m.inTurn(m.names[:live]) // what connections take is there from now on
	m.inTurn(m.names[:live])
	before := m.p.Usage()
	m.inTurn(m.names[live:])
	after := m.usage(before.Goroutines + 2*tenantWorkers)
	each := (after.Heap - before.Heap) / int64(lapsed)
	t.Logf("%d tenants, of which %d are live: heap %d KiB, %d goroutines; %d tenants more that have lapsed: heap %d KiB, %d goroutines, %d bytes for each",
		live, live, before.Heap>>10, before.Goroutines, lapsed, after.Heap>>10, after.Goroutines, each)
	if each > lapsedTenantMemory && !raceDetector {
		t.Errorf("a tenant that has lapsed takes %d bytes, want at most %d", each, lapsedTenantMemory)
	}
	if n := m.Issued(); n != int64(tenants) {
		t.Errorf("%d token requests for %d tenants", n, tenants)
	}

	// by the full form's end, tokens have been replaced
	start := time.Now()
	sent, unknown := m.spread(func(sent int64) bool {
		return inTenantForm(sent > 5000, time.Since(start) > 5*time.Minute)
	})
	end := m.usage(before.Goroutines + 4*tenantWorkers)
	t.Logf("%d requests in %s, of which %d for unknown tenants; %d token requests; heap %d KiB, %d goroutines",
		sent, time.Since(start).Round(time.Second), unknown, m.Issued(), end.Heap>>10, end.Goroutines)
	if n := m.failed.Load(); n > 0 {
		t.Errorf("%d of %d requests have failed", n, sent)
	}
	if grown := end.Heap - after.Heap; grown > 4<<20 && !raceDetector {
		t.Errorf("the heap has grown by %d bytes though there are no more tenants", grown)
	}
	if m.Expired() > 0 {
		t.Errorf("the API has said 401 %d times", m.Expired())
	}
}

// What a tenant that has lapsed takes is given up when its token expires. Two things
// are not, the first time: the structs of goroutines that have ended, and the tables
// of Caddy's pools, neither of which Go gives back. By a heap profile, they are more
// than nine tenths of what is left. The second time both are there already.
func TestLapsedTenantsAreForgotten(t *testing.T) {
	if !fullTenants {
		t.Skip("takes minutes; EGRESS_TENANTS=full runs it")
	}
	const live = 100
	m := newManyTenants(t, 100*live, live, 20*time.Second)
	m.inTurn(m.names[:2*live])
	before := m.p.Usage()
	for _, part := range []int64{4, 8} {
		m.inTurn(m.names)
		peak := m.p.Usage()
		var after egresstest.Usage
		least := (peak.Heap - before.Heap) / part
		deadline := time.Now().Add(3 * time.Minute)
		for {
			m.inTurn(m.names[:2*live]) // those that lapse have others looked at
			if after = m.p.Usage(); after.Heap < before.Heap+least || raceDetector {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("the memory is not given up")
				break
			}
		}
		t.Logf("heap %d KiB with %d tenants, %d KiB with %d, %d KiB once their tokens have expired",
			before.Heap>>10, live, peak.Heap>>10, len(m.names), after.Heap>>10)
		before = after
	}
}

// One tenant's token never goes out for another, whatever happens meanwhile.
func TestTenantsTokensAreNeverMixed(t *testing.T) {
	const live = 40
	names := tenantNames(4 * live)
	s := newTenantStage(t, "oauth2", names...)
	s.credential = s.Credential("tenants", "oauth2", fmt.Sprint("max_tenants ", live), "revoke_on_stop")
	s.watch = func(t testing.TB, routes string, options ...egresstest.GatewayOption) *egresstest.Gateway {
		return egresstest.StartGateway(t, routes, append(options, egresstest.WithoutLog(), egresstest.OverUnixSocket())...)
	}
	s.start()
	requests, steps := inTenantForm(int64(10_000), 1_000_000), inTenantForm(int64(200), 2000)

	var sent, served, unauthorized, refused, reloads, invalidations, revocations, ended, slowest atomic.Int64
	var wg sync.WaitGroup
	for worker := range tenantWorkers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(worker), 34))
			for sent.Add(1) <= requests && !t.Failed() {
				name := names[random.IntN(len(names))]
				req := s.g.Request(http.MethodGet, "/v1/x", nil)
				req.Header.Set(egresstest.TenantHeader, name)
				req.Header.Set(egresstest.ExpectHeader, name)
				start := time.Now()
				resp, body, err := s.g.Try(req)
				for took := int64(time.Since(start)); ; {
					if before := slowest.Load(); took <= before || slowest.CompareAndSwap(before, took) {
						break
					}
				}
				switch {
				case err != nil && connectionEnded(err): // by a reload, before an answer
					ended.Add(1)
				case err != nil:
					t.Errorf("%s: %v", name, err)
				case resp.StatusCode == http.StatusOK:
					if whose, _, _ := cutTenant(body); whose != name {
						t.Errorf("a request for %s is answered %s", name, body)
					}
					served.Add(1)
				case resp.StatusCode == http.StatusUnauthorized: // revoked anew while it was sent again
					unauthorized.Add(1)
				case resp.StatusCode == http.StatusServiceUnavailable: // its budget of token requests is used up
					refused.Add(1)
				default:
					t.Errorf("%s: %d %s", name, resp.StatusCode, body)
				}
			}
		})
	}
	random := rand.New(rand.NewPCG(5, 6))
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for sent.Load() < requests && !t.Failed() {
		name := names[random.IntN(len(names))]
		at := sent.Load()
		switch random.IntN(12) {
		case 0:
			if err := s.g.Load(tenantRoutes()); err != nil {
				t.Error(err)
			}
			reloads.Add(1)
		case 1, 2:
			if _, _, err := s.admin.Try(http.MethodPost, "/egress/tokens/tenants/"+name+"/revoke"); err == nil {
				revocations.Add(1)
			}
		default:
			s.Invalidate(name)
			invalidations.Add(1)
		}
		for sent.Load() <= at+requests/steps && sent.Load() < requests && !t.Failed() {
			<-tick.C
		}
	}
	wg.Wait()
	t.Logf("%d requests served, %d with 401, %d with 503, %d connections ended, the slowest in %s; %d token requests, %d tokens made invalid, %d revocations, %d reloads",
		served.Load(), unauthorized.Load(), refused.Load(), ended.Load(), time.Duration(slowest.Load()).Round(time.Millisecond), s.Issued(), invalidations.Load(), revocations.Load(), reloads.Load())
	if few := unauthorized.Load() + refused.Load() + ended.Load(); few > requests/20 {
		t.Errorf("%d of %d requests were not served", few, requests)
	}
	if reloads.Load() == 0 || revocations.Load() == 0 || invalidations.Load() == 0 || s.Expired() == 0 {
		t.Error("nothing has happened meanwhile")
	}
}

// A file of token_ca that hangs has its tenant refused in time. As many tenants as are
// set up at a time may have one like that, and others are set up all the same.
func TestAuthoritiesOfTenantsThatHang(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		egresstest.Issue(`,"token_type":"bearer","expires_in":3600`)(w, r)
	}))
	t.Cleanup(s.Close)
	api := egresstest.NewRecorder(t)
	dir := t.TempDir()
	if err := os.Symlink(egresstest.Trust(t, s), filepath.Join(dir, "good")); err != nil {
		t.Fatal(err)
	}
	g := egresstest.StartGateway(t, "egress tenants {\ntenant {http.request.header.X-Tenant}\n}", egresstest.WithGlobal(`egress {
		credential tenants oauth2 `+api.URL+` {
			token_url `+s.URL+`/token
			client_id id-of-{tenant}
			client_secret {env.`+egresstest.SecretVariable+`}
			token_ca `+dir+`/{tenant}
		}
	}`))
	ask := func(tenant string) int {
		req := g.Request("GET", "/v1/x", nil)
		req.Header.Set("X-Tenant", tenant)
		resp, _ := g.Do(req)
		return resp.StatusCode
	}
	var wg sync.WaitGroup
	for n := range 64 {
		tenant := fmt.Sprint("hangs-", n)
		fifo := filepath.Join(dir, tenant)
		if err := syscall.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		defer func() { // ends its read
			if f, err := os.OpenFile(fifo, os.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil {
				f.Close()
			}
		}()
		wg.Go(func() {
			if got := ask(tenant); got != 503 {
				t.Errorf("a tenant whose file hangs: got %d", got)
			}
		})
	}
	wg.Wait()
	if got := ask("good"); got != 200 {
		t.Errorf("a tenant whose file is there: got %d", got)
	}
	lines := g.LogLines("cannot set up a tenant")
	if len(lines) == 0 || !strings.Contains(fmt.Sprint(lines[0]["error"]), "token_ca: reading "+dir+"/hangs-") {
		t.Errorf("the log says %v", lines)
	}
}
