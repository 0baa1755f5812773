package authapi_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"sluice/authapi"
	"sluice/raftfsm/state"
)

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// signHS256 signs a header and claims as they are.
func signHS256(secret []byte, header, claims string) string {
	text := b64([]byte(header)) + "." + b64([]byte(claims))
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(text))
	return text + "." + b64(h.Sum(nil))
}

const (
	testUser    = "usr_01kjvktcgrkn81sjjj0jsgrq24"
	testSession = "ses_01kjvktcgrkn81sjjj0jsgrq24"
)

// tokenBench is a server with three known signing keys, one of each algorithm, of which HS256 signs.
type tokenBench struct {
	*edge
	sealer authapi.Sealer
	secret []byte // of HS256
	hs     state.SigningKey
	ed, es state.SigningKey
}

func newTokenBench(t testing.TB) *tokenBench {
	t.Helper()
	cfg, cluster, _, clock := edgeConfig(func(cfg *authapi.Config) { cfg.Auth.Argon2 = cheapArgon2 })
	srv, err := authapi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Shutdown(context.Background()); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	})
	b := &tokenBench{sealer: cfg.Sealer, edge: &edge{srv: srv, cluster: cluster, clock: clock}}
	for alg, into := range map[string]*state.SigningKey{"EdDSA": &b.ed, "ES256": &b.es} {
		if *into, err = authapi.GenerateSigningKey(cfg.Sealer, alg, start, start); err != nil {
			t.Fatal(err)
		}
	}
	b.secret = []byte("0123456789abcdef0123456789abcdef")
	b.hs = state.SigningKey{ID: "00112233445566ff", Algorithm: "HS256", CreatedAt: start.UnixMilli(), SignsFrom: start.UnixMilli()}
	if b.hs.SealedSecret, err = cfg.Sealer.Seal(authapi.SigningKeyPurpose(b.hs.ID), b.secret); err != nil {
		t.Fatal(err)
	}
	for _, k := range []state.SigningKey{b.ed, b.es, b.hs} {
		cluster.PutSigningKey(k)
	}
	return b
}

// payload makes claims; change has pairs of name and value, nil to leave one out.
func payload(change ...any) string {
	claims := map[string]any{
		"iss": "sluice", "aud": []string{"sluice"}, "sub": testUser, "sid": testSession, "jti": "tok_1", "org": "org_1",
		"iat": start.Unix(), "exp": start.Unix() + 3600,
	}
	for i := 0; i < len(change); i += 2 {
		if change[i+1] == nil {
			delete(claims, change[i].(string))
		} else {
			claims[change[i].(string)] = change[i+1]
		}
	}
	return encode(claims)
}

func TestVerify_Good(t *testing.T) {
	t.Parallel()
	b := newTokenBench(t)
	head := fmt.Sprintf(`{"alg":"HS256","kid":%q,"typ":"at+jwt"}`, b.hs.ID)
	for name, token := range map[string]string{
		"plain":                       signHS256(b.secret, head, payload()),
		"aud as a string":             signHS256(b.secret, head, payload("aud", "sluice")),
		"unknown claim":               signHS256(b.secret, head, payload("extra", 1)),
		"nbf now":                     signHS256(b.secret, head, payload("nbf", start.Unix())),
		"issued by a clock ahead":     signHS256(b.secret, head, payload("iat", start.Unix()+29)),
		"one second left":             signHS256(b.secret, head, payload("exp", start.Unix()+1)),
		"as long as it may be":        signHS256(b.secret, head, payload("exp", start.Unix()+24*3600)),
		"issued by the server itself": issue(t, b),
	} {
		cl, err := b.srv.VerifyToken([]byte(token), start)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if cl.UserID != testUser || cl.SessionID != testSession || cl.OrganizationID != "org_1" || cl.TokenID == "" || cl.ExpiresAt <= start.UnixMilli() {
			t.Errorf("%s: claims %+v", name, cl)
		}
	}
}

func issue(t testing.TB, b *tokenBench) string {
	t.Helper()
	token, err := b.srv.IssueToken(testUser, testSession, "org_1")
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestVerify_Attacks(t *testing.T) {
	t.Parallel()
	b := newTokenBench(t)
	kid := b.hs.ID
	head := fmt.Sprintf(`{"alg":"HS256","kid":%q,"typ":"at+jwt"}`, kid)
	good := signHS256(b.secret, head, payload())
	parts := strings.Split(good, ".")
	header := func(s string) string { return signHS256(b.secret, s, payload()) }
	with := func(change ...any) string { return signHS256(b.secret, head, payload(change...)) }
	// The public keys as anybody can get them, misused as HMAC secrets.
	edPublic, esPublic := b.ed.Public, b.es.Public
	edKey, err := x509.ParsePKIXPublicKey(edPublic)
	if err != nil {
		t.Fatal(err)
	}
	edRaw := []byte(edKey.(ed25519.PublicKey))
	edHead := fmt.Sprintf(`{"alg":"EdDSA","kid":%q,"typ":"at+jwt"}`, b.ed.ID)
	esHead := fmt.Sprintf(`{"alg":"ES256","kid":%q,"typ":"at+jwt"}`, b.es.ID)
	mac512 := func() string {
		text := b64([]byte(strings.Replace(head, "HS256", "HS512", 1))) + "." + parts[1]
		h := hmac.New(sha512.New, b.secret)
		h.Write([]byte(text))
		return text + "." + b64(h.Sum(nil))
	}
	ownEd := func() string { // signed by a key of the attacker's
		_, private, _ := ed25519.GenerateKey(nil)
		text := b64([]byte(edHead)) + "." + parts[1]
		return text + "." + b64(ed25519.Sign(private, []byte(text)))
	}
	ownES := func() string {
		private, _ := ecdsa.GenerateKey(elliptic.P256(), nil)
		tok := jwt.New(jwt.SigningMethodES256)
		text := b64([]byte(esHead)) + "." + parts[1]
		sig, err := tok.Method.Sign(text, private)
		if err != nil {
			t.Fatal(err)
		}
		return text + "." + b64(sig)
	}
	lastBit := func(s string) string { // another spelling of the same bytes, where the last character has spare bits
		const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
		i := strings.IndexByte(alphabet, s[len(s)-1])
		return s[:len(s)-1] + string(alphabet[i^1])
	}
	zeroSig := b64(make([]byte, 64))
	invalid, expired, unknown := authapi.ErrTokenInvalid, authapi.ErrTokenExpired, authapi.ErrUnknownKey
	for _, c := range []struct {
		name, token string
		want        error
	}{
		// Form.
		{"empty", "", invalid},
		{"one part", "abc", invalid},
		{"two parts", parts[0] + "." + parts[1], invalid},
		{"four parts", good + ".x", invalid},
		{"five parts, as of JWE", good + ".x.y", invalid},
		{"empty header", "." + parts[1] + "." + parts[2], invalid},
		{"empty claims", parts[0] + ".." + parts[2], invalid},
		{"empty signature", parts[0] + "." + parts[1] + ".", invalid},
		{"periods only", strings.Repeat(".", 2000), invalid},
		{"too long", good + strings.Repeat("A", 2048), invalid},
		{"too long but signed", with("pad", strings.Repeat("x", 2048)), invalid},
		{"padding", good + "=", invalid},
		{"line break at the end", good + "\n", invalid},
		{"line break inside the signature", parts[0] + "." + parts[1] + "." + parts[2][:9] + "\n" + parts[2][9:], invalid},
		{"line break inside the claims", parts[0] + "." + parts[1][:9] + "\r\n" + parts[1][9:] + "." + parts[2], invalid},
		{"space before", " " + good, invalid},
		{"NUL", good + "\x00", invalid},
		{"standard alphabet", strings.NewReplacer("-", "+", "_", "/").Replace(good) + "+", invalid},
		{"not ASCII", good[:20] + "é" + good[20:], invalid},
		{"another spelling of the signature", lastBit(good), invalid},
		{"another spelling of the header", lastBit(parts[0]) + "." + parts[1] + "." + parts[2], invalid},
		// Algorithm.
		{"none", b64([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + parts[1] + ".x", invalid},
		{"none with the kid", b64([]byte(strings.Replace(head, "HS256", "none", 1))) + "." + parts[1] + ".AA", invalid},
		{"None", b64([]byte(strings.Replace(head, "HS256", "None", 1))) + "." + parts[1] + ".AA", invalid},
		{"nOnE", b64([]byte(strings.Replace(head, "HS256", "nOnE", 1))) + "." + parts[1] + ".AA", invalid},
		{"lower case", header(strings.Replace(head, "HS256", "hs256", 1)), invalid},
		{"no algorithm", header(fmt.Sprintf(`{"kid":%q,"typ":"at+jwt"}`, kid)), invalid},
		{"algorithm is a number", header(strings.Replace(head, `"HS256"`, `256`, 1)), invalid},
		{"HS512 with the same secret", mac512(), invalid},
		{"HS384", header(strings.Replace(head, "HS256", "HS384", 1)), invalid},
		{"RS256", header(strings.Replace(head, "HS256", "RS256", 1)), invalid},
		{"EdDSA under the kid of HS256", header(strings.Replace(head, "HS256", "EdDSA", 1)), invalid},
		{"HS256 under the kid of EdDSA, its public key as secret", signHS256(edPublic, strings.Replace(edHead, "EdDSA", "HS256", 1), payload()), invalid},
		{"the same with the raw key", signHS256(edRaw, strings.Replace(edHead, "EdDSA", "HS256", 1), payload()), invalid},
		{"header of EdDSA, signature of HS256 by its public key", signHS256(edPublic, edHead, payload()), invalid},
		{"the same with the raw key and the header of EdDSA", signHS256(edRaw, edHead, payload()), invalid},
		{"header of ES256, signature of HS256 by its public key", signHS256(esPublic, esHead, payload()), invalid},
		{"the same with PEM", signHS256([]byte("-----BEGIN PUBLIC KEY-----\n"+base64.StdEncoding.EncodeToString(esPublic)+"\n-----END PUBLIC KEY-----\n"), esHead, payload()), invalid},
		{"ES256 with r = s = 0", b64([]byte(esHead)) + "." + parts[1] + "." + zeroSig, invalid},
		{"EdDSA of zeros", b64([]byte(edHead)) + "." + parts[1] + "." + zeroSig, invalid},
		{"EdDSA by another key", ownEd(), invalid},
		{"ES256 by another key", ownES(), invalid},
		{"the HS256 secret under the header of ES256", signHS256(b.secret, esHead, payload()), invalid},
		// Key.
		{"no kid", header(`{"alg":"HS256","typ":"at+jwt"}`), invalid},
		{"empty kid", header(`{"alg":"HS256","kid":"","typ":"at+jwt"}`), invalid},
		{"kid that nobody has", header(`{"alg":"HS256","kid":"ffffffffffffffff","typ":"at+jwt"}`), unknown},
		{"kid in capitals", header(strings.Replace(head, kid, strings.ToUpper(kid), 1)), invalid},
		{"kid is a path", header(`{"alg":"HS256","kid":"../../../dev/null","typ":"at+jwt"}`), invalid},
		{"kid is SQL", header(`{"alg":"HS256","kid":"' UNION SELECT 1 --","typ":"at+jwt"}`), invalid},
		{"kid is a number", header(`{"alg":"HS256","kid":112233445566,"typ":"at+jwt"}`), invalid},
		{"kid is an array", header(`{"alg":"HS256","kid":["00112233445566ff"],"typ":"at+jwt"}`), invalid},
		{"kid twice", header(fmt.Sprintf(`{"alg":"HS256","kid":"ffffffffffffffff","kid":%q,"typ":"at+jwt"}`, kid)), invalid},
		{"alg twice", header(fmt.Sprintf(`{"alg":"none","alg":"HS256","kid":%q,"typ":"at+jwt"}`, kid)), invalid},
		{"empty secret", signHS256(nil, head, payload()), invalid},
		{"secret of zeros", signHS256(make([]byte, 32), head, payload()), invalid},
		{"secret is the kid", signHS256([]byte(kid), head, payload()), invalid},
		// Other header members.
		{"jku", header(fmt.Sprintf(`{"alg":"HS256","jku":"https://evil.example/jwks.json","kid":%q,"typ":"at+jwt"}`, kid)), invalid},
		{"jwk", header(fmt.Sprintf(`{"alg":"HS256","jwk":{"kty":"oct","k":"AA"},"kid":%q,"typ":"at+jwt"}`, kid)), invalid},
		{"x5u", header(fmt.Sprintf(`{"alg":"HS256","kid":%q,"typ":"at+jwt","x5u":"https://evil.example"}`, kid)), invalid},
		{"x5c", header(fmt.Sprintf(`{"alg":"HS256","kid":%q,"typ":"at+jwt","x5c":["AA"]}`, kid)), invalid},
		{"crit", header(fmt.Sprintf(`{"alg":"HS256","crit":["exp"],"kid":%q,"typ":"at+jwt"}`, kid)), invalid},
		{"b64 false", header(fmt.Sprintf(`{"alg":"HS256","b64":false,"crit":["b64"],"kid":%q,"typ":"at+jwt"}`, kid)), invalid},
		{"zip", header(fmt.Sprintf(`{"alg":"HS256","kid":%q,"typ":"at+jwt","zip":"DEF"}`, kid)), invalid},
		{"typ JWT", header(strings.Replace(head, "at+jwt", "JWT", 1)), invalid},
		{"no typ", header(fmt.Sprintf(`{"alg":"HS256","kid":%q}`, kid)), invalid},
		{"typ of another kind of token", header(strings.Replace(head, "at+jwt", "logout+jwt", 1)), invalid},
		{"spaces in the header", header(strings.Replace(head, ":", ": ", 1)), invalid},
		{"escapes in the header", header(strings.Replace(head, "HS256", `HS\u00325\u0036`, 1)), invalid},
		{"header is an array", header(`["HS256"]`), invalid},
		{"header is null", header(`null`), invalid},
		{"header is not JSON", header(`{`), invalid},
		// Signature.
		{"claims of another token", parts[0] + "." + b64([]byte(payload("sub", "usr_admin"))) + "." + parts[2], invalid},
		{"signature cut", good[:len(good)-4], invalid},
		{"signature of zeros", parts[0] + "." + parts[1] + "." + b64(make([]byte, 32)), invalid},
		{"signature doubled", parts[0] + "." + parts[1] + "." + parts[2] + parts[2], invalid},
		// Claims, rightly signed.
		{"claims are not JSON", signHS256(b.secret, head, `{"sub":`), invalid},
		{"claims are an array", signHS256(b.secret, head, `[]`), invalid},
		{"claims are null", signHS256(b.secret, head, `null`), invalid},
		{"no exp", with("exp", nil), invalid},
		{"exp null", signHS256(b.secret, head, strings.Replace(payload(), fmt.Sprint(start.Unix()+3600), "null", 1)), invalid},
		{"exp 0", with("exp", 0), expired},
		{"exp negative", with("exp", -1), expired},
		{"exp is text", with("exp", "tomorrow"), invalid},
		{"exp is a number in text", with("exp", fmt.Sprint(start.Unix()+3600)), invalid},
		{"exp has a fraction", with("exp", float64(start.Unix()+3600)+0.5), invalid},
		{"exp is now", with("exp", start.Unix(), "iat", start.Unix()-60), expired},
		{"expired", with("exp", start.Unix()-1, "iat", start.Unix()-60), expired},
		{"expired and of another issuer", with("exp", start.Unix()-1, "iat", start.Unix()-60, "iss", "x"), invalid},
		{"lives for years", with("exp", start.Unix()+10*365*86400), invalid},
		{"lives a second too long", with("exp", start.Unix()+24*3600+1), invalid},
		{"exp beyond all numbers", signHS256(b.secret, head, strings.Replace(payload(), fmt.Sprint(start.Unix()+3600), "1e400", 1)), invalid},
		{"exp before iat", with("exp", start.Unix()+10, "iat", start.Unix()+20), invalid},
		{"no iat", with("iat", nil), invalid},
		{"iat in the future", with("iat", start.Unix()+31), invalid},
		{"iat is text", with("iat", "now"), invalid},
		{"nbf in the future", with("nbf", start.Unix()+1), invalid},
		{"no iss", with("iss", nil), invalid},
		{"another iss", with("iss", "https://evil.example"), invalid},
		{"iss is an array", with("iss", []string{"sluice"}), invalid},
		{"no aud", with("aud", nil), invalid},
		{"empty aud", with("aud", []string{}), invalid},
		{"another aud", with("aud", "other"), invalid},
		{"two auds", with("aud", []string{"sluice", "other"}), invalid},
		{"aud is a number", with("aud", 5), invalid},
		{"no sub", with("sub", nil), invalid},
		{"empty sub", with("sub", ""), invalid},
		{"sub is a key", with("sub", "key_01kjvktcgrkn81sjjj0jsgrq24"), invalid},
		{"sub is a number", with("sub", 5), invalid},
		{"no sid", with("sid", nil), invalid},
		{"sid of another form", with("sid", "session"), invalid},
		{"no jti", with("jti", nil), invalid},
		{"empty jti", with("jti", ""), invalid},
	} {
		if _, err := b.srv.VerifyToken([]byte(c.token), start); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// A token that was good once is remembered, but not beyond its own time or its key's.
func TestVerify_RemembersNoLongerThanItHolds(t *testing.T) {
	t.Parallel()
	b := newTokenBench(t)
	token := []byte(signHS256(b.secret, fmt.Sprintf(`{"alg":"HS256","kid":%q,"typ":"at+jwt"}`, b.hs.ID), payload()))
	for range 3 {
		if _, err := b.srv.VerifyToken(token, start); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.srv.VerifyToken(token, start.Add(time.Hour)); !errors.Is(err, authapi.ErrTokenExpired) {
		t.Errorf("after its time: %v", err)
	}
	next, err := authapi.GenerateSigningKey(b.sealer, "HS256", start, start)
	if err != nil {
		t.Fatal(err)
	}
	until := start.Add(time.Minute)
	if _, err := b.cluster.Propose(t.Context(), [16]byte{1}, state.PutSigningKey{Key: next, PreviousID: b.hs.ID, PreviousVerifiesTo: until.UnixMilli()}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.srv.VerifyToken(token, until.Add(-time.Millisecond)); err != nil {
		t.Errorf("before its key's end: %v", err)
	}
	if _, err := b.srv.VerifyToken(token, until); !errors.Is(err, authapi.ErrTokenInvalid) {
		t.Errorf("after its key's end: %v", err)
	}
}

func TestVerify_KeysOverTime(t *testing.T) {
	t.Parallel()
	for _, alg := range []string{"HS256", "EdDSA", "ES256"} {
		t.Run(alg, func(t *testing.T) {
			t.Parallel()
			e := newAccounts(t, func(cfg *authapi.Config) {
				cfg.Auth.SigningAlgorithm, cfg.Auth.SigningRotation = alg, 24*time.Hour
				cfg.Auth.RefreshTTL = 40 * 24 * time.Hour
			})
			p := e.register()
			kidOf := func(token string) string {
				head, _, _ := strings.Cut(token, ".")
				b, _ := base64.RawURLEncoding.DecodeString(head)
				var h struct{ Alg, Kid, Typ string }
				if err := json.Unmarshal(b, &h); err != nil || h.Alg != alg || h.Typ != "at+jwt" || len(h.Kid) != 16 {
					t.Fatalf("header %s", b)
				}
				return h.Kid
			}
			maintain := func() {
				t.Helper()
				if err := e.srv.Maintain(t.Context()); err != nil {
					t.Fatalf("Maintain: %v", err)
				}
			}
			first := kidOf(p.token)
			maintain()
			if keys, _ := e.cluster.SigningKeys(); len(keys) != 1 {
				t.Fatalf("%d keys before any is due", len(keys))
			}
			e.clock.Advance(24*time.Hour + time.Second)
			maintain()
			maintain()
			keys, _ := e.cluster.SigningKeys()
			if len(keys) != 2 {
				t.Fatalf("%d keys after a rotation", len(keys))
			}
			// Published, and not signing yet.
			old := e.login(p)["token"].(string)
			if kidOf(old) != first {
				t.Error("a new key signs at once")
			}
			e.clock.Advance(authapi.KeyLead)
			fresh := e.login(p)["token"].(string)
			if kidOf(fresh) == first {
				t.Error("the new key does not sign when its time has come")
			}
			for _, token := range []string{old, fresh} {
				e.want(e.send("GET", "/api/v1/auth/me", token, nil), 200, "")
			}
			// The old key verifies to the end of its last token, and no longer.
			e.clock.Advance(time.Hour - time.Minute)
			e.want(e.send("GET", "/api/v1/auth/me", fresh, nil), 200, "")
			e.clock.Advance(2 * time.Minute)
			if _, err := e.srv.VerifyToken([]byte(old), e.clock.Now()); !errors.Is(err, authapi.ErrTokenExpired) && !errors.Is(err, authapi.ErrTokenInvalid) {
				t.Errorf("token of the old key: %v", err)
			}
			set := e.do("GET", "/.well-known/jwks.json", "")
			e.want(set, 200, "")
			wantHeaders(t, set)
			checkJWKS(t, set, alg, fresh)
		})
	}
}

// checkJWKS verifies a token with what the document says.
func checkJWKS(t *testing.T, a answer, alg, token string) {
	t.Helper()
	var set struct{ Keys []map[string]string }
	if err := json.Unmarshal([]byte(a.body), &set); err != nil {
		t.Fatal(err)
	}
	if alg == "HS256" {
		if len(set.Keys) != 0 {
			t.Errorf("a symmetric key is published: %s", a.body)
		}
		return
	}
	part := func(s string) []byte {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	parsed, _, err := jwt.NewParser().ParseUnverified(token, jwt.MapClaims{})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range set.Keys {
		if k["kid"] != parsed.Header["kid"] {
			continue
		}
		var key any
		switch k["kty"] {
		case "OKP":
			key = ed25519.PublicKey(part(k["x"]))
		case "EC":
			key = &ecdsa.PublicKey{Curve: elliptic.P256(), X: new(big.Int).SetBytes(part(k["x"])), Y: new(big.Int).SetBytes(part(k["y"]))}
		}
		if k["alg"] != alg || k["use"] != "sig" || k["d"] != "" || k["k"] != "" {
			t.Errorf("key %v", k)
		}
		text := token[:strings.LastIndexByte(token, '.')]
		if err := parsed.Method.Verify(text, part(token[len(text)+1:]), key); err != nil {
			t.Errorf("the published key does not verify: %v", err)
		}
		return
	}
	t.Errorf("the signing key is not in %s", a.body)
}

func TestMetadata(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, func(cfg *authapi.Config) { cfg.PublicURL = "https://api.example.com" })
	a := e.do("GET", "/.well-known/oauth-authorization-server", "")
	e.want(a, 200, "")
	if m := a.object(t); m["issuer"] != "https://api.example.com" || m["jwks_uri"] != "https://api.example.com/.well-known/jwks.json" {
		t.Errorf("metadata = %s", a.body)
	}
	p := e.register()
	claims := jwt.MapClaims{}
	if _, _, err := jwt.NewParser().ParseUnverified(p.token, claims); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"exp", "iat", "sub", "iss", "aud", "sid", "jti"} {
		if claims[name] == nil {
			t.Errorf("the token has no %s: %v", name, claims)
		}
	}
	if claims["iss"] != "https://api.example.com" || claims["sub"] != p.id {
		t.Errorf("claims = %v", claims)
	}
}

func TestMaintain(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, func(cfg *authapi.Config) { cfg.Auth.AuditRetention = 90 * 24 * time.Hour })
	secrets, err := e.cluster.ClusterSecrets()
	if err != nil || secrets == nil || len(secrets.BucketKey) != 16 || secrets.ClusterID == "" {
		t.Fatalf("secrets = %+v, %v", secrets, err)
	}
	if err := e.srv.CheckSecrets(); err != nil {
		t.Errorf("CheckSecrets: %v", err)
	}
	before := e.cluster.Index()
	for range 10 {
		if err := e.srv.Maintain(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := e.cluster.Index(); got != before {
		t.Errorf("maintenance with nothing due made %d log entries", got-before)
	}
	e.clock.Advance(time.Minute)
	if err := e.srv.Maintain(t.Context()); err != nil {
		t.Fatal(err)
	}
	prunes := e.cluster.Prunes()
	now := e.clock.Now()
	want := state.Prune{
		IdempotencyBefore: now.Add(-24 * time.Hour).UnixMilli(), SessionsBefore: now.Add(-48 * time.Hour).UnixMilli(),
		AuditBefore: now.Add(-90 * 24 * time.Hour).UnixMilli(), RequestsBefore: now.Add(-time.Hour).UnixMilli(), Max: 1000,
	}
	if len(prunes) != 2 || prunes[1] != want {
		t.Errorf("prunes = %+v, want the second %+v", prunes, want)
	}

	// By command, and not again before it is in force.
	if _, err := e.srv.RotateSigningKey(t.Context(), authapi.Operator{}); err != nil {
		t.Fatalf("RotateSigningKey: %v", err)
	}
	if _, err := e.srv.RotateSigningKey(t.Context(), authapi.Operator{}); problemCode(err) != "conflict" {
		t.Errorf("a second rotation at once: %v", err)
	}
	// Nor while four keys verify.
	for range 2 {
		e.clock.Advance(2 * authapi.KeyLead)
		if _, err := e.srv.RotateSigningKey(t.Context(), authapi.Operator{}); err != nil {
			t.Fatalf("RotateSigningKey: %v", err)
		}
	}
	e.clock.Advance(2 * authapi.KeyLead)
	if _, err := e.srv.RotateSigningKey(t.Context(), authapi.Operator{}); problemCode(err) != "conflict" {
		t.Errorf("a fifth key: %v", err)
	}
}

// Before the first leader has made the secrets, a node cannot decide, and says so.
func TestBeforeTheClusterHasSecrets(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(cfg *authapi.Config) { cfg.Auth.Argon2 = cheapArgon2; cfg.Limit.Anonymous = rule(1e6) })
	reg := object{"username": "early", "email": "early@example.com", "password": goodPassword}
	e.want(e.send("POST", "/api/v1/auth/register", "", reg), 503, "cluster_unavailable")
	e.want(e.doRefresh("rt_x"), 503, "cluster_unavailable")
	e.want(e.do("GET", "/.well-known/jwks.json", ""), 200, "")
	if err := e.srv.CheckSecrets(); err != nil {
		t.Errorf("CheckSecrets: %v", err)
	}
}

func TestCheckSecrets_AnotherKey(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	cfg, _, _, _ := edgeConfig(nil)
	cfg.State, cfg.Cluster = e.cluster, e.cluster
	srv, err := authapi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Shutdown(t.Context())
	if err := srv.CheckSecrets(); !errors.Is(err, authapi.ErrSecretsKey) {
		t.Errorf("CheckSecrets = %v, want ErrSecretsKey", err)
	}
}

func FuzzVerifyToken(f *testing.F) {
	b := newTokenBench(f)
	good := signHS256(b.secret, fmt.Sprintf(`{"alg":"HS256","kid":%q,"typ":"at+jwt"}`, b.hs.ID), payload())
	f.Add([]byte(good))
	f.Add([]byte(signHS256(b.secret, `{"alg":"none"}`, payload())))
	f.Add([]byte("..."))
	f.Fuzz(func(t *testing.T, raw []byte) {
		cl, err := b.srv.VerifyToken(raw, start)
		if err == nil && !bytes.Equal(raw, []byte(good)) {
			t.Fatalf("%q verifies as %+v", raw, cl)
		}
	})
}

func BenchmarkVerifyToken(b *testing.B) {
	bench := newTokenBench(b)
	token := []byte(issue(b, bench))
	b.Run("seen", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := bench.srv.VerifyToken(token, start); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("new", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			b.StopTimer()
			token := []byte(issue(b, bench))
			b.StartTimer()
			if _, err := bench.srv.VerifyToken(token, start); err != nil {
				b.Fatal(err)
			}
		}
	})
}
