package authapi_test

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"sluice/authapi"
	"sluice/raftfsm/state"
)

var roles = []string{state.RoleOwner, state.RoleAdmin, state.RoleMember, state.RoleViewer}

// docs/permissions.md says what the code's tables say, row by row.
func TestPermissionsDocument_IsTheTable(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/permissions.md")
	if err != nil {
		t.Fatal(err)
	}
	operations, scopes := authapi.Permissions()
	var want []string
	row := func(p authapi.Permission, key string) {
		cells := "| " + p.Name + " |"
		for _, role := range roles {
			if slices.Contains(p.Roles, role) {
				cells += " yes |"
			} else {
				cells += " no |"
			}
		}
		want = append(want, cells+key)
	}
	for _, p := range operations {
		key := " no |"
		if p.Scope != "" {
			key = " `" + p.Scope + "` |"
		}
		row(p, key)
	}
	for _, p := range scopes {
		row(p, "")
	}
	var got []string
	for _, line := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(line, "| ") && !strings.HasPrefix(line, "| ---") && !strings.Contains(line, "| owner |") {
			got = append(got, line)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the document has\n%s\nthe code has\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestRoleAllows(t *testing.T) {
	for scope, want := range map[string]string{ // the first letters of the roles that give it
		"events:read": "oamv", "events:write": "oam", "events:*": "oam", "triggers:execute": "oam", "*": "oa", "": "oa",
		"organizations:read": "oamv", "organizations:manage": "oa", "organizations:*": "oa", "api-keys:read": "oamv", "api-keys:manage": "oa",
		"audit-logs:read": "oa", "audit-logs:*": "oa", "tokens:introspect": "oa", "tokens:read": "oamv", "limits:check": "oam", ":read": "oa",
	} {
		got := ""
		for _, role := range append(roles, "", "king") {
			if authapi.RoleAllows(role, scope) {
				got += (role + "?")[:1]
			}
		}
		if got != want {
			t.Errorf("%q: given by %q, want %q", scope, got, want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { authapi.RoleAllows(state.RoleViewer, "events:write") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// place is an organization of its own for one request: with a member of each role, another member to do things to, and keys.
type place struct {
	org, extra, key string
	keys            map[string]string // secret by its scope
}

// matrixRow is what a route that takes an id is tried with.
type matrixRow struct {
	// operation is the one in the matrix that decides; "" for a route about the caller's own things.
	operation string
	path      func(p place) string
	body      func(p place) object
	good      int
	// exempt says why there is nothing to try: what stands in the braces is no id of anybody's.
	exempt string
}

const (
	organizationsPath = "/api/v1/organizations/"
	keysPath          = "/api/v1/api-keys/"
)

func noBody(place) object { return nil }

// matrixRows has every route that takes an id, in its path, its query or its body.
var matrixRows = map[string]matrixRow{
	"GET /api/v1/organizations/{id}": {operation: "read the organization",
		path: func(p place) string { return organizationsPath + p.org }, body: noBody, good: 200},
	"PATCH /api/v1/organizations/{id}": {operation: "rename it",
		path: func(p place) string { return organizationsPath + p.org }, body: func(place) object { return object{"name": "new"} }, good: 200},
	"DELETE /api/v1/organizations/{id}": {operation: "delete it",
		path: func(p place) string { return organizationsPath + p.org }, body: noBody, good: 204},
	"POST /api/v1/organizations/{id}/transfer": {operation: "transfer it",
		path: func(p place) string { return organizationsPath + p.org + "/transfer" },
		body: func(p place) object { return object{"user_id": p.extra} }, good: 200},
	"GET /api/v1/organizations/{id}/members": {operation: "list and read members",
		path: func(p place) string { return organizationsPath + p.org + "/members" }, body: noBody, good: 200},
	"POST /api/v1/organizations/{id}/members": {operation: "add, change and remove members",
		path: func(p place) string { return organizationsPath + p.org + "/members" },
		body: func(place) object { return object{"user_id": "usr_free", "role": "viewer"} }, good: 201},
	"GET /api/v1/organizations/{id}/members/{user_id}": {operation: "list and read members",
		path: func(p place) string { return organizationsPath + p.org + "/members/" + p.extra }, body: noBody, good: 200},
	"PATCH /api/v1/organizations/{id}/members/{user_id}": {operation: "add, change and remove members",
		path: func(p place) string { return organizationsPath + p.org + "/members/" + p.extra },
		body: func(place) object { return object{"role": "member"} }, good: 200},
	"DELETE /api/v1/organizations/{id}/members/{user_id}": {operation: "add, change and remove members",
		path: func(p place) string { return organizationsPath + p.org + "/members/" + p.extra }, body: noBody, good: 204},
	"POST /api/v1/api-keys": {operation: "make, list, change, rotate and revoke API keys",
		path: func(place) string { return "/api/v1/api-keys" },
		body: func(p place) object {
			return object{"name": "k", "organization_id": p.org, "scopes": []string{"api-keys:manage"}}
		}, good: 201},
	"GET /api/v1/api-keys": {operation: "make, list, change, rotate and revoke API keys",
		path: func(p place) string { return "/api/v1/api-keys?organization_id=" + p.org }, body: noBody, good: 200},
	"GET /api/v1/api-keys/{id}": {operation: "make, list, change, rotate and revoke API keys",
		path: func(p place) string { return keysPath + p.key }, body: noBody, good: 200},
	"PATCH /api/v1/api-keys/{id}": {operation: "make, list, change, rotate and revoke API keys",
		path: func(p place) string { return keysPath + p.key }, body: func(place) object { return object{"name": "new"} }, good: 200},
	"POST /api/v1/api-keys/{id}/rotate": {operation: "make, list, change, rotate and revoke API keys",
		path: func(p place) string { return keysPath + p.key + "/rotate" }, body: func(place) object { return object{} }, good: 200},
	"DELETE /api/v1/api-keys/{id}": {operation: "make, list, change, rotate and revoke API keys",
		path: func(p place) string { return keysPath + p.key }, body: noBody, good: 204},
	"GET /api/v1/organizations/{id}/api-keys/stats": {operation: "make, list, change, rotate and revoke API keys",
		path: func(p place) string { return organizationsPath + p.org + "/api-keys/stats" }, body: noBody, good: 200},
	"GET /api/v1/audit-logs": {operation: "read the audit log",
		path: func(p place) string { return "/api/v1/audit-logs?organization_id=" + p.org }, body: noBody, good: 200},
	"DELETE /api/v1/auth/sessions/{id}": {
		path: func(place) string { return "/api/v1/auth/sessions/ses_extra" }, body: noBody, good: 204},
	"GET /api/v1/auth/{provider}":                  {exempt: "the name of a provider, for anybody"},
	"GET /api/v1/auth/{provider}/callback":         {exempt: "the name of a provider, for anybody"},
	"POST /api/v1/auth/identities/{provider}/link": {exempt: "the name of a provider; the identity is the caller's"},
	"DELETE /api/v1/auth/identities/{provider}":    {exempt: "the name of a provider; the identity is the caller's"},
}

// matrixTest has the callers of all cells.
type matrixTest struct {
	*edge
	people   map[string]person // by role
	stranger person
	foreign  string // a stranger's key with every scope
	narrow   string // one with none that any cell asks for
	n        int
}

func newMatrixTest(t *testing.T) *matrixTest {
	e := newAccounts(t, nil)
	m := &matrixTest{edge: e, people: map[string]person{}, stranger: e.register()}
	for _, role := range roles {
		m.people[role] = e.register()
	}
	m.foreign = e.createKey(m.stranger.token, m.stranger.org, "*")["key"].(string)
	m.narrow = e.createKey(m.stranger.token, m.stranger.org, "limits:check")["key"].(string)
	e.cluster.PutUser(state.User{ID: "usr_extra", Username: "extra", CreatedAt: 1})
	e.cluster.PutUser(state.User{ID: "usr_free", Username: "free", CreatedAt: 1})
	return m
}

// place makes one more organization with everything in it.
func (m *matrixTest) place() place {
	m.n++
	p := place{org: fmt.Sprint("org_place", m.n), extra: "usr_extra", key: fmt.Sprint("key_target", m.n), keys: map[string]string{}}
	m.cluster.PutOrganization(state.Organization{ID: p.org, Name: "place", CreatedAt: 1})
	for role, who := range m.people {
		m.join(who, p.org, role)
	}
	m.cluster.PutMembership(state.Membership{OrganizationID: p.org, UserID: p.extra, Role: state.RoleViewer, CreatedAt: 1})
	put := func(id string, scopes ...string) string {
		secret, record := newKey(scopes...)
		record.ID, record.OrganizationID = id, p.org
		m.cluster.PutKey(record)
		return secret
	}
	put(p.key, "api-keys:manage")
	for i, scope := range []string{"organizations:read", "organizations:manage", "api-keys:manage", "audit-logs:read", "*", "events:*"} {
		p.keys[scope] = put(fmt.Sprintf("key_of%d_%d", m.n, i), scope)
	}
	return p
}

// Every route that takes an id, for every role and kind of key, and for strangers.
func TestMatrix_EveryCell(t *testing.T) {
	t.Parallel()
	m := newMatrixTest(t)
	operations, _ := authapi.Permissions()
	byName := map[string]authapi.Permission{}
	tried := map[string]bool{"leave it": true} // by TestMembers_Leave
	for _, p := range operations {
		byName[p.Name] = p
	}
	routes := map[string]bool{}
	for _, r := range m.srv.RouteRows() {
		name := r.Method + " " + r.Pattern
		routes[name] = true
		if _, ok := matrixRows[name]; !ok && strings.Contains(r.Pattern, "{") {
			t.Errorf("%s takes an id and has no row in matrixRows; say exempt where it is nobody's", name)
		}
	}
	cells := 0
	for _, name := range slices.Sorted(maps.Keys(matrixRows)) {
		row := matrixRows[name]
		if !routes[name] {
			t.Errorf("%s is no route", name)
			continue
		}
		if row.operation == "" || row.exempt != "" {
			continue // tried by a test of its own, or nothing to try
		}
		p, ok := byName[row.operation]
		if !ok {
			t.Errorf("%s: there is no operation %q", name, row.operation)
			continue
		}
		tried[row.operation] = true
		method, _, _ := strings.Cut(name, " ")
		try := func(who string, credential func(place) string, want int) {
			t.Helper()
			cells++
			at := m.place()
			if a := m.send(method, row.path(at), credential(at), row.body(at)); a.status != want {
				t.Errorf("%s as %s: status %d, want %d: %s", name, who, a.status, want, a.body)
			}
		}
		for _, role := range roles {
			want := 403
			if slices.Contains(p.Roles, role) {
				want = row.good
			}
			try(role, func(place) string { return m.people[role].token }, want)
		}
		for _, scope := range []string{"organizations:read", "organizations:manage", "api-keys:manage", "audit-logs:read", "*", "events:*"} {
			want := 403
			if p.Scope != "" && state.ScopeAllows([]string{scope}, p.Scope) {
				want = row.good
			}
			try("key with "+scope, func(at place) string { return at.keys[scope] }, want)
		}
		try("stranger", func(place) string { return m.stranger.token }, 404)
		// Before anything is said of scopes: a foreign id is never a 403.
		try("strangers' key", func(place) string { return m.foreign }, 404)
		try("strangers' key without the scope", func(place) string { return m.narrow }, 404)
		try("nobody", func(place) string { return "" }, 401)

		// Of an organization that was deleted nothing is left, whoever asks.
		at := m.place()
		m.want(m.send("DELETE", organizationsPath+at.org, m.people[state.RoleOwner].token, nil), 204, "")
		m.want(m.send(method, row.path(at), m.people[state.RoleOwner].token, row.body(at)), 404, "not_found")
		m.want(m.send(method, row.path(at), at.keys["*"], row.body(at)), 401, "invalid_credential")
		// Nor is there anything where an id cannot be one.
		for _, bad := range []string{"x", "%22", strings.Repeat("a", 65), "org_none"} {
			at.org, at.key = bad, bad
			if a := m.send(method, row.path(at), m.people[state.RoleOwner].token, row.body(place{org: "org_none", extra: "usr_extra"})); a.status != 404 {
				t.Errorf("%s with %q: status %d, want 404: %s", name, bad, a.status, a.body)
			}
		}
	}
	for _, p := range operations {
		if !tried[p.Name] {
			t.Errorf("no route tries %q", p.Name)
		}
	}
	t.Logf("%d cells", cells)
}

// A session is its user's alone, whatever roles there are.
func TestMatrix_Sessions(t *testing.T) {
	t.Parallel()
	m := newMatrixTest(t)
	owner := m.people[state.RoleOwner]
	path := "/api/v1/auth/sessions/" + m.people[state.RoleViewer].session
	m.want(m.send("DELETE", path, owner.token, nil), 404, "not_found")
	m.want(m.send("DELETE", path, m.foreign, nil), 403, "forbidden")
	m.want(m.send("DELETE", path, "", nil), 401, "authentication_required")
	m.want(m.send("DELETE", path, m.people[state.RoleViewer].token, nil), 204, "")
}

// A body sets nothing but what it may: a name too many is a 400, and changes nothing.
func TestMatrix_NoMassAssignment(t *testing.T) {
	t.Parallel()
	m := newMatrixTest(t)
	owner := m.people[state.RoleOwner].token
	more := []string{"id", "role_", "personal", "created_by", "created_at", "deleted_at", "owner_id", "hash", "is_admin", "Name", "organization"}
	try := func(method, path string, body object) {
		t.Helper()
		for _, name := range more {
			with := maps.Clone(body)
			with[name] = "x"
			before := m.cluster.Index()
			m.want(m.send(method, path, owner, with), 400, "invalid_json")
			if m.cluster.Index() != before {
				t.Errorf("%s %s with %q changed something", method, path, name)
			}
		}
	}
	for name, row := range matrixRows {
		if row.exempt != "" {
			continue
		}
		at := m.place()
		if method, _, _ := strings.Cut(name, " "); row.body(at) != nil {
			try(method, row.path(at), row.body(at))
		}
	}
	try("POST", "/api/v1/auth/register", object{"username": "some-body", "email": "some@example.com", "password": goodPassword})
	try("POST", "/api/v1/auth/login", object{"username": m.stranger.name, "password": goodPassword})
	try("POST", "/api/v1/auth/password", object{"current_password": goodPassword, "new_password": "another-good-one"})
	try("POST", "/api/v1/auth/refresh", object{"refresh_token": m.stranger.refresh})
	try("POST", "/api/v1/organizations", object{"name": "n"})
	try("DELETE", "/api/v1/auth/me", object{"password": goodPassword})
	try("POST", "/api/v1/auth/exchange", object{"code": "x"})
}
