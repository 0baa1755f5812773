package authapi

import (
	"bytes"
	"net"
	"net/netip"
	"unsafe"

	"github.com/valyala/fasthttp"
)

// client is where a request comes from.
type client struct {
	peer    netip.Addr // the other end of the connection
	addr    netip.Addr // the client as far as trusted proxies tell
	trusted bool       // peer is a trusted proxy
	hop     []byte     // the entry of the list that names addr; nil for none. It dies with the call
}

// subject is the address as a bucket knows it: 4 bytes of IPv4, or the /64 of IPv6, which is what one subscriber gets.
func (cl *client) subject(buf *[16]byte) []byte {
	if cl.addr.Is4() {
		a := cl.addr.As4()
		return append(buf[:0], a[:]...)
	}
	a := cl.addr.As16()
	return append(buf[:0], a[:8]...)
}

// clientOf finds the client: the peer, unless that is a trusted proxy; then the right-most entry of X-Forwarded-For, or of
// Forwarded where that is configured, that is not one, all header lines being one list. Where every entry is a trusted
// proxy the left-most stands, and where an entry that has to be looked at is not an address, the peer.
func (s *Server) clientOf(ctx *fasthttp.RequestCtx) client {
	cl := client{peer: peerAddr(ctx.RemoteAddr())}
	cl.addr = cl.peer
	if !s.isTrusted(cl.peer) {
		return cl
	}
	cl.trusted = true
	if s.cfg.Forwarded {
		s.follow(&cl, ctx.Request.Header.PeekAll("Forwarded"))
	} else {
		s.follow(&cl, ctx.Request.Header.PeekAll("X-Forwarded-For"))
	}
	return cl
}

// follow goes along the lines of the list from the right, as far as they come from trusted proxies.
func (s *Server) follow(cl *client, lines [][]byte) {
	for i := len(lines) - 1; i >= 0; i-- {
		line := lines[i]
		for end := len(line); end >= 0; {
			var start int
			if s.cfg.Forwarded {
				start = lastElement(line[:end])
			} else {
				start = bytes.LastIndexByte(line[:end], ',') + 1
			}
			entry := trimSpace(line[start:end])
			end = start - 1
			if len(entry) == 0 {
				continue
			}
			addr, ok := s.forwardedAddr(entry)
			if !ok {
				cl.addr, cl.hop = cl.peer, nil
				return
			}
			cl.addr, cl.hop = addr, entry
			if !s.isTrusted(addr) {
				return
			}
		}
	}
}

// forwardedAddr reads an entry of the list, and counts one that is no address.
func (s *Server) forwardedAddr(entry []byte) (netip.Addr, bool) {
	if !s.cfg.Forwarded {
		addr, ok := parseForwarded(entry)
		if !ok {
			s.malformed.forwardedFor.Add(1)
		}
		return addr, ok
	}
	h, ok := parseHop(entry)
	if node := plainNode(h.node); ok && len(node) > 0 {
		if addr, ok := parseForwarded(node); ok {
			return addr, true
		}
	}
	s.malformed.forwarded.Add(1)
	return netip.Addr{}, false
}

func (s *Server) isTrusted(a netip.Addr) bool {
	for i := range s.cfg.TrustedProxies {
		if s.cfg.TrustedProxies[i].Contains(a) {
			return true
		}
	}
	return false
}

// peerAddr is the address of a connection; the zero address where it has none (a Unix socket), which is trusted by nobody.
func peerAddr(addr net.Addr) netip.Addr {
	if tcp, ok := addr.(*net.TCPAddr); ok {
		if a, ok := netip.AddrFromSlice(tcp.IP); ok {
			return a.Unmap()
		}
	}
	return netip.IPv4Unspecified()
}

// parseForwarded reads one X-Forwarded-For entry: an address, in brackets or with a port as some proxies write it.
// Zones and anything longer than an address are refused before the parser would allocate for them.
func parseForwarded(b []byte) (netip.Addr, bool) {
	const longest = len("[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255]:65535")
	if len(b) > longest {
		return netip.Addr{}, false
	}
	host := b
	if b[0] == '[' {
		end := -1
		for i, c := range b {
			if c == ']' {
				end = i
				break
			}
		}
		if end < 0 || !isPort(b[end+1:]) {
			return netip.Addr{}, false
		}
		host = b[1:end]
	} else if colon, n := lastColon(b); n == 1 {
		if !isPort(b[colon:]) {
			return netip.Addr{}, false
		}
		host = b[:colon]
	}
	if len(host) == 0 {
		return netip.Addr{}, false
	}
	for _, c := range host {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F' || c == '.' || c == ':') {
			return netip.Addr{}, false
		}
	}
	a, err := netip.ParseAddr(unsafe.String(&host[0], len(host))) // keeps nothing of its argument without a zone
	if err != nil {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

// lastColon finds the last colon and counts them all.
func lastColon(b []byte) (at, count int) {
	at = -1
	for i, c := range b {
		if c == ':' {
			at = i
			count++
		}
	}
	return at, count
}

// isPort accepts "" and ":" with one to five digits.
func isPort(b []byte) bool {
	if len(b) == 0 {
		return true
	}
	if b[0] != ':' || len(b) < 2 || len(b) > 6 {
		return false
	}
	for _, c := range b[1:] {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

func trimSpace(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}
