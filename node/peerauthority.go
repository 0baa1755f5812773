package node

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"path/filepath"
	"time"
)

// PeerPair is a certificate and its key, PEM each.
type PeerPair struct {
	Certificate, Key []byte
	NotAfter         time.Time
}

// NewPeerAuthority makes an authority for the certificates of a cluster's nodes: Ed25519, good from a day before now, for clocks that are
// behind, until life after it. It may sign certificates of nodes and nothing else.
func NewPeerAuthority(cluster string, life time.Duration, now time.Time) (PeerPair, error) {
	if !nodeName.MatchString(cluster) {
		return PeerPair{}, fmt.Errorf("cluster: want 1 to 63 letters, digits, dots, dashes and underscores, not %s", quote(cluster))
	}
	serial, err := newSerial()
	if err != nil {
		return PeerPair{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		// The serial tells two authorities of one cluster apart, for people and in chains.
		Subject:               pkix.Name{CommonName: "Sluice peers of " + cluster, SerialNumber: serial.Text(16)},
		NotBefore:             now.Add(-nodeCertSlack),
		NotAfter:              now.Add(life),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	return issue(template, nil, nil)
}

// ErrPeerAuthority is of what was given and is no authority that could sign.
var ErrPeerAuthority = errors.New("not an authority's certificate and key")

// NewPeerCertificate makes the certificate of one node, signed by an authority as NewPeerAuthority makes one, or by any other whose
// certificate and key (PKCS #8) fit. It ends with the authority at the latest.
func NewPeerCertificate(authority PeerPair, id PeerIdentity, life time.Duration, now time.Time) (PeerPair, error) {
	if !nodeName.MatchString(id.Cluster) {
		return PeerPair{}, fmt.Errorf("cluster: want 1 to 63 letters, digits, dots, dashes and underscores, not %s", quote(id.Cluster))
	}
	if !validNodeID(id.NodeID) {
		return PeerPair{}, fmt.Errorf("node id: want %s and 26 characters, as `sluice cert id` prints it, not %s", nodeIDPrefix, quote(id.NodeID))
	}
	pair, err := tls.X509KeyPair(authority.Certificate, authority.Key)
	if err != nil {
		return PeerPair{}, fmt.Errorf("%w: %w", ErrPeerAuthority, err)
	}
	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA || pair.Leaf.KeyUsage&x509.KeyUsageCertSign == 0 {
		return PeerPair{}, fmt.Errorf("%w: the certificate of %q may not sign others", ErrPeerAuthority, pair.Leaf.Subject.CommonName)
	}
	if now.After(pair.Leaf.NotAfter) {
		return PeerPair{}, fmt.Errorf("%w: it ended %s", ErrPeerAuthority, pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	serial, err := newSerial()
	if err != nil {
		return PeerPair{}, err
	}
	ends := now.Add(life)
	if ends.After(pair.Leaf.NotAfter) {
		ends = pair.Leaf.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: id.NodeID},
		NotBefore:             now.Add(-nodeCertSlack),
		NotAfter:              ends,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:                  []*url.URL{identityURI(id)},
	}
	return issue(template, pair.Leaf, signer)
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return serial, nil
}

// issue makes a key and signs its certificate; a nil signer lets it sign itself.
func issue(template, parent *x509.Certificate, signer crypto.Signer) (PeerPair, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return PeerPair{}, fmt.Errorf("make a key: %w", err)
	}
	if signer == nil {
		parent, signer = template, private
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		return PeerPair{}, fmt.Errorf("sign a certificate: %w", err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return PeerPair{}, fmt.Errorf("encode a key: %w", err)
	}
	return PeerPair{
		Certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:         pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		NotAfter:    template.NotAfter,
	}, nil
}

// NodeID is the id of the node whose data directory that is. It is made, with the directory, where there is none yet: a certificate
// can name a node before it starts for the first time. A node that runs is not disturbed.
func NodeID(dataDirectory string, now time.Time) (string, error) {
	d, err := openDataDir(dataDirectory, now)
	if err == nil {
		return d.NodeID, d.close()
	}
	if !errors.Is(err, ErrDataDirInUse) {
		return "", err
	}
	running := &dataDir{path: dataDirectory}
	found, err := running.read(identityFile, &running.identity)
	if err == nil && !found {
		err = fmt.Errorf("read %s: %w", filepath.Join(dataDirectory, identityFile), fs.ErrNotExist)
	}
	if err != nil {
		return "", err
	}
	if !validNodeID(running.NodeID) {
		return "", fmt.Errorf("%s: malformed node id", filepath.Join(dataDirectory, identityFile))
	}
	return running.NodeID, nil
}
