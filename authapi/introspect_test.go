package authapi_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"sluice/authapi"
	"sluice/raftfsm/state"
)

const inactive = `{"active":false}`

// form posts a form with a bearer credential, "" for none.
func (e *edge) form(path, credential, body string, headers ...string) answer {
	e.t.Helper()
	e.clock.Advance(time.Millisecond)
	headers = append(headers, "Content-Type", "application/x-www-form-urlencoded")
	if credential != "" {
		headers = append(headers, "Authorization", "Bearer "+credential)
	}
	return e.do("POST", path, body, headers...)
}

func (e *edge) introspect(credential, token string) answer {
	e.t.Helper()
	a := e.form("/oauth2/introspect", credential, "token="+url.QueryEscape(token))
	e.want(a, 200, "")
	if a.header.Get("Cache-Control") != "no-store" || a.header.Get("Content-Type") != "application/json" {
		e.t.Errorf("headers of an introspection: %v", a.header)
	}
	return a
}

func (e *edge) revoke(credential, token string) answer {
	e.t.Helper()
	return e.form("/oauth2/revoke", credential, "token="+url.QueryEscape(token))
}

func TestIntrospect_Active(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	caller := e.createKey(p.token, p.org, "tokens:introspect")["key"].(string)
	viewer := e.register()
	e.join(viewer, p.org, state.RoleViewer)

	k := e.createKey(p.token, p.org, "events:read", "triggers:*")
	got := e.introspect(caller, k["key"].(string)).object(t)
	want := object{"active": true, "scope": "events:read triggers:*", "client_id": k["id"], "token_type": "api_key", "iat": float64(start.Unix()),
		"sub": k["id"], "jti": k["id"], "iss": "sluice", "organization_id": p.org, "environment": "live"}
	if encode(got) != encode(want) {
		t.Errorf("of a key: %s, want %s", encode(got), encode(want))
	}
	expiring := e.send("POST", "/api/v1/api-keys", p.token, object{"name": "k", "organization_id": p.org, "scopes": []string{"events:read"},
		"expires_at": "2026-03-05T00:00:00Z"}).object(t)["key"].(string)
	if exp := e.introspect(caller, expiring).object(t)["exp"]; exp != float64(time.Date(2026, 3, 5, 0, 0, 0, 0, time.UTC).Unix()) {
		t.Errorf("exp of a key that expires: %v", exp)
	}

	cl, err := e.srv.VerifyToken([]byte(viewer.token), e.clock.Now())
	if err != nil {
		t.Fatal(err)
	}
	got = e.introspect(caller, viewer.token).object(t)
	want = object{"active": true, "scope": "triggers:read events:read organizations:read api-keys:read limits:read tokens:read", "username": viewer.name,
		"token_type": "Bearer", "exp": float64(cl.ExpiresAt / 1000), "iat": float64(cl.IssuedAt / 1000), "sub": viewer.id, "aud": "sluice", "iss": "sluice",
		"jti": cl.TokenID, "sid": viewer.session, "organization_id": p.org, "role": "viewer"}
	if encode(got) != encode(want) {
		t.Errorf("of an access token: %s, want %s", encode(got), encode(want))
	}
	if owner := e.introspect(caller, p.token).object(t); owner["scope"] != "*" || owner["role"] != "owner" {
		t.Errorf("of the owner's: %s", encode(owner))
	}
	got = e.introspect(caller, viewer.refresh).object(t)
	if got["active"] != true || got["token_type"] != "refresh_token" || got["sub"] != viewer.id || got["sid"] != viewer.session || got["scope"] != nil ||
		got["exp"] != float64(start.Add(authapi.DefaultRefreshTTL).Unix()) {
		t.Errorf("of a refresh token: %s", encode(got))
	}
}

// What introspection calls the scope of a role is what the role may do.
func TestIntrospect_ScopeOfRoles(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	caller := e.createKey(p.token, p.org, "tokens:introspect")["key"].(string)
	for _, role := range []string{state.RoleOwner, state.RoleAdmin, state.RoleMember, state.RoleViewer} {
		q := e.register()
		e.join(q, p.org, role)
		e.join(q, q.org, role) // verify goes by the role in the token's organization
		scope, _ := e.introspect(caller, q.token).object(t)["scope"].(string)
		for _, resource := range authapi.DefaultScopeResources() {
			for _, action := range []string{"read", "write", "manage"} {
				need := resource + ":" + action
				want := e.do("GET", "/api/v1/auth/verify?scope="+need, "", "Authorization", "Bearer "+q.token).status == 200
				if got := state.ScopeAllows(strings.Fields(scope), need); got != want {
					t.Errorf("%s, %s: introspection says %v (%s), verify %v", role, need, got, scope, want)
				}
			}
		}
	}
}

func TestIntrospect_Inactive(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p, stranger := e.register(), e.register()
	caller := e.createKey(p.token, p.org, "tokens:introspect")["key"].(string)
	member := e.register()
	e.join(member, p.org, state.RoleMember)
	for name, token := range map[string]string{
		"nonsense": "x", "a foreign key": e.createKey(stranger.token, stranger.org, "*")["key"].(string),
		"a stranger's token": stranger.token, "a stranger's refresh token": stranger.refresh,
		"a key that nobody has": func() string { s, _, _ := authapi.NewAPIKey("live"); return s }(), "a mistyped key": caller[:len(caller)-1] + "!",
		"half a key": "sk_live_", "a token cut off": member.token[:len(member.token)-3], "a refresh token cut off": member.refresh[:30],
		"a token of nobody": strings.Repeat("a", 9) + ".b.c", "a token that is too long": member.token + strings.Repeat("A", 4000), "unprintable": "\x00\xc3\xa9",
	} {
		if a := e.introspect(caller, token); a.body != inactive {
			t.Errorf("%s: %s", name, a.body)
		}
	}
	active := func(token string, want bool) {
		t.Helper()
		a := e.introspect(caller, token)
		if got := a.object(t)["active"]; got != want || !want && a.body != inactive {
			t.Errorf("%s, want active %v", a.body, want)
		}
	}
	// Ended, each in its own way.
	k := e.createKey(p.token, p.org, "events:read")
	path := "/api/v1/api-keys/" + k["id"].(string)
	rotated := e.send("POST", path+"/rotate", p.token, object{"grace_period_seconds": 60}).object(t)["key"].(string)
	active(k["key"].(string), true)
	if exp := e.introspect(caller, k["key"].(string)).object(t)["exp"]; exp != float64(start.Unix()+60) {
		t.Errorf("a secret in its grace ends at %v", exp)
	}
	e.clock.Advance(61 * time.Second)
	active(k["key"].(string), false)
	active(rotated, true)
	e.want(e.send("DELETE", path, p.token, nil), 204, "")
	active(rotated, false)

	spent := member.refresh
	second := e.doRefresh(spent).object(t)
	active(spent, false)
	active(second["refresh_token"].(string), true)
	active(member.token, true) // of the same session
	e.want(e.send("POST", "/api/v1/auth/logout", member.token, nil), 204, "")
	active(second["refresh_token"].(string), false)
	active(member.token, false)

	left := e.register()
	e.join(left, p.org, state.RoleMember)
	active(left.token, true)
	u, _ := e.cluster.User(left.id)
	u.DisabledAt = 1
	e.cluster.PutUser(*u)
	active(left.token, false)
	active(left.refresh, false)
	active(p.token, true)
	e.clock.Advance(2 * time.Hour)
	active(p.token, false)
}

// Looking at a credential is no use of it.
func TestIntrospect_LeavesTheTokenAlone(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, func(cfg *authapi.Config) { cfg.Limit.APIKey, cfg.Limit.User = rule(50), rule(50) })
	p := e.register()
	caller := e.createKey(p.token, p.org, "tokens:introspect")["key"].(string)
	k := e.createKey(p.token, p.org, "events:read")
	left := func() (n int) {
		t.Helper()
		a := e.do("GET", "/api/v1/auth/me", "", "Authorization", "Bearer "+p.token)
		fmt.Sscan(a.header.Get("X-RateLimit-Remaining"), &n)
		return n
	}
	before := left()
	for range 20 {
		e.introspect(caller, k["key"].(string))
		e.introspect(caller, p.token)
	}
	a := e.do("GET", "/api/v1/auth/me", "", "X-API-Key", k["key"].(string))
	if got := a.header.Get("X-RateLimit-Remaining"); got != "49" {
		t.Errorf("remaining %s of the key, want 49", got)
	}
	if after := left(); before < 10 || after != before-1 {
		t.Errorf("remaining of the user %d, then %d", before, after)
	}
	e.clock.Advance(2 * time.Second)
	e.srv.FlushKeyUses(t.Context())
	eventually(t, "one use", func() bool { return e.usage(k["id"].(string)).Count == 1 })
}

func TestIntrospect_CatchesUp(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	caller := e.createKey(p.token, p.org, "tokens:introspect")["key"].(string)
	k := e.createKey(p.token, p.org, "events:read")
	record, _ := e.cluster.Key(k["id"].(string))
	e.cluster.RemoveKey(record.ID)
	e.cluster.OnCatchUp = func() { e.cluster.PutKey(*record) }
	if got := e.introspect(caller, k["key"].(string)).object(t)["active"]; got != true {
		t.Errorf("a key that arrives: active %v", got)
	}
	e.cluster.OnCatchUp = nil
	e.cluster.RemoveKey(record.ID)
	e.cluster.SetUnavailable(authapi.ErrUnavailable)
	a := e.form("/oauth2/introspect", caller, "token="+k["key"].(string))
	e.want(a, 503, "cluster_unavailable")
	if !strings.Contains(a.body, `"error":"temporarily_unavailable"`) || a.header.Get("Retry-After") == "" {
		t.Errorf("unavailable: %s", a.body)
	}
}

func TestOAuth_Errors(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	caller := e.createKey(p.token, p.org, "tokens:introspect")["key"].(string)
	weak := e.createKey(p.token, p.org, "events:read")["key"].(string)
	const typeForm = "application/x-www-form-urlencoded"
	many := strings.Repeat("a=&", 32) + "token=x"
	for _, c := range []struct {
		name, path, credential, contentType, body string
		status                                    int
		code, oauth                               string
	}{
		{"no credential", "introspect", "", typeForm, "token=x", 401, "authentication_required", "invalid_client"},
		{"bad credential", "introspect", "sk_live_x", typeForm, "token=x", 401, "invalid_credential", "invalid_token"},
		{"a user", "introspect", p.token, typeForm, "token=x", 403, "forbidden", "unauthorized_client"},
		{"no scope", "introspect", weak, typeForm, "token=x", 403, "insufficient_scope", "insufficient_scope"},
		{"no token", "introspect", caller, typeForm, "", 400, "invalid_request", "invalid_request"},
		{"empty token", "introspect", caller, typeForm, "token=", 400, "invalid_request", "invalid_request"},
		{"token twice", "introspect", caller, typeForm, "token=a&token=b", 400, "invalid_request", "invalid_request"},
		{"hint twice", "introspect", caller, typeForm, "token=a&token_type_hint=&token_type_hint=x", 400, "invalid_request", "invalid_request"},
		{"twice in other spellings", "introspect", caller, typeForm, "token=a&t%6fken=b", 400, "invalid_request", "invalid_request"},
		{"bad escape", "introspect", caller, typeForm, "token=%zz", 400, "invalid_request", "invalid_request"},
		{"not UTF-8", "introspect", caller, typeForm, "token=%ff", 400, "invalid_request", "invalid_request"},
		{"too many", "introspect", caller, typeForm, many, 400, "invalid_request", "invalid_request"},
		{"JSON", "introspect", caller, "application/json", `{"token":"x"}`, 415, "unsupported_media_type", "invalid_request"},
		{"no type", "introspect", caller, "", "token=x", 415, "unsupported_media_type", "invalid_request"},
		{"too large", "introspect", caller, typeForm, "token=" + strings.Repeat("x", 64<<10), 413, "body_too_large", "invalid_request"},
		{"token in the query", "introspect?token=x", caller, typeForm, "", 400, "invalid_request", "invalid_request"},
		{"no token", "revoke", "", typeForm, "", 400, "invalid_request", "invalid_request"},
		{"bad credential", "revoke", "sk_live_x", typeForm, "token=x", 401, "invalid_credential", "invalid_token"},
		{"an id_token", "revoke", "", typeForm, "token=" + b64([]byte(`{"alg":"RS256","typ":"JWT"}`)) + ".e30.e30", 400, "unsupported_token_type", "unsupported_token_type"},
	} {
		headers := []string{}
		if c.contentType != "" {
			headers = append(headers, "Content-Type", c.contentType)
		}
		if c.credential != "" {
			headers = append(headers, "Authorization", "Bearer "+c.credential)
		}
		a := e.do("POST", "/oauth2/"+c.path, c.body, headers...)
		e.want(a, c.status, c.code)
		wantHeaders(t, a)
		if got := a.object(t)["error"]; got != c.oauth {
			t.Errorf("%s, %s: error %v, want %s", c.path, c.name, got, c.oauth)
		}
	}
	e.want(e.do("GET", "/oauth2/introspect?token=x", "", "X-API-Key", caller), 405, "method_not_allowed")
	for _, ok := range []string{"application/x-www-form-urlencoded; charset=UTF-8", "Application/X-WWW-Form-URLencoded"} {
		if a := e.do("POST", "/oauth2/introspect", "other=1&token=x&&resource=a", "Content-Type", ok, "X-API-Key", caller); a.status != 200 || a.body != inactive {
			t.Errorf("%s: %d %s", ok, a.status, a.body)
		}
	}
	// Errors elsewhere have no such member.
	if o := e.do("GET", "/api/v1/auth/me", "").object(t); o["error"] != nil {
		t.Errorf("an error beside OAuth: %v", o)
	}
}

func TestOAuth_RefusedByItsLimit(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, func(cfg *authapi.Config) { cfg.Limit.Anonymous = rule(1) })
	e.revoke("", "x")
	a := e.revoke("", "x")
	e.want(a, 429, "rate_limit_exceeded")
	if !strings.Contains(a.body, `"error":"temporarily_unavailable"`) || !json.Valid([]byte(a.body)) {
		t.Errorf("429: %s", a.body)
	}
}

func TestRevoke_Session(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	for _, kind := range []string{"access_token", "refresh_token", "spent refresh_token", "beside itself"} {
		p := e.register()
		other := e.login(p)
		token, credential := p.token, ""
		switch kind {
		case "refresh_token":
			token = p.refresh
		case "spent refresh_token":
			token = p.refresh
			e.want(e.doRefresh(token), 200, "")
		case "beside itself":
			credential = p.token
		}
		a := e.form("/oauth2/revoke", credential, "token="+token+"&token_type_hint=nothing")
		e.want(a, 200, "")
		if a.body != "" || a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %q %v", kind, a.body, a.header)
		}
		wantHeaders(t, a)
		e.want(e.send("GET", "/api/v1/auth/me", p.token, nil), 401, "invalid_credential")
		e.want(e.doRefresh(p.refresh), 401, "session_ended")
		e.want(e.revoke("", token), 200, "")
		// Only that one session.
		e.want(e.send("GET", "/api/v1/auth/me", other["token"].(string), nil), 200, "")
		events := e.events(other["token"].(string), "?subject="+p.session+"&result=success")
		got := names(events)
		if !slices.Equal(got, []string{"session.ended", "token.revoked", "session.created"}) {
			t.Errorf("%s: events %q", kind, got)
		}
		actor := events[1]["actor"].(object)
		if credential == "" && actor["type"] != "anonymous" || credential != "" && actor["id"] != p.id {
			t.Errorf("%s: actor %v", kind, actor)
		}
	}
}

func TestRevoke_Key(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	k := e.createKey(p.token, p.org, "events:read")
	old, path := k["key"].(string), "/api/v1/api-keys/"+k["id"].(string)
	present := e.send("POST", path+"/rotate", p.token, object{"grace_period_seconds": 600}).object(t)["key"].(string)
	me := func(secret string) int { return e.do("GET", "/api/v1/auth/me", "", "X-API-Key", secret).status }
	// The old secret is dead, the key lives.
	e.want(e.revoke("", old), 200, "")
	if a, b := me(old), me(present); a != 401 || b != 200 {
		t.Errorf("after the old secret was revoked: old %d, present %d", a, b)
	}
	e.want(e.revoke("", old), 200, "")
	e.want(e.revoke("", present), 200, "")
	if got := me(present); got != 401 {
		t.Errorf("a revoked key: %d", got)
	}
	e.want(e.send("GET", path, p.token, nil), 404, "not_found")
	got := names(e.events(p.token, "?subject="+k["id"].(string)+"&result=success"))
	if !slices.Equal(got, []string{"api_key.revoked", "token.revoked", "token.revoked", "api_key.rotated", "api_key.created"}) {
		t.Errorf("events %q", got)
	}
	// A secret that opens nothing ends nothing.
	k = e.createKey(p.token, p.org, "events:read")
	dead, path := k["key"].(string), "/api/v1/api-keys/"+k["id"].(string)
	present = e.send("POST", path+"/rotate", p.token, nil).object(t)["key"].(string)
	e.want(e.revoke("", dead), 200, "")
	if got := me(present); got != 200 {
		t.Errorf("a key whose dead secret was sent: %d", got)
	}
}

// A rotation between looking and ending: what is ended is what was sent.
func TestRevoke_KeyRotatedMeanwhile(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	k := e.createKey(p.token, p.org, "events:read")
	var rotated bool
	e.cluster.SetOnPropose(func(cmd state.Command) (bool, error) {
		if _, ok := cmd.(state.RevokeKeyBySecret); ok && !rotated {
			rotated = true
			e.cluster.RotateLocked(k["id"].(string), []byte("another"), e.clock.Now().Add(time.Minute).UnixMilli())
		}
		return false, nil
	})
	e.want(e.revoke("", k["key"].(string)), 200, "")
	e.cluster.SetOnPropose(nil)
	if r, _ := e.cluster.Key(k["id"].(string)); r.RevokedAt != 0 || r.PreviousUntil != 0 {
		t.Errorf("after the race: %+v", r)
	}
	if got := names(e.events(p.token, "?event=api_key.revoked")); len(got) != 0 {
		t.Errorf("events %q for a key that lives", got)
	}
}

func TestRevoke_UnknownIsDone(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	secret, _, _ := authapi.NewAPIKey("live")
	before := e.cluster.Index()
	for _, token := range []string{"x", secret, "sk_live_x", "rt_x", p.refresh[:40], p.token[:len(p.token)-4], "a.b.c", strings.Repeat("x", 5000),
		b64([]byte(`{"alg":"HS256","kid":"ffffffffffffffff","typ":"at+jwt"}`)) + ".e30.e30", b64([]byte(`{"alg":"none"}`)) + ".e30.e30"} {
		a := e.revoke("", token)
		e.want(a, 200, "")
		wantHeaders(t, a)
	}
	if got := e.cluster.Index(); got != before {
		t.Errorf("unknown tokens made %d log entries", got-before)
	}
	e.clock.Advance(2 * time.Hour)
	e.want(e.revoke("", p.token), 200, "") // expired: the session goes on
	e.want(e.doRefresh(p.refresh), 200, "")
}

func TestRevoke_ACredentialMustOwnTheToken(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p, stranger, member, admin := e.register(), e.register(), e.register(), e.register()
	e.join(member, p.org, state.RoleMember)
	e.join(admin, p.org, state.RoleAdmin)
	managing := e.createKey(p.token, p.org, "api-keys:manage")["key"].(string)
	reading := e.createKey(p.token, p.org, "events:read")["key"].(string)
	foreign := e.createKey(stranger.token, stranger.org, "*")["key"].(string)
	for _, token := range []string{p.token, p.refresh} {
		for name, credential := range map[string]string{"stranger": stranger.token, "admin": admin.token, "key of the organization": managing, "foreign key": foreign} {
			a := e.revoke(credential, token)
			if a.status != 403 || a.object(t)["error"] != "unauthorized_client" {
				t.Errorf("%s: %d %s", name, a.status, a.body)
			}
		}
	}
	e.want(e.send("GET", "/api/v1/auth/me", p.token, nil), 200, "")
	for _, c := range []struct {
		name, credential string
		status           int
	}{
		{"stranger", stranger.token, 403}, {"member", member.token, 403}, {"key without the scope", reading, 403}, {"foreign key", foreign, 403},
		{"owner", p.token, 200}, {"admin", admin.token, 200}, {"key that manages", managing, 200}, {"itself", "", 200},
	} {
		k := e.createKey(p.token, p.org, "events:read")["key"].(string)
		credential := c.credential
		if c.name == "itself" {
			credential = k
		}
		if a := e.revoke(credential, k); a.status != c.status {
			t.Errorf("%s: %d, want %d: %s", c.name, a.status, c.status, a.body)
		}
		want := 401
		if c.status == 403 {
			want = 200
		}
		if got := e.do("GET", "/api/v1/auth/me", "", "X-API-Key", k).status; got != want {
			t.Errorf("%s: the key then gives %d, want %d", c.name, got, want)
		}
	}
}

func TestDocuments_AreCached(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, func(cfg *authapi.Config) { cfg.Auth.SigningAlgorithm = "EdDSA" })
	for path, age := range map[string]string{
		"/.well-known/jwks.json": "public, max-age=60", "/.well-known/oauth-authorization-server": "public, max-age=60", "/openapi.json": "public, max-age=300",
	} {
		a := e.do("GET", path, "")
		e.want(a, 200, "")
		tag := a.header.Get("ETag")
		if len(tag) < 10 || tag[0] != '"' || a.header.Get("Cache-Control") != age || a.header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s: %v", path, a.header)
		}
		for _, same := range []string{tag, `"x", ` + tag, "W/" + tag, "*"} {
			for _, method := range []string{"GET", "HEAD"} {
				n := e.do(method, path, "", "If-None-Match", same)
				if n.status != 304 || n.body != "" || n.header.Get("ETag") != tag || n.header.Get("Cache-Control") != age {
					t.Errorf("%s %s, %s: %d %q %v", method, path, same, n.status, n.body, n.header)
				}
				wantHeaders(t, n)
			}
		}
		for _, other := range []string{`"x"`, tag[:len(tag)-1], ""} {
			if n := e.do("GET", path, "", "If-None-Match", other); n.status != 200 || n.body != a.body {
				t.Errorf("%s, %s: %d", path, other, n.status)
			}
		}
	}
	tag := e.do("GET", "/.well-known/jwks.json", "").header.Get("ETag")
	if _, err := e.srv.RotateSigningKey(t.Context(), authapi.Operator{}); err != nil {
		t.Fatal(err)
	}
	if n := e.do("GET", "/.well-known/jwks.json", "", "If-None-Match", tag); n.status != 200 {
		t.Errorf("after a rotation: %d", n.status)
	}
	m := e.do("GET", "/.well-known/oauth-authorization-server", "", "Host", "api.example").object(t)
	if m["introspection_endpoint"] != "http://api.example/oauth2/introspect" || m["revocation_endpoint"] != "http://api.example/oauth2/revoke" ||
		encode(m["introspection_endpoint_auth_methods_supported"]) != `["Bearer"]` || encode(m["revocation_endpoint_auth_methods_supported"]) != `["none"]` {
		t.Errorf("metadata %s", encode(m))
	}
}

func FuzzParseForm(f *testing.F) {
	for _, s := range []string{"token=a", "token=a&token_type_hint=b", "a=%20+b&a=", "&&=&%", "token=%ff", "t%6Fken=1&token=2"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		form, err := authapi.ParseForm(b)
		if err != nil {
			if p, ok := err.(*authapi.Problem); !ok || p.Status != 400 {
				t.Fatalf("%q: %v is not a 400", b, err)
			}
			return
		}
		// The standard library reads the same, where it reads one value for each name.
		want, err := url.ParseQuery(strings.ReplaceAll(string(b), ";", "%3B"))
		if err != nil {
			t.Fatalf("%q was taken, and is no form: %v", b, err)
		}
		for name, values := range want {
			if len(values) != 1 || values[0] != form[name] {
				t.Fatalf("%q: %s = %q, want %q", b, name, form[name], values)
			}
		}
		if len(form) > len(want) {
			t.Fatalf("%q: %v, want %v", b, form, want)
		}
	})
}

func TestParseForm(t *testing.T) {
	t.Parallel()
	form, err := authapi.ParseForm([]byte("token=a+b%2B&token_type_hint=&x=1&&y"))
	if err != nil || fmt.Sprint(form) != "map[token:a b+ x:1]" {
		t.Errorf("form %v, %v", form, err)
	}
}
