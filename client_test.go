package egress

import (
	"net/http"
	"testing"
)

func TestClientOf(t *testing.T) {
	for remote, want := range map[string]string{
		"10.1.2.3:4711":                        "10.1.2.3",
		"10.1.2.3:4712":                        "10.1.2.3",
		"[::ffff:10.1.2.3]:4711":               "10.1.2.3",
		"[2001:db8:1:2:3:4:5:6]:4711":          "2001:db8:1:2::",
		"[2001:db8:1:2:ffff:ffff:ffff:1]:4711": "2001:db8:1:2::",
		"[fe80::1%eth0]:4711":                  "fe80::",
		"@":                                    "unix",
		"":                                     "unix",
	} {
		if got := clientOf(&http.Request{RemoteAddr: remote}); got != want {
			t.Errorf("clientOf(%q) = %q, want %q", remote, got, want)
		}
	}
}
