package egress

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

func TestRateLimitOfTheAPI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, l := newCredentialMetrics(t.Name(), "test", false), newRateLimit()
		limited := func(api tokenprovider.API, header ...string) {
			l.answered(status(http.StatusTooManyRequests, header...), api, m)
		}
		if got := l.limitedFor(0); got != 0 {
			t.Errorf("limited for %v from the start", got)
		}
		l.answered(status(http.StatusOK, "Retry-After", "100"), tokenprovider.API{}, m)
		if got := l.limitedFor(0); got != 0 {
			t.Errorf("a success limits for %v", got)
		}
		limited(tokenprovider.API{}) // does not say how long
		if got := l.limitedFor(0); got != 0 {
			t.Errorf("limited for %v", got)
		}
		limited(tokenprovider.API{RateLimitWait: time.Minute})
		if got := l.limitedFor(0); got != time.Minute {
			t.Errorf("limited for %v, want the API's 1m", got)
		}
		limited(tokenprovider.API{RateLimitWait: time.Minute}, "Retry-After", "30") // less than before
		if got := l.limitedFor(0); got != time.Minute {
			t.Errorf("limited for %v, want 1m still", got)
		}
		limited(tokenprovider.API{RateLimitWait: time.Minute}, "Retry-After", "90")
		if got := l.limitedFor(0); got != 90*time.Second {
			t.Errorf("limited for %v, want 90s", got)
		}
		time.Sleep(89 * time.Second)
		if got := l.limitedFor(0); got != time.Second {
			t.Errorf("limited for %v, want 1s", got)
		}
		time.Sleep(2 * time.Second)
		if got := l.limitedFor(0); got != 0 {
			t.Errorf("limited for %v after the time", got)
		}
		if got := total(t, rateLimitedTotal, t.Name()); got != 4 {
			t.Errorf("counted %v, want 4", got)
		}
	})
}

func TestCallsThatAreLeft(t *testing.T) {
	m, l := newCredentialMetrics(t.Name(), "test", false), newRateLimit()
	api := tokenprovider.API{RemainingHeaders: []string{"X-First", "X-Second"}}
	for _, test := range []struct {
		header []string
		want   int64
	}{
		{nil, -1},
		{[]string{"X-First", "none"}, -1},
		{[]string{"X-First", "-1"}, -1},
		{[]string{"X-Second", "7"}, 7},
		{[]string{"X-First", "5", "X-Second", "6"}, 5},
		{[]string{"X-First", "x", "X-Second", "6"}, 5}, // the first one that is there counts
		{[]string{"X-First", "0"}, 0},
	} {
		l.answered(status(http.StatusOK, test.header...), api, m)
		if got := l.remaining.Load(); got != test.want {
			t.Errorf("after %v: %d, want %d", test.header, got, test.want)
		}
	}
}

// One answer counts for most at most, the next one again.
func TestRateLimitCountsForMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newRateLimit()
		check := func(most, want time.Duration) {
			t.Helper()
			if got := l.limitedFor(most); got != want {
				t.Errorf("limited for %v at most: %v, want %v", most, got, want)
			}
		}
		check(time.Minute, 0)
		l.limit(time.Now(), 5*time.Minute)
		check(time.Minute, time.Minute)
		check(2*time.Minute, 2*time.Minute)
		check(10*time.Minute, 5*time.Minute)
		check(0, 5*time.Minute)
		time.Sleep(time.Minute)
		check(time.Minute, 0)
		check(2*time.Minute, time.Minute)
		check(0, 4*time.Minute)
		l.limit(time.Now(), 30*time.Second) // to the request that went through
		check(time.Minute, time.Minute)     // of the 4 that it asked for before
		check(0, 4*time.Minute)
		time.Sleep(3*time.Minute + 30*time.Second)
		l.limit(time.Now(), 20*time.Second)
		check(time.Minute, 30*time.Second)
		time.Sleep(30 * time.Second)
		check(time.Minute, 0)
		check(0, 0)
	})
}

// A clock that is set back does not prolong a limit.
func TestRateLimitWhenTheClockIsSetBack(t *testing.T) {
	now := time.Now()
	later := func(d time.Duration) time.Time { return setBack(t, now.Add(d), time.Hour) }

	limited := timeLimit{since: now, until: now.Add(5 * time.Minute)}
	for _, test := range []struct{ after, most, want time.Duration }{
		{0, 0, 5 * time.Minute},
		{0, time.Minute, time.Minute},
		{59 * time.Second, time.Minute, time.Second},
		{time.Minute, time.Minute, 0},
		{5 * time.Minute, 0, 0},
	} {
		if got := limited.left(later(test.after), test.most); got != test.want {
			t.Errorf("%v after a 429, %v at most: %v are left, want %v", test.after, test.most, got, test.want)
		}
	}
}

func TestRateLimitMaxInJSON(t *testing.T) {
	for text, want := range map[string]struct {
		max  time.Duration
		back string
	}{
		`true`:         {time.Minute, `true`},
		`false`:        {0, ``},
		`"60s"`:        {time.Minute, `true`},
		`"5m"`:         {5 * time.Minute, `300000000000`},
		`300000000000`: {5 * time.Minute, `300000000000`},
		`0`:            {0, ``},
	} {
		var o RouteOptions
		if err := json.Unmarshal([]byte(`{"respect_rate_limit":`+text+`}`), &o); err != nil || time.Duration(o.RespectRateLimit) != want.max {
			t.Errorf("%s: %v, %v, want %v", text, time.Duration(o.RespectRateLimit), err, want.max)
		}
		back, err := json.Marshal(o)
		if wantJSON := strings.Replace(`{"respect_rate_limit":`+want.back+`}`, `"respect_rate_limit":}`, "}", 1); err != nil || string(back) != wantJSON {
			t.Errorf("%s becomes %s, %v, want %s", text, back, err, wantJSON)
		}
	}
	for _, text := range []string{`"long"`, `"true"`, `{}`, `[]`} {
		if err := json.Unmarshal([]byte(`{"respect_rate_limit":`+text+`}`), new(RouteOptions)); err == nil {
			t.Errorf("%s is taken", text)
		}
	}
	if err := (RouteOptions{RespectRateLimit: -1}).validate(); err == nil || err.Error() != "respect_rate_limit: must be above zero" {
		t.Errorf("a time below zero: %v", err)
	}
}
