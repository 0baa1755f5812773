package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
)

// refusalKinds are why a peer, or what takes itself for one, is not let in or not spoken to: the label of the metric, and what an
// operator is told to do. The order is that in which an error is looked at.
var refusalKinds = []struct {
	reason string
	is     func(error) bool
	hint   string
}{
	{"cluster", is(errOtherCluster), "one of the two has another cluster in its configuration, or the address is of another cluster's node"},
	{"node", is(errOtherNode), "the address is another node's now: if the one that was meant is gone for good, `sluice cluster remove` it"},
	{"secret", is(errOtherSecret), "give both the same secrets.cluster; where one has peer.tls_cert and the other none, see peer.tls_ca and peer.tls_accept_secret"},
	{"authority", is(errOtherAuthority), "peer.tls_ca has to hold the authority of every node's certificate, on every node, also while one replaces another"},
	{"expired", is(errCertificateEnded), "make that node a new certificate (`sluice cert new node`), or set its clock or this one's right"},
	{"certificate", func(err error) bool {
		return errors.Is(err, errNoPeerCertificate) || errors.Is(err, errNamesNoNode) || isCertificateError(err)
	}, "a node shows a certificate of its own that names its cluster and its id (`sluice cert new node`); others have no business here"},
	{"crowded", is(errCrowded), "the node opens connections and does not close them: look at its log"},
	{"refused", isRefusedByPeer, "the other node's log says why, at this time and with this node's address"},
	{"protocol", isNoTLS, "whatever is at the other end does not speak Sluice's protocol between nodes: a scanner, a health check or a wrong port"},
	{"timeout", func(err error) bool {
		return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || isNetTimeout(err)
	}, "the other end did not finish its handshake: a scanner, a health check, a stalled node or a lossy network"},
	{"broken", func(error) bool { return true }, "the connection ended in the middle of the handshake: a health check, a node that went down, or a network that cuts it"},
}

func is(target error) func(error) bool {
	return func(err error) bool { return errors.Is(err, target) }
}

func isNetTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func isCertificateError(err error) bool {
	var invalid x509.CertificateInvalidError
	var critical x509.UnhandledCriticalExtension
	var algorithm x509.InsecureAlgorithmError
	return errors.As(err, &invalid) || errors.As(err, &critical) || errors.As(err, &algorithm)
}

// isRefusedByPeer says whether the other end ended the handshake by an alert.
func isRefusedByPeer(err error) bool {
	var alert tls.AlertError
	var remote *net.OpError
	return errors.As(err, &alert) || errors.As(err, &remote) && remote.Op == "remote error"
}

// isNoTLS says whether this end could make nothing of what the other one sent: those errors of the library have no type.
func isNoTLS(err error) bool {
	var record tls.RecordHeaderError
	var network *net.OpError
	return errors.As(err, &record) || errors.Is(err, errNoProtocol) ||
		!errors.As(err, &network) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, net.ErrClosed) && !isNetTimeout(err)
}

// refusals count and tell of handshakes that came to nothing. Safe for concurrent use.
type refusals struct {
	counts []atomic.Int64 // by refusalKinds
	once   onceIn
}

func newRefusals() *refusals { return &refusals{counts: make([]atomic.Int64, len(refusalKinds))} }

// note counts one and tells of it: every reason of an address once in a while, whatever a stranger makes of the error's text. who is
// what the other end says of itself in a certificate, the zero value for nothing.
func (r *refusals) note(log *slog.Logger, message, address string, who PeerIdentity, err error) {
	for i, kind := range refusalKinds {
		if !kind.is(err) {
			continue
		}
		r.counts[i].Add(1)
		host, _, splitErr := net.SplitHostPort(address)
		if splitErr != nil {
			host = address
		}
		if !r.once.allow(kind.reason+" "+host, refusedLogInterval) {
			return
		}
		attributes := []any{"address", address, "reason", kind.reason, "error", clipText(err.Error(), 300), "hint", kind.hint}
		if who.NodeID != "" {
			attributes = append(attributes, "claims_node", who.NodeID, "claims_cluster", clipText(who.Cluster, 100))
		}
		log.Warn(message, attributes...)
		return
	}
}

// read writes a sample for each reason.
func (r *refusals) read(out *samples) {
	for i, kind := range refusalKinds {
		out.add("", fmt.Sprintf("reason=%q", kind.reason), float64(r.counts[i].Load()))
	}
}

// claimed is who the other end says it is, believed or not.
func claimed(cs tls.ConnectionState) PeerIdentity {
	if len(cs.PeerCertificates) == 0 {
		return PeerIdentity{}
	}
	id, err := certificateIdentity(cs.PeerCertificates[0])
	if err != nil {
		return PeerIdentity{}
	}
	return id
}

// claimError is a refused certificate with who it says it is of.
type claimError struct {
	who PeerIdentity
	err error
}

func (e *claimError) Error() string { return e.err.Error() }
func (e *claimError) Unwrap() error { return e.err }

// withClaims lets errors of config's check carry who was refused: the connection's state has no certificates of a failed handshake.
func withClaims(config *tls.Config) *tls.Config {
	verify := config.VerifyConnection
	if verify == nil {
		return config
	}
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verify(cs); err != nil {
			return &claimError{who: claimed(cs), err: err}
		}
		return nil
	}
	return config
}

func whoClaims(err error) PeerIdentity {
	var claim *claimError
	if errors.As(err, &claim) {
		return claim.who
	}
	return PeerIdentity{}
}

// peerHandshakeError says in whose eyes a handshake failed.
func peerHandshakeError(err error) error {
	var claim *claimError
	switch {
	case errors.As(err, &claim):
		return err
	case isRefusedByPeer(err):
		return fmt.Errorf("the peer refused this node: %w", err)
	}
	return fmt.Errorf("peer handshake: %w", err)
}
