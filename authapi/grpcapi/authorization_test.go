package grpcapi_test

import (
	"encoding/json"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/valyala/fasthttp"
	"google.golang.org/grpc/codes"

	"sluice/authapi"
	"sluice/limiter"
)

// routed has routes for anonymous readers and for writers, and believes what 10.0.0.0/8 says of clients.
func routed(c *authapi.Config) {
	trust("10.0.0.0/8")(c)
	c.Routes = []authapi.Route{
		{Name: "events", PathPrefix: "/events", Rules: []authapi.RouteRule{
			{Methods: []string{"GET"}, Scopes: []string{"events:read"}, Anonymous: true, Cost: 1},
			{Methods: []string{"*"}, Scopes: []string{"events:write"}, Cost: 5},
		}},
		{Name: "private", PathPrefix: "/private", Rules: []authapi.RouteRule{{Methods: []string{"GET"}}}},
		{Name: "admin", Host: "admin.example.com", PathPrefix: "/", Rules: []authapi.RouteRule{{Methods: []string{"GET"}, Scopes: []string{"admin:read"}}}},
	}
}

// asked is a request as Envoy describes it.
type asked struct {
	method, host, path, source string
	headers                    map[string]string
	extensions                 map[string]string
	raw                        bool // encode_raw_headers
}

func (a asked) request() *authv3.CheckRequest {
	http := &authv3.AttributeContext_HttpRequest{
		Id: "17", Method: a.method, Host: a.host, Path: a.path, Scheme: "https", Size: -1, Protocol: "HTTP/2",
	}
	if a.raw {
		http.HeaderMap = &corev3.HeaderMap{}
		for name, value := range a.headers {
			http.HeaderMap.Headers = append(http.HeaderMap.Headers, &corev3.HeaderValue{Key: name, RawValue: []byte(value)})
		}
	} else {
		http.Headers = map[string]string{":method": a.method, ":path": a.path, ":authority": a.host}
		for name, value := range a.headers {
			http.Headers[name] = value
		}
	}
	source := a.source
	if source == "" {
		source = "192.0.2.1"
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source: &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: source, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 51234},
		}}}},
		Request:           &authv3.AttributeContext_Request{Http: http},
		ContextExtensions: a.extensions,
	}}
}

func (s *service) authorize(a asked) *authv3.CheckResponse {
	s.t.Helper()
	resp, err := authv3.NewAuthorizationClient(s.conn).Check(within(s.t), a.request())
	if err != nil {
		s.t.Fatalf("Check: %v", err)
	}
	return resp
}

// apply does to a request's headers what Envoy does with an answer that allows it.
func apply(headers map[string]string, ok *authv3.OkHttpResponse) map[string]string {
	out := map[string]string{}
	for name, value := range headers {
		out[strings.ToLower(name)] = value
	}
	for _, h := range ok.GetHeaders() {
		out[strings.ToLower(h.GetHeader().GetKey())] = h.GetHeader().GetValue()
	}
	for _, name := range ok.GetHeadersToRemove() {
		delete(out, strings.ToLower(name))
	}
	return out
}

func TestCheck_IdentityIsOursAlone(t *testing.T) {
	t.Parallel()
	s := newService(t, routed)
	key := s.key("events:read", "events:write")
	spoofed := map[string]string{
		"x-auth-method": "jwt", "x-auth-user": "root", "x-auth-organization": "org_root", "x-auth-key": "key_root", "x-auth-scopes": "*",
		"x-api-key": key, "accept": "*/*",
	}
	resp := s.authorize(asked{method: "POST", host: "x.example", path: "/events/7?q=1", headers: spoofed})
	if resp.GetStatus().GetCode() != int32(codes.OK) || resp.GetOkResponse() == nil {
		t.Fatalf("answer %v", resp)
	}
	got := apply(spoofed, resp.GetOkResponse())
	for name, want := range map[string]string{
		"x-auth-method": "api_key", "x-auth-user": "", "x-auth-organization": "org_1", "x-auth-scopes": "events:read events:write", "accept": "*/*",
	} {
		if got[name] != want {
			t.Errorf("%s = %q, want %q", name, got[name], want)
		}
	}
	if !strings.HasPrefix(got["x-auth-key"], "key_") || got["x-auth-key"] == "key_root" {
		t.Errorf("x-auth-key = %q", got["x-auth-key"])
	}
	for _, name := range []string{"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "X-RateLimit-Window", "RateLimit", "RateLimit-Policy"} {
		if !slices.ContainsFunc(resp.GetOkResponse().GetResponseHeadersToAdd(), func(h *corev3.HeaderValueOption) bool { return h.GetHeader().GetKey() == name }) {
			t.Errorf("the client does not get %s", name)
		}
	}
	delete(spoofed, "x-api-key")
	resp = s.authorize(asked{method: "GET", host: "x.example", path: "/events", headers: spoofed})
	got = apply(spoofed, resp.GetOkResponse())
	for name, want := range map[string]string{"x-auth-method": "anonymous", "x-auth-user": "", "x-auth-organization": "", "x-auth-key": "", "x-auth-scopes": ""} {
		if got[name] != want {
			t.Errorf("anonymous: %s = %q, want %q", name, got[name], want)
		}
	}
}

// Other names for the identity are set and removed alike.
func TestCheck_IdentityByOtherNames(t *testing.T) {
	t.Parallel()
	s := newService(t, func(c *authapi.Config) {
		routed(c)
		c.Identity, _ = authapi.IdentityPreset("remote")
	})
	spoofed := map[string]string{"remote-user": "root", "remote-groups": "org_root", "remote-scopes": "*", "x-api-key": s.key("events:read")}
	got := apply(spoofed, s.authorize(asked{method: "GET", host: "x.example", path: "/events", headers: spoofed}).GetOkResponse())
	for name, want := range map[string]string{"remote-method": "api_key", "remote-user": "", "remote-groups": "org_1", "remote-scopes": "events:read", "x-auth-method": ""} {
		if got[name] != want {
			t.Errorf("%s = %q, want %q", name, got[name], want)
		}
	}
}

// overHTTP is what the check in Envoy's HTTP dialect says of the same request.
func (s *service) overHTTP(a asked) (status int, headers map[string][]string, body string) {
	var ctx fasthttp.RequestCtx
	var req fasthttp.Request
	req.Header.SetMethod(a.method)
	req.Header.SetHost(a.host)
	req.SetRequestURI("/api/v1/auth/verify/envoy" + a.path)
	req.Header.SetProtocol("HTTP/1.1")
	for name, value := range a.headers {
		if name != "x-forwarded-for" {
			req.Header.Set(name, value)
		}
	}
	// Envoy puts the other end of its own connection to the right.
	source := a.source
	if source == "" {
		source = "192.0.2.1"
	}
	if before := a.headers["x-forwarded-for"]; before != "" {
		source = before + ", " + source
	}
	req.Header.Set("X-Forwarded-For", source)
	ctx.Init(&req, net.TCPAddrFromAddrPort(netip.MustParseAddrPort("10.0.0.9:999")), nil)
	s.api.Handler()(&ctx)
	headers = map[string][]string{}
	for name, value := range ctx.Response.Header.All() {
		headers[string(name)] = append(headers[string(name)], string(value))
	}
	return ctx.Response.StatusCode(), headers, string(ctx.Response.Body())
}

// What the check says over gRPC is what it says over HTTP: status, body, and the headers that concern the client.
func TestCheck_AsOverHTTP(t *testing.T) {
	t.Parallel()
	key, other := newKey(1, "events:read"), newKey(9, "nobody's")
	for _, tt := range []struct {
		name   string
		ask    asked
		status int
	}{
		{"anonymous may read", asked{method: "GET", host: "x.example", path: "/events"}, 200},
		{"HEAD", asked{method: "HEAD", host: "x.example", path: "/events/1"}, 200},
		{"anonymous may not write", asked{method: "POST", host: "x.example", path: "/events"}, 401},
		{"a key", asked{method: "GET", host: "x.example", path: "/private", headers: map[string]string{"x-api-key": key}}, 200},
		{"as a bearer", asked{method: "GET", host: "x.example", path: "/private", headers: map[string]string{"authorization": "Bearer " + key}}, 200},
		{"raw headers", asked{method: "GET", host: "x.example", path: "/private", headers: map[string]string{"x-api-key": key}, raw: true}, 200},
		{"a scope that it lacks", asked{method: "POST", host: "x.example", path: "/events", headers: map[string]string{"x-api-key": key}}, 403},
		{"by host", asked{method: "GET", host: "admin.example.com:8443", path: "/", headers: map[string]string{"x-api-key": key}}, 403},
		{"a made-up key", asked{method: "GET", host: "x.example", path: "/events", headers: map[string]string{"x-api-key": other}}, 401},
		{"a mistyped key", asked{method: "GET", host: "x.example", path: "/events", headers: map[string]string{"x-api-key": key + "x"}}, 401},
		{"no key at all", asked{method: "GET", host: "x.example", path: "/events", headers: map[string]string{"x-api-key": "hello"}}, 401},
		{"another scheme", asked{method: "GET", host: "x.example", path: "/events", headers: map[string]string{"authorization": "Basic YTpi"}}, 401},
		{"a token that is none", asked{method: "GET", host: "x.example", path: "/events", headers: map[string]string{"authorization": "Bearer a.b.c"}}, 401},
		{"two credentials", asked{method: "GET", host: "x.example", path: "/events", headers: map[string]string{"authorization": "Bearer " + key, "x-api-key": other}}, 400},
		{"no route", asked{method: "GET", host: "x.example", path: "/other"}, 403},
		{"no rule", asked{method: "PUT", host: "x.example", path: "/private", headers: map[string]string{"x-api-key": key}}, 403},
		{"dot segments", asked{method: "GET", host: "x.example", path: "/events/../private"}, 403},
		{"an escaped slash", asked{method: "GET", host: "x.example", path: "/events%2f..%2fprivate"}, 403},
		{"an escaped letter", asked{method: "GET", host: "x.example", path: "/%65vents"}, 403},
		{"two slashes", asked{method: "GET", host: "x.example", path: "//events"}, 403},
		{"the client's own query", asked{method: "GET", host: "x.example", path: "/events?page=2"}, 200},
		{"behind a load balancer", asked{method: "GET", host: "x.example", path: "/events", source: "10.1.2.3", headers: map[string]string{"x-forwarded-for": "198.51.100.7"}}, 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// Each way has limits of its own, so that both see the same.
			var a, b *service
			for _, s := range []**service{&a, &b} {
				*s = newService(t, routed)
				if got := (*s).key("events:read"); got != key {
					t.Fatalf("key %s, want %s", got, key)
				}
			}
			tt.ask.headers = withID(tt.ask.headers)
			status, headers, body := a.overHTTP(tt.ask)
			if status != tt.status {
				t.Fatalf("over HTTP: %d %s, want %d", status, body, tt.status)
			}
			resp := b.authorize(tt.ask)
			if status == 200 {
				if resp.GetOkResponse() == nil || resp.GetStatus().GetCode() != 0 {
					t.Fatalf("over gRPC: %v, want it allowed", resp)
				}
				given := resp.GetOkResponse().GetHeaders()
				for _, h := range append(given[:len(given):len(given)], resp.GetOkResponse().GetResponseHeadersToAdd()...) {
					wantHeader(t, headers, h)
				}
				return
			}
			no := resp.GetDeniedResponse()
			if no == nil || int(no.GetStatus().GetCode()) != status || resp.GetStatus().GetCode() == 0 {
				t.Fatalf("over gRPC: %v, want %d", resp, status)
			}
			if no.GetBody() != body {
				t.Errorf("over gRPC %s\nover HTTP %s", no.GetBody(), body)
			}
			seen := 0
			for _, h := range no.GetHeaders() {
				wantHeader(t, headers, h)
				seen++
			}
			if delete(headers, "Content-Length"); seen != len(headers) {
				t.Errorf("over gRPC %v\nover HTTP %v", no.GetHeaders(), headers)
			}
		})
	}
}

// withID adds a request id, which both ways take from a proxy, so that bodies can be compared.
func withID(headers map[string]string) map[string]string {
	out := map[string]string{"x-request-id": "the-same-one"}
	for name, value := range headers {
		out[name] = value
	}
	return out
}

func wantHeader(t *testing.T, want map[string][]string, got *corev3.HeaderValueOption) {
	t.Helper()
	name := got.GetHeader().GetKey()
	if len(want[name]) != 1 || want[name][0] != got.GetHeader().GetValue() {
		t.Errorf("%s = %q, over HTTP %q", name, got.GetHeader().GetValue(), want[name])
	}
	if got.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
		t.Errorf("%s is appended to what is there", name)
	}
}

// The client's address is the one that Envoy tells, unless that is a trusted proxy's and the proxy tells another.
func TestCheck_LimitsByAddress(t *testing.T) {
	t.Parallel()
	s := newService(t, func(c *authapi.Config) {
		routed(c)
		c.Limit.Anonymous = limiter.Rule{Limit: 2, Window: 60, Algorithm: limiter.FixedWindow}
	})
	read := func(source, forwarded string) codes.Code {
		a := asked{method: "GET", host: "x.example", path: "/events", source: source}
		if forwarded != "" {
			a.headers = map[string]string{"x-forwarded-for": forwarded}
		}
		resp := s.authorize(a)
		if no := resp.GetDeniedResponse(); no != nil {
			var p struct {
				Code       string
				RetryAfter int64 `json:"retry_after"`
			}
			if err := json.Unmarshal([]byte(no.GetBody()), &p); err != nil || p.Code != "rate_limit_exceeded" || p.RetryAfter != 53 || no.GetStatus().GetCode() != 429 {
				t.Errorf("denied by %v", no)
			}
		}
		return codes.Code(resp.GetStatus().GetCode())
	}
	for i, tt := range []struct {
		source, forwarded string
		want              codes.Code
	}{
		{"192.0.2.1", "", codes.OK},
		{"192.0.2.1", "203.0.113.5", codes.OK}, // who is no proxy may say what it likes
		{"192.0.2.1", "203.0.113.6", codes.ResourceExhausted},
		{"10.0.0.5", "203.0.113.5", codes.OK},
		{"10.0.0.5", "6.6.6.6, 203.0.113.5", codes.OK},
		{"10.0.0.6", "203.0.113.5, 10.0.0.7", codes.ResourceExhausted},
		{"2001:db8:1:2::1", "", codes.OK},
		{"2001:db8:1:2::2", "", codes.OK},
		{"2001:db8:1:2:ffff::3", "", codes.ResourceExhausted},
		{"::ffff:192.0.2.1", "", codes.ResourceExhausted},
	} {
		if got := read(tt.source, tt.forwarded); got != tt.want {
			t.Errorf("call %d of %s (%s): %s, want %s", i, tt.source, tt.forwarded, got, tt.want)
		}
	}
}

// An operator's settings in Envoy's route can only tighten what the route's rules say.
func TestCheck_ContextExtensions(t *testing.T) {
	t.Parallel()
	s := newService(t, routed)
	key := s.key("events:read")
	ask := asked{method: "GET", host: "x.example", path: "/events?anonymous=deny&cost=50&scope=events:write"}
	code := func(a asked) codes.Code { return codes.Code(s.authorize(a).GetStatus().GetCode()) }
	if got := code(ask); got != codes.OK {
		t.Errorf("a client's own query: %s, want it to mean nothing", got)
	}
	ask.extensions = map[string]string{"anonymous": "deny"}
	if got := code(ask); got != codes.Unauthenticated {
		t.Errorf("anonymous = deny: %s", got)
	}
	ask.headers = map[string]string{"x-api-key": key}
	if got := code(ask); got != codes.OK {
		t.Errorf("anonymous = deny with a key: %s", got)
	}
	ask.extensions = map[string]string{"scope": "events:read events:write"}
	if got := code(ask); got != codes.PermissionDenied {
		t.Errorf("a scope that it lacks: %s", got)
	}
	before := remaining(t, s.authorize(asked{method: "GET", host: "x.example", path: "/events", headers: ask.headers}))
	ask.extensions = map[string]string{"cost": "7", "scope": "events:read"}
	if got := remaining(t, s.authorize(ask)); got != before-7 {
		t.Errorf("cost 7: %d left of %d", got, before)
	}
	for name, extensions := range map[string]map[string]string{
		"cost": {"cost": "much"}, "cost below 1": {"cost": "0"}, "anonymous": {"anonymous": "maybe"},
	} {
		ask.extensions = extensions
		_, err := authv3.NewAuthorizationClient(s.conn).Check(within(t), ask.request())
		wantCode(t, err, codes.InvalidArgument, "context_extensions."+strings.Fields(name)[0])
	}
}

func remaining(t *testing.T, resp *authv3.CheckResponse) (n int) {
	t.Helper()
	for _, h := range resp.GetOkResponse().GetResponseHeadersToAdd() {
		if h.GetHeader().GetKey() == "X-RateLimit-Remaining" {
			if err := json.Unmarshal([]byte(h.GetHeader().GetValue()), &n); err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no X-RateLimit-Remaining in %v", resp)
	return 0
}

func TestCheck_UndecidedAndMalformed(t *testing.T) {
	t.Parallel()
	s := newService(t, routed)
	client := authv3.NewAuthorizationClient(s.conn)
	for name, req := range map[string]*authv3.CheckRequest{
		"nothing":    {},
		"no request": {Attributes: &authv3.AttributeContext{}},
		"no HTTP":    {Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{}}},
	} {
		_, err := client.Check(within(t), req)
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		wantCode(t, err, codes.InvalidArgument, "attributes.request.http")
	}
	for name, a := range map[string]asked{
		"an empty request":             {},
		"a host that is none":          {method: "GET", host: "x.example\r\nx-api-key: a", path: "/events"},
		"a source that is none":        {method: "GET", host: "x.example", path: "/private", source: "@socket"},
		"a header that breaks a line":  {method: "GET", host: "x.example", path: "/private", headers: map[string]string{"authorization": "Bearer a\r\nx-api-key: b"}},
		"a method that is none":        {method: "G\x01ET", host: "x.example", path: "/private"},
		"a path without a slash":       {method: "GET", host: "x.example", path: "events"},
		"a path that is a whole URL":   {method: "GET", host: "x.example", path: "http://x.example/events"},
		"a path with a line's end":     {method: "GET", host: "x.example", path: "/events\r\n/x"},
		"a path that is not all ASCII": {method: "GET", host: "x.example", path: "/events/é"},
	} {
		if resp := s.authorize(a); resp.GetDeniedResponse() == nil {
			t.Errorf("%s: %v, want it denied", name, resp)
		}
	}
	s.limits.Undecided.Store(true)
	_, err := client.Check(within(t), asked{method: "GET", host: "x.example", path: "/events"}.request())
	wantCode(t, err, codes.Unavailable, "cannot decide")
	s.limits.Undecided.Store(false)
	s.cluster.Stale.Store(true)
	_, err = client.Check(within(t), asked{method: "GET", host: "x.example", path: "/private", headers: map[string]string{"x-api-key": s.key("a:b")}}.request())
	wantCode(t, err, codes.Unavailable, "cannot decide")
}
