package systemtest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"sluice/authapi/authtest/idp"
)

const (
	returnPage = "https://app.example/signed-in"

	opBegin    = "GET /api/v1/auth/{provider}"
	opCallback = "GET /api/v1/auth/{provider}/callback"
	opExchange = "POST /api/v1/auth/exchange"
	opLink     = "POST /api/v1/auth/identities/{provider}/link"
	opUnlink   = "DELETE /api/v1/auth/identities/{provider}"
	opMe       = "GET /api/v1/auth/me"
)

// providerWalk walks the rows about providers, with fake ones behind three nodes.
type providerWalk struct {
	*walk
	google, github, silent *idp.Server
	people                 int
	reasons                map[string]bool // of failures that have to be in the audit log
}

// browser keeps cookies as one does.
type browser struct {
	w       *providerWalk
	cookies map[string]string
}

func (w *providerWalk) browser() *browser { return &browser{w, map[string]string{}} }

func (b *browser) do(k call, status int) response {
	b.w.t.Helper()
	if len(b.cookies) > 0 {
		var pairs []string
		for _, name := range slices.Sorted(maps.Keys(b.cookies)) {
			pairs = append(pairs, name+"="+b.cookies[name])
		}
		k.header = map[string]string{"Cookie": strings.Join(pairs, "; ")}
	}
	res := b.w.do(k, status)
	for _, c := range (&http.Response{Header: res.header}).Cookies() {
		if c.MaxAge < 0 || !c.Expires.IsZero() && c.Expires.Before(time.Now()) {
			delete(b.cookies, c.Name)
		} else {
			b.cookies[c.Name] = c.Value
		}
	}
	return res
}

// somebody sits down at the providers' browsers: a new person unless one is given.
func (w *providerWalk) somebody() idp.User {
	w.people++
	u := idp.User{Subject: fmt.Sprint(1000 + w.people), Name: unique("person")}
	u.Email = u.Name + "@example.org"
	w.google.Set(u)
	w.github.Set(u)
	return u
}

func (w *providerWalk) server(provider string) *idp.Server {
	if provider == "github" {
		return w.github
	}
	return w.google
}

// agree is where the provider sends the browser: the query of the callback.
func (w *providerWalk) agree(provider, authorization string) string {
	w.t.Helper()
	u, err := url.Parse(w.server(provider).Authorize(w.t, authorization))
	if err != nil || u.Host != "sluice.example" || u.Path != "/api/v1/auth/"+provider+"/callback" {
		w.t.Fatalf("sent back to %v, %v", u, err)
	}
	return "?" + u.RawQuery
}

// begin begins a sign-in at one node and gives the callback's query; mode "" is JSON.
func (b *browser) begin(provider, mode string) string {
	b.w.t.Helper()
	query := ""
	if mode != "" {
		query = "?" + url.Values{"redirect_uri": {returnPage}, "response_mode": {mode}}.Encode()
	}
	res := b.do(call{op: opBegin, args: []string{provider}, query: query}, 302)
	return b.w.agree(provider, res.header.Get("Location"))
}

// link begins a link and gives the callback's query.
func (b *browser) link(provider, token string) string {
	b.w.t.Helper()
	res := b.do(call{op: opLink, args: []string{provider}, token: token}, 200)
	return b.w.agree(provider, res.field(b.w.t, "authorization_url"))
}

func (b *browser) finish(provider, query string, status int, code string) response {
	b.w.t.Helper()
	return b.do(call{op: opCallback, args: []string{provider}, query: query, code: code}, status)
}

// refused is a callback that opens nothing; reason is what the audit log says of it.
func (b *browser) refused(query string, status int, code, reason string) {
	b.w.t.Helper()
	res := b.finish("google", query, status, code)
	if res.header.Get("Location") != "" || strings.Contains(string(res.body), "token\"") {
		b.w.t.Errorf("%s: refused, and yet %v to %q", reason, res, res.header.Get("Location"))
	}
	b.w.reasons[reason] = true
}

// with changes one parameter of a callback; "" removes it.
func with(t *testing.T, query, name, value string) string {
	t.Helper()
	v, err := url.ParseQuery(strings.TrimPrefix(query, "?"))
	if err != nil {
		t.Fatal(err)
	}
	v.Set(name, value)
	if value == "" {
		v.Del(name)
	}
	return "?" + v.Encode()
}

// landed reads what came back to the page behind separator.
func landed(t *testing.T, res response, separator string) url.Values {
	t.Helper()
	page, rest, _ := strings.Cut(res.header.Get("Location"), separator)
	v, err := url.ParseQuery(rest)
	if err != nil || page != returnPage {
		t.Fatalf("landed at %q, want %s%s…", res.header.Get("Location"), returnPage, separator)
	}
	return v
}

// TestContract_Providers walks sign-in, link and unlink with providers over three nodes, with every request at another node
// than the one before, and tries what an attacker would.
func TestContract_Providers(t *testing.T) {
	t.Parallel()
	w := &providerWalk{walk: &walk{t: t, seen: map[string]map[int]bool{}, nodes: map[string]map[int]bool{}}, reasons: map[string]bool{}}
	w.google = idp.Start(t, time.Now)
	w.github = idp.Start(t, time.Now, idp.GitHub())
	w.silent = idp.Start(t, time.Now, idp.Silent())
	w.c = startCluster(t, options{variables: append([]string{
		"SLUICE_PUBLIC_URL=http://sluice.example", fmt.Sprintf("SLUICE_OAUTH__REDIRECT_URIS=[%q]", returnPage),
		"SLUICE_OAUTH__GOOGLE__CLIENT_ID=" + idp.ClientID, "SLUICE_OAUTH__GOOGLE__CLIENT_SECRET=" + idp.ClientSecret, "SLUICE_OAUTH__GOOGLE__ISSUER=" + w.google.URL,
		"SLUICE_OAUTH__GITHUB__CLIENT_ID=" + idp.ClientID, "SLUICE_OAUTH__GITHUB__CLIENT_SECRET=" + idp.ClientSecret,
		"SLUICE_OAUTH__GITHUB__AUTH_URL=" + w.github.URL + "/authorize", "SLUICE_OAUTH__GITHUB__TOKEN_URL=" + w.github.URL + "/token",
		"SLUICE_OAUTH__GITHUB__USERINFO_URL=" + w.github.URL + "/user",
		fmt.Sprintf("SLUICE_OAUTH__PROVIDERS={ silent = { client_id = %q, client_secret = %q, issuer = %q } }", idp.ClientID, idp.ClientSecret, w.silent.URL),
	}, wide...)})
	for _, base := range w.c.urls {
		eventually(t, readyWithin, "the provider is known", func() error {
			if res, err := send(base, request{path: "/api/v1/auth/google", address: newAddress()}); err != nil || res.status != http.StatusFound {
				return fmt.Errorf("%v, %v", res, err)
			}
			return nil
		})
	}
	operations := w.document()

	w.signIns()
	w.states()
	w.answers()
	w.emails()
	w.links()
	w.races()

	for op, want := range map[string][]int{
		opBegin:    {302, 400, 404, 422, 503},
		opCallback: {200, 302, 400, 401, 403, 404, 409, 502, 504}, // and 503 where the cluster cannot decide
		opExchange: {200, 401, 403, 422},
		opLink:     {200, 403, 404},
		opUnlink:   {204, 403, 404, 409},
	} {
		for _, status := range want {
			if !w.seen[op][status] {
				t.Errorf("%s never answered %d", op, status)
			}
			if operations[op].Responses[fmt.Sprint(status)] == nil {
				t.Errorf("the document does not know %d of %s", status, op)
			}
		}
		if len(w.nodes[op]) < 2 {
			t.Errorf("%s was called at %d nodes", op, len(w.nodes[op]))
		}
	}
	w.audited()
	w.noSecrets()
	t.Logf("%d requests", w.n)
}

// signIns: each way back, each provider, and that what was spent at one node is spent at all.
func (w *providerWalk) signIns() {
	for range w.c.urls {
		for _, provider := range []string{"google", "github"} {
			who := w.somebody()
			b := w.browser()
			res := b.finish(provider, b.begin(provider, ""), 200, "")
			w.has(res, "token", "token_type", "expires_at", "refresh_token", "refresh_expires_at")
			if me := w.do(call{op: opMe, token: res.field(w.t, "token")}, 200); me.field(w.t, "user", "username") != who.Name {
				w.t.Errorf("%s: signed in as %v", provider, me)
			}
			v := landed(w.t, b.finish(provider, b.begin(provider, "fragment"), 302, ""), "#")
			for _, name := range []string{"token", "expires_at", "refresh_token"} {
				if v.Get(name) == "" {
					w.t.Errorf("%s: no %s in the fragment", provider, name)
				}
			}
			w.do(call{op: opMe, token: v.Get("token")}, 200)
		}
	}
	w.somebody()
	b := w.browser()
	query := b.begin("google", "code")
	cookies := maps.Clone(b.cookies)
	code := landed(w.t, b.finish("google", query, 302, ""), "?").Get("code")
	for range w.c.urls { // with the cookie of before, as a thief of the address would have it
		b.cookies = maps.Clone(cookies)
		b.refused(query, 400, "invalid_state", "state_reused")
	}
	w.has(w.do(call{op: opExchange, body: object{"code": code}}, 200), "token", "token_type", "expires_at", "refresh_token", "refresh_expires_at")
	for range w.c.urls {
		w.do(call{op: opExchange, body: object{"code": code}, code: "invalid_code"}, 401)
	}
	w.do(call{op: opExchange, body: object{}, code: "invalid_input"}, 422)
	for _, evil := range []string{"https://evil.example/", returnPage + "/", returnPage + "?", returnPage + "%23", "HTTPS://app.example/signed-in",
		"https://app.example%2F@evil.example/signed-in", "//app.example/signed-in", "https://app.example/%73igned-in", "https://app.example/x/../signed-in"} {
		w.do(call{op: opBegin, args: []string{"google"}, query: "?" + url.Values{"redirect_uri": {evil}}.Encode(), code: "invalid_redirect_uri"}, 400)
	}
	w.do(call{op: opBegin, args: []string{"google"}, query: "?redirect_uri=" + url.QueryEscape(returnPage) + "&redirect_uri=https://evil.example", code: "invalid_redirect_uri"}, 400)
	w.reasons["invalid_redirect_uri"] = true
	w.do(call{op: opBegin, args: []string{"google"}, query: "?response_mode=post", code: "invalid_input"}, 422)
	w.do(call{op: opBegin, args: []string{"nobody"}, code: "provider_not_configured"}, 404)
	w.do(call{op: opCallback, args: []string{"nobody"}, code: "provider_not_configured"}, 404)
	for range w.c.urls { // whose address no node could find out yet
		w.do(call{op: opBegin, args: []string{"silent"}, code: "provider_unavailable"}, 503)
	}
}

// states: what a callback must not be believed without.
func (w *providerWalk) states() {
	w.somebody()
	asked := w.google.Requests("/token")
	victim, attacker := w.browser(), w.browser()
	victim.refused(with(w.t, victim.begin("google", ""), "state", ""), 400, "invalid_state", "state_missing")
	victim.refused(with(w.t, victim.begin("google", ""), "state", "../../etc/passwd"), 400, "invalid_state", "state_malformed")
	victim.refused(victim.begin("google", "")+"&state=x", 400, "invalid_state", "state_malformed")
	victim.refused(with(w.t, victim.begin("google", ""), "state", strings.Repeat("A", 43)), 400, "invalid_state", "state_foreign")
	victim.refused(attacker.begin("google", ""), 400, "invalid_state", "state_foreign") // while one of its own is open
	w.browser().refused(victim.begin("google", ""), 400, "invalid_state", "state_foreign")
	query := victim.begin("google", "")
	for name, value := range victim.cookies {
		victim.cookies[name] = value[:len(value)-6] + "AAAAAA"
	}
	victim.refused(query, 400, "invalid_state", "state_foreign")
	// The other provider's callback does not take it either.
	query = attacker.begin("google", "")
	attacker.finish("github", query, 400, "invalid_state")
	if n := w.google.Requests("/token") - asked; n != 0 {
		w.t.Errorf("the provider was asked %d times", n)
	}
}

// answers: what a provider may say, and what somebody says in its name.
func (w *providerWalk) answers() {
	who := w.somebody()
	b := w.browser()
	fails := func(f idp.Faults, status int, code, reason string) {
		w.t.Helper()
		w.google.Fail(f)
		b.refused(b.begin("google", ""), status, code, reason)
	}
	claim := func(name string, value any) idp.Faults {
		return idp.Faults{Claims: func(c jwt.MapClaims) { c[name] = value }}
	}
	fails(idp.Faults{Error: "access_denied"}, 403, "provider_denied", "denied")
	v := landed(w.t, b.finish("google", b.begin("google", "fragment"), 302, ""), "#")
	if v.Get("error") != "provider_denied" || v.Get("token") != "" {
		w.t.Errorf("denied, and the page learns %v", v)
	}
	fails(idp.Faults{Error: "server_error"}, 502, "provider_error", "provider_refused")
	fails(idp.Faults{Issuer: "https://evil.example"}, 400, "issuer_mismatch", "issuer_mismatch")
	fails(idp.Faults{Issuer: "-"}, 400, "issuer_mismatch", "issuer_mismatch") // it says of itself that it names itself
	fails(claim("iss", "https://evil.example"), 400, "issuer_mismatch", "issuer_mismatch")
	fails(claim("nonce", "of-another-sign-in"), 400, "invalid_state", "nonce_mismatch")
	fails(claim("aud", "another-client"), 502, "provider_error", "id_token")
	fails(claim("exp", time.Now().Add(-time.Hour).Unix()), 502, "provider_error", "id_token")
	fails(idp.Faults{Sign: func(c jwt.MapClaims) string {
		return idp.Sign(jwt.SigningMethodHS256, []byte(idp.ClientSecret), "k", c)
	}}, 502, "provider_error", "id_token")
	fails(idp.Faults{Sign: func(c jwt.MapClaims) string {
		return idp.Sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, "k", c)
	}}, 502, "provider_error", "id_token")
	fails(idp.Faults{NoIDToken: true}, 502, "provider_error", "id_token_missing")
	fails(idp.Faults{TokenStatus: 500, TokenBody: "<html>"}, 502, "provider_error", "token_request")
	fails(idp.Faults{TokenDelay: 20 * time.Second}, 504, "provider_timeout", "token_request")
	w.google.Fail(idp.Faults{})

	// A code of one sign-in in another one's callback, whoever began either.
	victim, attacker := w.browser(), w.browser()
	stolen, err := url.ParseQuery(victim.begin("google", "")[1:])
	if err != nil {
		w.t.Fatal(err)
	}
	attacker.refused(with(w.t, attacker.begin("google", ""), "code", stolen.Get("code")), 401, "invalid_code", "invalid_code")
	attacker.refused(with(w.t, attacker.begin("google", ""), "code", ""), 401, "invalid_code", "invalid_code")
	// What was denied is spent as well.
	w.google.Fail(idp.Faults{Error: "access_denied"})
	query := b.begin("google", "")
	cookies := maps.Clone(b.cookies)
	b.refused(query, 403, "provider_denied", "denied")
	b.cookies = cookies
	w.google.Fail(idp.Faults{})
	b.refused(with(w.t, with(w.t, query, "error", ""), "code", "x"), 400, "invalid_state", "state_reused")
	// Nothing of all that has opened an account; now one is.
	res := b.finish("google", b.begin("google", ""), 200, "")
	if me := w.do(call{op: opMe, token: res.field(w.t, "token")}, 200); me.field(w.t, "user", "username") != who.Name {
		w.t.Errorf("signed in as %v", me)
	}
}

// emails: an address alone opens nothing.
func (w *providerWalk) emails() {
	owner := register(w.t, w.c.urls[0])
	thief := w.somebody()
	thief.Email = strings.ToUpper(owner.username) + "@example.com"
	w.google.Set(thief)
	b := w.browser()
	b.refused(b.begin("google", ""), 409, "email_in_use", "email_in_use")
	if v := landed(w.t, b.finish("google", b.begin("google", "fragment"), 302, ""), "#"); v.Get("error") != "email_in_use" || v.Get("token") != "" {
		w.t.Errorf("an address in use, and the page learns %v", v)
	}
	thief.Email, thief.Unverified = thief.Name+"@example.org", true
	w.google.Set(thief)
	b.refused(b.begin("google", ""), 409, "email_not_verified", "email_not_verified")
	// A disabled account stays shut, whoever vouches for its user.
	who := w.somebody()
	code := landed(w.t, b.finish("google", b.begin("google", "code"), 302, ""), "?").Get("code")
	w.c.operate(w.t, 1, "user", "disable", who.Name)
	w.do(call{op: opExchange, body: object{"code": code}, code: "forbidden"}, 403)
	if v := landed(w.t, b.finish("google", b.begin("google", "code"), 302, ""), "?"); v.Get("code") != "" || v.Get("error") == "" {
		w.t.Errorf("a disabled user signs in: %v", v)
	}
}

// links: identities come and go, and an account keeps a way in.
func (w *providerWalk) links() {
	mine := w.somebody()
	user := register(w.t, w.c.urls[1])
	b := w.browser()
	res := b.finish("google", b.link("google", user.token), 200, "")
	if res.field(w.t, "provider") != "google" || res.field(w.t, "subject") != mine.Subject {
		w.t.Errorf("linked %v", res)
	}
	for range w.c.urls {
		if list := w.do(call{op: "GET /api/v1/auth/identities", token: user.token}, 200); !strings.Contains(string(list.body), mine.Email) {
			w.t.Errorf("identities %v", list)
		}
	}
	res = b.finish("google", b.begin("google", ""), 200, "")
	if me := w.do(call{op: opMe, token: res.field(w.t, "token")}, 200); me.field(w.t, "user", "id") != user.userID {
		w.t.Errorf("signed in as %v", me)
	}
	// It is one account's at a time, and the account has one of a provider.
	thief := register(w.t, w.c.urls[2])
	t := w.browser()
	t.refused(t.link("google", thief.token), 409, "identity_taken", "identity_taken")
	w.somebody()
	b.refused(b.link("google", user.token), 409, "conflict", "conflict")
	w.google.Set(mine)
	// A link is finished by the browser, and for the session, that began it.
	w.browser().refused(b.link("google", user.token), 400, "invalid_state", "state_foreign")
	ended := register(w.t, w.c.urls[0])
	query := b.link("google", ended.token)
	w.do(call{op: "POST /api/v1/auth/logout", token: ended.token}, 204)
	b.refused(query, 401, "session_ended", "session_ended")

	w.do(call{op: opLink, args: []string{"nobody"}, token: user.token, code: "provider_not_configured"}, 404)
	foreign := thief.newKey(w.t, w.c.urls[0], 0, "*").secret
	w.do(call{op: opLink, args: []string{"google"}, key: foreign, code: "forbidden"}, 403)
	w.do(call{op: opUnlink, args: []string{"google"}, key: foreign, code: "forbidden"}, 403)
	w.do(call{op: opUnlink, args: []string{"google"}, token: thief.token, code: "not_found"}, 404)
	w.do(call{op: opUnlink, args: []string{"google"}, token: user.token}, 204)
	w.do(call{op: opUnlink, args: []string{"google"}, token: user.token, code: "not_found"}, 404)
	// An account that a provider made has no password to fall back on.
	w.somebody()
	token := b.finish("google", b.begin("google", ""), 200, "").field(w.t, "token")
	for range w.c.urls {
		w.do(call{op: opUnlink, args: []string{"google"}, token: token, code: "last_sign_in"}, 409)
	}
	w.do(call{op: "POST /api/v1/auth/password", token: token, body: object{"new_password": "nine lamps by the tide"}}, 204)
	w.do(call{op: opUnlink, args: []string{"google"}, token: token}, 204)
}

// races: of one sign-in's callbacks at all nodes at once one wins, and of one code's exchanges.
func (w *providerWalk) races() {
	won := func(r request, good int) response {
		w.t.Helper()
		var (
			mu     sync.Mutex
			racers sync.WaitGroup
			wins   []response
		)
		for i := range 2 * len(w.c.urls) {
			racers.Go(func() {
				r := r
				r.address = newAddress()
				res, err := send(w.c.urls[i%len(w.c.urls)], r)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err != nil:
					w.t.Error(err)
				case res.status == good:
					wins = append(wins, res)
				case res.status != http.StatusBadRequest && res.status != http.StatusUnauthorized:
					w.t.Errorf("one of many: %v", res)
				}
			})
		}
		racers.Wait()
		if len(wins) != 1 {
			w.t.Fatalf("%d won", len(wins))
		}
		return wins[0]
	}
	for range 5 {
		w.somebody()
		b := w.browser()
		query := b.begin("google", "code")
		var cookie string
		for name, value := range b.cookies {
			cookie = name + "=" + value
		}
		res := won(request{path: "/api/v1/auth/google/callback" + query, header: map[string]string{"Cookie": cookie}}, http.StatusFound)
		code := landed(w.t, res, "?").Get("code")
		won(request{method: "POST", path: "/api/v1/auth/exchange", body: object{"code": code}}, http.StatusOK)
	}
}

// audited finds every reason of a refusal in the audit log.
func (w *providerWalk) audited() {
	w.t.Helper()
	eventually(w.t, readyWithin, "every refusal is audited", func() error {
		log := w.c.operate(w.t, 2, "audit", "--event", "oauth.failed", "--limit", "1000", "--output", "json")
		found := map[string]bool{}
		for line := range strings.Lines(log) {
			var e struct{ Detail map[string]string }
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				return fmt.Errorf("%s: %w", line, err)
			}
			found[e.Detail["reason"]] = true
		}
		for _, reason := range slices.Sorted(maps.Keys(w.reasons)) {
			if !found[reason] {
				return fmt.Errorf("no %s among %v", reason, slices.Sorted(maps.Keys(found)))
			}
		}
		return nil
	})
}

// noSecrets looks for what the providers gave, and got, in the nodes' logs and the audit log.
func (w *providerWalk) noSecrets() {
	w.t.Helper()
	text := w.c.logs() + w.c.operate(w.t, 1, "audit", "--limit", "2000", "--output", "json")
	for _, server := range []*idp.Server{w.google, w.github} {
		for _, secret := range server.Secrets() {
			if secret != "" && strings.Contains(text, secret) {
				w.t.Error("a provider's secret is in a log")
			}
		}
	}
}
