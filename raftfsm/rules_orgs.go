package raftfsm

import "sluice/raftfsm/state"

func validRole(role string) bool {
	switch role {
	case state.RoleOwner, state.RoleAdmin, state.RoleMember, state.RoleViewer:
		return true
	}
	return false
}

// everything is the scope of a key that can do all that an admin can: whoever makes admins gives as much away.
var everything = []string{"*"}

// mayGive reports whether an actor that passed may, with these grants, can give and take each of the roles: an owner's is
// the owners' alone, and an admin's takes a key with everything, since an admin can make such a key.
func mayGive(b *batch, actor state.Actor, grants *[]string, org string, roles ...string) bool {
	for _, role := range roles {
		switch role {
		case state.RoleOwner:
			if !isOwner(b, actor, org) {
				return false
			}
		case state.RoleAdmin:
			if !covers(grants, everything) {
				return false
			}
		}
	}
	return true
}

// isOwner reports whether the actor is a user who owns the organization, whatever roles the command asks for.
func isOwner(b *batch, actor state.Actor, org string) bool {
	if actor.UserID == "" || actor.KeyID != "" {
		return false
	}
	member := membership(b, org, actor.UserID)
	return member != nil && member.Role == state.RoleOwner
}

func membership(b *batch, org, user string) *state.Membership {
	return load[state.Membership](b, key2(prefixMember, org, user))
}

// members loads an organization's memberships, up to limit.
func members(b *batch, org string, limit int) []state.Membership {
	prefix := key2(prefixMember, org, "")
	records := b.scan(prefix, prefix, limit)
	list := make([]state.Membership, 0, len(records))
	for _, r := range records {
		if m := load[state.Membership](b, r.key); m != nil {
			list = append(list, *m)
		}
	}
	return list
}

// isFull reports whether an organization has as many members as there can be.
func isFull(b *batch, org string) bool {
	prefix := key2(prefixMember, org, "")
	return len(b.scan(prefix, prefix, maxMembers)) >= maxMembers
}

// membershipsOf lists the organizations of a user, up to one more than there can be.
func membershipsOf(b *batch, user string) []string {
	prefix := key2(prefixUserMember, user, "")
	records := b.scan(prefix, prefix, maxMemberships+1)
	orgs := make([]string, 0, len(records))
	for _, r := range records {
		orgs = append(orgs, string(r.key[len(prefix):]))
	}
	return orgs
}

// otherOwner reports whether somebody but user owns an organization and can act. A disabled owner does not count: an
// organization must not be left to one.
func otherOwner(b *batch, list []state.Membership, user string) bool {
	for _, m := range list {
		if m.Role == state.RoleOwner && m.UserID != user && activeUser(b, m.UserID) != nil {
			return true
		}
	}
	return false
}

func saveMembership(b *batch, m *state.Membership) {
	b.store(key2(prefixMember, m.OrganizationID, m.UserID), m)
	b.put(key2(prefixUserMember, m.UserID, m.OrganizationID), nil)
}

func dropMembership(b *batch, org, user string) {
	b.delete(key2(prefixMember, org, user))
	b.delete(key2(prefixUserMember, user, org))
}

func updateOrg(b *batch, c state.UpdateOrg) state.Result {
	if c.Name == nil || !validName(*c.Name) {
		return refuse(state.CodeInvalid)
	}
	org := liveOrg(b, c.OrganizationID)
	if org == nil {
		return refuse(state.CodeNotFound)
	}
	if _, ok := may(b, c.Actor, org.ID); !ok {
		return refuse(state.CodeForbidden)
	}
	org.Name = *c.Name
	b.store(key1(prefixOrg, org.ID), org)
	audit(b, c.Audit)
	return state.Result{}
}

// ownersOrg is an organization that actor may end or give away, or the code of the refusal.
func ownersOrg(b *batch, actor state.Actor, id string) (*state.Organization, string) {
	org := liveOrg(b, id)
	if org == nil {
		return nil, state.CodeNotFound
	}
	if _, ok := may(b, actor, org.ID); !ok || !isOwner(b, actor, org.ID) {
		return nil, state.CodeForbidden
	}
	if org.Personal {
		return nil, state.CodePersonalOrganization
	}
	return org, ""
}

func deleteOrg(b *batch, c state.DeleteOrg) state.Result {
	org, code := ownersOrg(b, c.Actor, c.OrganizationID)
	if code != "" {
		return refuse(code)
	}
	// That it is gone is a record to be found; the memberships only say who may act in it, which nobody may now.
	list := members(b, org.ID, maxMembers+1)
	if len(list) > maxMembers {
		return refuse(state.CodeMembershipLimit)
	}
	for _, m := range list {
		dropMembership(b, org.ID, m.UserID)
	}
	org.DeletedAt = max(c.At, 1)
	b.store(key1(prefixOrg, org.ID), org)
	b.raise = true
	audit(b, c.Audit)
	return state.Result{}
}

func addMember(b *batch, c state.AddMember) state.Result {
	if result, ok := replayed(b, c.Idempotency); ok {
		return result
	}
	m := c.Membership
	if !validID(m.OrganizationID) || !validID(m.UserID) || !validRole(m.Role) {
		return refuse(state.CodeInvalid)
	}
	org := liveOrg(b, m.OrganizationID)
	if org == nil {
		return refuse(state.CodeNotFound)
	}
	grants, ok := may(b, c.Actor, org.ID)
	if !ok || !mayGive(b, c.Actor, grants, org.ID, m.Role) {
		return refuse(state.CodeForbidden)
	}
	switch {
	case activeUser(b, m.UserID) == nil:
		return refuse(state.CodeNotFound)
	case membership(b, org.ID, m.UserID) != nil:
		return refuse(state.CodeAlreadyMember)
	case org.Personal && m.Role == state.RoleOwner:
		return refuse(state.CodePersonalOrganization)
	case isFull(b, org.ID), len(membershipsOf(b, m.UserID)) >= maxMemberships:
		return refuse(state.CodeMembershipLimit)
	}
	saveMembership(b, &m)
	b.raise = true // the organization's plan may be the more generous one
	audit(b, c.Audit)
	rememberAnswer(b, c.Idempotency)
	return state.Result{}
}

func updateMember(b *batch, c state.UpdateMember) state.Result {
	if !validRole(c.Role) {
		return refuse(state.CodeInvalid)
	}
	org, m, code := managedMember(b, c.Actor, c.OrganizationID, c.UserID, c.Role)
	switch {
	case code != "":
		return refuse(code)
	case m.Role == c.Role:
		return state.Result{}
	case org.Personal && (m.Role == state.RoleOwner || c.Role == state.RoleOwner):
		return refuse(state.CodePersonalOrganization)
	case m.Role == state.RoleOwner && !otherOwner(b, members(b, org.ID, maxMembers), m.UserID):
		return refuse(state.CodeLastOwner)
	}
	m.Role = c.Role
	saveMembership(b, m)
	b.raise = true
	audit(b, c.Audit)
	return state.Result{Count: 1}
}

func removeMember(b *batch, c state.RemoveMember) state.Result {
	org, m, code := managedMember(b, c.Actor, c.OrganizationID, c.UserID, "")
	switch {
	case code != "":
		return refuse(code)
	case org.Personal && m.Role == state.RoleOwner:
		return refuse(state.CodePersonalOrganization)
	case m.Role == state.RoleOwner && !otherOwner(b, members(b, org.ID, maxMembers), m.UserID):
		return refuse(state.CodeLastOwner)
	}
	dropMembership(b, org.ID, m.UserID)
	b.raise = true
	audit(b, c.Audit)
	return state.Result{}
}

// managedMember finds a membership that the actor may take away and, where role is not "", replace by role; otherwise
// the refusal's code. Everybody may give up the own one.
func managedMember(b *batch, actor state.Actor, orgID, userID, role string) (*state.Organization, *state.Membership, string) {
	org := liveOrg(b, orgID)
	if org == nil {
		return nil, nil, state.CodeNotFound
	}
	grants, ok := may(b, actor, org.ID)
	if !ok {
		return nil, nil, state.CodeForbidden
	}
	m := membership(b, org.ID, userID)
	if m == nil {
		return nil, nil, state.CodeNotFound
	}
	if !mayGive(b, actor, grants, org.ID, m.Role, role) {
		return nil, nil, state.CodeForbidden
	}
	return org, m, ""
}

func transferOrg(b *batch, c state.TransferOrg) state.Result {
	if result, ok := replayed(b, c.Idempotency); ok {
		return result
	}
	org, code := ownersOrg(b, c.Actor, c.OrganizationID)
	if code != "" {
		return refuse(code)
	}
	if c.ToUserID == c.Actor.UserID {
		return refuse(state.CodeConflict)
	}
	from, to := membership(b, org.ID, c.Actor.UserID), membership(b, org.ID, c.ToUserID)
	if from == nil || to == nil || activeUser(b, c.ToUserID) == nil {
		return refuse(state.CodeNotFound)
	}
	from.Role, to.Role = state.RoleAdmin, state.RoleOwner
	saveMembership(b, from)
	saveMembership(b, to)
	b.raise = true
	audit(b, c.Audit)
	rememberAnswer(b, c.Idempotency)
	return state.Result{}
}

func setPlan(b *batch, c state.SetPlan) state.Result {
	if len(c.Plan) > maxName {
		return refuse(state.CodeInvalid)
	}
	org := liveOrg(b, c.OrganizationID)
	if org == nil {
		return refuse(state.CodeNotFound)
	}
	if org.Plan == c.Plan {
		return state.Result{}
	}
	org.Plan = c.Plan
	b.store(key1(prefixOrg, org.ID), org)
	b.raise = true
	audit(b, c.Audit)
	return state.Result{Count: 1}
}
