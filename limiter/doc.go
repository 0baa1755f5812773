// Package limiter decides whether a request may go on, against limits that hold over the whole cluster and are decided
// on the node that took the request.
package limiter
