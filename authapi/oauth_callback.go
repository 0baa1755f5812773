package authapi

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"sluice/raftfsm/state"
)

// maxProviderCode bounds the code that a provider gives, in bytes.
const maxProviderCode = 2048

// handleCallback finishes what any node began. Until the state is known to be this browser's there is nowhere to send the
// browser; afterwards it goes back where it came from, with tokens, a code, or the reason why there are none.
func handleCallback(c *call) error {
	p, err := c.srv.oauth.Load().provider(c.param(0))
	if err != nil {
		return err
	}
	// Where one of them is there twice it is none of a provider's making.
	text, ok1 := c.single("state")
	code, ok2 := c.single("code")
	failure, ok3 := c.single("error")
	issuer, ok4 := c.single("iss")
	if !ok1 || !ok2 || !ok3 || !ok4 {
		c.oauthFailed(p.Name, stateMalformed, nil)
		return errState("a parameter is there twice")
	}
	st, reason, err := c.begun(p, text)
	if err != nil {
		return err
	}
	if st == nil {
		c.oauthFailed(p.Name, reason, nil)
		return errState("this sign-in was not begun in this browser, or too long ago; begin again")
	}
	e, err := p.endpoints()
	if err != nil {
		return err
	}
	ctx, cancel := c.context()
	defer cancel()
	// From here on the state is spent, whatever comes of it.
	_, err = c.srv.propose(ctx, state.UseOnce{Once: st.once()})
	switch {
	case refusedWith(err, state.CodeAlreadyUsed):
		c.oauthFailed(p.Name, stateReused, nil)
		return errState("this sign-in was finished before; begin again")
	case err != nil:
		return err
	}
	c.setOAuthCookie(c.srv.oauthCookie(text), "")
	if st.Return != "" && !c.srv.mayReturnTo(st.Return) {
		st.Return = "" // taken off the list meanwhile: no token goes there any more
		c.giveUp(p, st, errRedirectURI())
		return nil
	}
	who, err := c.answered(ctx, p, e, st, code, failure, issuer)
	if err == nil {
		err = c.finishSignIn(ctx, p, st, who)
	}
	if err != nil {
		c.giveUp(p, st, err)
	}
	return nil
}

// answered is whom the provider's answer vouches for.
func (c *call) answered(ctx context.Context, p *provider, e *endpoints, st *signIn, code, failure, issuer string) (*person, error) {
	switch {
	// First of all: an answer of somebody else says nothing (RFC 9207, section 2.4).
	case issuer != "" && p.Issuer != "" && !p.ownIssuer(issuer), issuer == "" && e.sendsIssuer:
		return nil, &providerError{errIssuer(), "issuer_mismatch", nil}
	case failure == "access_denied":
		return nil, &providerError{problem(http.StatusForbidden, "provider_denied", "the sign-in was denied at the provider"), "denied", nil}
	case failure != "":
		return nil, failedAt("provider_refused", errors.New(plainCode(failure)))
	case code == "" || len(code) > maxProviderCode:
		return nil, &providerError{errInvalidCode(), "invalid_code", nil}
	}
	return p.identify(ctx, e, st, code)
}

// giveUp tells why there is no sign-in: the page that began it, or the browser.
func (c *call) giveUp(p *provider, st *signIn, err error) {
	reason := ""
	var at *providerError
	if errors.As(err, &at) {
		reason = at.reason
		if at.cause != nil {
			c.srv.log.Warn("sign-in with a provider failed", "provider", p.Name, "step", at.reason, "error", at.cause, "request_id", c.requestID)
		}
	}
	pr, listed := problemOf(err)
	if !listed {
		c.srv.log.Error("request failed", "error", err, "route", c.pattern(), "request_id", c.requestID)
	}
	var told *toldError
	if !errors.As(err, &told) {
		if reason == "" {
			reason = pr.Code
		}
		c.oauthFailed(p.Name, reason, c.linkingUser(st))
	}
	if pr.Status == http.StatusServiceUnavailable {
		c.refund()
	}
	if st.Return == "" {
		c.writeProblem(pr)
		return
	}
	c.returnTo(st, "error", pr.Code, "error_description", pr.Detail)
}

// toldError is one that is in the audit log already.
type toldError struct{ *Problem }

func (e *toldError) Unwrap() error { return e.Problem }

// linkingUser is the user on whose behalf a link was begun, nil where it is none.
func (c *call) linkingUser(st *signIn) *state.User {
	if st.UserID == "" {
		return nil
	}
	user, err := c.srv.state.User(st.UserID)
	if err != nil {
		return nil
	}
	return user
}

// returnTo sends the browser back to the page that began, with pairs of name and value: in the fragment, which no server
// gets to see, or for a code in the query.
func (c *call) returnTo(st *signIn, pairs ...string) {
	if st.Client != "" {
		pairs = append(pairs, "state", st.Client)
	}
	var b strings.Builder
	b.WriteString(st.Return)
	separator := byte('#')
	if st.Mode == modeCode {
		if separator = '?'; strings.Contains(st.Return, "?") {
			separator = '&'
		}
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		b.WriteByte(separator)
		b.WriteString(pairs[i] + "=" + url.QueryEscape(pairs[i+1]))
		separator = '&'
	}
	c.redirect(b.String())
}

// Events of sign-in with a provider.
const (
	eventIdentityLinked   = "identity.linked"
	eventIdentityUnlinked = "identity.unlinked"
)

// oauthFailed notes a sign-in or link that came to nothing. provider is "" where even that is not known; user is whose
// account is concerned, nil where that is not known: the subject is then the provider.
func (c *call) oauthFailed(provider, reason string, user *state.User) {
	what := concern{kind: kindProvider, id: provider, why: reason}
	if user != nil {
		what.organization, what.kind, what.id = user.PersonalOrg, kindUser, user.ID
	}
	if provider == "" {
		c.note(oauthFailed, what)
		return
	}
	c.note(oauthFailed, what, "provider", provider)
}
