package authapi

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
)

// Method is how a request authenticated. Its text is what X-Auth-Method and /auth/me show.
type Method string

// The three ways.
const (
	MethodAnonymous Method = "anonymous"
	MethodAPIKey    Method = "api_key"
	MethodJWT       Method = "jwt"
)

// Principal is who a request comes from. It is immutable and shared between requests of the same credential.
type Principal struct {
	Method         Method
	UserID         string   // JWT: the user; key: ""
	SessionID      string   // JWT
	KeyID          string   // key
	OrganizationID string   // key: its organization; JWT: the user's personal organization
	Scopes         []string // key: granted; JWT: nil (the role decides)
	ExpiresAt      int64    // Unix milliseconds; 0: never
	TokenID        string   // JWT: jti
}

// anonymous is everybody without a credential.
var anonymous = &Principal{Method: MethodAnonymous}

// call is one request on its way through a handler. It lives as long as the handler: nothing in it, and no bytes of
// ctx, may be kept afterwards.
type call struct {
	srv       *Server
	live      *live // from the beginning of the request to its end
	ctx       *fasthttp.RequestCtx
	now       time.Time // read once per request
	requestID string    // "" in verify and lean routes, which answer from idBuf alone
	clientIP  string    // canonical text of the client's address; "" as requestID is
	principal *Principal
	route     *route
	params    [maxParams]string // values of the pattern's {…}, in order

	idBuf  [requestIDMax]byte
	idLen  int
	client client
	entry  *credential // the cache's entry of the credential; nil for anonymous
	// target is the configured route that the request, or the one that a check describes, belongs to; nil for none. open
	// says that it lets requests without a credential pass.
	target   *configured
	open     bool
	asked    *Description // what a check is about that did not come over HTTP; else nil
	decision *decision    // its own for as long as the call is; without policies: no limit headers
	// byCookie: the credential came in a cookie, which the browser sends by itself.
	byCookie bool
	// proxied: the answer is an upstream's.
	proxied bool
	// pages are those that may read the answer, where the route has its own list.
	pages *cors
	// origin is the page's where it must be known after the body is on its way, nil for the header's.
	origin []byte
	// asking: the client waits for leave to send the body, which a gateway route gives once the request has passed. waiting: it
	// has, and goes on with the body.
	asking, waiting bool
	// closeAfter ends the connection with this response.
	closeAfter bool
	raw        [maxParams][]byte
	sent       []byte // the body, once it has been read
	scratch    []byte
	// traced holds the request's span and nothing of the request's; nil where it is not traced.
	traced context.Context
	// stripe is where the call counts; it stays with the memory of the call.
	stripe uint8
}

// handler answers a call. An error becomes problem+json through the table in problem.go: return a *Problem for what the
// client did, anything else for what went wrong here.
type handler func(c *call) error

// context bounds everything that a handler waits for.
func (c *call) context() (context.Context, context.CancelFunc) {
	parent := c.traced
	if parent == nil {
		parent = context.Background()
	}
	return context.WithTimeout(parent, c.srv.handlerTimeout)
}

var callPool = sync.Pool{New: func() any {
	return &call{scratch: make([]byte, 0, 256), decision: new(decision), stripe: uint8(callsMade.Add(1))}
}}

var callsMade atomic.Uint32

func (s *Server) acquireCall(ctx *fasthttp.RequestCtx) *call {
	c := callPool.Get().(*call)
	c.srv, c.ctx, c.now = s, ctx, s.arrival(ctx)
	c.live = s.live.Load()
	c.principal = anonymous
	return c
}

// again makes c the call that it was before dispatch, by what is live now. Until a request is admitted nothing is written, and
// nothing read of its body.
func (c *call) again() {
	c.decision.reset()
	c.live = c.srv.live.Load()
	c.principal, c.entry, c.route, c.target, c.pages = anonymous, nil, nil, nil, nil
	c.open, c.byCookie, c.closeAfter = false, false, false
}

func (c *call) release() {
	scratch, decision := c.scratch[:0], c.decision
	decision.reset()
	*c = call{scratch: scratch, decision: decision, stripe: c.stripe}
	callPool.Put(c)
}

// param is the value of the pattern's i-th named segment.
func (c *call) param(i int) string { return c.params[i] }

// query is the first value of a query parameter, decoded; "" where it is missing.
func (c *call) query(name string) string { return string(c.ctx.QueryArgs().Peek(name)) }

// writeJSON answers with v as JSON.
func (c *call) writeJSON(status int, v any) error {
	b, err := encodeJSON(v)
	if err != nil {
		return err
	}
	c.writeBody(status, b)
	return nil
}

// encodeJSON is the body of an answer. URLs are as they are, to be copied from a terminal; browsers are told that this is no
// page.
func encodeJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// writeBody answers with a body that is JSON already; it is copied.
func (c *call) writeBody(status int, body []byte) {
	c.ctx.SetStatusCode(status)
	c.ctx.Response.Header.SetContentTypeBytes(typeJSON)
	c.ctx.Response.Header.SetCanonical(headerCacheControl, valueNoStore)
	c.ctx.Response.SetBody(body)
}

// noContent answers 204.
func (c *call) noContent() error {
	c.ctx.SetStatusCode(http.StatusNoContent)
	return nil
}

// Bounds of ?limit=.
const (
	pageDefault = 50
	pageMax     = 200
)

// pageArgs reads ?limit= and ?cursor=. The cursor is what writePage was given as next, "" for the first page.
func (c *call) pageArgs() (limit int, cursor string, err error) { return pageOf(c.query) }

func pageOf(query func(name string) string) (limit int, cursor string, err error) {
	limit = pageDefault
	if q := query("limit"); q != "" {
		limit, err = strconv.Atoi(q)
		if err != nil || limit < 1 || limit > pageMax {
			return 0, "", invalid("limit", "must be a number from 1 to 200")
		}
	}
	if q := query("cursor"); q != "" {
		b, err := base64.RawURLEncoding.Strict().DecodeString(q)
		if err != nil || len(b) == 0 || len(b) > 256 {
			return 0, "", invalid("cursor", "is not one that a list gave")
		}
		cursor = string(b)
	}
	return limit, cursor, nil
}

// page is the shape of every list.
type page struct {
	Data       any     `json:"data"`
	NextCursor *string `json:"next_cursor"`
}

// writePage answers with one page. data is a slice that is not nil; next, the last id of the page, comes back through
// pageArgs as the cursor; "" where the list ends here.
func (c *call) writePage(data any, next string) error {
	return c.writeJSON(http.StatusOK, page{Data: data, NextCursor: cursorOf(next)})
}

// cursorOf is next as pageOf reads it again, nil for "".
func cursorOf(next string) *string {
	if next == "" {
		return nil
	}
	cursor := base64.RawURLEncoding.EncodeToString([]byte(next))
	return &cursor
}
