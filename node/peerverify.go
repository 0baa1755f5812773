package node

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"
)

// peerTLS is what all credentials of peers have in common: TLS 1.3 with certificates on both sides, whose URI says which node of which
// cluster it is.
type peerTLS struct {
	self        PeerIdentity
	now         func() time.Time
	certificate func() (*tls.Certificate, error)
	trusts      func() peerRoots
	ownDerived  bool // what certificate gives was made under the cluster secret
	// proof is the key by which both ends show each other that they hold the cluster secret, where a certificate alone does not.
	proof [32]byte
}

// peerRoots are the authorities that are trusted, by where they come from; nil for none.
type peerRoots struct {
	files   *x509.CertPool // peer.tls_ca
	derived *x509.CertPool // that of the cluster secret
}

// base are the settings that both ends share.
func (p *peerTLS) base() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Resumption would save little between a handful of long connections, and tickets would have to be revoked.
		SessionTicketsDisabled: true,
		Time:                   p.now,
	}
}

// ServerConfig implements PeerCredentials.
func (p *peerTLS) ServerConfig() *tls.Config {
	c := p.base()
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return p.certificate() }
	// Verified below rather than by the library, so that both ends report the same errors.
	c.ClientAuth = tls.RequireAnyClientCert
	c.VerifyConnection = func(cs tls.ConnectionState) error { return p.verify(cs, x509.ExtKeyUsageClientAuth, "") }
	return c
}

// ClientConfig implements PeerCredentials.
func (p *peerTLS) ClientConfig(nodeID string) *tls.Config {
	c := p.base()
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return p.certificate() }
	// The library would compare a host name; peers are told apart by node id. VerifyConnection does the whole of it.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error { return p.verify(cs, x509.ExtKeyUsageServerAuth, nodeID) }
	return c
}

// Identity implements PeerCredentials.
func (p *peerTLS) Identity(cs tls.ConnectionState) (PeerIdentity, error) {
	if len(cs.PeerCertificates) == 0 {
		return PeerIdentity{}, errNoPeerCertificate
	}
	return certificateIdentity(cs.PeerCertificates[0])
}

// certificateIdentity reads which node of which cluster a certificate is of.
func certificateIdentity(leaf *x509.Certificate) (PeerIdentity, error) {
	for _, u := range leaf.URIs {
		if id, ok := parseIdentityURI(u); ok {
			return id, nil
		}
	}
	return PeerIdentity{}, errNamesNoNode
}

// verify checks chain, role, cluster and, where wantNode is set, the node.
func (p *peerTLS) verify(cs tls.ConnectionState, usage x509.ExtKeyUsage, wantNode string) error {
	if len(cs.PeerCertificates) == 0 {
		return errNoPeerCertificate
	}
	if _, _, err := p.chain(cs.PeerCertificates, usage); err != nil {
		return err
	}
	leaf := cs.PeerCertificates[0]
	id, err := certificateIdentity(leaf)
	if err != nil {
		return err
	}
	if leaf.IsCA {
		return fmt.Errorf("%w: it is an authority's own", errNamesNoNode)
	}
	if id.Cluster != p.self.Cluster {
		return fmt.Errorf("%w: it is of %q, this one of %q", errOtherCluster, id.Cluster, p.self.Cluster)
	}
	if wantNode != "" && id.NodeID != wantNode {
		return fmt.Errorf("%w: %s instead of %s", errOtherNode, id.NodeID, wantNode)
	}
	return nil
}

// chain finds the way from a certificate, which others may follow, to an authority; derived says that this is the cluster secret's.
func (p *peerTLS) chain(certificates []*x509.Certificate, usage x509.ExtKeyUsage) (chain []*x509.Certificate, derived bool, err error) {
	roots := p.trusts()
	between := x509.NewCertPool()
	for _, c := range certificates[1:] {
		between.AddCert(c)
	}
	var problem error
	for _, pool := range []*x509.CertPool{roots.files, roots.derived} {
		if pool == nil {
			continue
		}
		chains, err := certificates[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: p.now(), KeyUsages: []x509.ExtKeyUsage{usage}})
		if err == nil {
			return chains[0], pool == roots.derived, nil
		}
		var unknown x509.UnknownAuthorityError
		if problem == nil || !errors.As(err, &unknown) {
			problem = err // the other pool's says more
		}
	}
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(problem, &unknown) && roots.files == nil:
		return nil, false, errOtherSecret
	case errors.As(problem, &unknown):
		return nil, false, errOtherAuthority
	case errors.As(problem, &invalid) && invalid.Reason == x509.Expired:
		return nil, false, fmt.Errorf("%w: good from %s to %s, and it is %s here", errCertificateEnded,
			invalid.Cert.NotBefore.UTC().Format(time.RFC3339), invalid.Cert.NotAfter.UTC().Format(time.RFC3339), p.now().UTC().Format(time.RFC3339))
	}
	return nil, false, fmt.Errorf("peer certificate: %w", problem)
}

// Recheck implements PeerCredentials.
func (p *peerTLS) Recheck(cs tls.ConnectionState, accepted bool) error {
	usage := x509.ExtKeyUsageServerAuth
	if accepted {
		usage = x509.ExtKeyUsageClientAuth
	}
	return p.verify(cs, usage, "")
}

// proofLabel is of what both ends show of the cluster secret.
const proofLabel = "EXPORTER-sluice-cluster-secret"

// Prove implements PeerCredentials. It shows that this end holds the cluster secret: each sends a MAC, under a key derived from the
// secret, of what is this connection's alone. A certificate that nodes derive shows as much by itself, so where both have one
// nothing is sent.
func (p *peerTLS) Prove(conn *tls.Conn, accepted bool) error {
	cs := conn.ConnectionState()
	usage, ours, theirs := x509.ExtKeyUsageServerAuth, "client", "server"
	if accepted {
		usage, ours, theirs = x509.ExtKeyUsageClientAuth, "server", "client"
	}
	_, derived, err := p.chain(cs.PeerCertificates, usage)
	if err != nil {
		return err
	}
	if derived && p.ownDerived {
		return nil
	}
	bound, err := cs.ExportKeyingMaterial(proofLabel, nil, 32)
	if err != nil {
		return fmt.Errorf("bind the proof to the connection: %w", err)
	}
	mac := func(role string) []byte {
		m := hmac.New(sha256.New, p.proof[:])
		io.WriteString(m, role)
		m.Write(bound)
		return m.Sum(nil)
	}
	if _, err := conn.Write(mac(ours)); err != nil {
		return err
	}
	got := make([]byte, sha256.Size)
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if !hmac.Equal(got, mac(theirs)) {
		return errOtherSecret
	}
	return nil
}
