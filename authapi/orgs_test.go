package authapi_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"sluice/raftfsm/state"
)

// team is an organization that is nobody's personal one.
func (e *edge) team(owner person) string {
	e.t.Helper()
	a := e.send("POST", "/api/v1/organizations", owner.token, object{"name": "Team"})
	e.want(a, 201, "")
	return a.object(e.t)["id"].(string)
}

func TestOrganization_RenameAndDelete(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	owner, viewer := e.register(), e.register()
	org := e.team(owner)
	path := organizationsPath + org
	e.join(viewer, org, state.RoleViewer)
	a := e.send("PATCH", path, owner.token, object{"name": " Büro "})
	e.want(a, 200, "")
	if o := a.object(t); o["name"] != "Büro" || o["role"] != "owner" || o["id"] != org {
		t.Errorf("renamed: %s", a.body)
	}
	if got := e.send("GET", path, viewer.token, nil).object(t)["name"]; got != "Büro" {
		t.Errorf("name = %v", got)
	}
	before := e.cluster.Index()
	e.want(e.send("PATCH", path, owner.token, object{}), 200, "")
	if e.cluster.Index() != before {
		t.Error("an empty change made a log entry")
	}
	for _, bad := range []any{nil, "", " ", 5, strings.Repeat("x", 101), "a\nb"} {
		if f := e.fields(e.send("PATCH", path, owner.token, object{"name": bad})); !f["name"] {
			t.Errorf("%v: errors in %v", bad, f)
		}
	}
	for _, plan := range []any{"gold", nil, 5} {
		e.want(e.send("PATCH", path, owner.token, object{"name": "x", "plan": plan}), 403, "forbidden")
	}
	key := e.createKey(owner.token, org, "organizations:*")["key"].(string)
	e.want(e.send("PATCH", path, key, object{"name": "By key"}), 200, "")
	got := names(e.events(owner.token, "?organization_id="+org+"&event=organization.*"))
	if !slices.Equal(got, []string{"organization.updated", "organization.updated", "organization.created"}) {
		t.Errorf("events = %q", got)
	}

	e.want(e.send("DELETE", organizationsPath+owner.org, owner.token, nil), 409, "personal_organization")
	e.want(e.send("DELETE", path, owner.token, nil), 204, "")
	e.want(e.send("DELETE", path, owner.token, nil), 404, "not_found")
	e.want(e.send("GET", path, viewer.token, nil), 404, "not_found")
	e.want(e.send("GET", "/api/v1/auth/me", key, nil), 401, "invalid_credential")
	if d := e.send("GET", "/api/v1/organizations", owner.token, nil).object(t)["data"].([]any); len(d) != 1 {
		t.Errorf("lists %v", d)
	}
	all := e.everyEvent(map[string]string{"organization_id": org, "event": "organization.deleted"})
	if len(all.Data) != 1 || *all.Data[0].Actor.ID != owner.id {
		t.Errorf("events = %+v", all.Data)
	}
}

func TestMembers(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	owner, p, q := e.register(), e.register(), e.register()
	org := e.team(owner)
	path := organizationsPath + org + "/members"
	a := e.send("POST", path, owner.token, object{"username": strings.ToUpper(p.name), "role": "admin"}, "Idempotency-Key", "one")
	e.want(a, 201, "")
	if m := a.object(t); m["user_id"] != p.id || m["username"] != p.name || m["role"] != "admin" || m["created_at"] == nil || len(m) != 4 {
		t.Errorf("added: %s", a.body)
	}
	again := e.send("POST", path, owner.token, object{"username": strings.ToUpper(p.name), "role": "admin"}, "Idempotency-Key", "one")
	if again.status != 201 || again.body != a.body || again.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("again: %d %s", again.status, again.body)
	}
	e.want(e.send("POST", path, owner.token, object{"user_id": p.id, "role": "viewer"}), 409, "already_member")
	e.want(e.send("POST", path, p.token, object{"user_id": q.id, "role": "viewer"}), 201, "")
	e.want(e.send("PATCH", path+"/"+q.id, p.token, object{"role": "member"}), 200, "")
	e.want(e.send("PATCH", path+"/"+q.id, p.token, object{"role": "member"}), 200, "") // nothing to do
	for _, c := range []struct {
		body object
		want string
	}{
		{object{"role": "viewer"}, "username"}, {object{"username": q.name, "user_id": q.id, "role": "viewer"}, "username"},
		{object{"username": q.name}, "role"}, {object{"username": q.name, "role": "king"}, "role"}, {object{"username": q.name, "role": "Owner"}, "role"},
	} {
		if f := e.fields(e.send("POST", path, owner.token, c.body)); !f[c.want] {
			t.Errorf("%v: errors in %v", c.body, f)
		}
	}
	for _, nobody := range []object{{"username": "nobody-here"}, {"username": "no name"}, {"user_id": "usr_none"}, {"user_id": "no id"}, {"username": p.email}} {
		nobody["role"] = "viewer"
		e.want(e.send("POST", path, owner.token, nobody), 404, "not_found")
	}
	if f := e.fields(e.send("PATCH", path+"/"+q.id, owner.token, object{})); !f["role"] {
		t.Errorf("errors in %v", f)
	}
	e.want(e.send("PATCH", path+"/"+q.id, owner.token, object{"role": nil}), 422, "invalid_input")
	stranger := e.register()
	e.want(e.send("PATCH", path+"/"+stranger.id, owner.token, object{"role": "viewer"}), 404, "not_found")
	e.want(e.send("GET", path+"/"+stranger.id, owner.token, nil), 404, "not_found")
	e.want(e.send("DELETE", path+"/"+stranger.id, owner.token, nil), 404, "not_found")

	// Pages, by user id.
	want := []string{owner.id + " owner", p.id + " admin", q.id + " member"}
	slices.Sort(want)
	var got []string
	cursor := ""
	for range 4 {
		a := e.send("GET", path+"?limit=2"+cursor, q.token, nil)
		e.want(a, 200, "")
		for _, v := range a.object(t)["data"].([]any) {
			got = append(got, v.(object)["user_id"].(string)+" "+v.(object)["role"].(string))
			if strings.Contains(encode(v), "@") {
				t.Errorf("a member's address is shown: %v", v)
			}
		}
		next, ok := a.object(t)["next_cursor"].(string)
		if !ok {
			break
		}
		cursor = "&cursor=" + next
	}
	if !slices.Equal(got, want) {
		t.Errorf("members %q, want %q", got, want)
	}

	e.want(e.send("DELETE", path+"/"+q.id, p.token, nil), 204, "")
	e.want(e.send("GET", organizationsPath+org, q.token, nil), 404, "not_found")
	events := e.events(owner.token, "?organization_id="+org+"&event=member.*")
	if got := names(events); !slices.Equal(got, []string{"member.removed", "member.updated", "member.added", "member.added"}) {
		t.Errorf("events = %q", got)
	}
	if ev := events[1]; ev["actor"].(object)["id"] != p.id || ev["subject"].(object)["id"] != q.id || encode(ev["detail"]) != `{"from":"viewer","role":"member"}` {
		t.Errorf("event = %v", ev)
	}
}

// Nobody but an owner makes, changes or removes one, and no key below everything an admin.
func TestMembers_Escalation(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	owner, admin, member, extra := e.register(), e.register(), e.register(), e.register()
	org := e.team(owner)
	path := organizationsPath + org + "/members"
	e.join(admin, org, state.RoleAdmin)
	e.join(member, org, state.RoleMember)
	managing := e.createKey(owner.token, org, "organizations:*", "api-keys:*")["key"].(string)
	all := e.createKey(owner.token, org, "*")["key"].(string)
	before := e.cluster.Index()
	for who, credential := range map[string]string{"admin": admin.token, "key": managing, "key with *": all} {
		for _, r := range []struct {
			method, path string
			body         any
		}{
			{"POST", path, object{"user_id": extra.id, "role": "owner"}},
			{"PATCH", path + "/" + member.id, object{"role": "owner"}},
			{"PATCH", path + "/" + owner.id, object{"role": "viewer"}},
			{"DELETE", path + "/" + owner.id, nil},
		} {
			if a := e.send(r.method, r.path, credential, r.body); a.status != 403 {
				t.Errorf("%s: %s %s: %d %s", who, r.method, r.path, a.status, a.body)
			}
		}
	}
	e.want(e.send("PATCH", path+"/"+admin.id, admin.token, object{"role": "owner"}), 403, "forbidden")
	e.want(e.send("POST", path, managing, object{"user_id": extra.id, "role": "admin"}), 403, "insufficient_scope")
	e.want(e.send("PATCH", path+"/"+member.id, managing, object{"role": "admin"}), 403, "insufficient_scope")
	e.want(e.send("PATCH", path+"/"+admin.id, managing, object{"role": "viewer"}), 403, "insufficient_scope")
	e.want(e.send("DELETE", path+"/"+admin.id, managing, nil), 403, "insufficient_scope")
	if e.cluster.Index() != before {
		t.Error("a refusal made a log entry")
	}
	e.want(e.send("POST", path, all, object{"user_id": extra.id, "role": "admin"}), 201, "")
	e.want(e.send("DELETE", path+"/"+extra.id, all, nil), 204, "")
	e.want(e.send("POST", path, managing, object{"user_id": extra.id, "role": "member"}), 201, "")
}

// A role that is lost while the request is on its way is lost: the log decides.
func TestMembers_RoleLostMeanwhile(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	owner, admin, extra := e.register(), e.register(), e.register()
	org := e.team(owner)
	path := organizationsPath + org
	for _, r := range []struct {
		method, path string
		body         any
	}{
		{"PATCH", path, object{"name": "x"}},
		{"POST", path + "/members", object{"user_id": extra.id, "role": "viewer"}},
		{"POST", "/api/v1/api-keys", object{"name": "k", "organization_id": org, "scopes": []string{"*"}}},
	} {
		e.join(admin, org, state.RoleAdmin)
		e.cluster.SetOnPropose(func(state.Command) (bool, error) {
			e.cluster.ChangeRoleLocked(org, admin.id, state.RoleViewer)
			return true, nil
		})
		a := e.send(r.method, r.path, admin.token, r.body)
		e.cluster.SetOnPropose(nil)
		e.want(a, 403, "forbidden")
	}
}

func TestMembers_Leave(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	owner := e.register()
	org := e.team(owner)
	path := organizationsPath + org + "/members/"
	for _, role := range []string{state.RoleAdmin, state.RoleMember, state.RoleViewer} {
		p := e.register()
		e.join(p, org, role)
		e.want(e.send("DELETE", path+p.id, p.token, nil), 204, "")
		e.want(e.send("DELETE", path+p.id, p.token, nil), 404, "not_found")
		e.want(e.send("GET", organizationsPath+org, p.token, nil), 404, "not_found")
	}
	e.want(e.send("DELETE", path+owner.id, owner.token, nil), 409, "last_owner")
	e.want(e.send("PATCH", path+owner.id, owner.token, object{"role": "admin"}), 409, "last_owner")
	e.want(e.send("DELETE", organizationsPath+owner.org+"/members/"+owner.id, owner.token, nil), 409, "personal_organization")
	second := e.register()
	e.want(e.send("POST", organizationsPath+owner.org+"/members", owner.token, object{"user_id": second.id, "role": "owner"}), 409, "personal_organization")
	e.want(e.send("POST", organizationsPath+org+"/members", owner.token, object{"user_id": second.id, "role": "owner"}), 201, "")
	e.want(e.send("DELETE", path+owner.id, owner.token, nil), 204, "")
	e.want(e.send("DELETE", path+second.id, second.token, nil), 409, "last_owner")
}

func TestTransfer(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	owner, p, stranger := e.register(), e.register(), e.register()
	org := e.team(owner)
	e.join(p, org, state.RoleViewer)
	path := organizationsPath + org + "/transfer"
	e.want(e.send("POST", path, owner.token, object{"user_id": stranger.id}), 404, "not_found")
	e.want(e.send("POST", path, owner.token, object{"username": "nobody-here"}), 404, "not_found")
	for _, bad := range []object{{}, {"user_id": owner.id}, {"user_id": p.id, "username": p.name}} {
		e.want(e.send("POST", path, owner.token, bad), 422, "invalid_input")
	}
	e.want(e.send("POST", organizationsPath+owner.org+"/transfer", owner.token, object{"user_id": p.id}), 409, "personal_organization")
	e.join(p, owner.org, state.RoleAdmin)
	e.want(e.send("POST", organizationsPath+owner.org+"/transfer", owner.token, object{"user_id": p.id}), 409, "personal_organization")

	a := e.send("POST", path, owner.token, object{"username": p.name}, "Idempotency-Key", "t")
	e.want(a, 200, "")
	if o := a.object(t); o["role"] != "admin" || o["id"] != org {
		t.Errorf("transferred: %s", a.body)
	}
	role := func(who person) any { return e.send("GET", organizationsPath+org, who.token, nil).object(t)["role"] }
	if role(owner) != "admin" || role(p) != "owner" {
		t.Errorf("roles %v and %v", role(owner), role(p))
	}
	e.want(e.send("POST", path, owner.token, object{"username": p.name}), 403, "forbidden")
	again := e.send("POST", path, owner.token, object{"username": p.name}, "Idempotency-Key", "t")
	if again.status != 200 || again.body != a.body || again.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("again: %d %s", again.status, again.body)
	}
	e.want(e.send("POST", path, owner.token, object{"username": p.name}, "Idempotency-Key", "other"), 403, "forbidden")
	if ev := e.events(p.token, "?organization_id="+org+"&event=organization.transferred"); len(ev) != 1 || ev[0]["detail"].(object)["to"] != p.id {
		t.Errorf("events = %v", ev)
	}
}

func TestDeleteAccount(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p, q := e.register(), e.register()
	org, alone := e.team(p), e.team(p)
	key := e.createKey(p.token, org, "events:read")["key"].(string)
	lost := e.createKey(p.token, alone, "events:read")["key"].(string)
	e.join(q, org, state.RoleAdmin)
	const me = "/api/v1/auth/me"
	e.want(e.send("DELETE", me, p.token, object{"password": goodPassword}), 409, "last_owner")
	e.want(e.send("POST", organizationsPath+org+"/transfer", p.token, object{"user_id": q.id}), 200, "")
	e.want(e.send("DELETE", me, p.token, object{"password": "wrong-password-1"}), 401, "invalid_credentials")
	for _, body := range []any{nil, object{}, object{"password": ""}} {
		e.want(e.send("DELETE", me, p.token, body), 422, "invalid_input")
	}
	e.want(e.send("DELETE", me, key, object{"password": goodPassword}), 403, "forbidden")
	e.want(e.send("DELETE", me, "", object{"password": goodPassword}), 401, "authentication_required")
	e.want(e.send("DELETE", me, p.token, object{"password": goodPassword}), 204, "")

	e.want(e.send("GET", me, p.token, nil), 401, "invalid_credential")
	e.want(e.doRefresh(p.refresh), 401, "session_ended")
	e.want(e.send("POST", "/api/v1/auth/login", "", object{"username": p.name, "password": goodPassword}), 401, "invalid_credentials")
	e.want(e.send("GET", me, key, nil), 200, "") // it is the organization's
	e.want(e.send("GET", me, lost, nil), 401, "invalid_credential")
	members := e.send("GET", organizationsPath+org+"/members", q.token, nil).object(t)["data"].([]any)
	if len(members) != 1 {
		t.Errorf("members: %v", members)
	}
	events := e.events(q.token, "?organization_id="+org+"&event=member.removed")
	if len(events) != 1 || events[0]["subject"].(object)["id"] != p.id || events[0]["detail"].(object)["reason"] != "account_deleted" {
		t.Errorf("events = %v", events)
	}
	if u, err := e.srv.FindUser(p.id); err != nil || u.Username != "" || u.Email != "" || u.DeletedAt == nil || u.HasPassword {
		t.Errorf("record: %+v, %v", u, err)
	}
	var got []string
	for _, ev := range e.everyEvent(map[string]string{"actor": p.id, "since": e.clock.Now().Add(-time.Millisecond).Format(time.RFC3339)}).Data {
		if ev.Event == "organization.deleted" || ev.Event == "user.deleted" {
			got = append(got, ev.Event)
		}
	}
	if !slices.Equal(got, []string{"organization.deleted", "organization.deleted", "user.deleted"}) {
		t.Errorf("events = %q", got)
	}
	// Name and address are free.
	e.want(e.send("POST", "/api/v1/auth/register", "", object{"username": p.name, "email": p.email, "password": goodPassword}), 201, "")
}

// An account without a password is ended by a fresh sign-in.
func TestDeleteAccount_WithoutPassword(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p, q := e.register(), e.register()
	for _, who := range []person{p, q} {
		u, _ := e.cluster.User(who.id)
		u.PasswordHash = ""
		e.cluster.PutUser(*u)
	}
	e.clock.Advance(9 * time.Minute)
	e.want(e.send("DELETE", "/api/v1/auth/me", p.token, nil), 204, "")
	e.clock.Advance(2 * time.Minute)
	e.want(e.send("DELETE", "/api/v1/auth/me", q.token, object{}), 403, "reauthentication_required")
	// Refreshing is no sign-in.
	token := e.doRefresh(q.refresh).object(t)["token"].(string)
	e.want(e.send("DELETE", "/api/v1/auth/me", token, nil), 403, "reauthentication_required")
}

// What ends many memberships is told in every organization, in more entries than one.
func TestDeleteAccount_ManyOrganizations(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p, q := e.register(), e.register()
	const orgs = 250
	for i := range orgs {
		id := fmt.Sprintf("org_many%03d", i)
		e.organization(id, "")
		e.join(q, id, state.RoleOwner)
		e.join(p, id, state.RoleMember)
	}
	before := e.cluster.Index()
	e.want(e.send("DELETE", "/api/v1/auth/me", p.token, object{"password": goodPassword}), 204, "")
	if n := e.cluster.Index() - before; n != 3 {
		t.Errorf("%d entries", n)
	}
	count := 0
	query := map[string]string{"event": "member.removed", "limit": "200"}
	for range 3 {
		page := e.everyEvent(query)
		count += len(page.Data)
		if page.NextCursor == nil {
			break
		}
		query["cursor"] = *page.NextCursor
	}
	if count != orgs {
		t.Errorf("%d events, want %d", count, orgs)
	}
}

// Guessing the password of a session that was found open is slowed like signing in.
func TestDeleteAccount_GuessesAreCounted(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	for i := range 11 {
		a := e.send("DELETE", "/api/v1/auth/me", p.token, object{"password": fmt.Sprint("wrong-password-", i)})
		if want := map[bool]int{true: 401, false: 429}[i < 10]; a.status != want {
			t.Fatalf("guess %d: status %d, want %d", i, a.status, want)
		}
	}
}

// A key of a chain that is too deep would be dead from the start: it is not made.
func TestCreateKey_ChainIsBounded(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	secret := e.createKey(p.token, p.org, "api-keys:manage")["key"].(string)
	for range state.MaxKeyChain - 1 {
		secret = e.createKey(secret, p.org, "api-keys:manage")["key"].(string)
	}
	e.want(e.send("GET", "/api/v1/auth/me", secret, nil), 200, "")
	a := e.send("POST", "/api/v1/api-keys", secret, object{"name": "k", "organization_id": p.org, "scopes": []string{"api-keys:manage"}})
	e.want(a, 403, "forbidden")
}
