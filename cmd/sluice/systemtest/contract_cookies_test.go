package systemtest

import (
	"maps"
	"net/http"
	"slices"
	"strings"
)

const webPage = "https://app.example"

// cookieSession is a session that a browser keeps.
type cookieSession struct{ cookie, csrf string }

// with adds the session to a call, and the proof that a page makes it, as its headers say.
func (s cookieSession) with(k call, headers ...string) call {
	header := map[string]string{"Cookie": s.cookie}
	maps.Copy(header, k.header)
	for i := 0; i+1 < len(headers); i += 2 {
		header[headers[i]] = headers[i+1]
	}
	k.header = header
	return k
}

// kept is what a browser has after an answer that set a session's cookies.
func (w *walk) kept(res response) cookieSession {
	w.t.Helper()
	var pairs []string
	for _, c := range (&http.Response{Header: res.header}).Cookies() {
		if !c.HttpOnly && !strings.HasSuffix(c.Name, "csrf") || c.SameSite != http.SameSiteStrictMode {
			w.t.Errorf("cookie %s is open to scripts or to other sites", c.Name)
		}
		pairs = append(pairs, c.Name+"="+c.Value)
	}
	if len(pairs) != 3 || strings.Contains(string(res.body), "token\":\"eyJ") || strings.Contains(string(res.body), "rt_") {
		w.t.Fatalf("cookies %d, body %v", len(pairs), res)
	}
	return cookieSession{strings.Join(pairs, "; "), res.field(w.t, "csrf_token")}
}

// cookies: sessions in cookies, at another node with each request, and what another site makes the browser send.
func (w *walk) cookies(operations map[string]operation, at *place) {
	const refresh, csrf = "POST /api/v1/auth/refresh", "X-CSRF-Token"
	a := register(w.t, w.c.urls[0])
	signIn := func() cookieSession {
		w.t.Helper()
		return w.kept(w.do(call{op: opLogin, body: object{"username": a.username, "password": a.password}, header: map[string]string{"X-Session-Mode": "cookie"}}, 200))
	}
	s, other := signIn(), signIn()
	for range w.c.urls {
		if me := w.do(s.with(call{op: opMe}), 200); me.field(w.t, "user", "id") != a.userID {
			w.t.Errorf("me by cookie: %v", me)
		}
		// The forward-auth check takes no cookie.
		if res := w.do(s.with(call{op: "GET /api/v1/auth/verify"}), 200); res.header.Get("X-Auth-Method") != "anonymous" {
			w.t.Errorf("verified by a cookie: %v", res.header)
		}
	}
	for _, op := range slices.Sorted(maps.Keys(operations)) {
		if o := operations[op]; o.takes("session") && !strings.HasPrefix(op, "GET ") {
			k := o.call(op, at.id, at.extra.userID, at.key)
			k.code = "csrf_failed"
			w.do(s.with(k), 403)
			w.do(s.with(k, csrf, "guessed"), 403)
			w.do(s.with(k, csrf, other.csrf), 403) // another session's
			w.do(s.with(k, csrf, s.csrf, "Origin", "https://evil.example"), 403)
		}
	}
	w.do(s.with(call{op: "POST /api/v1/organizations", body: object{"name": "By cookie"}}, csrf, s.csrf, "Origin", webPage), 201)

	renew := call{op: refresh, header: map[string]string{"X-Session-Mode": "cookie"}, code: "csrf_failed"}
	w.do(s.with(renew), 403)
	w.do(s.with(renew, csrf, s.csrf, "Origin", "https://evil.example"), 403)
	renew.code = ""
	next := w.kept(w.do(s.with(renew, csrf, s.csrf), 200))
	if next.csrf != s.csrf {
		w.t.Error("a refresh changes the session's proof")
	}
	w.do(next.with(call{op: "POST /api/v1/auth/logout"}, csrf, next.csrf), 204)
	w.do(next.with(call{op: opMe, code: "invalid_credential"}), 401)
	w.do(other.with(call{op: opMe}), 200)

	// What a page of one origin may, and one of another may not; on every node, and on errors too.
	for _, base := range w.c.urls {
		for origin, allowed := range map[string]string{webPage: webPage, "https://evil.example": "", webPage + ".evil.example": "", "null": ""} {
			ask := map[string]string{"Origin": origin, "Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "x-api-key,idempotency-key,x-csrf-token"}
			res, err := send(base, request{method: "OPTIONS", path: "/api/v1/api-keys/" + at.key, address: newAddress(), header: ask})
			if err != nil {
				w.t.Fatal(err)
			}
			if res.header.Get("Access-Control-Allow-Origin") != allowed || strings.Contains(res.header.Get("Access-Control-Allow-Methods"), "PATCH") != (allowed != "") {
				w.t.Errorf("preflight from %s: %d %v", origin, res.status, res.header)
			}
			res = must(w.t, base, request{path: "/api/v1/auth/me", address: newAddress(), header: map[string]string{"Origin": origin}}, http.StatusUnauthorized)
			if res.header.Get("Access-Control-Allow-Origin") != allowed || strings.Contains(res.header.Get("Access-Control-Expose-Headers"), "X-RateLimit-Remaining") != (allowed != "") {
				w.t.Errorf("a 401 for %s: %v", origin, res.header)
			}
		}
	}
}
