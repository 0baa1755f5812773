package authapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"strings"
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

func errLargeAnswer() *Problem {
	return problem(http.StatusBadGateway, "answer_too_large", "the upstream's answer is longer than this route passes on")
}

func errLargeRouteBody() *Problem {
	return problem(http.StatusRequestEntityTooLarge, "body_too_large", "the body is longer than this route takes")
}

// gateway is the whole of a request to a configured route that has an upstream: the caller's limit, what the route's
// rule needs, and the upstream's answer.
func (c *call) gateway(r *configured) error {
	c.route, c.target, c.pages = r.row, r, r.cors
	if r.cors != nil {
		c.origin = bytes.Clone(c.ctx.Request.Header.PeekBytes(headerOrigin)) // trailers may come beside the answer
	}
	need := r.rule(c.ctx.Method())
	cost := int64(1)
	if need != nil {
		cost, c.open = need.cost, need.anonymous
	}
	if err := c.authenticate(cost); err != nil {
		return err
	}
	if need == nil || string(c.ctx.Method()) == http.MethodConnect {
		p := problem(http.StatusMethodNotAllowed, "method_not_allowed", "this path does not take the method; Allow lists those that it takes")
		p.Allow = r.allow()
		return p
	}
	if err := c.permitRule(need); err != nil {
		return err
	}
	if int64(c.ctx.Request.Header.ContentLength()) > r.maxBody {
		return errLargeRouteBody()
	}
	if c.asking {
		return errAdmitted
	}
	return c.proxy(r, need)
}

// handleGateway stands in the rows of configured routes, which are run by gateway.
func handleGateway(c *call) error { return errNotFound() }

// proxy passes the request to an upstream and its answer back. Bodies are streamed both ways.
func (c *call) proxy(r *configured, need *rule) error {
	out, err := c.outgoing(r)
	if err != nil {
		return err
	}
	x := c.newExchange(r)
	kept := false
	defer func() {
		if !kept {
			x.end()
		}
	}()
	in := &c.ctx.Request
	switch stream, length := in.BodyStream(), in.Header.ContentLength(); {
	case stream != nil && length != 0:
		x.body = newUploadReader(c, r, stream, x)
		out.length = int64(max(length, -1))
	case len(in.Body()) > 0:
		x.body = newUploadReader(c, r, bytes.NewReader(in.Body()), x)
		out.length = int64(len(in.Body()))
	}
	var t *tunnel
	if x.body == nil && c.asksForWebSocket(r) {
		if t, err = c.newTunnel(x, need); err != nil {
			return err
		}
		out.header["Connection"], out.header["Upgrade"] = []string{"Upgrade"}, []string{"websocket"}
		defer func() {
			if !kept {
				t.end()
			}
		}()
	}
	resp, err := x.send(out)
	if err != nil {
		return c.upstreamError(x, err)
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		if err := c.switchProtocols(x, t, out, resp); err != nil {
			return err
		}
		kept = true
		return nil
	}
	if t != nil {
		t.unneeded()
	}
	kept, err = c.copyResponse(x, resp)
	return err
}

// upstreamError finds out whose fault a failed exchange was.
func (c *call) upstreamError(x *exchange, err error) error {
	var p *Problem
	if errors.As(err, &p) || errors.Is(err, ErrOverloaded) {
		return err
	}
	if errors.Is(err, errClientGone) {
		c.closeAfter = true
		return errBadGateway() // which nobody reads
	}
	if x.body != nil {
		if bad := x.body.failure(); bad != nil {
			// What came from the client broke, not the upstream; the connection to the client is of no more use.
			c.closeAfter = true
			if errors.Is(bad, errRouteBody) {
				return errLargeRouteBody()
			}
			return problem(http.StatusBadRequest, "invalid_body", "the body ended early, came too slowly or is not framed correctly")
		}
		c.closeAfter = c.closeAfter || !x.body.finished()
	}
	c.srv.log.Warn("upstream failed", "route", x.route.name, "error", err, c.logIDs())
	if x.outcomeOf(err) == outcomeTimeout {
		return errGatewayTimeout()
	}
	return errBadGateway()
}

// holdBack is how much of an answer of unknown length is held back until its end, on routes whose limit is no more than that, so
// that the client gets an error for one that is too long. Of longer ones it has the beginning already and is cut off.
const holdBack = 64 << 10

// copyResponse makes the upstream's answer ours. kept says that the exchange goes on with the body.
func (c *call) copyResponse(x *exchange, resp *http.Response) (kept bool, err error) {
	out := &c.ctx.Response
	length := resp.ContentLength
	most := x.route.maxAnswer
	head := c.ctx.IsHead()
	switch {
	case !plainHeader(resp.Header):
		resp.Body.Close()
		c.srv.log.Warn("upstream failed", "route", x.route.name, "upstream", x.up.url, "error", "a header of its answer is not well-formed", c.logIDs())
		return false, errBadGateway()
	case most > 0 && length > most && !head:
		resp.Body.Close()
		x.broke(errAnswerTooLarge)
		return false, errLargeAnswer()
	}
	if x.body != nil && !x.body.finished() {
		c.closeAfter = true // the rest is not of interest, or goes on beside the answer
	}
	var held []byte
	hold := !head && length < 0 && most > 0 && most <= holdBack && !isEventStream(resp.Header)
	if hold {
		d := x.newDownload(nil, resp.Body)
		held, err = io.ReadAll(d)
		d.stall.Stop()
		resp.Body.Close()
		switch {
		case errors.Is(err, errAnswerTooLarge):
			return false, errLargeAnswer()
		case err != nil:
			return false, c.upstreamError(x, err)
		}
	}
	c.proxied = true
	out.SetStatusCode(resp.StatusCode)
	c.copyAnswerHeader(resp)
	switch {
	case hold:
		out.SetBodyRaw(held)
	case head:
		// A HEAD's answer says how long GET's body would be.
		out.SkipBody = true
		out.Header.SetContentLength(int(max(length, -1)))
	case length == 0 || resp.Body == http.NoBody:
	case length < 0 && !c.ctx.Request.Header.IsHTTP11():
		// What knows no chunks has the body's end by the connection's.
		out.Header.SetContentLength(-2)
		c.untilClose(x, resp.Body)
		return true, nil
	default:
		out.ImmediateHeaderFlush = length < 0 // what comes in pieces may begin long after its header
		out.SetBodyStream(x.newDownload(c.ctx, resp.Body), int(max(length, -1)))
		return true, nil
	}
	resp.Body.Close()
	return false, nil
}

// untilClose writes a body to a connection that ends with it.
func (c *call) untilClose(x *exchange, body io.ReadCloser) {
	c.closeAfter = true
	d := x.newDownload(c.ctx, body)
	c.takeOver(x, x.end, func(conn net.Conn) {
		defer d.Close()
		if _, err := io.Copy(conn, d); err != nil {
			resets(x.conn) // or the client would take what it has for the whole
		}
	})
}

// takeOver has the connection used by use alone once the answer's header is written, and then closed. over is called where it does
// not come to that.
func (c *call) takeOver(x *exchange, over func(), use func(conn net.Conn)) {
	ctx := c.ctx // which outlives the call, as it belongs to the connection until use returns
	unused := context.AfterFunc(x.ctx, over)
	ctx.HijackSetNoResponse(true) // fasthttp would close a connection of HTTP/1.0 behind it
	ctx.Hijack(func(conn net.Conn) {
		defer x.srv.recovered("connection")
		unused()
		if conn.SetWriteDeadline(time.Now().Add(x.srv.cfg.WriteTimeout)) != nil {
			over()
			return
		}
		if _, err := conn.Write(ctx.Response.Header.Header()); err != nil || conn.SetWriteDeadline(time.Time{}) != nil {
			over()
			return
		}
		use(conn)
	})
}

// recovered keeps a panic of a goroutine of a connection's own from ending the process.
func (s *Server) recovered(where string) {
	if r := recover(); r != nil {
		s.log.Error("handler panicked", "panic", r, "in", where)
	}
}

func isEventStream(h http.Header) bool {
	return prefixFold([]byte(h.Get("Content-Type")), "text/event-stream")
}

// copyAnswerHeader copies the answer's header without what is of the hop and what we say ourselves.
func (c *call) copyAnswerHeader(resp *http.Response) {
	h := &c.ctx.Response.Header
	named := connectionNames(resp.Header["Connection"])
	for key, values := range resp.Header {
		name := []byte(key)
		if hopHeader(name, named) || limitHeader(name) || c.pages != nil && prefixFold(name, "access-control-") {
			continue
		}
		for _, value := range values {
			h.AddBytesK(name, value)
		}
	}
	if resp.ProtoAtLeast(1, 1) {
		h.Add("Via", viaHTTP11)
	} else {
		h.Add("Via", viaHTTP10)
	}
}

// Via entries for what came in either version; the name is the product's, since the node's own is no client's business.
const (
	viaHTTP11 = "1.1 sluice"
	viaHTTP10 = "1.0 sluice"
)

// plainHeader says whether all names are names and no value has a control character, which a client might take for the end of a line.
func plainHeader(h http.Header) bool {
	for name, values := range h {
		for i := range len(name) {
			if !isTokenChar(name[i]) {
				return false
			}
		}
		for _, value := range values {
			if !plainValue([]byte(value)) {
				return false
			}
		}
	}
	return true
}

func plainValue(b []byte) bool {
	for _, ch := range b {
		if ch < ' ' && ch != '\t' || ch == 0x7f {
			return false
		}
	}
	return true
}

// upstreamHeader lets what sets headers of fasthttp set those of net/http.
type upstreamHeader http.Header

// SetCanonical implements headerSetter.
func (h upstreamHeader) SetCanonical(key, value []byte) { h[string(key)] = []string{string(value)} }

// outgoing makes the upstream's request: the client's headers without those of the hop, the credentials and all that only this
// node may say, and with what it says.
func (c *call) outgoing(r *configured) (*outgoing, error) {
	in := &c.ctx.Request
	path := in.URI().PathOriginal()
	if r.strip {
		path = path[len(r.prefix):]
	}
	h := make(upstreamHeader, in.Header.Len()+12)
	out := &outgoing{method: string(in.Header.Method()), path: string(path), query: string(in.URI().QueryString()), header: http.Header(h)}
	c.hideCookies(&in.Header)
	named := connectionNames(texts(in.Header.PeekAll("Connection")))
	for key, value := range in.Header.All() {
		if hopHeader(key, named) || c.srv.claims(key) {
			continue
		}
		if !plainValue(value) {
			return nil, problem(http.StatusBadRequest, "malformed_request", "a header has a control character")
		}
		name := textproto.CanonicalMIMEHeaderKey(string(key))
		h[name] = append(h[name], string(value))
	}
	// net/http would repeat a request by these that may have been seen, and name itself.
	for _, name := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
		if values, ok := h[name]; ok {
			delete(h, name)
			h[strings.ToLower(name)] = values
		}
	}
	if _, ok := h["User-Agent"]; !ok {
		h["User-Agent"] = nil
	}
	c.setIdentity(h)
	h.SetCanonical(headerRequestID, c.idBuf[:c.idLen])
	c.setForwarded(h)
	via := viaHTTP11
	if !in.Header.IsHTTP11() {
		via = viaHTTP10
	}
	h["Via"] = append(h["Via"], via)
	return out, nil
}

// setForwarded tells the upstream about the client. What a trusted proxy said is kept, what anybody else said is not.
func (c *call) setForwarded(h headerSetter) {
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
	h.SetCanonical(headerForwardedFor, list)
	h.SetCanonical(headerForwardedProto, proto)
	h.SetCanonical(headerForwardedHost, host)
}

var (
	headerForwardedFor   = []byte("X-Forwarded-For")
	headerForwardedProto = []byte("X-Forwarded-Proto")
	headerForwardedHost  = []byte("X-Forwarded-Host")
)

func texts(lines [][]byte) []string {
	out := make([]string, len(lines))
	for i, line := range lines {
		out[i] = string(line)
	}
	return out
}

// connectionNames are the headers that Connection headers declare to be of this hop only.
func connectionNames(lines []string) [][]byte {
	var names [][]byte
	for _, line := range lines {
		for name := range bytes.SplitSeq([]byte(line), []byte{','}) {
			if name = trimSpace(name); len(name) > 0 {
				names = append(names, name)
			}
		}
	}
	return names
}

// hopHeader says whether a header is of one connection only (RFC 9110, section 7.6.1) or frames the message. Trailer is among them:
// trailers are not passed on, which a recipient of theirs may do (section 6.5.1).
func hopHeader(key []byte, named [][]byte) bool {
	switch string(key) {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Proxy-Authenticate",
		"Proxy-Authorization", "Proxy-Authentication-Info", "Content-Length", "Host", "Expect", "Http2-Settings":
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

// limitHeader says whether a response header is one that this node sets for every response.
func limitHeader(key []byte) bool {
	switch string(key) {
	case "X-Request-Id", "Ratelimit", "Ratelimit-Policy", "Date":
		return true
	}
	return prefixFold(key, "x-ratelimit-") || prefixFold(key, "x-auth-")
}

// The steps of a request whose client waits for 100 Continue before it sends the body (RFC 9110, section 10.1.1).

// errAdmitted: the request may go on, and its body may come.
var errAdmitted = errors.New("admitted")

type admittedKey struct{}

// admit decides on a request to a gateway route before the client is told to send its body. status is 100 where it may, and the
// call then waits for handle; or that of the answer.
func (s *Server) admit(ctx *fasthttp.RequestCtx) (status int) {
	c := s.acquireCall(ctx)
	defer c.finish()
	c.asking = true
	switch err := s.serve(c); {
	case errors.Is(err, errAdmitted):
		c.waiting = true
		ctx.SetUserValue(admittedKey{}, c)
		return http.StatusContinue
	case err != nil:
		c.fail(err)
	}
	return ctx.Response.StatusCode()
}

// admitted is the call of a request that admit let go on, nil where there is none.
func admitted(ctx *fasthttp.RequestCtx) *call {
	c, _ := ctx.UserValue(admittedKey{}).(*call)
	if c != nil {
		ctx.RemoveUserValue(admittedKey{})
		c.asking, c.waiting = false, false
	}
	return c
}
