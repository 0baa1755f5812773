package authapi_test

import (
	"context"
	"crypto/rand"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"sluice/authapi"
	"sluice/authapi/authtest/idp"
)

// link begins a link in a browser and gives the callback that the provider sends it to.
func (x *oauthEdge) link(b *browser, token, provider string, body any) string {
	x.t.Helper()
	a := b.post("/api/v1/auth/identities/"+provider+"/link", token, body)
	x.want(a, 200, "")
	o := a.object(x.t)
	if expires, err := time.Parse(time.RFC3339, o["expires_at"].(string)); err != nil || expires.Sub(x.clock.Now()) > 10*time.Minute {
		x.t.Errorf("expires_at %v", o["expires_at"])
	}
	if url := o["authorization_url"].(string); !strings.Contains(a.body, url) {
		x.t.Errorf("%s is not in the answer as it is: %s", url, a.body)
	}
	return path(x.t, x.idp.Authorize(x.t, o["authorization_url"].(string)))
}

func (e *edge) identities(token string) (providers []string) {
	e.t.Helper()
	a := e.send("GET", "/api/v1/auth/identities", token, nil)
	e.want(a, 200, "")
	for _, i := range a.object(e.t)["data"].([]any) {
		providers = append(providers, i.(object)["provider"].(string))
	}
	return providers
}

func TestIdentities_LinkAndUnlink(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, nil).ready("google")
	p := x.register()
	b := x.browser()
	if got := x.identities(p.token); len(got) != 0 {
		t.Errorf("identities %v", got)
	}
	// The identity's address is the account's own: that is no reason against it, and none for it.
	x.idp.Set(idp.User{Subject: "1", Name: "ada", Email: p.email})
	a := b.get(x.link(b, p.token, "google", nil))
	x.want(a, 200, "")
	if o := a.object(t); o["provider"] != "google" || o["subject"] != "1" || o["email"] != p.email || o["created_at"] == nil || len(o) != 4 {
		t.Errorf("answer %v", o)
	}
	if got := x.identities(p.token); !slices.Equal(got, []string{"google"}) {
		t.Errorf("identities %v", got)
	}
	// Now it signs in to that account, and the password still does.
	a = x.signIn(b, "google", "")
	x.want(a, 200, "")
	if id := x.wantUser(a.object(t)["token"].(string), p.name); id != p.id {
		t.Errorf("signed in as %s", id)
	}
	x.login(p)
	// Linking it again changes nothing; another one of the same provider has to wait for this one to go.
	x.want(b.get(x.link(b, p.token, "google", object{})), 200, "")
	x.idp.Set(idp.User{Subject: "2", Name: "ada", Email: p.email})
	x.want(b.get(x.link(b, p.token, "google", nil)), 409, "conflict")
	x.want(x.send("DELETE", "/api/v1/auth/identities/google", p.token, nil), 204, "")
	x.want(x.send("DELETE", "/api/v1/auth/identities/google", p.token, nil), 404, "not_found")
	x.want(x.send("DELETE", "/api/v1/auth/identities/..%2Fgoogle", p.token, nil), 400, "invalid_path")
	x.want(x.send("DELETE", "/api/v1/auth/identities/GOOGLE", p.token, nil), 404, "not_found")
	// Back to a page, in both ways.
	for mode, want := range map[string]string{"fragment": "#linked=google&state=mine", "code": "?linked=google&state=mine"} {
		a := b.get(x.link(b, p.token, "google", object{"redirect_uri": returnTo, "response_mode": mode, "state": "mine"}))
		if got := a.header.Get("Location"); a.status != 302 || got != returnTo+want {
			t.Errorf("%s: status %d, Location %q", mode, a.status, got)
		}
	}
	var events []string
	for _, e := range x.events(p.token, "?event=identity.*") {
		if e["actor"].(object)["id"] != p.id || e["detail"].(object)["provider"] != "google" {
			t.Errorf("event %v", e)
		}
		events = append(events, e["event"].(string))
	}
	if want := []string{"identity.linked", "identity.unlinked", "identity.linked"}; !slices.Equal(events, want) {
		t.Errorf("events %v, want %v", events, want)
	}
}

func TestIdentities_TakenByAnother(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, nil).ready("google")
	a := x.signIn(x.browser(), "google", "")
	x.want(a, 200, "")
	owner := x.wantUser(a.object(t)["token"].(string), "ada")
	thief := x.register()
	b := x.browser()
	x.want(b.get(x.link(b, thief.token, "google", nil)), 409, "identity_taken")
	if v := fragment(t, b.get(x.link(b, thief.token, "google", object{"redirect_uri": returnTo}))); v.Get("error") != "identity_taken" {
		t.Errorf("fragment %v", v)
	}
	x.reasonAudited("google", "identity_taken")
	if i, err := x.cluster.Identity("google", "1001"); err != nil || i.UserID != owner {
		t.Errorf("identity %+v, %v", i, err)
	}
	eventually(t, "in the audit log of who tried", func() bool { return len(x.events(thief.token, "?event=oauth.failed")) == 1 })
}

// TestIdentities_NeverWithoutAWayIn goes through the ways in which an account could lose its last one.
func TestIdentities_NeverWithoutAWayIn(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, nil).ready("google")
	b := x.browser()
	a := x.signIn(b, "google", "")
	x.want(a, 200, "")
	token := a.object(t)["token"].(string)
	x.want(x.send("DELETE", "/api/v1/auth/identities/google", token, nil), 409, "last_sign_in")
	// An identity of a provider that is not configured opens nothing.
	other := authapi.OAuthProvider{Name: "acme", Kind: "oidc", ClientID: idp.ClientID, ClientSecret: idp.ClientSecret, Issuer: x.idp.URL}
	google := authapi.OAuthProvider{Name: "google", ClientID: idp.ClientID, ClientSecret: idp.ClientSecret, Issuer: x.idp.URL}
	if err := x.srv.SetOAuth(authapi.OAuthConfig{Providers: []authapi.OAuthProvider{google, other}}); err != nil {
		t.Fatal(err)
	}
	x.ready("google").ready("acme")
	x.want(b.get(x.link(b, token, "acme", nil)), 200, "")
	if err := x.srv.SetOAuth(authapi.OAuthConfig{Providers: []authapi.OAuthProvider{google}}); err != nil {
		t.Fatal(err)
	}
	x.ready("google")
	x.want(x.send("DELETE", "/api/v1/auth/identities/google", token, nil), 409, "last_sign_in")
	x.want(x.send("DELETE", "/api/v1/auth/identities/acme", token, nil), 204, "")
	// With a password there is no last identity.
	x.want(x.send("POST", "/api/v1/auth/password", token, object{"new_password": goodPassword}), 204, "")
	x.want(x.send("DELETE", "/api/v1/auth/identities/google", token, nil), 204, "")
	x.want(x.send("POST", "/api/v1/auth/login", "", object{"username": "ada", "password": goodPassword}), 200, "")
}

// TestOAuth_AfterTheEnd: an account that has ended takes its identities with it, and what was begun for it comes to nothing.
func TestOAuth_AfterTheEnd(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, nil).ready("google")
	b := x.browser()
	a := x.signIn(b, "google", "")
	x.want(a, 200, "")
	token := a.object(t)["token"].(string)
	id := x.wantUser(token, "ada")
	a = x.signIn(b, "google", query(returnTo, "code"))
	u, err := url.Parse(a.header.Get("Location"))
	if err != nil || u.Query().Get("code") == "" {
		t.Fatalf("Location %q", a.header.Get("Location"))
	}
	link := x.link(b, token, "google", nil)
	x.want(x.send("DELETE", "/api/v1/auth/me", token, nil), 204, "")
	x.want(x.send("POST", "/api/v1/auth/exchange", "", object{"code": u.Query().Get("code")}), 401, "invalid_code")
	x.want(b.get(link), 401, "session_ended")
	a = x.signIn(b, "google", "")
	x.want(a, 200, "")
	if again := x.wantUser(a.object(t)["token"].(string), "ada"); again == id {
		t.Error("the account that had ended was signed in to")
	}
}

func TestPassword_TheFirstOne(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, nil).ready("google")
	b := x.browser()
	a := x.signIn(b, "google", "")
	x.want(a, 200, "")
	token := a.object(t)["token"].(string)
	if got := x.fields(x.send("POST", "/api/v1/auth/password", token, object{"current_password": "guess", "new_password": "short"})); !got["current_password"] || !got["new_password"] {
		t.Errorf("fields %v", got)
	}
	other := x.signIn(b, "google", "").object(t)["token"].(string)
	x.clock.Advance(10 * time.Minute)
	// A token that was stolen is no proof that its owner sits there.
	x.want(x.send("POST", "/api/v1/auth/password", token, object{"new_password": goodPassword}), 403, "reauthentication_required")
	fresh := x.signIn(b, "google", "").object(t)["token"].(string)
	x.want(x.send("POST", "/api/v1/auth/password", fresh, object{"new_password": goodPassword}), 204, "")
	x.want(x.send("GET", "/api/v1/auth/me", other, nil), 401, "invalid_credential") // other sessions end
	x.want(x.send("POST", "/api/v1/auth/login", "", object{"username": "ada", "password": goodPassword}), 200, "")
	// The second one needs the first.
	if got := x.fields(x.send("POST", "/api/v1/auth/password", fresh, object{"new_password": "another-" + goodPassword})); !got["current_password"] {
		t.Errorf("fields %v", got)
	}
	x.want(x.send("POST", "/api/v1/auth/password", fresh, object{"current_password": "wrong", "new_password": "another-" + goodPassword}), 401, "invalid_credentials")
}

// TestAttack_Link: somebody else's link, in either direction.
func TestAttack_Link(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, func(cfg *authapi.Config) {
		cfg.Auth.CookieSessions = true
		cfg.CORS.Origins = []string{page}
	}).ready("google")
	victim, attacker := x.register(), x.register()
	victims, attackers := x.browser(), x.browser()

	// The attacker begins, and makes the victim's browser finish: the victim's identity would open the attacker's account,
	// or the attacker's identity, the victim's.
	callback := x.link(attackers, attacker.token, "google", nil)
	x.want(victims.get(callback), 400, "invalid_state")
	x.reasonAudited("google", "state_foreign")
	// Nor can a page of another origin begin for the victim with the victim's cookies.
	a := victims.post("/api/v1/auth/login", "", object{"username": victim.name, "password": goodPassword}, "X-Session-Mode", "cookie")
	x.want(a, 200, "")
	csrf := a.object(t)["csrf_token"].(string)
	x.want(victims.post("/api/v1/auth/identities/google/link", "", nil), 403, "csrf_failed")
	x.want(victims.post("/api/v1/auth/identities/google/link", "", nil, "X-CSRF-Token", csrf, "Origin", "https://evil.example"), 403, "csrf_failed")
	a = victims.post("/api/v1/auth/identities/google/link", "", nil, "X-CSRF-Token", csrf, "Origin", page)
	x.want(a, 200, "")
	// A page gets the cookie by a request with credentials.
	if a.header.Get("Access-Control-Allow-Credentials") != "true" {
		t.Error("a page cannot keep the cookie of the link")
	}
	// A sign-in is no link and a link no sign-in: what was begun is what is finished.
	link := path(t, x.idp.Authorize(t, a.object(t)["authorization_url"].(string)))
	a = victims.get(link)
	x.want(a, 200, "")
	if o := a.object(t); o["token"] != nil || o["provider"] != "google" {
		t.Errorf("answer %v", o)
	}

	// Without a credential, or with a key, there is no link.
	x.want(x.send("POST", "/api/v1/auth/identities/google/link", "", nil), 401, "authentication_required")
	key := x.createKey(victim.token, victim.org, "*")["key"].(string)
	x.want(x.send("POST", "/api/v1/auth/identities/google/link", key, nil), 403, "forbidden")
	x.want(x.send("GET", "/api/v1/auth/identities", key, nil), 403, "forbidden")
	x.want(x.send("DELETE", "/api/v1/auth/identities/google", key, nil), 403, "forbidden")
	x.want(x.send("POST", "/api/v1/auth/identities/google/link", victim.token, object{"user_id": attacker.id}), 400, "invalid_json")

	// Who signed out meanwhile links nothing.
	x.idp.Set(idp.User{Subject: "5", Name: "x", Email: "x@example.com"})
	callback = x.link(attackers, attacker.token, "google", nil)
	x.want(x.send("POST", "/api/v1/auth/logout", attacker.token, nil), 204, "")
	x.want(attackers.get(callback), 401, "session_ended")
	if i, err := x.cluster.Identity("google", "5"); err != nil || i != nil {
		t.Errorf("identity %+v, %v", i, err)
	}
	x.reasonAudited("google", "session_ended")
}

// TestIdentities_LinkGitHub: the address is for people; a list that cannot be read is no reason to fail.
func TestIdentities_LinkGitHub(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, nil, idp.GitHub())
	p := x.register()
	b := x.browser()
	x.idp.Fail(idp.Faults{EmailsStatus: 404})
	a := b.get(x.link(b, p.token, "github", nil))
	x.want(a, 200, "")
	if o := a.object(t); o["email"] != nil || o["subject"] != "1001" {
		t.Errorf("answer %v", o)
	}
	a = x.send("GET", "/api/v1/auth/identities?limit=1", p.token, nil)
	x.want(a, 200, "")
	if !strings.Contains(a.body, `"next_cursor":null`) {
		t.Errorf("answer %s", a.body)
	}
	x.fields(x.send("GET", "/api/v1/auth/identities?limit=0", p.token, nil))
}

func FuzzOAuthState(f *testing.F) {
	root := make([]byte, 32)
	rand.Read(root) // each process has its own, so that it knows every text that may open
	k := authapi.NewOAuthSeal(root)
	good, err := k.Seal("google")
	if err != nil {
		f.Fatal(err)
	}
	f.Add("google", good)
	f.Add("github", good)
	f.Add("google", good[:len(good)-1]+"A")
	f.Add("", "")
	f.Add("google", strings.Repeat("A", 5000))
	f.Fuzz(func(t *testing.T, provider, text string) {
		if k.Open(provider, text) && (provider != "google" || text != good) {
			t.Fatalf("%q opened as a state of %q", text, provider)
		}
	})
}

// FuzzOAuthCallback sends whatever a provider, or an attacker in its place, may send, with the browser's cookie; STATE stands
// for the state that was begun.
func FuzzOAuthCallback(f *testing.F) {
	cfg, _, _, _ := edgeConfig(func(cfg *authapi.Config) {
		cfg.Limit.Anonymous = rule(1e9)
		cfg.OAuth = authapi.OAuthConfig{RedirectURIs: []string{returnTo}, Providers: []authapi.OAuthProvider{{
			Name: "google", ClientID: "id", ClientSecret: "secret", Issuer: "http://127.0.0.1:1",
			AuthURL: "http://127.0.0.1:1/a", TokenURL: "http://127.0.0.1:1/t", JWKSURL: "http://127.0.0.1:1/k", // nobody is there
		}}}
	})
	srv, err := authapi.New(cfg)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := srv.Shutdown(context.Background()); err != nil {
			f.Error(err)
		}
	})
	if err := srv.Maintain(context.Background()); err != nil {
		f.Fatal(err)
	}
	get := func(uri, cookie string) *fasthttp.Response {
		var ctx fasthttp.RequestCtx
		var req fasthttp.Request
		req.Header.SetRequestURI(uri)
		req.Header.SetHost("api.example.com")
		if cookie != "" {
			req.Header.Set("Cookie", cookie)
		}
		ctx.Init(&req, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}, nil)
		srv.Handler()(&ctx)
		return &ctx.Response
	}
	for _, seed := range []string{
		"state=STATE&code=a", "state=STATE&code=a&iss=http://127.0.0.1:1", "state=STATE&error=access_denied&error_description=<script>",
		"state=STATE&error=%0d%0aSet-Cookie:%20a=b", "state=STATE&iss=https://evil.example&code=a", "state=STATE&state=x", "state=" + strings.Repeat("A", 43),
		"state=%00", "", "code=&state=STATE&redirect_uri=https://evil.example",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		begun := get("/api/v1/auth/google?redirect_uri="+url.QueryEscape(returnTo), "")
		to, err := url.Parse(string(begun.Header.Peek("Location")))
		cookie, _, _ := strings.Cut(string(begun.Header.Peek("Set-Cookie")), ";")
		if err != nil || cookie == "" {
			t.Fatalf("begin: %d %s", begun.StatusCode(), begun.Body())
		}
		res := get("/api/v1/auth/google/callback?"+strings.ReplaceAll(query, "STATE", to.Query().Get("state")), cookie)
		location := string(res.Header.Peek("Location"))
		switch {
		case res.StatusCode() != 302 && (res.StatusCode() < 400 || res.StatusCode() == 500):
			t.Fatalf("status %d: %s", res.StatusCode(), res.Body())
		case res.StatusCode() == 302 && (!strings.HasPrefix(location, returnTo+"#error=") || strings.ContainsAny(location, "\r\n<")):
			t.Fatalf("redirected to %q", location)
		}
	})
}
