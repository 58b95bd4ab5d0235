package egresstest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	egress "github.com/caddy-egress/caddy-egress"
)

// Admin is the address of an admin API.
type Admin string

// NewAdmin returns the address of an admin API, and the global option for it.
// It stands after the one of [StartGateway], and takes its place.
func NewAdmin(t *testing.T) (admin Admin, option string) {
	t.Helper()
	addr := FreeAddr(t)
	return Admin(addr), "admin " + addr + "\n"
}

// Ask sends a request to the admin API. What comes back is searched for leaks.
func (a Admin) Ask(t *testing.T, method, path string) (*http.Response, string) {
	t.Helper()
	AwaitReload(t, string(a)) // the old admin API would reset connections
	resp, body, err := a.Try(method, path)
	if err != nil {
		t.Fatal(err)
	}
	CheckLeaks(t, method+" "+path, body)
	return resp, body
}

// Try is [Admin.Ask] where the API may not be there.
func (a Admin) Try(method, path string) (*http.Response, string, error) {
	req, err := http.NewRequest(method, "http://"+string(a)+path, nil)
	if err != nil {
		return nil, "", err
	}
	req.Close = true // reloads replace the server
	req.Header.Set("Origin", "http://"+string(a))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

// Status returns the status of a credential.
func (a Admin) Status(t *testing.T, credential string) (status egress.CredentialStatus) {
	t.Helper()
	resp, body := a.Ask(t, http.MethodGet, "/egress/tokens/"+credential)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("status of %s: %d %s", credential, resp.StatusCode, body)
	}
	if err := json.Unmarshal([]byte(body), &status); err != nil {
		t.Fatal(err)
	}
	return status
}

// StatusBetweenRequests returns the status of a credential while no token request is
// under way. A token that the server has issued is in it: the gateway may not have read
// that answer yet when the server has counted it.
func (a Admin) StatusBetweenRequests(t *testing.T, credential string) (status egress.CredentialStatus) {
	t.Helper()
	Eventually(t, "the time between two token requests", func() bool {
		status = a.Status(t, credential)
		return status.State != "refreshing"
	})
	return status
}

// Series are metrics of caddy-egress: name{labels} to value.
type Series map[string]float64

var (
	metricLine = regexp.MustCompile(`^(caddy_egress_[a-z_]+)\{(.*)\} (\S+)$`)

	// LabelPair matches one label in a key of [Series]: its name and its value.
	LabelPair = regexp.MustCompile(`([a-z_]+)="([^"]*)"`)
)

// Metrics returns what Caddy's own endpoint shows of the credentials whose names
// end in suffix, under their names without it. Buckets of histograms are left out.
func (a Admin) Metrics(t *testing.T, suffix string) Series {
	t.Helper()
	resp, body := a.Ask(t, http.MethodGet, "/metrics")
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("/metrics: %d %s", resp.StatusCode, body)
	}
	all := make(Series)
	for line := range strings.Lines(body) {
		if !strings.Contains(line, suffix+`"`) {
			continue // of another test in the process
		}
		line = strings.ReplaceAll(line, suffix+`"`, `"`)
		match := metricLine.FindStringSubmatch(strings.TrimSpace(line))
		if match == nil || strings.HasSuffix(match[1], "_bucket") {
			continue
		}
		value, err := strconv.ParseFloat(match[3], 64)
		if err != nil {
			t.Fatal(err)
		}
		key := match[1] + "{" + match[2] + "}"
		if _, ok := all[key]; ok {
			t.Errorf("%s is there twice", key)
		}
		all[key] = value
	}
	return all
}

// Of returns the value of a metric, by name without prefix, credential of the
// oauth2 provider, and further labels as [Label] returns them.
func (s Series) Of(name, credential string, labels ...string) (float64, bool) {
	labels = append(labels, Label("credential", credential), Label("provider", "oauth2"))
	slices.Sort(labels)
	value, ok := s["caddy_egress_"+name+"{"+strings.Join(labels, ",")+"}"]
	return value, ok
}

// Sum returns the sum of a metric of a credential over all other labels.
func (s Series) Sum(name, credential string) (sum float64) {
	for key, value := range s {
		if strings.HasPrefix(key, "caddy_egress_"+name+"{") && strings.Contains(key, Label("credential", credential)) {
			sum += value
		}
	}
	return sum
}

// Label returns a label as the metrics have it.
func Label(name, value string) string { return fmt.Sprintf("%s=%q", name, value) }
