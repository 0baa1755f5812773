package authapi

import (
	"bytes"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
)

// Cookie sessions are for pages that want no token within reach of their scripts. A sign-in or refresh with
// "X-Session-Mode: cookie" answers with cookies in place of the pair of tokens; afterwards the access token's cookie is a
// credential like any other on the API's own routes, but not for the forward-auth check and not for the gateway: a proxy
// would let through by it what another site made the browser send.
//
// What a browser sends by itself needs a proof that a page of ours asked for it. Three stand in a row: SameSite=Strict; the
// Origin header, where there is one; and X-CSRF-Token, which must be the session's own. That one is an HMAC of the session's id
// under a replicated key, so every node knows it, nothing keeps it, and it lives exactly as long as the session.
const (
	headerSessionMode = "X-Session-Mode"
	headerCSRF        = "X-CSRF-Token"
	modeCookie        = "cookie"

	cookieAccess  = "sluice"
	cookieRefresh = "sluice-refresh"
	cookieCSRF    = "sluice-csrf"

	// refreshPath keeps the refresh token from going along with every other request.
	refreshPath = "/api/v1/auth"
)

// cookieNames are the cookies' names; nil in Server where cookie sessions are off. With https the prefixes make browsers
// refuse a cookie that another host of the domain tries to plant (RFC 6265bis, section 4.1.3).
type cookieNames struct {
	access, refresh, csrf string
	secure                bool
}

func newCookieNames(enabled, https bool) *cookieNames {
	switch {
	case !enabled:
		return nil
	case https:
		return &cookieNames{access: "__Host-" + cookieAccess, refresh: "__Secure-" + cookieRefresh, csrf: "__Host-" + cookieCSRF, secure: true}
	}
	return &cookieNames{access: cookieAccess, refresh: cookieRefresh, csrf: cookieCSRF}
}

// sentCookie is the access token in the request's cookie, nil where there is none or the route takes none: signing in
// must work whatever old cookie the browser sends along.
func (c *call) sentCookie() []byte {
	n := c.srv.cookies
	if n == nil || c.route == nil || c.route.auth == authNone || c.route.verify != 0 {
		return nil
	}
	token := c.ctx.Request.Header.Cookie(n.access)
	if len(token) == 0 {
		return nil
	}
	c.byCookie = true
	return token
}

func errCSRF() *Problem {
	return problem(http.StatusForbidden, "csrf_failed", "a request that a cookie authorises needs the session's X-CSRF-Token, from a page of an allowed origin")
}

// checkCSRF guards what the cookies of a session authorise. Reading needs no proof: what another site makes the browser read
// it does not get to see.
func (c *call) checkCSRF(sessionID string) error {
	h := &c.ctx.Request.Header
	switch string(h.Method()) {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return nil
	}
	if origin := h.PeekBytes(headerOrigin); len(origin) > 0 && !c.ownOrigin(origin) {
		return errCSRF()
	}
	keys, err := c.srv.accounts.refresh.get()
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(h.Peek(headerCSRF), []byte(keys.csrfToken(sessionID))) != 1 {
		return errCSRF()
	}
	return nil
}

// ownOrigin says whether a page of origin may act for the browser's user.
func (c *call) ownOrigin(origin []byte) bool {
	s := c.srv
	if s.cors != nil && s.cors.allows(origin) {
		return true
	}
	if s.origin != "" {
		return string(origin) == s.origin
	}
	// Without a public_url the name that the client used has to do.
	_, host, ok := strings.Cut(string(origin), "://")
	return ok && strings.EqualFold(host, string(c.ctx.Request.Header.Host()))
}

// csrfToken is what a page sends as X-CSRF-Token in a session.
func (k *refreshKeys) csrfToken(sessionID string) string {
	return base64.RawURLEncoding.EncodeToString(hmacSum(k.csrf, []byte(sessionID)))
}

// wantsCookies says whether the request asks for cookies instead of tokens.
func (c *call) wantsCookies() (bool, error) {
	mode := c.ctx.Request.Header.Peek(headerSessionMode)
	switch {
	case len(mode) == 0:
		return false, nil
	case string(mode) != modeCookie:
		return false, problem(http.StatusBadRequest, "invalid_request", `X-Session-Mode must be "cookie" or left out`)
	case c.srv.cookies == nil:
		return false, problem(http.StatusBadRequest, "invalid_request", "cookie sessions are turned off here")
	}
	return true, nil
}

// sentRefreshCookie is the refresh token in the request's cookie, "" for none.
func (c *call) sentRefreshCookie() string {
	return string(c.ctx.Request.Header.Cookie(c.srv.cookies.refresh))
}

// cookieBody stands where a pair of tokens would.
type cookieBody struct {
	ExpiresAt        string `json:"expires_at"`
	RefreshExpiresAt string `json:"refresh_expires_at"`
	CSRFToken        string `json:"csrf_token"`
}

// writePair answers a sign-in or refresh with the tokens, or with cookies where the request asked for them.
func (c *call) writePair(pair *tokensBody, sessionID string, cookies bool) error {
	if !cookies {
		return c.writeJSON(http.StatusOK, pair)
	}
	keys, err := c.srv.accounts.refresh.get()
	if err != nil {
		return err
	}
	n, csrf := c.srv.cookies, keys.csrfToken(sessionID)
	c.setCookie(n.access, pair.Token, "/", pair.expires, true)
	c.setCookie(n.refresh, pair.RefreshToken, refreshPath, pair.refreshExpires, true)
	// This one is for the page's scripts, and as long-lived as the session.
	c.setCookie(n.csrf, csrf, "/", pair.refreshExpires, false)
	return c.writeJSON(http.StatusOK, cookieBody{ExpiresAt: pair.ExpiresAt, RefreshExpiresAt: pair.RefreshExpiresAt, CSRFToken: csrf})
}

// dropCookies tells the browser to forget the session that a cookie authorised.
func (c *call) dropCookies() {
	if n := c.srv.cookies; n != nil && c.byCookie {
		c.setCookie(n.access, "", "/", 0, true)
		c.setCookie(n.refresh, "", refreshPath, 0, true)
		c.setCookie(n.csrf, "", "/", 0, false)
	}
}

// setCookie sets one until expires, Unix milliseconds; 0 removes it.
func (c *call) setCookie(name, value, path string, expires int64, httpOnly bool) {
	var k fasthttp.Cookie
	k.SetKey(name)
	k.SetValue(value)
	k.SetPath(path)
	k.SetHTTPOnly(httpOnly)
	k.SetSecure(c.srv.cookies.secure)
	k.SetSameSite(fasthttp.CookieSameSiteStrictMode)
	if left := time.UnixMilli(expires).Sub(c.now); expires > 0 && left >= time.Second {
		k.SetMaxAge(int(left / time.Second))
	} else {
		k.SetExpire(fasthttp.CookieExpireDelete)
	}
	c.ctx.Response.Header.SetCookie(&k)
}

// hideCookies keeps the cookies of sessions and sign-ins from an upstream.
func (c *call) hideCookies(h *fasthttp.RequestHeader) {
	if bytes.Contains(h.Peek("Cookie"), []byte(cookieOAuth)) {
		c.hideSignIns(h)
	}
	if n := c.srv.cookies; n != nil {
		h.DelCookie(n.access)
		h.DelCookie(n.refresh)
		h.DelCookie(n.csrf)
	}
}
