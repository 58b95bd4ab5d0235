package e2e_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// otherAuthority writes a certificate that nothing here is signed by.
func otherAuthority(t *testing.T) (file string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// A failure does not outlive its cause: what a reload mends is tried at once.
func TestReloadThatMendsTheCause(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), httptest.NewTLSServer(egresstest.Issue(`,"expires_in":3600`))
	defer endpoint.Close()
	wrong := otherAuthority(t)
	routes := func(ca string) string { return egresstest.Egress(api.URL, endpoint.URL, "token_ca "+ca) }
	g := egresstest.StartGateway(t, routes(wrong))
	failures := 0
	egresstest.Eventually(t, "failures in a row", func() bool {
		if resp, body := g.Get("/v1/x"); resp.StatusCode != http.StatusServiceUnavailable {
			t.Fatalf("with the wrong authority: %d %s", resp.StatusCode, body)
		}
		failures++
		return failures == 50
	})
	if err := g.Load(routes(egresstest.Trust(t, endpoint))); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	resp, body := g.GetAfterReload("/v1/x")
	if resp.StatusCode != http.StatusOK {
		t.Errorf("after the reload: %d %s, want 200", resp.StatusCode, body)
	}
	t.Logf("back %v after the reload", time.Since(start))
}
