// Package idp is a provider to sign in with, for tests: OpenID Connect or GitHub's OAuth and API, over real HTTP, with
// faults to choose. Start one with [Start]; [Server.Authorize] does what a browser and its user do there.
package idp

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// The client that the provider knows.
const (
	ClientID     = "sluice-client"
	ClientSecret = "sluice-client-secret"
)

// User is who sits at the browser.
type User struct {
	Subject    string // GitHub: a number
	Name       string // preferred_username, or GitHub's login
	Email      string
	Unverified bool
	NoEmail    bool // the ID token has none; userinfo does
}

// Faults are what the provider does wrong. The zero value is a good provider.
type Faults struct {
	Error       string // instead of a code
	Issuer      string // of the authorization response; "-" for none
	TokenDelay  time.Duration
	KeysDelay   time.Duration
	APIDelay    time.Duration
	TokenStatus int    // of the token endpoint's answer
	TokenBody   string // in place of its answer
	Redirect    string // the token endpoint redirects there
	Huge        bool   // the token endpoint's answer does not end
	NoIDToken   bool
	BadSecret   bool // the client's secret is taken for a wrong one
	// Claims changes an ID token before it is signed.
	Claims func(jwt.MapClaims)
	// Sign makes the ID token in the place of the provider.
	Sign func(jwt.MapClaims) string
	// EmailsStatus is of GitHub's list of e-mails; 0: 200.
	EmailsStatus int
	// UserInfoSubject is whom userinfo answers about, "" for the user.
	UserInfoSubject string
}

// grant is a code that was given out.
type grant struct {
	user      User
	redirect  string
	challenge string
	nonce     string
}

// Server is one provider. Its methods are safe for concurrent use.
type Server struct {
	URL    string
	github bool
	now    func() time.Time
	http   *httptest.Server

	mu       sync.Mutex
	user     User
	faults   Faults
	key      *ecdsa.PrivateKey
	keyID    string
	grants   map[string]grant
	tokens   map[string]User
	requests map[string]int // by path
	secrets  []string       // every code, verifier and token that it saw or made
	silent   bool           // discovery fails
	noIss    bool           // answers do not name the issuer, and discovery says so
}

// Option changes a provider before it starts.
type Option func(*Server)

// GitHub makes it GitHub instead of OpenID Connect.
func GitHub() Option { return func(s *Server) { s.github = true } }

// Silent makes its discovery fail until [Server.Speak].
func Silent() Option { return func(s *Server) { s.silent = true } }

// WithoutIssuer makes it one that does not name itself in its answers, as most did before RFC 9207.
func WithoutIssuer() Option { return func(s *Server) { s.noIss = true } }

// Start starts a provider whose tokens are of the time that now says. It ends with the test.
func Start(t testing.TB, now func() time.Time, opts ...Option) *Server {
	t.Helper()
	s := &Server{now: now, user: User{Subject: "1001", Name: "ada", Email: "ada@example.com"},
		grants: map[string]grant{}, tokens: map[string]User{}, requests: map[string]int{}}
	for _, opt := range opts {
		opt(s)
	}
	s.RotateKeys(t)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", s.discovery)
	mux.HandleFunc("GET /authorize", s.authorize)
	mux.HandleFunc("POST /token", s.token)
	mux.HandleFunc("GET /keys", s.keys)
	mux.HandleFunc("GET /userinfo", s.userInfo)
	mux.HandleFunc("GET /user", s.githubUser)
	mux.HandleFunc("GET /user/emails", s.githubEmails)
	s.http = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests[r.URL.Path]++
		s.mu.Unlock()
		mux.ServeHTTP(w, r)
	}))
	s.URL = s.http.URL
	t.Cleanup(func() {
		s.http.CloseClientConnections()
		s.http.Close()
	})
	return s
}

// Set changes who sits at the browser.
func (s *Server) Set(u User) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.user = u
}

// Fail makes the provider do something wrong from now on; nothing with Faults{}.
func (s *Server) Fail(f Faults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = f
}

// Speak ends Silent.
func (s *Server) Speak() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = false
}

// RotateKeys replaces the signing key.
func (s *Server) RotateKeys(t testing.TB) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("make key: %v", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.key, s.keyID = key, text()
}

// Requests is how often a path was asked for.
func (s *Server) Requests(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests[path]
}

// Secrets are all codes, verifiers and tokens so far: what must be in no log.
func (s *Server) Secrets() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string{ClientSecret}, s.secrets...)
}

// Authorize is what a browser gets at an authorization URL once its user has agreed: where it is sent back to.
func (s *Server) Authorize(t testing.TB, authorizationURL string) string {
	t.Helper()
	client := &http.Client{Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := client.Get(authorizationURL)
	if err != nil {
		t.Fatalf("authorize: %v", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusFound {
		t.Fatalf("authorize: status %d for %s", res.StatusCode, authorizationURL)
	}
	return res.Header.Get("Location")
}

func text() string {
	var b [24]byte
	rand.Read(b[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func (s *Server) state() (Faults, User) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.faults, s.user
}

func (s *Server) secret(texts ...string) {
	s.secrets = append(s.secrets, texts...)
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

func (s *Server) discovery(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	silent := s.silent || s.github
	s.mu.Unlock()
	if silent {
		http.Error(w, "not now", http.StatusServiceUnavailable)
		return
	}
	reply(w, http.StatusOK, map[string]any{
		"issuer": s.URL, "authorization_endpoint": s.URL + "/authorize", "token_endpoint": s.URL + "/token", "jwks_uri": s.URL + "/keys",
		"userinfo_endpoint": s.URL + "/userinfo", "id_token_signing_alg_values_supported": []string{"ES256", "none", "HS256"},
		"token_endpoint_auth_methods_supported": []string{"client_secret_basic"}, "authorization_response_iss_parameter_supported": !s.noIss,
	})
}

// authorize checks what a provider does, and agrees for its user.
func (s *Server) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	redirect, err := url.Parse(q.Get("redirect_uri"))
	switch {
	case err != nil || redirect.Host == "":
		http.Error(w, "redirect_uri", http.StatusBadRequest)
		return
	case q.Get("client_id") != ClientID || q.Get("response_type") != "code" || q.Get("state") == "" ||
		q.Get("code_challenge_method") != "S256" || len(q.Get("code_challenge")) != 43 || q.Get("scope") == "" ||
		!s.github && q.Get("nonce") == "":
		http.Error(w, "parameters", http.StatusBadRequest)
		return
	}
	faults, user := s.state()
	answer := url.Values{"state": {q.Get("state")}}
	if faults.Error != "" {
		answer.Set("error", faults.Error)
		answer.Set("error_description", "<script>alert(1)</script>")
	} else {
		code := text()
		s.mu.Lock()
		s.grants[code] = grant{user, q.Get("redirect_uri"), q.Get("code_challenge"), q.Get("nonce")}
		s.secret(code)
		s.mu.Unlock()
		answer.Set("code", code)
	}
	switch {
	case faults.Issuer != "" && faults.Issuer != "-":
		answer.Set("iss", faults.Issuer)
	case !s.github && !s.noIss && faults.Issuer == "":
		answer.Set("iss", s.URL)
	}
	redirect.RawQuery = answer.Encode()
	http.Redirect(w, r, redirect.String(), http.StatusFound)
}

func (s *Server) token(w http.ResponseWriter, r *http.Request) {
	faults, _ := s.state()
	if err := r.ParseForm(); err != nil { // before the wait: only then does the server notice that the client has gone
		http.Error(w, "form", http.StatusBadRequest)
		return
	}
	if wait(r, faults.TokenDelay) {
		return
	}
	switch {
	case faults.Redirect != "":
		http.Redirect(w, r, faults.Redirect, http.StatusTemporaryRedirect)
		return
	case faults.Huge:
		w.Header().Set("Content-Type", "application/json")
		filler := make([]byte, 64<<10)
		for i := range filler {
			filler[i] = ' '
		}
		for range 64 {
			if _, err := w.Write(filler); err != nil {
				return
			}
		}
		return
	case faults.TokenBody != "" || faults.TokenStatus != 0:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(max(faults.TokenStatus, http.StatusOK))
		w.Write([]byte(faults.TokenBody))
		return
	}
	id, secret, ok := r.BasicAuth()
	if !ok {
		id, secret = r.PostForm.Get("client_id"), r.PostForm.Get("client_secret")
	}
	code, verifier := r.PostForm.Get("code"), r.PostForm.Get("code_verifier")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secret(verifier)
	g, found := s.grants[code]
	delete(s.grants, code)
	challenge := sha256.Sum256([]byte(verifier))
	switch {
	case id != ClientID || secret != ClientSecret || faults.BadSecret:
		reply(w, http.StatusUnauthorized, map[string]string{"error": "invalid_client", "error_description": secret})
		return
	case !found || g.redirect != r.PostForm.Get("redirect_uri") || base64.RawURLEncoding.EncodeToString(challenge[:]) != g.challenge:
		if s.github { // which tells so with a 200
			reply(w, http.StatusOK, map[string]string{"error": "bad_verification_code", "error_description": code})
			return
		}
		reply(w, http.StatusBadRequest, map[string]string{"error": "invalid_grant", "error_description": code})
		return
	}
	access := text()
	s.tokens[access] = g.user
	s.secret(access)
	if s.github {
		w.Header().Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
		w.Write([]byte(url.Values{"access_token": {access}, "scope": {"user:email"}, "token_type": {"bearer"}}.Encode()))
		return
	}
	out := map[string]any{"access_token": access, "token_type": "Bearer", "expires_in": 3600}
	if !faults.NoIDToken {
		token := s.idTokenLocked(g, access, faults)
		s.secret(token)
		out["id_token"] = token
	}
	reply(w, http.StatusOK, out)
}

func (s *Server) idTokenLocked(g grant, access string, faults Faults) string {
	sum := sha256.Sum256([]byte(access))
	now := s.now()
	claims := jwt.MapClaims{
		"iss": s.URL, "sub": g.user.Subject, "aud": ClientID, "exp": now.Add(time.Hour).Unix(), "iat": now.Unix(), "nonce": g.nonce,
		"at_hash": base64.RawURLEncoding.EncodeToString(sum[:16]), "preferred_username": g.user.Name,
	}
	if !g.user.NoEmail {
		claims["email"], claims["email_verified"] = g.user.Email, !g.user.Unverified
	}
	if faults.Claims != nil {
		faults.Claims(claims)
	}
	if faults.Sign != nil {
		return faults.Sign(claims)
	}
	return Sign(jwt.SigningMethodES256, s.key, s.keyID, claims)
}

// Sign makes a token, as a provider would or as a forger.
func Sign(method jwt.SigningMethod, key any, keyID string, claims jwt.MapClaims) string {
	token := jwt.NewWithClaims(method, claims)
	token.Header["kid"] = keyID
	signed, err := token.SignedString(key)
	if err != nil {
		panic(fmt.Sprintf("sign: %v", err))
	}
	return signed
}

// KeyID is the name of the present signing key.
func (s *Server) KeyID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keyID
}

func (s *Server) keys(w http.ResponseWriter, r *http.Request) {
	faults, _ := s.state()
	if wait(r, faults.KeysDelay) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	point, err := s.key.PublicKey.Bytes()
	if err != nil {
		http.Error(w, "key", http.StatusInternalServerError)
		return
	}
	encode := base64.RawURLEncoding.EncodeToString
	reply(w, http.StatusOK, map[string]any{"keys": []any{map[string]string{
		"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": s.keyID, "x": encode(point[1:33]), "y": encode(point[33:]),
	}}})
}

// bearer is the user whose token a request carries.
func (s *Server) bearer(w http.ResponseWriter, r *http.Request) (User, Faults, bool) {
	faults, _ := s.state()
	if wait(r, faults.APIDelay) {
		return User{}, faults, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	auth := r.Header.Get("Authorization")
	user, ok := s.tokens[auth[min(len("Bearer "), len(auth)):]]
	if !ok {
		http.Error(w, "token", http.StatusUnauthorized)
	}
	return user, faults, ok
}

func (s *Server) userInfo(w http.ResponseWriter, r *http.Request) {
	if user, faults, ok := s.bearer(w, r); ok {
		subject := user.Subject
		if faults.UserInfoSubject != "" {
			subject = faults.UserInfoSubject
		}
		reply(w, http.StatusOK, map[string]any{"sub": subject, "email": user.Email, "email_verified": strconv.FormatBool(!user.Unverified)})
	}
}

func (s *Server) githubUser(w http.ResponseWriter, r *http.Request) {
	if user, _, ok := s.bearer(w, r); ok {
		if r.Header.Get("User-Agent") == "" || r.Header.Get("X-GitHub-Api-Version") == "" {
			http.Error(w, "headers", http.StatusForbidden)
			return
		}
		id, err := strconv.ParseInt(user.Subject, 10, 64)
		if err != nil {
			http.Error(w, "id", http.StatusInternalServerError)
			return
		}
		reply(w, http.StatusOK, map[string]any{"id": id, "login": user.Name, "email": nil})
	}
}

func (s *Server) githubEmails(w http.ResponseWriter, r *http.Request) {
	if user, faults, ok := s.bearer(w, r); ok {
		if faults.EmailsStatus != 0 {
			http.Error(w, "emails", faults.EmailsStatus)
			return
		}
		reply(w, http.StatusOK, []map[string]any{
			{"email": "second-" + user.Email, "primary": false, "verified": true},
			{"email": user.Email, "primary": true, "verified": !user.Unverified},
		})
	}
}

// wait is a delay that ends with the request; true where that was first.
func wait(r *http.Request, d time.Duration) bool {
	if d == 0 {
		return false
	}
	select {
	case <-r.Context().Done():
		return true
	case <-time.After(d):
		return false
	}
}
