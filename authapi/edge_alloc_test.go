//go:build !race

package authapi_test

import (
	"bufio"
	"bytes"
	"net"
	"testing"

	"github.com/valyala/fasthttp"

	"sluice/authapi"
)

// hot is one request, run again and again on the same RequestCtx.
type hot struct {
	ctx     fasthttp.RequestCtx
	handler fasthttp.RequestHandler
}

func newHot(tb testing.TB, handler fasthttp.RequestHandler, request string) *hot {
	tb.Helper()
	h := &hot{handler: handler}
	h.ctx.Init(&fasthttp.Request{}, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}, nil)
	if err := h.ctx.Request.Read(bufio.NewReader(bytes.NewBufferString(request))); err != nil {
		tb.Fatalf("read request: %v", err)
	}
	return h
}

func (h *hot) run() int {
	h.ctx.Response.Reset()
	h.handler(&h.ctx)
	return h.ctx.Response.StatusCode()
}

// hotRequests are the requests that must not allocate.
func hotRequests(tb testing.TB) map[string]*hot {
	tb.Helper()
	cfg, cluster, _, _ := edgeConfig(func(c *authapi.Config) {
		trustLoopback(c)
		apiRoutes(c)
		c.Limit.Anonymous, c.Limit.APIKey, c.Limit.User = rule(1e12), rule(1e12), rule(1e12)
	})
	srv, err := authapi.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	e := &edge{srv: srv, cluster: cluster}
	key := e.key(nil, "events:read", "triggers:read")
	described := "X-Forwarded-Method: GET\r\nX-Forwarded-Uri: /api/v1/events?x=1\r\nX-Forwarded-Host: api.example\r\nX-Forwarded-For: 2001:db8::1, 127.0.0.1\r\n"
	handler := srv.Handler()
	return map[string]*hot{
		"anonymous":        newHot(tb, handler, "GET /api/v1/auth/verify HTTP/1.1\r\nHost: a\r\n\r\n"),
		"key":              newHot(tb, handler, "GET /api/v1/auth/verify HTTP/1.1\r\nHost: a\r\nX-API-Key: "+key+"\r\n\r\n"),
		"described":        newHot(tb, handler, "GET /api/v1/auth/verify HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer "+key+"\r\n"+described+"\r\n"),
		"described by one": newHot(tb, handler, "GET /api/v1/auth/verify HTTP/1.1\r\nHost: a\r\n"+described+"\r\n"),
		"jwt":              newHot(tb, handler, "GET /api/v1/auth/verify HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer "+signedIn(tb, srv, cluster)+"\r\n\r\n"),
	}
}

func TestVerify_AllocatesNothing(t *testing.T) {
	for name, h := range hotRequests(t) {
		if status := h.run(); status != 200 {
			t.Errorf("%s: status %d; %s", name, status, h.ctx.Response.Body())
			continue
		}
		if n := testing.AllocsPerRun(1000, func() { h.run() }); n != 0 {
			t.Errorf("%s: %v allocations a request, want none", name, n)
		}
	}
}

func TestRefused_AllocatesNothing(t *testing.T) {
	cfg, _, _, _ := edgeConfig(nil)
	srv, err := authapi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	h := newHot(t, srv.Handler(), "GET /api/v1/auth/verify HTTP/1.1\r\nHost: a\r\n\r\n")
	for range 11 {
		h.run()
	}
	if status := h.run(); status != 429 {
		t.Fatalf("status %d, want 429", status)
	}
	if n := testing.AllocsPerRun(1000, func() { h.run() }); n != 0 {
		t.Errorf("%v allocations a refusal, want none", n)
	}
}

func BenchmarkVerify(b *testing.B) {
	for name, h := range hotRequests(b) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				h.run()
			}
		})
	}
}
