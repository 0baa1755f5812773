package node

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// fileCredentials are PeerCredentials of the operator's own authority. Certificate, key and authorities are read again when their files
// change, like the public listener's; what does not fit, or is of another node, leaves what is in use.
type fileCredentials struct {
	peerTLS
	config  PeerConfig
	derived *derivedCredentials
	log     *slog.Logger
	// changed is called when authorities have changed, to look at the connections again.
	changed func()

	current atomic.Pointer[peerFiles]
	failing atomic.Bool

	mu   sync.Mutex // one reload at a time
	seen [3][sha256.Size]byte
}

// peerFiles is what the files hold. It is immutable.
type peerFiles struct {
	cert    *tls.Certificate // nil without peer.tls_cert: the derived one
	roots   *x509.CertPool
	rootsID [sha256.Size]byte
	// certEnds and caEnds are when the certificate, and the first authority of its chain, end; zero without a certificate.
	certEnds, caEnds time.Time
}

// newFileCredentials reads the files for the first time. derived makes what is trusted besides, and shown where there is no certificate.
func newFileCredentials(config PeerConfig, derived *derivedCredentials, proof [32]byte, log *slog.Logger) (*fileCredentials, error) {
	f := &fileCredentials{config: config, derived: derived, log: log, changed: func() {}}
	f.peerTLS = peerTLS{self: derived.self, now: derived.now, certificate: f.own, ownDerived: config.TLSCert == "", trusts: f.roots, proof: proof}
	files, held, err := f.load()
	if err != nil {
		return nil, err
	}
	f.seen = held
	f.current.Store(files)
	return f, nil
}

func (f *fileCredentials) own() (*tls.Certificate, error) {
	if cert := f.current.Load().cert; cert != nil {
		return cert, nil
	}
	return f.derived.certificate()
}

func (f *fileCredentials) roots() peerRoots {
	r := peerRoots{files: f.current.Load().roots}
	if f.config.TLSCert == "" || f.config.TLSAcceptSecret {
		r.derived = f.derived.trusts().derived
	}
	return r
}

// load reads the files and checks that they are this node's, and that its own authorities would let it in.
func (f *fileCredentials) load() (*peerFiles, [3][sha256.Size]byte, error) {
	var held [3][sha256.Size]byte
	text, err := os.ReadFile(f.config.TLSCA)
	if err != nil {
		return nil, held, fmt.Errorf("peer.tls_ca: %w", err)
	}
	held[2] = sha256.Sum256(text)
	files := &peerFiles{rootsID: held[2]}
	if files.roots, err = parseAuthorities(text); err != nil {
		return nil, held, fmt.Errorf("peer.tls_ca: %s: %w", f.config.TLSCA, err)
	}
	if f.config.TLSCert == "" {
		return files, held, nil
	}
	cert, pair, err := loadCertificate(f.config.TLSCert, f.config.TLSKey)
	held[0], held[1] = pair[0], pair[1]
	if err != nil {
		return nil, held, fmt.Errorf("peer.tls_cert: %w", err)
	}
	if err := peerCertificateProblem(cert, f.self); err != nil {
		return nil, held, fmt.Errorf("peer.tls_cert: %s: %w", f.config.TLSCert, err)
	}
	certificates := make([]*x509.Certificate, 0, len(cert.Certificate))
	for _, der := range cert.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, held, fmt.Errorf("peer.tls_cert: %s: %w", f.config.TLSCert, err)
		}
		certificates = append(certificates, c)
	}
	// By files, not by what is in use: both may be new.
	trial := peerTLS{now: f.now, trusts: func() peerRoots { return peerRoots{files: files.roots} }}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		chain, _, err := trial.chain(certificates, usage)
		switch {
		case errors.Is(err, errCertificateEnded):
			// It is used all the same: this node's clock may be what is wrong, and the others say so if it is not.
			f.log.Warn("the peer certificate is not good now", "file", f.config.TLSCert, "error", err)
			files.caEnds = cert.Leaf.NotAfter
		case errors.Is(err, errOtherAuthority):
			return nil, held, fmt.Errorf("peer.tls_cert: %s is of no authority in %s: the other nodes would refuse it", f.config.TLSCert, f.config.TLSCA)
		case err != nil:
			return nil, held, fmt.Errorf("peer.tls_cert: %s: %w", f.config.TLSCert, err)
		default:
			files.caEnds = chain[1].NotAfter
			for _, c := range chain[1:] {
				if c.NotAfter.Before(files.caEnds) {
					files.caEnds = c.NotAfter
				}
			}
		}
	}
	files.cert, files.certEnds = cert, cert.Leaf.NotAfter
	return files, held, nil
}

// peerCertificateProblem says why a certificate is not this node's.
func peerCertificateProblem(cert *tls.Certificate, self PeerIdentity) error {
	id, err := certificateIdentity(cert.Leaf)
	switch {
	case err != nil || cert.Leaf.IsCA:
		return errors.New("it names no node: `sluice cert new node` makes one")
	case id.Cluster != self.Cluster:
		return fmt.Errorf("it is of cluster %q, and this node is of %q", id.Cluster, self.Cluster)
	case self.NodeID != "" && id.NodeID != self.NodeID:
		return fmt.Errorf("it is of node %s, and this node is %s: an id is made with its data directory, and so is its certificate", id.NodeID, self.NodeID)
	}
	return nil
}

// parseAuthorities reads PEM certificates of authorities; what else is in the text is a mistake.
func parseAuthorities(text []byte) (*x509.CertPool, error) {
	pool, n := x509.NewCertPool(), 0
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it holds a %q beside certificates: a bundle of authorities is for every node to read", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if !c.IsCA {
			return nil, fmt.Errorf("the certificate of %q is no authority's", c.Subject.CommonName)
		}
		pool.AddCert(c)
		n++
	}
	if n == 0 {
		return nil, errors.New("it holds no certificate")
	}
	return pool, nil
}

// reload reads the files again, and takes what they hold where that has changed or force is set. The error says why what is in use
// stays.
func (f *fileCredentials) reload(force bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !force && f.held() == f.seen {
		return nil
	}
	files, held, err := f.load()
	f.seen = held
	f.failing.Store(err != nil)
	before := f.current.Load()
	if err != nil {
		f.log.Error("peer certificate not reloaded; what is in use stays", "error", err, "until", before.certEnds)
		return err
	}
	f.current.Store(files)
	if files.cert != nil {
		f.log.Info("peer certificate reloaded", "serial", files.cert.Leaf.SerialNumber.String(), "until", files.certEnds, "authority_until", files.caEnds)
	} else {
		f.log.Info("peer authorities reloaded")
	}
	if files.rootsID != before.rootsID {
		f.changed()
	}
	return nil
}

// held hashes what the files hold now; zero for one that could not be read.
func (f *fileCredentials) held() (held [3][sha256.Size]byte) {
	for i, path := range []string{f.config.TLSCert, f.config.TLSKey, f.config.TLSCA} {
		if path == "" {
			continue
		}
		if text, err := os.ReadFile(path); err == nil {
			held[i] = sha256.Sum256(text)
		}
	}
	return held
}

// watch reloads what changes until ctx ends.
func (f *fileCredentials) watch(ctx context.Context) {
	ticker := time.NewTicker(certificateEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			_ = f.reload(false) // it has logged its error
		}
	}
}

// expiry is when the certificate and its authority end, in Unix seconds; 0 without one.
func (f *fileCredentials) expiry() (cert, ca float64) {
	if f == nil || f.current.Load().cert == nil {
		return 0, 0
	}
	files := f.current.Load()
	return float64(files.certEnds.Unix()), float64(files.caEnds.Unix())
}

// openPeerCredentials chooses how peers know each other.
func (n *Node) openPeerCredentials() error {
	derived, err := newDerivedCredentials(n.keys, PeerIdentity{NodeID: n.data.NodeID, Cluster: n.cfg.Cluster}, n.opts.clock)
	if err != nil {
		return err
	}
	n.creds = derived
	if n.cfg.Peer.TLSCA == "" {
		return nil
	}
	if n.peerFiles, err = newFileCredentials(n.cfg.Peer, derived, n.keys.proof, n.log.With("component", "peer")); err != nil {
		return err
	}
	n.creds = n.peerFiles
	return nil
}

// watchPeerFiles follows the files, and ends the connections that new authorities do not cover.
func (n *Node) watchPeerFiles() {
	if n.peerFiles == nil {
		return
	}
	f := n.peerFiles
	f.mu.Lock()
	f.changed = func() {
		n.peers.recheck()
		n.dialer.recheck()
	}
	f.mu.Unlock()
	n.wg.Go(func() { f.watch(n.ctx) })
}

// peerFiles checks peer.tls_* but for the node's id, which only its data directory knows.
func (v *validator) peerFiles() {
	c := v.c.Peer
	set := []struct{ key, value string }{{"peer.tls_cert", c.TLSCert}, {"peer.tls_key", c.TLSKey}}
	switch {
	case c.TLSCA == "" && (c.TLSCert != "" || c.TLSKey != ""):
		first := set[slices.IndexFunc(set, func(s struct{ key, value string }) bool { return s.value != "" })]
		v.fail("peer.tls_ca", "is missing: %s is set, and the other nodes' certificates have to be of some authority", v.also(first.key))
		return
	case c.TLSAcceptSecret && c.TLSCert == "":
		v.fail("peer.tls_accept_secret", "is of nodes with a certificate, and peer.tls_cert is missing: without one the cluster secret's are accepted anyway")
		return
	case c.TLSCA == "":
		return
	}
	text, err := os.ReadFile(c.TLSCA)
	if err == nil {
		if _, err = parseAuthorities(text); err != nil {
			err = fmt.Errorf("%s: %w", c.TLSCA, err)
		}
	}
	if err != nil {
		v.fail("peer.tls_ca", "%v", err)
	}
	for i, s := range set {
		if other := set[1-i]; s.value == "" && other.value != "" {
			v.fail(s.key, "is missing: %s is set", v.also(other.key))
			return
		}
	}
	if c.TLSCert == "" {
		return
	}
	cert, _, err := loadCertificate(c.TLSCert, c.TLSKey)
	if err == nil {
		if err = peerCertificateProblem(cert, PeerIdentity{Cluster: v.c.Cluster}); err != nil {
			err = fmt.Errorf("%s: %w", c.TLSCert, err)
		}
	}
	if err != nil {
		v.fail("peer.tls_cert", "%v", err)
	}
}
