package authapi

import (
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strconv"

	"github.com/valyala/fasthttp"
)

// Description is a request that a proxy asks about over a protocol of its own.
type Description struct {
	Method, Host string
	Path         string // as sent, with its query
	// Source is the other end of the connection to the proxy; the zero address where it has none. Where it is a trusted
	// proxy, the headers tell the client.
	Source netip.Addr
	// Headers are pairs of name and value, in the order of the request. Those that the check does not read may be left out;
	// see DescribedHeader.
	Headers   []HeaderPair
	RequestID string // "": a new one

	// What the operator asks for beside the route's rules; it can only tighten them.
	Scopes        []string
	DenyAnonymous bool
	Cost          int64
}

// Answer is what a check says of a Description, in HTTP's words.
type Answer struct {
	Status  int // as the forward-auth check over HTTP: 200, or 400, 401, 403, 429, 503
	Headers []HeaderPair
	Body    []byte
}

// describedHeaders are those that the check reads, in lower case.
var describedHeaders = map[string]bool{"authorization": true, "x-api-key": true, "x-forwarded-for": true, "forwarded": true}

// DescribedHeader says whether the check reads a header, whose name is in lower case.
func DescribedHeader(name string) bool { return describedHeaders[name] }

// IdentityHeaderNames are the names that a check that passes gives the client's identity under.
func (s *Server) IdentityHeaderNames() []string {
	n := &s.identity
	return []string{string(n.method), string(n.user), string(n.organization), string(n.key), string(n.scopes)}
}

// describedRoute is the row of checks that do not come over HTTP.
var describedRoute = &route{method: "ANY", pattern: "check of a described request", handle: handleVerify, verify: dialectDescribed}

// CheckDescribed is the forward-auth check for a request that comes described: the same decision as the HTTP endpoints', by
// the same code. Whoever may call it is believed. Safe for concurrent use.
func (s *Server) CheckDescribed(d *Description) Answer {
	var ctx fasthttp.RequestCtx
	var peer net.Addr
	if d.Source.IsValid() {
		peer = net.TCPAddrFromAddrPort(netip.AddrPortFrom(d.Source, 0))
	}
	ctx.Init(&fasthttp.Request{}, peer, httpLogger{s.log})
	ctx.Response.Header.SetNoDefaultContentType(true)
	h := &ctx.Request.Header
	h.SetMethod(http.MethodGet)
	h.SetHost(d.Host)
	for _, pair := range d.Headers {
		h.Add(pair.Name, pair.Value)
	}
	args := ctx.QueryArgs() // of the check; the described request's own are in d.Path
	for _, scope := range d.Scopes {
		args.Add("scope", scope)
	}
	if d.DenyAnonymous {
		args.Set("anonymous", "deny")
	}
	if d.Cost > 1 {
		args.Set("cost", strconv.FormatInt(d.Cost, 10))
	}
	s.handleDescribed(&ctx, d)
	a := Answer{Status: ctx.Response.StatusCode(), Body: append([]byte(nil), ctx.Response.Body()...)}
	for name, value := range ctx.Response.Header.All() {
		if string(name) != fasthttp.HeaderContentLength {
			a.Headers = append(a.Headers, HeaderPair{string(name), string(value)})
		}
	}
	return a
}

// handleDescribed is handle for such a request.
func (s *Server) handleDescribed(ctx *fasthttp.RequestCtx, d *Description) {
	c := s.acquireCall(ctx)
	defer c.finish()
	c.newRequestID()
	if id := d.RequestID; id != "" && len(id) <= requestIDMax && isToken([]byte(id)) {
		c.idLen = copy(c.idBuf[:], id)
	}
	c.client = s.clientOf(ctx)
	c.asked = d
	err := c.verifyDescribed()
	for errors.Is(err, errLiveMoved) {
		c.again()
		err = c.verifyDescribed()
	}
	if err != nil {
		c.fail(err)
	}
}

func (c *call) verifyDescribed() error {
	c.route = describedRoute
	if !plainHost([]byte(c.asked.Host)) {
		return c.reject(problem(http.StatusBadRequest, "malformed_request", "the host is not a name or an address"))
	}
	return c.verify()
}
