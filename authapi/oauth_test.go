package authapi_test

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"sluice/authapi"
	"sluice/authapi/authtest/idp"
	"sluice/raftfsm/state"
)

// TestOAuth_BuiltInEndpoints shows that a redirect to the real providers is made without asking anybody.
func TestOAuth_BuiltInEndpoints(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, func(cfg *authapi.Config) {
		cfg.PublicURL = publicURL
		cfg.OAuth.Providers = []authapi.OAuthProvider{
			{Name: "google", ClientID: "g-id", ClientSecret: "g-secret"}, {Name: "github", ClientID: "h-id", ClientSecret: "h-secret"},
		}
	})
	for _, want := range []struct{ provider, base, client, scope string }{
		{"google", "https://accounts.google.com/o/oauth2/v2/auth", "g-id", "openid email profile"},
		{"github", "https://github.com/login/oauth/authorize", "h-id", "user:email"},
	} {
		index := e.cluster.Index()
		a := e.do("GET", "/api/v1/auth/"+want.provider, "")
		e.want(a, 302, "")
		wantHeaders(t, a)
		if a.header.Get("Cache-Control") != "no-store" || e.cluster.Index() != index {
			t.Errorf("%s: Cache-Control %q, %d entries written", want.provider, a.header.Get("Cache-Control"), e.cluster.Index()-index)
		}
		u, err := url.Parse(a.header.Get("Location"))
		if err != nil {
			t.Fatal(err)
		}
		q := u.Query()
		u.RawQuery = ""
		if u.String() != want.base {
			t.Errorf("%s: to %s, want %s", want.provider, u, want.base)
		}
		for name, value := range map[string]string{
			"client_id": want.client, "response_type": "code", "scope": want.scope, "code_challenge_method": "S256",
			"redirect_uri": publicURL + "/api/v1/auth/" + want.provider + "/callback",
		} {
			if q.Get(name) != value {
				t.Errorf("%s: %s = %q, want %q", want.provider, name, q.Get(name), value)
			}
		}
		if len(q.Get("state")) != 43 || len(q.Get("code_challenge")) != 43 || (q.Get("nonce") != "") != (want.provider == "google") {
			t.Errorf("%s: state %q, challenge %q, nonce %q", want.provider, q.Get("state"), q.Get("code_challenge"), q.Get("nonce"))
		}
		cookie := a.header.Get("Set-Cookie")
		for _, part := range []string{"__Host-sluice-oauth-" + q.Get("state")[:8] + "=", "; HttpOnly", "; secure", "; SameSite=Lax", "; path=/", "; max-age=600"} {
			if !strings.Contains(cookie, part) {
				t.Errorf("%s: cookie %q has no %q", want.provider, cookie, part)
			}
		}
		if again := e.do("GET", "/api/v1/auth/"+want.provider, ""); again.header.Get("Location") == a.header.Get("Location") {
			t.Errorf("%s: the same state twice", want.provider)
		}
	}
	e.want(e.do("GET", "/api/v1/auth/gitlab", ""), 404, "provider_not_configured")
	e.want(e.do("GET", "/api/v1/auth/gitlab/callback?state=x", ""), 404, "provider_not_configured")
	e.want(e.do("POST", "/api/v1/auth/google", ""), 405, "method_not_allowed")
	e.want(e.do("GET", "/api/v1/auth/login", ""), 405, "method_not_allowed")
}

func TestOAuth_NotConfigured(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	for _, path := range []string{"/api/v1/auth/google", "/api/v1/auth/github", "/api/v1/auth/google/callback"} {
		e.want(e.do("GET", path, ""), 404, "provider_not_configured")
	}
	e.want(e.send("POST", "/api/v1/auth/identities/google/link", p.token, nil), 404, "provider_not_configured")
}

// TestOAuth_PlainNamesWithoutTLS is the development setup: no public URL, callbacks of the name that the client used.
func TestOAuth_PlainNamesWithoutTLS(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, func(cfg *authapi.Config) {
		cfg.OAuth.Providers = []authapi.OAuthProvider{{Name: "google", ClientID: "id", ClientSecret: "secret"}}
	})
	a := e.do("GET", "/api/v1/auth/google", "", "Host", "localhost:8080")
	e.want(a, 302, "")
	u, err := url.Parse(a.header.Get("Location"))
	if err != nil || u.Query().Get("redirect_uri") != "http://localhost:8080/api/v1/auth/google/callback" {
		t.Errorf("Location %q", a.header.Get("Location"))
	}
	if cookie := a.header.Get("Set-Cookie"); !strings.HasPrefix(cookie, "sluice-oauth-") || strings.Contains(cookie, "secure") {
		t.Errorf("cookie %q", cookie)
	}
}

func TestOAuth_SignInAndAgain(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, nil).ready("google")
	x.idp.Set(idp.User{Subject: "77", Name: "Ada Lovelace!", Email: "ada@Example.com"})
	b := x.browser()
	// Without a target the answer is the tokens themselves.
	a := x.signIn(b, "google", "")
	x.want(a, 200, "")
	wantHeaders(t, a)
	o := a.object(t)
	if a.header.Get("Cache-Control") != "no-store" || o["token_type"] != "Bearer" || o["refresh_token"] == "" {
		t.Errorf("answer %v, %v", o, a.header)
	}
	if len(b.cookies) != 0 {
		t.Errorf("cookies left: %v", b.cookies)
	}
	id := x.wantUser(o["token"].(string), "ada-lovelace")
	u, err := x.cluster.User(id)
	if err != nil || u.Email != "ada@example.com" || u.PasswordHash != "" {
		t.Errorf("user %+v, %v", u, err)
	}
	events := x.events(o["token"].(string), "")
	if got := names(events); !slices.Equal(got, []string{"session.created", "organization.created", "user.registered"}) {
		t.Errorf("events %v", got)
	}
	if d := events[0]["detail"].(object); d["provider"] != "google" {
		t.Errorf("detail %v", d)
	}
	// Again, to a page: in the fragment. That the person has another address and name by now changes nothing.
	x.idp.Set(idp.User{Subject: "77", Name: "other", Email: "moved@example.com", Unverified: true})
	v := fragment(t, x.signIn(b, "google", query(returnTo, "")))
	if got := x.wantUser(v.Get("token"), "ada-lovelace"); got != id {
		t.Errorf("another user: %s, want %s", got, id)
	}
	if expires, err := time.Parse(time.RFC3339, v.Get("expires_at")); err != nil || !expires.After(x.clock.Now()) || v.Get("error") != "" {
		t.Errorf("fragment %v", v)
	}
	x.want(x.send("POST", "/api/v1/auth/refresh", "", object{"refresh_token": v.Get("refresh_token")}), 200, "")
	if got := names(x.events(v.Get("token"), "?event=session.*")); len(got) != 2 {
		t.Errorf("sessions %v", got)
	}
	// No password works for such an account.
	x.want(x.send("POST", "/api/v1/auth/login", "", object{"username": "ada-lovelace", "password": goodPassword}), 401, "invalid_credentials")
}

// TestOAuth_GitHub is the same with GitHub, whose answers have another form.
func TestOAuth_GitHub(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, nil, idp.GitHub())
	x.idp.Set(idp.User{Subject: "77", Name: "octo-cat", Email: "github@example.com"})
	b := x.browser()
	v := fragment(t, x.signIn(b, "github", query(returnTo, "fragment")))
	id := x.wantUser(v.Get("token"), "octo-cat")
	if got := x.idp.Requests("/user/emails"); got != 1 {
		t.Errorf("asked for e-mails %d times", got)
	}
	// An identity that is known needs no e-mail, so that nothing is asked that may fail.
	x.idp.Fail(idp.Faults{EmailsStatus: 500})
	if got := x.wantUser(fragment(t, x.signIn(b, "github", query(returnTo, ""))).Get("token"), "octo-cat"); got != id {
		t.Errorf("another user: %s, want %s", got, id)
	}
	if i, err := x.cluster.Identity("github", "77"); err != nil || i == nil || i.UserID != id {
		t.Errorf("identity %+v, %v", i, err)
	}
	x.idp.Set(idp.User{Subject: "78", Name: "new", Email: "new@example.com"})
	if got := fragment(t, x.signIn(b, "github", query(returnTo, ""))).Get("error"); got != "provider_error" {
		t.Errorf("error %q", got)
	}
	x.idp.Fail(idp.Faults{})
	x.idp.Set(idp.User{Subject: "78", Name: "new", Email: "new@example.com", Unverified: true})
	x.want(x.signIn(b, "github", ""), 409, "email_not_verified")
	x.idp.Set(idp.User{Subject: "0", Name: "nobody", Email: "nobody@example.com"})
	x.want(x.signIn(b, "github", ""), 502, "provider_error")
	x.idp.Set(idp.User{Subject: "79", Name: "eve", Email: "eve@example.com"})
	// A code that another flow got, with the wrong verifier.
	other := x.browser()
	location := x.idp.Authorize(t, other.begin("github", ""))
	x.want(b.get(withCode(t, path(t, x.idp.Authorize(t, b.begin("github", ""))), codeOf(t, location))), 401, "invalid_code")
}

func TestOAuth_CodeIsExchangedOnce(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, func(cfg *authapi.Config) { cfg.Auth.CookieSessions = true }).ready("google")
	b := x.browser()
	code := func(redirect string) string {
		t.Helper()
		a := x.signIn(b, "google", query(redirect, "code")+"&state=client%20state%26")
		x.want(a, 302, "")
		rest, ok := strings.CutPrefix(a.header.Get("Location"), redirect)
		if !ok || strings.Contains(rest, "#") || strings.Contains(rest, "token") || len(rest) < 2 {
			t.Fatalf("Location %q", a.header.Get("Location"))
		}
		v, err := url.ParseQuery(rest[1:])
		if err != nil || v.Get("state") != "client state&" {
			t.Fatalf("query %q: %v", rest, err)
		}
		return v.Get("code")
	}
	first := code(returnTo)
	if len(x.operatorEvents("session.created")) != 0 {
		t.Error("a session before the code was exchanged")
	}
	a := x.send("POST", "/api/v1/auth/exchange", "", object{"code": first})
	x.want(a, 200, "")
	id := x.wantUser(a.object(t)["token"].(string), "ada")
	x.want(x.send("POST", "/api/v1/auth/exchange", "", object{"code": first}), 401, "invalid_code")
	x.reasonAudited("google", "code_reused")

	// With a query in the target, and with cookies in place of tokens.
	a = x.send("POST", "/api/v1/auth/exchange", "", object{"code": code(returnTo + "?from=sluice")}, "X-Session-Mode", "cookie")
	x.want(a, 200, "")
	if o := a.object(t); o["csrf_token"] == nil || o["token"] != nil || len(a.header.Values("Set-Cookie")) != 3 {
		t.Errorf("answer %v with %d cookies", o, len(a.header.Values("Set-Cookie")))
	}

	late := code(returnTo)
	x.clock.Advance(time.Minute)
	x.want(x.send("POST", "/api/v1/auth/exchange", "", object{"code": late}), 401, "invalid_code")
	x.reasonAudited("google", "code_expired")
	for name, bad := range map[string]string{
		"made up": "x", "cut": late[:len(late)-4], "respelled": late + "=", "a state": b.anyState(t, "google"), "long": strings.Repeat("A", 9000),
	} {
		if a := x.send("POST", "/api/v1/auth/exchange", "", object{"code": bad}); a.status != 401 || a.problem(t).Code != "invalid_code" {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	x.reasonAudited("", "code_invalid")
	x.fields(x.send("POST", "/api/v1/auth/exchange", "", object{}))
	x.want(x.send("POST", "/api/v1/auth/exchange", "", object{"code": "x", "provider": "google"}), 400, "invalid_json")

	// What a code stands for is looked at when it is used.
	gone := code(returnTo)
	u, err := x.cluster.User(id)
	if err != nil {
		t.Fatal(err)
	}
	u.DisabledAt = 1
	x.cluster.PutUser(*u)
	x.want(x.send("POST", "/api/v1/auth/exchange", "", object{"code": gone}), 403, "forbidden")
}

// anyState is the sealed state of a sign-in that is begun and not finished.
func (b *browser) anyState(t *testing.T, provider string) string {
	t.Helper()
	b.begin(provider, "")
	for name, value := range b.cookies {
		if strings.Contains(name, "sluice-oauth-") {
			return value
		}
	}
	t.Fatal("no cookie of a state")
	return ""
}

// TestOAuth_RedirectTargets shows that nothing but the exact list is redirected to, however it is spelled.
func TestOAuth_RedirectTargets(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, nil).ready("google")
	for _, uri := range []string{
		"https://evil.example/", "https://app.example.com", "https://app.example.com/", returnTo + "/", returnTo + "?x=1", returnTo + "#x",
		"https://app.example.com/signed-in/../other", "https://APP.example.com/signed-in", "HTTPS://app.example.com/signed-in",
		"https://app.example.com:443/signed-in", "https://app.example.com@evil.example/signed-in", "https://app.example.com.evil.example/signed-in",
		"http://app.example.com/signed-in", "//app.example.com/signed-in", "/signed-in", "https:app.example.com/signed-in", `https:\\app.example.com\signed-in`,
		"https://app.example.com/signed-in%2f..", "https://app.example.com/signed%2din", "https://app.example.com/signed-in\r\nSet-Cookie: a=b",
		"https://app.example.com/signed-in\x00", " " + returnTo, returnTo + " ", "javascript:alert(1)", "data:text/html,x", "https://app.example.com%2fsigned-in",
		"https%3A%2F%2Fapp.example.com%2Fsigned-in", "https://app.example.com\u3002evil.example/signed-in", "https://xn--app.example.com/signed-in",
	} {
		a := x.do("GET", "/api/v1/auth/google"+query(uri, ""), "")
		if a.status != 400 || a.problem(t).Code != "invalid_redirect_uri" || a.header.Get("Location") != "" {
			t.Errorf("%q: status %d, Location %q", uri, a.status, a.header.Get("Location"))
		}
		p := x.register()
		a = x.send("POST", "/api/v1/auth/identities/google/link", p.token, object{"redirect_uri": uri})
		if a.status != 400 || a.problem(t).Code != "invalid_redirect_uri" {
			t.Errorf("link to %q: status %d", uri, a.status)
		}
	}
	x.reasonAudited("google", "invalid_redirect_uri")
	// Two of them mean one thing here and another there.
	x.want(x.do("GET", "/api/v1/auth/google"+query(returnTo, "")+"&redirect_uri=https%3A%2F%2Fevil.example", ""), 400, "invalid_redirect_uri")
	x.fields(x.do("GET", "/api/v1/auth/google"+query(returnTo, "form_post"), ""))
	x.fields(x.do("GET", "/api/v1/auth/google?state=%0d%0ax", ""))
	x.fields(x.do("GET", "/api/v1/auth/google?state="+strings.Repeat("x", 513), ""))
	x.fields(x.do("GET", "/api/v1/auth/google?state=a&state=b", ""))
	// What the callback is told about a target says nothing.
	b := x.browser()
	a := b.get(path(t, x.idp.Authorize(t, b.begin("google", ""))) + "&redirect_uri=https%3A%2F%2Fevil.example&response_mode=fragment")
	x.want(a, 200, "")
	// JSON on request, though there is a target.
	x.want(x.signIn(b, "google", query(returnTo, "json")), 200, "")
}

func TestOAuth_EmailsOfOthers(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, nil).ready("google")
	owner := x.register()
	b := x.browser()
	for _, c := range []struct {
		name, want string
		user       idp.User
	}{
		{"in use", "email_in_use", idp.User{Subject: "666", Name: "eve", Email: strings.ToUpper(owner.email)}},
		{"in use, not verified", "email_not_verified", idp.User{Subject: "667", Name: "eve", Email: owner.email, Unverified: true}},
		{"not verified", "email_not_verified", idp.User{Subject: "668", Name: "eve", Email: "eve@example.com", Unverified: true}},
		{"none", "email_not_verified", idp.User{Subject: "669", Name: "eve"}},
		{"no address", "email_not_verified", idp.User{Subject: "670", Name: "eve", Email: "eve at example"}},
	} {
		x.idp.Set(c.user)
		x.want(x.signIn(b, "google", ""), 409, c.want)
		v := fragment(t, x.signIn(b, "google", query(returnTo, "")))
		if v.Get("error") != c.want || v.Get("token") != "" || v.Get("error_description") == "" {
			t.Errorf("%s: %v", c.name, v)
		}
		a := x.signIn(b, "google", query(returnTo, "code"))
		if got := a.header.Get("Location"); !strings.HasPrefix(got, returnTo+"?error="+c.want+"&") {
			t.Errorf("%s: Location %q", c.name, got)
		}
		if i, err := x.cluster.Identity("google", c.user.Subject); i != nil || err != nil {
			t.Errorf("%s: identity %+v, %v", c.name, i, err)
		}
		x.reasonAudited("google", c.want)
	}
	// The account's owner gets to see it.
	eventually(t, "the owner sees it", func() bool { return len(x.events(owner.token, "?event=oauth.failed")) == 1 })
	// An address that the ID token does not have is asked for.
	x.idp.Set(idp.User{Subject: "671", Name: "frank", Email: "frank@example.com", NoEmail: true})
	x.want(x.signIn(b, "google", ""), 200, "")
	x.idp.Set(idp.User{Subject: "672", Name: "grace", Email: "grace@example.com", NoEmail: true})
	x.idp.Fail(idp.Faults{UserInfoSubject: "671"})
	x.want(x.signIn(b, "google", ""), 502, "provider_error")
}

func TestOAuth_UserNamesAreDerived(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, nil).ready("google")
	b := x.browser()
	seen := map[string]bool{}
	for i, u := range []struct{ name, want string }{
		{"ada", "ada"}, {"ada", "ada-"}, {"ADA", "ada-"}, {"", "user3"}, {"x", "x-"}, {"日本", "user-"}, {strings.Repeat("long", 20), strings.Repeat("long", 8)},
		{strings.Repeat("long", 20), strings.Repeat("long", 6) + "l-"}, {"..--..", "user-"}, {"grace@example.com", "user9"}, {"Ana  María", "ana-mar"},
	} {
		email := "user" + string(rune('0'+i%10)) + string(rune('a'+i/10)) + "@example.com"
		email = strings.Replace(email, "a@", "@", 1)
		x.idp.Set(idp.User{Subject: "s" + string(rune('a'+i)), Name: u.name, Email: email})
		a := x.signIn(b, "google", "")
		x.want(a, 200, "")
		me := x.send("GET", "/api/v1/auth/me", a.object(t)["token"].(string), nil).object(t)["user"].(object)
		name := me["username"].(string)
		if normal, ok := authapi.NormalUsername(name); !ok || normal != name || seen[name] || !strings.HasPrefix(name, u.want) {
			t.Errorf("%q became %q, want %q", u.name, name, u.want)
		}
		seen[name] = true
	}
}

func TestOAuth_ClosedAccounts(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, nil).ready("google")
	b := x.browser()
	a := x.signIn(b, "google", "")
	x.want(a, 200, "")
	id := x.wantUser(a.object(t)["token"].(string), "ada")
	u, err := x.cluster.User(id)
	if err != nil {
		t.Fatal(err)
	}
	u.DisabledAt = x.clock.Now().UnixMilli()
	x.cluster.PutUser(*u)
	for _, q := range []string{"", query(returnTo, ""), query(returnTo, "code")} {
		a := x.signIn(b, "google", q)
		if q == "" {
			x.want(a, 403, "forbidden")
		} else if got := a.header.Get("Location"); !strings.Contains(got, "error=forbidden") {
			t.Errorf("%s: Location %q", q, got)
		}
	}
	eventually(t, "session.failed", func() bool {
		events := x.operatorEvents("session.failed")
		return len(events) > 0 && events[0].SubjectID == id && events[0].Detail[0] == (state.Pair{Name: "provider", Value: "google"})
	})
}

// TestOAuth_OldestSessionEnds shows that the bound of sessions holds for these too.
func TestOAuth_OldestSessionEnds(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, func(cfg *authapi.Config) { cfg.Auth.MaxSessions = 2 }).ready("google")
	b := x.browser()
	var tokens []string
	for range 3 {
		a := x.signIn(b, "google", "")
		x.want(a, 200, "")
		tokens = append(tokens, a.object(t)["token"].(string))
	}
	x.want(x.send("GET", "/api/v1/auth/me", tokens[0], nil), 401, "invalid_credential")
	x.want(x.send("GET", "/api/v1/auth/me", tokens[2], nil), 200, "")
	if ended := x.events(tokens[2], "?event=session.ended"); len(ended) != 1 || ended[0]["detail"].(object)["reason"] != "too_many_sessions" {
		t.Errorf("events %v", ended)
	}
}

// TestOAuth_SeveralTabs shows that sign-ins do not get in each other's way, and that they do not pile up.
func TestOAuth_SeveralTabs(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, nil).ready("google")
	b := x.browser()
	var tabs []string
	for range 8 {
		tabs = append(tabs, b.begin("google", ""))
	}
	if len(b.cookies) != 5 {
		t.Errorf("%d cookies, want 5", len(b.cookies))
	}
	for i, tab := range tabs {
		want := 200
		if i < 3 {
			want = 400
		}
		if a := b.get(path(t, x.idp.Authorize(t, tab))); a.status != want {
			t.Errorf("tab %d: %d %s, want %d", i, a.status, a.body, want)
		}
	}
	// Those that are over go as well, and what is no state of ours.
	b.begin("google", "")
	b.cookies["__Host-sluice-oauth-AAAAAAAA"] = "rubbish"
	x.clock.Advance(10 * time.Minute)
	b.begin("google", "")
	if len(b.cookies) != 1 {
		t.Errorf("cookies %v, want one", b.cookies)
	}
}

func TestOAuth_SetOAuth(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, nil).ready("google")
	b := x.browser()
	begun := x.idp.Authorize(t, b.begin("google", ""))
	if err := x.srv.SetOAuth(authapi.OAuthConfig{Providers: []authapi.OAuthProvider{{Name: "google"}}}); err == nil || !strings.Contains(err.Error(), "client id is missing") {
		t.Errorf("a provider without a client: %v", err)
	}
	good := authapi.OAuthConfig{Providers: []authapi.OAuthProvider{
		{Name: "acme", Kind: "oidc", ClientID: idp.ClientID, ClientSecret: idp.ClientSecret, Issuer: x.idp.URL},
		{Name: "google", ClientID: idp.ClientID, ClientSecret: idp.ClientSecret, Issuer: x.idp.URL},
	}}
	if err := x.srv.SetOAuth(good); err != nil {
		t.Fatal(err)
	}
	x.want(x.do("GET", "/api/v1/auth/google", ""), 302, "") // known as before
	x.ready("acme")
	x.want(b.get(path(t, begun)), 200, "") // what was begun before goes on
	x.want(x.do("GET", "/api/v1/auth/github", ""), 404, "provider_not_configured")
	x.want(x.do("GET", "/api/v1/auth/google"+query(returnTo, ""), ""), 400, "invalid_redirect_uri")
	// A third provider needs no code; its users are others than Google's.
	x.idp.Set(idp.User{Subject: "1001", Name: "ada", Email: "ada@acme.example"})
	a := x.signIn(b, "acme", "")
	x.want(a, 200, "")
	if name := x.send("GET", "/api/v1/auth/me", a.object(t)["token"].(string), nil).object(t)["user"].(object)["username"]; name == "ada" {
		t.Error("a subject of one provider signed in to the account of another's")
	}
	for _, bad := range []authapi.OAuthConfig{
		{Providers: []authapi.OAuthProvider{{Name: "login", Kind: "oidc", ClientID: "x", Issuer: x.idp.URL}}},
		{Providers: []authapi.OAuthProvider{{Name: "identities", Kind: "oidc", ClientID: "x", Issuer: x.idp.URL}}},
		{Providers: []authapi.OAuthProvider{{Name: "A", Kind: "oidc", ClientID: "x", Issuer: x.idp.URL}}},
		{Providers: []authapi.OAuthProvider{{Name: "a", Kind: "saml", ClientID: "x", Issuer: x.idp.URL}}},
		{Providers: []authapi.OAuthProvider{{Name: "a", Kind: "oidc", ClientID: "x"}}},
		{Providers: []authapi.OAuthProvider{{Name: "a", Kind: "github", ClientID: "x"}}},
		{Providers: []authapi.OAuthProvider{good.Providers[0], good.Providers[0]}},
		{RedirectURIs: []string{"javascript:alert(1)"}},
	} {
		if err := x.srv.SetOAuth(bad); err == nil {
			t.Errorf("accepted %+v", bad)
		}
	}
}

// TestOAuth_UpstreamsSeeNoState shows that a sign-in's cookie goes no further than here.
func TestOAuth_UpstreamsSeeNoState(t *testing.T) {
	t.Parallel()
	seen := make(chan string, 1)
	e := newGateway(t, func(w http.ResponseWriter, r *http.Request) { seen <- r.Header.Get("Cookie") }, nil)
	e.want(e.do("GET", "/api/v1/events", "", "Cookie", "a=1; sluice-oauth-abcdefgh=sealed; b=2"), 200, "")
	if got := <-seen; got != "a=1; b=2" {
		t.Errorf("the upstream saw %q", got)
	}
}

func TestCheckRedirectURI(t *testing.T) {
	t.Parallel()
	for uri, ok := range map[string]bool{
		"https://a.example/x": true, "https://a.example": true, "https://a.example/x?y=z": true, "http://localhost:3000/x": true, "http://127.0.0.1/x": true,
		"com.example.app:/x": true, "com.example.app://x": true, "http://a.example/x": false, "https://a.example/#": false, "https://a.example/#x": false, "/x": false,
		"javascript:alert(1)": false, "data:text/html,x": false, "file:///etc/passwd": false, "https:///x": false, "https://u:p@a.example/": false, "": false,
		"https://a.example/" + strings.Repeat("x", 1024): false, "https://a.example/\n": false, "intent://x": false,
	} {
		if err := authapi.CheckRedirectURI(uri, true); (err == nil) != ok {
			t.Errorf("%q: %v", uri, err)
		}
	}
	if err := authapi.CheckRedirectURI("http://a.example/x", false); err != nil {
		t.Errorf("http where the API has no TLS either: %v", err)
	}
}
