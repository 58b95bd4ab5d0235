package egress

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// Whatever is in a report is text.
func TestStatusPageEscapes(t *testing.T) {
	const hostile = `</code></script><script>alert(1)</script>"'><img src=x onerror=alert(2)>{{.}}javascript:x`
	now := time.Now()
	credential := credentialReport{
		CredentialStatus: CredentialStatus{
			Credential: hostile, Provider: hostile, State: hostile, TokenFrom: hostile, SecretInUse: 1, SecretValues: 2,
			LastError: &CredentialError{Message: hostile, Advice: hostile},
		},
		Health: hostile, Requests: requestCount{Total: 1, Others: map[string]int64{hostile: 1}},
	}
	report := &statusReport{
		Time: now, Version: hostile, CaddyVersion: hostile, Health: hostile, Summary: hostile, Store: &StoreStatus{Storage: hostile, State: hostile},
		Problems: []problemReport{{Health: hostile, Subject: hostile, Problem: hostile, Error: hostile, Effect: hostile, Advice: hostile, Commands: []string{hostile}, Since: now, Attempts: 2}},
		Groups: []credentialGroup{
			{Shown: []credentialReport{credential}, Rotated: true},
			{Family: hostile, Provider: hostile, Total: 1, Shown: []credentialReport{credential}, Requests: credential.Requests},
		},
		Callers: []callerReport{{hostile, credential.Requests}},
	}
	var page strings.Builder
	if err := statusTemplate.Execute(&page, report); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(page.String(), "alert(2)"); n < 20 {
		t.Errorf("the page shows what is hostile only %d times", n)
	}
	for _, part := range []string{"<script", "<img", `"'>`, "onerror=alert(2)>"} {
		if n := strings.Count(page.String(), part); n != map[string]int{"<script": 1}[part] {
			t.Errorf("the page has %q %d times", part, n)
		}
	}
}

// The worst are shown, in the order of their names.
func TestStatusReportIsBounded(t *testing.T) {
	var group credentialGroup
	for n := range 150 {
		c := credentialReport{Health: healthOK}
		c.Credential = fmt.Sprintf("c%03d", n)
		switch n % 50 {
		case 0:
			c.Health = healthFailing
		case 49:
			c.Health = healthWarning
		}
		group.Shown = append(group.Shown, c)
	}
	if got := group.worst(); got != healthFailing {
		t.Errorf("the group is %s", got)
	}
	shown, leftOut := group.bounded(10)
	var names []string
	for _, c := range shown {
		names = append(names, c.Credential)
	}
	if got, want := strings.Join(names, " "), "c000 c001 c002 c003 c004 c049 c050 c099 c100 c149"; got != want || leftOut != 140 {
		t.Errorf("%s are shown, %d are left out; want %s", got, leftOut, want)
	}
	if shown, leftOut := group.bounded(len(group.Shown)); len(shown) != len(group.Shown) || leftOut != 0 {
		t.Errorf("%d are left out of as many as may be shown", leftOut)
	}
}

func TestStatusPageTimesAndNumbers(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 400 * time.Millisecond: "0s", 59*time.Second + 600*time.Millisecond: "1m 0s", 90 * time.Second: "1m 30s",
		time.Hour: "1h 0m", 26 * time.Hour: "1d 2h", 1000 * 24 * time.Hour: "1000d 0h",
	} {
		if got := span(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1 000", 1234567: "1 234 567", -1000: "-1 000", -100: "-100"} {
		if got := strings.ReplaceAll(number(n), "\u202f", " "); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	for at, want := range map[time.Time]string{now: "03:04:05", now.Add(-4 * time.Hour): "2026-01-01 23:04:05", now.AddDate(1, 0, 0): "2027-01-02 03:04:05"} {
		if got := clock(at, now); got != want {
			t.Errorf("%v is %q, want %q", at, got, want)
		}
	}
}
