package authapi

import (
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
	role, err := c.member(c.param(0))
	if err != nil {
		return err
	}
	org, err := c.srv.state.Organization(c.param(0))
	if err != nil {
		return err
	}
	if org == nil || org.DeletedAt != 0 {
		return errNotFound()
	}
	return c.writeJSON(http.StatusOK, newOrganizationBody(org, role))
}

// member is the caller's role in an organization, "" for a key of it. An organization that is not the caller's is not
// found, whether it exists or not.
func (c *call) member(organizationID string) (role string, err error) {
	if !plainID(organizationID) {
		return "", errNotFound()
	}
	if c.principal.Method == MethodAPIKey {
		if c.principal.OrganizationID != organizationID {
			return "", errNotFound()
		}
		return "", nil
	}
	m, err := found(c, func() (*state.Membership, error) {
		return c.srv.state.Membership(organizationID, c.principal.UserID)
	})
	if err != nil {
		return "", err
	}
	if m == nil {
		return "", errNotFound()
	}
	return m.Role, nil
}

// managers are the roles that manage an organization's keys and read its audit log.
var managers = []string{state.RoleOwner, state.RoleAdmin}

// manager refuses callers that are not of the organization, with 404, and those that may not manage it, with 403. A
// key's scope is checked by its route.
func (c *call) manager(organizationID string) error {
	role, err := c.member(organizationID)
	if err != nil {
		return err
	}
	if c.principal.Method == MethodJWT && role != state.RoleOwner && role != state.RoleAdmin {
		return problem(http.StatusForbidden, "forbidden", "this needs the role owner or admin in the organization")
	}
	return nil
}
