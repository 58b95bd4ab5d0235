package egress

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func TestParseClients(t *testing.T) {
	for _, test := range []struct {
		values []string
		any    bool
		unix   bool
		ranges []string
	}{
		{nil, false, true, []string{"127.0.0.0/8", "::1/128"}},
		{[]string{}, false, false, nil},
		{[]string{"any"}, true, false, nil},
		{[]string{"unix", "10.0.0.1"}, false, true, []string{"10.0.0.1/32"}},
		{[]string{"2001:db8::1"}, false, false, []string{"2001:db8::1/128"}},
		{[]string{"2001:db8::1/32"}, false, false, []string{"2001:db8::/32"}},
		{[]string{"2001:db8:1:2::/96"}, false, false, []string{"2001:db8:1:2::/96"}},
		{[]string{"10.20.4.7/24"}, false, false, []string{"10.20.4.0/24"}},
		{[]string{"::ffff:10.0.0.1"}, false, false, []string{"10.0.0.1/32"}},
		{[]string{"::ffff:10.0.0.0/104"}, false, false, []string{"10.0.0.0/8"}},
		{[]string{"::ffff:0.0.0.0/96"}, false, false, []string{"0.0.0.0/0"}},
		{[]string{"::ffff:0.0.0.0/95"}, false, false, []string{"::fffe:0:0/95"}}, // more than IPv4
	} {
		got, err := parseClients(test.values)
		var want []netip.Prefix
		for _, r := range test.ranges {
			want = append(want, netip.MustParsePrefix(r))
		}
		if err != nil || got.any != test.any || got.unix != test.unix || !slices.Equal(got.ranges, want) {
			t.Errorf("%q: got %+v, %v", test.values, got, err)
		}
	}
}

// A route that sets an option has its own, and one that does not the app's.
func TestRouteOptionsDefaults(t *testing.T) {
	full := func(size int64, name string, flag bool) RouteOptions {
		return RouteOptions{
			ReplayBuffer: &size, Replay: name, Clients: []string{name}, Hosts: []string{name}, Origins: []string{name},
			Allow: []Operation{{Methods: []string{name}}}, APIHosts: []string{name}, AllowHTTP: flag, RespectRateLimit: RateLimitMax(size + 1),
		}
	}
	route, app := full(0, "route", false), full(2, "app", false)
	for field, value := range reflect.ValueOf(full(1, "x", true)).Fields() {
		if value.IsZero() {
			t.Fatalf("the test does not set %s", field.Name)
		}
	}
	if got := route.withDefaults(app); !reflect.DeepEqual(got, route) {
		t.Errorf("a route with all: got %+v", got)
	}
	if got := (RouteOptions{}).withDefaults(app); !reflect.DeepEqual(got, app) {
		t.Errorf("a route with none: got %+v", got)
	}
	if got := (RouteOptions{}).withDefaults(full(2, "app", true)); !got.AllowHTTP {
		t.Errorf("flags of the app: got %+v", got)
	}
	if got := full(0, "route", true).withDefaults(app); !got.AllowHTTP {
		t.Errorf("flags of the route: got %+v", got)
	}
	// matchers are provisioned in place
	if got := (RouteOptions{}).withDefaults(app); &got.Allow[0] == &app.Allow[0] {
		t.Error("two routes share the app's operations")
	}
	empty := RouteOptions{Clients: []string{}}
	if got := empty.withDefaults(app); len(got.Clients) != 0 {
		t.Errorf("an empty list counts as set: got %v", got.Clients)
	}
}

func TestReplayBufferOption(t *testing.T) {
	if got := (RouteOptions{}).replayBuffer(); got != 1<<20 {
		t.Errorf("default: got %d", got)
	}
	for size, valid := range map[int64]bool{-1: false, 0: true, 7: true} {
		o := RouteOptions{ReplayBuffer: &size}
		if err := o.validate(); (err == nil) != valid || valid && o.replayBuffer() != size {
			t.Errorf("%d: got %d, %v", size, o.replayBuffer(), err)
		}
	}
}

func TestRouteOptionsThatAreRight(t *testing.T) {
	for _, o := range []RouteOptions{
		{Hosts: []string{"any", "promo.internal", "10.0.0.1", "::1", "2001:db8::1"}},
		{Origins: []string{"https://app.example.com", "http://localhost:3000", "https://[::1]:8443"}},
		{APIHosts: []string{"api.example.com", "api.example.com:8443", "[::1]:1", "unix//run/api.sock"}},
		{Allow: []Operation{{Paths: caddyhttp.MatchPath{"/v1/*", "*.csv"}}, {Methods: []string{"GET", "M-SEARCH"}, Paths: caddyhttp.MatchPath{"/"}}}},
	} {
		if err := o.validate(); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func TestReplays(t *testing.T) {
	for option, want := range map[string]string{
		"":           "GET HEAD PUT DELETE OPTIONS TRACE POST PATCH LINK",
		"all":        "GET HEAD PUT DELETE OPTIONS TRACE POST PATCH LINK",
		"idempotent": "GET HEAD PUT DELETE OPTIONS TRACE",
		"off":        "",
	} {
		var got []string
		for _, method := range []string{"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "POST", "PATCH", "LINK"} {
			if (RouteOptions{Replay: option}).replays(method) {
				got = append(got, method)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("replay %s: replays %v, want %s", option, got, want)
		}
	}
	if (RouteOptions{Replay: "idempotent"}).replays("get") { // methods are case-sensitive
		t.Error("get is taken for GET")
	}
}
