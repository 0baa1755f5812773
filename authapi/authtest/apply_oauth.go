package authtest

import (
	"strings"

	"sluice/raftfsm/state"
)

func (c *Cluster) applyOAuthLocked(cmd state.Command) state.Result {
	switch cmd := cmd.(type) {
	case state.UseOnce:
		if !c.takeOnceLocked(cmd.Once) {
			return refuse(state.CodeAlreadyUsed)
		}
		c.audit = append(c.audit, cmd.Audit...)
	case state.RegisterIdentity:
		id := [2]string{cmd.Identity.Provider, cmd.Identity.Subject}
		if _, taken := c.identities[id]; taken {
			return refuse(state.CodeIdentityTaken)
		}
		r := c.registerLocked(state.RegisterUser{User: cmd.User, Organization: cmd.Organization, Session: cmd.Session, Audit: cmd.Audit})
		if cmd.Session.ID == "" {
			delete(c.sessions, "")
		}
		if r.Refused == "" {
			c.identities[id] = cmd.Identity
		}
		return r
	case state.SignInByIdentity:
		identity, ok := c.identities[[2]string{cmd.Provider, cmd.Subject}]
		switch {
		case len(cmd.Once.Hash) > 0 && c.once[string(cmd.Once.Hash)]:
			return refuse(state.CodeAlreadyUsed)
		case !ok:
			return refuse(state.CodeNotFound)
		case identity.UserID != cmd.Session.UserID:
			return refuse(state.CodeConflict)
		case !c.activeLocked(identity.UserID):
			return refuse(state.CodeForbidden)
		}
		if len(cmd.Once.Hash) > 0 {
			c.once[string(cmd.Once.Hash)] = true
		}
		return c.createSessionLocked(state.CreateSession{Session: cmd.Session, MaxSessions: cmd.MaxSessions, Audit: cmd.Audit})
	case state.LinkIdentity:
		i := cmd.Identity
		s, ok := c.sessions[cmd.SessionID]
		if !ok || s.UserID != i.UserID || s.EndedAt != 0 || s.ExpiresAt <= cmd.At || !c.activeLocked(i.UserID) {
			return refuse(state.CodeSessionEnded)
		}
		if taken, ok := c.identities[[2]string{i.Provider, i.Subject}]; ok {
			if taken.UserID != i.UserID {
				return refuse(state.CodeIdentityTaken)
			}
			return state.Result{}
		}
		for _, other := range c.identities {
			if other.UserID == i.UserID && other.Provider == i.Provider {
				return refuse(state.CodeConflict)
			}
		}
		c.identities[[2]string{i.Provider, i.Subject}] = i
		c.audit = append(c.audit, cmd.Audit...)
		return state.Result{Count: 1}
	case state.UnlinkIdentity:
		count, found := 0, state.Identity{}
		for _, i := range c.identities {
			if i.UserID == cmd.UserID {
				count++
				if i.Provider == cmd.Provider {
					found = i
				}
			}
		}
		switch {
		case found.UserID == "" || !c.activeLocked(cmd.UserID):
			return refuse(state.CodeNotFound)
		case count == 1 && c.users[cmd.UserID].PasswordHash == "":
			return refuse(state.CodeLastSignIn)
		}
		delete(c.identities, [2]string{found.Provider, found.Subject})
		c.audit = append(c.audit, cmd.Audit...)
		return state.Result{Count: 1}
	}
	return state.Result{}
}

func (c *Cluster) takeOnceLocked(once state.Once) bool {
	if c.once[string(once.Hash)] {
		return false
	}
	c.once[string(once.Hash)] = true
	return true
}

// Identity implements authapi.State.
func (c *Cluster) Identity(provider, subject string) (*state.Identity, error) {
	return find(c, c.identities, [2]string{provider, subject})
}

// IdentitiesOf implements authapi.State.
func (c *Cluster) IdentitiesOf(userID string) ([]state.Identity, error) {
	return pick(c, c.identities, func(i *state.Identity) bool { return i.UserID == userID },
		func(a, b state.Identity) int { return strings.Compare(a.Provider, b.Provider) })
}

// PutIdentity puts or replaces an identity.
func (c *Cluster) PutIdentity(i state.Identity) {
	c.put(func() { c.identities[[2]string{i.Provider, i.Subject}] = i })
}
