package authapi

import "errors"

var (
	// ErrUnavailable: the change did not happen and may be tried again (no leader, full queue). Answered 503.
	ErrUnavailable = errors.New("cluster unavailable")
	// ErrUnknown: the change may or may not have happened. Answered 503; only a retry under the same request id is safe.
	ErrUnknown = errors.New("outcome unknown")
	// ErrOverloaded: a bounded queue (password hashing) is full; nothing happened. Answered 503.
	ErrOverloaded = errors.New("overloaded")
	// ErrSecretsKey: this node's key for secrets at rest is not the one that the cluster's secrets are encrypted under.
	// Retrying does not help: the node needs the cluster's key.
	ErrSecretsKey = errors.New("key for secrets at rest is not the cluster's")
)

// errSigningKeys: a rotation was asked for while the last one is not in force yet, or while too many keys still verify.
// It may be tried again when their last tokens have ended.
var errSigningKeys = errors.New("too many signing keys still verify")

// errDraining is the reason of /readyz while the node is being shut down.
var errDraining = errors.New("shutting down")
