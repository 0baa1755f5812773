package node_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sluice/node"
	"sluice/node/nodetest"
)

// authority signs certificates for loopback.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	a.key = a.newKey()
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return key
}

// issue writes a pair with a serial number into dir, each file at once.
func (a *authority) issue(dir string, serial int64) (certFile, keyFile string) {
	a.t.Helper()
	key := a.newKey()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "node"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour).Truncate(time.Second), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	a.write(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	a.write(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
	return certFile, keyFile
}

func (a *authority) write(path string, data []byte) {
	a.t.Helper()
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		a.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		a.t.Fatal(err)
	}
}

func (a *authority) trust() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"}
}

func TestTLS_ServesAndReloads(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	dir := t.TempDir()
	certFile, keyFile := a.issue(dir, 100)
	c := nodetest.Start(t, 1, nodetest.WithConfig(func(i int, cfg *node.Config) {
		withAdmin(i, cfg)
		cfg.HTTP.TLSCert, cfg.HTTP.TLSKey = certFile, keyFile
	}))
	n := c.Members[0].Node
	address := n.HTTPAddr().String()

	// shake makes one connection, and gives what was agreed on.
	shake := func(change func(*tls.Config)) (tls.ConnectionState, error) {
		config := a.trust()
		if change != nil {
			change(config)
		}
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", address, config)
		if err != nil {
			return tls.ConnectionState{}, err
		}
		defer conn.Close()
		return conn.ConnectionState(), nil
	}
	serial := func() int64 {
		t.Helper()
		state, err := shake(nil)
		if err != nil {
			t.Fatal(err)
		}
		return state.PeerCertificates[0].SerialNumber.Int64()
	}
	if got := serial(); got != 100 {
		t.Fatalf("serial %d, want 100", got)
	}

	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: a.trust(), ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("https://" + address + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || resp.Proto != "HTTP/1.1" {
		t.Errorf("%s %s", resp.Proto, resp.Status)
	}
	if resp, err := http.Get("http://" + address + "/readyz"); err == nil {
		resp.Body.Close()
		if resp.StatusCode == 200 {
			t.Error("plain HTTP was served")
		}
	}
	for version, want := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		state, err := shake(func(c *tls.Config) {
			c.MinVersion, c.MaxVersion, c.NextProtos = version, version, []string{"h2", "http/1.1"}
		})
		switch {
		case (err == nil) != want:
			t.Errorf("%s: %v, want it to pass: %v", tls.VersionName(version), err, want)
		case want && state.NegotiatedProtocol != "http/1.1":
			t.Errorf("%s: negotiated %q", tls.VersionName(version), state.NegotiatedProtocol)
		}
	}
	if _, err := shake(func(c *tls.Config) { c.NextProtos = []string{"h2"} }); err == nil {
		t.Error("a client that wants HTTP/2 alone was served")
	}

	// By itself, and at once when asked to.
	a.issue(dir, 101)
	nodetest.WaitFor(t, "the new certificate", func() error {
		if got := serial(); got != 101 {
			return fmt.Errorf("serial %d", got)
		}
		return nil
	})
	a.issue(dir, 102)
	if err := n.ReloadCertificate(); err != nil || serial() != 102 {
		t.Errorf("reloaded: %v, serial %d, want 102", err, serial())
	}

	// A pair that does not fit leaves the one in use, and shows.
	other := t.TempDir()
	_, otherKey := a.issue(other, 103)
	wrong, err := os.ReadFile(otherKey)
	if err != nil {
		t.Fatal(err)
	}
	a.write(keyFile, wrong)
	failing := func(want float64) func() error {
		return func() error {
			if got := readMetrics(t, adminText(t, n, "/metrics")).samples["sluice_http_certificate_failing{}"]; got != want {
				return fmt.Errorf("sluice_http_certificate_failing is %v, want %v", got, want)
			}
			return nil
		}
	}
	nodetest.WaitFor(t, "the mismatch shows", failing(1))
	if err := n.ReloadCertificate(); err == nil {
		t.Error("a pair that does not fit was taken")
	}
	if err := os.Remove(certFile); err != nil {
		t.Fatal(err)
	}
	if err := n.ReloadCertificate(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a certificate: %v", err)
	}
	if got := serial(); got != 102 {
		t.Errorf("serial %d, want 102 still", got)
	}
	a.issue(dir, 104)
	nodetest.WaitFor(t, "the repaired pair", func() error {
		if got := serial(); got != 104 {
			return fmt.Errorf("serial %d", got)
		}
		return failing(0)()
	})
	ends := readMetrics(t, adminText(t, n, "/metrics")).samples["sluice_http_certificate_expiry_timestamp_seconds{}"]
	state, err := shake(nil)
	if err != nil || ends != float64(state.PeerCertificates[0].NotAfter.Unix()) {
		t.Errorf("the metric says that it ends at %v, and it ends at %v (%v)", ends, state.PeerCertificates[0].NotAfter.Unix(), err)
	}
}
