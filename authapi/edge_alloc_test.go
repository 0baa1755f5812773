//go:build !race

package authapi_test

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"strconv"
	"strings"
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
func hotRequests(tb testing.TB, change func(*authapi.Config)) map[string]*hot {
	tb.Helper()
	cfg, cluster, _, _ := edgeConfig(func(c *authapi.Config) {
		trustLoopback(c)
		apiRoutes(c)
		c.Limit.Anonymous, c.Limit.APIKey, c.Limit.User = rule(1e12), rule(1e12), rule(1e12)
		if change != nil {
			change(c)
		}
	})
	srv, err := authapi.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := srv.Shutdown(context.Background()); err != nil {
			tb.Error(err)
		}
	})
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

// severalPolicies count every request several times.
func severalPolicies(cfg *authapi.Config) {
	cfg.Limit.Policies = []authapi.Policy{
		{Name: "second", By: []authapi.Dimension{authapi.ByAddress}, Rule: rule(1e12)},
		{Name: "a-policy-with-a-name-that-is-rather-long", By: []authapi.Dimension{authapi.ByAddress, authapi.ByRoute}, Rule: rule(1e12)},
		{Name: "organization", By: []authapi.Dimension{authapi.ByOrganization}, Rule: window(1e12, 86_400)},
		{Name: "route", By: []authapi.Dimension{authapi.ByRoute}, Rule: window(1e12, 3600)},
		{Name: "keys", By: []authapi.Dimension{authapi.ByKey}, Rule: window(1e12, 86_400)},
		{Name: "users", By: []authapi.Dimension{authapi.ByUser}, Rule: window(1e12, 86_400)},
		{Name: "trial", By: []authapi.Dimension{authapi.ByAddress}, Rule: rule(1e12), Shadow: true},
	}
}

func TestVerify_AllocatesNothing(t *testing.T) {
	for name, h := range hotRequests(t, nil) {
		wantNoAllocations(t, name, h)
	}
	for name, h := range hotRequests(t, severalPolicies) {
		wantNoAllocations(t, name+", several policies", h)
		policies := 3 // at least: the layer's own, second, and one of the credential or the route
		if name == "anonymous" {
			policies = 2
		}
		if got := bytes.Count(h.ctx.Response.Header.Header(), []byte(";r=")); got < policies {
			t.Errorf("%s: RateLimit lists %d policies: %s", name, got, h.ctx.Response.Header.Header())
		}
	}
}

func wantNoAllocations(t *testing.T, name string, h *hot) {
	t.Helper()
	if status := h.run(); status != 200 {
		t.Errorf("%s: status %d; %s", name, status, h.ctx.Response.Body())
		return
	}
	if n := testing.AllocsPerRun(1000, func() { h.run() }); n != 0 {
		t.Errorf("%s: %v allocations a request, want none", name, n)
	}
}

// TestSeveral_AllocateNothingOverTheLimiter is the hot path as nodes run it, admitted and refused.
func TestSeveral_AllocateNothingOverTheLimiter(t *testing.T) {
	for _, refused := range []bool{false, true} {
		cfg, cluster, _, _ := edgeConfig(severalPolicies)
		cfg.Limit.APIKey = rule(1e12)
		cfg.Limits = realLimits(t, cfg.Clock)
		if refused {
			cfg.Limit.Policies[2].Rule.Limit = 0
			cfg.Limit.Policies[4].Rule.Limit = 0
		}
		srv, err := authapi.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		e := &edge{srv: srv, cluster: cluster}
		h := newHot(t, srv.Handler(), "GET /api/v1/auth/verify HTTP/1.1\r\nHost: a\r\nX-API-Key: "+e.key(nil)+"\r\n\r\n")
		want := 200
		if refused {
			want = 429
		}
		if status := h.run(); status != want {
			t.Fatalf("status %d, want %d; %s", status, want, h.ctx.Response.Body())
		}
		if n := testing.AllocsPerRun(1000, func() { h.run() }); n != 0 {
			t.Errorf("status %d: %v allocations a request, want none", want, n)
		}
		if err := srv.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// TestCheck_AllocatesNothing holds one check and a batch, alone and together, to the hot path's rule.
func TestCheck_AllocatesNothing(t *testing.T) {
	one := `{"key":"user:\u0037","limit":1000000000000,"window_seconds":60}`
	batch := "[" + one + strings.Repeat(","+one, 9) + `,{"key":"k","policy":"named"},{"key":"k","policy":"named","cost":0}]`
	for name, body := range map[string]string{"one": one, "batch": `{"checks":` + batch + `}`, "atomic": `{"atomic":true,"checks":` + batch + `}`} {
		cfg, cluster, _, _ := edgeConfig(func(c *authapi.Config) {
			c.Limit.Policies = []authapi.Policy{{Name: "named", By: []authapi.Dimension{authapi.ByCheck}, Rule: rule(1e12)}}
		})
		cfg.Limit.APIKey = rule(1e12)
		cfg.Limits = realLimits(t, cfg.Clock)
		srv, err := authapi.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		key := (&edge{srv: srv, cluster: cluster}).key(nil, "limits:check")
		h := newHot(t, srv.Handler(), "POST /api/v1/limits/check HTTP/1.1\r\nHost: a\r\nX-API-Key: "+key+
			"\r\nContent-Type: application/json\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"+body)
		wantNoAllocations(t, name, h)
		if !bytes.Contains(h.ctx.Response.Body(), []byte(`"allowed":true`)) || bytes.Contains(h.ctx.Response.Body(), []byte("false")) {
			t.Errorf("%s: %s", name, h.ctx.Response.Body())
		}
		if err := srv.Shutdown(t.Context()); err != nil {
			t.Error(err)
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
	for suffix, change := range map[string]func(*authapi.Config){"": nil, "/several policies": severalPolicies} {
		for name, h := range hotRequests(b, change) {
			b.Run(name+suffix, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					h.run()
				}
			})
		}
	}
}

func BenchmarkFailedCredential(b *testing.B) {
	cfg, _, _, _ := edgeConfig(func(c *authapi.Config) { c.Limit.Anonymous = rule(1e12) })
	srv, err := authapi.New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := srv.Shutdown(context.Background()); err != nil {
			b.Error(err)
		}
	})
	h := newHot(b, srv.Handler(), "GET /api/v1/auth/verify HTTP/1.1\r\nHost: a\r\nX-API-Key: sk_live_x\r\n\r\n")
	b.ReportAllocs()
	for b.Loop() {
		if status := h.run(); status != 401 {
			b.Fatal(status)
		}
	}
}
