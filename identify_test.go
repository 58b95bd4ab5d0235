package egress

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
)

// The log says what keeps a key from counting; the answer does not.
func TestUnknownCallerIsExplained(t *testing.T) {
	known, err := newCallers(map[string]*Caller{
		"cert":    {Key: []string{"key-of-cert-0123456789"}, ClientCert: []string{"cert.internal"}},
		"user":    {Key: []string{"key-of-user-0123456789"}, User: []string{"user"}},
		"clients": {Key: []string{"key-of-clients-0123456789"}, User: []string{"user"}, Clients: []string{"192.0.2.1"}},
	}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ key, user, want string }{
		{"", "user", "; it has no key"},
		{"key-of-nobody-0123456789", "user", "; what it has in X-Api-Key is not the key of a caller"},
		{"key-of-cert-0123456789", "user", "; it has the key of cert, but not the client_cert that cert has to prove as well"},
		{"key-of-user-0123456789", "", "; it has the key of user, but not the user that user has to prove as well"},
		{"key-of-clients-0123456789", "user", "; it has the key of clients, but not the clients that clients has to prove as well"},
	} {
		req := benchRequest("")
		if test.key != "" {
			req.Header.Set("X-Api-Key", test.key)
		}
		repl := req.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
		repl.Set("http.auth.user.id", test.user)
		placeholders := []string{"http.request.header.X-Api-Key"}
		if c := known.identify(req, repl, placeholders); c != nil {
			t.Errorf("%+v: taken for %s", test, c.name)
		}
		r := known.unknown(req, repl, placeholders)
		if r.detail != test.want || r.message != callerUnknown.message || r.status != callerUnknown.status {
			t.Errorf("%+v: %+v", test, r)
		}
		if test.key != "" && strings.Contains(r.message+r.detail, test.key) {
			t.Errorf("%+v: the key is in %+v", test, r)
		}
	}
	if callerUnknown.detail != "" {
		t.Error("the shared refusal was changed")
	}
}

// A placeholder would be a name that no user has.
func TestUserIsNoPlaceholder(t *testing.T) {
	want := `user: "{env.ANNA}": placeholders are not supported`
	if err := (&Caller{User: []string{"anna", "{env.ANNA}"}}).validate(); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// Callers that one request could prove, where nothing decides, do not load.
func TestCallersThatCannotBeToldApart(t *testing.T) {
	for name, test := range map[string]struct {
		a, b Caller
		want string // the beginning; empty: they load
	}{
		"names":                       {Caller{ClientCert: []string{"a.internal", "b.internal"}}, Caller{ClientCert: []string{"B.internal"}}, "both are known by dns b.internal"},
		"other names":                 {Caller{ClientCert: []string{"a.internal"}}, Caller{ClientCert: []string{"b.internal"}}, ""},
		"the same name twice":         {Caller{ClientCert: []string{"a.internal", "a.internal"}}, Caller{ClientCert: []string{"b.internal"}}, ""},
		"users":                       {Caller{User: []string{"u", "v"}}, Caller{User: []string{"v"}}, "both are known by v"},
		"addresses":                   {Caller{Clients: []string{"10.0.0.0/8"}}, Caller{Clients: []string{"10.0.0.0/8"}}, "both are known by 10.0.0.0/8"},
		"a narrower address":          {Caller{Clients: []string{"10.0.0.0/8"}}, Caller{Clients: []string{"10.1.0.0/16"}}, ""},
		"sockets":                     {Caller{Clients: []string{"unix"}}, Caller{Clients: []string{"unix"}}, "both are known by unix"},
		"one proves more":             {Caller{User: []string{"u"}}, Caller{User: []string{"u"}, Clients: []string{"10.0.0.0/8"}}, ""},
		"both prove more":             {Caller{User: []string{"u"}, Clients: []string{"10.1.0.0/16"}}, Caller{User: []string{"u"}, Clients: []string{"10.0.0.0/8"}}, "both are known by u"},
		"from elsewhere":              {Caller{User: []string{"u"}, Clients: []string{"10.1.0.0/16"}}, Caller{User: []string{"u"}, Clients: []string{"10.2.0.0/16"}}, ""},
		"names with other users":      {Caller{ClientCert: []string{"a.internal"}, User: []string{"u"}}, Caller{ClientCert: []string{"a.internal"}, User: []string{"v"}}, ""},
		"names with the same user":    {Caller{ClientCert: []string{"a.internal"}, User: []string{"u"}}, Caller{ClientCert: []string{"a.internal"}, User: []string{"v", "u"}}, "both are known by dns a.internal"},
		"names and sockets":           {Caller{ClientCert: []string{"a.internal"}, Clients: []string{"unix"}}, Caller{ClientCert: []string{"a.internal"}, Clients: []string{"unix", "::1"}}, "both are known by dns a.internal"},
		"each proves something else":  {Caller{ClientCert: []string{"a.internal"}, User: []string{"u"}}, Caller{ClientCert: []string{"a.internal"}, Clients: []string{"10.0.0.0/8"}}, "both are known by dns a.internal"},
		"one proves all and more":     {Caller{ClientCert: []string{"a.internal"}, User: []string{"u"}, Clients: []string{"10.0.0.0/8"}}, Caller{ClientCert: []string{"a.internal"}, User: []string{"u"}}, ""},
		"less, and from elsewhere":    {Caller{ClientCert: []string{"a.internal"}, User: []string{"u"}}, Caller{ClientCert: []string{"a.internal"}, Clients: []string{"unix"}}, "both are known by dns a.internal"},
		"a name with and without one": {Caller{ClientCert: []string{"a.internal"}}, Caller{ClientCert: []string{"a.internal"}, User: []string{"u"}}, ""},
	} {
		_, err := newCallers(map[string]*Caller{"a": &test.a, "b": &test.b}, zap.NewNop())
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case test.want != "" && (err == nil || !strings.HasPrefix(err.Error(), "caller b: cannot be distinguished from caller a: "+test.want)):
			t.Errorf("%s: got %v, want %s", name, err, test.want)
		}
	}
}

// So it does of a certificate.
func TestUnknownCertificateIsExplained(t *testing.T) {
	known, err := newCallers(map[string]*Caller{
		"shop":  {ClientCert: []string{"shop.internal"}, User: []string{"shop"}},
		"agent": {Key: []string{"key-of-agent-0123456789"}},
	}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	names := func(names ...string) *x509.Certificate {
		return &x509.Certificate{DNSNames: names, NotAfter: time.Now().Add(time.Hour)}
	}
	for _, test := range []struct {
		cert     *x509.Certificate
		verified bool
		missing  missingProof
		want     string
	}{
		{nil, false, missingKey, "; it has no key and no client certificate"},
		{names("shop.internal"), false, missingKnownCertificate, "; it has no key, and its client certificate is not verified or has expired"},
		{names(), true, missingKnownCertificate, "; it has no key, and its client certificate has no subject alternative name"},
		{names("shop.internal"), true, missingFurtherProof, "; it has the certificate of shop, but not the user that shop has to prove as well"},
		{names("a", "b\n", "c", "d"), true, missingKnownCertificate, `; it has no key, and no caller has a name of its client certificate: "dns a", "dns b\n", "dns c"`},
		{names("a", "b", "c", "shop.internal"), true, missingFurtherProof, "; it has the certificate of shop, but not the user that shop has to prove as well"},
	} {
		req := benchRequest("")
		req.TLS = &tls.ConnectionState{HandshakeComplete: true}
		if test.cert != nil {
			req.TLS.PeerCertificates = []*x509.Certificate{test.cert}
		}
		if test.verified {
			req.TLS.VerifiedChains = [][]*x509.Certificate{req.TLS.PeerCertificates}
		}
		repl := req.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
		if c := known.identify(req, repl, nil); c != nil {
			t.Errorf("%s: taken for %s", test.want, c.name)
		}
		if r := known.unknown(req, repl, nil); r.detail != test.want || r.missing != test.missing {
			t.Errorf("got  %d %s\nwant %d %s", r.missing, r.detail, test.missing, test.want)
		}
	}
}
