package e2e_test

import (
	"net/url"
	"strings"
)

// invalidTenants are what a stranger may try that is not the name of a tenant.
var invalidTenants = []string{
	"", ".", "..", "../acme", "../../canary", "..\\canary", "acme/../../canary", "acme/..", "/canary", "//canary", "./acme", "acme/", "acme/client_id",
	"acme\x00", "\x00", "acme\x00/../canary", "acme\n", "acme\r\nX: y", " acme", "acme ", "ac me", "acme\u00a0",
	"..%2fcanary", "%2e%2e%2fcanary", "%2e%2e/canary", "..%c0%afcanary", "..%252fcanary", "acme%00",
	"‥/canary", "．．／canary", "..／canary", "..∕canary", "..⁄canary", "․․/canary", "acme\u200b", "acme\u202e", "ácme", "аcme", "acme\xff", "\xc0\xae\xc0\xae/canary",
	"~", "~root", "$HOME", "${HOME}", "`id`", "acme;id", "acme|id", "acme&x", "acme?", "acme#", "acme*", "[a-z]cme", "{a,b}",
	"{tenant}", "{env.HOME}", "{file./etc/passwd}", "{http.request.header.X-Tenant}", "C:\\canary", "\\\\host\\share", "acme:stream", "con/..",
	"-rf", "_acme", ".acme", "+acme", "acme+globex", "acme@globex", "acme=1", "acme,globex", "'acme'", `"acme"`,
	strings.Repeat("x", 64), strings.Repeat("x", 255), strings.Repeat("x", 4096), strings.Repeat("../", 100) + "canary",
}

// queryOf returns the query that names a tenant, whatever it consists of.
func queryOf(tenant string) string { return url.Values{"tenant": {tenant}}.Encode() }
