package egress

import (
	"testing"
	"time"
)

// What was answered to a token that is gone is no problem of what comes after it.
func TestRejectedRequestsAreAProblemOfTheTokenInUse(t *testing.T) {
	now := time.Now()
	live := func(issued time.Time) CredentialStatus {
		return CredentialStatus{Credential: "promo", State: "stale", Issued: issued, Expires: now.Add(time.Hour)}
	}
	failed := &CredentialError{Message: "token endpoint answered 503 Service Unavailable", Class: "transient", Since: now}
	with := func(c CredentialStatus, e *CredentialError, rejected bool) CredentialStatus {
		c.LastError, c.Rejected = e, rejected
		return c
	}
	for name, c := range map[string]struct {
		status CredentialStatus
		want   []string
	}{
		"in use":                 {live(now.Add(-time.Hour)), []string{"the API has rejected the last 3 requests"}},
		"later":                  {live(now.Add(time.Hour)), nil},
		"idle":                   {CredentialStatus{Credential: "promo", State: "idle"}, nil},
		"rejected":               {with(live(now.Add(-time.Hour)), failed, true), []string{"the API rejects the token, and no other can be had"}},
		"rejected before":        {with(live(now.Add(time.Hour)), failed, true), []string{"no fresh token"}},
		"rejected, then expired": {with(CredentialStatus{Credential: "promo", State: "expired"}, failed, false), []string{"no token"}},
	} {
		var api apiHealth
		for range longStreak {
			api.answered(true)
		}
		report := credentialReport{CredentialStatus: c.status}
		var got []string
		for _, p := range report.problems(&api, now) {
			got = append(got, p.Problem)
		}
		if len(got) != len(c.want) || len(got) > 0 && got[0] != c.want[0] {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}
