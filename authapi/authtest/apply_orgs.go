package authtest

import (
	"slices"
	"strings"

	"sluice/raftfsm/state"
)

// MembersOf implements authapi.State.
func (c *Cluster) MembersOf(organizationID, after string, limit int) ([]state.Membership, error) {
	list, err := pick(c, c.members, func(m *state.Membership) bool {
		return m.OrganizationID == organizationID && m.UserID > after
	}, func(a, b state.Membership) int { return strings.Compare(a.UserID, b.UserID) })
	return list[:min(limit, len(list))], err
}

// KeyAuth implements authapi.State.
func (c *Cluster) KeyAuth(hash [32]byte) (*state.KeyAuth, error) {
	key, err := c.KeyByHash(hash)
	if err != nil || key == nil {
		return nil, err
	}
	auth := &state.KeyAuth{Key: *key}
	if auth.Organization, err = c.Organization(key.OrganizationID); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	maker := key.CreatedBy
	for range state.MaxKeyChain {
		if u, ok := c.users[maker]; ok {
			auth.Disabled = u.DisabledAt != 0 && u.DeletedAt == 0
			return auth, nil
		}
		k, ok := c.keys[maker]
		if !ok {
			return auth, nil
		}
		maker = k.CreatedBy
	}
	auth.Disabled = maker != ""
	return auth, nil
}

// applyOrgLocked is applyLocked for the commands about organizations, members and the end of accounts.
func (c *Cluster) applyOrgLocked(cmd state.Command) state.Result {
	switch cmd := cmd.(type) {
	case state.UpdateOrg:
		org, code := c.orgForLocked(cmd.OrganizationID, cmd.Actor)
		if code != "" {
			return refuse(code)
		}
		org.Name = *cmd.Name
		c.orgs[org.ID] = org
		c.audit = append(c.audit, cmd.Audit...)
	case state.DeleteOrg:
		org, code := c.orgForLocked(cmd.OrganizationID, cmd.Actor)
		switch {
		case code != "":
			return refuse(code)
		case c.roleLocked(org.ID, cmd.Actor.UserID) != state.RoleOwner:
			return refuse(state.CodeForbidden)
		case org.Personal:
			return refuse(state.CodePersonalOrganization)
		}
		c.endOrgLocked(org, cmd.At)
		c.audit = append(c.audit, cmd.Audit...)
	case state.AddMember:
		if r, ok := c.replayedLocked(cmd.Idempotency); ok {
			return r
		}
		m := cmd.Membership
		org, code := c.orgForLocked(m.OrganizationID, cmd.Actor)
		switch {
		case code != "":
			return refuse(code)
		case !c.mayGiveLocked(cmd.Actor, org.ID, m.Role):
			return refuse(state.CodeForbidden)
		case !c.activeLocked(m.UserID):
			return refuse(state.CodeNotFound)
		case c.roleLocked(org.ID, m.UserID) != "":
			return refuse(state.CodeAlreadyMember)
		case org.Personal && m.Role == state.RoleOwner:
			return refuse(state.CodePersonalOrganization)
		}
		c.members[[2]string{org.ID, m.UserID}] = m
		c.doneLocked(cmd.Audit, cmd.Idempotency)
	case state.UpdateMember:
		return c.changeMemberLocked(cmd.OrganizationID, cmd.UserID, cmd.Role, cmd.Actor, cmd.Audit)
	case state.RemoveMember:
		return c.changeMemberLocked(cmd.OrganizationID, cmd.UserID, "", cmd.Actor, cmd.Audit)
	case state.TransferOrg:
		if r, ok := c.replayedLocked(cmd.Idempotency); ok {
			return r
		}
		org, code := c.orgForLocked(cmd.OrganizationID, cmd.Actor)
		switch {
		case code != "":
			return refuse(code)
		case c.roleLocked(org.ID, cmd.Actor.UserID) != state.RoleOwner:
			return refuse(state.CodeForbidden)
		case org.Personal:
			return refuse(state.CodePersonalOrganization)
		case cmd.ToUserID == cmd.Actor.UserID:
			return refuse(state.CodeConflict)
		case c.roleLocked(org.ID, cmd.ToUserID) == "" || !c.activeLocked(cmd.ToUserID):
			return refuse(state.CodeNotFound)
		}
		c.setRoleLocked(org.ID, cmd.Actor.UserID, state.RoleAdmin)
		c.setRoleLocked(org.ID, cmd.ToUserID, state.RoleOwner)
		c.doneLocked(cmd.Audit, cmd.Idempotency)
	case state.SetPlan:
		org, ok := c.orgs[cmd.OrganizationID]
		switch {
		case !ok || org.DeletedAt != 0:
			return refuse(state.CodeNotFound)
		case org.Plan == cmd.Plan:
			return state.Result{}
		}
		org.Plan = cmd.Plan
		c.orgs[org.ID] = org
		c.audit = append(c.audit, cmd.Audit...)
		return state.Result{Count: 1}
	case state.DeleteUser:
		return c.deleteUserLocked(cmd)
	case state.SetUserDisabled:
		u, ok := c.users[cmd.UserID]
		switch {
		case !ok || u.DeletedAt != 0:
			return refuse(state.CodeNotFound)
		case cmd.Disabled == (u.DisabledAt != 0):
			return state.Result{}
		}
		u.DisabledAt = 0
		if cmd.Disabled {
			u.DisabledAt = cmd.At
			c.endAllLocked(u.ID, "", cmd.At, cmd.Reason)
		}
		c.users[u.ID] = u
		c.audit = append(c.audit, cmd.Audit...)
		return state.Result{Count: 1}
	}
	return state.Result{}
}

// orgForLocked is a live organization in which the actor may what it asks for.
func (c *Cluster) orgForLocked(id string, a state.Actor) (state.Organization, string) {
	org, ok := c.orgs[id]
	if !ok || org.DeletedAt != 0 {
		return org, state.CodeNotFound
	}
	if !c.mayLocked(a, id, nil) {
		return org, state.CodeForbidden
	}
	return org, ""
}

func (c *Cluster) roleLocked(org, user string) string { return c.members[[2]string{org, user}].Role }

func (c *Cluster) setRoleLocked(org, user, role string) {
	m := c.members[[2]string{org, user}]
	m.Role = role
	c.members[[2]string{org, user}] = m
}

func (c *Cluster) mayGiveLocked(a state.Actor, org string, roles ...string) bool {
	if slices.Contains(roles, state.RoleOwner) && (a.KeyID != "" || c.roleLocked(org, a.UserID) != state.RoleOwner) {
		return false
	}
	return !slices.Contains(roles, state.RoleAdmin) || a.KeyID == "" || state.ScopeAllows(c.keys[a.KeyID].Scopes, "*")
}

// changeMemberLocked gives a member another role, or ends the membership where role is "".
func (c *Cluster) changeMemberLocked(orgID, userID, role string, a state.Actor, audit []state.AuditEvent) state.Result {
	org, code := c.orgForLocked(orgID, a)
	if code != "" {
		return refuse(code)
	}
	was := c.roleLocked(orgID, userID)
	switch {
	case was == "":
		return refuse(state.CodeNotFound)
	case !c.mayGiveLocked(a, orgID, was, role):
		return refuse(state.CodeForbidden)
	case was == role:
		return state.Result{}
	case org.Personal && (was == state.RoleOwner || role == state.RoleOwner):
		return refuse(state.CodePersonalOrganization)
	case was == state.RoleOwner && !c.otherOwnerLocked(orgID, userID):
		return refuse(state.CodeLastOwner)
	}
	if role == "" {
		delete(c.members, [2]string{orgID, userID})
	} else {
		c.setRoleLocked(orgID, userID, role)
	}
	c.audit = append(c.audit, audit...)
	return state.Result{Count: 1}
}

func (c *Cluster) otherOwnerLocked(org, user string) bool {
	for _, m := range c.members {
		if m.OrganizationID == org && m.UserID != user && m.Role == state.RoleOwner && c.activeLocked(m.UserID) {
			return true
		}
	}
	return false
}

func (c *Cluster) endOrgLocked(org state.Organization, at int64) {
	org.DeletedAt = at
	c.orgs[org.ID] = org
	for at, m := range c.members {
		if m.OrganizationID == org.ID {
			delete(c.members, at)
		}
	}
}

func (c *Cluster) deleteUserLocked(cmd state.DeleteUser) state.Result {
	u := c.users[cmd.UserID]
	switch {
	case !c.activeLocked(cmd.UserID):
		return refuse(state.CodeNotFound)
	case u.PasswordHash != cmd.PasswordHash:
		return refuse(state.CodeConflict)
	}
	var leave, end []string
	for _, m := range c.members {
		if m.UserID != u.ID {
			continue
		}
		others := 0
		for _, o := range c.members {
			if o.OrganizationID == m.OrganizationID && o.UserID != u.ID {
				others++
			}
		}
		switch {
		case others == 0:
			end = append(end, m.OrganizationID)
		case m.Role == state.RoleOwner && !c.otherOwnerLocked(m.OrganizationID, u.ID):
			return refuse(state.CodeLastOwner)
		default:
			leave = append(leave, m.OrganizationID)
		}
	}
	for _, id := range leave {
		delete(c.members, [2]string{id, u.ID})
	}
	for _, id := range end {
		c.endOrgLocked(c.orgs[id], cmd.At)
	}
	for id, i := range c.identities {
		if i.UserID == u.ID {
			delete(c.identities, id)
		}
	}
	c.users[u.ID] = state.User{ID: u.ID, CreatedAt: u.CreatedAt, DeletedAt: cmd.At, PersonalOrg: u.PersonalOrg}
	c.endAllLocked(u.ID, "", cmd.At, "account_deleted")
	c.audit = append(c.audit, cmd.Audit...)
	return state.Result{Count: len(end)}
}

// ChangeRoleLocked changes a member's role from within an OnPropose.
func (c *Cluster) ChangeRoleLocked(organizationID, userID, role string) {
	c.setRoleLocked(organizationID, userID, role)
}
