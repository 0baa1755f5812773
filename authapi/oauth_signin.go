package authapi

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"strings"

	"sluice/raftfsm/state"
)

// maxNameTries is how many user names are tried for a new account.
const maxNameTries = 8

func errEmailInUse() *Problem {
	return problem(http.StatusConflict, "email_in_use", "an account has this e-mail address already: sign in to it another way, and link this identity to it")
}

func errEmailNotVerified() *Problem {
	return problem(http.StatusConflict, "email_not_verified", "the provider gives no verified e-mail address that an account could have")
}

func errIdentityRefused() *Problem {
	return problem(http.StatusForbidden, state.CodeForbidden, "this identity may not sign in")
}

func errInvalidCode() *Problem {
	return problem(http.StatusUnauthorized, "invalid_code", "the code is unknown, spent or expired; begin again")
}

// finishSignIn does what was begun with the person that the provider vouches for.
func (c *call) finishSignIn(ctx context.Context, p *provider, st *signIn, who *person) error {
	if st.UserID != "" {
		return c.finishLink(ctx, p, st, who)
	}
	if st.Mode == modeCode {
		return c.finishWithCode(ctx, p, st, who)
	}
	pair, err := c.signInPerson(ctx, p, who)
	if err != nil {
		return err
	}
	if st.Return == "" {
		return c.writeJSON(http.StatusOK, pair)
	}
	c.returnTo(st, "token", pair.Token, "expires_at", pair.ExpiresAt, "refresh_token", pair.RefreshToken,
		"refresh_expires_at", pair.RefreshExpiresAt, "token_type", pair.TokenType)
	return nil
}

// signInPerson makes a session for the user who has the identity, whom it makes too where nobody has it.
func (c *call) signInPerson(ctx context.Context, p *provider, who *person) (*tokensBody, error) {
	for range 3 {
		user, err := c.userWith(p.Name, who.subject)
		if err != nil {
			return nil, err
		}
		var pair *tokensBody
		if user == nil {
			if pair, err = c.registerPerson(ctx, p, who, true); refusedWith(err, state.CodeIdentityTaken) {
				continue // another request of the same person was first
			}
			return pair, err
		}
		pair, err = c.signInUserWith(ctx, p.Name, who.subject, user, state.Once{})
		if refusedWith(err, state.CodeNotFound) || refusedWith(err, state.CodeConflict) {
			continue // taken away, or given to another, meanwhile
		}
		return pair, err
	}
	return nil, &state.Refusal{Code: state.CodeConflict}
}

// userWith is the user who has an identity, nil for none. The callback has proposed before, and the identity is decided
// about again when the session is made, so this node's own state will do.
func (c *call) userWith(provider, subject string) (*state.User, error) {
	identity, err := c.srv.state.Identity(provider, subject)
	if err != nil || identity == nil {
		return nil, err
	}
	return c.srv.state.User(identity.UserID)
}

// signInUserWith makes a session of a user by the identity.
func (c *call) signInUserWith(ctx context.Context, provider, subject string, user *state.User, once state.Once) (*tokensBody, error) {
	session, pair, err := c.newSession(user.ID, user.PersonalOrg)
	if err != nil {
		return nil, err
	}
	_, err = c.srv.propose(ctx, state.StartSession{Replaced: c.replaced(user), ByIdentity: &state.SignInByIdentity{
		Provider: provider, Subject: subject, Session: session, MaxSessions: c.srv.cfg.Auth.MaxSessions, Once: once,
		Audit: []state.AuditEvent{by(user.ID, c.event("session.created", user.PersonalOrg, kindSession, session.ID, "provider", provider))},
	}})
	if refusedWith(err, state.CodeForbidden) {
		return nil, c.identityRefused(provider, user)
	}
	return pair, err
}

// identityRefused notes that somebody whose account is closed tried to sign in.
func (c *call) identityRefused(provider string, user *state.User) error {
	c.note(sessionFailed, concern{organization: user.PersonalOrg, kind: kindUser, id: user.ID}, "provider", provider)
	return &toldError{errIdentityRefused()}
}

// registerPerson makes an account for somebody who has none. Its e-mail address is one that the provider has verified;
// where an account has that already, only its owner can bring the two together.
func (c *call) registerPerson(ctx context.Context, p *provider, who *person, session bool) (*tokensBody, error) {
	address, err := who.address(ctx)
	if err != nil {
		return nil, err
	}
	email, ok := normalEmail(address)
	if !ok {
		return nil, errEmailNotVerified()
	}
	at := c.now.UnixMilli()
	user := state.User{ID: newID(idUser, c.now), Email: email, CreatedAt: at, PersonalOrg: newID(idOrganization, c.now)}
	cmd := state.RegisterIdentity{
		Identity: state.Identity{Provider: p.Name, Subject: who.subject, UserID: user.ID, Email: email, CreatedAt: at},
		Audit: []state.AuditEvent{
			by(user.ID, c.event("user.registered", user.PersonalOrg, kindUser, user.ID, "provider", p.Name)),
			by(user.ID, c.event("organization.created", user.PersonalOrg, kindOrganization, user.PersonalOrg)),
		},
	}
	var pair *tokensBody
	if session {
		if cmd.Session, pair, err = c.newSession(user.ID, user.PersonalOrg); err != nil {
			return nil, err
		}
		cmd.Audit = append(cmd.Audit, by(user.ID, c.event("session.created", user.PersonalOrg, kindSession, cmd.Session.ID, "provider", p.Name)))
	}
	inOrder(cmd.Audit...)
	for try := range maxNameTries {
		user.Username = nameFor(who.name, email, try)
		cmd.User = user
		cmd.Organization = state.Organization{ID: user.PersonalOrg, Name: user.Username, Personal: true, CreatedAt: at, CreatedBy: user.ID}
		if _, err = c.srv.propose(ctx, cmd); !refusedWith(err, state.CodeUsernameTaken) {
			break
		}
	}
	if refusedWith(err, state.CodeEmailTaken) {
		owner, ownerErr := c.srv.state.UserByEmail(email)
		c.oauthFailed(p.Name, "email_in_use", owner)
		return nil, errors.Join(&toldError{errEmailInUse()}, ownerErr)
	}
	return pair, err
}

// nameFor derives a user name from what the provider calls the user, or from the e-mail address; from the second try on
// with something random at its end.
func nameFor(name, email string, try int) string {
	const least, most, random = 3, 32, 6
	if name == "" || strings.Contains(name, "@") {
		name, _, _ = strings.Cut(email, "@")
	}
	b := make([]byte, 0, most)
	for _, ch := range []byte(strings.ToLower(name)) {
		switch {
		case len(b) == most:
		case isBase62(ch) || ch == '.' || ch == '_' || ch == '-':
			b = append(b, ch)
		case ch < 0x80 && len(b) > 0 && b[len(b)-1] != '-':
			b = append(b, '-')
		}
	}
	text := strings.Trim(string(b), ".-_")
	if try > 0 || len(text) < least {
		if text == "" {
			text = "user"
		}
		suffix := make([]byte, random)
		rand.Read(suffix)
		for i := range suffix {
			suffix[i] = crockford[suffix[i]&31]
		}
		text = strings.TrimRight(text[:min(len(text), most-random-1)], ".-_") + "-" + string(suffix)
	}
	return text
}

// finishWithCode answers with a code, which the client's server or page exchanges for the tokens.
func (c *call) finishWithCode(ctx context.Context, p *provider, st *signIn, who *person) error {
	user, err := c.userWith(p.Name, who.subject)
	if err != nil {
		return err
	}
	if user == nil {
		if _, err := c.registerPerson(ctx, p, who, false); err != nil && !refusedWith(err, state.CodeIdentityTaken) {
			return err
		}
		if user, err = c.userWith(p.Name, who.subject); err != nil {
			return err
		}
	}
	if user == nil {
		return &state.Refusal{Code: state.CodeConflict} // registered and gone again
	}
	if user.DeletedAt != 0 || user.DisabledAt != 0 {
		return c.identityRefused(p.Name, user)
	}
	keys, err := c.srv.accounts.refresh.get()
	if err != nil {
		return err
	}
	code, err := keys.sealOAuth(purposeCode, exchangeCode{
		Provider: p.Name, Subject: who.subject, UserID: user.ID, ExpiresAt: c.now.Add(codeLife).UnixMilli(),
	})
	if err != nil {
		return err
	}
	c.returnTo(st, "code", code)
	return nil
}

type exchangeRequest struct {
	Code string `json:"code"`
}

// handleExchange gives the tokens for a code, once. All that a code stands for is in it.
func handleExchange(c *call) error {
	s := c.srv
	cookies, err := c.wantsCookies()
	if err != nil {
		return err
	}
	var req exchangeRequest
	if err := c.decode(&req); err != nil {
		return err
	}
	if req.Code == "" {
		return invalid("code", "is required")
	}
	keys, err := s.accounts.refresh.get()
	if err != nil {
		return err
	}
	var code exchangeCode
	hash, ok := keys.openOAuth(purposeCode, req.Code, &code)
	if !ok {
		c.oauthFailed("", "code_invalid", nil)
		return errInvalidCode()
	}
	user, err := found(c, func() (*state.User, error) { return s.state.User(code.UserID) })
	if err != nil {
		return err
	}
	if user == nil || code.ExpiresAt <= c.now.UnixMilli() {
		c.oauthFailed(code.Provider, "code_expired", user)
		return errInvalidCode()
	}
	ctx, cancel := c.context()
	defer cancel()
	pair, err := c.signInUserWith(ctx, code.Provider, code.Subject, user, state.Once{Kind: onceCode, Hash: hash, ExpiresAt: code.ExpiresAt})
	switch {
	case refusedWith(err, state.CodeAlreadyUsed):
		c.oauthFailed(code.Provider, "code_reused", user)
		return errInvalidCode()
	case refusedWith(err, state.CodeNotFound), refusedWith(err, state.CodeConflict):
		c.oauthFailed(code.Provider, "identity_gone", user)
		return errInvalidCode()
	case err != nil:
		return err
	}
	return c.writePair(pair, pair.session, cookies)
}
