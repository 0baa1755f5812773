package node

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Application protocols of the peer listener.
const (
	protoRaft = "sluice-raft/1"
	protoRPC  = "h2"
)

// PeerIdentity is what a peer's certificate says.
type PeerIdentity struct {
	NodeID  string
	Cluster string // the cluster's configured name
}

// PeerCredentials supplies the TLS settings between nodes and reads who is at the other end. The built-in ones derive a
// certificate authority from the cluster secret; an implementation over an operator's own certificates takes its place
// without a change elsewhere. All methods are safe for concurrent use, and the returned configurations are the
// caller's to change (it sets NextProtos).
type PeerCredentials interface {
	// ServerConfig demands a client certificate and verifies it in the handshake.
	ServerConfig() *tls.Config
	// ClientConfig verifies the server's certificate in the handshake; nodeID is who has to answer, "" for any node.
	ClientConfig(nodeID string) *tls.Config
	// Identity reads a verified connection's other end.
	Identity(tls.ConnectionState) (PeerIdentity, error)
}

const (
	nodeCertLife = 30 * 24 * time.Hour
	// nodeCertSlack lets peers whose clocks are behind accept a certificate made just now.
	nodeCertSlack = 24 * time.Hour
)

// derivedCredentials are PeerCredentials whose authority comes from the cluster secret: every holder of the secret
// computes the same authority and signs a certificate of its own, with a key that lives as long as the process.
type derivedCredentials struct {
	self  PeerIdentity
	ca    *x509.Certificate
	caKey ed25519.PrivateKey
	roots *x509.CertPool
	now   func() time.Time

	mu      sync.Mutex
	cert    *tls.Certificate
	renewAt time.Time
}

// newDerivedCredentials makes the authority and the first node certificate.
func newDerivedCredentials(keys clusterKeys, self PeerIdentity, now func() time.Time) (*derivedCredentials, error) {
	caKey := ed25519.NewKeyFromSeed(keys.caSeed[:])
	// Everything in the template is constant, and Ed25519 signatures are deterministic (RFC 8032), so that all nodes
	// have the same certificate, byte for byte.
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "Sluice peers"},
		NotBefore:             time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Date(2120, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, caKey.Public(), caKey)
	if err != nil {
		return nil, fmt.Errorf("make peer authority: %w", err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make peer authority: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	d := &derivedCredentials{self: self, ca: ca, caKey: caKey, roots: roots, now: now}
	if _, err := d.certificate(); err != nil {
		return nil, err
	}
	return d, nil
}

// certificate returns the present node certificate, renewed when a third of its life is over.
func (d *derivedCredentials) certificate() (*tls.Certificate, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	if d.cert != nil && now.Before(d.renewAt) {
		return d.cert, nil
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make peer key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make peer certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: d.self.NodeID},
		NotBefore:             now.Add(-nodeCertSlack),
		NotAfter:              now.Add(nodeCertLife),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:                  []*url.URL{identityURI(d.self)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, d.ca, public, d.caKey)
	if err != nil {
		return nil, fmt.Errorf("make peer certificate: %w", err)
	}
	d.cert = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
	d.renewAt = now.Add(nodeCertLife / 3)
	return d.cert, nil
}

// identityURI is the subject alternative name of a node: sluice:/cluster/<name>/node/<id>.
func identityURI(id PeerIdentity) *url.URL {
	path := "/cluster/" + url.PathEscape(id.Cluster) + "/node/" + url.PathEscape(id.NodeID)
	return &url.URL{Scheme: "sluice", Opaque: path}
}

// parseIdentityURI undoes identityURI.
func parseIdentityURI(u *url.URL) (PeerIdentity, bool) {
	if u.Scheme != "sluice" || u.Host != "" {
		return PeerIdentity{}, false
	}
	parts := strings.Split(strings.TrimPrefix(u.String(), "sluice:"), "/")
	if len(parts) != 5 || parts[0] != "" || parts[1] != "cluster" || parts[3] != "node" {
		return PeerIdentity{}, false
	}
	cluster, err1 := url.PathUnescape(parts[2])
	node, err2 := url.PathUnescape(parts[4])
	return PeerIdentity{NodeID: node, Cluster: cluster}, err1 == nil && err2 == nil && validNodeID(node)
}

// base are the settings that both ends share.
func (d *derivedCredentials) base() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Resumption would save little between a handful of long connections, and tickets would have to be revoked.
		SessionTicketsDisabled: true,
		Time:                   d.now,
	}
}

// ServerConfig implements PeerCredentials.
func (d *derivedCredentials) ServerConfig() *tls.Config {
	c := d.base()
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return d.certificate() }
	// Verified below rather than by the library, so that both ends report the same errors.
	c.ClientAuth = tls.RequireAnyClientCert
	c.VerifyConnection = func(cs tls.ConnectionState) error { return d.verify(cs, x509.ExtKeyUsageClientAuth, "") }
	return c
}

// ClientConfig implements PeerCredentials.
func (d *derivedCredentials) ClientConfig(nodeID string) *tls.Config {
	c := d.base()
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return d.certificate() }
	// The library would compare a host name; peers are told apart by node id. VerifyConnection does the whole of it.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error { return d.verify(cs, x509.ExtKeyUsageServerAuth, nodeID) }
	return c
}

// Identity implements PeerCredentials.
func (d *derivedCredentials) Identity(cs tls.ConnectionState) (PeerIdentity, error) {
	if len(cs.PeerCertificates) == 0 {
		return PeerIdentity{}, errors.New("no certificate")
	}
	for _, u := range cs.PeerCertificates[0].URIs {
		if id, ok := parseIdentityURI(u); ok {
			return id, nil
		}
	}
	return PeerIdentity{}, errors.New("certificate names no node")
}

// verify checks chain, role, cluster and, where wantNode is set, the node.
func (d *derivedCredentials) verify(cs tls.ConnectionState, usage x509.ExtKeyUsage, wantNode string) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("no certificate")
	}
	leaf := cs.PeerCertificates[0]
	_, err := leaf.Verify(x509.VerifyOptions{Roots: d.roots, CurrentTime: d.now(), KeyUsages: []x509.ExtKeyUsage{usage}})
	if err != nil {
		var unknown x509.UnknownAuthorityError
		if errors.As(err, &unknown) {
			return errOtherSecret
		}
		return fmt.Errorf("peer certificate: %w", err)
	}
	if bytes.Equal(leaf.Raw, d.ca.Raw) {
		return errors.New("peer certificate: the authority's own")
	}
	id, err := d.Identity(cs)
	if err != nil {
		return fmt.Errorf("peer certificate: %w", err)
	}
	if id.Cluster != d.self.Cluster {
		return fmt.Errorf("%w: it is of %q, this one of %q", errOtherCluster, id.Cluster, d.self.Cluster)
	}
	if wantNode != "" && id.NodeID != wantNode {
		return fmt.Errorf("%w: %s instead of %s", errOtherNode, id.NodeID, wantNode)
	}
	return nil
}
