package authapi

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"
)

// errBadGateway and errGatewayTimeout answer for an upstream that cannot be reached or does not answer.
func errBadGateway() *Problem {
	return problem(http.StatusBadGateway, "bad_gateway", "the upstream could not be reached or broke off")
}

func errGatewayTimeout() *Problem {
	return problem(http.StatusGatewayTimeout, "gateway_timeout", "the upstream did not answer in time")
}

// gateway is the whole of a request to a configured route that has an upstream: the caller's limit, what the route's
// rule needs, and the upstream's answer.
func (c *call) gateway(r *configured) error {
	c.route = r.row
	need := r.rule(c.ctx.Method())
	cost := int64(1)
	c.target = r
	if need != nil {
		cost, c.open = need.cost, need.anonymous
	}
	if err := c.authenticate(cost); err != nil {
		return err
	}
	if need == nil {
		p := problem(http.StatusMethodNotAllowed, "method_not_allowed", "this path does not take the method; Allow lists those that it takes")
		p.Allow = r.allow()
		return p
	}
	if err := c.permitRule(need); err != nil {
		return err
	}
	return c.proxy(r)
}

// handleGateway stands in the rows of configured routes, which are run by gateway.
func handleGateway(c *call) error { return errNotFound() }

// proxy passes the request to the upstream and its answer back. Bodies are streamed both ways.
func (c *call) proxy(r *configured) error {
	in := &c.ctx.Request
	length := in.Header.ContentLength()
	if int64(length) > r.maxBody {
		return problem(http.StatusRequestEntityTooLarge, "body_too_large", "the body is longer than this route takes")
	}
	req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	c.copyRequest(req, r)
	var body *uploadReader
	if stream := in.BodyStream(); stream != nil && length != 0 {
		body = &uploadReader{ctx: c.ctx, src: stream, left: r.maxBody, started: time.Now(), grace: c.srv.cfg.ReadTimeout}
		req.SetBodyStream(body, max(length, -1))
	} else if len(in.Body()) > 0 {
		req.SetBodyRaw(in.Body())
	}
	resp.StreamBody = true
	if err := r.upstream.client.Do(req, resp); err != nil {
		fasthttp.ReleaseResponse(resp)
		return c.upstreamError(r, body, err)
	}
	c.copyResponse(resp)
	return nil
}

// upstreamError finds out whose fault a failed exchange was.
func (c *call) upstreamError(r *configured, body *uploadReader, err error) error {
	if body != nil && body.err != nil {
		// What came from the client broke, not the upstream; the connection to the client is of no more use.
		c.closeAfter = true
		if errors.Is(body.err, errRouteBody) {
			return problem(http.StatusRequestEntityTooLarge, "body_too_large", "the body is longer than this route takes")
		}
		return problem(http.StatusBadRequest, "invalid_body", "the body ended early, came too slowly or is not framed correctly")
	}
	c.srv.log.Warn("upstream failed", "route", r.name, "error", err)
	var netErr net.Error
	switch {
	case errors.Is(err, fasthttp.ErrNoFreeConns):
		return ErrOverloaded
	case errors.As(err, &netErr) && netErr.Timeout(), errors.Is(err, fasthttp.ErrTimeout), errors.Is(err, fasthttp.ErrDialTimeout):
		return errGatewayTimeout()
	}
	return errBadGateway()
}

// upstream is one route's way to its upstream.
type upstream struct {
	client *fasthttp.HostClient
	scheme string
	host   string // with a port where the URL has one
	base   string // path before the request's own, without a trailing slash
}

// same says whether two lead to the same place.
func (u *upstream) same(v *upstream) bool {
	return u.scheme == v.scheme && u.host == v.host && u.base == v.base
}

// copyRequest makes the upstream's request: the client's headers without those of the hop, the credentials and all that
// only this node may say, and with what it says.
func (c *call) copyRequest(req *fasthttp.Request, r *configured) {
	in := &c.ctx.Request
	named := connectionNames(&in.Header)
	for key, value := range in.Header.All() {
		if !hopHeader(key, named) && !c.srv.claims(key) {
			req.Header.AddBytesKV(key, value)
		}
	}
	c.hideCookies(&req.Header)
	path := in.URI().PathOriginal()
	if r.strip {
		path = path[len(r.prefix):]
	}
	uri := append(c.scratch[:0], r.upstream.base...)
	uri = append(uri, path...)
	if len(uri) == 0 {
		uri = append(uri, '/')
	}
	if query := in.URI().QueryString(); len(query) > 0 {
		uri = append(uri, '?')
		uri = append(uri, query...)
	}
	c.scratch = uri[:0]
	req.Header.SetMethodBytes(in.Header.Method())
	req.Header.SetRequestURIBytes(uri)
	req.Header.SetHost(r.upstream.host)
	req.UseHostHeader = true
	req.URI().SetScheme(r.upstream.scheme)
	req.Header.SetNoDefaultContentType(true)

	h := &req.Header
	c.setIdentity(h)
	h.SetCanonical(headerRequestID, c.idBuf[:c.idLen])
	c.setForwarded(h)
}

// setForwarded tells the upstream about the client. What a trusted proxy said is kept, what anybody else said is not.
func (c *call) setForwarded(h *fasthttp.RequestHeader) {
	in := &c.ctx.Request.Header
	var list []byte
	proto, host := []byte("http"), c.ctx.Request.Header.Host()
	if c.ctx.IsTLS() {
		proto = []byte("https")
	}
	switch {
	case c.client.trusted && c.srv.cfg.Forwarded:
		// Proxies that write Forwarded may leave a client's own X-Forwarded-* alone.
		if c.client.addr != c.client.peer {
			list = append(c.client.addr.AppendTo(list), ", "...)
		}
		hop, _ := parseHop(c.client.hop)
		switch {
		case equalFold(hop.proto, "https"):
			proto = []byte("https")
		case equalFold(hop.proto, "http"):
			proto = []byte("http")
		}
		if len(hop.host) > 0 {
			host = hop.host
		}
	case c.client.trusted:
		for _, line := range in.PeekAll("X-Forwarded-For") {
			if line = trimSpace(line); len(line) > 0 {
				list = append(append(list, line...), ", "...)
			}
		}
		if p := in.Peek("X-Forwarded-Proto"); string(p) == "https" || string(p) == "http" {
			proto = p
		}
		if lines := in.PeekAll("X-Forwarded-Host"); len(lines) == 1 {
			host = lines[0]
		}
	}
	list = c.client.peer.AppendTo(list)
	h.SetBytesV("X-Forwarded-For", list)
	h.SetBytesV("X-Forwarded-Proto", proto)
	h.SetBytesV("X-Forwarded-Host", host)
}

// connectionNames are the headers that a Connection header declares to be of this hop only.
func connectionNames(h interface{ PeekAll(string) [][]byte }) [][]byte {
	var names [][]byte
	for _, line := range h.PeekAll("Connection") {
		for name := range bytes.SplitSeq(line, []byte{','}) {
			if name = trimSpace(name); len(name) > 0 {
				names = append(names, bytes.Clone(name))
			}
		}
	}
	return names
}

// hopHeader says whether a header is of one connection only (RFC 9110, section 7.6.1) or frames the message.
func hopHeader(key []byte, named [][]byte) bool {
	switch string(key) {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Proxy-Authenticate",
		"Proxy-Authorization", "Content-Length", "Host", "Expect", "Http2-Settings":
		return true
	}
	for _, name := range named {
		if bytes.EqualFold(key, name) {
			return true
		}
	}
	return false
}

// ownHeader says whether a request header is a credential of ours or claims what only this node may say. Some upstreams
// take an underscore for a hyphen, so it is one here too.
func ownHeader(key []byte) bool {
	var buf [32]byte
	if len(key) > 2 && len(key) <= len(buf) {
		for i, c := range key {
			switch {
			case c >= 'A' && c <= 'Z':
				c |= 0x20
			case c == '_':
				c = '-'
			}
			buf[i] = c
		}
		switch string(buf[:len(key)]) {
		case "authorization", "x-api-key", "x-request-id", "forwarded", "x-real-ip", "x-original-url", "x-original-method",
			"remote-user", "remote-groups", "remote-name", "remote-email", "remote-method", "remote-key", "remote-scopes":
			return true
		}
	}
	return prefixFold(key, "x-auth-") || prefixFold(key, "x-forwarded-")
}

// prefixFold says whether key begins with prefix, whatever the case and with '_' for '-'.
func prefixFold(key []byte, prefix string) bool {
	if len(key) < len(prefix) {
		return false
	}
	for i := range len(prefix) {
		c := key[i]
		switch {
		case c >= 'A' && c <= 'Z':
			c |= 0x20
		case c == '_':
			c = '-'
		}
		if c != prefix[i] {
			return false
		}
	}
	return true
}

// copyResponse makes the upstream's answer ours, without the headers of the hop and those that we set ourselves. The
// upstream's response is released with its body.
func (c *call) copyResponse(resp *fasthttp.Response) {
	out := &c.ctx.Response
	c.proxied = true
	named := connectionNames(&resp.Header)
	out.SetStatusCode(resp.StatusCode())
	for key, value := range resp.Header.All() {
		if !hopHeader(key, named) && !limitHeader(key) {
			out.Header.AddBytesKV(key, value)
		}
	}
	length := resp.Header.ContentLength()
	stream := resp.BodyStream()
	switch {
	case c.ctx.IsHead() || stream == nil:
		// A HEAD's answer says how long GET's body would be.
		if c.ctx.IsHead() && length >= 0 {
			out.SkipBody = true
			out.Header.SetContentLength(length)
		}
		fasthttp.ReleaseResponse(resp)
	default:
		out.SetBodyStream(&downloadReader{ctx: c.ctx, resp: resp, src: stream, idle: c.srv.cfg.WriteTimeout}, max(length, -1))
	}
}

// limitHeader says whether a response header is one that this node sets for every response.
func limitHeader(key []byte) bool {
	switch string(key) {
	case "X-Request-Id", "Ratelimit", "Ratelimit-Policy", "Date":
		return true
	}
	return prefixFold(key, "x-ratelimit-") || prefixFold(key, "x-auth-")
}

// errRouteBody: the client sent more than the route takes.
var errRouteBody = errors.New("body longer than the route takes")

// minUploadRate is what a client has to send a second, on average, for its upload to go on.
const minUploadRate = 1 << 10

// uploadReader is the client's body on its way to the upstream. It ends with an error where the body is too long or
// comes too slowly, and remembers errors, to tell them from the upstream's.
type uploadReader struct {
	ctx     *fasthttp.RequestCtx
	src     io.Reader
	left    int64
	read    int64
	started time.Time
	grace   time.Duration
	err     error
}

// Read implements io.Reader.
func (u *uploadReader) Read(p []byte) (int, error) {
	due := u.started.Add(u.grace + time.Duration(u.read/minUploadRate)*time.Second)
	if err := u.ctx.SetReadDeadline(due); err != nil {
		u.err = err
		return 0, err
	}
	n, err := u.src.Read(p)
	u.read += int64(n)
	if u.left -= int64(n); u.left < 0 {
		u.err = errRouteBody
		return 0, errRouteBody
	}
	if err != nil && err != io.EOF {
		u.err = err
	}
	return n, err
}

// downloadReader is the upstream's body on its way to the client. Whenever there is something to write, the client gets
// the whole write timeout anew to take it.
type downloadReader struct {
	ctx  *fasthttp.RequestCtx
	resp *fasthttp.Response
	src  io.Reader
	idle time.Duration
}

// Read implements io.Reader.
func (d *downloadReader) Read(p []byte) (int, error) {
	n, err := d.src.Read(p)
	if n > 0 {
		if err := d.ctx.SetWriteDeadline(time.Now().Add(d.idle)); err != nil {
			return 0, err
		}
	}
	return n, err
}

// Close gives the upstream's connection back where its body was read to the end, and closes it otherwise.
func (d *downloadReader) Close() error {
	if d.resp == nil {
		return nil
	}
	err := d.resp.CloseBodyStream()
	fasthttp.ReleaseResponse(d.resp)
	d.resp = nil
	return err
}

// retryStale repeats a request once whose kept-alive connection turned out to be closed, where nothing can have
// happened twice by it.
func retryStale(req *fasthttp.Request, attempts int, err error) (resetTimeout, retry bool) {
	if attempts > 1 || req.IsBodyStream() || len(req.Body()) > 0 {
		return false, false
	}
	switch string(req.Header.Method()) {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodDelete:
	default:
		return false, false
	}
	return false, errors.Is(err, io.EOF) || errors.Is(err, fasthttp.ErrConnectionClosed) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
