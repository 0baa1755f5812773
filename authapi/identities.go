package authapi

import (
	"context"
	"net/http"

	"sluice/raftfsm/state"
)

type identityBody struct {
	Provider  string  `json:"provider"`
	Subject   string  `json:"subject"`
	Email     *string `json:"email"`
	CreatedAt string  `json:"created_at"`
}

func newIdentityBody(i *state.Identity) identityBody {
	return identityBody{Provider: i.Provider, Subject: i.Subject, Email: textOrNull(i.Email), CreatedAt: formatTime(i.CreatedAt)}
}

func handleListIdentities(c *call) error {
	limit, after, err := c.pageArgs()
	if err != nil {
		return err
	}
	c.catchUpToRead()
	identities, err := c.srv.state.IdentitiesOf(c.principal.UserID)
	if err != nil {
		return err
	}
	list, next := []identityBody{}, ""
	for i := range identities {
		if identities[i].Provider <= after {
			continue
		}
		if len(list) == limit {
			next = list[limit-1].Provider
			break
		}
		list = append(list, newIdentityBody(&identities[i]))
	}
	return c.writePage(list, next)
}

// finishLink gives the user who began the link the identity. The state machine looks again whether the session still lives:
// who signed out meanwhile, or was signed out, links nothing.
func (c *call) finishLink(ctx context.Context, p *provider, st *signIn, who *person) error {
	user, err := c.srv.state.User(st.UserID)
	if err != nil {
		return err
	}
	if user == nil {
		return errSessionEnded()
	}
	// The address is for people, who tell accounts at a provider apart by it; that it cannot be had is no reason to fail.
	email, err := who.address(ctx)
	if err != nil || len(email) > 254 {
		email = ""
	}
	identity := state.Identity{Provider: p.Name, Subject: who.subject, UserID: user.ID, Email: email, CreatedAt: c.now.UnixMilli()}
	_, err = c.srv.propose(ctx, state.LinkIdentity{
		Identity: identity, SessionID: st.SessionID, At: c.now.UnixMilli(),
		Audit: []state.AuditEvent{by(user.ID, c.event(eventIdentityLinked, user.PersonalOrg, kindUser, user.ID, "provider", p.Name, "subject", who.subject))},
	})
	if refusedWith(err, state.CodeConflict) {
		return problem(http.StatusConflict, state.CodeConflict, "the account has another identity of this provider; unlink that one first")
	}
	if err != nil {
		return err
	}
	if st.Return != "" {
		c.returnTo(st, "linked", p.Name)
		return nil
	}
	return c.writeJSON(http.StatusOK, newIdentityBody(&identity))
}

// handleUnlink takes an identity away. It works for providers that are not configured any more.
func handleUnlink(c *call) error {
	s, name := c.srv, c.param(0)
	if !providerName.MatchString(name) {
		return errNotFound()
	}
	c.catchUpToRead()
	user, err := s.state.User(c.principal.UserID)
	if err != nil {
		return err
	}
	if user == nil {
		return errSessionEnded()
	}
	identities, err := s.state.IdentitiesOf(user.ID)
	if err != nil {
		return err
	}
	// The state machine does not know which providers are configured, nor what passwords look like: an identity of one that
	// is not opens nothing, and a one-time password nothing for long.
	hash, once := passwordOf(user, c.now)
	subject, usable := "", hash != "" && !once
	for _, i := range identities {
		if i.Provider == name {
			subject = i.Subject
		} else if s.oauth.Load().providers[i.Provider] != nil {
			usable = true
		}
	}
	if subject != "" && !usable {
		return &state.Refusal{Code: state.CodeLastSignIn}
	}
	ctx, cancel := c.context()
	defer cancel()
	_, err = s.propose(ctx, state.UnlinkIdentity{
		UserID: user.ID, Provider: name, At: c.now.UnixMilli(),
		Audit: []state.AuditEvent{c.event(eventIdentityUnlinked, user.PersonalOrg, kindUser, user.ID, "provider", name, "subject", subject)},
	})
	if err != nil {
		return err
	}
	return c.noContent()
}
