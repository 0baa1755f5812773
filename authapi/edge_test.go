package authapi_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"sluice/authapi"
	"sluice/limiter"
	"sluice/raftfsm/state"
)

func TestLimits_AnonymousEleventhIsRefused(t *testing.T) {
	t.Parallel()
	e := newEdge(t, nil)
	for i := range 10 {
		a := e.do("GET", "/api/v1/auth/verify", "")
		e.want(a, 200, "")
		wantHeaders(t, a)
		if got, want := a.header.Get("X-RateLimit-Remaining"), fmt.Sprint(9-i); got != want {
			t.Fatalf("request %d: remaining %s, want %s", i+1, got, want)
		}
	}
	a := e.do("GET", "/api/v1/auth/verify", "")
	e.want(a, 429, "rate_limit_exceeded")
	wantHeaders(t, a)
	for name, want := range map[string]string{
		"Retry-After":           "53",
		"X-RateLimit-Limit":     "10",
		"X-RateLimit-Remaining": "0",
		"X-RateLimit-Reset":     "1772600820",
		"X-RateLimit-Window":    "60",
		"RateLimit-Policy":      `"anonymous";q=10;w=60`,
		"RateLimit":             `"anonymous";r=0;t=53`,
	} {
		if got := a.header.Get(name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	if !strings.Contains(a.body, `"retry_after":53`) || !strings.Contains(a.body, `"violated-policies":["anonymous"]`) {
		t.Errorf("body %s lacks retry_after or violated-policies", a.body)
	}
	e.clock.Advance(time.Minute)
	e.want(e.do("GET", "/api/v1/auth/verify", ""), 200, "")
}

func TestCredential_GoodOneIsNeverRefusedForItsAddress(t *testing.T) {
	t.Parallel()
	e := newEdge(t, nil)
	for range 11 {
		e.do("GET", "/nowhere", "")
	}
	e.want(e.do("GET", "/nowhere", ""), 429, "rate_limit_exceeded")
	key := e.key(nil, "events:read")
	a := e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", key)
	e.want(a, 200, "")
	if got := a.header.Get("RateLimit-Policy"); got != `"api_key";q=100;w=60` {
		t.Errorf("RateLimit-Policy = %q", got)
	}
	if a.header.Get("X-RateLimit-Remaining") != "99" {
		t.Errorf("remaining %s, want 99", a.header.Get("X-RateLimit-Remaining"))
	}
}

func TestCredential_FailedSpendsFromTheAddress(t *testing.T) {
	t.Parallel()
	e := newEdge(t, nil)
	good := e.key(nil)
	mistyped := good[:len(good)-1] + map[bool]string{true: "1", false: "0"}[good[len(good)-1] == '0']
	for i, headers := range [][]string{
		{"X-API-Key", mistyped}, {"X-API-Key", "sk_live_x"}, {"X-API-Key", "nonsense"}, {"Authorization", "Bearer " + mistyped},
		{"Authorization", "Basic YTpi"}, {"Authorization", "Bearer"}, {"Authorization", "Bearer a.b.c"}, {"Authorization", "Bearer a b"},
	} {
		a := e.do("GET", "/api/v1/auth/verify", "", headers...)
		e.want(a, 401, "invalid_credential")
		wantHeaders(t, a)
		if got := a.header.Get("X-RateLimit-Remaining"); got != fmt.Sprint(9-i) {
			t.Errorf("%v: remaining %s, want %d", headers, got, 9-i)
		}
		if got := a.header.Get("WWW-Authenticate"); got != `Bearer realm="sluice", error="invalid_token"` {
			t.Errorf("%v: WWW-Authenticate = %q", headers, got)
		}
		if a.header.Get("X-Auth-Method") != "" {
			t.Errorf("identity headers on a 401")
		}
	}
	if e.cluster.CatchUps() != 0 {
		t.Errorf("%d catch-ups for credentials that are not well-formed", e.cluster.CatchUps())
	}
	e.do("GET", "/", "")
	e.do("GET", "/", "")
	e.want(e.do("GET", "/", "", "X-API-Key", mistyped), 429, "rate_limit_exceeded")
}

func TestCredential_UnknownKeyCatchesUpOnce(t *testing.T) {
	t.Parallel()
	e := newEdge(t, nil)
	e.organization("org_1", "")
	secret, record := newKey("events:read")
	e.cluster.OnCatchUp = func() { e.cluster.PutKey(record) }
	a := e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", secret)
	e.want(a, 200, "")
	if a.header.Get("X-RateLimit-Remaining") != "99" {
		t.Errorf("remaining %s, want 99", a.header.Get("X-RateLimit-Remaining"))
	}
	unknown, _ := newKey()
	a = e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", unknown)
	e.want(a, 401, "invalid_credential")
	if got := e.cluster.CatchUps(); got != 2 {
		t.Errorf("%d catch-ups, want one for each unknown key", got)
	}
	if a.header.Get("X-RateLimit-Remaining") != "9" {
		t.Errorf("the address has %s left, want 9", a.header.Get("X-RateLimit-Remaining"))
	}
	for range 9 {
		e.do("GET", "/", "")
	}
	e.want(e.do("GET", "/", "", "X-API-Key", unknown), 429, "rate_limit_exceeded")
	if got := e.cluster.CatchUps(); got != 2 {
		t.Errorf("%d catch-ups, want none for an exhausted address", got)
	}
}

func TestCredential_CatchUpFails(t *testing.T) {
	t.Parallel()
	e := newEdge(t, nil)
	e.cluster.SetUnavailable(authapi.ErrUnavailable)
	unknown, _ := newKey()
	a := e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", unknown)
	e.want(a, 503, "cluster_unavailable")
	wantHeaders(t, a)
	if a.header.Get("Retry-After") == "" || a.header.Get("X-RateLimit-Remaining") != "10" {
		t.Errorf("Retry-After %q, remaining %q, want one and 10", a.header.Get("Retry-After"), a.header.Get("X-RateLimit-Remaining"))
	}
}

func TestCredential_Stale(t *testing.T) {
	t.Parallel()
	for _, serve := range []bool{false, true} {
		e := newEdge(t, func(c *authapi.Config) { c.Auth.ServeStale = serve })
		key := e.key(nil)
		e.want(e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", key), 200, "")
		fresh := e.key(nil)
		e.cluster.Stale.Store(true)
		for _, k := range []string{key, fresh} {
			a := e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", k)
			if serve {
				e.want(a, 200, "")
				continue
			}
			e.want(a, 503, "cluster_unavailable")
			wantHeaders(t, a)
			if a.header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
		}
		e.want(e.do("GET", "/api/v1/auth/verify", ""), 200, "")
		e.want(e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", "sk_live_x"), 401, "invalid_credential")
		if !serve {
			e.cluster.Stale.Store(false)
			a := e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", key)
			if a.header.Get("X-RateLimit-Remaining") != "98" {
				t.Errorf("remaining %s, want 98: refused for staleness spends nothing", a.header.Get("X-RateLimit-Remaining"))
			}
		}
	}
}

func TestCredential_KeyStates(t *testing.T) {
	t.Parallel()
	now := start.UnixMilli()
	for _, tt := range []struct {
		name   string
		change func(*state.APIKey)
		status int
	}{
		{"live", nil, 200},
		{"revoked", func(k *state.APIKey) { k.RevokedAt = now }, 401},
		{"expired", func(k *state.APIKey) { k.ExpiresAt = now }, 401},
		{"not expired", func(k *state.APIKey) { k.ExpiresAt = now + 1 }, 200},
		{"rotated, in grace", func(k *state.APIKey) { k.PreviousHash, k.Hash, k.PreviousUntil = k.Hash, make([]byte, 32), now+1 }, 200},
		{"rotated, dead", func(k *state.APIKey) { k.PreviousHash, k.Hash, k.PreviousUntil = k.Hash, make([]byte, 32), now }, 401},
		{"rotated at once", func(k *state.APIKey) { k.PreviousHash, k.Hash = k.Hash, make([]byte, 32) }, 401},
		{"organization gone", func(k *state.APIKey) { k.OrganizationID = "org_gone" }, 401},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := newEdge(t, nil)
			key := e.key(tt.change)
			a := e.do("GET", "/api/v1/auth/verify", "", "Authorization", "bearer "+key)
			if a.status != tt.status {
				t.Errorf("status %d, want %d; %s", a.status, tt.status, a.body)
			}
			if e.cluster.CatchUps() != 0 {
				t.Errorf("%d catch-ups for a known key", e.cluster.CatchUps())
			}
		})
	}
}

func TestCredential_CacheHoldsForTheEpochAndTheTime(t *testing.T) {
	t.Parallel()
	e := newEdge(t, nil)
	var record state.APIKey
	key := e.key(func(k *state.APIKey) { k.ExpiresAt = start.Add(time.Minute).UnixMilli(); record = *k })
	verify := func() int { return e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", key).status }
	if got := verify(); got != 200 {
		t.Fatalf("status %d, want 200", got)
	}
	e.clock.Advance(time.Minute - time.Millisecond)
	if got := verify(); got != 200 {
		t.Fatalf("status %d just before the expiry, want 200", got)
	}
	e.clock.Advance(time.Millisecond)
	if got := verify(); got != 401 {
		t.Fatalf("status %d at the expiry, want 401", got)
	}
	record.ExpiresAt = 0
	e.cluster.PutKey(record)
	if got := verify(); got != 200 {
		t.Fatalf("status %d after the expiry was lifted, want 200", got)
	}
	record.RevokedAt = 1
	e.cluster.PutKey(record)
	if got := verify(); got != 401 {
		t.Fatalf("status %d after the revocation, want 401", got)
	}
}

func TestCredential_TwoAtOnce(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) { c.Limit.Anonymous = rule(100) })
	a, b := e.key(nil), e.key(nil)
	bad := e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", a, "Authorization", "Bearer "+b)
	e.want(bad, 400, "invalid_request")
	wantHeaders(t, bad)
	e.want(e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", a, "Authorization", "Bearer "+a), 200, "")
	e.want(e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", a, "X-API-Key", a), 400, "invalid_request")
	e.want(e.do("GET", "/api/v1/auth/verify", "", "Authorization", "Bearer "+a, "Authorization", "Bearer "+b), 400, "invalid_request")
	e.want(e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", a, "Authorization", "Basic YTpi"), 400, "invalid_request")
}

func TestLimits_KeyPlanAndOwnRule(t *testing.T) {
	t.Parallel()
	plans := func(c *authapi.Config) {
		c.Limit.Plans = map[string]limiter.Rule{"gold": rule(5000), "slow": rule(3)}
	}
	for _, tt := range []struct {
		plan string
		own  int64
		want string
	}{
		{"", 0, "100"}, {"gold", 0, "5000"}, {"slow", 0, "3"}, {"unheard-of", 0, "100"}, {"gold", 7, "7"},
	} {
		e := newEdge(t, plans)
		e.organization("org_1", tt.plan)
		key := e.key(func(k *state.APIKey) {
			if tt.own > 0 {
				k.RateLimit, k.RateWindow = tt.own, 30
			}
		})
		a := e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", key)
		e.want(a, 200, "")
		if got := a.header.Get("X-RateLimit-Limit"); got != tt.want {
			t.Errorf("plan %q, own %d: limit %s, want %s", tt.plan, tt.own, got, tt.want)
		}
	}
}

func TestErrors_CarryTheHeaders(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) { c.Limit.Anonymous = rule(1000) })
	big := strings.Repeat("a", 17<<10)
	for _, tt := range []struct {
		name    string
		request string
		status  int
		code    string
	}{
		{"unknown path", "GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n", 404, "not_found"},
		{"root", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 404, "not_found"},
		{"wrong method", "POST /api/v1/health HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 405, "method_not_allowed"},
		{"dot segments", "GET /api/../api/v1/health HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_path"},
		{"escaped slash", "GET /api%2fv1/health HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_path"},
		{"double slash", "GET //api/v1/health HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_path"},
		{"semicolon", "GET /api/v1/health;a HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_path"},
		{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid_path"},
		{"header too long", "GET / HTTP/1.1\r\nHost: a\r\nX-A: " + big + "\r\n\r\n", 431, "headers_too_large"},
		{"no HTTP", "nonsense\r\n\r\n", 400, "malformed_request"},
		{"two lengths", "POST /api/v1/auth/verify HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400, "malformed_request"},
		{"length and chunked", "POST /api/v1/auth/verify HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "malformed_request"},
		{"chunked and length", "POST /api/v1/auth/verify HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400, "malformed_request"},
		{"length and identity", "POST /api/v1/auth/verify HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: identity\r\n\r\nabcd", 400, "malformed_request"},
		{"chunked twice", "POST /api/v1/auth/verify HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "malformed_request"},
		{"chunked in disguise", "POST /api/v1/auth/verify HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400, "malformed_request"},
		{"chunked in HTTP/1.0", "POST /api/v1/auth/verify HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "malformed_request"},
		{"space before colon", "POST /api/v1/auth/verify HTTP/1.1\r\nHost: a\r\nContent-Length : 4\r\n\r\nabcd", 400, "malformed_request"},
		{"negative length", "POST /api/v1/auth/verify HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400, "malformed_request"},
		{"two content types", "POST /api/v1/auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 400, "invalid_request"},
		{"no type", "POST /api/v1/auth/login HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}", 422, "invalid_input"},
		{"a form", "POST /api/v1/auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 2\r\n\r\n{}", 415, "unsupported_media_type"},
		{"another charset", "POST /api/v1/auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json; charset=latin1\r\nContent-Length: 2\r\n\r\n{}", 415, "unsupported_media_type"},
		{"compressed", "POST /api/v1/auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", 415, "unsupported_media_type"},
		{"not JSON", "POST /api/v1/auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json;charset=UTF-8\r\nContent-Length: 2\r\n\r\n{x", 400, "invalid_json"},
		{"broken chunks", "POST /api/v1/auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "invalid_body"},
		{"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "malformed_request"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, err := e.raw(tt.request)
			if err != nil {
				t.Fatalf("no response: %v", err)
			}
			if a.status != tt.status {
				t.Fatalf("status %d, want %d; %s", a.status, tt.status, a.body)
			}
			if p := a.problem(t); p.Code != tt.code || p.RequestID != a.header.Get("X-Request-Id") {
				t.Errorf("problem %+v, want code %s", p, tt.code)
			}
			wantHeaders(t, a)
		})
	}
	if a := e.do("POST", "/api/v1/health", ""); a.header.Get("Allow") != "GET, HEAD" {
		t.Errorf("Allow = %q", a.header.Get("Allow"))
	}
}

func TestErrors_InternalSaysNothing(t *testing.T) {
	t.Parallel()
	e := newEdge(t, nil)
	key := e.key(nil)
	e.cluster.Fail(errors.New("secret of the store"))
	a := e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", key)
	e.want(a, 500, "internal_error")
	wantHeaders(t, a)
	if strings.Contains(a.body, "secret") {
		t.Errorf("body %s tells what went wrong", a.body)
	}
}

func TestProblemOf_Refusals(t *testing.T) {
	t.Parallel()
	for code, status := range map[string]int{
		state.CodeNotFound: 404, state.CodeForbidden: 403, state.CodeConflict: 409, state.CodeUsernameTaken: 409, state.CodeEmailTaken: 409,
		state.CodeSessionEnded: 401, state.CodeIdempotencyMismatch: 422,
	} {
		p, listed := authapi.ProblemOf(fmt.Errorf("propose: %w", &state.Refusal{Code: code}))
		if p.Status != status || p.Code != code || !listed {
			t.Errorf("%s: %d %s, listed %v, want %d", code, p.Status, p.Code, listed, status)
		}
	}
	// Only this node's own mistakes are refused so: the log has to tell, not the answer.
	p, listed := authapi.ProblemOf(&state.Refusal{Code: state.CodeInvalid})
	if p.Status != 500 || p.Code != "internal_error" || listed {
		t.Errorf("%s: %d %s, listed %v, want an unlisted 500", state.CodeInvalid, p.Status, p.Code, listed)
	}
}

func TestLimits_Undecided(t *testing.T) {
	t.Parallel()
	e := newEdge(t, nil)
	e.limits.Undecided.Store(true)
	a := e.do("GET", "/api/v1/auth/verify", "")
	e.want(a, 503, "cluster_unavailable")
	wantHeaders(t, a)
	if a.header.Get("Retry-After") == "" || a.header.Get("X-RateLimit-Limit") != "10" {
		t.Errorf("headers %v", a.header)
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) { c.Limit.Anonymous = rule(3) })
	e.cluster.SetHealth(authapi.HealthCheck{Name: "leader", Detail: "node-a"})
	for _, path := range []string{"/livez", "/readyz", "/readyz?verbose"} {
		for range 5 {
			a := e.do("GET", path, "", "X-API-Key", "bad")
			e.want(a, 200, "")
			if a.header.Get("X-Request-Id") == "" {
				t.Errorf("%s: no X-Request-Id", path)
			}
			for _, name := range limitHeaders {
				if a.header.Get(name) != "" {
					t.Errorf("%s carries %s", path, name)
				}
			}
		}
	}
	a := e.do("GET", "/api/v1/health", "")
	e.want(a, 200, "")
	wantHeaders(t, a)
	if want := `{"status":"ready","node_id":"node-a","version":"1.2.3","leader":true,"time":"2026-03-04T05:06:07Z","checks":[{"name":"leader","ok":true,"detail":"node-a"}]}`; a.body != want {
		t.Errorf("health = %s, want %s", a.body, want)
	}
	e.cluster.SetHealth(authapi.HealthCheck{Name: "leader", Err: errors.New("none known")}, authapi.HealthCheck{Name: "horizon"})
	a = e.do("GET", "/readyz?verbose", "")
	if want := "[-] leader: none known\n[+] horizon: ok\nnot ready\n"; a.status != 503 || a.body != want {
		t.Errorf("readyz = %d %q, want 503 %q", a.status, a.body, want)
	}
	e.cluster.SetHealth()
	e.srv.SetDraining()
	if a = e.do("GET", "/readyz", ""); a.status != 503 || a.body != "not ready\n" {
		t.Errorf("readyz while draining = %d %q", a.status, a.body)
	}
	if a = e.do("GET", "/livez", ""); a.status != 200 || a.body != "ok\n" {
		t.Errorf("livez while draining = %d %q", a.status, a.body)
	}
	if a = e.do("HEAD", "/livez", ""); a.status != 200 || a.body != "" {
		t.Errorf("HEAD livez = %d %q", a.status, a.body)
	}
}

func TestRequestID(t *testing.T) {
	t.Parallel()
	for _, trusted := range []bool{false, true} {
		e := newEdge(t, func(c *authapi.Config) {
			c.Limit.Anonymous = rule(1000)
			if trusted {
				trustLoopback(c)
			}
		})
		for id, sane := range map[string]bool{"abc-DEF_1.2": true, "a b": false, strings.Repeat("a", 65): false, "a\"b": false} {
			got := e.do("GET", "/", "", "X-Request-Id", id).header.Get("X-Request-Id")
			if (got == id) != (trusted && sane) || len(got) < 8 {
				t.Errorf("trusted %v: request id %q became %q", trusted, id, got)
			}
		}
	}
}
