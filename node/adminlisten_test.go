package node_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sluice/node"
	"sluice/node/nodetest"
)

// selfSigned makes a certificate for 127.0.0.1 that vouches for itself.
func selfSigned(t *testing.T, serial int64) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "admin"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

func writeFiles(t *testing.T, files map[string][]byte) {
	t.Helper()
	for path, text := range files {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// call is one exchange with an admin listener.
func call(t *testing.T, client *http.Client, method, url, token string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(bounded(t), method, url, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	if method != http.MethodGet {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(body)
}

func TestAdmin_OnAUnixSocket(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "sluice") // t.TempDir's paths may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "admin.sock")
	token := node.NewSecret()
	c := nodetest.Start(t, 1, nodetest.WithConfig(func(_ int, cfg *node.Config) {
		cfg.Admin.Listen, cfg.Admin.LocalRole, cfg.Admin.Token = "unix:"+path, "read", node.Secret(token)
	}))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	for _, test := range []struct {
		method, path, token string
		want                int
	}{
		{"GET", "/livez", "", 200},
		{"GET", "/metrics", "", 200},
		{"GET", "/v1/cluster", "", 200},
		{"POST", "/v1/cluster/rotate-signing-key", "", 403},
		{"GET", "/debug/pprof/goroutine?debug=1", "", 403},
		{"GET", "/debug/pprof/goroutine?debug=1", token, 200},
		{"GET", "/debug/pprof/trace?seconds=0.01", token, 200},
		{"POST", "/v1/cluster/rotate-signing-key", token, 200},
		{"POST", "/v1/cluster/rotate-signing-key", node.NewSecret(), 401},
	} {
		if status, text := call(t, client, test.method, "http://localhost"+test.path, test.token); status != test.want {
			t.Errorf("%s %s: %d %s, want %d", test.method, test.path, status, text, test.want)
		}
	}
	c.Members[0].Node.Close()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket outlives its node: %v", err)
	}
}

func TestAdmin_OwnTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFile, keyFile, caFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "clients.pem")
	first, firstKey := selfSigned(t, 1)
	second, secondKey := selfSigned(t, 2)
	operator, operatorKey := selfSigned(t, 3)
	writeFiles(t, map[string][]byte{certFile: first, keyFile: firstKey, caFile: operator})
	c := nodetest.Start(t, 1, nodetest.WithConfig(func(_ int, cfg *node.Config) {
		cfg.Admin.Listen, cfg.Admin.TLSCert, cfg.Admin.TLSKey, cfg.Admin.ClientCA = "127.0.0.1:0", certFile, keyFile, caFile
	}))
	n := c.Members[0].Node
	url := "https://" + n.AdminAddr().String() + "/v1/cluster"
	client := func(trusted []byte, certificate ...tls.Certificate) *http.Client {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(trusted)
		return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: certificate}}}
	}
	pair, err := tls.X509KeyPair(operator, operatorKey)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := tls.X509KeyPair(second, secondKey)
	if err != nil {
		t.Fatal(err)
	}
	if status, text := call(t, client(first, pair), "GET", url, ""); status != 200 {
		t.Errorf("with a certificate: %d %s", status, text)
	}
	if status, text := call(t, client(first), "GET", url, ""); status != 0 || !strings.Contains(text, "certificate required") {
		t.Errorf("without a certificate: %d %s", status, text)
	}
	if status, text := call(t, client(first, stranger), "GET", url, ""); status != 0 {
		t.Errorf("with a stranger's certificate: %d %s", status, text)
	}
	// One file before the other, as what renews certificates may write them.
	writeFiles(t, map[string][]byte{certFile: second})
	if n.ReloadCertificate() == nil {
		t.Error("a pair that does not fit was taken")
	}
	if status, text := call(t, client(first, pair), "GET", url, ""); status != 200 {
		t.Errorf("after half a renewal: %d %s", status, text)
	}
	writeFiles(t, map[string][]byte{keyFile: secondKey})
	if err := n.ReloadCertificate(); err != nil {
		t.Error(err)
	}
	if status, text := call(t, client(second, pair), "GET", url, ""); status != 200 {
		t.Errorf("after the renewal: %d %s", status, text)
	}
	if status, _ := call(t, client(first, pair), "GET", url, ""); status != 0 {
		t.Errorf("the certificate of before is served: %d", status)
	}
	// The authorities of callers are read again too, by themselves; what holds none leaves those of before.
	writeFiles(t, map[string][]byte{caFile: []byte("none")})
	if err := n.ReloadCertificate(); err == nil || !strings.Contains(err.Error(), "admin.client_ca: "+caFile) {
		t.Errorf("a file without authorities: %v", err)
	}
	if status, text := call(t, client(second, pair), "GET", url, ""); status != 200 {
		t.Errorf("after a file without authorities: %d %s", status, text)
	}
	writeFiles(t, map[string][]byte{caFile: second})
	nodetest.WaitFor(t, "the other authority", func() error {
		if status, text := call(t, client(second, stranger), "GET", url, ""); status != 200 {
			return fmt.Errorf("%d %s", status, text)
		}
		return nil
	})
	if status, _ := call(t, client(second, pair), "GET", url, ""); status != 0 {
		t.Errorf("an authority that was taken out lets its callers in: %d", status)
	}
}
