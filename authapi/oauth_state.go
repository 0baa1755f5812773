package authapi

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/oauth2"

	"sluice/raftfsm/state"
)

// What is between the redirect to a provider and its callback is in a cookie of the browser that began, sealed under a
// replicated key: so any node finishes what another began, nothing is stored, and a callback that another browser was
// made to call finds no cookie. It is named after its state, so that several tabs can sign in at once.
//
// The seal is XChaCha20-Poly1305, whose nonces are long enough to be random however many are made: anybody may make one.
const (
	cookieOAuth = "sluice-oauth-"
	// stateName is how much of a state is in the cookie's name.
	stateName = 8
	// maxPending is how many sign-ins a browser may have begun at once: cookies must not fill its requests' headers.
	maxPending = 5
	// stateLife is how long a sign-in may take.
	stateLife = 10 * time.Minute
	// codeLife is how long a code waits to be exchanged.
	codeLife = time.Minute
	// clockAhead is how far another node's clock may be ahead of this one's.
	clockAhead = 30 * time.Second
	// maxSealed bounds what is opened: as long as a cookie can be.
	maxSealed = 4096

	purposeCode  = "code"
	purposeState = "state " // and the provider's name

	onceState = "oauth_state"
	onceCode  = "oauth_code"
)

// Ways in which a sign-in answers.
const (
	modeFragment = "fragment"
	modeCode     = "code"
	modeJSON     = "json"
)

// signIn is what one sign-in, or link, needs at its callback.
type signIn struct {
	StateHash []byte `json:"s"` // SHA-256
	Nonce     string `json:"n"`
	Verifier  string `json:"v"` // PKCE's (RFC 7636)
	Callback  string `json:"c"` // as the provider was told it
	Return    string `json:"r"` // the client's redirect_uri; "" for an answer in JSON
	Mode      string `json:"m"`
	Client    string `json:"x"` // the client's own state, which it gets back
	At        int64  `json:"t"` // Unix milliseconds
	// Of a link: on whose behalf.
	UserID    string `json:"u"`
	SessionID string `json:"i"`
}

// expiresAt is when the sign-in is over, Unix milliseconds.
func (st *signIn) expiresAt() int64 { return st.At + stateLife.Milliseconds() }

// once is how the replicated state knows that the sign-in was finished.
func (st *signIn) once() state.Once {
	return state.Once{Kind: onceState, Hash: onceHash(onceState, st.StateHash), ExpiresAt: st.expiresAt()}
}

func onceHash(kind string, value []byte) []byte {
	sum := sha256.Sum256(append([]byte(kind+"\x00"), value...))
	return sum[:]
}

// newSignIn makes one with its state, which is all that the outside gets to see of it.
func newSignIn(now time.Time) (st *signIn, state string) {
	state = randomText()
	sum := sha256.Sum256([]byte(state))
	return &signIn{StateHash: sum[:], Nonce: randomText(), Verifier: oauth2.GenerateVerifier(), At: now.UnixMilli()}, state
}

// randomText is 256 random bits.
func randomText() string {
	var b [32]byte
	rand.Read(b[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// exchangeCode is what a code stands for.
type exchangeCode struct {
	Provider  string `json:"p"`
	Subject   string `json:"s"`
	UserID    string `json:"u"`
	ExpiresAt int64  `json:"t"` // Unix milliseconds
}

// sealOAuth makes a text of v that only this cluster can read, for this purpose.
func (k *refreshKeys) sealOAuth(purpose string, v any) (string, error) {
	var plain bytes.Buffer
	encoder := json.NewEncoder(&plain)
	encoder.SetEscapeHTML(false) // URLs would become a third longer
	if err := encoder.Encode(v); err != nil {
		return "", fmt.Errorf("encode sign-in: %w", err)
	}
	aead, err := chacha20poly1305.NewX(k.oauth)
	if err != nil {
		return "", fmt.Errorf("seal sign-in: %w", err)
	}
	nonce := make([]byte, aead.NonceSize(), aead.NonceSize()+plain.Len()+aead.Overhead())
	rand.Read(nonce)
	return base64.RawURLEncoding.EncodeToString(aead.Seal(nonce, nonce, plain.Bytes(), []byte(purpose))), nil
}

// openOAuth undoes sealOAuth. once is what identifies the text; ok is false for everything else than sealOAuth made.
func (k *refreshKeys) openOAuth(purpose, text string, v any) (once []byte, ok bool) {
	if len(text) > maxSealed {
		return nil, false
	}
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, false
	}
	aead, err := chacha20poly1305.NewX(k.oauth)
	if err != nil || len(sealed) < aead.NonceSize() {
		return nil, false
	}
	plain, err := aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], []byte(purpose))
	if err != nil || json.Unmarshal(plain, v) != nil {
		return nil, false
	}
	return onceHash(purpose, sealed), true
}

// oauthCookie is the name of the cookie of a state.
func (s *Server) oauthCookie(state string) string {
	return s.oauthCookiePrefix() + state[:stateName]
}

func (s *Server) oauthCookiePrefix() string {
	if s.https {
		return "__Host-" + cookieOAuth
	}
	return cookieOAuth
}

// setOAuthCookie sets a state's cookie, or with "" removes it. It is SameSite=Lax: the callback is a navigation that comes
// from the provider's site.
func (c *call) setOAuthCookie(name, value string) {
	var k fasthttp.Cookie
	k.SetKey(name)
	k.SetValue(value)
	k.SetPath("/")
	k.SetHTTPOnly(true)
	k.SetSecure(c.srv.https)
	k.SetSameSite(fasthttp.CookieSameSiteLaxMode)
	if value != "" {
		k.SetMaxAge(int(stateLife / time.Second))
	} else {
		k.SetExpire(fasthttp.CookieExpireDelete)
	}
	c.ctx.Response.Header.SetCookie(&k)
}

// keepSignIn gives the browser the cookie of a sign-in, and takes away those of the oldest that it has begun and not
// finished, and those that are over.
func (c *call) keepSignIn(p *provider, st *signIn, state string) error {
	keys, err := c.srv.accounts.refresh.get()
	if err != nil {
		return err
	}
	sealed, err := keys.sealOAuth(purposeState+p.Name, st)
	if err != nil {
		return err
	}
	type pending struct {
		name string
		at   int64
	}
	var old []pending
	prefix := c.srv.oauthCookiePrefix()
	for key, value := range c.ctx.Request.Header.Cookies() {
		name := string(key)
		if !strings.HasPrefix(name, prefix) || len(name) != len(prefix)+stateName || !isToken(key) {
			continue
		}
		at := int64(0)
		for other := range c.srv.oauth.Load().providers {
			var begun signIn
			if _, ok := keys.openOAuth(purposeState+other, string(value), &begun); ok && begun.expiresAt() > c.now.UnixMilli() {
				at = begun.At
			}
		}
		old = append(old, pending{name, at})
	}
	slices.SortFunc(old, func(a, b pending) int { return cmp.Compare(b.at, a.at) })
	for i, o := range old {
		if i >= maxPending-1 || o.at == 0 {
			c.setOAuthCookie(o.name, "")
		}
	}
	c.setOAuthCookie(c.srv.oauthCookie(state), sealed)
	return nil
}

// hideSignIns keeps the cookies of sign-ins from an upstream.
func (c *call) hideSignIns(h *fasthttp.RequestHeader) {
	var names []string
	for key := range h.Cookies() {
		if bytes.HasPrefix(key, []byte(c.srv.oauthCookiePrefix())) {
			names = append(names, string(key))
		}
	}
	for _, name := range names {
		h.DelCookie(name)
	}
}

func errState(detail string) *Problem { return problem(http.StatusBadRequest, "invalid_state", detail) }

// Why a state is not good, in the audit log.
const (
	stateMissing   = "state_missing"
	stateMalformed = "state_malformed"
	stateForeign   = "state_foreign"
	stateExpired   = "state_expired"
	stateReused    = "state_reused"
)

// begun finds the sign-in that a callback of a provider finishes: the browser's own, with this state, not too old. reason
// says why there is none. Whether it was finished before is the replicated state's to say.
func (c *call) begun(p *provider, state string) (st *signIn, reason string, err error) {
	if state == "" {
		return nil, stateMissing, nil
	}
	if len(state) != base64.RawURLEncoding.EncodedLen(sha256.Size) || !isToken([]byte(state)) {
		return nil, stateMalformed, nil
	}
	value := c.ctx.Request.Header.Cookie(c.srv.oauthCookie(state))
	if len(value) == 0 {
		return nil, stateForeign, nil
	}
	keys, err := c.srv.accounts.refresh.get()
	if err != nil {
		return nil, "", err
	}
	st = new(signIn)
	if _, ok := keys.openOAuth(purposeState+p.Name, string(value), st); !ok {
		return nil, stateForeign, nil
	}
	sum := sha256.Sum256([]byte(state))
	switch now := c.now.UnixMilli(); {
	case subtle.ConstantTimeCompare(sum[:], st.StateHash) != 1:
		return nil, stateForeign, nil
	case now >= st.expiresAt(), st.At > now+clockAhead.Milliseconds():
		return nil, stateExpired, nil
	}
	return st, "", nil
}
