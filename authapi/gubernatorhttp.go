package authapi

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"

	"github.com/valyala/fasthttp"
)

// maxGubernatorBody is room for as many requests as a call may have.
const maxGubernatorBody = 1 << 20

// newGubernator makes the server of Gubernator's API for callers without a key.
func (s *Server) newGubernator() *fasthttp.Server {
	return &fasthttp.Server{
		Handler:                      s.serveGubernator,
		ErrorHandler:                 s.brokenGubernator,
		ReadBufferSize:               maxHeader,
		WriteBufferSize:              4 << 10,
		ReadTimeout:                  s.cfg.ReadTimeout,
		WriteTimeout:                 s.cfg.WriteTimeout,
		IdleTimeout:                  s.cfg.IdleTimeout,
		MaxRequestBodySize:           maxGubernatorBody,
		Concurrency:                  s.cfg.MaxConns,
		MaxRequestsPerConn:           10_000,
		DisablePreParseMultipartForm: true,
		NoDefaultServerHeader:        true,
		NoDefaultContentType:         true,
		SecureErrorLogMessage:        true,
		CloseOnShutdown:              true,
		Logger:                       httpLogger{s.log},
	}
}

// ServeGubernator answers Gubernator's HTTP API from ln, to anybody: it must not be within the reach of others than the
// services that keep limits. It returns nil once ln is closed, which Shutdown does too.
func (s *Server) ServeGubernator(ln net.Listener) error {
	if err := s.gubernator.Serve(plainListener{ln}); err != nil {
		return fmt.Errorf("serve gubernator's api: %w", err)
	}
	return nil
}

// plainListener accepts connections that let a client have its answer which is refused in the middle of what it sends.
type plainListener struct{ net.Listener }

// Accept implements net.Listener.
func (l plainListener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &plainConn{Conn: raw}, nil
}

// plainConn is a connection of a plainListener.
type plainConn struct {
	net.Conn
	linger atomic.Bool
}

// Close implements net.Conn.
func (c *plainConn) Close() error {
	if c.linger.Swap(false) {
		drain(c.Conn)
	}
	return c.Conn.Close()
}

// serveGubernator is every request to that server.
func (s *Server) serveGubernator(ctx *fasthttp.RequestCtx) {
	c := s.acquireGubernator(ctx)
	defer c.finish()
	if err := c.gubernatorCall(); err != nil {
		c.fail(err)
	}
}

// brokenGubernator answers what could not be read as a request; the connection closes after it.
func (s *Server) brokenGubernator(ctx *fasthttp.RequestCtx, err error) {
	c := s.acquireGubernator(ctx)
	defer c.finish()
	c.closeAfter = true
	p := brokenProblem(err)
	if errors.Is(err, fasthttp.ErrBodyTooLarge) {
		p = problem(p.Status, p.Code, "the body is longer than 1 MiB")
	}
	c.fail(p)
}

func (s *Server) acquireGubernator(ctx *fasthttp.RequestCtx) *call {
	c := s.acquireCall(ctx)
	c.newRequestID()
	c.client = client{peer: peerAddr(ctx.RemoteAddr())}
	c.client.addr = c.client.peer
	return c
}

func (c *call) gubernatorCall() error {
	if misread := misreadable(&c.ctx.Request); misread != "" {
		c.closeAfter = true
		return problem(http.StatusBadRequest, "malformed_request", misread)
	}
	if len(c.ctx.Request.Header.PeekBytes(headerOrigin)) > 0 {
		// A page in somebody's browser, which may reach what the rest of the world may not.
		return problem(http.StatusForbidden, "forbidden", "this listener is not for web pages")
	}
	var method string
	switch string(c.ctx.Request.URI().PathOriginal()) {
	case gubernatorPath:
		method = http.MethodPost
	case gubernatorHealth:
		method = http.MethodGet
	default:
		return errNotFound()
	}
	if string(c.ctx.Method()) != method {
		p := problem(http.StatusMethodNotAllowed, "method_not_allowed", "this path does not take the method; Allow lists those that it takes")
		p.Allow = method
		return p
	}
	if method == http.MethodGet {
		return c.writeProto(c.srv.GubernatorHealth())
	}
	return c.answerGubernator(c.ctx.Request.Body(), "")
}
