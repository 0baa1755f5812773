package authapi_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sluice/authapi"
	"sluice/authapi/authtest"
)

// statuses sends bytes and lists the statuses of all answers until the connection ends, "-" for none.
func statuses(t *testing.T, addr, raw string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	go io.WriteString(conn, raw) // the other end may close before it has all
	var list []string
	for r := bufio.NewReader(conn); ; {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			break
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			list = append(list, "broken")
			break
		}
		list = append(list, fmt.Sprint(resp.StatusCode))
		if resp.StatusCode >= 200 && resp.Header.Get("X-Request-Id") == "" {
			t.Errorf("a %d without X-Request-Id", resp.StatusCode)
		}
	}
	if list == nil {
		return "-"
	}
	return strings.Join(list, " ")
}

func TestSmuggling_Alone(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) {
		c.ReadTimeout, c.IdleTimeout = time.Second, time.Second
		c.Limit.Anonymous = rule(1e9)
	})
	corpus, err := authtest.ReadSmuggling(filepath.Join("testdata", "smuggling", "corpus.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if len(corpus) < 60 {
		t.Errorf("%d cases, want at least 60", len(corpus))
	}
	for _, c := range corpus {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			if got := statuses(t, e.addr, c.Raw); got != c.Want {
				t.Errorf("answers %s, want %s, to %.300q", got, c.Want, c.Raw)
			}
		})
	}
}

// TestSmuggling_ThroughTheGateway sends the corpus to a route: the upstream gets a request for each that was answered by it, whole and
// with its own headers, and nothing of those that were refused.
func TestSmuggling_ThroughTheGateway(t *testing.T) {
	t.Parallel()
	corpus, err := authtest.ReadSmuggling(filepath.Join("testdata", "smuggling", "corpus.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range corpus {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			seen := map[string]string{} // method and target by request id
			s := newScript(t, func(n int64, conn net.Conn, r *bufio.Reader, req *http.Request) bool {
				body, err := io.ReadAll(req.Body)
				mu.Lock()
				defer mu.Unlock()
				ids := req.Header["X-Request-Id"]
				switch {
				case err != nil:
					return false // the client broke off, and is told so
				case len(ids) != 1 || len(req.Header["X-Auth-Method"]) != 1 || len(req.Header["X-Forwarded-For"]) != 1 || seen[ids[0]] != "":
					t.Errorf("the upstream got %s %s with header %v and body %q", req.Method, req.RequestURI, req.Header, body)
				case !strings.HasPrefix(req.RequestURI, "/gateway/") || strings.Contains(req.RequestURI, "smuggled"):
					t.Errorf("the upstream got %s %s", req.Method, req.RequestURI)
				}
				seen[ids[0]] = req.Method + " " + req.RequestURI
				return good(n, conn, r, req)
			})
			e := newRoute(t, func(c *authapi.Config, r *authapi.Route) {
				c.ReadTimeout, c.IdleTimeout = 500*time.Millisecond, 500*time.Millisecond
				r.PathPrefix = "/gateway"
			}, s.url)
			// As long as what they take the place of, so that lengths and chunks still fit.
			raw := strings.NewReplacer("/api/v1/auth/verify", "/gateway/api/verify", "/api/v1/auth/login", "/gateway/api/login").Replace(c.Raw)
			got := statuses(t, e.addr, raw)
			mu.Lock()
			defer mu.Unlock()
			if n := strings.Count(got, "200"); n != len(seen) {
				t.Errorf("answers %s, and the upstream got %v", got, seen)
			}
			if !strings.Contains(c.Want, "200") && !strings.Contains(c.Raw, "/login") && strings.Contains(got, "200") {
				t.Errorf("answers %s through the gateway, %s without", got, c.Want)
			}
		})
	}
}

// dodges are other ways to write /shut/x that an upstream might take for it.
var dodges = []string{
	"//shut/x", "/./shut/x", "/open/../shut/x", "/open/%2e%2e/shut/x", "/open/%2E%2E/shut/x", "/open/.%2e/shut/x", "/open/..%2fshut/x",
	"/open/..%5cshut/x", `/open/..\shut/x`, "/open/..;/shut/x", "/open/..;a=b/shut/x", "/open/%2e%2e%2fshut/x", "/open/%252e%252e/shut/x",
	"/%73hut/x", "/s%68ut/x", "/shut%2fx", "/shut%2Fx", "/shut;v=1/x", "/shut%3bv/x", `/shut\x`, "/shut%5cx", "/shut/./x", "/shut//x", "/shut/y/../x",
	"/shut%00/x", "/shut\x00/x", "/shut%0a/x", "/shut/x#", "/open#/../shut/x", "/shut/x\xff", "/open/x/../../shut/x", "/%2e/shut/x", "/%2fshut/x",
	"/open/%e0%80%ae%e0%80%ae/shut/x", "/open/%c3/shut/x", "/%u0073hut/x", "/open/%c0%ae%c0%ae/shut/x", "/SHUT/x", "/shut%20/x", "/shut%09/x", "shut/x", "http://other.example/shut/x",
	"/open/../../shut/x", "/shut/x/..", "/shut/%2e", "/.%2fshut/x", "/open%2f..%2fshut/x", "/open/..%252fshut/x",
}

// Nothing spelled in another way gets by the rule of a route, through the gateway or described to the check.
func TestSmuggling_RulesCannotBeDodged(t *testing.T) {
	t.Parallel()
	var reached atomic.Pointer[string]
	upstream := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		uri := r.RequestURI
		reached.Store(&uri)
	}))
	t.Cleanup(upstream.Close)
	routes := func(c *authapi.Config) {
		trustLoopback(c)
		c.Limit.Anonymous = rule(1e9)
		c.Routes = []authapi.Route{
			{Name: "open", PathPrefix: "/open", Upstream: upstream.URL, Rules: []authapi.RouteRule{{Methods: []string{"*"}, Anonymous: true}}},
			{Name: "shut", PathPrefix: "/shut", Upstream: upstream.URL, Rules: []authapi.RouteRule{{Methods: []string{"*"}, Scopes: []string{"triggers:write"}}}},
		}
	}
	e := newEdge(t, routes)
	lenient := newEdge(t, func(c *authapi.Config) { routes(c); c.RoutesDefaultAllow = true })
	status := func(e *edge, request string) int {
		t.Helper()
		a, err := e.raw(request)
		if err != nil {
			return 0
		}
		return a.status
	}
	get := func(target string) string {
		return "GET " + target + " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
	}
	describe := func(path, headers string) string {
		return "GET " + path + " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + headers + "\r\n"
	}
	for target, want := range map[string]int{"/open/x": 200, "/open/caf%C3%A9%20%E2%82%AC/%F0%9F%98%80?q=%ff#": 400, "/open/caf%C3%A9%20%E2%82%AC/%F0%9F%98%80?q=%ff": 200, "/shut/x": 401} {
		if got := status(e, get(target)); got != want {
			t.Fatalf("%s: %d, want %d", target, got, want)
		}
	}
	reached.Store(nil)
	for _, target := range dodges {
		if got := status(e, get(target)); got != 0 && got < 400 || reached.Load() != nil {
			t.Errorf("%q through the gateway: %d, and the upstream got %v", target, got, reached.Swap(nil))
		}
		for name, request := range map[string]string{
			"forwarded": describe("/api/v1/auth/verify", "X-Forwarded-Method: GET\r\nX-Forwarded-Uri: "+target+"\r\n"),
			"nginx":     describe("/api/v1/auth/verify/nginx", "X-Original-Method: GET\r\nX-Original-Url: http://a"+target+"\r\n"),
			"envoy":     describe("/api/v1/auth/verify/envoy"+target, ""),
		} {
			if got := status(e, request); got != 0 && got < 400 {
				t.Errorf("%q described to %s: %d", target, name, got)
			}
			// Where what no route covers may pass, what could be another spelling of a route's path may not.
			switch target {
			case "/SHUT/x", "/shut%20/x", "/shut%09/x", "http://other.example/shut/x", "shut/x":
				continue // other paths by any reading of RFC 3986, or none
			}
			if got := status(lenient, request); got != 0 && got < 400 {
				t.Errorf("%q described to %s with routes_default = allow: %d", target, name, got)
			}
		}
	}
}
