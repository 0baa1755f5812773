package authapi_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"sluice/authapi"
)

// apiRoutes are the routes of the tests: the same as `sluice dev` has, and some by host.
func apiRoutes(cfg *authapi.Config) {
	cfg.Limit.Anonymous, cfg.Limit.APIKey = rule(1000), rule(1000)
	cfg.Routes = append(cfg.Routes,
		authapi.Route{Name: "events", PathPrefix: "/api/v1/events", Rules: []authapi.RouteRule{
			{Methods: []string{"GET"}, Scopes: []string{"events:read"}, Anonymous: true, Cost: 1},
			{Methods: []string{"*"}, Scopes: []string{"events:write"}, Cost: 5},
		}},
		authapi.Route{Name: "private", PathPrefix: "/api/v1/events/private/", Rules: []authapi.RouteRule{{Methods: []string{"GET"}}}},
		authapi.Route{Name: "admin", Host: "Admin.example.com", PathPrefix: "/", Rules: []authapi.RouteRule{
			{Methods: []string{"GET"}, Scopes: []string{"admin:read", "admin:all"}},
		}},
	)
}

func TestVerify_IdentityHeaders(t *testing.T) {
	t.Parallel()
	e := newEdge(t, nil)
	key := e.key(nil, "events:read", "triggers:*")
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"} {
		a := e.do(method, "/api/v1/auth/verify", "", "X-API-Key", key)
		e.want(a, 200, "")
		if a.body != "" || a.header.Get("Content-Length") != "0" || a.header.Get("Cache-Control") != "no-store" || a.header.Get("Content-Type") != "" {
			t.Errorf("%s: body %q, headers %v", method, a.body, a.header)
		}
		for name, want := range map[string]string{
			"X-Auth-Method": "api_key", "X-Auth-User": "", "X-Auth-Organization": "org_1", "X-Auth-Scopes": "events:read triggers:*",
		} {
			if got := a.header.Values(name); len(got) != 1 || got[0] != want {
				t.Errorf("%s: %s = %q, want %q", method, name, got, want)
			}
		}
		if got := a.header.Get("X-Auth-Key"); !strings.HasPrefix(got, "key_") {
			t.Errorf("X-Auth-Key = %q", got)
		}
		wantHeaders(t, a)
	}
	a := e.do("GET", "/api/v1/auth/verify", "", "X-Auth-User", "root")
	e.want(a, 200, "")
	for name, want := range map[string]string{"X-Auth-Method": "anonymous", "X-Auth-User": "", "X-Auth-Organization": "", "X-Auth-Key": "", "X-Auth-Scopes": ""} {
		if got := a.header.Values(name); len(got) != 1 || got[0] != want {
			t.Errorf("anonymous: %s = %q, want %q", name, got, want)
		}
	}
}

func TestVerify_Described(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) { trustLoopback(c); apiRoutes(c) })
	reader, writer := e.key(nil, "events:read"), e.key(nil, "events:*")
	admin := e.key(nil, "*")
	const path = "/api/v1/auth/verify"
	fwd := func(method, uri string, more ...string) []string {
		return append([]string{"X-Forwarded-Method", method, "X-Forwarded-Uri", uri, "X-Forwarded-Host", "x.example"}, more...)
	}
	for _, tt := range []struct {
		name    string
		path    string
		headers []string
		key     string
		status  int
		code    string
	}{
		{"anonymous may read", path, fwd("GET", "/api/v1/events?a=1"), "", 200, ""},
		{"and HEAD", path, fwd("HEAD", "/api/v1/events/7"), "", 200, ""},
		{"anonymous may not write", path, fwd("POST", "/api/v1/events"), "", 401, "authentication_required"},
		{"reader may read", path, fwd("GET", "/api/v1/events"), reader, 200, ""},
		{"reader may not write", path, fwd("POST", "/api/v1/events"), reader, 403, "insufficient_scope"},
		{"writer may write", path, fwd("POST", "/api/v1/events"), writer, 200, ""},
		{"longest prefix", path, fwd("GET", "/api/v1/events/private/x"), "", 401, "authentication_required"},
		{"longest prefix itself", path, fwd("GET", "/api/v1/events/private"), reader, 200, ""},
		{"method of no rule", path, fwd("POST", "/api/v1/events/private"), writer, 403, "no_route"},
		{"whole segments", path, fwd("GET", "/api/v1/eventsx"), writer, 403, "no_route"},
		{"no route", path, fwd("GET", "/"), writer, 403, "no_route"},
		{"dot segments", path, fwd("GET", "/api/v1/events/../private"), writer, 403, "no_route"},
		{"escaped letters", path, fwd("GET", "/api/v1/events/%70rivate"), writer, 403, "no_route"},
		{"no path", path, []string{"X-Forwarded-Method", "GET"}, writer, 403, "no_route"},
		{"no method, rule for all", path, []string{"X-Forwarded-Uri", "/api/v1/events"}, reader, 403, "insufficient_scope"},
		{"no method", path, []string{"X-Forwarded-Uri", "/api/v1/events/private"}, reader, 403, "no_route"},
		{"two paths", path, append(fwd("GET", "/api/v1/events"), "X-Forwarded-Uri", "/api/v1/events"), reader, 403, "no_route"},
		{"by host", path, []string{"X-Forwarded-Method", "GET", "X-Forwarded-Uri", "/x", "X-Forwarded-Host", "ADMIN.example.com:8443"}, admin, 200, ""},
		{"by host, scopes", path, []string{"X-Forwarded-Method", "GET", "X-Forwarded-Uri", "/x", "X-Forwarded-Host", "admin.example.com."}, writer, 403, "insufficient_scope"},
		{"host goes before prefix", path, []string{"X-Forwarded-Method", "GET", "X-Forwarded-Uri", "/api/v1/events", "X-Forwarded-Host", "admin.example.com"}, reader, 403, "insufficient_scope"},
		{"not described", path, []string{"X-Forwarded-Host", "a", "X-Forwarded-Proto", "https"}, "", 200, ""},
		{"other dialect's headers", path, []string{"X-Original-URL", "/api/v1/events/private", "X-Original-Method", "GET"}, "", 200, ""},
		{"query tightens", path + "?anonymous=deny", fwd("GET", "/api/v1/events"), "", 401, "authentication_required"},
		{"query's scope", path + "?scope=events:write", fwd("GET", "/api/v1/events"), reader, 403, "insufficient_scope"},
		{"query's scope for anonymous", path + "?scope=events:read", fwd("GET", "/api/v1/events"), "", 401, "authentication_required"},
		{"all of the query's scopes", path + "?scope=events:write&scope=triggers:read", nil, writer, 403, "insufficient_scope"},
		{"the query's scopes", path + "?scope=events:write&scope=events:read", nil, writer, 200, ""},
		{"empty scope", path + "?scope=", nil, writer, 403, "insufficient_scope"},
		{"scope that breaks a header", path + "?scope=a%0d%0aX:y", nil, writer, 403, "insufficient_scope"},
		{"nginx", path + "/nginx", []string{"X-Original-URL", "https://x.example/api/v1/events?x", "X-Original-Method", "POST"}, writer, 200, ""},
		{"nginx, path alone", path + "/nginx", []string{"X-Original-URL", "/api/v1/events", "X-Original-Method", "POST"}, reader, 403, "insufficient_scope"},
		{"nginx, by host", path + "/nginx", []string{"X-Original-URL", "http://admin.example.com/api", "X-Original-Method", "GET"}, writer, 403, "insufficient_scope"},
		{"nginx ignores forwarded", path + "/nginx", fwd("POST", "/api/v1/events"), "", 200, ""},
		{"envoy", path + "/envoy/api/v1/events?q=1", nil, reader, 200, ""},
		{"envoy, root", path + "/envoy", nil, reader, 403, "no_route"},
		{"envoy, by host", path + "/envoy/x", []string{"Host", "admin.example.com"}, admin, 200, ""},
		{"envoy, dot segments", path + "/envoy/api/v1/events/../../x", nil, reader, 403, "no_route"},
		{"envoy ignores forwarded", path + "/envoy/api/v1/events/private", fwd("GET", "/api/v1/events"), "", 401, "authentication_required"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			headers := tt.headers
			if tt.key != "" {
				headers = append(headers[:len(headers):len(headers)], "X-API-Key", tt.key)
			}
			a, err := e.raw(rawRequest("GET", tt.path, headers...))
			if err != nil {
				t.Fatalf("no response: %v", err)
			}
			if a.status != tt.status {
				t.Fatalf("status %d, want %d; %s", a.status, tt.status, a.body)
			}
			wantHeaders(t, a)
			if tt.code != "" {
				if p := a.problem(t); p.Code != tt.code {
					t.Errorf("code %s, want %s", p.Code, tt.code)
				}
				if a.header.Get("X-Auth-Method") != "" {
					t.Error("identity headers on a refusal")
				}
			}
		})
	}
}

func rawRequest(method, path string, headers ...string) string {
	b := method + " " + path + " HTTP/1.1\r\n"
	host := "api.example"
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			host = headers[i+1]
			continue
		}
		b += headers[i] + ": " + headers[i+1] + "\r\n"
	}
	return b + "Host: " + host + "\r\n\r\n"
}

func TestVerify_DescriptionsFromStrangersAreIgnored(t *testing.T) {
	t.Parallel()
	e := newEdge(t, apiRoutes)
	for _, path := range []string{"", "/nginx", "/envoy/nowhere"} {
		e.want(e.do("GET", "/api/v1/auth/verify"+path, "", "X-Forwarded-Uri", "/nowhere", "X-Original-URL", "/nowhere"), 200, "")
	}
}

func TestVerify_Cost(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) { trustLoopback(c); apiRoutes(c) })
	key := e.key(nil, "*")
	left := 1000
	for _, tt := range []struct {
		query string
		cost  int
	}{{"", 5}, {"?cost=1", 5}, {"?cost=7", 7}, {"?cost=-3", 5}, {"?cost=x", 5}, {"?cost=", 5}} {
		a := e.do("GET", "/api/v1/auth/verify"+tt.query, "", "X-API-Key", key, "X-Forwarded-Method", "POST", "X-Forwarded-Uri", "/api/v1/events")
		e.want(a, 200, "")
		left -= tt.cost
		if got := a.header.Get("X-RateLimit-Remaining"); got != itoa(left) {
			t.Errorf("%q: remaining %s, want %d", tt.query, got, left)
		}
	}
	a := e.do("GET", "/api/v1/auth/verify?cost=999999999999999999999", "", "X-API-Key", key)
	if a.status != 200 && a.status != 429 {
		t.Errorf("status %d for an absurd cost", a.status)
	}
}

func TestVerify_RoutesDefaultAllow(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) { trustLoopback(c); apiRoutes(c); c.RoutesDefaultAllow = true })
	for uri, want := range map[string]int{"/elsewhere": 200, "/api/v1/events/%2e%2e/x": 403, "/api//v1/events/private": 403, "/api/v1/events/private": 401} {
		if a := e.do("GET", "/api/v1/auth/verify", "", "X-Forwarded-Method", "GET", "X-Forwarded-Uri", uri); a.status != want {
			t.Errorf("%s: status %d, want %d", uri, a.status, want)
		}
	}
}

// TestVerify_NeverReadsTheBody sends the head of a request with a large body only: the answer must come all the same.
func TestVerify_NeverReadsTheBody(t *testing.T) {
	t.Parallel()
	e := newEdge(t, nil)
	conn, err := net.Dial("tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(conn, "POST /api/v1/auth/verify HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("response %v, error %v", resp, err)
	}
	big := strings.Repeat("x", 100<<10)
	e.want(e.do("POST", "/api/v1/auth/verify", big), 200, "")
}

func TestClientIP(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) {
		trustLoopback(c)
		c.TrustedProxies = append(c.TrustedProxies, prefix("10.0.0.0/8"), prefix("fd00::/8"))
		c.Limit.Anonymous = rule(1)
	})
	// Each case's second request comes from what must be the same client, so it is refused.
	for i, pair := range [][2][]string{
		{{"203.0.113.1"}, {"203.0.113.1"}},
		{{"203.0.113.2"}, {"198.51.100.9, 203.0.113.2"}},
		{{"203.0.113.3"}, {"203.0.113.3, 10.1.2.3"}},
		{{"203.0.113.4"}, {"1.2.3.4", "203.0.113.4, 10.1.2.3", "10.0.0.9"}},
		{{"203.0.113.5"}, {"::ffff:203.0.113.5"}},
		{{"203.0.113.6"}, {"203.0.113.6:4711"}},
		{{"2001:db8:1:2::1"}, {"2001:db8:1:2:ffff::9"}},
		{{"2001:db8:1:3::1"}, {"[2001:db8:1:3::2]:443"}},
		{{"2001:db8:1:4::1"}, {"[2001:db8:1:4::2], fd00::1"}},
		{{}, {"garbage"}},
	} {
		for j, lines := range pair {
			var headers []string
			for _, line := range lines {
				headers = append(headers, "X-Forwarded-For", line)
			}
			if a := e.do("GET", "/api/v1/auth/verify", "", headers...); a.status != 200+229*j {
				t.Errorf("case %d, request %d: status %d", i, j+1, a.status)
			}
		}
	}
	for _, line := range []string{"203.0.113.7, garbage", "1.2.3.4.5", "203.0.113.8%eth0", "fe80::1%1", "[::1", "::1]:1", "1.1.1.1:x", "1.1.1.1:", ", ,"} {
		if a := e.do("GET", "/api/v1/auth/verify", "", "X-Forwarded-For", line); a.status != 429 {
			t.Errorf("X-Forwarded-For %q: status %d, want the peer's 429", line, a.status)
		}
	}
	if a := e.do("GET", "/api/v1/auth/verify", "", "X-Forwarded-For", "2001:db8:1:5::1"); a.status != 200 {
		t.Errorf("another /64: status %d", a.status)
	}
}

func TestClientIP_StrangersSayNothing(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) { c.Limit.Anonymous = rule(1) })
	e.want(e.do("GET", "/api/v1/auth/verify", "", "X-Forwarded-For", "203.0.113.1"), 200, "")
	e.want(e.do("GET", "/api/v1/auth/verify", "", "X-Forwarded-For", "203.0.113.2"), 429, "rate_limit_exceeded")
}
