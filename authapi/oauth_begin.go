package authapi

import (
	"net/http"
	"strings"

	"sluice/raftfsm/state"
)

// maxClientState bounds what a client may have carried through a sign-in, in bytes.
const maxClientState = 512

// target is where a sign-in returns to, and how.
type target struct {
	RedirectURI  string `json:"redirect_uri"`
	ResponseMode string `json:"response_mode"`
	State        string `json:"state"`
}

// checkTarget refuses everything that the configuration does not allow, and settles the mode. user is who asks, nil for
// anybody.
func (c *call) checkTarget(x *oauthClients, p *provider, t *target, user *state.User) error {
	if t.RedirectURI != "" && !c.srv.mayReturnTo(t.RedirectURI) {
		c.oauthFailed(p.Name, "invalid_redirect_uri", user)
		return errRedirectURI()
	}
	switch t.ResponseMode {
	case "":
		t.ResponseMode = modeFragment
	case modeFragment, modeCode, modeJSON:
	default:
		return invalid("response_mode", "must be fragment, code or json")
	}
	if t.ResponseMode == modeJSON {
		t.RedirectURI = ""
	}
	if t.RedirectURI == "" {
		t.ResponseMode = modeJSON
	}
	if len(t.State) > maxClientState || strings.ContainsFunc(t.State, func(r rune) bool { return r < ' ' || r > '~' }) {
		return invalid("state", "must be up to 512 visible ASCII characters")
	}
	return nil
}

// queryTarget reads the target from the query. A parameter that is there twice means one thing to us and perhaps another
// to who checks it on the way.
func (c *call) queryTarget() (target, error) {
	var t target
	for _, q := range []struct {
		name string
		to   *string
	}{{"redirect_uri", &t.RedirectURI}, {"response_mode", &t.ResponseMode}, {"state", &t.State}} {
		value, ok := c.single(q.name)
		if !ok && q.name == "redirect_uri" {
			return t, errRedirectURI()
		}
		if !ok {
			return t, invalid(q.name, "is there twice")
		}
		*q.to = value
	}
	return t, nil
}

// single is a query parameter that may be there once; "" where it is not.
func (c *call) single(name string) (value string, ok bool) {
	values := c.ctx.QueryArgs().PeekMulti(name)
	if len(values) == 0 {
		return "", true
	}
	return string(values[0]), len(values) == 1
}

// handleBeginSignIn sends the browser to a provider. It asks nobody and writes nothing.
func handleBeginSignIn(c *call) error {
	x := c.srv.oauth.Load()
	p, err := x.provider(c.param(0))
	if err != nil {
		return err
	}
	t, err := c.queryTarget()
	if err != nil {
		return err
	}
	if err := c.checkTarget(x, p, &t, nil); err != nil {
		return err
	}
	address, err := c.begin(p, t, "", "")
	if err != nil {
		return err
	}
	c.redirect(address)
	return nil
}

type linkResponse struct {
	AuthorizationURL string `json:"authorization_url"`
	ExpiresAt        string `json:"expires_at"`
}

// handleBeginLink begins to link an identity to the caller. The browser that asks is the one that has to finish: the
// cookie comes with this answer, and another site can neither make the request (it takes the token, or X-CSRF-Token) nor
// plant the cookie.
func handleBeginLink(c *call) error {
	x := c.srv.oauth.Load()
	p, err := x.provider(c.param(0))
	if err != nil {
		return err
	}
	var t target
	if err := c.decodeOptional(&t); err != nil {
		return err
	}
	user, err := c.srv.state.User(c.principal.UserID)
	if err != nil {
		return err
	}
	if err := c.checkTarget(x, p, &t, user); err != nil {
		return err
	}
	address, err := c.begin(p, t, c.principal.UserID, c.principal.SessionID)
	if err != nil {
		return err
	}
	return c.writeJSON(http.StatusOK, linkResponse{AuthorizationURL: address, ExpiresAt: formatTime(c.now.Add(stateLife).UnixMilli())})
}

// begin makes a sign-in, or a link where a user is given, keeps it in the browser and gives the provider's address.
func (c *call) begin(p *provider, t target, userID, sessionID string) (string, error) {
	e, err := p.endpoints()
	if err != nil {
		return "", err
	}
	st, text := newSignIn(c.now)
	st.Callback = c.callbackURL(p)
	st.Return, st.Mode, st.Client = t.RedirectURI, t.ResponseMode, t.State
	st.UserID, st.SessionID = userID, sessionID
	if err := c.keepSignIn(p, st, text); err != nil {
		return "", err
	}
	return p.authorizationURL(e, st, text), nil
}

// callbackURL is where the provider sends the browser back to. Without a public URL it is of the name that the client
// used: a provider accepts only what was registered with it.
func (c *call) callbackURL(p *provider) string {
	base := strings.TrimRight(c.srv.cfg.PublicURL, "/")
	if base == "" {
		base = "http://" + string(c.ctx.Request.Header.Host())
	}
	return base + authPath + "/" + p.Name + "/callback"
}

// redirect answers 302. address is used as it is: what it may be was decided before.
func (c *call) redirect(address string) {
	c.ctx.SetStatusCode(http.StatusFound)
	h := &c.ctx.Response.Header
	h.Set("Location", address)
	h.SetCanonical(headerCacheControl, valueNoStore)
}
