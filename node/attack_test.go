package node_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"sluice/node"
	"sluice/node/nodetest"
	"sluice/raftfsm/state"
)

// callers is a cluster as its clients see it.
type callers struct {
	*nodetest.Cluster
	t      testing.TB
	client http.Client
}

func startForCallers(t testing.TB, n int) *callers {
	t.Helper()
	c := &callers{t: t, client: http.Client{Transport: &http.Transport{}, Timeout: 20 * time.Second}}
	t.Cleanup(c.client.CloseIdleConnections)
	c.Cluster = nodetest.Start(t, n, nodetest.WithConfig(func(_ int, cfg *node.Config) {
		cfg.TrustedProxies = []string{"127.0.0.0/8"}
		cfg.Limits.Anonymous.Limit, cfg.Limits.User.Limit, cfg.Limits.APIKey.Limit = 1e6, 1e6, 1e6
	}))
	return c
}

type reply struct {
	status int
	header http.Header
	body   []byte
}

// field is a text in a reply's JSON.
func (c *callers) field(r reply, path ...string) string {
	c.t.Helper()
	var v any
	if err := json.Unmarshal(r.body, &v); err != nil {
		c.t.Fatalf("body %q: %v", r.body, err)
	}
	for _, name := range path {
		v = v.(map[string]any)[name]
	}
	text, ok := v.(string)
	if !ok {
		c.t.Fatalf("no %q in %s", path, r.body)
	}
	return text
}

// call sends a request to the i-th node: JSON, or a form where body is url.Values. headers are pairs.
func (c *callers) call(i int, method, path string, body any, headers ...string) reply {
	c.t.Helper()
	var payload io.Reader
	kind := ""
	switch b := body.(type) {
	case nil:
	case url.Values:
		payload, kind = strings.NewReader(b.Encode()), "application/x-www-form-urlencoded"
	default:
		data, err := json.Marshal(b)
		if err != nil {
			c.t.Fatal(err)
		}
		payload, kind = bytes.NewReader(data), "application/json"
	}
	req, err := http.NewRequestWithContext(c.t.Context(), method, "http://"+c.Members[i].Node.HTTPAddr().String()+path, payload)
	if err != nil {
		c.t.Fatal(err)
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	for j := 0; j+1 < len(headers); j += 2 {
		req.Header.Set(headers[j], headers[j+1])
	}
	resp, err := c.client.Do(req)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	return reply{resp.StatusCode, resp.Header, data}
}

func (c *callers) want(r reply, status int) reply {
	c.t.Helper()
	if r.status != status {
		c.t.Fatalf("status %d, want %d: %s", r.status, status, r.body)
	}
	return r
}

// account is a user registered at the i-th node.
func (c *callers) account(i int, name string) (token, refresh, org string) {
	c.t.Helper()
	r := c.want(c.call(i, "POST", "/api/v1/auth/register", map[string]string{"username": name, "email": name + "@example.com", "password": "seven lamps by the tide"}), 201)
	return c.field(r, "token"), c.field(r, "refresh_token"), c.field(r, "organization", "id")
}

func (c *callers) key(i int, token, org string, scopes ...string) (id, secret string) {
	c.t.Helper()
	r := c.want(c.call(i, "POST", "/api/v1/api-keys", map[string]any{"name": "k", "organization_id": org, "scopes": scopes}, "Authorization", "Bearer "+token), 201)
	return c.field(r, "id"), c.field(r, "key")
}

func b64(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

func mac(h func() hash.Hash, secret []byte, header, claims string) string {
	text := b64(header) + "." + b64(claims)
	m := hmac.New(h, secret)
	m.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

type forgery struct{ name, token string }

// forgeries are tokens that must not pass, made by somebody who knows even the signing key of the cluster where claims are
// what is wrong.
func forgeries(t testing.TB, c *callers, token, refresh string) (good string, list []forgery) {
	t.Helper()
	keys, err := c.Members[0].Node.State().SigningKeys()
	if err != nil || len(keys) != 1 || keys[0].Algorithm != "HS256" {
		t.Fatalf("signing keys %+v, %v", keys, err)
	}
	kid := keys[0].ID
	secret, err := c.Members[0].Node.Sealer().Open("signing-key:"+kid, keys[0].SealedSecret)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(token, ".")
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	claims := func(change ...any) string {
		var m map[string]any
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(change); i += 2 {
			if m[change[i].(string)] = change[i+1]; change[i+1] == nil {
				delete(m, change[i].(string))
			}
		}
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	head := func(alg string, more string) string {
		return fmt.Sprintf(`{"alg":%q,%s"kid":%q,"typ":"at+jwt"}`, alg, more, kid)
	}
	hs := func(header, claims string) string { return mac(sha256.New, secret, header, claims) }
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	es, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edSigned := func(header string) string {
		text := b64(header) + "." + b64(claims())
		return text + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(private, []byte(text)))
	}
	esText := b64(head("ES256", "")) + "." + b64(claims())
	digest := sha256.Sum256([]byte(esText))
	r, s, err := ecdsa.Sign(rand.Reader, es, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	esSigned := esText + "." + base64.RawURLEncoding.EncodeToString(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
	jwk := `"jwk":{"kty":"OKP","crv":"Ed25519","x":"` + base64.RawURLEncoding.EncodeToString(public) + `"},`
	now := time.Now().Unix()
	return hs(head("HS256", ""), claims("jti", "tok_forged")), []forgery{
		{"alg none", b64(head("none", "")) + "." + b64(claims()) + "."},
		{"alg none, signature kept", b64(head("none", "")) + "." + b64(claims()) + "." + parts[2]},
		{"alg nOnE", b64(head("nOnE", "")) + "." + b64(claims()) + ".AA"},
		{"alg HS512", mac(sha512.New, secret, head("HS512", ""), claims())},
		{"alg EdDSA under the kid of HS256", edSigned(head("EdDSA", ""))},
		{"alg ES256 under the kid of HS256", esSigned},
		{"alg RS256 signed by HMAC", hs(head("RS256", ""), claims())},
		{"another secret", mac(sha256.New, []byte("0123456789abcdef0123456789abcdef"), head("HS256", ""), claims())},
		{"secret is the kid", mac(sha256.New, []byte(kid), head("HS256", ""), claims())},
		{"empty secret", mac(sha256.New, nil, head("HS256", ""), claims())},
		{"kid is a path", hs(`{"alg":"HS256","kid":"../../../../dev/null","typ":"at+jwt"}`, claims())},
		{"kid is SQL", hs(`{"alg":"HS256","kid":"x' UNION SELECT 'secret","typ":"at+jwt"}`, claims())},
		{"kid is empty", hs(`{"alg":"HS256","kid":"","typ":"at+jwt"}`, claims())},
		{"kid that nobody has", hs(`{"alg":"HS256","kid":"ffffffffffffffff","typ":"at+jwt"}`, claims())},
		{"jwk of the attacker", edSigned(head("EdDSA", jwk))},
		{"jwk beside the right key", hs(head("HS256", jwk), claims())},
		{"jku", hs(head("HS256", `"jku":"https://evil.example/jwks.json",`), claims())},
		{"x5u", hs(head("HS256", `"x5u":"https://evil.example/cert.pem",`), claims())},
		{"crit", hs(head("HS256", `"crit":["b64"],"b64":false,`), claims())},
		{"typ JWT", hs(strings.Replace(head("HS256", ""), "at+jwt", "JWT", 1), claims())},
		{"expired", hs(head("HS256", ""), claims("iat", now-7200, "exp", now-1))},
		{"without an end", hs(head("HS256", ""), claims("exp", nil))},
		{"lives for years", hs(head("HS256", ""), claims("exp", now+10*365*86400))},
		{"nbf in the future", hs(head("HS256", ""), claims("nbf", now+600))},
		{"iat in the future", hs(head("HS256", ""), claims("iat", now+600))},
		{"another aud", hs(head("HS256", ""), claims("aud", "https://other.example"))},
		{"another aud beside ours", hs(head("HS256", ""), claims("aud", []string{"sluice", "https://other.example"}))},
		{"another iss", hs(head("HS256", ""), claims("iss", "https://evil.example"))},
		{"no iss", hs(head("HS256", ""), claims("iss", nil))},
		{"another user's name on the session", hs(head("HS256", ""), claims("sub", "usr_01kjvktcgrkn81sjjj0jsgrq24"))},
		{"a session that nobody has", hs(head("HS256", ""), claims("sid", "ses_01kjvktcgrkn81sjjj0jsgrq24"))},
		{"claims of another token", parts[0] + "." + b64(claims("sub", "usr_admin")) + "." + parts[2]},
		{"cut off", token[:len(token)-1]},
		{"header alone", parts[0]},
		{"no signature", parts[0] + "." + parts[1]},
		{"empty signature", parts[0] + "." + parts[1] + "."},
		{"signature twice", token + parts[2]},
		{"too long", token + strings.Repeat("A", 8<<10)},
		{"dots", strings.Repeat(".", 4<<10)},
		{"a refresh token", refresh},
	}
}

// Every forged, expired or misdirected token is a 401 on every node, and is in the audit log.
func TestAttack_Tokens(t *testing.T) {
	t.Parallel()
	c := startForCallers(t, 3)
	token, refresh, _ := c.account(0, "ada")
	good, list := forgeries(t, c, token, refresh)
	for i := range c.Members {
		for _, ok := range []string{token, good} { // else what follows would be refused for another reason
			c.want(c.call(i, "GET", "/api/v1/auth/me", nil, "Authorization", "Bearer "+ok), 200)
		}
	}
	refused := func(i int, f forgery, path, id, from string) {
		t.Helper()
		r := c.call(i, "GET", path, nil, "Authorization", "Bearer "+f.token, "X-Request-Id", id, "X-Forwarded-For", from)
		if r.status != 401 || !strings.Contains(r.header.Get("WWW-Authenticate"), `error="invalid_token"`) || c.field(r, "code") != "invalid_credential" {
			t.Errorf("%s at node %d, %s: %d %s", f.name, i, path, r.status, r.body)
		}
	}
	// Each once first, from an address of its own: a node writes a bounded number of events a minute.
	for n, f := range list {
		refused(n%3, f, "/api/v1/auth/me", fmt.Sprint("forged-", n), fmt.Sprint("192.0.2.", n))
	}
	nodetest.WaitFor(t, "an audit record of each", func() error {
		events, _, err := c.Members[1].Node.State().Audit(state.AuditFilter{Event: "credential.failed"}, "", 1000)
		if err != nil {
			return err
		}
		seen := map[string]bool{}
		for _, e := range events {
			if e.Result != "failure" || e.IP == "" {
				return fmt.Errorf("event %+v", e)
			}
			seen[e.RequestID] = true
		}
		for n, f := range list {
			if !seen[fmt.Sprint("forged-", n)] {
				return fmt.Errorf("none of %q", f.name)
			}
		}
		return nil
	})
	for n, f := range list {
		for i := range c.Members {
			refused(i, f, "/api/v1/auth/me", fmt.Sprint("again-", n), "198.51.100.1")
			refused(i, f, "/api/v1/auth/verify", fmt.Sprint("again-", n), "198.51.100.1")
		}
	}
	if r := c.call(1, "GET", "/api/v1/auth/me", nil, "Authorization", "Bearer "+token+strings.Repeat("A", 17<<10)); r.status != 431 {
		t.Errorf("a token longer than the headers may be: %d", r.status)
	}
	c.want(c.call(2, "GET", "/api/v1/auth/me", nil, "Authorization", "Bearer "+token), 200)
}

// What is revoked by holding it at one node is dead at the others with the answer, and introspection there says so.
func TestRevokeAndIntrospect_OverNodes(t *testing.T) {
	t.Parallel()
	c := startForCallers(t, 3)
	token, _, org := c.account(0, "ada")
	_, caller := c.key(1, token, org, "tokens:introspect")
	active := func(i int, credential string) bool {
		t.Helper()
		r := c.want(c.call(i, "POST", "/oauth2/introspect", url.Values{"token": {credential}}, "X-API-Key", caller), 200)
		if string(r.body) == `{"active":false}` {
			return false
		}
		var in struct{ Active bool }
		if err := json.Unmarshal(r.body, &in); err != nil || !in.Active {
			t.Fatalf("introspection at node %d: %s", i, r.body)
		}
		return true
	}
	late := 0
	for round := range 9 {
		at := round % 3
		user, again, _ := c.account(at, fmt.Sprint("user", round))
		_, secret := c.key(at, token, org, "events:read")
		if !active((at+1)%3, secret) || active((at+1)%3, user) {
			t.Errorf("round %d: a key of the organization is not active, or a stranger's token is", round)
		}
		c.want(c.call((at+2)%3, "POST", "/oauth2/revoke", url.Values{"token": {secret}}), 200)
		c.want(c.call((at+2)%3, "POST", "/oauth2/revoke", url.Values{"token": {[]string{user, again}[round%2]}}), 200)
		for i := range c.Members {
			if active(i, secret) {
				late++
			}
			for _, credential := range []string{secret, user} {
				if r := c.call(i, "GET", "/api/v1/auth/verify", nil, "Authorization", "Bearer "+credential); r.status != 401 {
					late++
				}
			}
			if r := c.call(i, "POST", "/api/v1/auth/refresh", map[string]string{"refresh_token": again}); r.status != 401 {
				late++
			}
		}
	}
	// As with every revocation, the wait for the other nodes is bounded.
	if late > 5 {
		t.Errorf("%d looks after a revocation found the token alive", late)
	}
	r := c.want(c.call(2, "GET", "/api/v1/audit-logs?event=token.revoked&format=ndjson&organization_id="+org, nil, "Authorization", "Bearer "+token), 200)
	if n := bytes.Count(r.body, []byte("\n")); n != 9 {
		t.Errorf("%d events of 9 keys: %s", n, r.body)
	}
}

// What nodes saw of a key is in the state within a moment, and shown by any of them.
func TestKeyUsage_OverNodes(t *testing.T) {
	t.Parallel()
	c := startForCallers(t, 3)
	token, _, org := c.account(0, "ada")
	id, secret := c.key(1, token, org, "events:read")
	for i := range 30 {
		c.want(c.call(i%3, "GET", "/api/v1/auth/verify", nil, "X-API-Key", secret, "X-Forwarded-For", "192.0.2.7"), 200)
	}
	nodetest.WaitFor(t, "the first write", func() error {
		usage, err := c.Members[2].Node.State().KeyUsage(id)
		if err != nil || usage[0].Count == 0 {
			return fmt.Errorf("usage %+v, %w", usage, err)
		}
		return nil
	})
	r := c.want(c.call(2, "GET", "/api/v1/api-keys/"+id, nil, "Authorization", "Bearer "+token), 200)
	if at, err := time.Parse(time.RFC3339, c.field(r, "last_used_at")); err != nil || time.Since(at) > time.Minute || c.field(r, "last_used_ip") != "192.0.2.7" {
		t.Errorf("%s, %v", r.body, err)
	}
}
