package egress

import (
	"maps"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// testdata/removed_headers.txt is the documented list: what it names does not
// reach the API. A name that goes from the code, or comes to it, has to do so
// there, too.
func TestRemovedHeadersAreThoseDocumented(t *testing.T) {
	text, err := os.ReadFile("testdata/removed_headers.txt")
	if err != nil {
		t.Fatal(err)
	}
	got := slices.Clone(removedHeaders)
	for _, family := range removedFamilies {
		got = append(got, family+"*")
	}
	slices.Sort(got)
	if want := strings.Fields(string(text)); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, name := range slices.Concat(removedHeaders, removedFamilies) {
		if name != http.CanonicalHeaderKey(name) {
			t.Errorf("%s is not canonical: it would never be found", name)
		}
	}
}

func TestWhatReachesTheAPI(t *testing.T) {
	api := tokenprovider.API{CredentialHeaders: []string{"X-App-Id", "X-App-Token"}}
	filter, err := newHeaderFilter(api, nil)
	if err != nil {
		t.Fatal(err)
	}
	names := slices.Concat(removedHeaders, api.CredentialHeaders)
	for _, family := range removedFamilies {
		names = append(names, family+"A", family)
	}
	for _, name := range names {
		for _, spelled := range []string{name, strings.ToLower(name), strings.ToUpper(name)} {
			header := http.Header{spelled: {"client's"}, "Accept": {"*/*"}}
			got := filter.outgoing(header, []string{"Bearer token"})
			if want := (http.Header{"Accept": {"*/*"}, "Authorization": {"Bearer token"}}); !reflect.DeepEqual(got, want) {
				t.Errorf("%s: got %v", spelled, got)
			}
			if len(header) != 2 {
				t.Errorf("%s: the client's headers have changed: %v", spelled, header)
			}
			for _, separator := range []string{"_", "."} {
				alias := strings.ReplaceAll(spelled, "-", separator)
				if got := filter.outgoing(http.Header{alias: {"client's"}}, nil); name != "Authorization" && len(got) != 1 {
					t.Errorf("%s: got %v", alias, got)
				}
			}
		}
	}

	passing := http.Header{
		"Accept": {"a", "b"}, "Accept-Language": {"da"}, "Content-Type": {"application/json"}, "Cookies": {"1"}, "Origin": {"https://x.example"},
		"X-Forward": {"1"}, "X-Real-Ips": {"1"}, "X_Request_Id": {"1"}, "X.Y_z": {"1"}, "X-Api-Keys": {"1"}, "X-Ssl": {"1"}, "X-Voucherify-Channel": {"1"}, "Traceparent": {"1"}, "Idempotency-Key": {"1"}, "Cf-Ray": {"1"}, "T": {"1"}, "": {"1"},
		"X-App-Ids": {"1"}, "Remote-Users": {"1"}, "Authorizations": {"1"}, "Sec-WebSocket-Key": {"1"},
	}
	want := maps.Clone(passing)
	want["Authorization"] = []string{"Bearer token"}
	if got := filter.outgoing(passing, []string{"Bearer token"}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := filter.outgoing(nil, []string{"Bearer token"}); !reflect.DeepEqual(got, http.Header{"Authorization": {"Bearer token"}}) {
		t.Errorf("without headers: %v", got)
	}
}

func TestUserAgentWhereTheClientSentNone(t *testing.T) {
	filter, err := newHeaderFilter(tokenprovider.API{UserAgent: "My-Company/App"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for sent, want := range map[string]string{"": "My-Company/App", "curl/8": "curl/8"} {
		if got := filter.outgoing(http.Header{"User-Agent": {sent}}, nil).Get("User-Agent"); got != want {
			t.Errorf("%q becomes %q", sent, got)
		}
	}
	if got := filter.outgoing(nil, nil).Get("User-Agent"); got != "My-Company/App" {
		t.Errorf("none becomes %q", got)
	}
	none := headerFilter{}
	if got, ok := none.outgoing(http.Header{"User-Agent": {""}}, nil)["User-Agent"]; !ok || got[0] != "" {
		t.Errorf("without a product of ours, none becomes %q", got) // net/http would send its own
	}
}

func TestTrailersThatReachTheAPI(t *testing.T) {
	got := http.Header{
		"Content-Digest": {"1"}, "Repr-Digest": {"1"}, "digest": {"1"}, "Content-MD5": {"1"}, "X-Checksum": {"1"}, "X-Checksum-Sha256": {"1"}, "x-amz-checksum-crc32": {"1"},
	}
	want := maps.Clone(got)
	for _, name := range []string{"Authorization", "Cookie", "X-Forwarded-For", "X_Forwarded_For", "X-Real-Ip", "X-App-Token", "X-Trace", "X-Checksums", "Content-Type", "Digests", "X-Amz", "X-Amz-Security-Token", "Server-Timing", ""} {
		got[name] = []string{"1"}
	}
	if stripTrailers(got); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	stripTrailers(nil)
}

// An offer to upgrade to anything but a websocket is left out.
func TestOffersToUpgrade(t *testing.T) {
	for _, test := range []struct{ sent, want http.Header }{
		{http.Header{"Upgrade": {"websocket"}, "Connection": {"Upgrade"}}, http.Header{"Upgrade": {"websocket"}, "Connection": {"Upgrade"}}},
		{http.Header{"Upgrade": {"WebSocket"}, "Connection": {"Upgrade"}}, http.Header{"Upgrade": {"WebSocket"}, "Connection": {"Upgrade"}}},
		{http.Header{"Upgrade": {"h2c"}, "Connection": {"Upgrade"}, "Http2-Settings": {"AAMAAABk"}}, http.Header{}},
		{http.Header{"Upgrade": {"h2c, websocket"}, "Connection": {"Upgrade"}}, http.Header{}},
		{http.Header{"Upgrade": {"websocket", "h2c"}, "Connection": {"Upgrade"}}, http.Header{}},
		{http.Header{"Upgrade": {"TLS/1.2"}, "Connection": {"Keep-Alive, upgrade", "HTTP2-Settings, X-A"}}, http.Header{"Connection": {"Keep-Alive", "X-A"}}},
		{http.Header{"Upgrade": {""}, "Connection": {"Upgrade"}}, http.Header{}},
		{http.Header{"Upgrade": {}}, http.Header{}},
	} {
		test.want["Authorization"] = nil
		if got := new(headerFilter).outgoing(test.sent, nil); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%v: got %v, want %v", test.sent, got, test.want)
		}
	}
}

func TestKeepHeaders(t *testing.T) {
	filter, err := newHeaderFilter(tokenprovider.API{CredentialHeaders: []string{"X-App-Id"}}, []string{"x-real-ip", "Host", "X-App-Id"})
	if err != nil {
		t.Fatal(err)
	}
	got := filter.outgoing(http.Header{"X-Real-Ip": {"1"}, "x-app-id": {"2"}, "Cookie": {"3"}}, nil)
	if want := (http.Header{"X-Real-Ip": {"1"}, "x-app-id": {"2"}, "Authorization": nil}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	// they are header_up's: the client's own are removed before it
	ops := filter.ops("api.example.com")
	if want := (&headers.HeaderOps{Set: http.Header{"Host": {"api.example.com"}}, Delete: []string{"X-Real-Ip", "X-App-Id"}}); !reflect.DeepEqual(ops, want) {
		t.Errorf("operations %+v, want %+v", ops, want)
	}
	if !filter.keepsHost() || new(headerFilter).keepsHost() || new(headerFilter).ops("x") != nil {
		t.Error("Host is not kept, or is without being named")
	}

	for _, name := range []string{"Authorization", "authorization", "X-Forwarded-For", "x-auth-request-user", "X_Forwarded_For", "", "a b", "X-*", "X-Source"} {
		if _, err := newHeaderFilter(tokenprovider.API{}, []string{name}); err == nil || !strings.HasPrefix(err.Error(), "keep_headers: ") {
			t.Errorf("%q: got %v", name, err)
		}
	}
}

func TestHeadersSetByHeaderUp(t *testing.T) {
	kept, lost := headersSetBy(&headers.HeaderOps{
		Set:     http.Header{"Host": {"x"}, "X-Source": {"cron"}, "Cookie": {"a"}, "authorization": {"x"}},
		Add:     http.Header{"Cookie": {"b"}, "x-forwarded-for": {"1"}, "X_Real_Ip": {"1"}, "x_forwarded_for": {"1"}},
		Replace: map[string][]headers.Replacement{"X-App-Token": nil, "x_token": nil},
		Delete:  []string{"Via"},
	}, tokenprovider.API{CredentialHeaders: []string{"X-App-Token"}, TokenHeader: "X-Token"})
	if want := []string{"Cookie", "Host", "X-App-Token", "X_real_ip"}; !slices.Equal(kept, want) {
		t.Errorf("kept %v, want %v", kept, want)
	}
	if want := []string{"Authorization", "X-Forwarded-For", "X_forwarded_for", "X_token"}; !slices.Equal(lost, want) {
		t.Errorf("lost %v, want %v", lost, want)
	}
	if kept, lost := headersSetBy(nil, tokenprovider.API{}); kept != nil || lost != nil {
		t.Errorf("without header_up: %v, %v", kept, lost)
	}
}

// Where the API wants the token in another header, that one and Authorization are
// nobody else's.
func TestTokenHeader(t *testing.T) {
	api := tokenprovider.API{TokenHeader: "X-Token", TokenPrefix: "Key "}
	filter, err := newHeaderFilter(api, []string{"Cookie"})
	if err != nil {
		t.Fatal(err)
	}
	client := http.Header{"Authorization": {"1"}, "X-Token": {"2"}, "x-token": {"3"}, "X_token": {"4"}, "X.Token": {"5"}, "Accept": {"a"}}
	want := http.Header{"X-Token": {"Key t"}, "Accept": {"a"}}
	if got := filter.outgoing(client, []string{"Key t"}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, name := range []string{"x-token", "X_Token"} {
		if _, err := newHeaderFilter(api, []string{name}); err == nil || !strings.Contains(err.Error(), "cannot be kept") {
			t.Errorf("keep_headers %s: %v", name, err)
		}
	}
}
