package authapi

import "errors"

var (
	// ErrUnavailable: the change did not happen and may be tried again (no leader, full queue). Answered 503.
	ErrUnavailable = errors.New("cluster unavailable")
	// ErrUnknown: the change may or may not have happened. Answered 503; only a retry under the same request id is safe.
	ErrUnknown = errors.New("outcome unknown")
	// ErrOverloaded: a bounded queue (password hashing) is full; nothing happened. Answered 503.
	ErrOverloaded = errors.New("overloaded")
)

// errDraining is the reason of /readyz while the node is being shut down.
var errDraining = errors.New("shutting down")
