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

// certificates is a listener's certificate, with the authorities of its callers' where it asks for them, which is read again when
// its files change. What cannot be used leaves the last good ones in place: what renews certificates may write the files one after
// the other, or a broken one.
type certificates struct {
	certFile, keyFile string
	clientCA          string // setting of the authorities of callers' certificates, for errors
	clientCAFile      string // "": callers are asked for none
	log               *slog.Logger

	current atomic.Pointer[tls.Certificate]
	clients atomic.Pointer[x509.CertPool] // nil where callers are asked for no certificate
	failing atomic.Bool                   // the files hold something that could not be used

	mu   sync.Mutex           // one reload at a time
	seen [3][sha256.Size]byte // hashes of what the files held when they were last taken; zero for one that could not be read
}

// openCertificates reads the files for the first time. table names the listener's settings; clientCA "" asks callers for no
// certificate.
func openCertificates(table, certFile, keyFile, clientCA string, log *slog.Logger) (*certificates, error) {
	c := &certificates{certFile: certFile, keyFile: keyFile, clientCA: table + ".client_ca", clientCAFile: clientCA, log: log}
	cert, clients, held, err := c.load()
	if err != nil {
		return nil, fmt.Errorf("%s.tls_cert: %w", table, err)
	}
	c.seen = held
	c.current.Store(cert)
	c.clients.Store(clients)
	c.warnIfEnded()
	return c, nil
}

// load reads all files and says what they held.
func (c *certificates) load() (cert *tls.Certificate, clients *x509.CertPool, held [3][sha256.Size]byte, err error) {
	cert, pair, err := loadCertificate(c.certFile, c.keyFile)
	held[0], held[1] = pair[0], pair[1]
	if c.clientCAFile == "" {
		return cert, nil, held, err
	}
	text, caErr := os.ReadFile(c.clientCAFile)
	if caErr == nil {
		held[2] = sha256.Sum256(text)
		clients, caErr = parsePool(c.clientCAFile, text)
	}
	if caErr != nil {
		err = errors.Join(err, fmt.Errorf("%s: %w", c.clientCA, caErr))
	}
	return cert, clients, held, err
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
	cert, clients, held, err := c.load()
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
	c.clients.Store(clients)
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

// grpcTLS is TLS as the listener for gRPC speaks it.
func (c *certificates) grpcTLS() *tls.Config {
	config := c.config()
	config.NextProtos = []string{"h2"}
	c.askClients(config)
	return config
}

// askClients makes callers show a certificate of one of the authorities, where there are any: of those that the file held last. A session is never
// taken up again, since the caller's certificate would not be looked at anew.
func (c *certificates) askClients(config *tls.Config) {
	if c.clientCAFile == "" {
		return
	}
	config.ClientAuth, config.ClientCAs, config.SessionTicketsDisabled = tls.RequireAndVerifyClientCert, c.clients.Load(), true
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		now := config.Clone()
		now.GetConfigForClient, now.ClientCAs = nil, c.clients.Load()
		return now, nil
	}
}

// loadPool reads the certificates of authorities.
func loadPool(path string) (*x509.CertPool, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parsePool(path, text)
}

// parsePool takes the certificates of authorities out of what a file held.
func parsePool(path string, text []byte) (*x509.CertPool, error) {
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
