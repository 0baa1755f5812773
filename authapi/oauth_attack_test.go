package authapi_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"sluice/authapi"
	"sluice/authapi/authtest/idp"
	"sluice/raftfsm/state"
)

// withQuery changes one parameter of a callback; "" removes it.
func withQuery(t *testing.T, callback, name, value string) string {
	t.Helper()
	u, err := url.Parse(callback)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set(name, value)
	if value == "" {
		q.Del(name)
	}
	u.RawQuery = q.Encode()
	return u.RequestURI()
}

func withCode(t *testing.T, callback, code string) string {
	t.Helper()
	return withQuery(t, callback, "code", code)
}

func codeOf(t *testing.T, location string) string {
	t.Helper()
	u, err := url.Parse(location)
	if err != nil || u.Query().Get("code") == "" {
		t.Fatalf("no code in %q", location)
	}
	return u.Query().Get("code")
}

// callback begins a sign-in in a browser and gives the callback that the provider sends it to.
func (x *oauthEdge) callback(b *browser, query string) string {
	x.t.Helper()
	return path(x.t, x.idp.Authorize(x.t, b.begin("google", query)))
}

// noSession makes sure that nobody got in.
func (x *oauthEdge) noSession() {
	x.t.Helper()
	if events := x.operatorEvents("session.created"); len(events) != 0 {
		x.t.Errorf("sessions were made: %+v", events)
	}
}

// TestAttack_State: what a callback must not be believed without.
func TestAttack_State(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, reason string
		attack       func(t *testing.T, x *oauthEdge, victim *browser) answer
	}{
		{"missing", "state_missing", func(t *testing.T, x *oauthEdge, victim *browser) answer {
			return victim.get(withQuery(t, x.callback(victim, ""), "state", ""))
		}},
		{"of another form", "state_malformed", func(t *testing.T, x *oauthEdge, victim *browser) answer {
			return victim.get(withQuery(t, x.callback(victim, ""), "state", "../../etc/passwd"))
		}},
		{"twice", "state_malformed", func(t *testing.T, x *oauthEdge, victim *browser) answer {
			return victim.get(x.callback(victim, "") + "&state=x")
		}},
		{"made up", "state_foreign", func(t *testing.T, x *oauthEdge, victim *browser) answer {
			return victim.get(withQuery(t, x.callback(victim, ""), "state", strings.Repeat("A", 43)))
		}},
		{"of another browser", "state_foreign", func(t *testing.T, x *oauthEdge, victim *browser) answer {
			attacker := x.browser()
			return victim.get(x.callback(attacker, ""))
		}},
		{"of another browser, while one of its own is open", "state_foreign", func(t *testing.T, x *oauthEdge, victim *browser) answer {
			attacker := x.browser()
			x.callback(victim, "")
			return victim.get(x.callback(attacker, ""))
		}},
		{"under the name of another", "state_foreign", func(t *testing.T, x *oauthEdge, victim *browser) answer {
			callback := x.callback(victim, "")
			u, err := url.Parse(callback)
			if err != nil {
				t.Fatal(err)
			}
			forged := u.Query().Get("state")[:8] + strings.Repeat("A", 35) // finds the cookie by its name
			return victim.get(withQuery(t, callback, "state", forged))
		}},
		{"sealed by somebody else", "state_foreign", func(t *testing.T, x *oauthEdge, victim *browser) answer {
			other := newOAuth(t, nil).ready("google")
			attacker := other.browser()
			callback := other.callback(attacker, "")
			victim.cookies = attacker.cookies
			return victim.get(callback)
		}},
		{"changed", "state_foreign", func(t *testing.T, x *oauthEdge, victim *browser) answer {
			callback := x.callback(victim, "")
			for name, value := range victim.cookies {
				victim.cookies[name] = value[:len(value)-6] + "AAAAAA"
			}
			return victim.get(callback)
		}},
		{"expired", "state_expired", func(t *testing.T, x *oauthEdge, victim *browser) answer {
			callback := x.callback(victim, "")
			x.clock.Advance(10 * time.Minute)
			return victim.get(callback)
		}},
		{"of the future", "state_expired", func(t *testing.T, x *oauthEdge, victim *browser) answer {
			callback := x.callback(victim, "")
			x.clock.Advance(-time.Minute)
			return victim.get(callback)
		}},
		{"of another provider", "state_foreign", func(t *testing.T, x *oauthEdge, victim *browser) answer {
			return victim.get(strings.Replace(x.callback(victim, ""), "/google/", "/github/", 1))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			x := newOAuth(t, nil).ready("google")
			a := c.attack(t, x, x.browser())
			x.want(a, 400, "invalid_state")
			wantHeaders(t, a)
			if a.header.Get("Location") != "" {
				t.Errorf("redirected to %q", a.header.Get("Location"))
			}
			provider := "google"
			if c.name == "of another provider" {
				provider = "github"
			}
			x.reasonAudited(provider, c.reason)
			x.noSession()
			if n := x.idp.Requests("/token"); n != 0 {
				t.Errorf("the provider was asked %d times", n)
			}
		})
	}
}

func TestAttack_StateReplayed(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, nil).ready("google")
	b := x.browser()
	callback := x.callback(b, query(returnTo, ""))
	cookies := map[string]string{}
	for name, value := range b.cookies {
		cookies[name] = value
	}
	fragment(t, b.get(callback))
	x.want(b.get(callback), 400, "invalid_state") // the cookie is gone
	b.cookies = cookies
	x.want(b.get(callback), 400, "invalid_state") // and would not help
	x.reasonAudited("google", "state_reused")
	if n := x.idp.Requests("/token"); n != 1 {
		t.Errorf("the provider was asked %d times", n)
	}
	// Also after it was denied: a state is for one answer, whatever that is.
	x.idp.Fail(idp.Faults{Error: "access_denied"})
	denied := x.callback(b, "")
	cookies = map[string]string{}
	for name, value := range b.cookies {
		cookies[name] = value
	}
	x.want(b.get(denied), 403, "provider_denied")
	b.cookies = cookies
	x.want(b.get(withCode(t, withQuery(t, denied, "error", ""), "x")), 400, "invalid_state")
}

// TestAttack_Race shows that of many callbacks of one sign-in at once exactly one wins.
func TestAttack_Race(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, nil).ready("google")
	b := x.browser()
	callback, cookies := x.callback(b, ""), b.header()
	statuses := make(chan int, 10)
	var wg sync.WaitGroup
	for range cap(statuses) {
		wg.Go(func() { statuses <- x.do("GET", callback, "", "Cookie", cookies).status })
	}
	wg.Wait()
	close(statuses)
	won := 0
	for status := range statuses {
		switch status {
		case 200:
			won++
		case 400:
		default:
			t.Errorf("status %d", status)
		}
	}
	if won != 1 {
		t.Errorf("%d won", won)
	}
}

// TestAttack_CodeInjection: a code that the attacker's own sign-in, or the victim's, got.
func TestAttack_CodeInjection(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, nil).ready("google")
	victim, attacker := x.browser(), x.browser()
	x.idp.Set(idp.User{Subject: "1", Name: "victim", Email: "victim@example.com"})
	stolen := x.callback(victim, "")
	x.idp.Set(idp.User{Subject: "2", Name: "attacker", Email: "attacker@example.com"})
	own := x.callback(attacker, "")
	// The code is bound to the verifier in the victim's cookie.
	x.want(attacker.get(withCode(t, own, codeOf(t, stolen))), 401, "invalid_code")
	x.reasonAudited("google", "invalid_code")
	x.want(attacker.get(withCode(t, x.callback(attacker, ""), "")), 401, "invalid_code")
	x.want(attacker.get(withCode(t, x.callback(attacker, ""), strings.Repeat("x", 2049))), 401, "invalid_code")
	x.noSession()
	// Even with a provider that does not look at the verifier the nonce gives it away.
	x.idp.Fail(idp.Faults{Claims: func(c jwt.MapClaims) { c["nonce"] = "of-another-sign-in" }})
	x.want(x.signIn(attacker, "google", ""), 400, "invalid_state")
	x.reasonAudited("google", "nonce_mismatch")
	x.noSession()
}

// TestAttack_MixUp: the answer is of another provider than the one that was asked (RFC 9207).
func TestAttack_MixUp(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, nil).ready("google")
	b := x.browser()
	x.idp.Fail(idp.Faults{Issuer: "https://evil.example"})
	x.want(x.signIn(b, "google", ""), 400, "issuer_mismatch")
	if v := fragment(t, x.signIn(b, "google", query(returnTo, ""))); v.Get("error") != "issuer_mismatch" || v.Get("token") != "" {
		t.Errorf("fragment %v", v)
	}
	// This one says of itself that it always names the issuer.
	x.idp.Fail(idp.Faults{Issuer: "-"})
	x.want(x.signIn(b, "google", ""), 400, "issuer_mismatch")
	// An error of another provider says nothing either.
	x.idp.Fail(idp.Faults{Issuer: "https://evil.example", Error: "access_denied"})
	x.want(x.signIn(b, "google", ""), 400, "issuer_mismatch")
	x.reasonAudited("google", "issuer_mismatch")
	if n := x.idp.Requests("/token"); n != 0 {
		t.Errorf("a code was sent %d times", n)
	}
	x.noSession()
	older := newOAuth(t, nil, idp.WithoutIssuer()).ready("google")
	older.want(older.signIn(older.browser(), "google", ""), 200, "")
	older.idp.Fail(idp.Faults{Issuer: "https://evil.example"})
	older.want(older.signIn(older.browser(), "google", ""), 400, "issuer_mismatch")
}

// TestAttack_IDToken: tokens that are not this provider's answer for this client, user and moment.
func TestAttack_IDToken(t *testing.T) {
	t.Parallel()
	forger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	claims := func(change func(c jwt.MapClaims)) func(*oauthEdge) idp.Faults {
		return func(*oauthEdge) idp.Faults { return idp.Faults{Claims: change} }
	}
	sign := func(make func(x *oauthEdge, c jwt.MapClaims) string) func(*oauthEdge) idp.Faults {
		return func(x *oauthEdge) idp.Faults {
			id := x.idp.KeyID()
			return idp.Faults{Sign: func(c jwt.MapClaims) string { c["kid"] = id; return make(x, c) }}
		}
	}
	for _, c := range []struct {
		name   string
		status int
		code   string
		reason string
		faults func(*oauthEdge) idp.Faults
	}{
		{"issuer", 400, "issuer_mismatch", "issuer_mismatch", claims(func(c jwt.MapClaims) { c["iss"] = "https://evil.example" })},
		{"Google's short issuer of another", 400, "issuer_mismatch", "issuer_mismatch", claims(func(c jwt.MapClaims) { c["iss"] = "accounts.google.com" })},
		{"no nonce", 400, "invalid_state", "nonce_mismatch", claims(func(c jwt.MapClaims) { delete(c, "nonce") })},
		{"audience", 502, "provider_error", "id_token", claims(func(c jwt.MapClaims) { c["aud"] = "another-client" })},
		{"no audience", 502, "provider_error", "id_token", claims(func(c jwt.MapClaims) { delete(c, "aud") })},
		{"several audiences and nobody authorized", 502, "provider_error", "id_token", claims(func(c jwt.MapClaims) { c["aud"] = []string{idp.ClientID, "another-client"} })},
		{"authorized party", 502, "provider_error", "id_token", claims(func(c jwt.MapClaims) { c["aud"], c["azp"] = []string{idp.ClientID, "another-client"}, "another-client" })},
		{"expired", 502, "provider_error", "id_token", claims(func(c jwt.MapClaims) { c["exp"] = c["iat"].(int64) - 1 })},
		{"never expires", 502, "provider_error", "id_token", claims(func(c jwt.MapClaims) { delete(c, "exp") })},
		{"not yet", 502, "provider_error", "id_token", claims(func(c jwt.MapClaims) { c["nbf"] = c["exp"] })},
		{"issued in the future", 502, "provider_error", "id_token", claims(func(c jwt.MapClaims) { c["iat"] = c["exp"].(int64) - 60 })},
		{"no subject", 502, "provider_error", "id_token", claims(func(c jwt.MapClaims) { c["sub"] = "" })},
		{"a long subject", 502, "provider_error", "id_token", claims(func(c jwt.MapClaims) { c["sub"] = strings.Repeat("s", 256) })},
		{"another access token", 502, "provider_error", "id_token", claims(func(c jwt.MapClaims) { c["at_hash"] = "AAAAAAAAAAAAAAAAAAAAAA" })},
		{"alg none", 502, "provider_error", "id_token", sign(func(x *oauthEdge, c jwt.MapClaims) string {
			return idp.Sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, c["kid"].(string), c)
		})},
		{"HS256 with the client's secret", 502, "provider_error", "id_token", sign(func(x *oauthEdge, c jwt.MapClaims) string {
			return idp.Sign(jwt.SigningMethodHS256, []byte(idp.ClientSecret), c["kid"].(string), c)
		})},
		{"another key under the name of the provider's", 502, "provider_error", "id_token", sign(func(x *oauthEdge, c jwt.MapClaims) string {
			return idp.Sign(jwt.SigningMethodES256, forger, c["kid"].(string), c)
		})},
		{"an unknown key", 502, "provider_error", "id_token", sign(func(x *oauthEdge, c jwt.MapClaims) string {
			return idp.Sign(jwt.SigningMethodES256, forger, "unknown", c)
		})},
		{"no token", 502, "provider_error", "id_token_missing", func(*oauthEdge) idp.Faults { return idp.Faults{NoIDToken: true} }},
		{"no JWT", 502, "provider_error", "id_token", sign(func(*oauthEdge, jwt.MapClaims) string { return "a.b.c" })},
		{"a long token", 502, "provider_error", "id_token_missing", sign(func(*oauthEdge, jwt.MapClaims) string { return strings.Repeat("a", 17<<10) })},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			x := newOAuth(t, nil).ready("google")
			x.idp.Fail(c.faults(x))
			x.want(x.signIn(x.browser(), "google", ""), c.status, c.code)
			x.reasonAudited("google", c.reason)
			x.noSession()
			x.idp.Fail(idp.Faults{})
			x.want(x.signIn(x.browser(), "google", ""), 200, "")
		})
	}
}

// TestOAuth_ProviderFails: what a provider can do wrong is told apart as denied, failed and late.
func TestOAuth_ProviderFails(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name         string
		status       int
		code, reason string
		faults       idp.Faults
	}{
		{"denied", 403, "provider_denied", "denied", idp.Faults{Error: "access_denied"}},
		{"out of order", 502, "provider_error", "provider_refused", idp.Faults{Error: "server_error"}},
		{"an error that is none", 502, "provider_error", "provider_refused", idp.Faults{Error: "<script>\r\n"}},
		{"late", 504, "provider_timeout", "token_request", idp.Faults{TokenDelay: 20 * time.Second}},
		{"late keys", 504, "provider_timeout", "id_token", idp.Faults{KeysDelay: 20 * time.Second}},
		{"500", 502, "provider_error", "token_request", idp.Faults{TokenStatus: 500, TokenBody: "<html>secret-in-a-page"}},
		{"no JSON", 502, "provider_error", "token_request", idp.Faults{TokenBody: "<html>secret-in-a-page"}},
		{"no token", 502, "provider_error", "token_request", idp.Faults{TokenBody: "{}"}},
		{"a redirect", 502, "provider_error", "token_request", idp.Faults{Redirect: "/userinfo"}},
		{"without end", 502, "provider_error", "token_request", idp.Faults{Huge: true}},
		{"the client is refused", 502, "provider_error", "token_request", idp.Faults{BadSecret: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var log lockedLog
			x := newOAuth(t, func(cfg *authapi.Config) {
				if c.status == 504 {
					cfg.OAuth.Timeout = 2 * time.Second
				}
				cfg.Logger = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			}).ready("google")
			x.idp.Fail(c.faults)
			b := x.browser()
			a := x.signIn(b, "google", "")
			x.want(a, c.status, c.code)
			wantHeaders(t, a)
			x.reasonAudited("google", c.reason)
			a = x.signIn(b, "google", query(returnTo, ""))
			v := fragment(t, a)
			if v.Get("error") != c.code || v.Get("error_description") == "" || v.Get("token") != "" || strings.Contains(strings.ToLower(a.header.Get("Location")), "%3cscript") {
				t.Errorf("fragment %v", v)
			}
			x.noSession()
			if c.faults.Redirect != "" && x.idp.Requests("/userinfo") != 0 {
				t.Error("followed a redirect with the code")
			}
			for _, secret := range append(x.idp.Secrets(), "secret-in-a-page") {
				if strings.Contains(log.String(), secret) || strings.Contains(a.body, secret) {
					t.Errorf("a secret is in the log or the answer: %s", log.String())
				}
			}
		})
	}
}

// TestOAuth_NoSecretsInLogs does everything once and looks for what must not be there.
func TestOAuth_NoSecretsInLogs(t *testing.T) {
	t.Parallel()
	var log lockedLog
	x := newOAuth(t, func(cfg *authapi.Config) {
		cfg.Logger = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}).ready("google")
	b := x.browser()
	v := fragment(t, x.signIn(b, "google", query(returnTo, "")))
	a := x.signIn(b, "google", query(returnTo, "code"))
	u, err := url.Parse(a.header.Get("Location"))
	if err != nil {
		t.Fatal(err)
	}
	x.want(x.send("POST", "/api/v1/auth/exchange", "", object{"code": u.Query().Get("code")}), 200, "")
	x.want(x.send("POST", "/api/v1/auth/exchange", "", object{"code": u.Query().Get("code")}), 401, "invalid_code")
	x.want(b.get("/api/v1/auth/google/callback?state="+strings.Repeat("A", 43)), 400, "invalid_state")
	x.reasonAudited("google", "state_foreign")
	secrets := append(x.idp.Secrets(), v.Get("token"), v.Get("refresh_token"), u.Query().Get("code"))
	var audit strings.Builder
	for _, e := range x.operatorEvents("") {
		for _, p := range e.Detail {
			audit.WriteString(p.Value + "\n")
		}
	}
	for _, secret := range secrets {
		if strings.Contains(log.String(), secret) || strings.Contains(audit.String(), secret) {
			t.Errorf("a secret is in the log or the audit log")
		}
	}
}

// lockedLog is a log that may be read while it is written.
type lockedLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// TestOAuth_KeysRotate shows that new keys are found, and that unknown ones do not make this node ask again and again.
func TestOAuth_KeysRotate(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, nil).ready("google")
	b := x.browser()
	x.want(x.signIn(b, "google", ""), 200, "")
	x.want(x.signIn(b, "google", ""), 200, "")
	if n := x.idp.Requests("/keys"); n != 1 {
		t.Errorf("the keys were fetched %d times", n)
	}
	x.clock.Advance(10 * time.Second)
	x.idp.RotateKeys(t)
	x.want(x.signIn(b, "google", ""), 200, "")
	forger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x.idp.Fail(idp.Faults{Sign: func(c jwt.MapClaims) string { return idp.Sign(jwt.SigningMethodES256, forger, "unknown", c) }})
	for range 5 {
		x.want(x.signIn(b, "google", ""), 502, "provider_error")
	}
	if n := x.idp.Requests("/keys"); n != 2 {
		t.Errorf("the keys were fetched %d times, want 2", n)
	}
}

// TestOAuth_DiscoveryComesLater shows that no redirect waits for a provider that cannot be reached.
func TestOAuth_DiscoveryComesLater(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, nil, idp.Silent())
	a := x.do("GET", "/api/v1/auth/google", "")
	x.want(a, 503, "provider_unavailable")
	if a.header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After %q", a.header.Get("Retry-After"))
	}
	x.idp.Speak()
	x.ready("google")
	x.want(x.signIn(x.browser(), "google", ""), 200, "")
}

// TestOAuth_ClusterUnavailable: a state that was not spent can be used once the cluster is back.
func TestOAuth_ClusterUnavailable(t *testing.T) {
	t.Parallel()
	x := newOAuth(t, nil).ready("google")
	b := x.browser()
	callback := x.callback(b, "")
	x.cluster.SetUnavailable(authapi.ErrUnavailable)
	x.want(b.get(callback), 503, "cluster_unavailable")
	x.cluster.SetUnavailable(nil)
	x.want(b.get(callback), 200, "")
	// Afterwards the state is spent: the page is told to begin again.
	callback = x.callback(b, query(returnTo, ""))
	x.cluster.SetOnPropose(func(cmd state.Command) (bool, error) {
		if _, ok := cmd.(state.StartSession); ok {
			return false, authapi.ErrUnavailable
		}
		return true, nil
	})
	if v := fragment(t, b.get(callback)); v.Get("error") != "cluster_unavailable" {
		t.Errorf("fragment %v", v)
	}
	x.cluster.SetOnPropose(nil)
	x.want(b.get(callback), 400, "invalid_state")
}
