package node

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// certificateEvery is how often the files of a listener's certificate are looked at.
const certificateEvery = 2 * time.Second

// certificates is a listener's certificate, which is read again when its files change. A pair that cannot be used leaves
// the last good one in place: what renews certificates may write the two files one after the other, or a broken one.
type certificates struct {
	certFile, keyFile string
	log               *slog.Logger

	current atomic.Pointer[tls.Certificate]
	failing atomic.Bool // the files hold no pair that could be used

	mu   sync.Mutex           // one reload at a time
	seen [2][sha256.Size]byte // hashes of what the files held when they were last taken; zero for one that could not be read
}

// openCertificates reads the pair for the first time. key is the setting that names the certificate.
func openCertificates(key, certFile, keyFile string, log *slog.Logger) (*certificates, error) {
	c := &certificates{certFile: certFile, keyFile: keyFile, log: log}
	var cert *tls.Certificate
	var err error
	cert, c.seen, err = loadCertificate(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	c.current.Store(cert)
	c.warnIfEnded()
	return c, nil
}

// loadCertificate reads a certificate with its chain, and its key, and says what the files held. Errors name the file. It follows
// symbolic links, which is how orchestrators swap a whole directory.
func loadCertificate(certFile, keyFile string) (cert *tls.Certificate, held [2][sha256.Size]byte, err error) {
	var texts [2][]byte
	var problems []error
	for i, path := range []string{certFile, keyFile} {
		var err error
		if texts[i], err = os.ReadFile(path); err != nil {
			problems = append(problems, err)
			continue
		}
		held[i] = sha256.Sum256(texts[i])
	}
	if err := errors.Join(problems...); err != nil {
		return nil, held, err
	}
	pair, err := tls.X509KeyPair(texts[0], texts[1])
	if err != nil {
		return nil, held, fmt.Errorf("%s and %s: %w", certFile, keyFile, err)
	}
	return &pair, held, nil
}

// reload reads the files again, and takes what they hold where that has changed or force is set. What they hold is compared, since
// two contents can have one time of change: a file system's clock may stand still for milliseconds. The error says why the
// pair in use stays.
func (c *certificates) reload(force bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	cert, held, err := loadCertificate(c.certFile, c.keyFile)
	if held == c.seen && !force {
		return nil
	}
	c.seen = held
	c.failing.Store(err != nil)
	if err != nil {
		c.log.Error("certificate not reloaded; the one in use stays", "error", err, "until", c.current.Load().Leaf.NotAfter)
		return err
	}
	c.current.Store(cert)
	c.log.Info("certificate reloaded", "serial", cert.Leaf.SerialNumber.String(), "until", cert.Leaf.NotAfter)
	c.warnIfEnded()
	return nil
}

// warnIfEnded tells of a certificate that clients will refuse. It is served all the same: some of them may not, and the node's
// clock may be wrong.
func (c *certificates) warnIfEnded() {
	if leaf := c.current.Load().Leaf; time.Now().After(leaf.NotAfter) {
		c.log.Warn("the certificate has ended", "at", leaf.NotAfter)
	}
}

// expiry is when the certificate in use ends, in Unix seconds; 0 without one.
func (c *certificates) expiry() float64 {
	if c == nil {
		return 0
	}
	return float64(c.current.Load().Leaf.NotAfter.Unix())
}

// watch reloads what changes until ctx ends.
func (c *certificates) watch(ctx context.Context) {
	ticker := time.NewTicker(certificateEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			_ = c.reload(false) // it has logged its error
		}
	}
}

// config is TLS as the public listener speaks it: 1.2 and up with Go's choice of ciphers, and HTTP/1.1 in it.
func (c *certificates) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.current.Load(), nil
		},
	}
}

// grpcTLS is TLS as the listener for gRPC speaks it. clients "" asks callers for no certificate.
func (c *certificates) grpcTLS(clients string) (*tls.Config, error) {
	config := c.config()
	config.NextProtos = []string{"h2"}
	if err := askClients(config, "grpc.client_ca", clients); err != nil {
		return nil, err
	}
	return config, nil
}

// askClients makes callers show a certificate of one of the authorities in a file; "" asks them for none. key is the setting that
// names it.
func askClients(config *tls.Config, key, path string) error {
	if path == "" {
		return nil
	}
	pool, err := loadPool(path)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	config.ClientCAs, config.ClientAuth = pool, tls.RequireAndVerifyClientCert
	return nil
}

// loadPool reads the certificates of authorities.
func loadPool(path string) (*x509.CertPool, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	return pool, nil
}

// ReloadCertificate reads the certificates of the public listener, of that for gRPC, of the operators' and of the one for peers again. It does nothing without TLS. The
// error, which is logged too, says why the one in use stays.
func (n *Node) ReloadCertificate() error {
	var problems []error
	for _, c := range []*certificates{n.certificates, n.grpcCertificates, n.adminCertificates} {
		if c != nil {
			problems = append(problems, c.reload(true))
		}
	}
	if n.peerFiles != nil {
		problems = append(problems, n.peerFiles.reload(true))
	}
	return errors.Join(problems...)
}
