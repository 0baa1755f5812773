package authapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
)

// Server answers the public HTTP API of one node. All methods are safe for concurrent use.
type Server struct {
	cfg     Config
	state   State
	cluster Cluster
	limits  Limits
	sealer  Sealer
	clock   Clock
	arrival func(*fasthttp.RequestCtx) time.Time // the clock when a request was there: the library has read it
	log     *slog.Logger

	// handlerTimeout bounds what one request may wait for in all.
	handlerTimeout time.Duration

	tokens      *tokens
	passwords   *passwords
	accounts    *accounts
	live        atomic.Pointer[live]
	liveMu      sync.Mutex // of whoever changes it
	redirects   atomic.Pointer[map[string]struct{}]
	shadows     *shadows
	credentials *credentialCache
	// importedPrefixes is how imported keys of other forms begin.
	importedPrefixes [][]byte
	router           *node
	identity         identityNames
	admission        *admission
	hangups          hangups
	tunnels          tunnels
	malformed        malformed
	http             *fasthttp.Server
	cors             *cors
	cookies          *cookieNames
	oauth            atomic.Pointer[oauthClients]
	origin           string // of PublicURL, "" without one
	https            bool
	draining         atomic.Bool
	catchUps         atomic.Int64
	requests         *requestStats
	// Turned away since too many waited for this node to catch up, or since every upstream had too many requests, or its route WebSockets.
	catchUpsRejected, upstreamsBusy, webSocketsBusy atomic.Uint64
	resets                                          resetBudget
	unmatched                                       unmatched
	gubernator                                      *fasthttp.Server
}

// New makes a Server; nothing runs before Serve, but for the workers that hash passwords and those of shadow policies, which Shutdown stops. The
// error names what is missing or impossible in cfg.
func New(cfg Config) (*Server, error) {
	arrival := (*fasthttp.RequestCtx).Time
	if clock := cfg.Clock; clock != nil {
		arrival = func(*fasthttp.RequestCtx) time.Time { return clock() }
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("configure api: %w", err)
	}
	lv, err := newLive(cfg.Live(), nil)
	if err != nil {
		return nil, fmt.Errorf("configure api: %w", err)
	}
	identity, err := newIdentityNames(cfg.Identity)
	if err != nil {
		return nil, fmt.Errorf("configure api: %w", err)
	}
	s := &Server{
		cfg: cfg, state: cfg.State, cluster: cfg.Cluster, limits: cfg.Limits, sealer: cfg.Sealer, clock: cfg.Clock, log: cfg.Logger,
		arrival:        arrival,
		handlerTimeout: handlerTimeout,
		credentials:    newCredentialCache(cacheSets),
		identity:       identity,
		requests:       newRequestStats(),
		origin:         originOf(cfg.PublicURL),
		https:          strings.HasPrefix(strings.ToLower(cfg.PublicURL), "https://"),
	}
	s.requests.configured(lv.matcher)
	s.live.Store(lv)
	s.tunnels.srv = s
	for _, prefix := range cfg.Auth.ImportedKeyPrefixes {
		s.importedPrefixes = append(s.importedPrefixes, []byte(prefix))
	}
	if err := s.SetOAuth(cfg.OAuth); err != nil {
		return nil, fmt.Errorf("configure api: %w", err)
	}
	s.cors = newCORS(cfg.CORS, cfg.Auth.CookieSessions)
	s.cookies = newCookieNames(cfg.Auth.CookieSessions, s.https)
	if s.tokens, err = newTokens(s); err != nil {
		return nil, fmt.Errorf("configure api: %w", err)
	}
	s.shadows = newShadows(s.limits, s.log)
	s.shadows.start(lv.shadows)
	s.passwords = newPasswords(s)
	s.router = buildRouter(s.requests.table(s.routeTable()))
	s.admission = newAdmission(s)
	s.http = s.newHTTP()
	s.gubernator = s.newGubernator()
	s.startAccounts()
	return s, nil
}

func (s *Server) newHTTP() *fasthttp.Server {
	return &fasthttp.Server{
		Handler:                      s.handle,
		ErrorHandler:                 s.handleBroken,
		ExpectHandler:                s.expect,
		ReadBufferSize:               maxHeader,
		WriteBufferSize:              4 << 10,
		ReadTimeout:                  s.cfg.ReadTimeout,
		WriteTimeout:                 s.cfg.WriteTimeout,
		IdleTimeout:                  s.cfg.IdleTimeout,
		MaxRequestBodySize:           maxBody,
		Concurrency:                  2 * s.cfg.MaxConns, // never reached: admission is the bound
		MaxRequestsPerConn:           10_000,
		StreamRequestBody:            true,
		DisablePreParseMultipartForm: true,
		NoDefaultServerHeader:        true,
		NoDefaultContentType:         true,
		SecureErrorLogMessage:        true,
		CloseOnShutdown:              true,
		Logger:                       httpLogger{s.log},
	}
}

// Serve answers requests from ln until Shutdown, which makes it return nil, even where it came first.
func (s *Server) Serve(ln net.Listener) error {
	ln = s.admission.listen(ln)
	if s.cfg.TLS != nil {
		ln = tls.NewListener(ln, s.cfg.TLS) // the handshake is the connection's own goroutine's, at its first read
	}
	if err := s.http.Serve(ln); err != nil {
		return fmt.Errorf("serve http: %w", err)
	}
	return nil
}

// Shutdown closes the listener, idle connections and WebSockets, waits for the requests in flight until ctx ends, and stops the
// workers. It is safe to call more than once.
func (s *Server) Shutdown(ctx context.Context) error {
	s.SetDraining()
	err := errors.Join(s.admission.stop(), s.tunnels.close(ctx), s.http.ShutdownWithContext(ctx), s.gubernator.ShutdownWithContext(ctx))
	s.closeAccounts()
	s.oauth.Load().close()
	s.liveMu.Lock() // a change that comes later finds the server draining
	defer s.liveMu.Unlock()
	s.shadows.close()
	s.live.Load().matcher.close()
	if err != nil {
		return fmt.Errorf("shut down http: %w", err)
	}
	return nil
}

// Handler is what Serve runs for each request, for tests and for servers of the caller's own.
func (s *Server) Handler() fasthttp.RequestHandler { return s.handle }

// handle is every request that could be read.
func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	c := admitted(ctx)
	if c != nil {
		defer c.finish()
		if err := c.proxy(c.target, c.target.rule(c.ctx.Method())); err != nil {
			c.fail(err)
		}
		return
	}
	c = s.acquireCall(ctx)
	defer c.finish()
	if err := s.serve(c); err != nil {
		c.fail(err)
	}
}

// finish ends a call: it turns a panic into a 500, sets what every response carries and lets the call be used again.
func (c *call) finish() {
	if r := recover(); r != nil {
		c.srv.log.Error("handler panicked", "panic", fmt.Sprint(r), "route", c.pattern(), "stack", string(debug.Stack()), c.logIDs())
		c.waiting = false
		c.fail(errPanic)
	}
	if c.waiting {
		return // for its body; handle goes on with it
	}
	c.ctx.Response.Header.SetCanonical(headerRequestID, c.idBuf[:c.idLen])
	c.writeLimits()
	if !c.proxied {
		c.writeSecurity()
	}
	if !c.proxied || c.pages != nil {
		c.writeCORS()
	}
	if c.closeAfter {
		c.ctx.SetConnectionClose()
	}
	// A client that was too slow has been waited for.
	if n := c.ctx.Request.Header.ContentLength(); (c.closeAfter || n > lingerBody || n == -1) && c.ctx.Response.StatusCode() != http.StatusRequestTimeout {
		c.lingers()
	}
	c.srv.requests.note(c)
	c.endSpan()
	c.release()
}

// pattern names the route for the log; never the path, which may hold anything.
func (c *call) pattern() string {
	if c.route == nil {
		return ""
	}
	return c.route.method + " " + c.route.pattern
}

// serve is one request, from the beginning once more where what changes live did before it was admitted.
func (s *Server) serve(c *call) error {
	c.newRequestID() // first, so that even a panic has one
	c.client = s.clientOf(c.ctx)
	c.takeRequestID()
	c.beginSpan()
	err := s.dispatch(c)
	for errors.Is(err, errLiveMoved) {
		c.again()
		err = s.dispatch(c)
	}
	return err
}

// dispatch finds the route, spends from the caller's limit, checks what the route needs, and runs it.
func (s *Server) dispatch(c *call) error {
	path := c.ctx.Request.URI().PathOriginal()
	var bad *Problem
	var end *endpoint
	var configured *configured
	misread := misreadable(&c.ctx.Request)
	switch rest, envoy := envoyRest(path); {
	case misread != "":
		c.closeAfter = true
		bad = problem(http.StatusBadRequest, "malformed_request", misread)
	case envoy:
		// What follows is a description, which is checked as such.
		end = s.router.find(path[:len(path)-len(rest)], &c.raw)
	case !canonicalPath(path):
		bad = problem(http.StatusBadRequest, "invalid_path", "the path is not in canonical form")
	default:
		end = s.router.find(path, &c.raw)
		if end == nil {
			configured = c.live.matcher.match(c.ctx.Request.URI().Host(), path)
		}
	}
	if end != nil {
		c.route = end.pick(c.ctx.Method())
	}
	switch {
	case bad != nil:
		return c.reject(bad)
	case c.preflight(end, configured):
		return c.answerPreflight()
	case configured != nil && configured.upstreams != nil:
		return c.gateway(configured)
	case c.route == nil:
		if err := c.authenticate(1); err != nil {
			return err
		}
		if end == nil {
			return errNotFound()
		}
		p := problem(http.StatusMethodNotAllowed, "method_not_allowed", "this path does not take the method; Allow lists those that it takes")
		p.Allow = end.allow
		return p
	case c.route.layer == layerNone:
		return c.route.handle(c)
	case c.route.layer == layerDocuments:
		if err := c.takeDocument(); err != nil {
			return err
		}
		return c.route.handle(c)
	case c.route.verify != 0:
		return c.verify()
	}
	if err := c.authenticate(c.route.cost); err != nil {
		return err
	}
	if c.byCookie {
		if err := c.checkCSRF(c.principal.SessionID); err != nil {
			return err
		}
	}
	if err := c.permit(); err != nil {
		return err
	}
	if c.route.lean {
		return c.route.handle(c)
	}
	c.requestID = string(c.idBuf[:c.idLen])
	c.clientIP = c.client.addr.String()
	for i := range c.raw {
		c.params[i] = string(c.raw[i])
	}
	return c.route.handle(c)
}

// fail answers with err's problem, whatever the handler wrote before.
func (c *call) fail(err error) {
	c.proxied = false
	if errors.Is(err, errRefused) {
		c.ctx.Response.Reset()
		c.ctx.Response.Header.SetNoDefaultContentType(true)
		c.writeRefused()
		return
	}
	p, listed := problemOf(err)
	if !listed {
		c.srv.log.Error("request failed", "error", err, "route", c.pattern(), c.logIDs())
	}
	if p.Status == http.StatusServiceUnavailable {
		c.refund()
	}
	c.noteRefusal(p)
	c.traceProblem(p)
	if c.route != nil && c.route.oauth {
		p.OAuth = oauthError(p)
	}
	c.ctx.Response.Reset()
	c.ctx.Response.Header.SetNoDefaultContentType(true)
	c.writeProblem(p)
}

func (c *call) writeProblem(p *Problem) {
	p.RequestID = string(c.idBuf[:c.idLen])
	h := &c.ctx.Response.Header
	c.ctx.SetStatusCode(p.Status)
	h.SetContentTypeBytes(typeProblem)
	h.SetCanonical(headerCacheControl, valueNoStore)
	switch {
	case p.Challenge != "":
		h.SetCanonical(headerChallenge, []byte(p.Challenge))
	case p.Status == http.StatusUnauthorized: // which never goes without one (RFC 9110, section 15.5.2)
		h.SetCanonical(headerChallenge, []byte(challengeNone))
	}
	if p.Allow != "" {
		h.Set("Allow", p.Allow)
	}
	if p.RetryAfter > 0 {
		h.SetCanonical(headerRetryAfter, fasthttp.AppendUint(c.scratch[:0], int(p.RetryAfter)))
	}
	c.ctx.Response.SetBody(p.encode())
}
