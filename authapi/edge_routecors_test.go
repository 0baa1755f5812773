package authapi_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"sluice/authapi"
)

// TestRouteCORS: a route's own list stands in place of the global one and of what the upstream says.
func TestRouteCORS(t *testing.T) {
	t.Parallel()
	var asked []string
	e := newGateway(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method)
		w.Header().Set("Access-Control-Allow-Origin", "*")
		w.Header().Set("Access-Control-Allow-Credentials", "true")
		w.Header().Set("Vary", "Accept")
	}, func(c *authapi.Config, r *authapi.Route) {
		c.CORS.Origins = []string{"https://api.example"}
		r.CORS = &authapi.RouteCORS{
			CORSConfig: authapi.CORSConfig{Origins: []string{"https://app.example"}, MaxAge: time.Minute},
			Headers:    []string{"X-Client"}, Expose: []string{"Link"},
		}
		c.Routes = append(c.Routes, authapi.Route{
			Name: "plain", PathPrefix: "/plain", Upstream: r.Upstream, Rules: []authapi.RouteRule{{Methods: []string{"*"}, Anonymous: true}},
		})
	})
	preflight := func(path, origin string) answer {
		return e.do("OPTIONS", path, "", "Origin", origin, "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "x-client")
	}
	a := preflight("/api/v1/events/1", "https://app.example")
	e.want(a, 204, "")
	for name, want := range map[string]string{
		"Access-Control-Allow-Origin": "https://app.example", "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT", "Access-Control-Max-Age": "60",
		"Access-Control-Allow-Credentials": "", "Vary": "Origin",
	} {
		if got := a.header.Get(name); got != want {
			t.Errorf("preflight's %s = %q, want %q", name, got, want)
		}
	}
	if got := a.header.Get("Access-Control-Allow-Headers"); !strings.Contains(got, "X-API-Key") || !strings.HasSuffix(got, ", X-Client") {
		t.Errorf("preflight allows headers %q", got)
	}
	for _, origin := range []string{"https://api.example", "https://evil.example", "null"} {
		a := preflight("/api/v1/events", origin)
		e.want(a, 204, "")
		if got := a.header.Get("Access-Control-Allow-Origin") + a.header.Get("Access-Control-Allow-Methods"); got != "" {
			t.Errorf("%s is allowed %q", origin, got)
		}
	}
	if len(asked) > 0 {
		t.Errorf("the upstream was asked %v", asked)
	}
	// Answers and errors can be read by the route's pages, and by no others.
	for _, method := range []string{"GET", "POST"} {
		for _, origin := range []string{"https://app.example", "https://api.example", ""} {
			var headers []string
			if origin != "" {
				headers = []string{"Origin", origin}
			}
			a := e.do(method, "/api/v1/events", "", headers...)
			e.want(a, map[string]int{"GET": 200, "POST": 401}[method], "")
			want := ""
			if origin == "https://app.example" {
				want = origin
				if got := a.header.Get("Access-Control-Expose-Headers"); !strings.HasSuffix(got, ", Link") || !strings.Contains(got, "X-RateLimit-Limit") {
					t.Errorf("%s: exposed %q", method, got)
				}
			}
			if got := a.header.Values("Access-Control-Allow-Origin"); strings.Join(got, " ") != want {
				t.Errorf("%s from %q: allowed %q, want %q", method, origin, got, want)
			}
			if a.header.Get("Access-Control-Allow-Credentials") != "" || !strings.Contains(strings.Join(a.header.Values("Vary"), ","), "Origin") {
				t.Errorf("%s from %q: header %v", method, origin, a.header)
			}
		}
	}
	// A route without a list: the upstream's word, preflights too.
	if a := preflight("/plain", "https://app.example"); a.status != 200 || a.header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("plain: %d, %v", a.status, a.header)
	}
}
