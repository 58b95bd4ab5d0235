package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// Secrets of the tests, as their files hold them.
const (
	oldSecret = egresstest.Secret + "-old"
	newSecret = egresstest.Secret + "-new"
)

// rotation is a credential whose key is in files, under traffic.
type rotation struct {
	t       *testing.T
	server  *egresstest.KeyServer
	admin   egresstest.Admin
	gateway *egresstest.Gateway
	dir     string
	metrics string // suffix of the credential's name, for those of this test alone
	name    string

	stop   chan struct{}
	wg     sync.WaitGroup
	mu     sync.Mutex
	sent   int
	failed []string
}

// rotated are the definitions of credentials with a key, which is what a format has
// for identifiers and secrets.
var rotated = map[string]string{
	"understory": "understory %[1]s {\n token_url %[1]s/oauth/token\n scopes openid\n client_id %[2]s\n client_secret %[3]s\n}",
	"voucherify": "voucherify %[1]s {\n scopes api\n app_id %[2]s\n app_token %[3]s\n}",
	"oauth2":     "oauth2 %[1]s {\n token_url %[1]s/oauth/token\n client_id %[2]s\n client_secret %[3]s\n}",
}

// startRotation starts a gateway with a credential and traffic through it. Files holds
// what is written to files before; identifiers and secrets name files.
func startRotation(t *testing.T, provider string, lifetime time.Duration, files map[string]string, ids, secrets []string) *rotation {
	t.Helper()
	r := &rotation{t: t, server: egresstest.NewKeyServer(t, lifetime), dir: t.TempDir(), stop: make(chan struct{})}
	r.server.Activate(files["id-old"], oldSecret)
	placeholders := func(names []string) string {
		var all []string
		for _, name := range names {
			all = append(all, "{file."+filepath.Join(r.dir, name)+"}")
		}
		return strings.Join(all, " ")
	}
	for name, content := range files {
		r.write(name, content)
	}
	r.metrics = fmt.Sprint(".rotation", suffixes.Add(1))
	r.name = "key" + r.metrics
	definition := fmt.Sprintf(rotated[provider], r.server.URL, placeholders(ids), placeholders(secrets))
	admin, option := egresstest.NewAdmin(t)
	r.admin = admin
	r.gateway = egresstest.StartWatched(t, "egress "+r.name, egresstest.WithGlobal(option+"egress {\n credential "+r.name+" "+definition+"\n}"))
	r.gateway.Get("/v1/warm-up")
	for n := range 4 {
		r.wg.Go(func() { r.carry(n) })
	}
	t.Cleanup(r.end)
	return r
}

// write replaces a file at once.
func (r *rotation) write(name, content string) {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.WriteFile(path+".tmp", []byte(content), 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		r.t.Fatal(err)
	}
}

// truncate leaves a file with part of its content, as an editor does for a moment.
func (r *rotation) truncate(name, content string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(content), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rotation) remove(name string) {
	r.t.Helper()
	if err := os.Remove(filepath.Join(r.dir, name)); err != nil {
		r.t.Fatal(err)
	}
}

// carry sends requests one after the other, every other with a body.
func (r *rotation) carry(n int) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-tick.C:
		case <-r.stop:
			return
		}
		method, body := http.MethodGet, io.Reader(http.NoBody)
		if i%2 == 1 {
			method, body = http.MethodPost, strings.NewReader(strings.Repeat("x", 1000))
		}
		resp, answer, err := r.gateway.Try(r.gateway.Request(method, fmt.Sprintf("/v1/%d/%d", n, i), body))
		r.mu.Lock()
		r.sent++
		if err != nil {
			r.failed = append(r.failed, err.Error())
		} else if resp.StatusCode != http.StatusOK {
			r.failed = append(r.failed, fmt.Sprintf("%d %s", resp.StatusCode, answer))
		}
		r.mu.Unlock()
	}
}

// end stops the traffic. It fails the test if a request has failed.
func (r *rotation) end() {
	select {
	case <-r.stop:
		return
	default:
	}
	defer func() {
		close(r.stop)
		r.wg.Wait()
		if len(r.failed) > 0 {
			r.t.Errorf("%d of %d requests failed, such as %s", len(r.failed), r.sent, r.failed[0])
		}
	}()
	egresstest.Eventually(r.t, "requests, without which nothing is shown", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.sent >= 20
	})
}

// await waits until there were n more tokens.
func (r *rotation) await(n int) {
	r.t.Helper()
	want := r.server.Issued() + n
	egresstest.Eventually(r.t, "more tokens", func() bool { return r.server.Issued() >= want })
}

// refresh is what an operator does.
func (r *rotation) refresh() {
	r.t.Helper()
	if got := runCaddy(r.t, "egress", "refresh", r.name, "--address", string(r.admin)); got.status != 0 {
		r.t.Fatalf("refresh: %+v", got)
	}
}

// check checks what is told of the value in use, such as "2 of 2".
func (r *rotation) check(when string, inUse int, logged ...string) {
	r.t.Helper()
	var status, column string
	egresstest.Eventually(r.t, when+": the value in use", func() bool {
		got := r.admin.Status(r.t, r.name)
		status = fmt.Sprint(got.SecretInUse, " of ", got.SecretValues)
		return got.SecretInUse == inUse && got.SecretValues == 2
	})
	column = tidy(runCaddy(r.t, "egress", "status", "--address", string(r.admin)).stdout)
	if !strings.HasPrefix(column, "CREDENTIAL PROVIDER STATE EXPIRES SECRET DETAILS\n"+r.name) || !strings.Contains(column, " "+status+" ") {
		r.t.Errorf("%s: status prints\n%s\nwant %s", when, column, status)
	}
	provider := r.admin.Status(r.t, r.name).Provider
	gauge := fmt.Sprintf(`caddy_egress_secret_in_use{credential="key",provider=%q}`, provider)
	egresstest.Eventually(r.t, when+": the metric of the value in use", func() bool { // set after the status
		return r.admin.Metrics(r.t, r.metrics)[gauge] == float64(inUse)
	})
	var lines []string
	for _, level := range []string{"warn", "info"} {
		for _, message := range secretLines {
			for _, line := range r.gateway.LogLines(message) {
				if line["level"] == level && line["credential"] == r.name {
					lines = append(lines, message)
				}
			}
		}
	}
	egresstest.CheckLines(r.t, when+": lines of the log", lines, logged)
}

// secretLines are what is logged of the value in use; warnings first.
var secretLines = []string{refusedLine, unreadableLine, worksLine, worksAgainLine}

const (
	refusedLine    = "the first value of the secret is refused; another one is in use"
	unreadableLine = "the first value of the secret cannot be read; another one is in use"
	worksLine      = "the first value of the secret works; the others are not needed any more and can be deleted"
	worksAgainLine = "the first value of the secret works"
)

// twoKeys are files of two pairs of identifier and secret, of which the new one is
// still to come.
func twoKeys() (files map[string]string, ids, secrets []string) {
	files = map[string]string{"id-old": "gateway", "secret-old": oldSecret}
	return files, []string{"id-new", "id-old"}, []string{"secret-new", "secret-old"}
}

// Each test takes seconds, so that each wrong order is shown with one provider: what
// they have of their own is in their own tests.

func TestRotationNewKeyNotActiveYet(t *testing.T) {
	files, ids, secrets := twoKeys()
	r := startRotation(t, "understory", 2*time.Second, files, ids, secrets)
	r.check("before", 2, unreadableLine)
	r.write("id-new", "gateway-2")
	r.write("secret-new", newSecret)
	r.await(3)
	r.check("the new key is not active", 2, unreadableLine)
	if got := r.server.Refused("gateway-2", newSecret); got != 1 {
		t.Errorf("the new key was refused %d times, want once in an hour", got)
	}
	r.server.Activate("gateway-2", newSecret)
	r.refresh()
	r.check("it is active", 1, unreadableLine, worksLine)
	r.server.Delete("gateway", oldSecret, false)
	r.remove("secret-old")
	r.remove("id-old")
	r.await(2)
	r.check("the old key is deleted", 1, unreadableLine, worksLine)
	r.end()
	// a refresh under way is counted after the server has issued its token
	egresstest.Eventually(t, "the last token to expire", func() bool { return r.admin.Status(t, r.name).State == "idle" })
	series := r.admin.Metrics(t, r.metrics)
	if got := series.Sum("token_requests_total", "key"); int(got) != r.server.Issued()+1 {
		t.Errorf("%v token requests are counted, want %d that were answered with a token and one that was refused", got, r.server.Issued())
	}
}

func TestRotationOldKeyDeletedFirst(t *testing.T) {
	for _, liveOn := range []bool{false, true} {
		t.Run(fmt.Sprint(liveOn), func(t *testing.T) {
			files, ids, secrets := twoKeys()
			r := startRotation(t, "voucherify", 4*time.Second, files, ids, secrets)
			r.server.Activate("gateway-2", newSecret)
			if !liveOn { // with its tokens: then the new one has to be there
				r.write("id-new", "gateway-2")
				r.write("secret-new", newSecret)
			}
			r.server.Delete("gateway", oldSecret, liveOn)
			r.remove("secret-old")
			if liveOn {
				r.write("id-new", "gateway-2")
				r.write("secret-new", newSecret)
			}
			r.await(1)
			r.check("afterwards", 1, unreadableLine, worksAgainLine)
			r.end()
		})
	}
}

func TestRotationHalfWrittenFile(t *testing.T) {
	files := map[string]string{"id-old": "gateway", "secret": oldSecret, "secret-old": oldSecret}
	r := startRotation(t, "oauth2", 2*time.Second, files, []string{"id-old"}, []string{"secret", "secret-old"})
	r.server.Activate("gateway", newSecret)
	for _, half := range []string{newSecret[:len(newSecret)-2], "", "\n"} {
		r.truncate("secret", half)
		r.await(2) // the first may have read what was there before
	}
	r.check("half-written", 2, refusedLine, worksLine) // at first both are the same
	r.truncate("secret", newSecret)
	r.await(1)
	r.check("whole", 1, refusedLine, worksLine, worksLine)
	r.end()
}

// TestRotationOfOneFile: the token in use lives on while the file is wrong. It lives
// for a third of its lifetime after the refresh that fails.
func TestRotationOfOneFile(t *testing.T) {
	for name, c := range map[string]struct {
		provider string
		wrong    string
		before   func(*rotation) // what happens at the authorization server before the file is wrong
		after    func(*rotation) // and before it is right
	}{
		"not_active":   {"oauth2", newSecret, func(*rotation) {}, func(r *rotation) { r.server.Activate("gateway", newSecret) }},
		"deleted":      {"voucherify", oldSecret, func(r *rotation) { r.server.Delete("gateway", oldSecret, true) }, func(r *rotation) { r.server.Activate("gateway", newSecret) }},
		"half-written": {"understory", newSecret[:len(newSecret)-2], func(r *rotation) { r.server.Activate("gateway", newSecret) }, func(*rotation) {}},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{"id-old": "gateway", "secret": oldSecret}
			r := startRotation(t, c.provider, 9*time.Second, files, []string{"id-old"}, []string{"secret"})
			c.before(r)
			r.truncate("secret", c.wrong)
			egresstest.Eventually(t, "a refresh that fails", func() bool {
				return len(r.gateway.LogLines("could not refresh the token; the present one is used until it expires")) > 0
			})
			c.after(r)
			r.truncate("secret", newSecret)
			r.await(1)
			r.end()
			if got := r.admin.StatusBetweenRequests(t, r.name); got.SecretInUse != 0 || got.SecretValues != 0 || got.LastError != nil {
				t.Errorf("status %+v, want nothing of several values and no error", got)
			}
		})
	}
}
