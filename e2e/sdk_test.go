package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
	"github.com/caddy-egress/caddy-egress/sandbox"
)

// sdkDir holds the official Voucherify SDK, pinned, and a script of its calls.
const sdkDir = "../testdata/voucherify-sdk"

func TestVoucherifySDK(t *testing.T) {
	node := sdkNode(t)
	voucherify, api, g := startSDKGateway(t, sandbox.Faults{})

	var lines []string
	for _, call := range sdkCalls(t, node, g) {
		lines = append(lines, call.line)
	}
	egresstest.CheckLines(t, "the SDK's calls", lines, []string{
		`{"call":"list","result":{"object":"list","total":3,"codes":["GIFT-CARD-xwc6X7Tk","BLCKFRDY"],"rateLimit":2000}}`,
		`{"call":"get","result":{"object":"voucher","code":"BLCKFRDY","amountOff":1000}}`,
		`{"call":"get with an escaped code","result":{"object":"voucher","code":"a/b c","percentOff":10}}`,
		`{"call":"validate","result":{"valid":true,"discount":1000}}`,
		`{"call":"validate one","result":{"valid":true,"code":"a/b c","discount":550}}`,
		`{"call":"redeem","result":{"results":["SUCCESS"],"discount":1000}}`,
		`{"call":"redeem one","result":{"result":"SUCCESS","code":"a/b c","redeemed":1}}`,
		`{"call":"get what is not there","error":{"code":404,"key":"not_found","message":"Resource not found","resource_id":"MISSING","resource_type":"voucher"}}`,
	})

	requests := api.All()
	var targets []string
	for _, got := range requests {
		if text := fmt.Sprint(got.Header, got.Body); strings.Contains(text, "dummy") {
			t.Errorf("a dummy of the SDK has reached %s: %s", got.Target, text)
		}
		if strings.HasPrefix(got.Target, "/v1/oauth/") {
			continue
		}
		targets = append(targets, got.Method+" "+got.Target)
		for _, name := range []string{"X-App-Id", "X-App-Token"} {
			if values := got.Header.Values(name); len(values) > 0 {
				t.Errorf("%s has reached %s: %q", name, got.Target, values)
			}
		}
		if values := got.Header.Values("Authorization"); len(values) != 1 || !strings.HasPrefix(values[0], "Bearer ") {
			t.Errorf("Authorization is %q at %s, want one token", values, got.Target)
		}
		if channel := got.Header.Get("X-Voucherify-Channel"); !strings.Contains(channel, "SDK-v2.") {
			t.Errorf("X-Voucherify-Channel is %q at %s, want that of the SDK", channel, got.Target)
		}
	}
	egresstest.CheckLines(t, "the API's requests", targets, []string{
		"GET /v1/vouchers?limit=2",
		"GET /v1/vouchers/BLCKFRDY",
		"GET /v1/vouchers/a%2Fb%20c",
		"POST /v1/validations",
		"POST /v1/vouchers/a%2Fb%20c/validate",
		"POST /v1/redemptions",
		"POST /v1/vouchers/a%2Fb%20c/redemption",
		"GET /v1/vouchers/MISSING",
	})
	if stats := voucherify.Stats(); stats.TokenRequests != 1 || stats.Unauthorized != 0 {
		t.Errorf("the API counted %+v, want one token request and no 401", stats)
	}
}

func TestVoucherifySDKDecodesTheGatewaysAnswers(t *testing.T) {
	node := sdkNode(t)
	voucherify, _, g := startSDKGateway(t, sandbox.Faults{Token: sandbox.Fault{Status: http.StatusServiceUnavailable}})

	calls := sdkCalls(t, node, g)
	if len(calls) == 0 {
		t.Error("the SDK has called nothing")
	}
	for _, call := range calls {
		if e := call.Error; e.Code != 503 || e.Key != "token_unavailable" || !strings.HasPrefix(e.Message, "no token for credential ") {
			t.Errorf("the SDK made %s, want the gateway's 503 token_unavailable", call.line)
		}
	}
	if got := voucherify.Stats().APIRequests; got != 0 {
		t.Errorf("%d requests have gone out without a token", got)
	}
}

// startSDKGateway starts an imitation of Voucherify's API, what records its
// requests, and a gateway to it.
func startSDKGateway(t *testing.T, faults sandbox.Faults) (*sandbox.Server, *egresstest.Recorder, *egresstest.Gateway) {
	t.Helper()
	voucherify, _ := egresstest.NewSandbox(t, "voucherify")
	if err := voucherify.SetFaults(faults); err != nil {
		t.Fatal(err)
	}
	api := egresstest.NewRecorder(t)
	api.Handler = voucherify.ServeHTTP
	g := egresstest.StartGateway(t, `egress voucherify `+api.URL+` {
		app_id    id
		app_token {env.EGRESS_TEST_SECRET}
		scopes    api
	}`)
	return voucherify, api, g
}

// sdkNode returns the path of Node.js, if that and the SDK are there. If not,
// it skips the test, or fails it where EGRESS_REQUIRE_SDK=1.
func sdkNode(t *testing.T) string {
	t.Helper()
	node, err := exec.LookPath("node")
	if err == nil {
		_, err = os.Stat(filepath.Join(sdkDir, "node_modules", "@voucherify", "sdk", "package.json"))
	}
	if err != nil {
		reason := fmt.Sprintf("the Voucherify SDK is not installed: %v; install Node.js and run: npm ci --prefix %s", err, sdkDir)
		if os.Getenv("EGRESS_REQUIRE_SDK") == "1" {
			t.Fatal(reason)
		}
		t.Skip(reason)
	}
	return node
}

// sdkCall is what the script prints of a call.
type sdkCall struct {
	Error struct {
		Code    int
		Key     string
		Message string
	}
	line string
}

// sdkCalls runs the script against g in a process that knows no secret of the API's.
// It may be given the name and the key of a caller.
func sdkCalls(t *testing.T, node string, g *egresstest.Gateway, caller ...string) []sdkCall {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, node, append([]string{"calls.mjs", g.URL}, caller...)...)
	cmd.Dir = sdkDir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")} // and no HTTP_PROXY
	cmd.WaitDelay = 5 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.Output()
	if err != nil {
		t.Fatalf("the script ended with %v (%v):\n%s%s", err, ctx.Err(), stdout, &stderr)
	}
	var calls []sdkCall
	for line := range strings.Lines(string(stdout)) {
		call := sdkCall{line: strings.TrimSpace(line)}
		if err := json.Unmarshal([]byte(line), &call); err != nil {
			t.Fatalf("the script printed %q: %v", line, err)
		}
		calls = append(calls, call)
	}
	return calls
}
