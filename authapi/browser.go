package authapi

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// DefaultCORSMaxAge is how long a browser may remember the answer to a preflight.
const DefaultCORSMaxAge = 10 * time.Minute

// CORSConfig says which web pages may call the API from a browser, by the Fetch standard's CORS protocol.
type CORSConfig struct {
	// Origins are compared whole, as browsers spell them: "https://app.example.com". Empty: none.
	Origins []string
	MaxAge  time.Duration // 0: DefaultCORSMaxAge
}

// What preflights may ask for: every method and request header that the API uses. The limit headers and all else that a
// client needs to act on an answer are exposed to the page.
const (
	corsMethods = "GET, HEAD, POST, PUT, PATCH, DELETE"
	corsHeaders = "Authorization, Content-Type, Idempotency-Key, X-API-Key, X-CSRF-Token, X-Request-Id, X-Session-Mode"
	corsExposed = "Allow, Idempotency-Replayed, RateLimit, RateLimit-Policy, Retry-After, WWW-Authenticate, X-RateLimit-Debug, X-RateLimit-Limit, " +
		"X-RateLimit-Remaining, X-RateLimit-Reset, X-RateLimit-Window, X-Request-Id"
)

// cors is CORSConfig prepared for requests. nil where no page may call.
type cors struct {
	origins     map[string]struct{}
	maxAge      []byte
	credentials bool // cookies are a credential here; where not, pages still keep the cookie that a link to a provider takes
	// What preflights allow, and what pages may read.
	methods, headers, exposed []byte
}

func newCORS(cfg CORSConfig, cookies bool) *cors {
	if len(cfg.Origins) == 0 {
		return nil
	}
	x := &cors{
		origins: make(map[string]struct{}, len(cfg.Origins)), credentials: cookies,
		methods: []byte(corsMethods), headers: []byte(corsHeaders), exposed: []byte(corsExposed),
	}
	for _, o := range cfg.Origins {
		x.origins[o] = struct{}{}
	}
	x.maxAge = strconv.AppendInt(nil, int64(cfg.MaxAge/time.Second), 10)
	return x
}

// newRouteCORS is for the pages of one route. Without origins none may call it, whatever the upstream says.
func newRouteCORS(cfg RouteCORS, r *configured) *cors {
	setDefault(&cfg.MaxAge, DefaultCORSMaxAge)
	x := newCORS(cfg.CORSConfig, cfg.Credentials)
	if x == nil {
		x = &cors{}
	}
	if methods := r.allow(); !slices.ContainsFunc(r.rules, func(p rule) bool { return p.all }) {
		x.methods = []byte(methods)
	}
	x.headers = []byte(strings.Join(append([]string{corsHeaders}, cfg.Headers...), ", "))
	x.exposed = []byte(strings.Join(append([]string{corsExposed}, cfg.Expose...), ", "))
	return x
}

func (x *cors) allows(origin []byte) bool {
	_, ok := x.origins[string(origin)]
	return ok
}

var (
	headerOrigin           = []byte("Origin")
	headerVary             = []byte("Vary")
	headerAllowOrigin      = []byte("Access-Control-Allow-Origin")
	headerAllowCredentials = []byte("Access-Control-Allow-Credentials")
	headerAllowMethods     = []byte("Access-Control-Allow-Methods")
	headerAllowHeaders     = []byte("Access-Control-Allow-Headers")
	headerExposeHeaders    = []byte("Access-Control-Expose-Headers")
	headerMaxAge           = []byte("Access-Control-Max-Age")
	headerRequestMethod    = []byte("Access-Control-Request-Method")
	valueTrue              = []byte("true")
)

// preflight says whether the request is a browser's question whether it may send another one, to one of Sluice's own
// routes or to a configured one that has its own list of pages; another one's OPTIONS is its upstream's to answer. The
// forward-auth check answers every method alike, so there it never is.
func (c *call) preflight(end *endpoint, configured *configured) bool {
	switch {
	case end == nil && configured != nil && configured.upstreams != nil:
		c.pages = configured.cors
		if c.pages == nil {
			return false
		}
	case c.srv.cors == nil || end == nil || end.any != nil:
		return false
	}
	h := &c.ctx.Request.Header
	return string(h.Method()) == http.MethodOptions && len(h.PeekBytes(headerOrigin)) > 0 && len(h.PeekBytes(headerRequestMethod)) > 0
}

// corsList is the list of pages that counts for the request, nil for none.
func (c *call) corsList() *cors {
	if c.pages != nil {
		return c.pages
	}
	return c.srv.cors
}

// answerPreflight needs no credential, which browsers do not send with it, and spends from the documents' limit: it is as
// cheap, and must not use up what the request itself will need. An origin that is not listed gets no permission.
func (c *call) answerPreflight() error {
	if err := c.takeDocument(); err != nil {
		return err
	}
	c.ctx.SetStatusCode(http.StatusNoContent)
	if x := c.corsList(); x.allows(c.ctx.Request.Header.PeekBytes(headerOrigin)) {
		h := &c.ctx.Response.Header
		h.SetCanonical(headerAllowMethods, x.methods)
		h.SetCanonical(headerAllowHeaders, x.headers)
		h.SetCanonical(headerMaxAge, x.maxAge)
	}
	return nil
}

// writeCORS lets a listed page read the answer, whatever it is: an error too, so that it can tell its user why.
func (c *call) writeCORS() {
	x := c.corsList()
	if x == nil || c.route != nil && c.route.layer == layerDocuments {
		return // public documents are for every page
	}
	h := &c.ctx.Response.Header
	h.AddBytesKV(headerVary, headerOrigin)
	origin := c.origin
	if origin == nil {
		origin = c.ctx.Request.Header.PeekBytes(headerOrigin)
	}
	if len(origin) == 0 || !x.allows(origin) {
		return
	}
	h.SetCanonical(headerAllowOrigin, origin)
	h.SetCanonical(headerExposeHeaders, x.exposed)
	if x.credentials || c.pages == nil && len(c.srv.oauth.Load().providers) > 0 {
		h.SetCanonical(headerAllowCredentials, valueTrue)
	}
}

// Headers that keep a browser from doing more with an answer than reading it. The API serves nothing that should be
// shown, framed, sniffed or run.
var (
	headerNosniff   = []byte("X-Content-Type-Options")
	headerCSP       = []byte("Content-Security-Policy")
	headerFrame     = []byte("X-Frame-Options")
	headerReferrer  = []byte("Referrer-Policy")
	headerHSTS      = []byte("Strict-Transport-Security")
	valueNosniff    = []byte("nosniff")
	valueCSP        = []byte("default-src 'none'; frame-ancestors 'none'")
	valueDeny       = []byte("DENY")
	valueNoReferrer = []byte("no-referrer")
	valueHSTS       = []byte("max-age=31536000")
)

// writeSecurity sets them on every answer of Sluice's own. What an upstream says of its pages is its own business.
func (c *call) writeSecurity() {
	h := &c.ctx.Response.Header
	h.SetCanonical(headerNosniff, valueNosniff)
	h.SetCanonical(headerCSP, valueCSP)
	h.SetCanonical(headerFrame, valueDeny)
	h.SetCanonical(headerReferrer, valueNoReferrer)
	if c.srv.https {
		h.SetCanonical(headerHSTS, valueHSTS)
	}
}

// originOf is the origin of a URL without a path, as browsers spell it; "" where url is.
func originOf(url string) string {
	scheme, rest, ok := strings.Cut(url, "://")
	if !ok {
		return ""
	}
	host, _, _ := strings.Cut(rest, "/")
	scheme, host = strings.ToLower(scheme), strings.ToLower(host)
	switch scheme {
	case "https":
		host = strings.TrimSuffix(host, ":443")
	case "http":
		host = strings.TrimSuffix(host, ":80")
	}
	return scheme + "://" + host
}
