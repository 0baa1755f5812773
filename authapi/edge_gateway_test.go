package authapi_test

import (
	"bufio"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sluice/authapi"
)

func itoa(n int) string { return strconv.Itoa(n) }

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// newGateway is an edge with a route to an upstream that handler is.
func newGateway(t *testing.T, handler http.HandlerFunc, change func(*authapi.Config, *authapi.Route)) *edge {
	t.Helper()
	up := httptest.NewServer(handler)
	t.Cleanup(up.Close)
	return newEdge(t, func(c *authapi.Config) {
		c.Limit.Anonymous, c.Limit.APIKey = rule(1000), rule(1000)
		r := authapi.Route{
			Name: "events", PathPrefix: "/api/v1/events", Upstream: up.URL + "/base", Timeout: 10 * time.Second, MaxBodyBytes: 64 << 20,
			Rules: []authapi.RouteRule{
				{Methods: []string{"GET"}, Scopes: []string{"events:read"}, Anonymous: true},
				{Methods: []string{"POST", "PUT"}, Scopes: []string{"events:write"}, Cost: 5},
			},
		}
		if change != nil {
			change(c, &r)
		}
		c.Routes = append(c.Routes, r)
	})
}

func TestGateway_Request(t *testing.T) {
	t.Parallel()
	seen := make(chan *http.Request, 1)
	e := newGateway(t, func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Clone(r.Context())
		w.Header().Set("X-RateLimit-Limit", "1")
		w.Header().Set("RateLimit", `"theirs";r=1;t=1`)
		w.Header().Set("X-Request-Id", "theirs")
		w.Header().Set("X-Upstream", "yes")
		w.Header().Set("X-Auth-User", "leak")
		w.Header().Set("Keep-Alive", "timeout=5")
		w.Header().Set("X-Hop", "1")
		w.Header().Set("Connection", "X-Hop")
		w.Header().Add("Set-Cookie", "a=1; Path=/")
		w.Header().Add("Set-Cookie", "b=2")
		w.WriteHeader(201)
		io.WriteString(w, "made")
	}, nil)
	key := e.key(nil, "events:write")
	a := e.do("POST", "/api/v1/events/a%20b/?q=%2F&r=1;2", "hello",
		"X-API-Key", key, "X-Auth-User", "root", "x-auth-scopes", "*", "X_Auth_Method", "jwt", "Remote-User", "root", "X-Forwarded-For", "6.6.6.6",
		"X-Forwarded-Prefix", "/x", "X-Forwarded-Proto", "https", "Forwarded", "for=6.6.6.6", "X-Real-Ip", "6.6.6.6", "Connection", "X-Secret, close",
		"X-Secret", "1", "Te", "trailers", "Proxy-Authorization", "Basic x", "Cookie", "c=1; d=2", "X-Kept", "a", "X-Kept", "b", "Content-Type", "text/x")
	if a.status != 201 || a.body != "made" {
		t.Fatalf("answer %d %q", a.status, a.body)
	}
	r := <-seen
	if r.RequestURI != "/base/api/v1/events/a%20b/?q=%2F&r=1;2" || r.Method != "POST" {
		t.Errorf("upstream saw %s %s", r.Method, r.RequestURI)
	}
	for name, want := range map[string]string{
		"X-Auth-Method": "api_key", "X-Auth-User": "", "X-Auth-Organization": "org_1", "X-Auth-Scopes": "events:write",
		"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": e.addr, "X-Request-Id": a.header.Get("X-Request-Id"),
		"Cookie": "c=1; d=2", "Content-Type": "text/x",
	} {
		if got := r.Header.Values(name); len(got) != 1 || got[0] != want {
			t.Errorf("upstream's %s = %q, want %q", name, got, want)
		}
	}
	if got := r.Header.Values("X-Kept"); len(got) != 2 {
		t.Errorf("X-Kept = %q", got)
	}
	for _, name := range []string{"X-Api-Key", "Authorization", "X_auth_method", "X_Auth_Method", "Remote-User", "X-Forwarded-Prefix", "Forwarded", "X-Real-Ip",
		"X-Secret", "Te", "Proxy-Authorization", "Keep-Alive", "User-Agent-X"} {
		if got := r.Header.Values(name); len(got) > 0 {
			t.Errorf("upstream saw %s = %q", name, got)
		}
	}
	wantHeaders(t, a)
	if a.header.Get("X-RateLimit-Limit") != "1000" || a.header.Get("X-RateLimit-Remaining") != "995" || a.header.Get("X-Upstream") != "yes" {
		t.Errorf("headers %v", a.header)
	}
	for _, name := range []string{"X-Auth-User", "X-Hop", "Keep-Alive"} {
		if a.header.Get(name) != "" {
			t.Errorf("client saw %s = %q", name, a.header.Get(name))
		}
	}
	if got := a.header.Values("Set-Cookie"); len(got) != 2 {
		t.Errorf("Set-Cookie = %q", got)
	}
}

func TestGateway_TrustedProxyIsBelieved(t *testing.T) {
	t.Parallel()
	seen := make(chan *http.Request, 1)
	e := newGateway(t, func(w http.ResponseWriter, r *http.Request) { seen <- r.Clone(r.Context()) },
		func(c *authapi.Config, r *authapi.Route) { trustLoopback(c); r.StripPrefix = true })
	a := e.do("GET", "/api/v1/events", "", "X-Forwarded-For", "203.0.113.9", "X-Forwarded-Proto", "https", "X-Forwarded-Host", "shop.example", "X-Request-Id", "from-the-proxy")
	if a.status != 200 {
		t.Fatalf("status %d; %s", a.status, a.body)
	}
	r := <-seen
	for name, want := range map[string]string{
		"X-Forwarded-For": "203.0.113.9, 127.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "shop.example", "X-Request-Id": "from-the-proxy",
		"X-Auth-Method": "anonymous",
	} {
		if got := r.Header.Get(name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	if r.RequestURI != "/base" {
		t.Errorf("path %q, want /base", r.RequestURI)
	}
}

func TestGateway_Permission(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	e := newGateway(t, func(http.ResponseWriter, *http.Request) { calls.Add(1) }, nil)
	reader := e.key(nil, "events:read")
	for _, tt := range []struct {
		method, key string
		status      int
		code        string
	}{
		{"GET", "", 200, ""}, {"HEAD", "", 200, ""}, {"POST", "", 401, "authentication_required"}, {"POST", reader, 403, "insufficient_scope"},
		{"GET", reader, 200, ""}, {"DELETE", reader, 405, "method_not_allowed"}, {"DELETE", "", 405, "method_not_allowed"},
	} {
		var headers []string
		if tt.key != "" {
			headers = []string{"X-API-Key", tt.key}
		}
		a := e.do(tt.method, "/api/v1/events", "", headers...)
		e.want(a, tt.status, tt.code)
		wantHeaders(t, a)
		if tt.status == 405 && a.header.Get("Allow") != "GET, HEAD, POST, PUT" {
			t.Errorf("Allow = %q", a.header.Get("Allow"))
		}
	}
	if got := calls.Load(); got != 3 {
		t.Errorf("upstream saw %d requests, want 3", got)
	}
	e.want(e.do("GET", "/api/v1/eventsx", ""), 404, "not_found")
}

// pattern is n bytes of a stream that is easy to make and to check, without holding it.
func pattern(n int64) (io.Reader, hash.Hash) {
	h := sha256.New()
	return io.TeeReader(io.LimitReader(repeat("0123456789abcdef"), n), h), h
}

type repeat string

func (r repeat) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = r[i%len(r)]
	}
	return len(p), nil
}

func TestGateway_StreamsBothWays(t *testing.T) {
	t.Parallel()
	const size = 24 << 20
	e := newGateway(t, func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, err := io.Copy(h, r.Body)
		if err != nil {
			t.Errorf("upstream read: %v", err)
		}
		w.Header().Set("X-Sum", fmt.Sprintf("%x %d %d", h.Sum(nil), n, r.ContentLength))
		io.Copy(w, io.LimitReader(repeat("fedcba9876543210"), size))
	}, nil)
	key := e.key(nil, "events:write")
	for _, length := range []int64{size, -1} {
		body, sum := pattern(size)
		req, err := http.NewRequest("POST", "http://"+e.addr+"/api/v1/events", body)
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = length
		req.Header.Set("X-API-Key", key)
		resp, err := e.http.Do(req)
		if err != nil {
			t.Fatalf("length %d: %v", length, err)
		}
		got := sha256.New()
		n, err := io.Copy(got, resp.Body)
		resp.Body.Close()
		if err != nil || n != size {
			t.Fatalf("length %d: read %d bytes: %v", length, n, err)
		}
		want := sha256.New()
		io.Copy(want, io.LimitReader(repeat("fedcba9876543210"), size))
		if string(got.Sum(nil)) != string(want.Sum(nil)) {
			t.Errorf("length %d: the answer's bytes differ", length)
		}
		if s := fmt.Sprintf("%x %d %d", sum.Sum(nil), size, length); resp.Header.Get("X-Sum") != s {
			t.Errorf("upstream got %s, want %s", resp.Header.Get("X-Sum"), s)
		}
	}
}

// TestGateway_FirstBytesBeforeTheLast shows that an answer is passed on as it comes.
func TestGateway_FirstBytesBeforeTheLast(t *testing.T) {
	t.Parallel()
	goOn := make(chan struct{})
	e := newGateway(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "first\n")
		w.(http.Flusher).Flush()
		<-goOn
		io.WriteString(w, "last\n")
	}, nil)
	resp, err := e.http.Get("http://" + e.addr + "/api/v1/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r := bufio.NewReader(resp.Body)
	if line, err := r.ReadString('\n'); err != nil || line != "first\n" {
		t.Fatalf("read %q, %v", line, err)
	}
	close(goOn)
	if line, err := r.ReadString('\n'); err != nil || line != "last\n" {
		t.Fatalf("read %q, %v", line, err)
	}
}

func TestGateway_BodyLimit(t *testing.T) {
	t.Parallel()
	e := newGateway(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) },
		func(_ *authapi.Config, r *authapi.Route) { r.MaxBodyBytes = 1000 })
	key := e.key(nil, "events:write")
	post := func(n, length int64) answer {
		body, _ := pattern(n)
		req, _ := http.NewRequest("POST", "http://"+e.addr+"/api/v1/events", body)
		req.ContentLength = length
		req.Header.Set("X-API-Key", key)
		resp, err := e.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return answer{resp.StatusCode, resp.Header, string(b)}
	}
	e.want(post(1000, 1000), 200, "")
	e.want(post(1000, -1), 200, "")
	e.want(post(1001, 1001), 413, "body_too_large")
	a := post(1001, -1)
	e.want(a, 413, "body_too_large")
	wantHeaders(t, a)
}

func TestGateway_UpstreamFailures(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	e := newGateway(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/base/api/v1/events/slow":
			<-release
		case "/base/api/v1/events/abort":
			panic(http.ErrAbortHandler)
		}
	}, func(c *authapi.Config, r *authapi.Route) {
		r.Timeout = 200 * time.Millisecond
		c.Routes = append(c.Routes, authapi.Route{Name: "dead", PathPrefix: "/dead", Upstream: "http://" + deadAddress(t)})
	})
	defer close(release)
	key := e.key(nil, "*")
	for path, want := range map[string]struct {
		status int
		code   string
	}{
		"/api/v1/events/slow":  {504, "gateway_timeout"},
		"/api/v1/events/abort": {502, "bad_gateway"},
		"/dead/x":              {502, "bad_gateway"},
	} {
		a := e.do("GET", path, "", "X-API-Key", key)
		if a.status != want.status {
			t.Errorf("%s: status %d, want %d", path, a.status, want.status)
			continue
		}
		e.want(a, want.status, want.code)
		wantHeaders(t, a)
	}
}

// deadAddress is one that nobody listens on.
func deadAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// TestGateway_Retry has an upstream that closes each kept-alive connection instead of answering its second request.
func TestGateway_Retry(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var requests atomic.Int64
	go func() {
		for {
			conn, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			go func() {
				defer conn.Close()
				r := bufio.NewReader(conn)
				for i := range 2 {
					req, err := http.ReadRequest(r)
					if err != nil {
						return
					}
					io.Copy(io.Discard, req.Body)
					requests.Add(1)
					if i == 1 {
						return
					}
					io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				}
			}()
		}
	}()
	e := newEdge(t, func(c *authapi.Config) {
		c.Limit.Anonymous = rule(1000)
		c.Routes = []authapi.Route{{PathPrefix: "/x", Upstream: "http://" + ln.Addr().String(), Rules: []authapi.RouteRule{{Methods: []string{"*"}, Anonymous: true}}}}
	})
	for i := range 4 {
		if a := e.do("GET", "/x", ""); a.status != 200 || a.body != "ok" {
			t.Fatalf("GET %d: %d %q", i, a.status, a.body)
		}
	}
	// The pool now holds a connection that has answered once: a POST on it fails, and must not be sent again.
	before := requests.Load()
	a := e.do("POST", "/x", "body")
	if a.status != 502 || requests.Load() != before+1 {
		t.Errorf("POST: status %d after %d requests, want 502 after 1", a.status, requests.Load()-before)
	}
}

func TestGateway_HeadAndEmpty(t *testing.T) {
	t.Parallel()
	e := newGateway(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/304"):
			w.WriteHeader(304)
		case strings.HasSuffix(r.URL.Path, "/204"):
			w.WriteHeader(204)
		default:
			w.Header().Set("Content-Length", "1234")
			if r.Method == "GET" {
				w.Write(make([]byte, 1234))
			}
		}
	}, nil)
	for range 2 { // twice, so that the connection's framing is seen to be right
		if a := e.do("HEAD", "/api/v1/events", ""); a.status != 200 || a.header.Get("Content-Length") != "1234" || a.body != "" {
			t.Errorf("HEAD: %d, length %q, body %q", a.status, a.header.Get("Content-Length"), a.body)
		}
		if a := e.do("GET", "/api/v1/events", ""); a.status != 200 || len(a.body) != 1234 {
			t.Errorf("GET: %d, %d bytes", a.status, len(a.body))
		}
		for _, status := range []int{204, 304} {
			if a := e.do("GET", "/api/v1/events/"+itoa(status), ""); a.status != status || a.body != "" {
				t.Errorf("%d: %d %q", status, a.status, a.body)
			}
		}
	}
}

func TestNew_RefusesImpossibleRoutes(t *testing.T) {
	t.Parallel()
	for name, route := range map[string]authapi.Route{
		"path":     {PathPrefix: "api"},
		"dots":     {PathPrefix: "/a/../b"},
		"scheme":   {PathPrefix: "/a", Upstream: "ftp://x"},
		"host":     {PathPrefix: "/a", Upstream: "http:///x"},
		"user":     {PathPrefix: "/a", Upstream: "http://u:secret@x"},
		"query":    {PathPrefix: "/a", Upstream: "http://x?y"},
		"scope":    {PathPrefix: "/a", Rules: []authapi.RouteRule{{Methods: []string{"GET"}, Scopes: []string{"events"}}}},
		"methods":  {PathPrefix: "/a", Rules: []authapi.RouteRule{{}}},
		"cost":     {PathPrefix: "/a", Rules: []authapi.RouteRule{{Methods: []string{"GET"}, Cost: -1}}},
		"negative": {PathPrefix: "/a", Timeout: -1},
	} {
		cfg, _, _, _ := edgeConfig(func(c *authapi.Config) { c.Routes = []authapi.Route{route} })
		if _, err := authapi.New(cfg); err == nil {
			t.Errorf("%s: New took %+v", name, route)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: error tells a secret: %v", name, err)
		}
	}
	cfg, _, _, _ := edgeConfig(func(c *authapi.Config) {
		c.Routes = []authapi.Route{{Name: "a", PathPrefix: "/x"}, {Name: "b", PathPrefix: "/x/"}}
	})
	if _, err := authapi.New(cfg); err == nil {
		t.Error("New took two routes of the same path")
	}
}

func TestGateway_TLSUpstream(t *testing.T) {
	t.Parallel()
	up := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "over TLS") }))
	defer up.Close()
	e := newEdge(t, func(c *authapi.Config) {
		c.Routes = []authapi.Route{{PathPrefix: "/x", Upstream: up.URL, Rules: []authapi.RouteRule{{Methods: []string{"*"}, Anonymous: true}}}}
	})
	e.want(e.do("GET", "/x", ""), 502, "bad_gateway") // nobody vouches for the certificate
	pool := x509.NewCertPool()
	pool.AddCert(up.Certificate())
	trusting := newEdge(t, func(c *authapi.Config) {
		c.Routes = []authapi.Route{{PathPrefix: "/x", Upstream: up.URL, Rules: []authapi.RouteRule{{Methods: []string{"*"}, Anonymous: true}}}}
	})
	trusting.srv.TrustUpstreams(pool)
	if a := trusting.do("GET", "/x/y?z", ""); a.status != 200 || a.body != "over TLS" {
		t.Errorf("answer %d %q", a.status, a.body)
	}
}

// TestGateway_VerifyOnlyRoute: a route without an upstream is a rule of verify only.
func TestGateway_VerifyOnlyRoute(t *testing.T) {
	t.Parallel()
	e := newEdge(t, apiRoutes)
	e.want(e.do("GET", "/api/v1/events", ""), 404, "not_found")
}

// rawUpstream answers every connection's first request with these bytes and closes it.
func rawUpstream(t *testing.T, response string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					io.WriteString(conn, response)
				}
			}()
		}
	}()
	return "http://" + ln.Addr().String()
}

func TestGateway_OddUpstreams(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("0123456789", 1000)
	for _, tt := range []struct {
		name, response string
		status         int
		body           string
		broken         bool // the client must notice that the body is not whole
	}{
		{"until close", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + long, 200, long, false},
		{"HTTP/1.0", "HTTP/1.0 200 OK\r\n\r\n" + long, 200, long, false},
		{"early hints", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, "ok", false},
		{"cut short", "HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n" + long, 200, "", true},
		{"chunks cut short", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", 200, "", true},
		{"no HTTP", "nonsense\r\n\r\n", 502, "", false},
		{"nothing", "", 502, "", false},
		{"header too long", "HTTP/1.1 200 OK\r\nX-A: " + strings.Repeat("a", 20<<10) + "\r\nContent-Length: 0\r\n\r\n", 502, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			up := rawUpstream(t, tt.response)
			e := newEdge(t, func(c *authapi.Config) {
				c.Routes = []authapi.Route{{PathPrefix: "/x", Upstream: up, Timeout: 5 * time.Second, Rules: []authapi.RouteRule{{Methods: []string{"*"}, Anonymous: true}}}}
			})
			resp, err := e.http.Get("http://" + e.addr + "/x")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if resp.StatusCode != tt.status || (err != nil) != tt.broken {
				t.Fatalf("status %d, %d bytes, error %v; want status %d, broken %v", resp.StatusCode, len(b), err, tt.status, tt.broken)
			}
			if tt.status == 200 && !tt.broken && string(b) != tt.body {
				t.Errorf("body of %d bytes, want %d", len(b), len(tt.body))
			}
			wantHeaders(t, answer{resp.StatusCode, resp.Header, string(b)})
		})
	}
}

// TestGateway_ClientGoesAway shows that an abandoned upload is not taken for a whole one by the upstream.
func TestGateway_ClientGoesAway(t *testing.T) {
	t.Parallel()
	result := make(chan error, 1)
	e := newGateway(t, func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		result <- err
	}, func(_ *authapi.Config, r *authapi.Route) {
		r.Rules = []authapi.RouteRule{{Methods: []string{"*"}, Anonymous: true}}
	})
	for _, framing := range []string{"Content-Length: 100000", "Transfer-Encoding: chunked"} {
		conn, err := net.Dial("tcp", e.addr)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "POST /api/v1/events HTTP/1.1\r\nHost: a\r\n"+framing+"\r\n\r\n2000\r\n"+strings.Repeat("x", 20000))
		conn.Close()
		select {
		case err := <-result:
			if err == nil {
				t.Errorf("%s: the upstream took the broken body for a whole one", framing)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: the upstream is still waiting", framing)
		}
	}
}
