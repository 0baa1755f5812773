package authapi

import (
	"context"
	"net/http"

	"sluice/raftfsm/state"
)

// Reasons for which a session ends.
const (
	endLogout          = "logout"
	endLogoutAll       = "logout_all"
	endRevoked         = "revoked"
	endPasswordChanged = "password_changed"
	endTokenReused     = "token_reused"
	endAccountDeleted  = "account_deleted"
	endDisabled        = "disabled"
	endTooMany         = "too_many_sessions"
)

type refreshRequest struct {
	RefreshToken string `json:"refresh_token"`
}

func errRefreshToken() *Problem {
	return problem(http.StatusUnauthorized, "invalid_refresh_token", "the refresh token is not valid")
}

func errSessionEnded() *Problem {
	return problem(http.StatusUnauthorized, "session_ended", "the session has ended; sign in again")
}

func errTokenReused() *Problem {
	return problem(http.StatusUnauthorized, "refresh_token_reused", "this refresh token was spent before; the session has ended")
}

// handleRefresh spends a refresh token for a new pair. What was not made by this cluster changes nothing; what was, and
// is spent, ends its session.
func handleRefresh(c *call) error {
	s := c.srv
	var req refreshRequest
	cookies, err := c.wantsCookies()
	if err != nil {
		return err
	}
	if cookies {
		err = c.decodeOptional(&req)
	} else {
		err = c.decode(&req)
	}
	if err != nil {
		return err
	}
	fromCookie := cookies && req.RefreshToken == ""
	if fromCookie {
		if req.RefreshToken = c.sentRefreshCookie(); req.RefreshToken == "" {
			return errRefreshToken()
		}
	}
	if req.RefreshToken == "" {
		return invalid("refresh_token", "is required")
	}
	keys, err := s.accounts.refresh.get()
	if err != nil {
		return err
	}
	presented, ok := keys.parse(req.RefreshToken)
	if !ok {
		return errRefreshToken().because(whyRefreshInvalid)
	}
	if fromCookie {
		if err := c.checkCSRF(presented.sessionID()); err != nil {
			return err
		}
	}
	session, err := found(c, func() (*state.Session, error) { return s.state.Session(presented.sessionID()) })
	if err != nil {
		return err
	}
	if session == nil {
		return errRefreshToken().because(whyUnknown)
	}
	user, err := s.state.User(session.UserID)
	if err != nil {
		return err
	}
	if user == nil {
		return errSessionEnded()
	}
	if session.EndedAt != 0 {
		return endedAnswer(session).concerning(user.PersonalOrg, kindSession, session.ID, whySessionEnded)
	}
	next := keys.successor(presented)
	ctx, cancel := c.context()
	defer cancel()
	reused := by(user.ID, c.event("token.reused", user.PersonalOrg, kindSession, session.ID))
	reused.Result = resultFailure
	ended := by(user.ID, c.event("session.ended", user.PersonalOrg, kindSession, session.ID, "reason", endTokenReused))
	ended.ActorType, ended.ActorID = kindSystem, ""
	expires := c.refreshExpiry(session.CreatedAt)
	res, err := s.propose(ctx, state.RefreshSession{
		SessionID: session.ID, PresentedHash: presented.hash(), SuccessorHash: next.hash(), At: c.now.UnixMilli(),
		GraceMillis: s.cfg.Auth.RefreshReuseGrace.Milliseconds(), ExpiresAt: expires, ReuseAudit: inOrder(reused, ended),
	})
	if refusedWith(err, state.CodeSessionEnded) || refusedWith(err, state.CodeNotFound) {
		if session, err := s.state.Session(session.ID); err == nil && session != nil && session.EndedAt != 0 {
			return endedAnswer(session).concerning(user.PersonalOrg, kindSession, session.ID, whySessionEnded)
		}
		return errSessionEnded().concerning(user.PersonalOrg, kindSession, session.ID, whySessionEnded)
	}
	if err != nil {
		return err
	}
	switch res.Outcome {
	case state.OutcomeRotated, state.OutcomeReplayed:
	default:
		return errTokenReused()
	}
	if res.ExpiresAt != 0 {
		expires = res.ExpiresAt
	}
	token, tokenExpires, err := s.tokens.issue(user.ID, session.ID, user.PersonalOrg, c.now)
	if err != nil {
		return err
	}
	return c.writePair(newTokensBody(token, tokenExpires, next.text(), expires), session.ID, cookies)
}

// endedAnswer tells the holder of a genuine refresh token why its session is over, the same on every node.
func endedAnswer(session *state.Session) *Problem {
	if session.EndReason == endTokenReused {
		return errTokenReused()
	}
	return errSessionEnded()
}

// replaced is what a sign-in that ends the user's oldest sessions leaves in the audit log; their number is added where it
// is known, when it happens.
func (c *call) replaced(user *state.User) []state.AuditEvent {
	e := c.event("session.ended", user.PersonalOrg, kindUser, user.ID, "reason", endTooMany)
	e.ActorType, e.ActorID = kindSystem, ""
	return []state.AuditEvent{e}
}

func handleLogout(c *call) error {
	c.dropCookies()
	return c.endSession(c.principal.SessionID, endLogout)
}

func (c *call) endSession(sessionID, reason string) error {
	ctx, cancel := c.context()
	defer cancel()
	_, err := c.srv.propose(ctx, state.EndSession{
		SessionID: sessionID, UserID: c.principal.UserID, At: c.now.UnixMilli(), Reason: reason,
		Audit: []state.AuditEvent{c.event("session.ended", c.principal.OrganizationID, kindSession, sessionID, "reason", reason)},
	})
	if err != nil {
		return err
	}
	return c.noContent()
}

func handleLogoutAll(c *call) error {
	c.dropCookies()
	ctx, cancel := c.context()
	defer cancel()
	_, err := c.srv.propose(ctx, state.EndSessions{
		UserID: c.principal.UserID, At: c.now.UnixMilli(), Reason: endLogoutAll,
		Audit: []state.AuditEvent{c.event("session.ended", c.principal.OrganizationID, kindUser, c.principal.UserID, "reason", endLogoutAll)},
	})
	if err != nil {
		return err
	}
	return c.noContent()
}

type sessionBody struct {
	ID          string  `json:"id"`
	Current     bool    `json:"current"`
	CreatedAt   string  `json:"created_at"`
	RefreshedAt string  `json:"refreshed_at"`
	ExpiresAt   string  `json:"expires_at"`
	UserAgent   *string `json:"user_agent"`
	IP          *string `json:"ip"`
}

func handleListSessions(c *call) error {
	limit, after, err := c.pageArgs()
	if err != nil {
		return err
	}
	c.catchUpToRead()
	sessions, err := c.srv.state.SessionsOf(c.principal.UserID)
	if err != nil {
		return err
	}
	list, next := []sessionBody{}, ""
	for _, s := range sessions {
		if s.ID <= after || s.EndedAt != 0 || s.ExpiresAt <= c.now.UnixMilli() {
			continue
		}
		if len(list) == limit {
			next = list[limit-1].ID
			break
		}
		list = append(list, sessionBody{
			ID: s.ID, Current: s.ID == c.principal.SessionID, CreatedAt: formatTime(s.CreatedAt), RefreshedAt: formatTime(s.RefreshedAt),
			ExpiresAt: formatTime(s.ExpiresAt), UserAgent: textOrNull(s.UserAgent), IP: textOrNull(s.Address),
		})
	}
	return c.writePage(list, next)
}

func handleEndSession(c *call) error {
	id := c.param(0)
	if !plainID(id) {
		return errNotFound()
	}
	if id == c.principal.SessionID {
		c.dropCookies()
	}
	err := c.endSession(id, endRevoked)
	if refusedWith(err, state.CodeNotFound) {
		if session, err := c.srv.state.Session(id); err == nil && session != nil {
			return errNotFound().concerning("", kindSession, id, whyForeign)
		}
	}
	return err
}

type passwordRequest struct {
	CurrentPassword string `json:"current_password"`
	NewPassword     string `json:"new_password"`
}

func handlePassword(c *call) error {
	s := c.srv
	var req passwordRequest
	if err := c.decode(&req); err != nil {
		return err
	}
	// Another node may have changed the password an instant ago.
	if err := s.catchUp(); err != nil {
		return err
	}
	user, err := s.state.User(c.principal.UserID)
	if err != nil {
		return err
	}
	if user == nil {
		return errInvalidCredentials()
	}
	current, _ := passwordOf(user, c.now)
	if current == "" {
		return c.firstPassword(user, req)
	}
	var wrong []FieldError
	if req.CurrentPassword == "" {
		wrong = append(wrong, FieldError{"current_password", "is required"})
	}
	if detail := checkPassword(req.NewPassword, user.Username, user.Email); detail != "" {
		wrong = append(wrong, FieldError{"new_password", detail})
	} else if req.NewPassword == req.CurrentPassword {
		wrong = append(wrong, FieldError{"new_password", "must not be the current password"})
	}
	if err := invalidFields(wrong); err != nil {
		return err
	}
	attempt, err := c.guardSignIn(user.ID)
	if err != nil {
		return err
	}
	ctx, cancel := c.context()
	defer cancel()
	ok, err := s.passwords.check(ctx, current, req.CurrentPassword)
	if err != nil {
		attempt.refund()
		return err
	}
	if !ok {
		c.signInFailed(user)
		return errInvalidCredentials()
	}
	attempt.refund()
	return c.setPassword(ctx, user, req.NewPassword)
}

// setPassword replaces the password by compare-and-set, which also ends the user's other sessions.
func (c *call) setPassword(ctx context.Context, user *state.User, password string) error {
	hash, err := c.srv.passwords.hash(ctx, password)
	if err != nil {
		return err
	}
	_, err = c.srv.propose(ctx, state.SetPassword{
		UserID: user.ID, OldHash: user.PasswordHash, NewHash: hash, KeepSessionID: c.principal.SessionID, At: c.now.UnixMilli(),
		Audit: inOrder(
			c.event("user.password_changed", user.PersonalOrg, kindUser, user.ID),
			c.event("session.ended", user.PersonalOrg, kindUser, user.ID, "reason", endPasswordChanged),
		),
	})
	if err != nil {
		return err
	}
	return c.noContent()
}

// firstPassword gives a password to an account that has none. There is no current one that would prove that the user is at
// the keyboard and not somebody with a stolen token, so the session has to be new.
func (c *call) firstPassword(user *state.User, req passwordRequest) error {
	var wrong []FieldError
	if req.CurrentPassword != "" {
		wrong = append(wrong, FieldError{"current_password", "must be left out: the account has no password"})
	}
	if detail := checkPassword(req.NewPassword, user.Username, user.Email); detail != "" {
		wrong = append(wrong, FieldError{"new_password", detail})
	}
	if err := invalidFields(wrong); err != nil {
		return err
	}
	if err := c.reauthenticate(user, ""); err != nil {
		return err
	}
	ctx, cancel := c.context()
	defer cancel()
	return c.setPassword(ctx, user, req.NewPassword)
}

type meResponse struct {
	User *userBody `json:"user"`
	Auth authBody  `json:"auth"`
}

type authBody struct {
	Method         Method   `json:"method"`
	Scopes         []string `json:"scopes"`
	OrganizationID *string  `json:"organization_id"`
	KeyID          *string  `json:"key_id"`
	ExpiresAt      *string  `json:"expires_at"`
}

func handleMe(c *call) error {
	p := c.principal
	me := meResponse{Auth: authBody{
		Method: p.Method, Scopes: p.Scopes, OrganizationID: textOrNull(p.OrganizationID), KeyID: textOrNull(p.KeyID), ExpiresAt: timeOrNull(p.ExpiresAt),
	}}
	if me.Auth.Scopes == nil {
		me.Auth.Scopes = []string{}
	}
	if p.Method == MethodJWT {
		user, err := c.srv.state.User(p.UserID)
		if err != nil {
			return err
		}
		if user == nil {
			return failed("the session has ended")
		}
		me.User = newUserBody(user)
	}
	return c.writeJSON(http.StatusOK, me)
}
