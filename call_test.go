package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-egress/caddy-egress/internal/replaybody"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// numbered is a Provider that issues token1, token2, …, or fails.
type numbered struct {
	fixedToken
	mu     sync.Mutex
	issued int
	fails  error
	takes  time.Duration
}

func (p *numbered) Token(ctx context.Context, _ *http.Client) (*tokenprovider.Token, error) {
	p.mu.Lock()
	takes, fails := p.takes, p.fails
	p.mu.Unlock()
	time.Sleep(takes)
	if fails != nil {
		return nil, fails
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.issued++
	now := time.Now()
	return &tokenprovider.Token{Value: tokenprovider.NewSecret(fmt.Sprint("token", p.issued)), Issued: now, Expires: now.Add(time.Hour)}, nil
}

// set changes the provider while it is used.
func (p *numbered) set(change func(*numbered)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(p)
}

// api is the other end of a transport under test.
type api struct {
	*Transport
	provider *numbered
	logs     *observer.ObservedLogs
	answer   func(n int, req *http.Request) (*http.Response, error) // to the n-th request

	mu     sync.Mutex
	tokens []string
	bodies []string
}

func (a *api) RoundTrip(req *http.Request) (*http.Response, error) {
	a.mu.Lock()
	a.tokens = append(a.tokens, strings.Join(req.Header["Authorization"], "|"))
	n := len(a.tokens)
	a.mu.Unlock()
	resp, err := a.answer(n, req)
	if req.Body != nil {
		body, _ := io.ReadAll(req.Body)
		_ = req.Body.Close()
		a.mu.Lock()
		a.bodies = append(a.bodies, string(body))
		a.mu.Unlock()
	}
	return resp, err
}

// status is an answer without anything but a status.
func status(code int, header ...string) *http.Response {
	resp := &http.Response{StatusCode: code, Header: http.Header{}, Body: http.NoBody}
	for i := 0; i < len(header); i += 2 {
		resp.Header.Set(header[i], header[i+1])
	}
	return resp
}

// unauthorizedUnless answers 401 to every token but one.
func unauthorizedUnless(token string) func(int, *http.Request) (*http.Response, error) {
	return func(_ int, req *http.Request) (*http.Response, error) {
		if req.Header.Get("Authorization") == "Bearer "+token {
			return status(http.StatusOK), nil
		}
		return status(http.StatusUnauthorized), nil
	}
}

func newAPI(t *testing.T, answer func(int, *http.Request) (*http.Response, error)) *api {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	a := &api{Transport: benchTransport(t), provider: new(numbered), logs: logs, answer: answer}
	a.Transport.credential = &activeCredential{
		called:    t.Name(),
		source:    tokensource.New(tokensource.Options{Name: t.Name(), Provider: a.provider, State: tokensource.NewState(), Logger: zap.NewNop()}),
		metrics:   newCredentialMetrics(t.Name(), "test", false),
		rateLimit: newRateLimit(),
		quota:     new(quota),
	}
	a.Transport.api.Error = func(status int, key, message string) (string, []byte) {
		return "text/plain", fmt.Append(nil, status, " ", key, ": ", message)
	}
	a.logger = zap.New(core)
	a.app.started = make(chan struct{})
	a.upstream = a
	return a
}

// send sends a request through the transport.
func (a *api) send(t *testing.T, req *http.Request) (int, string) {
	t.Helper()
	resp, err := a.Transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// reported returns what a request's placeholders say after it.
func reported(req *http.Request) string {
	repl := req.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	const prefix = "http.reverse_proxy.egress."
	return repl.ReplaceKnown("{"+prefix+"credential} {"+prefix+"outcome} {"+prefix+"replayed} {"+prefix+"token_wait} {"+prefix+"x}", "")
}

func TestCallReplaysA401(t *testing.T) {
	a := newAPI(t, unauthorizedUnless("token2"))
	req := benchRequest("body")
	if code, body := a.send(t, req); code != http.StatusOK {
		t.Fatal(code, body)
	}
	if want := []string{"Bearer token1", "Bearer token2"}; !reflect.DeepEqual(a.tokens, want) {
		t.Errorf("tokens %q, want %q", a.tokens, want)
	}
	if want := []string{"body", "body"}; !reflect.DeepEqual(a.bodies[1:], want[1:]) {
		t.Errorf("bodies %q, want %q", a.bodies, want)
	}
	if got := reported(req); !strings.HasPrefix(got, t.Name()+" replayed true ") || strings.HasSuffix(got, " 0s "+"{http.reverse_proxy.egress.x}") {
		t.Errorf("reported %q", got)
	}
	// the next request finds the fresh token at hand
	req = benchRequest("")
	a.send(t, req)
	if got := reported(req); !strings.HasPrefix(got, t.Name()+" forwarded false 0s ") {
		t.Errorf("reported %q", got)
	}
}

func TestCallDoesNotReplay(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(*api)
		body    string
		header  []string // of the 401
		sent    int
	}{
		"a body that is too long":      {prepare: func(a *api) { size := int64(3); a.ReplayBuffer = &size }, body: "body", sent: 1},
		"a token that lacks a scope":   {header: []string{"Www-Authenticate", `Bearer error="insufficient_scope"`}, sent: 1},
		"no other token can be had":    {prepare: func(a *api) { a.provider.set(func(p *numbered) { p.fails = errors.New("down") }) }, sent: 1},
		"a 401 that means it":          {sent: 2},
		"a challenge of another kind":  {header: []string{"Www-Authenticate", `Bearer error="invalid_token"`}, sent: 2},
		"a client that has left since": {prepare: func(a *api) { a.provider.set(func(p *numbered) { p.takes = time.Hour }) }, sent: 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			var once sync.Once
			ctx, cancel := context.WithCancel(t.Context())
			var a *api
			a = newAPI(t, func(int, *http.Request) (*http.Response, error) {
				once.Do(func() {
					if test.prepare != nil {
						test.prepare(a)
						time.AfterFunc(time.Minute, cancel)
					}
				})
				return status(http.StatusUnauthorized, test.header...), nil
			})
			if name == "a body that is too long" { // known before it is sent
				test.prepare(a)
			}
			req := benchRequest(test.body)
			resp, err := a.Transport.RoundTrip(req.WithContext(mergeCancel(req.Context(), ctx)))
			if err != nil || resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("%s: %v, %v", name, resp, err)
			}
			if len(a.tokens) != test.sent {
				t.Errorf("%s: sent %d times, want %d", name, len(a.tokens), test.sent)
			}
			cancel()
			time.Sleep(2 * time.Hour) // for what is still under way
		})
	}
}

// mergeCancel returns parent, ended when other is.
func mergeCancel(parent, other context.Context) context.Context {
	ctx, cancel := context.WithCancelCause(parent)
	context.AfterFunc(other, func() { cancel(context.Cause(other)) })
	return ctx
}

// A body that outgrows replay_buffer while the fresh token is awaited must not
// be sent again, neither empty nor in part.
func TestBodyOutgrowsTheBufferWhileTheTokenIsAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reader, writer := io.Pipe()
		a := newAPI(t, nil)
		a.answer = func(n int, req *http.Request) (*http.Response, error) {
			if n > 1 {
				return status(http.StatusOK), nil
			}
			body := req.Body
			_, _ = io.ReadFull(body, make([]byte, 4)) // small enough so far
			req.Body = nil
			go func() { _, _ = io.Copy(io.Discard, body) }() // as the HTTP transport reads on
			a.provider.set(func(p *numbered) { p.takes = time.Second })
			return status(http.StatusUnauthorized), nil
		}
		size := int64(8)
		a.ReplayBuffer = &size
		req := benchRequest("x")
		req.Body, req.ContentLength = reader, -1
		go func() {
			_, _ = writer.Write([]byte("1234"))
			time.Sleep(500 * time.Millisecond)
			_, _ = writer.Write([]byte("56789"))
			_ = writer.Close()
		}()
		if code, _ := a.send(t, req); code != http.StatusUnauthorized || len(a.tokens) != 1 {
			t.Errorf("answered %d, sent with %q", code, a.tokens)
		}
	})
}

func TestCallWithoutAToken(t *testing.T) {
	for class, want := range map[tokenprovider.Class]struct {
		status  int
		outcome string
	}{
		tokenprovider.Transient: {http.StatusServiceUnavailable, "token_unavailable"},
		tokenprovider.Refused:   {http.StatusBadGateway, "credential_refused"},
	} {
		a := newAPI(t, nil)
		a.provider.fails = &tokenprovider.Error{Class: class, Status: 400, Code: "some_code"}
		req := benchRequest("body")
		closed := &closeCounter{Reader: strings.NewReader("body")}
		req.Body = closed
		code, body := a.send(t, req)
		if code != want.status || !strings.Contains(body, want.outcome) || !strings.Contains(body, "some_code") || len(a.tokens) != 0 {
			t.Errorf("%s: %d %s, sent with %q", class, code, body, a.tokens)
		}
		if got := reported(req); !strings.HasPrefix(got, t.Name()+" "+want.outcome+" false ") {
			t.Errorf("%s: reported %q", class, got)
		}
		if closed.times != 1 {
			t.Errorf("%s: the body was closed %d times", class, closed.times)
		}
		if a.logs.Len() != 0 { // the token source has said so
			t.Errorf("%s: logged %v", class, a.logs.All())
		}
	}
}

type closeCounter struct {
	io.Reader
	times int
}

func (c *closeCounter) Close() error {
	c.times++
	return nil
}

func TestClientThatLeavesWhileItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, nil)
		a.provider.takes = time.Hour
		left := errors.New("the client has left")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(left) })
		req := benchRequest("")
		closed := &closeCounter{Reader: strings.NewReader("body")}
		req.Body = closed
		if _, err := a.Transport.RoundTrip(req.WithContext(mergeCancel(req.Context(), ctx))); !errors.Is(err, left) {
			t.Errorf("got %v", err)
		}
		if got := reported(req); !strings.HasPrefix(got, t.Name()+" client_gone false 1s ") || closed.times != 1 {
			t.Errorf("reported %q, closed %d times", got, closed.times)
		}
		time.Sleep(2 * time.Hour)
	})
}

// Probes begin while the config is still being loaded, and count for nothing.
func TestProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, func(int, *http.Request) (*http.Response, error) { return status(http.StatusOK), nil })
		a.apiHost = "api.example.com"
		probe := func(host string) *http.Request {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1:9001/health", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = host
			return req
		}
		time.AfterFunc(time.Second, func() { close(a.app.started) })
		start := time.Now()
		if code, _ := a.send(t, probe("")); code != http.StatusOK || time.Since(start) != time.Second {
			t.Errorf("answered %d after %v, want to wait for the start", code, time.Since(start))
		}
		for host, want := range map[string]string{"": "api.example.com", "127.0.0.1:9001": "api.example.com", "configured.example": "configured.example"} {
			var got string
			a.answer = func(_ int, req *http.Request) (*http.Response, error) {
				got = req.Host
				return status(http.StatusOK), nil
			}
			if a.send(t, probe(host)); got != want {
				t.Errorf("Host %q is %q at the API, want %q", host, got, want)
			}
		}
		if total(t, requestsTotal, t.Name()) != 0 {
			t.Error("probes were counted as requests")
		}

		// a failure is one of the probe, not an answer of the gateway's
		a.credential.source = tokensource.New(tokensource.Options{Name: "x", Provider: a.provider, State: tokensource.NewState(), Logger: zap.NewNop()})
		a.provider.set(func(p *numbered) { p.fails = errors.New("down") })
		if resp, err := a.Transport.RoundTrip(probe("")); err == nil {
			t.Errorf("answered %d", resp.StatusCode)
		}

		a.app.started = make(chan struct{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if resp, err := a.Transport.RoundTrip(probe("").WithContext(ctx)); err == nil {
			t.Errorf("answered %d before the start", resp.StatusCode)
		}
	})
}

func TestHostAtTheAPIAndWhatIsShared(t *testing.T) {
	for keep, want := range map[string]string{"": "api.example.com", "Host": "header.up"} {
		a := newAPI(t, nil)
		a.apiHost = "api.example.com"
		if keep != "" {
			a.Transport.headers.keep = []string{keep}
		}
		req := benchRequest("")
		req.Host = "header.up"
		before, url := req.Header.Clone(), *req.URL
		a.answer = func(_ int, out *http.Request) (*http.Response, error) {
			if out.Host != want {
				t.Errorf("keep %q: Host %q, want %q", keep, out.Host, want)
			}
			out.URL.Host, out.URL.RawQuery = "x", "x" // as the HTTP transport may
			out.Header.Set("X-New", "x")
			return status(http.StatusOK), nil
		}
		a.send(t, req)
		if !reflect.DeepEqual(req.Header, before) || *req.URL != url || req.Host != "header.up" {
			t.Errorf("reverse_proxy's request has changed: %v %v %v", req.Header, req.URL, req.Host)
		}
	}
}

func TestTrailersAreStrippedWhenTheBodyEnds(t *testing.T) {
	a := newAPI(t, func(_ int, out *http.Request) (*http.Response, error) {
		if _, ok := out.Trailer["Cookie"]; ok {
			t.Error("a cookie is announced as a trailer")
		}
		_, _ = io.ReadAll(out.Body)
		if want := (http.Header{"X-Checksum": {"1"}}); !reflect.DeepEqual(out.Trailer, want) {
			t.Errorf("trailers %v, want %v", out.Trailer, want)
		}
		return status(http.StatusOK), nil
	})
	req := benchRequest("x")
	req.Trailer = http.Header{"X-Checksum": nil, "Cookie": nil}
	req.Body = io.NopCloser(io.MultiReader(strings.NewReader("body"), readerFunc(func([]byte) (int, error) {
		req.Trailer["X-Checksum"], req.Trailer["Authorization"], req.Trailer["Cookie"] = []string{"1"}, []string{"x"}, []string{"y"}
		return 0, io.EOF
	})))
	a.send(t, req)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestErrorsOfTheUpstreamPass(t *testing.T) {
	refused := errors.New("connection refused")
	for failsAt := 1; failsAt <= 2; failsAt++ {
		a := newAPI(t, func(n int, _ *http.Request) (*http.Response, error) {
			if n == failsAt {
				return nil, refused
			}
			return status(http.StatusUnauthorized), nil
		})
		memory := replaybody.NewMemory(defaultReplayMemory)
		a.app.memory = memory
		req := benchRequest("body")
		if _, err := a.Transport.RoundTrip(req); !errors.Is(err, refused) {
			t.Errorf("request %d fails: got %v", failsAt, err)
		}
		if got, want := reported(req), map[int]string{1: "forwarded false", 2: "replayed true"}[failsAt]; !strings.HasPrefix(got, t.Name()+" "+want) {
			t.Errorf("request %d fails: reported %q", failsAt, got)
		}
	}
}

// The second of two tries is what is reported.
func TestReportOfARequestThatIsTriedAgain(t *testing.T) {
	a := newAPI(t, func(int, *http.Request) (*http.Response, error) { return status(http.StatusOK), nil })
	a.destination.hosts = nil
	req := benchRequest("")
	if code, _ := a.send(t, req); code != http.StatusMisdirectedRequest || !strings.Contains(reported(req), "api_host_not_allowed") {
		t.Errorf("answered %d, reported %q", code, reported(req))
	}
	a.destination.hosts = []string{"127.0.0.1:9001"}
	if a.send(t, req); !strings.Contains(reported(req), " forwarded ") {
		t.Errorf("reported %q", reported(req))
	}
}

func TestAccessLogFields(t *testing.T) {
	for name, test := range map[string]struct {
		server *caddyhttp.Server
		want   bool
	}{
		"with an access log": {&caddyhttp.Server{Logs: new(caddyhttp.ServerLogConfig)}, true},
		"without":            {new(caddyhttp.Server), false},
	} {
		a := newAPI(t, func(int, *http.Request) (*http.Response, error) { return status(http.StatusOK), nil })
		req := benchRequest("")
		fields := new(caddyhttp.ExtraLogFields)
		ctx := context.WithValue(req.Context(), caddyhttp.ServerCtxKey, test.server)
		a.send(t, req.WithContext(context.WithValue(ctx, caddyhttp.ExtraLogFieldsCtxKey, fields)))
		if got := reflect.ValueOf(fields).Elem().FieldByName("fields").Len() > 0; got != test.want {
			t.Errorf("%s: fields are set: %v", name, got)
		}
	}
	enc := zapcore.NewMapObjectEncoder()
	if err := (&report{credential: "promo", outcome: outcomeReplayed}).MarshalLogObject(enc); err != nil {
		t.Fatal(err)
	}
	if want := map[string]any{"egress_credential": "promo", "egress_outcome": "replayed"}; !reflect.DeepEqual(enc.Fields, want) {
		t.Errorf("fields %v", enc.Fields)
	}
}

func TestRefusalsAreLoggedOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, nil)
		refuse := func() {
			req := benchRequest("")
			req.RemoteAddr = "192.0.2.1:5000"
			if code, _ := a.send(t, req); code != http.StatusForbidden {
				t.Errorf("answered %d", code)
			}
		}
		refuse()
		refuse()
		refuse()
		time.Sleep(time.Second - 1)
		refuse()
		time.Sleep(time.Nanosecond)
		refuse()
		time.Sleep(time.Second)
		refuse()
		lines := a.logs.All()
		if len(lines) != 3 {
			t.Fatalf("%d lines, want 3", len(lines))
		}
		for i, want := range []any{nil, int64(3), nil} {
			fields := lines[i].ContextMap()
			if fields["left_out"] != want || fields["credential"] != t.Name() || fields["outcome"] != "client_not_allowed" || fields["remote_addr"] != "192.0.2.1:5000" ||
				fields["reason"] != "this client is not served; clients would permit it" {
				t.Errorf("line %d: %v", i, fields)
			}
		}
		req := benchRequest("")
		req.Method = http.MethodTrace
		a.send(t, req)
		if fields := a.logs.All()[3].ContextMap(); fields["outcome"] != "method_not_allowed" {
			t.Errorf("logged %v", fields)
		}
	})
}

// What is left of a 401 is read for its connection's sake: not for long, and
// not much of it.
func TestDiscard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		long := &closeCounter{Reader: strings.NewReader(strings.Repeat("x", maxUnauthorized+1))}
		discard(long)
		if left, _ := io.ReadAll(long.Reader); len(left) != 1 || long.times != 1 || maxUnauthorized != 64<<10 {
			t.Errorf("%d bytes are left, closed %d times", len(left), long.times)
		}
		reader, _ := io.Pipe()
		start := time.Now()
		discard(reader)
		if took := time.Since(start); took != time.Second {
			t.Errorf("waited %v for an API that says nothing, want 1s", took)
		}
	})
}

// What was kept of a body is given back whatever became of its request.
func TestReplayMemoryIsGivenBack(t *testing.T) {
	for name, answer := range map[string]func(int, *http.Request) (*http.Response, error){
		"accepted": func(int, *http.Request) (*http.Response, error) { return status(http.StatusOK), nil },
		"failed":   func(int, *http.Request) (*http.Response, error) { return nil, errors.New("connection refused") },
		"rejected": func(int, *http.Request) (*http.Response, error) { return status(http.StatusUnauthorized), nil },
		"replayed": unauthorizedUnless("token2"),
	} {
		a := newAPI(t, nil)
		a.answer = func(n int, req *http.Request) (*http.Response, error) {
			body, _ := io.ReadAll(req.Body)
			if string(body) != "body" {
				t.Errorf("%s: the API gets %q", name, body)
			}
			return answer(n, req)
		}
		// enough for one body of a client: a second one is kept only if the first was given up
		a.app.memory = replaybody.NewMemory(4 << 10)
		for range 2 {
			_, _ = a.Transport.RoundTrip(benchRequest("body"))
		}
		probe := replaybody.New(io.NopCloser(strings.NewReader("x")), 1, 1<<20, "127.0.0.1", a.app.memory, func() {})
		_, _ = io.ReadAll(probe.First())
		if !probe.Replayable() {
			t.Errorf("%s: the memory is still taken", name)
		}
	}
}
