package authapi

import (
	"bytes"
	"sync/atomic"
)

// malformed counts what was to name a client and did not, so that the peer stood in.
type malformed struct {
	forwardedFor, forwarded, proxyProtocol atomic.Uint64
}

// MalformedCount is how often a trusted proxy named a client in a way that could not be used, since the server was made. The
// request then counted for the peer; without a proper PROXY header the connection was closed.
type MalformedCount struct {
	Source string // "x-forwarded-for", "forwarded" or "proxy_protocol"
	Count  uint64
}

// MalformedAddresses lists all sources. Safe for concurrent use.
func (s *Server) MalformedAddresses() []MalformedCount {
	return []MalformedCount{
		{"x-forwarded-for", s.malformed.forwardedFor.Load()},
		{"forwarded", s.malformed.forwarded.Load()},
		{"proxy_protocol", s.malformed.proxyProtocol.Load()},
	}
}

// hop is one element of a Forwarded header (RFC 7239): what one proxy says of the request that it got. Parts that it leaves out
// are nil.
type hop struct {
	node, proto, host []byte
}

// lastElement is where the last element of a list begins. Commas in quoted strings divide nothing. From the right it does not
// matter what a client wrote before: a proxy's own element is well-formed and stands behind it.
func lastElement(line []byte) int {
	quoted := false
	for i := len(line) - 1; i >= 0; i-- {
		switch line[i] {
		case '"':
			if !escaped(line, i) {
				quoted = !quoted
			}
		case ',':
			if !quoted {
				return i + 1
			}
		}
	}
	return 0
}

// escaped says whether an odd number of backslashes stands before b[i].
func escaped(b []byte, i int) bool {
	n := 0
	for i--; i >= 0 && b[i] == '\\'; i-- {
		n++
	}
	return n%2 == 1
}

// parseHop reads one element: pairs of a name and a token or quoted string, divided by semicolons. Each name may occur once.
// What needs an escape is no address, host or scheme, so a quoted string with one is taken for no value at all. Spaces around
// pairs, which the standard does not have, are what some proxies write.
func parseHop(b []byte) (h hop, ok bool) {
	for {
		b = trimSpace(b)
		if len(b) == 0 {
			return h, true
		}
		if b[0] == ';' {
			b = b[1:]
			continue
		}
		eq := 0
		for eq < len(b) && isTokenChar(b[eq]) {
			eq++
		}
		if eq == 0 || eq == len(b) || b[eq] != '=' {
			return hop{}, false
		}
		name := b[:eq]
		value, rest, ok := forwardedValue(b[eq+1:])
		if !ok {
			return hop{}, false
		}
		if b = trimSpace(rest); len(b) > 0 && b[0] != ';' {
			return hop{}, false
		}
		var part *[]byte
		switch {
		case equalFold(name, "for"):
			part = &h.node
		case equalFold(name, "proto"):
			part = &h.proto
		case equalFold(name, "host"):
			part = &h.host
		default:
			continue
		}
		if *part != nil {
			return hop{}, false
		}
		*part = value
	}
}

// forwardedValue takes a token or a quoted string off b. The value is never nil.
func forwardedValue(b []byte) (value, rest []byte, ok bool) {
	if len(b) == 0 {
		return nil, nil, false
	}
	if b[0] != '"' {
		// A colon or a bracket takes quotes, by the standard, and some leave them out.
		n := 0
		for n < len(b) && (isTokenChar(b[n]) || b[n] == ':' || b[n] == '[' || b[n] == ']') {
			n++
		}
		return b[:n:n], b[n:], n > 0
	}
	for i := 1; i < len(b); i++ {
		switch b[i] {
		case '"':
			if v := b[1:i:i]; bytes.IndexByte(v, '\\') < 0 {
				return v, b[i+1:], true
			}
			return []byte{}, b[i+1:], true
		case '\\':
			i++
		}
	}
	return nil, nil, false
}

// isTokenChar says whether c may stand in a token (RFC 9110, section 5.6.2).
func isTokenChar(c byte) bool {
	switch c {
	case '!', '#', '$', '%', '&', '\'', '*', '+', '-', '.', '^', '_', '`', '|', '~':
		return true
	}
	return isBase62(c)
}

// plainNode drops a port that only the proxy knows the meaning of ("192.0.2.1:_x").
func plainNode(node []byte) []byte {
	if i := bytes.LastIndexByte(node, ':'); i > 0 && i+1 < len(node) && node[i+1] == '_' {
		return node[:i]
	}
	return node
}
