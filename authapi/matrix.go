package authapi

import (
	"net/http"
	"slices"
	"strings"

	"sluice/raftfsm/state"
)

// operation is something that can be done with an organization and with what belongs to it.
type operation uint8

const (
	opReadOrganization     operation = 0
	opRenameOrganization   operation = 1
	opDeleteOrganization   operation = 2
	opTransferOrganization operation = 3
	opReadMembers          operation = 4
	opManageMembers        operation = 5
	opLeave                operation = 6
	opManageKeys           operation = 7
	opReadAudit            operation = 8
)

// permission is who may do an operation: a user by the role in that organization, a key of it by a scope.
type permission struct {
	name  string // in docs/permissions.md, which a test holds to this table
	roles []string
	scope string // "": no key may
}

var (
	rolesAll   = []string{state.RoleOwner, state.RoleAdmin, state.RoleMember, state.RoleViewer}
	rolesAdmin = []string{state.RoleOwner, state.RoleAdmin}
	rolesOwner = []string{state.RoleOwner}
)

const (
	scopeReadOrganizations   = "organizations:read"
	scopeManageOrganizations = "organizations:manage"
	scopeReadAudit           = "audit-logs:read"
)

// matrix is every permission within an organization, by operation. Nothing else decides who may what: handlers ask
// call.allow, and the state machine gets its roles and scopes from here (call.actor). Routes that take the id of an
// organization, or of what belongs to one, leave the scope to call.allow too: what is not the caller's is a 404 before
// anything is said of scopes.
var matrix = [...]permission{
	opReadOrganization:     {"read the organization", rolesAll, scopeReadOrganizations},
	opRenameOrganization:   {"rename it", rolesAdmin, scopeManageOrganizations},
	opDeleteOrganization:   {"delete it", rolesOwner, ""},
	opTransferOrganization: {"transfer it", rolesOwner, ""},
	opReadMembers:          {"list and read members", rolesAll, scopeReadOrganizations},
	opManageMembers:        {"add, change and remove members", rolesAdmin, scopeManageOrganizations},
	opLeave:                {"leave it", rolesAll, ""},
	opManageKeys:           {"make, list, change, rotate and revoke API keys", rolesAdmin, scopeManageKeys},
	opReadAudit:            {"read the audit log", rolesAdmin, scopeReadAudit},
}

// scopeClass is what kind of right a scope is, as far as roles go.
type scopeClass uint8

const (
	classRead   scopeClass = 0
	classUse    scopeClass = 1
	classManage scopeClass = 2
)

// roleScopes is what a token gives of the scopes that a configured route or a forward-auth check asks for: by the role
// in the organization that the token speaks for.
var roleScopes = [...]struct {
	name  string // in docs/permissions.md
	roles []string
}{
	classRead:   {"`<resource>:read`, but for `audit-logs`", rolesAll},
	classUse:    {"every other action on a resource that is not Sluice's own", []string{state.RoleOwner, state.RoleAdmin, state.RoleMember}},
	classManage: {"every other action on `organizations`, `api-keys`, `audit-logs` and `tokens`; `audit-logs:read`; `*`", rolesAdmin},
}

// ownResources are Sluice's own: what is done with them is management.
var ownResources = [...]string{"organizations", "api-keys", "audit-logs", "tokens"}

// classOf allocates nothing: it stands on the way of every check.
func classOf(scope string) scopeClass {
	resource, action, _ := strings.Cut(scope, ":")
	if resource == "*" || resource == "" {
		return classManage
	}
	if action == "read" && resource != "audit-logs" {
		return classRead
	}
	for _, own := range ownResources {
		if resource == own {
			return classManage
		}
	}
	return classUse
}

// roleAllows says whether a role gives a scope.
func roleAllows(role, scope string) bool {
	return slices.Contains(roleScopes[classOf(scope)].roles, role)
}

// access is a caller in an organization.
type access struct {
	org  *state.Organization
	role string // "" for a key
}

// allow says whether the caller may do op in an organization: 404 for one that is not the caller's, whether it exists or
// not, and 403 where a role or a scope is missing in the caller's own.
func (c *call) allow(op operation, organizationID string) (access, error) {
	a, err := c.access(organizationID)
	if err != nil {
		return access{}, err
	}
	p := &matrix[op]
	if c.principal.Method == MethodAPIKey {
		switch {
		case p.scope == "":
			return access{}, problem(http.StatusForbidden, "forbidden", "this needs a signed-in user; an API key cannot do it")
		case !state.ScopeAllows(c.principal.Scopes, p.scope):
			return access{}, errScope(p.scope)
		}
		return a, nil
	}
	if !slices.Contains(p.roles, a.role) {
		return access{}, problem(http.StatusForbidden, "forbidden", "this needs the role "+strings.Join(p.roles, " or ")+" in the organization")
	}
	return a, nil
}

// access finds the caller's place in an organization.
func (c *call) access(organizationID string) (access, error) {
	if !plainID(organizationID) {
		return access{}, errNotFound()
	}
	var a access
	switch c.principal.Method {
	case MethodAPIKey:
		if c.principal.OrganizationID != organizationID {
			return access{}, c.notYours(organizationID)
		}
	case MethodJWT:
		m, err := found(c, func() (*state.Membership, error) {
			return c.srv.state.Membership(organizationID, c.principal.UserID)
		})
		if err != nil {
			return access{}, err
		}
		if m == nil {
			return access{}, c.notYours(organizationID)
		}
		a.role = m.Role
	default:
		return access{}, errNoCredential()
	}
	var err error
	if a.org, err = c.srv.state.Organization(organizationID); err != nil {
		return access{}, err
	}
	if a.org == nil || a.org.DeletedAt != 0 {
		return access{}, errNotFound()
	}
	return a, nil
}

// actor is the caller as the state machine checks it again for an operation: a user by one of the roles, a key by the
// scope and by what more it needs.
func (c *call) actor(op operation, more ...string) state.Actor {
	p := &matrix[op]
	if c.principal.Method == MethodAPIKey {
		return state.Actor{KeyID: c.principal.KeyID, Scopes: append([]string{p.scope}, more...)}
	}
	return state.Actor{UserID: c.principal.UserID, Roles: p.roles}
}

// mayGive refuses roles that are not the caller's to give or to take, as the state machine does: an owner's is the
// owners' alone; an admin's takes a key that may do everything, since an admin can make such a key.
func (c *call) mayGive(a access, roles ...string) error {
	for _, role := range roles {
		switch {
		case role == state.RoleOwner && a.role != state.RoleOwner:
			return problem(http.StatusForbidden, "forbidden", "only an owner gives or takes the role owner")
		case role == state.RoleAdmin && c.principal.Method == MethodAPIKey && !state.ScopeAllows(c.principal.Scopes, "*"):
			return errScope("*")
		}
	}
	return nil
}

// allowOwn is allow for what a request names no organization of, or none that can be read: a key is asked for the scope in
// its own one.
func (c *call) allowOwn(op operation) error {
	if c.principal.Method != MethodAPIKey {
		return nil
	}
	_, err := c.allow(op, c.principal.OrganizationID)
	return err
}
