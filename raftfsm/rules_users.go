package raftfsm

import "sluice/raftfsm/state"

func deleteUser(b *batch, c state.DeleteUser) state.Result {
	user := activeUser(b, c.UserID)
	switch {
	case user == nil:
		return refuse(state.CodeNotFound)
	case user.PasswordHash != c.PasswordHash:
		return refuse(state.CodeConflict)
	}
	at := max(c.At, 1)
	count, code := leaveAll(b, user, at)
	if code != "" {
		return refuse(code)
	}
	prefix := key2(prefixUserIdentity, user.ID, "")
	identities := b.scan(prefix, prefix, maxIdentities+1)
	if len(identities) > maxIdentities {
		return refuse(state.CodeMembershipLimit)
	}
	for _, r := range identities {
		// What follows the user's id is the key of the identity itself: provider 0 subject.
		b.delete(key1(prefixIdentity, string(r.key[len(prefix):])))
		b.delete(r.key)
	}
	b.delete(key1(prefixUserName, user.Username))
	b.delete(key1(prefixUserEmail, user.Email))
	endAll(b, user.ID, "", at, "account_deleted")
	// The id stays taken, and whatever refers to it finds that the account is gone; what was the person's does not stay.
	b.store(key1(prefixUser, user.ID), state.User{ID: user.ID, CreatedAt: user.CreatedAt, DeletedAt: at, PersonalOrg: user.PersonalOrg})
	b.raise = true
	audit(b, c.Audit)
	return state.Result{Count: count}
}

// leaveAll ends a user's memberships, and the organizations that have no other member. code is the refusal's, "" for
// none; count is the number of organizations ended.
func leaveAll(b *batch, user *state.User, at int64) (count int, code string) {
	orgs := membershipsOf(b, user.ID)
	if len(orgs) > maxMemberships {
		return 0, state.CodeMembershipLimit
	}
	looks := 0
	for _, id := range orgs {
		own, org := membership(b, id, user.ID), liveOrg(b, id)
		if own == nil || org == nil {
			dropMembership(b, id, user.ID)
			continue
		}
		// Of others' organizations it matters only that there are others.
		limit := 2
		if own.Role == state.RoleOwner {
			limit = maxMembers
		}
		list := members(b, id, limit)
		if looks += len(list); looks > maxLooks {
			return 0, state.CodeMembershipLimit
		}
		dropMembership(b, id, user.ID)
		switch {
		case len(list) == 1:
			org.DeletedAt = at
			if org.Personal {
				org.Name = "" // it was the user's own
			}
			b.store(key1(prefixOrg, id), org)
			if count++; count > maxEnded {
				return 0, state.CodeMembershipLimit
			}
		case own.Role == state.RoleOwner && !otherOwner(b, list, user.ID):
			return 0, state.CodeLastOwner
		}
	}
	return count, ""
}

func setUserDisabled(b *batch, c state.SetUserDisabled) state.Result {
	user := load[state.User](b, key1(prefixUser, c.UserID))
	switch {
	case user == nil || user.DeletedAt != 0:
		return refuse(state.CodeNotFound)
	case c.Disabled == (user.DisabledAt != 0):
		return state.Result{}
	}
	user.DisabledAt = 0
	if c.Disabled {
		user.DisabledAt = max(c.At, 1)
		// Enabled again, the user signs in again: what was issued before is not to come back.
		endAll(b, user.ID, "", user.DisabledAt, c.Reason)
	}
	b.store(key1(prefixUser, user.ID), user)
	b.raise = true
	audit(b, c.Audit)
	return state.Result{Count: 1}
}
