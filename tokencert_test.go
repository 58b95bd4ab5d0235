package egress

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// writeTokenCert writes a certificate that expires then, and its key, to files in dir.
func writeTokenCert(t *testing.T, dir string, expires time.Time) TokenCert {
	t.Helper()
	files := TokenCert{Certificate: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key")}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: expires}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		files.Certificate: {Type: "CERTIFICATE", Bytes: certificate},
		files.Key:         {Type: "EC PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// A file that hangs holds no handshake up: the certificate before is used.
func TestCertificateFileHangs(t *testing.T) {
	files := writeTokenCert(t, t.TempDir(), time.Now().Add(time.Hour))
	core, logs := observer.New(zap.ErrorLevel)
	cert, err := files.provision(zap.New(core), zap.NewNop().Warn)
	if err != nil {
		t.Fatal(err)
	}

	if err := os.Remove(files.Key); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(files.Key, 0o600); err != nil {
		t.Fatal(err)
	}
	defer func() { // ends the reads
		if f, err := os.OpenFile(files.Key, os.O_RDWR|syscall.O_NONBLOCK, 0); err == nil {
			time.Sleep(50 * time.Millisecond)
			_ = f.Close()
		}
	}()
	got := make(chan bool, 2)
	for range cap(got) {
		go func() {
			read, err := cert.get(nil)
			got <- err == nil && read != nil
		}()
	}
	for range cap(got) {
		select {
		case ok := <-got:
			if !ok {
				t.Error("the certificate before is not used")
			}
		case <-time.After(10 * time.Second): // which a TLS handshake may take
			t.Fatal("a handshake waits for a file that hangs")
		}
	}
	if logs.Len() != 1 {
		t.Errorf("%d lines, want 1", logs.Len())
	}
}
