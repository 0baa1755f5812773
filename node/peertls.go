package node

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
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
	// Prove shows the other end, after the handshake, what this one's certificate does not, and demands the same of it. accepted says
	// which end this is. The caller has set a deadline.
	Prove(conn *tls.Conn, accepted bool) error
	// Recheck says whether a connection that was let in before would be let in now.
	Recheck(cs tls.ConnectionState, accepted bool) error
}

const (
	nodeCertLife = 30 * 24 * time.Hour
	// nodeCertSlack lets peers whose clocks are behind accept a certificate made just now.
	nodeCertSlack = 24 * time.Hour
)

// derivedCredentials are PeerCredentials whose authority comes from the cluster secret: every holder of the secret
// computes the same authority and signs a certificate of its own, with a key that lives as long as the process.
type derivedCredentials struct {
	peerTLS
	ca    *x509.Certificate
	caKey ed25519.PrivateKey

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
	d := &derivedCredentials{ca: ca, caKey: caKey}
	d.peerTLS = peerTLS{self: self, now: now, certificate: d.certificate, ownDerived: true, trusts: func() peerRoots { return peerRoots{derived: roots} }}
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
