package authapi

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"unicode/utf8"

	"github.com/valyala/fasthttp"
)

// maxHeader bounds a request's first line and header lines together, in bytes.
const maxHeader = 16 << 10

// requestIDMax bounds a request id that a trusted proxy chose.
const requestIDMax = 64

const crockford = "0123456789abcdefghjkmnpqrstvwxyz"

// takeRequestID takes a trusted proxy's X-Request-Id where it is sane, so that one id follows a request through all logs.
func (c *call) takeRequestID() {
	if c.client.trusted {
		if id := c.ctx.Request.Header.PeekBytes(headerRequestID); len(id) > 0 && len(id) <= requestIDMax && isToken(id) {
			c.idLen = copy(c.idBuf[:], id)
		}
	}
}

// newRequestID makes an id of 120 random bits, which need not be secret.
func (c *call) newRequestID() {
	c.idLen = 24
	for i := 0; i < c.idLen; i += 12 {
		bits := rand.Uint64()
		for j := range 12 {
			c.idBuf[i+j] = crockford[bits&31]
			bits >>= 5
		}
	}
}

func isToken(b []byte) bool {
	for _, ch := range b {
		if !isBase62(ch) && ch != '-' && ch != '_' && ch != '.' {
			return false
		}
	}
	return true
}

// canonicalPath says whether a path as sent means one thing only to every server on its way: it begins with a slash,
// has no empty, "." or ".." segment but for a last empty one, no backslash, semicolon, hash sign, control or non-ASCII byte,
// and escapes (%XX) nothing that would change that, that needs no escape, or that is not UTF-8: of that, some decoders make
// dots and slashes.
func canonicalPath(p []byte) bool {
	if len(p) == 0 || p[0] != '/' {
		return false
	}
	for i := 0; i < len(p); i++ {
		switch ch := p[i]; {
		case ch <= ' ' || ch >= 0x7f || ch == '\\' || ch == ';' || ch == '#':
			return false
		case ch == '/':
			rest := p[i+1:]
			switch {
			case len(rest) == 0:
			case rest[0] == '/':
				return false
			case rest[0] == '.' && (len(rest) == 1 || rest[1] == '/' || rest[1] == '.' && (len(rest) == 2 || rest[2] == '/')):
				return false
			}
		case ch == '%':
			if i+2 >= len(p) {
				return false
			}
			high, ok1 := unhex(p[i+1])
			low, ok2 := unhex(p[i+2])
			if !ok1 || !ok2 {
				return false
			}
			switch d := high<<4 | low; {
			case d < ' ' || d == 0x7f || d == '/' || d == '\\' || d == '%' || d == ';' || d == '.':
				return false
			case isBase62(d) || d == '-' || d == '_' || d == '~':
				return false
			case d >= utf8.RuneSelf:
				n, ok := escapedRune(p[i:])
				if !ok {
					return false
				}
				i += 3 * (n - 1)
			}
			i += 2
		}
	}
	return true
}

// escapedRune says how many escapes at the beginning of p are one character in UTF-8.
func escapedRune(p []byte) (n int, ok bool) {
	var b [utf8.UTFMax]byte
	for n < len(b) && len(p) >= 3 && p[0] == '%' && !utf8.FullRune(b[:n]) {
		high, ok1 := unhex(p[1])
		low, ok2 := unhex(p[2])
		if !ok1 || !ok2 {
			return 0, false
		}
		b[n] = high<<4 | low
		n++
		p = p[3:]
	}
	r, size := utf8.DecodeRune(b[:n])
	return n, size == n && (r != utf8.RuneError || n > 1)
}

func unhex(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10, true
	}
	return 0, false
}

var errPanic = errors.New("handler panicked")

// handleBroken answers what could not be read as a request; the connection closes after it. It shows the anonymous
// policy of the peer and spends nothing: the headers that would say more may not have been read.
func (s *Server) handleBroken(ctx *fasthttp.RequestCtx, err error) {
	c := s.acquireCall(ctx)
	defer c.finish()
	c.closeAfter = true // as fasthttp does
	c.newRequestID()
	c.client = client{peer: peerAddr(ctx.RemoteAddr())}
	c.client.addr = c.client.peer
	c.decision.add(c.live.policies.anonymous, c.addressBucket(c.live.policies.anonymous), 1)
	c.peek()
	c.fail(brokenProblem(err))
}

// brokenProblem says what is wrong with what could not be read as a request.
func brokenProblem(err error) *Problem {
	var small *fasthttp.ErrSmallBuffer
	var netErr net.Error
	switch {
	case errors.As(err, &small):
		return problem(http.StatusRequestHeaderFieldsTooLarge, "headers_too_large", "the request's headers are longer than 16 KiB")
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		return errBodyTooLarge
	case errors.As(err, &netErr) && netErr.Timeout():
		return errRequestTimeout
	}
	return problem(http.StatusBadRequest, "malformed_request", "the request is not well-formed HTTP/1.1")
}

// httpLogger gives fasthttp's own messages, which are about connections, to the log.
type httpLogger struct{ log *slog.Logger }

func (l httpLogger) Printf(format string, args ...any) {
	l.log.Debug("http server", "message", fmt.Sprintf(format, args...))
}
