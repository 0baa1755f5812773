package authapi_test

import (
	"net/http"
	"strings"
	"testing"

	"sluice/authapi"
)

const page = "https://app.example.com"

// newBrowser is an API for pages of one origin, with cookie sessions.
func newBrowser(t *testing.T, change func(*authapi.Config)) *edge {
	t.Helper()
	return newAccounts(t, func(cfg *authapi.Config) {
		cfg.PublicURL = "https://api.example.com"
		cfg.CORS.Origins = []string{page}
		cfg.Auth.CookieSessions = true
		if change != nil {
			change(cfg)
		}
	})
}

func TestCORS_Preflight(t *testing.T) {
	t.Parallel()
	e := newBrowser(t, nil)
	for _, path := range []string{"/api/v1/api-keys/key_1", "/api/v1/auth/login", "/api/v1/organizations"} {
		a := e.do("OPTIONS", path, "", "Origin", page, "Access-Control-Request-Method", "PATCH", "Access-Control-Request-Headers", "x-api-key")
		e.want(a, 204, "")
		wantHeaders(t, a)
		for name, part := range map[string]string{
			"Access-Control-Allow-Origin": page, "Access-Control-Allow-Methods": "PATCH", "Access-Control-Allow-Headers": "X-API-Key",
			"Access-Control-Max-Age": "600", "Access-Control-Allow-Credentials": "true", "Vary": "Origin", "RateLimit-Policy": `"documents"`,
		} {
			if got := a.header.Get(name); !strings.Contains(got, part) {
				t.Errorf("%s: %s = %q, want %q in it", path, name, got, part)
			}
		}
	}
	for _, origin := range []string{"https://app.example.com.evil.example", "http://app.example.com", "https://APP.example.com", "null"} {
		a := e.do("OPTIONS", "/api/v1/api-keys", "", "Origin", origin, "Access-Control-Request-Method", "POST")
		e.want(a, 204, "")
		for name := range a.header {
			if strings.HasPrefix(name, "Access-Control-") {
				t.Errorf("origin %s got %s: %s", origin, name, a.header.Get(name))
			}
		}
	}
	// The forward-auth check answers OPTIONS like any other method, and what is no preflight is a 405.
	e.want(e.do("OPTIONS", "/api/v1/auth/verify", "", "Origin", page, "Access-Control-Request-Method", "GET"), 200, "")
	e.want(e.do("OPTIONS", "/api/v1/api-keys", "", "Origin", page), 405, "method_not_allowed")
	e.want(e.do("OPTIONS", "/api/v1/nothing", "", "Origin", page, "Access-Control-Request-Method", "GET"), 404, "not_found")
}

// TestCORS_EveryAnswer shows that a page can read errors and limits too.
func TestCORS_EveryAnswer(t *testing.T) {
	t.Parallel()
	e := newBrowser(t, func(cfg *authapi.Config) { cfg.Limit.Anonymous = rule(6); cfg.Auth.CookieSessions = false })
	for _, want := range []int{401, 404, 400, 429} { // two of each
		path := map[int]string{401: "/api/v1/auth/me", 404: "/nothing", 400: "/api/v1//x", 429: "/api/v1/health"}[want]
		a := e.do("GET", path, "", "Origin", page)
		if a.status != want {
			t.Errorf("%s: status %d, want %d", path, a.status, want)
		}
		if got := a.header.Get("Access-Control-Allow-Origin"); got != page {
			t.Errorf("%d: Access-Control-Allow-Origin = %q", want, got)
		}
		for _, name := range append([]string{"Retry-After", "X-Request-Id", "Idempotency-Replayed"}, limitHeaders...) {
			if !strings.Contains(a.header.Get("Access-Control-Expose-Headers"), name) {
				t.Errorf("%d does not expose %s", want, name)
			}
		}
		if got := a.header.Get("Access-Control-Allow-Credentials"); got != "" {
			t.Errorf("%d allows credentials without cookie sessions", want)
		}
		if a := e.do("GET", path, "", "Origin", "https://evil.example"); a.header.Get("Access-Control-Allow-Origin") != "" || a.header.Get("Vary") != "Origin" {
			t.Errorf("%d for another origin: %v", want, a.header)
		}
	}
	if a := e.do("GET", "/openapi.json", "", "Origin", "https://evil.example"); a.header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("a public document is not for every page: %v", a.header)
	}
	off := newEdge(t, nil)
	if a := off.do("GET", "/api/v1/health", "", "Origin", page); a.header.Get("Access-Control-Allow-Origin") != "" || a.header.Get("Vary") != "" {
		t.Errorf("CORS without origins: %v", a.header)
	}
}

func TestSecurityHeaders(t *testing.T) {
	t.Parallel()
	e := newBrowser(t, nil)
	plain := newEdge(t, nil)
	for _, path := range []string{"/livez", "/readyz", "/openapi.json", "/api/v1/health", "/api/v1/auth/me", "/api/v1/auth/verify", "/nothing"} {
		a := e.do("GET", path, "")
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
			"X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer", "Strict-Transport-Security": "max-age=31536000",
		} {
			if got := a.header.Get(name); got != want {
				t.Errorf("%s: %s = %q, want %q", path, name, got, want)
			}
		}
		if got := plain.do("GET", path, "").header.Get("Strict-Transport-Security"); got != "" {
			t.Errorf("%s: Strict-Transport-Security = %q without https", path, got)
		}
	}
	if a, err := e.raw("GET / HTTP/1.1\r\nHost\r\n\r\n"); err != nil || a.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("a broken request's answer: %v %v", a.header, err)
	}
}

// jar is what a browser would keep.
type jar map[string]*http.Cookie

func (j jar) take(a answer) {
	for _, c := range (&http.Response{Header: a.header}).Cookies() {
		if c.MaxAge < 0 || c.Value == "" {
			delete(j, c.Name)
			continue
		}
		j[c.Name] = c
	}
}

func (j jar) header(path string) string {
	var parts []string
	for _, c := range j {
		if strings.HasPrefix(path, c.Path) {
			parts = append(parts, c.Name+"="+c.Value)
		}
	}
	return strings.Join(parts, "; ")
}

func (e *edge) browse(j jar, method, path, body string, headers ...string) answer {
	e.t.Helper()
	if body != "" {
		headers = append(headers, "Content-Type", "application/json")
	}
	if cookies := j.header(path); cookies != "" {
		headers = append(headers, "Cookie", cookies)
	}
	a := e.do(method, path, body, headers...)
	j.take(a)
	return a
}

func TestCookieSession(t *testing.T) {
	t.Parallel()
	e := newBrowser(t, nil)
	p := e.register()
	j := jar{}
	login := encode(object{"username": p.name, "password": goodPassword})
	a := e.browse(j, "POST", "/api/v1/auth/login", login, "X-Session-Mode", "cookie", "Origin", page)
	e.want(a, 200, "")
	o := a.object(t)
	if o["token"] != nil || o["refresh_token"] != nil {
		t.Errorf("a page can read the tokens: %s", a.body)
	}
	csrf, _ := o["csrf_token"].(string)
	access, refresh := j["__Host-sluice"], j["__Secure-sluice-refresh"]
	if access == nil || refresh == nil || j["__Host-sluice-csrf"] == nil {
		t.Fatalf("cookies: %v", a.header.Values("Set-Cookie"))
	}
	for _, c := range []*http.Cookie{access, refresh} {
		if !c.HttpOnly || !c.Secure || c.SameSite != http.SameSiteStrictMode || c.MaxAge <= 0 || c.Domain != "" {
			t.Errorf("cookie %+v", c)
		}
	}
	if access.Path != "/" || refresh.Path != "/api/v1/auth" || j["__Host-sluice-csrf"].Value != csrf {
		t.Errorf("paths %q %q, csrf %q and %q", access.Path, refresh.Path, j["__Host-sluice-csrf"].Value, csrf)
	}

	e.want(e.browse(j, "GET", "/api/v1/auth/me", ""), 200, "")
	create := encode(object{"name": "x"})
	for name, headers := range map[string][]string{
		"no token":               nil,
		"another token":          {"X-CSRF-Token", csrf[1:] + "A"},
		"an empty one":           {"X-CSRF-Token", ""},
		"another origin":         {"X-CSRF-Token", csrf, "Origin", "https://evil.example"},
		"an origin of no page":   {"X-CSRF-Token", csrf, "Origin", "null"},
		"another session's user": {"X-CSRF-Token", otherCSRF(e)},
	} {
		if a := e.browse(j, "POST", "/api/v1/organizations", create, headers...); a.status != 403 || a.problem(t).Code != "csrf_failed" {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
		if a := e.browse(j, "POST", "/api/v1/auth/refresh", "", append(headers, "X-Session-Mode", "cookie")...); a.status != 403 {
			t.Errorf("refresh with %s: %d %s", name, a.status, a.body)
		}
	}
	e.want(e.browse(j, "POST", "/api/v1/organizations", create, "X-CSRF-Token", csrf, "Origin", page), 201, "")
	e.want(e.browse(j, "POST", "/api/v1/organizations", create, "X-CSRF-Token", csrf, "Origin", "https://api.example.com"), 201, "")
	e.want(e.browse(j, "POST", "/api/v1/organizations", create, "X-CSRF-Token", csrf), 201, "")

	// A credential in a header is what counts where there is one, and needs no proof.
	e.want(e.browse(j, "POST", "/api/v1/organizations", create, "Authorization", "Bearer "+p.token), 201, "")
	e.want(e.browse(j, "GET", "/api/v1/auth/me", "", "Authorization", "Bearer nonsense"), 401, "invalid_credential")

	// The check and anonymous routes do not look at cookies.
	if a := e.browse(j, "GET", "/api/v1/auth/verify", ""); a.header.Get("X-Auth-Method") != "anonymous" {
		t.Errorf("the forward-auth check took a cookie: %v", a.header)
	}
	old := access.Value
	e.want(e.browse(j, "POST", "/api/v1/auth/refresh", "", "X-Session-Mode", "cookie", "X-CSRF-Token", csrf), 200, "")
	if j["__Host-sluice"].Value == old || j["__Secure-sluice-refresh"].Value == refresh.Value || j["__Host-sluice-csrf"].Value != csrf {
		t.Errorf("after a refresh: %v", j)
	}
	e.want(e.browse(j, "POST", "/api/v1/auth/logout", "", "X-CSRF-Token", csrf), 204, "")
	if len(j) != 0 {
		t.Errorf("cookies after a logout: %v", j)
	}
	j["__Host-sluice"] = access
	e.want(e.browse(j, "GET", "/api/v1/auth/me", ""), 401, "invalid_credential")
	// An old cookie does not keep anybody from signing in again.
	e.want(e.browse(j, "POST", "/api/v1/auth/login", login, "X-Session-Mode", "cookie"), 200, "")
}

// otherCSRF is the proof of somebody else's session.
func otherCSRF(e *edge) string {
	e.t.Helper()
	p := e.register()
	a := e.browse(jar{}, "POST", "/api/v1/auth/login", encode(object{"username": p.name, "password": goodPassword}), "X-Session-Mode", "cookie")
	e.want(a, 200, "")
	return a.object(e.t)["csrf_token"].(string)
}

// Whatever changes something needs the proof, whichever part of the API it belongs to; what takes no credential takes no
// cookie for one.
func TestCookieSession_EveryRoute(t *testing.T) {
	t.Parallel()
	e := newBrowser(t, nil)
	p := e.register()
	j := jar{}
	a := e.browse(j, "POST", "/api/v1/auth/login", encode(object{"username": p.name, "password": goodPassword}), "X-Session-Mode", "cookie")
	e.want(a, 200, "")
	csrf := a.object(t)["csrf_token"].(string)
	session := *j["__Host-sluice"]
	tried := 0
	for _, r := range e.srv.RouteRows() {
		if !r.Credential || r.Method == "GET" {
			continue
		}
		tried++
		path := r.Pattern
		for strings.Contains(path, "{") {
			path = path[:strings.IndexByte(path, '{')] + "x" + path[strings.IndexByte(path, '}')+1:]
		}
		before := e.cluster.Index()
		e.want(e.browse(j, r.Method, path, ""), 403, "csrf_failed")
		e.want(e.browse(j, r.Method, path, "", "X-CSRF-Token", csrf, "Origin", "https://evil.example"), 403, "csrf_failed")
		if e.cluster.Index() != before || len(j) == 0 {
			t.Errorf("%s %s changed something", r.Method, r.Pattern)
		}
	}
	if tried < 18 {
		t.Errorf("%d routes tried", tried)
	}
	// The session's own end takes the cookies with it.
	var id string
	for _, s := range e.browse(j, "GET", "/api/v1/auth/sessions", "").object(t)["data"].([]any) {
		if s := s.(object); s["current"] == true {
			id = s["id"].(string)
		}
	}
	e.want(e.browse(j, "DELETE", "/api/v1/auth/sessions/"+id, "", "X-CSRF-Token", csrf), 204, "")
	if len(j) != 0 {
		t.Errorf("cookies after the end of the session: %v", j)
	}
	j["__Host-sluice"] = &session
	e.want(e.browse(j, "GET", "/api/v1/auth/me", ""), 401, "invalid_credential")
}

func TestCookieSession_PlainHTTPAndOff(t *testing.T) {
	t.Parallel()
	e := newBrowser(t, func(cfg *authapi.Config) { cfg.PublicURL, cfg.CORS.Origins = "", nil })
	p := e.register()
	j := jar{}
	login := encode(object{"username": p.name, "password": goodPassword})
	a := e.browse(j, "POST", "/api/v1/auth/login", login, "X-Session-Mode", "cookie")
	e.want(a, 200, "")
	if c := j["sluice"]; c == nil || c.Secure || !c.HttpOnly {
		t.Fatalf("cookies: %v", a.header.Values("Set-Cookie"))
	}
	csrf := a.object(t)["csrf_token"].(string)
	// Without a public_url a page of the very host may act.
	e.want(e.browse(j, "POST", "/api/v1/organizations", encode(object{"name": "x"}), "X-CSRF-Token", csrf, "Origin", "http://"+e.addr), 201, "")
	e.want(e.browse(j, "POST", "/api/v1/organizations", encode(object{"name": "x"}), "X-CSRF-Token", csrf, "Origin", "http://evil.example"), 403, "csrf_failed")
	e.want(e.browse(j, "POST", "/api/v1/auth/login", login, "X-Session-Mode", "token"), 400, "invalid_request")

	off := newAccounts(t, nil)
	q := off.register()
	e = off
	e.want(e.browse(jar{}, "POST", "/api/v1/auth/login", encode(object{"username": q.name, "password": goodPassword}), "X-Session-Mode", "cookie"), 400, "invalid_request")
	e.want(e.browse(jar{}, "GET", "/api/v1/auth/me", "", "Cookie", "sluice="+q.token), 401, "authentication_required")
}
