package node

import (
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
)

// sentTrace tells whether any part of a request can have reached the other end, so that a failed dial counts as
// "nothing happened".
type sentTrace struct {
	req  *http.Request
	sent *atomic.Bool
}

// traceSent returns the request with the trace in its context.
func traceSent(req *http.Request) sentTrace {
	sent := new(atomic.Bool)
	// Once a connection is there, the request may be on its way: what comes before it is dialling.
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }}
	return sentTrace{req: req.WithContext(httptrace.WithClientTrace(req.Context(), trace)), sent: sent}
}

func (t sentTrace) any() bool { return t.sent.Load() }
