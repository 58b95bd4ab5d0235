package egress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/tokensource"
)

// tenantsStage is a credential with tenants whose token endpoint is a function.
type tenantsStage struct {
	*tenants
	t   *testing.T
	dir string

	mu       sync.Mutex
	requests map[string]int // token requests by client
	padding  int            // of tokens, in bytes
	scopes   string         // of the credential, in JSON
	delay    time.Duration  // of answers
}

const tenantLifetime = 10 * time.Minute

// newTenantsStage returns a stage with files of those tenants. With options it is
// as a config of a Caddyfile would have it.
func newTenantsStage(t *testing.T, max int, names ...string) *tenantsStage {
	t.Helper()
	s := &tenantsStage{t: t, dir: t.TempDir(), requests: make(map[string]int)}
	for _, name := range names {
		s.write(name)
	}
	s.tenants = s.load(max)
	t.Cleanup(func() { s.end(s.tenants) })
	return s
}

// load returns the tenants of another config of the stage.
func (s *tenantsStage) load(max int) *tenants {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s.t.Cleanup(cancel)
	app := &App{
		ctx: caddy.Context{Context: ctx}, logger: zap.NewNop(), refresher: tokensource.NewRefresher(), started: make(chan struct{}),
		inUse: make(map[string]*activeCredential), clients: map[string]*http.Client{"": {Transport: s}},
	}
	raw := fmt.Sprintf(`{"name":"oauth2","api_url":"http://127.0.0.1","token_url":"http://localhost/{tenant}/token","client_id":"{file.%[1]s/{tenant}/id}","client_secret":"{file.%[1]s/{tenant}/secret}","scopes":[%s]}`, s.dir, s.scopes)
	credential := Credential{ProviderRaw: []byte(raw), MaxTenants: max}
	provider, err := credential.loadProvider(app.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	family, err := app.use(s.t.Name(), provider, credential)
	if err != nil {
		s.t.Fatal(err)
	}
	app.send(family)
	if err := app.Start(); err != nil {
		s.t.Fatal(err)
	}
	return family.tenants
}

// end ends a config.
func (s *tenantsStage) end(ts *tenants) {
	if err := errors.Join(ts.app.Stop(), ts.app.Cleanup()); err != nil {
		s.t.Error(err)
	}
}

func (s *tenantsStage) write(name string) {
	s.t.Helper()
	for file, content := range map[string]string{"id": name, "secret": "secret of " + name} {
		path := filepath.Join(s.dir, name, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			s.t.Fatal(err)
		}
	}
}

// RoundTrip implements http.RoundTripper: it is the token endpoint.
func (s *tenantsStage) RoundTrip(req *http.Request) (*http.Response, error) {
	id, secret, _ := req.BasicAuth()
	if id == "one" {
		return nil, errors.New("not a token endpoint")
	}
	if "/"+id+"/token" != req.URL.Path || secret != "secret+of+"+id {
		s.t.Errorf("%s and its secret are sent to %s", id, req.URL)
	}
	time.Sleep(s.delay)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests[id]++
	body := fmt.Sprintf(`{"access_token":"token-%s-%d%s","token_type":"Bearer","expires_in":%v}`, id, s.requests[id], strings.Repeat("x", s.padding), tenantLifetime.Seconds())
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)), Request: req}, nil
}

// use has a request of the tenant sent, and checks that it gets its n-th token.
func (s *tenantsStage) use(ts *tenants, name string, n int) {
	s.t.Helper()
	c, err := ts.get(s.t.Context(), name)
	if err != nil {
		s.t.Fatalf("%s: %v", name, err)
	}
	token, err := c.source.Token(s.t.Context())
	if err != nil {
		s.t.Fatalf("%s: %v", name, err)
	}
	if want := fmt.Sprintf("token-%s-%d", name, n); token.Value.Reveal() != want+strings.Repeat("x", s.padding) {
		s.t.Errorf("%s has the token %.40s, want %s", name, token.Value.Reveal(), want)
	}
}

// refused checks that requests of the tenant are refused as unknown.
func (s *tenantsStage) refused(name string) {
	s.t.Helper()
	if _, err := s.get(s.t.Context(), name); !errors.Is(err, errTenantUnknown) {
		s.t.Errorf("%s: got %v, want that it is not known", name, err)
	}
}

// stored returns how many states are pooled.
func stored() (n int) {
	states.Range(func(any, any) bool {
		n++
		return true
	})
	return n
}

// kept returns how many tenants have lapsed and have a token.
func (s *tenantsStage) kept() int {
	s.lapsed.mu.Lock()
	defer s.lapsed.mu.Unlock()
	return len(s.lapsed.kept)
}

func TestTenantsLapse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTenantsStage(t, 2, "a", "b", "c", "d")
		before := stored()
		for _, name := range []string{"a", "b", "a", "c"} { // b is the one that was not used lately
			s.use(s.tenants, name, 1)
		}
		synctest.Wait()
		if s.peek("b") != nil || s.peek("a") == nil || len(s.all()) != 2 {
			t.Errorf("live are %v", s.all())
		}
		if n := stored() - before; n != 3 {
			t.Errorf("%d states are kept, want those of two live tenants and of one with a token", n)
		}

		// one that returns has its token
		s.use(s.tenants, "b", 1)

		// once its token has expired, nothing is left of it; those of live tenants are
		// refreshed twice before they are taken to be idle
		time.Sleep(3 * tenantLifetime)
		s.use(s.tenants, "d", 1)
		s.use(s.tenants, "c", 4)
		synctest.Wait()
		if n := stored() - before; n != 2 {
			t.Errorf("%d states are kept, want 2", n)
		}
	})
}

func TestTenantsOverReloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTenantsStage(t, 2, "a", "b", "c")
		before := stored()
		for _, name := range []string{"a", "b", "c"} {
			s.use(s.tenants, name, 1)
		}
		for range 3 {
			next := s.load(1)
			s.end(s.tenants)
			for _, name := range []string{"a", "b", "c"} {
				s.use(next, name, 1)
			}
			s.use(s.tenants, "b", 1) // a request that still drains
			s.tenants = next
		}
		synctest.Wait()
		s.end(s.tenants)
		if n := stored() - before; n != 0 {
			t.Errorf("%d states are left after the last config", n)
		}
		s.tenants = s.load(2)
		s.use(s.tenants, "a", 2)
	})
}

// What the API has said of a rate limit counts until it is over, whether or not the
// tenant is live.
func TestRateLimitOfALapsedTenant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTenantsStage(t, 1, "a", "b")
		s.use(s.tenants, "a", 1)
		s.peek("a").rateLimit.limit(time.Now(), time.Hour)
		s.use(s.tenants, "b", 1) // a lapses
		time.Sleep(2 * tenantLifetime)
		next := s.load(1)
		s.end(s.tenants)
		s.tenants = next
		s.use(s.tenants, "a", 2)
		if left := s.peek("a").rateLimit.limitedFor(0); left != time.Hour-2*tenantLifetime {
			t.Errorf("the rate is limited for %v more", left)
		}
	})
}

// A config with another credential of the same name ends the tokens of the first.
func TestTenantsOfAnotherCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTenantsStage(t, 2, "a")
		before := stored()
		s.use(s.tenants, "a", 1)
		s.scopes = `"x"`
		next := s.load(2)
		s.end(s.tenants)
		s.tenants = next
		s.use(s.tenants, "a", 2)
		synctest.Wait()
		if n := stored() - before; n != 1 {
			t.Errorf("%d states are kept, want that of the credential in use", n)
		}
	})
}

// Only tokens that somebody uses are kept fresh.
func TestTenantsAreRefreshed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTenantsStage(t, 1, "idle", "lapsed", "used")
		s.use(s.tenants, "lapsed", 1)
		s.use(s.tenants, "used", 1)
		for range 100 {
			time.Sleep(tenantLifetime / 10)
			c, err := s.get(t.Context(), "used")
			if err != nil {
				t.Fatal(err)
			}
			if c.source.Live() == nil {
				t.Fatal("there is no live token of a tenant that is used")
			}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.requests["lapsed"] != 1 || s.requests["used"] < 10 || s.requests["used"] > 16 || s.requests["idle"] != 0 {
			t.Errorf("token requests: %v", s.requests)
		}
	})
}

func TestUnknownTenants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTenantsStage(t, 2, "a")
		s.use(s.tenants, "a", 1)
		s.refused("b")
		s.write("b")
		time.Sleep(unknownFor - time.Second)
		s.refused("b")
		time.Sleep(2 * time.Second)
		s.use(s.tenants, "b", 1)

		// strangers take nobody's place, and are not all remembered
		for n := range 3 * maxUnknown {
			s.refused(fmt.Sprint("stranger", n))
		}
		if n := len(s.failed); n > maxUnknown {
			t.Errorf("%d tenants are remembered", n)
		}
		if s.peek("a") == nil || s.peek("b") == nil {
			t.Error("tenants have lapsed because of strangers")
		}
	})
}

// A tenant whose files cannot be used is not unknown, and not tried with each request.
func TestTenantThatCannotBeSetUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTenantsStage(t, 2)
		s.credential.ProviderRaw = bytes.ReplaceAll(s.credential.ProviderRaw, []byte(`"api_url":`), []byte(`"header":{"X-Id":"{file.`+s.dir+`/{tenant}/id}"},"api_url":`))
		s.write("a")
		if err := os.WriteFile(filepath.Join(s.dir, "a", "id"), []byte("two\nlines"), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			_, err := s.get(t.Context(), "a")
			unavailable, ok := errors.AsType[*tokensource.Error](err)
			if !ok || unavailable.Credential != t.Name()+"/a" || unavailable.RetryAfter <= 0 {
				t.Errorf("got %v", err)
			}
		}
	})
}

// However many wait for a tenant whose files hang, others are set up meanwhile.
func TestTenantIsSetUpOnce(t *testing.T) {
	s := newTenantsStage(t, 10, "a")
	pipe := filepath.Join(s.dir, "slow", "id")
	if err := errors.Join(os.Mkdir(filepath.Dir(pipe), 0o700), syscall.Mkfifo(pipe, 0o600), os.WriteFile(filepath.Join(s.dir, "slow", "secret"), []byte("secret of slow"), 0o600)); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	found := make(chan *activeCredential, 2*maxSettingUp)
	for range cap(found) {
		wg.Go(func() {
			c, err := s.get(t.Context(), "slow")
			if err != nil {
				t.Error(err)
			}
			found <- c
		})
	}
	for s.find("slow") == nil {
		runtime.Gosched()
	}
	s.use(s.tenants, "a", 1)

	impatient, leave := context.WithCancel(t.Context())
	leave()
	if _, err := s.get(impatient, "slow"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v for a client that has left", err)
	}

	w, err := os.OpenFile(pipe, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	after := filepath.Join(s.dir, "after") // who reads it later finds a file
	if err := errors.Join(os.WriteFile(after, []byte("slow"), 0o600), os.Rename(after, pipe)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString("slow"); errors.Join(err, w.Close()) != nil {
		t.Fatal(err)
	}
	wg.Wait()
	first := <-found
	for range cap(found) - 1 {
		if <-found != first {
			t.Fatal("there are two credentials of one tenant")
		}
	}
}

// A tenant that has left is noticed when its token cannot be renewed.
func TestTenantIsForgotten(t *testing.T) {
	s := newTenantsStage(t, 10, "a")
	c, err := s.get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(s.dir, "a")); err != nil {
		t.Fatal(err)
	}
	s.forget("a", nil) // of another credential than the live one
	if s.peek("a") == nil {
		t.Error("the tenant is forgotten by the word of another")
	}
	s.forget("a", c)
	s.refused("a")
}

// What tells tenants apart may be secret, and is not in an identity then.
func TestTenantsHaveIdentitiesOfTheirOwn(t *testing.T) {
	s := newTenantsStage(t, 10, "a")
	s.credential.ProviderRaw = []byte(`{"name":"oauth2","api_url":"http://127.0.0.1","token_url":"http://127.0.0.1/token","client_id":"one","client_secret":"one","header":{"X-Company":"{tenant}"}}`)
	seen := make(map[string]string)
	quotas := make(map[*quota]string)
	for _, name := range []string{"a", "b", "A", "a.b", "a-b"} {
		c, err := s.get(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[c.identity]; ok {
			t.Errorf("%s and %s share a token", name, other)
		}
		if other, ok := quotas[c.quota]; ok {
			t.Errorf("%s and %s share a quota", name, other)
		}
		seen[c.identity], quotas[c.quota] = name, name
	}
}

// maxLapsed is how much memory a lapsed tenant may take, with a token of 1 KiB.
const maxLapsed = 4 << 10

func TestMemoryOfLapsedTenants(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector takes memory, too")
	}
	const count = 2000
	var names []string
	for n := range count {
		names = append(names, fmt.Sprint("tenant", n))
	}
	s := newTenantsStage(t, 1, append(names, "first", "last")...)
	s.padding = 1 << 10
	heap := func(lapsed int) uint64 {
		s.use(s.tenants, "last", 1)
		for s.kept() < lapsed {
			runtime.Gosched()
		}
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	s.use(s.tenants, "first", 1)
	before, goroutines := heap(1), runtime.NumGoroutine()
	for _, name := range names {
		s.use(s.tenants, name, 1)
	}
	each := (int64(heap(count+1)) - int64(before)) / count
	t.Logf("a lapsed tenant takes %d bytes", each)
	if each > maxLapsed {
		t.Errorf("a lapsed tenant takes %d bytes, want %d at most", each, maxLapsed)
	}
	if more := runtime.NumGoroutine() - goroutines; more > 2 {
		t.Errorf("there are %d goroutines more", more)
	}
}
