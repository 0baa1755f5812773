package node

import (
	"errors"

	"sluice/authapi"
)

// Errors that end a node. Each is final for this process: starting again without a change gives it again.
var (
	// ErrDataDirInUse: another process holds the data directory.
	ErrDataDirInUse = errors.New("data directory is in use by another process")
	// ErrLogLost: the data directory says that this node has joined a cluster, and its log is gone. Going on would let it
	// vote twice in one term. Remove the node from the cluster, empty the directory and join as a new one.
	ErrLogLost = errors.New("the log of a node that had joined a cluster is gone")
	// ErrNotMember: the initial members have formed a cluster already and this data directory is no part of it. A new
	// node has to join instead.
	ErrNotMember = errors.New("the cluster exists already and this node is not a member of it")
	// ErrFormationChanged: an initial member lost its data directory while the cluster was being formed, and nobody can
	// tell whether it had been formed. All initial members have to start over with empty data directories.
	ErrFormationChanged = errors.New("an initial member changed its identity while the cluster was being formed")
	// ErrOtherKey: this node's key for secrets at rest (secrets.key) is not the one the cluster's secrets are sealed with.
	ErrOtherKey = errors.New("the key for secrets at rest is not the cluster's")
	// ErrRemoved: the cluster removed this node from its configuration.
	ErrRemoved = errors.New("this node was removed from the cluster")
	// ErrLeft: this data directory is of a node that left the cluster for good; another node has its shares. Empty it and
	// join as a new one.
	ErrLeft = errors.New("this node has left the cluster for good")
	// ErrNoSpace: there is less space on the data directory's disk than storage.critical_free_bytes and _percent say. The node starts once there is more.
	ErrNoSpace = errors.New("no space to start on")
	// ErrWeakSecret: a secret is too short or too plain to be one. `sluice secret new` prints a good one.
	ErrWeakSecret = errors.New("weak secret")
)

// Errors between nodes.
var (
	// errOtherSecret: the peer's certificate was not made under this cluster's secret.
	errOtherSecret = errors.New("the peer does not hold this cluster's secret")
	// errOtherCluster: the peer holds the secret but belongs to a cluster of another name or id.
	errOtherCluster = errors.New("the peer belongs to another cluster")
	// errOtherNode: the address is held by another node than the one that was meant.
	errOtherNode = errors.New("another node answers at the address")
	// errOtherAuthority: the peer's certificate is of no authority that this node trusts.
	errOtherAuthority = errors.New("the peer's certificate is of an authority that this node does not trust")
	// errCertificateEnded: the peer's certificate is not good any more, or not yet.
	errCertificateEnded = errors.New("the peer's certificate is not good at this time")
	// errNoPeerCertificate and errNamesNoNode: the peer shows none, or one that is no node's.
	errNoPeerCertificate = errors.New("the peer shows no certificate")
	errNamesNoNode       = errors.New("the peer's certificate names no node of a cluster")
	// errCrowded: the peer has as many connections as it may.
	errCrowded = errors.New("too many connections of one peer")
	// errNoProtocol: the peer speaks TLS and nothing else that is known.
	errNoProtocol = errors.New("the peer chose no protocol")
	// errNotLeader: the asked node does not lead. Nothing happened.
	errNotLeader = errors.New("not the leader")
	// errUnavailable: it did not happen and may be tried again. The same value that authapi answers 503 for.
	errUnavailable = authapi.ErrUnavailable
	// errUnknown: it may have happened; only a repetition under the same request id is safe.
	errUnknown = authapi.ErrUnknown
	// errStandsBack: this node stands back from leading and sends nothing through Raft.
	errStandsBack = errors.New("this node stands back from leading")
	// errNotSent: the call never left this node.
	errNotSent = errors.New("call not sent")
	// errNoSuchCall: the asked node is of a version that does not know the call. Nothing happened.
	errNoSuchCall = errors.New("the node's version does not know the call")
	// errNoAddress: no address of the node is known.
	errNoAddress = errors.New("no address known")
)
