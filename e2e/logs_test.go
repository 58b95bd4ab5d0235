package e2e_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

func TestRefusalsDoNotFloodTheLog(t *testing.T) {
	f := newManyCredentials(t)
	g := egresstest.StartWatched(t, f.routes, egresstest.WithGlobal(f.global))
	start := time.Now()
	const sent = 300
	for range sent {
		if resp, body := g.Get("/operation_not_allowed/v1/x"); resp.StatusCode != http.StatusForbidden {
			t.Fatalf("answered %d %s", resp.StatusCode, body)
		}
	}
	g.Get("/client_not_allowed/v1/x") // another kind is not hidden by that
	refused := func(outcome string) (lines []map[string]any) {
		for _, line := range g.LogLines("refused a request") {
			if line["outcome"] == outcome {
				lines = append(lines, line)
			}
		}
		return lines
	}
	if got, most := len(refused("operation_not_allowed")), 2+int(time.Since(start).Seconds()); got > most {
		t.Errorf("%d requests made %d lines, want at most %d", sent, got, most)
	}
	if got := refused("client_not_allowed"); len(got) != 1 || got[0]["credential"] != "client_not_allowed"+f.suffix || got[0]["left_out"] != nil {
		t.Errorf("logged %v, want one line", got)
	}

	// the next line that is logged says how many were left out
	total := sent
	egresstest.Eventually(t, "another line", func() bool {
		g.Get("/operation_not_allowed/v1/x")
		total++
		lines := refused("operation_not_allowed")
		shown := float64(len(lines))
		for _, line := range lines {
			n, _ := line["left_out"].(float64)
			shown += n
		}
		return len(lines) > 1 && shown == float64(total)
	})
	line := refused("operation_not_allowed")[0]
	if line["level"] != "warn" || line["logger"] != "http.reverse_proxy.transport.egress" || !strings.Contains(fmt.Sprint(line["reason"]), "allow") {
		t.Errorf("logged %v", line)
	}
}

// A client without a key that is refused all the time hides no other whose key, or
// certificate, does not count.
func TestRefusalsOfUnknownCallersAreTold(t *testing.T) {
	const key, wrong = "key-of-the-nightly-job-01", "key-of-nobody-at-all-0123"
	callers := "caller nightly {\n key " + key + "\n clients 192.0.2.1\n}\n"
	g := egresstest.StartGateway(t, "egress plain {\n grant *\n}",
		egresstest.WithCallers("egress {\n"+plainCredential(egresstest.NewRecorder(t).URL, egresstest.NewTokens(t).URL)+callers+"}"))
	start := time.Now()
	refused := func(headers ...string) {
		if resp, body := ask(g, http.MethodGet, "/v1/x", headers...); resp.StatusCode != http.StatusUnauthorized {
			t.Fatalf("answered %d %s", resp.StatusCode, body)
		}
	}
	for range 50 {
		refused()
		refused("X-Api-Key", wrong)
		refused("X-Api-Key", key)
	}
	reasons := make(map[string]int)
	for _, line := range g.LogLines("refused a request") {
		_, reason, _ := strings.Cut(fmt.Sprint(line["reason"]), "; ")
		reasons[reason]++
		if strings.Contains(fmt.Sprint(line), wrong) || strings.Contains(fmt.Sprint(line), key) {
			t.Errorf("a key is in %v", line)
		}
	}
	for _, reason := range []string{
		"it has no key", "what it has in X-Api-Key is not the key of a caller",
		"it has the key of nightly, but not the clients that nightly has to prove as well",
	} {
		if most := 2 + int(time.Since(start).Seconds()); reasons[reason] == 0 || reasons[reason] > most {
			t.Errorf("%q is logged %d times, want at most %d: %v", reason, reasons[reason], most, reasons)
		}
	}
	if len(reasons) != 3 {
		t.Errorf("logged %v", reasons)
	}
}

func TestLogOfAnOutage(t *testing.T) {
	f := newManyCredentials(t)
	g := egresstest.StartWatched(t, f.routes, egresstest.WithGlobal(f.global))
	f.warm(t)
	of := func(message string) []map[string]any {
		return slices.DeleteFunc(g.LogLines(message), func(line map[string]any) bool {
			return line["credential"] != "token_unavailable"+f.suffix
		})
	}
	const failed, again = "could not get a token; requests fail until one comes", "token endpoint issues tokens again"
	egresstest.Eventually(t, "the failure to be logged", func() bool {
		g.Get("/token_unavailable/v1/x")
		return len(of(failed)) > 0
	})
	for range 50 {
		g.Get("/token_unavailable/v1/x")
	}
	lines := of(failed)
	if len(lines) != 1 {
		t.Errorf("the outage is logged %d times, want once", len(lines))
	}
	for name, want := range map[string]any{"level": "error", "logger": "egress", "credential": "token_unavailable" + f.suffix, "provider": "oauth2", "status": 503.0, "error_code": ""} {
		if got := lines[0][name]; got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	for _, name := range []string{"advice", "attempt", "next_attempt", "trigger", "error"} {
		if lines[0][name] == nil || lines[0][name] == "" {
			t.Errorf("the line has no %s: %v", name, lines[0])
		}
	}

	f.tokens.Set(func(e *egresstest.Tokens) { e.Answer = nil })
	egresstest.Eventually(t, "the end of the outage to be logged", func() bool { return len(of(again)) > 0 })
	line := of(again)[0]
	if line["level"] != "info" || line["logger"] != "egress" || line["outage"] == nil || line["attempts"] == nil {
		t.Errorf("logged %v", line)
	}
}

func TestPlaceholdersAndAccessLog(t *testing.T) {
	f := newManyCredentials(t)
	const placeholders = "{http.reverse_proxy.egress.credential} {http.reverse_proxy.egress.outcome} {http.reverse_proxy.egress.replayed} {http.reverse_proxy.egress.token_wait}"
	routes := strings.ReplaceAll(f.routes, "header_up", `header_down X-Egress "`+placeholders+`"
		@unavailable status 503
		handle_response @unavailable {
			respond "sorry: {http.reverse_proxy.egress.outcome} of {http.reverse_proxy.egress.credential}" 503
		}
		header_up`)
	g := egresstest.StartWatched(t, "log_append waited {http.reverse_proxy.egress.token_wait}\n"+routes, egresstest.WithGlobal(f.global))
	f.warm(t)

	for path, want := range map[string]string{
		"/forwarded/v1/x":             "forwarded false 0s",
		"/replayed/v1/x":              "replayed true ", // it waited for the second token
		"/operation_not_allowed/v1/x": "operation_not_allowed false 0s",
		"/credential_refused/v1/x":    "credential_refused false ",
	} {
		name := strings.Split(path, "/")[1] + f.suffix
		resp, _ := g.Get(path)
		if got := resp.Header.Get("X-Egress"); !strings.HasPrefix(got, name+" "+want) {
			t.Errorf("%s: header_down sets %q, want %q", path, got, name+" "+want)
		}
		egresstest.Eventually(t, "the access log of "+path, func() bool {
			for _, line := range g.LogLines("handled request") {
				if line["egress_credential"] == name {
					if line["egress_outcome"] != strings.Fields(want)[0] || line["waited"] == nil {
						t.Errorf("%s: the access log says %v", path, line)
					}
					return true
				}
			}
			return false
		})
	}
	if resp, body := g.Get("/token_unavailable/v1/x"); resp.StatusCode != 503 || body != "sorry: token_unavailable of token_unavailable"+f.suffix {
		t.Errorf("handle_response answers %d %q", resp.StatusCode, body)
	}
}
