package systemtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestHTTPS runs a node with a certificate, and lets it read that again at a hangup.
func TestHTTPS(t *testing.T) {
	c := startCluster(t, options{nodes: 1})
	c.stop() // its file is enough to go on
	path := filepath.Join(c.dir, "node1.toml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pool := selfSigned(t, c.dir)
	text = []byte(strings.Replace(string(text), "[http]\n", "[http]\ntls_cert = \"tls.crt\"\ntls_key = \"tls.key\"\n", 1))
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	node := c.startNode(t, 1)
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	defer client.CloseIdleConnections()
	url := strings.Replace(c.urls[0], "http://", "https://", 1)
	eventually(t, 3*readyWithin, "the node is ready over HTTPS", func() error {
		res, err := client.Get(url + "/readyz")
		if err != nil {
			return err
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("got %s", res.Status)
		}
		return nil
	})
	if err := node.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, readyWithin, "the certificate is reloaded", func() error {
		log, err := os.ReadFile(filepath.Join(c.dir, "node1-by-hand.log"))
		if err != nil {
			return err
		}
		if !strings.Contains(string(log), "certificate reloaded") {
			return fmt.Errorf("the log is %s", log)
		}
		return nil
	})
}

// selfSigned writes tls.crt and tls.key for loopback into dir, and gives what trusts them.
func selfSigned(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, data := range map[string][]byte{"tls.crt": cert, "tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(cert) {
		t.Fatal("the certificate cannot be read")
	}
	return pool
}
