package authapi

import (
	"bytes"
	"net/http"

	"github.com/valyala/fasthttp"
)

// misreadable says what in a request another server on its way may read differently, "" for nothing. fasthttp itself refuses most
// of what is not well-formed; what it is lenient about is refused here. testdata/smuggling has a case for each.
func misreadable(req *fasthttp.Request) string {
	h := &req.Header
	if p := h.Protocol(); string(p) != "HTTP/1.1" && string(p) != "HTTP/1.0" {
		return "the request is not of HTTP/1.1 or 1.0"
	}
	if framedTwice(h) {
		return "the request has a Content-Length and a Transfer-Encoding"
	}
	if !plainLines(h.RawHeaders()) {
		return "a header line is folded, does not end with CR and LF, or has no proper name"
	}
	host, target := h.Host(), h.RequestURI()
	if !plainHost(host) {
		return "the host is not a name or an address"
	}
	if target[0] != '/' && !bytes.EqualFold(req.URI().Host(), host) {
		return "the request is for another host than its Host header says"
	}
	for _, ch := range target {
		if ch <= ' ' || ch == 0x7f || ch == '#' {
			return "the request's target has a fragment or a control character"
		}
	}
	return ""
}

// plainLines says whether all header lines end with CR and LF and begin with a name and its colon. Others take a line that begins
// with a space for the end of the one before, and a bare LF for the end of a line or for a part of it.
func plainLines(raw []byte) bool {
	for len(raw) > 0 {
		end := bytes.IndexByte(raw, '\n')
		if end < 1 || raw[end-1] != '\r' {
			return false
		}
		line := raw[:end-1]
		raw = raw[end+1:]
		if len(line) == 0 {
			continue // the end of all
		}
		n := 0
		for n < len(line) && isTokenChar(line[n]) {
			n++
		}
		if n == 0 || n == len(line) || line[n] != ':' {
			return false
		}
	}
	return true
}

// plainHost says whether b can be a name or an address with a port or without one. There is none in HTTP/1.0.
func plainHost(b []byte) bool {
	for _, ch := range b {
		if !isBase62(ch) && ch != '-' && ch != '.' && ch != '_' && ch != '~' && ch != ':' && ch != '[' && ch != ']' {
			return false
		}
	}
	return true
}

// expect is fasthttp's ExpectHandler: a body that nobody will read is refused before the client sends it. A gateway route's request
// is decided on here altogether.
func (s *Server) expect(ctx *fasthttp.RequestCtx) int {
	path := ctx.Request.URI().PathOriginal()
	if _, envoy := envoyRest(path); !envoy && canonicalPath(path) {
		var params [maxParams][]byte
		if s.router.find(path, &params) == nil {
			if r := s.live.Load().matcher.match(ctx.Request.URI().Host(), path); r != nil && r.upstreams != nil {
				return s.admit(ctx)
			}
		}
	}
	if ctx.Request.Header.ContentLength() <= maxBody {
		return http.StatusContinue
	}
	s.handle(ctx) // which never gets as far as to read it
	return ctx.Response.StatusCode()
}

// framedTwice says whether a request has both a Content-Length and a Transfer-Encoding, on which servers disagree where
// it ends. fasthttp serves such a request and closes the connection; we refuse it.
func framedTwice(h *fasthttp.RequestHeader) bool {
	switch n := h.ContentLength(); {
	case n == -1: // chunked
		return rawCount(h.RawHeaders(), "content-length") > 0
	case n >= 0:
		return rawCount(h.RawHeaders(), "transfer-encoding") > 0
	}
	return false
}

// rawCount counts the header lines of that name, in lower case, as they were sent.
func rawCount(raw []byte, name string) int {
	n := 0
	for len(raw) > 0 {
		line := raw
		if i := bytes.IndexByte(raw, '\n'); i >= 0 {
			line, raw = raw[:i], raw[i+1:]
		} else {
			raw = nil
		}
		if i := bytes.IndexByte(line, ':'); i >= 0 && equalFold(line[:i], name) {
			n++
		}
	}
	return n
}
