package authapi

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"unicode"
	"unicode/utf8"

	"sluice/raftfsm/state"
)

// organizationBody is an organization as its members see it.
type organizationBody struct {
	ID        string  `json:"id"`
	Name      string  `json:"name"`
	Personal  bool    `json:"personal"`
	Plan      *string `json:"plan"`
	Role      *string `json:"role"` // the caller's; null for a key
	CreatedAt string  `json:"created_at"`
}

func newOrganizationBody(o *state.Organization, role string) *organizationBody {
	return &organizationBody{
		ID: o.ID, Name: o.Name, Personal: o.Personal, Plan: textOrNull(o.Plan), Role: textOrNull(role), CreatedAt: formatTime(o.CreatedAt),
	}
}

// organizationRoutes are the rows of organizations and their members. A key makes no organization: it has no user who
// could own it.
func organizationRoutes() []route {
	return []route{
		{method: "POST", pattern: "/api/v1/organizations", handle: handleCreateOrganization, auth: authJWT},
		{method: "GET", pattern: "/api/v1/organizations", handle: handleListOrganizations, auth: authAny, scope: matrix[opReadOrganization].scope},
		{method: "GET", pattern: "/api/v1/organizations/{id}", handle: handleGetOrganization, auth: authAny},
		{method: "PATCH", pattern: "/api/v1/organizations/{id}", handle: handleUpdateOrganization, auth: authAny},
		{method: "DELETE", pattern: "/api/v1/organizations/{id}", handle: handleDeleteOrganization, auth: authAny},
		{method: "POST", pattern: "/api/v1/organizations/{id}/transfer", handle: handleTransferOrganization, auth: authAny},
		{method: "GET", pattern: "/api/v1/organizations/{id}/members", handle: handleListMembers, auth: authAny},
		{method: "POST", pattern: "/api/v1/organizations/{id}/members", handle: handleAddMember, auth: authAny},
		{method: "GET", pattern: "/api/v1/organizations/{id}/members/{user_id}", handle: handleGetMember, auth: authAny},
		{method: "PATCH", pattern: "/api/v1/organizations/{id}/members/{user_id}", handle: handleUpdateMember, auth: authAny},
		{method: "DELETE", pattern: "/api/v1/organizations/{id}/members/{user_id}", handle: handleRemoveMember, auth: authAny},
	}
}

type createOrganizationRequest struct {
	Name string `json:"name"`
}

// nameMax bounds names of organizations and keys, in code points.
const nameMax = 100

// checkName trims a name and says what is wrong with it, "" for nothing.
func checkName(name string) (trimmed, wrong string) {
	name = strings.TrimSpace(name)
	n := utf8.RuneCountInString(name)
	if n < 1 || n > nameMax {
		return name, "must have 1 to 100 characters"
	}
	for _, r := range name {
		if !unicode.IsPrint(r) {
			return name, "must have printable characters only"
		}
	}
	return name, ""
}

func handleCreateOrganization(c *call) error {
	var req createOrganizationRequest
	if err := c.decode(&req); err != nil {
		return err
	}
	name, wrong := checkName(req.Name)
	if wrong != "" {
		return invalid("name", wrong)
	}
	once, err := c.beginOnce()
	if err != nil {
		return err
	}
	defer once.end()
	org := state.Organization{
		ID: newID(idOrganization, c.now), Name: name, CreatedAt: c.now.UnixMilli(), CreatedBy: c.principal.UserID,
	}
	answer := newOrganizationBody(&org, state.RoleOwner)
	record, err := once.record(http.StatusCreated, answer)
	if err != nil {
		return err
	}
	ctx, cancel := c.context()
	defer cancel()
	res, err := c.srv.propose(ctx, state.CreateOrg{
		Organization: org, OwnerID: c.principal.UserID, Idempotency: record,
		Audit: []state.AuditEvent{c.event("organization.created", org.ID, kindOrganization, org.ID, "name", name)},
	})
	if err != nil {
		return err
	}
	return once.answer(res, http.StatusCreated, answer)
}

func handleListOrganizations(c *call) error {
	limit, after, err := c.pageArgs()
	if err != nil {
		return err
	}
	c.catchUpToRead()
	list, next := []*organizationBody{}, ""
	memberships := []state.Membership{{OrganizationID: c.principal.OrganizationID}} // of a key: its own organization
	if c.principal.Method == MethodJWT {
		if memberships, err = c.srv.state.MembershipsOf(c.principal.UserID); err != nil {
			return err
		}
	}
	for _, m := range memberships {
		if m.OrganizationID <= after {
			continue
		}
		org, err := c.srv.state.Organization(m.OrganizationID)
		if err != nil {
			return err
		}
		if org == nil || org.DeletedAt != 0 {
			continue
		}
		if len(list) == limit {
			next = list[limit-1].ID
			break
		}
		list = append(list, newOrganizationBody(org, m.Role))
	}
	return c.writePage(list, next)
}

func handleGetOrganization(c *call) error {
	c.catchUpToRead()
	a, err := c.allow(opReadOrganization, c.param(0))
	if err != nil {
		return err
	}
	return c.writeJSON(http.StatusOK, newOrganizationBody(a.org, a.role))
}

// updateOrganizationRequest tells absent (empty) from null.
type updateOrganizationRequest struct {
	Name json.RawMessage `json:"name"`
	Plan json.RawMessage `json:"plan"`
}

func handleUpdateOrganization(c *call) error {
	a, err := c.allow(opRenameOrganization, c.param(0))
	if err != nil {
		return err
	}
	var req updateOrganizationRequest
	if err := c.decode(&req); err != nil {
		return err
	}
	if req.Plan != nil {
		return problem(http.StatusForbidden, "forbidden", "the plan is set by the operators of the cluster")
	}
	if req.Name == nil {
		return c.writeJSON(http.StatusOK, newOrganizationBody(a.org, a.role))
	}
	var name string
	wrong := "must be a string"
	if json.Unmarshal(req.Name, &name) == nil && !bytes.Equal(req.Name, jsonNull) {
		name, wrong = checkName(name)
	}
	if wrong != "" {
		return invalid("name", wrong)
	}
	ctx, cancel := c.context()
	defer cancel()
	_, err = c.srv.propose(ctx, state.UpdateOrg{
		OrganizationID: a.org.ID, Actor: c.actor(opRenameOrganization), Name: &name, At: c.now.UnixMilli(),
		Audit: []state.AuditEvent{c.event("organization.updated", a.org.ID, kindOrganization, a.org.ID, "name", name)},
	})
	if err != nil {
		return err
	}
	a.org.Name = name
	return c.writeJSON(http.StatusOK, newOrganizationBody(a.org, a.role))
}

func handleDeleteOrganization(c *call) error {
	a, err := c.allow(opDeleteOrganization, c.param(0))
	if err != nil {
		return err
	}
	ctx, cancel := c.context()
	defer cancel()
	_, err = c.srv.propose(ctx, state.DeleteOrg{
		OrganizationID: a.org.ID, Actor: c.actor(opDeleteOrganization), At: c.now.UnixMilli(),
		Audit: []state.AuditEvent{c.event("organization.deleted", a.org.ID, kindOrganization, a.org.ID, "name", a.org.Name)},
	})
	if err != nil {
		return err
	}
	return c.noContent()
}

// handleTransferOrganization makes a member the owner in the caller's place, who stays as an admin.
func handleTransferOrganization(c *call) error {
	a, err := c.access(c.param(0))
	if err != nil {
		return err
	}
	once, err := c.beginOnce()
	if err != nil {
		return err
	}
	defer once.end()
	// Who repeats a transfer whose answer was lost is no owner any more: the state machine decides, after it has looked
	// for the first answer.
	if !once.active || c.principal.Method == MethodAPIKey {
		if _, err := c.allow(opTransferOrganization, a.org.ID); err != nil {
			return err
		}
	}
	var req userRequest
	if err := c.decode(&req); err != nil {
		return err
	}
	if err := invalidFields(req.check(nil)); err != nil {
		return err
	}
	user, err := c.userOf(req)
	if err != nil {
		return err
	}
	if user.ID == c.principal.UserID {
		return invalid(req.field(), "must be another member")
	}
	answer := newOrganizationBody(a.org, state.RoleAdmin)
	record, err := once.record(http.StatusOK, answer)
	if err != nil {
		return err
	}
	ctx, cancel := c.context()
	defer cancel()
	res, err := c.srv.propose(ctx, state.TransferOrg{
		OrganizationID: a.org.ID, ToUserID: user.ID, Actor: c.actor(opTransferOrganization), At: c.now.UnixMilli(), Idempotency: record,
		Audit: []state.AuditEvent{c.event("organization.transferred", a.org.ID, kindOrganization, a.org.ID, "from", c.principal.UserID, "to", user.ID)},
	})
	if err != nil {
		return err
	}
	return once.answer(res, http.StatusOK, answer)
}
