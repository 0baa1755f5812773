package authapi

import (
	"net/http"
	"time"

	"sluice/raftfsm/state"
)

// reauthenticationAge is how long ago a user without a password may have signed in to end the account: long enough to
// read what it says, too short for a page left open.
const reauthenticationAge = 10 * time.Minute

// accountEvents bounds the audit events that go with the end of an account; those of more organizations follow it.
const accountEvents = 100

type deleteMeRequest struct {
	Password string `json:"password"`
}

// handleDeleteMe ends the caller's account.
func handleDeleteMe(c *call) error {
	s := c.srv
	var req deleteMeRequest
	if err := c.decodeOptional(&req); err != nil {
		return err
	}
	// The password and the memberships are compared with those of every node.
	if err := s.catchUp(); err != nil {
		return err
	}
	user, err := s.state.User(c.principal.UserID)
	if err != nil {
		return err
	}
	if user == nil || user.DeletedAt != 0 {
		return errSessionEnded()
	}
	if err := c.reauthenticate(user, req.Password); err != nil {
		return err
	}
	events, err := c.accountEnds(user)
	if err != nil {
		return err
	}
	ctx, cancel := c.context()
	defer cancel()
	first := events[:min(len(events), accountEvents)]
	if _, err := s.propose(ctx, state.DeleteUser{UserID: user.ID, PasswordHash: user.PasswordHash, At: c.now.UnixMilli(), Audit: first}); err != nil {
		return err
	}
	for rest := events[len(first):]; len(rest) > 0; {
		n := min(len(rest), accountEvents)
		if _, err := s.propose(ctx, state.AppendAudit{Events: rest[:n]}); err != nil {
			s.log.Error("the end of memberships is not in the audit log", "error", err, "user", user.ID, "events", len(rest))
			break
		}
		rest = rest[n:]
	}
	c.dropCookies()
	return c.noContent()
}

// reauthenticate makes sure that it is the user who asks, and not whoever found the session open: by the password, or
// where the account has none, by how fresh the session is.
func (c *call) reauthenticate(user *state.User, password string) error {
	hash, _ := passwordOf(user, c.now)
	if hash == "" {
		session, err := c.srv.state.Session(c.principal.SessionID)
		if err != nil {
			return err
		}
		if session == nil || c.now.UnixMilli()-session.CreatedAt > reauthenticationAge.Milliseconds() {
			return problem(http.StatusForbidden, "reauthentication_required", "sign in again: this needs a sign-in of the last ten minutes")
		}
		return nil
	}
	if password == "" {
		return invalid("password", "is required")
	}
	attempt, err := c.guardSignIn(user.ID)
	if err != nil {
		return err
	}
	ctx, cancel := c.context()
	defer cancel()
	ok, err := c.srv.passwords.check(ctx, hash, password)
	if err != nil {
		attempt.refund()
		return err
	}
	if !ok {
		c.signInFailed(user)
		return errInvalidCredentials()
	}
	attempt.refund()
	return nil
}

// accountEnds are the audit events of the end of an account, in every organization that it concerns.
func (c *call) accountEnds(user *state.User) ([]state.AuditEvent, error) {
	memberships, err := c.srv.state.MembershipsOf(user.ID)
	if err != nil {
		return nil, err
	}
	events := []state.AuditEvent{
		c.event("user.deleted", user.PersonalOrg, kindUser, user.ID),
		c.event("session.ended", user.PersonalOrg, kindUser, user.ID, "reason", endAccountDeleted),
	}
	for _, m := range memberships {
		others, err := c.srv.state.MembersOf(m.OrganizationID, "", 2)
		if err != nil {
			return nil, err
		}
		e := c.event("member.removed", m.OrganizationID, kindUser, user.ID, "role", m.Role, "reason", endAccountDeleted)
		if len(others) < 2 {
			e = c.event("organization.deleted", m.OrganizationID, kindOrganization, m.OrganizationID, "reason", endAccountDeleted)
		}
		events = append(events, e)
	}
	return inOrder(events...), nil
}
