package authapi

import (
	"net/http"
	"slices"

	"sluice/raftfsm/state"
)

// memberBody is a member as the others see it: nobody's e-mail address.
type memberBody struct {
	UserID    string `json:"user_id"`
	Username  string `json:"username"`
	Role      string `json:"role"`
	CreatedAt string `json:"created_at"`
}

func newMemberBody(m *state.Membership, username string) *memberBody {
	return &memberBody{UserID: m.UserID, Username: username, Role: m.Role, CreatedAt: formatTime(m.CreatedAt)}
}

// userRequest names a user, by one of the two.
type userRequest struct {
	Username string `json:"username"`
	UserID   string `json:"user_id"`
}

// field is the one that is given.
func (r userRequest) field() string {
	if r.UserID != "" {
		return "user_id"
	}
	return "username"
}

func (r userRequest) check(wrong []FieldError) []FieldError {
	switch {
	case r.Username == "" && r.UserID == "":
		return append(wrong, FieldError{"username", "is required, or user_id"})
	case r.Username != "" && r.UserID != "":
		return append(wrong, FieldError{"username", "must not be given together with user_id"})
	}
	return wrong
}

// userOf finds the user that a request names: one that can sign in, 404 for every other.
func (c *call) userOf(r userRequest) (*state.User, error) {
	read := func() (*state.User, error) { return c.srv.state.User(r.UserID) }
	if r.Username != "" {
		name, ok := normalUsername(r.Username)
		if !ok {
			return nil, errNoSuchUser()
		}
		read = func() (*state.User, error) { return c.srv.state.UserByName(name) }
	} else if !plainID(r.UserID) {
		return nil, errNoSuchUser()
	}
	user, err := found(c, read)
	if err != nil {
		return nil, err
	}
	if user == nil || user.DeletedAt != 0 || user.DisabledAt != 0 {
		return nil, errNoSuchUser()
	}
	return user, nil
}

func errNoSuchUser() *Problem {
	return problem(http.StatusNotFound, "not_found", "there is no such user")
}

func checkRole(role string, wrong []FieldError) []FieldError {
	if slices.Contains(rolesAll, role) {
		return wrong
	}
	return append(wrong, FieldError{"role", "must be owner, admin, member or viewer"})
}

func handleListMembers(c *call) error {
	c.catchUpToRead()
	a, err := c.allow(opReadMembers, c.param(0))
	if err != nil {
		return err
	}
	limit, after, err := c.pageArgs()
	if err != nil {
		return err
	}
	members, err := c.srv.state.MembersOf(a.org.ID, after, limit+1)
	if err != nil {
		return err
	}
	next := ""
	if len(members) > limit {
		members = members[:limit]
		next = members[limit-1].UserID
	}
	list := make([]*memberBody, 0, len(members))
	for i := range members {
		name, err := c.srv.username(members[i].UserID)
		if err != nil {
			return err
		}
		list = append(list, newMemberBody(&members[i], name))
	}
	return c.writePage(list, next)
}

// username is "" for a user that is gone.
func (s *Server) username(userID string) (string, error) {
	user, err := s.state.User(userID)
	if err != nil || user == nil {
		return "", err
	}
	return user.Username, nil
}

func handleGetMember(c *call) error {
	c.catchUpToRead()
	a, err := c.allow(opReadMembers, c.param(0))
	if err != nil {
		return err
	}
	m, err := c.memberOf(a, c.param(1))
	if err != nil {
		return err
	}
	return c.writeMember(http.StatusOK, m)
}

// memberOf finds a member of an organization that the caller may look into.
func (c *call) memberOf(a access, userID string) (*state.Membership, error) {
	if !plainID(userID) {
		return nil, errNotFound()
	}
	m, err := found(c, func() (*state.Membership, error) { return c.srv.state.Membership(a.org.ID, userID) })
	if err != nil {
		return nil, err
	}
	if m == nil {
		return nil, errNotFound()
	}
	return m, nil
}

func (c *call) writeMember(status int, m *state.Membership) error {
	name, err := c.srv.username(m.UserID)
	if err != nil {
		return err
	}
	return c.writeJSON(status, newMemberBody(m, name))
}

type addMemberRequest struct {
	userRequest
	Role string `json:"role"`
}

func handleAddMember(c *call) error {
	a, err := c.allow(opManageMembers, c.param(0))
	if err != nil {
		return err
	}
	var req addMemberRequest
	if err := c.decode(&req); err != nil {
		return err
	}
	if err := c.mayGive(a, req.Role); err != nil {
		return err
	}
	if err := invalidFields(checkRole(req.Role, req.check(nil))); err != nil {
		return err
	}
	once, err := c.beginOnce()
	if err != nil {
		return err
	}
	defer once.end()
	user, err := c.userOf(req.userRequest)
	if err != nil {
		return err
	}
	m := state.Membership{OrganizationID: a.org.ID, UserID: user.ID, Role: req.Role, CreatedAt: c.now.UnixMilli()}
	answer := newMemberBody(&m, user.Username)
	record, err := once.record(http.StatusCreated, answer)
	if err != nil {
		return err
	}
	ctx, cancel := c.context()
	defer cancel()
	res, err := c.srv.propose(ctx, state.AddMember{
		Membership: m, Actor: c.actor(opManageMembers), Idempotency: record,
		Audit: []state.AuditEvent{c.event("member.added", a.org.ID, kindUser, user.ID, "role", m.Role)},
	})
	if err != nil {
		return err
	}
	return once.answer(res, http.StatusCreated, answer)
}

type updateMemberRequest struct {
	Role string `json:"role"`
}

func handleUpdateMember(c *call) error {
	a, err := c.allow(opManageMembers, c.param(0))
	if err != nil {
		return err
	}
	m, err := c.memberOf(a, c.param(1))
	if err != nil {
		return err
	}
	var req updateMemberRequest
	if err := c.decode(&req); err != nil {
		return err
	}
	if err := c.mayGive(a, m.Role, req.Role); err != nil {
		return err
	}
	if err := invalidFields(checkRole(req.Role, nil)); err != nil {
		return err
	}
	ctx, cancel := c.context()
	defer cancel()
	_, err = c.srv.propose(ctx, state.UpdateMember{
		OrganizationID: a.org.ID, UserID: m.UserID, Role: req.Role, Actor: c.actor(opManageMembers), At: c.now.UnixMilli(),
		Audit: []state.AuditEvent{c.event("member.updated", a.org.ID, kindUser, m.UserID, "from", m.Role, "role", req.Role)},
	})
	if err != nil {
		return err
	}
	m.Role = req.Role
	return c.writeMember(http.StatusOK, m)
}

func handleRemoveMember(c *call) error {
	op := opManageMembers
	if c.principal.Method == MethodJWT && c.param(1) == c.principal.UserID {
		op = opLeave
	}
	a, err := c.allow(op, c.param(0))
	if err != nil {
		return err
	}
	m, err := c.memberOf(a, c.param(1))
	if err != nil {
		return err
	}
	if err := c.mayGive(a, m.Role); err != nil {
		return err
	}
	ctx, cancel := c.context()
	defer cancel()
	_, err = c.srv.propose(ctx, state.RemoveMember{
		OrganizationID: a.org.ID, UserID: m.UserID, Actor: c.actor(op), At: c.now.UnixMilli(),
		Audit: []state.AuditEvent{c.event("member.removed", a.org.ID, kindUser, m.UserID, "role", m.Role)},
	})
	if err != nil {
		return err
	}
	return c.noContent()
}
