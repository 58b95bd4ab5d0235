package egress

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap/zapcore"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokenprovider/understory"
	"github.com/caddy-egress/caddy-egress/tokenprovider/voucherify"
)

func TestGrantWarnings(t *testing.T) {
	const (
		noEffect  = "a grant has no effect: earlier ones name all of its callers; merge them, or put it first"
		partly    = "a grant has no effect for callers that an earlier one names; merge the two, or put it first"
		endpoint  = "a grant allows a credential endpoint of the API, which is refused all the same; remove it"
		notInAll  = "a grant allows an operation that allow of the route does not permit; add it there, or remove it here"
		outOfSco  = "a grant allows an operation that its scopes do not reach; add one that it needs, or remove the operation"
		nothingIn = "the scopes of a grant reach no operation that the route permits; add one that is needed"
	)
	voucherifyAPI := new(voucherify.Provider).API()
	understoryAPI := new(understory.Provider).API()
	to := func(callers string) Grant { return Grant{Callers: strings.Fields(callers)} }
	with := func(scopes string, allow ...string) Grant {
		g := Grant{Callers: []string{"a"}, Scopes: strings.Fields(scopes), Allow: parseOperations(allow)}
		if len(g.Scopes) == 0 {
			g.Scopes = nil
		}
		return g
	}
	for name, test := range map[string]struct {
		grants []Grant
		allow  []string
		api    tokenprovider.API
		scopes string
		want   []string
	}{
		"callers apart":        {grants: []Grant{to("a"), to("b c"), to("*")}},
		"any but some":         {grants: []Grant{to("a"), to("*")}},
		"named again":          {grants: []Grant{to("a b"), to("c"), to("b")}, want: []string{noEffect + " grant=[b]"}},
		"named by several":     {grants: []Grant{to("a"), to("b"), to("b a")}, want: []string{noEffect + " grant=[b a]"}},
		"after any":            {grants: []Grant{to("*"), to("a"), to("*")}, want: []string{noEffect + " grant=[a]", noEffect + " grant=[*]"}},
		"named again in part":  {grants: []Grant{to("a"), to("b a c")}, want: []string{partly + " grant=[b a c] callers=[a]"}},
		"nothing twice":        {grants: []Grant{to("a"), {Callers: []string{"a"}, Allow: parseOperations([]string{"/v1/oauth/token"})}}, api: voucherifyAPI, want: []string{noEffect + " grant=[a]"}},
		"scope that reaches":   {grants: []Grant{with("vouchers", "GET /v1/vouchers/*", "/v1/vouchers")}, api: voucherifyAPI},
		"api reaches":          {grants: []Grant{with("api", "GET /v1/vouchers/*")}, api: voucherifyAPI},
		"api of the route":     {grants: []Grant{with("", "GET /v1/vouchers/*")}, api: voucherifyAPI, scopes: "api"},
		"upper case":           {grants: []Grant{with("campaigns", "GET /V1/Vouchers/*")}, api: voucherifyAPI, want: []string{outOfSco + " grant=[a] operation=GET /V1/Vouchers/* scopes=[campaigns] needs_one_of=[api vouchers]"}},
		"scope of the route":   {grants: []Grant{with("", "GET /v1/vouchers")}, api: voucherifyAPI, scopes: "campaigns", want: []string{outOfSco + " grant=[a] operation=GET /v1/vouchers scopes=[campaigns] needs_one_of=[api vouchers]"}},
		"own scope counts":     {grants: []Grant{with("vouchers", "GET /v1/vouchers")}, api: voucherifyAPI, scopes: "campaigns"},
		"one path of two":      {grants: []Grant{with("vouchers", "/v1/vouchers /v1/campaigns/*")}, api: voucherifyAPI, want: []string{outOfSco + " grant=[a] operation=/v1/campaigns/* scopes=[vouchers] needs_one_of=[api campaigns]"}},
		"client side":          {grants: []Grant{with("api", "POST /client/v1/redeem")}, api: voucherifyAPI, want: []string{outOfSco + " grant=[a] operation=POST /client/v1/redeem scopes=[api] needs_one_of=[client_api client_redeem]"}},
		"Understory":           {grants: []Grant{with("event.read", "/v1/bookings/*", "GET /v1/events", "/v1/me")}, api: understoryAPI, want: []string{outOfSco + " grant=[a] operation=/v1/bookings/* scopes=[event.read] needs_one_of=[booking.read booking.write]"}},
		"segment that is open": {grants: []Grant{with("campaigns", "/v1/*", "/v1/vouchers*", "/v1/v*/x", "*", "*/x", "/v1/{x}/y", "/v1/[v]ouchers/*")}, api: voucherifyAPI},
		"below an open one":    {grants: []Grant{with("campaigns", "/v1/vouchers/*/balance")}, api: voucherifyAPI, want: []string{outOfSco + " grant=[a] operation=/v1/vouchers/*/balance scopes=[campaigns] needs_one_of=[api vouchers]"}},
		"scopes not known":     {grants: []Grant{with("campaigns", "/v1/nothing", "/v2/vouchers")}, api: voucherifyAPI},
		"no scopes":            {grants: []Grant{with("", "/v1/vouchers")}, api: voucherifyAPI},
		"API that says none":   {grants: []Grant{with("campaigns", "/v1/vouchers")}},
		"reaches nothing":      {grants: []Grant{with("campaigns")}, allow: []string{"/v1/vouchers", "/v1/products/*"}, api: voucherifyAPI, want: []string{nothingIn + " grant=[a] scopes=[campaigns] needs_one_of=[api products vouchers]"}},
		"reaches something":    {grants: []Grant{with("campaigns")}, allow: []string{"/v1/vouchers", "/v1/campaigns/*"}, api: voucherifyAPI},
		"own operations count": {grants: []Grant{with("campaigns", "/v1/campaigns")}, allow: []string{"/v1/vouchers"}, api: voucherifyAPI, want: []string{notInAll + " grant=[a] operation=/v1/campaigns"}},
		"may reach something":  {grants: []Grant{with("campaigns")}, allow: []string{"/v1/vouchers", "/v1/*"}, api: voucherifyAPI},
		"all permitted":        {grants: []Grant{with("campaigns")}, api: voucherifyAPI},
		"not permitted":        {grants: []Grant{with("", "/a/b")}, allow: []string{"/a", "/b/*"}, want: []string{notInAll + " grant=[a] operation=/a/b"}},
		"other method":         {grants: []Grant{with("", "GET,HEAD /a")}, allow: []string{"POST /a", "PUT *"}, want: []string{notInAll + " grant=[a] operation=GET,HEAD /a"}},
		"method in common":     {grants: []Grant{with("", "GET,HEAD /a")}, allow: []string{"POST,HEAD /a"}},
		"any method":           {grants: []Grant{with("", "/a")}, allow: []string{"POST /a"}},
		"credential endpoint":  {grants: []Grant{with("", "POST /v1/OAuth/token /v1/oauth/*", "/v1/oauth")}, api: voucherifyAPI, want: []string{endpoint + " grant=[a] operation=POST /v1/OAuth/token", endpoint + " grant=[a] operation=POST /v1/oauth/*", endpoint + " grant=[a] operation=/v1/oauth"}},
		"other than those":     {grants: []Grant{with("", "/v1/oauthx", "/v1/o*", "*")}, api: voucherifyAPI},
	} {
		t.Run(name, func(t *testing.T) {
			got := warningTexts(checkGrants(test.grants, parseOperations(test.allow), test.api, strings.Fields(test.scopes)))
			if !slices.Equal(got, test.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
		})
	}
}

func TestRouteWarnings(t *testing.T) {
	const (
		outOfSco  = "a route allows an operation that its scopes do not reach; add one that it needs, or remove the operation"
		nothingIn = "the scopes of a route reach no operation that it permits; add one that is needed"
	)
	api := new(voucherify.Provider).API()
	for name, test := range map[string]struct {
		allow, defaults []string
		scopes          string
		want            []string
	}{
		"all permitted":         {nil, nil, "campaigns", nil},
		"reached":               {[]string{"GET /v1/vouchers/*"}, nil, "vouchers", nil},
		"reached by api":        {[]string{"GET /v1/vouchers/*", "/v1/campaigns"}, nil, "api", nil},
		"not documented":        {[]string{"/v1/*"}, nil, "vouchers", nil},
		"one of two":            {[]string{"GET /v1/vouchers /v1/campaigns"}, nil, "vouchers", []string{outOfSco + " operation=GET /v1/campaigns scopes=[vouchers] needs_one_of=[api campaigns]"}},
		"none of its own":       {[]string{"/v1/orders"}, []string{"/v1/vouchers"}, "vouchers", []string{outOfSco + " operation=/v1/orders scopes=[vouchers] needs_one_of=[api orders]"}},
		"one of the defaults":   {[]string{"/v1/orders", "/v1/vouchers"}, []string{"/v1/orders", "/v1/vouchers"}, "vouchers", nil},
		"none of the defaults":  {[]string{"/v1/orders"}, []string{"/v1/orders"}, "vouchers", []string{nothingIn + " scopes=[vouchers] needs_one_of=[api orders]"}},
		"scopes are not known":  {[]string{"/v1/orders"}, nil, "", nil},
		"as the server chooses": {[]string{"/v1/orders"}, []string{"/v1/orders"}, "", nil},
		"permitted by nobody":   {nil, nil, "vouchers", nil},
		"several, each by itself": {[]string{"/v1/orders", "/v1/products"}, nil, "vouchers", []string{
			outOfSco + " operation=/v1/orders scopes=[vouchers] needs_one_of=[api orders]",
			outOfSco + " operation=/v1/products scopes=[vouchers] needs_one_of=[api products]"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := warningTexts(checkRoute(parseOperations(test.allow), parseOperations(test.defaults), api, strings.Fields(test.scopes)))
			if !slices.Equal(got, test.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
		})
	}
}

// warningTexts returns warnings, each with its fields in a line.
func warningTexts(warnings []routeWarning) []string {
	var lines []string
	for _, w := range warnings {
		line := w.message
		for _, field := range w.fields {
			line += " " + field.Key + "=" + fieldText(field)
		}
		lines = append(lines, line)
	}
	return lines
}

// fieldText returns the value of a log field.
func fieldText(field zapcore.Field) string {
	encoder := zapcore.NewMapObjectEncoder()
	field.AddTo(encoder)
	return fmt.Sprint(encoder.Fields[field.Key])
}

// parseOperations reads operations as `allow` has them.
func parseOperations(lines []string) []Operation {
	var operations []Operation
	for _, line := range lines {
		methods, paths, ok := strings.Cut(line, " ")
		operation := Operation{Methods: strings.Split(methods, ","), Paths: strings.Fields(paths)}
		if !ok || strings.ContainsAny(methods, "/*") {
			operation = Operation{Paths: strings.Fields(line)}
		}
		operations = append(operations, operation)
	}
	return operations
}

// What is said never to be permitted is not: whatever two patterns both match,
// they may meet.
func TestPathsThatMatchBothPatternsMayMeet(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	word := func(letters string) string {
		b := []byte("/")
		for range random.IntN(5) {
			b = append(b, letters[random.IntN(len(letters))])
		}
		return string(b)
	}
	ctx := context.WithValue(t.Context(), caddy.ReplacerCtxKey, caddy.NewReplacer())
	matches := func(pattern, path string) bool {
		operation := Operation{Paths: []string{pattern}}
		if err := operation.Paths.Provision(caddy.Context{}); err != nil {
			t.Fatal(err)
		}
		matched, err := operation.Paths.MatchWithError((&http.Request{URL: &url.URL{Path: path}}).WithContext(ctx))
		return err == nil && matched
	}
	both, apart := 0, 0
	for range 200_000 {
		a, b, path := word("ab/*?["), word("ab/*B\\"), word("abB/")
		if random.IntN(8) == 0 {
			a = strings.TrimPrefix(a, "/")
			if !strings.HasPrefix(a, "*") {
				continue
			}
		}
		meet := pathsMayMeet(a, b)
		if !meet {
			apart++
		}
		if matches(a, path) && matches(b, path) {
			both++
			if !meet {
				t.Fatalf("%s matches %s and %s, which are said not to meet", path, a, b)
			}
		}
	}
	if both < 1000 || apart < 10_000 {
		t.Errorf("%d paths matched both, %d pairs do not meet: the test shows little", both, apart)
	}
}
