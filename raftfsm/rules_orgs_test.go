package raftfsm_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"sluice/raftfsm/state"
)

// randomOrgChange is one command about organizations and accounts, most of them with chances to be refused.
func randomOrgChange(random *rand.Rand, now int64, events []state.AuditEvent) state.Command {
	pick := func(prefix string, n int) string { return prefix + string(rune('a'+random.IntN(n))) }
	roles := []string{state.RoleOwner, state.RoleAdmin, state.RoleMember, state.RoleViewer}
	role := roles[random.IntN(len(roles))]
	actor := owner(pick("", 6))
	if random.IntN(4) == 0 {
		actor = keyActor(pick("key_", 20))
	}
	org, user := pick("org_", 26), pick("usr_", 6)
	switch random.IntN(10) {
	case 0:
		name := pick("name ", 26)
		return state.UpdateOrg{OrganizationID: org, Actor: actor, Name: &name, At: now, Audit: events}
	case 1:
		return state.DeleteOrg{OrganizationID: org, Actor: actor, At: now, Audit: events}
	case 2, 3, 4:
		return state.AddMember{Membership: state.Membership{OrganizationID: org, UserID: user, Role: role, CreatedAt: now}, Actor: actor, Audit: events}
	case 5:
		return state.UpdateMember{OrganizationID: org, UserID: user, Role: role, Actor: actor, At: now, Audit: events}
	case 6:
		return state.RemoveMember{OrganizationID: org, UserID: user, Actor: actor, At: now, Audit: events}
	case 7:
		return state.TransferOrg{OrganizationID: org, ToUserID: user, Actor: actor, At: now, Audit: events}
	case 8:
		return state.SetPlan{OrganizationID: org, Plan: pick("plan ", 3), At: now, Audit: events}
	}
	if random.IntN(3) == 0 {
		return state.DeleteUser{UserID: user, PasswordHash: "hash of " + strings.TrimPrefix(user, "usr_"), At: now, Audit: events}
	}
	return state.SetUserDisabled{UserID: user, Disabled: random.IntN(2) == 0, At: now, Reason: "disabled", Audit: events}
}

// anyone is the actor of who leaves: every role will do.
func anyone(name string) state.Actor {
	return state.Actor{UserID: "usr_" + name, Roles: []string{state.RoleOwner, state.RoleAdmin, state.RoleMember, state.RoleViewer}}
}

func orgKeyActor(id string) state.Actor {
	return state.Actor{KeyID: id, Scopes: []string{"organizations:manage"}}
}

// team makes organization org_team: owned by ann, with the admin adam, the member mia and the viewer vic; sue is a stranger.
func team(t *testing.T) *fixture {
	t.Helper()
	f := fresh(t)
	for _, name := range []string{"ann", "adam", "mia", "vic", "sue"} {
		f.register(name)
	}
	f.must(state.CreateOrg{Organization: state.Organization{ID: "org_team", Name: "Team", CreatedAt: f.now}, OwnerID: "usr_ann"})
	for name, role := range map[string]string{"adam": state.RoleAdmin, "mia": state.RoleMember, "vic": state.RoleViewer} {
		f.must(f.add("org_team", name, role, "ann"))
	}
	return f
}

func (f *fixture) add(org, name, role, by string) state.AddMember {
	return state.AddMember{Membership: state.Membership{OrganizationID: org, UserID: "usr_" + name, Role: role, CreatedAt: f.now}, Actor: owner(by)}
}

func (f *fixture) teamKey(id string, scopes ...string) {
	f.t.Helper()
	f.must(state.CreateKey{Key: newKey(id, "org_team", f.now, scopes...), Actor: owner("ann")})
}

// roleOf is a user's role in org_team, "" for none.
func (f *fixture) roleOf(name string) string {
	f.t.Helper()
	m := get[*state.Membership](f.t)(f.view.Membership("org_team", "usr_"+name))
	if m == nil {
		return ""
	}
	return m.Role
}

func TestMembers_WhoMayGiveWhat(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		actor        string // a user's name, or a key's scopes
		role         string
		want         string // of adding somebody with the role
		of           string // the member who is then changed to role, or removed where it is ""
		change, drop string
	}{
		{"ann", state.RoleOwner, "", "adam", "", ""},
		{"ann", state.RoleAdmin, "", "mia", "", ""},
		{"adam", state.RoleOwner, state.CodeForbidden, "mia", state.CodeForbidden, ""},
		{"adam", state.RoleAdmin, "", "vic", "", ""},
		{"adam", state.RoleMember, "", "ann", state.CodeForbidden, state.CodeForbidden},
		{"mia", state.RoleViewer, state.CodeForbidden, "vic", state.CodeForbidden, state.CodeForbidden},
		{"vic", state.RoleViewer, state.CodeForbidden, "mia", state.CodeForbidden, state.CodeForbidden},
		{"sue", state.RoleViewer, state.CodeForbidden, "mia", state.CodeForbidden, state.CodeForbidden},
		{"organizations:manage", state.RoleMember, "", "vic", "", ""},
		{"organizations:manage", state.RoleAdmin, state.CodeForbidden, "mia", state.CodeForbidden, ""},
		{"organizations:manage", state.RoleViewer, "", "adam", state.CodeForbidden, state.CodeForbidden},
		{"organizations:manage", state.RoleViewer, "", "ann", state.CodeForbidden, state.CodeForbidden},
		{"organizations:*", state.RoleOwner, state.CodeForbidden, "mia", state.CodeForbidden, ""},
		{"*", state.RoleAdmin, "", "mia", "", ""},
		{"*", state.RoleOwner, state.CodeForbidden, "ann", "", state.CodeForbidden}, // to what she is: nothing to do
		{"events:*", state.RoleViewer, state.CodeForbidden, "mia", state.CodeForbidden, state.CodeForbidden},
	} {
		f := team(t)
		f.register("new")
		actor := owner(test.actor)
		if strings.Contains(test.actor, "*") || strings.Contains(test.actor, ":") {
			f.teamKey("key_actor", test.actor)
			actor = orgKeyActor("key_actor")
		}
		name := test.actor + " gives " + test.role
		if got := f.do(state.AddMember{Membership: state.Membership{OrganizationID: "org_team", UserID: "usr_new", Role: test.role}, Actor: actor}).Refused; got != test.want {
			t.Errorf("%s: added with %q, want %q", name, got, test.want)
		}
		if test.actor == "*" && test.role == state.RoleOwner {
			test.change = state.CodeForbidden
		}
		if got := f.do(state.UpdateMember{OrganizationID: "org_team", UserID: "usr_" + test.of, Role: test.role, Actor: actor, At: f.now}).Refused; got != test.change {
			t.Errorf("%s: changed %s with %q, want %q", name, test.of, got, test.change)
		}
		if test.of == "adam" || test.change == "" && test.role == state.RoleAdmin && strings.Contains(test.actor, "organizations") {
			continue
		}
		if got := f.do(state.RemoveMember{OrganizationID: "org_team", UserID: "usr_" + test.of, Actor: actor, At: f.now}).Refused; got != test.drop {
			t.Errorf("%s: removed %s with %q, want %q", name, test.of, got, test.drop)
		}
	}
}

func TestAddMember(t *testing.T) {
	t.Parallel()
	f := team(t)
	f.refused(state.CodeAlreadyMember, f.add("org_team", "mia", state.RoleViewer, "ann"))
	f.refused(state.CodeNotFound, f.add("org_team", "nobody", state.RoleViewer, "ann"))
	f.refused(state.CodeNotFound, f.add("org_none", "sue", state.RoleViewer, "ann"))
	f.refused(state.CodeInvalid, f.add("org_team", "sue", "king", "ann"))
	f.refused(state.CodePersonalOrganization, f.add("org_ann", "sue", state.RoleOwner, "ann"))
	f.must(state.SetUserDisabled{UserID: "usr_sue", Disabled: true, At: f.now})
	f.refused(state.CodeNotFound, f.add("org_team", "sue", state.RoleViewer, "ann"))
	f.must(state.SetUserDisabled{UserID: "usr_sue", At: f.now})
	add := f.add("org_team", "sue", state.RoleViewer, "ann")
	add.Idempotency = idempotency("add", "sue", f.now)
	f.raises(true, func() { f.must(add) })
	if result := f.must(add); result.Replay == nil {
		t.Error("no replay of an addition")
	}
	// Pages.
	var got []string
	for after := ""; ; {
		page := get[[]state.Membership](t)(f.view.MembersOf("org_team", after, 2))
		for _, m := range page {
			got = append(got, m.UserID+" "+m.Role)
		}
		if len(page) < 2 {
			break
		}
		after = page[1].UserID
	}
	if want := []string{"usr_adam admin", "usr_ann owner", "usr_mia member", "usr_sue viewer", "usr_vic viewer"}; !slices.Equal(got, want) {
		t.Errorf("members: %q, want %q", got, want)
	}
}

func TestMembers_AreBounded(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ann")
	f.must(state.CreateOrg{Organization: state.Organization{ID: "org_team", Name: "Team"}, OwnerID: "usr_ann"})
	for i := range 1000 {
		name := fmt.Sprint("m", i)
		r := registration(name, f.now)
		r.Session, r.Audit = state.Session{}, nil
		f.must(r)
		add := f.add("org_team", name, state.RoleViewer, "ann")
		if i == 999 {
			f.refused(state.CodeMembershipLimit, add)
			break
		}
		f.must(add)
	}
	f.must(state.DeleteOrg{OrganizationID: "org_team", Actor: owner("ann"), At: f.now})
	if list := get[[]state.Membership](t)(f.view.MembersOf("org_team", "", 5)); len(list) != 0 {
		t.Errorf("members of a deleted organization: %+v", list)
	}
	// Of one user: what others added, and what the user made.
	for i := range 999 {
		f.must(state.CreateOrg{Organization: state.Organization{ID: fmt.Sprint("org_x", i), Name: "x"}, OwnerID: "usr_m1"})
		if i == 400 {
			f.refused(state.CodeMembershipLimit, state.DeleteUser{UserID: "usr_m1", PasswordHash: "hash of m1", At: f.now})
		}
	}
	f.refused(state.CodeMembershipLimit, f.add("org_ann", "m1", state.RoleViewer, "ann"))
	f.must(state.CreateOrg{Organization: state.Organization{ID: "org_more", Name: "x"}, OwnerID: "usr_m1"})
	f.refused(state.CodeMembershipLimit, state.DeleteUser{UserID: "usr_m1", PasswordHash: "hash of m1", At: f.now})
	f.must(state.DeleteOrg{OrganizationID: "org_more", Actor: owner("m1"), At: f.now})
	for i := range 700 {
		f.must(state.DeleteOrg{OrganizationID: fmt.Sprint("org_x", i), Actor: owner("m1"), At: f.now})
	}
	f.must(state.DeleteUser{UserID: "usr_m1", PasswordHash: "hash of m1", At: f.now})
}

func TestLastOwner(t *testing.T) {
	t.Parallel()
	f := team(t)
	demote := state.UpdateMember{OrganizationID: "org_team", UserID: "usr_ann", Role: state.RoleAdmin, Actor: owner("ann"), At: f.now}
	leave := state.RemoveMember{OrganizationID: "org_team", UserID: "usr_ann", Actor: anyone("ann"), At: f.now}
	end := state.DeleteUser{UserID: "usr_ann", PasswordHash: "hash of ann", At: f.now}
	all := func(code string) {
		t.Helper()
		for _, c := range []state.Command{demote, leave, end} {
			f.refused(code, c)
		}
	}
	all(state.CodeLastOwner)
	// A second owner who cannot act is none.
	f.must(state.UpdateMember{OrganizationID: "org_team", UserID: "usr_adam", Role: state.RoleOwner, Actor: owner("ann"), At: f.now})
	f.must(state.SetUserDisabled{UserID: "usr_adam", Disabled: true, At: f.now})
	all(state.CodeLastOwner)
	f.must(state.SetUserDisabled{UserID: "usr_adam", At: f.now})
	f.raises(true, func() { f.must(demote) })
	if f.roleOf("ann") != state.RoleAdmin {
		t.Errorf("ann is %q", f.roleOf("ann"))
	}
	f.raises(true, func() { f.must(leave) })
	f.refused(state.CodeForbidden, leave)
	// Everybody else leaves without asking.
	for _, name := range []string{"mia", "vic"} {
		f.refused(state.CodeForbidden, state.RemoveMember{OrganizationID: "org_team", UserID: "usr_adam", Actor: anyone(name), At: f.now})
		f.must(state.RemoveMember{OrganizationID: "org_team", UserID: "usr_" + name, Actor: anyone(name), At: f.now})
		if f.roleOf(name) != "" {
			t.Errorf("%s left and is %q", name, f.roleOf(name))
		}
	}
	f.raises(false, func() {
		f.must(state.UpdateMember{OrganizationID: "org_team", UserID: "usr_adam", Role: state.RoleOwner, Actor: owner("adam"), At: f.now})
	})
}

func TestPersonalOrganization(t *testing.T) {
	t.Parallel()
	f := team(t)
	f.must(f.add("org_ann", "mia", state.RoleAdmin, "ann"))
	for _, c := range []state.Command{
		state.DeleteOrg{OrganizationID: "org_ann", Actor: owner("ann"), At: f.now},
		state.TransferOrg{OrganizationID: "org_ann", ToUserID: "usr_mia", Actor: owner("ann"), At: f.now},
		state.UpdateMember{OrganizationID: "org_ann", UserID: "usr_mia", Role: state.RoleOwner, Actor: owner("ann"), At: f.now},
		state.UpdateMember{OrganizationID: "org_ann", UserID: "usr_ann", Role: state.RoleAdmin, Actor: owner("ann"), At: f.now},
		state.RemoveMember{OrganizationID: "org_ann", UserID: "usr_ann", Actor: anyone("ann"), At: f.now},
	} {
		f.refused(state.CodePersonalOrganization, c)
	}
}

func TestUpdateAndDeleteOrg(t *testing.T) {
	t.Parallel()
	f := team(t)
	name := "Renamed"
	rename := func(actor state.Actor) state.UpdateOrg {
		return state.UpdateOrg{OrganizationID: "org_team", Actor: actor, Name: &name, At: f.now}
	}
	f.teamKey("key_org", "organizations:manage")
	f.teamKey("key_all", "*")
	for _, actor := range []state.Actor{owner("ann"), owner("adam"), orgKeyActor("key_org")} {
		f.raises(false, func() { f.must(rename(actor)) })
	}
	for _, actor := range []state.Actor{owner("mia"), owner("vic"), owner("sue"), keyActor("key_org"), {}} {
		f.refused(state.CodeForbidden, rename(actor))
	}
	if org := get[*state.Organization](t)(f.view.Organization("org_team")); org.Name != name {
		t.Errorf("organization: %+v", org)
	}
	f.refused(state.CodeInvalid, state.UpdateOrg{OrganizationID: "org_team", Actor: owner("ann")})

	plan := state.SetPlan{OrganizationID: "org_team", Plan: "gold", At: f.now}
	f.raises(true, func() { f.must(plan) })
	f.raises(false, func() { f.must(plan) })
	f.refused(state.CodeNotFound, state.SetPlan{OrganizationID: "org_none", Plan: "gold"})

	remove := func(actor state.Actor) state.DeleteOrg {
		return state.DeleteOrg{OrganizationID: "org_team", Actor: actor, At: f.now, Audit: []state.AuditEvent{event("del", "org_team", "organization.deleted", f.now)}}
	}
	for _, actor := range []state.Actor{owner("adam"), owner("mia"), owner("sue"), {KeyID: "key_all", Scopes: []string{"*"}}} {
		f.refused(state.CodeForbidden, remove(actor))
	}
	f.raises(true, func() { f.must(remove(owner("ann"))) })
	org := get[*state.Organization](t)(f.view.Organization("org_team"))
	if org == nil || org.DeletedAt == 0 || org.Plan != "gold" {
		t.Errorf("deleted: %+v", org)
	}
	if members := get[[]state.Membership](t)(f.view.MembershipsOf("usr_mia")); len(members) != 1 {
		t.Errorf("mia's memberships: %+v", members)
	}
	// Nothing can be done in it any more, by a key of it neither.
	f.refused(state.CodeNotFound, remove(owner("ann")))
	f.refused(state.CodeNotFound, rename(owner("ann")))
	f.refused(state.CodeNotFound, f.add("org_team", "sue", state.RoleViewer, "ann"))
	f.refused(state.CodeNotFound, plan)
	f.refused(state.CodeNotFound, state.CreateKey{Key: newKey("key_late", "org_team", f.now, "*"), Actor: owner("ann")})
	f.refused(state.CodeForbidden, state.RevokeKey{KeyID: "key_org", Actor: state.Actor{KeyID: "key_all", Scopes: []string{"*"}}, At: f.now})
	if auth := get[*state.KeyAuth](t)(f.view.KeyAuth(hash32("secret key_all"))); auth == nil || auth.Organization == nil || auth.Organization.DeletedAt == 0 {
		t.Errorf("a key of it: %+v", auth)
	}
}

func TestTransferOrg(t *testing.T) {
	t.Parallel()
	f := team(t)
	transfer := func(to string, actor state.Actor) state.TransferOrg {
		return state.TransferOrg{OrganizationID: "org_team", ToUserID: "usr_" + to, Actor: actor, At: f.now}
	}
	f.teamKey("key_all", "*")
	for _, actor := range []state.Actor{owner("adam"), anyone("mia"), owner("sue"), {KeyID: "key_all", Scopes: []string{"*"}}} {
		f.refused(state.CodeForbidden, transfer("vic", actor))
	}
	f.refused(state.CodeNotFound, transfer("sue", owner("ann")))
	f.refused(state.CodeConflict, transfer("ann", owner("ann")))
	f.must(state.SetUserDisabled{UserID: "usr_mia", Disabled: true, At: f.now})
	f.refused(state.CodeNotFound, transfer("mia", owner("ann")))
	c := transfer("vic", owner("ann"))
	c.Idempotency = idempotency("transfer", "vic", f.now)
	f.raises(true, func() { f.must(c) })
	if f.roleOf("ann") != state.RoleAdmin || f.roleOf("vic") != state.RoleOwner {
		t.Errorf("ann is %q, vic is %q", f.roleOf("ann"), f.roleOf("vic"))
	}
	if result := f.must(c); result.Replay == nil {
		t.Error("no replay for who is no owner any more")
	}
	f.refused(state.CodeForbidden, transfer("adam", owner("ann")))
}

func TestDeleteUser(t *testing.T) {
	t.Parallel()
	f := team(t)
	f.must(state.CreateOrg{Organization: state.Organization{ID: "org_alone", Name: "Alone"}, OwnerID: "usr_mia"})
	f.key("key_mia", "mia", "*")
	f.teamKey("key_team", "*")
	end := state.DeleteUser{UserID: "usr_mia", PasswordHash: "other", At: f.now, Audit: []state.AuditEvent{event("gone", "org_mia", "user.deleted", f.now)}}
	f.refused(state.CodeConflict, end)
	f.refused(state.CodeNotFound, state.DeleteUser{UserID: "usr_nobody", PasswordHash: "x"})
	end.PasswordHash = "hash of mia"
	// Others in the personal organization keep it and the account alive.
	f.must(f.add("org_mia", "vic", state.RoleViewer, "mia"))
	f.refused(state.CodeLastOwner, end)
	if f.roleOf("mia") != state.RoleMember {
		t.Error("a refused deletion took something away")
	}
	f.must(state.RemoveMember{OrganizationID: "org_mia", UserID: "usr_vic", Actor: owner("mia"), At: f.now})
	f.raises(true, func() {
		if result := f.must(end); result.Count != 2 {
			t.Errorf("%d organizations went, want 2", result.Count)
		}
	})
	user := get[*state.User](t)(f.view.User("usr_mia"))
	if user == nil || *user != (state.User{ID: "usr_mia", CreatedAt: user.CreatedAt, DeletedAt: end.At, PersonalOrg: "org_mia"}) {
		t.Errorf("record: %+v", user)
	}
	for what, left := range map[string]bool{
		"name":          get[*state.User](t)(f.view.UserByName("mia")) != nil,
		"e-mail":        get[*state.User](t)(f.view.UserByEmail("mia@example.org")) != nil,
		"membership":    f.roleOf("mia") != "",
		"session":       get[*state.Session](t)(f.view.Session("ses_mia")).EndReason != "account_deleted",
		"organization":  get[*state.Organization](t)(f.view.Organization("org_alone")).DeletedAt == 0,
		"personal name": get[*state.Organization](t)(f.view.Organization("org_mia")).Name != "",
		"a team":        get[*state.Organization](t)(f.view.Organization("org_team")).DeletedAt != 0,
	} {
		if left {
			t.Errorf("%s is not as it should be", what)
		}
	}
	f.refused(state.CodeNotFound, end)
	f.refused(state.CodeNotFound, state.SetUserDisabled{UserID: "usr_mia", Disabled: true})
	f.refused(state.CodeNotFound, state.CreateSession{Session: session("ses_late", "usr_mia", f.now)})
	// The name can be taken again, and makes another account.
	again := registration("mia", f.now)
	again.User.ID, again.Organization.ID, again.User.PersonalOrg = "usr_mia2", "org_mia2", "org_mia2"
	again.Session.ID, again.Session.UserID = "ses_mia2", "usr_mia2"
	f.must(again)
}

// Nobody signs in to an account that has ended by way of a provider; other users' identities stay.
func TestDeleteUser_IdentitiesGo(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	f.register("bob")
	for _, i := range []state.Identity{
		{Provider: "google", Subject: "1", UserID: "usr_ada"}, {Provider: "github", Subject: "1\x002", UserID: "usr_ada"},
		{Provider: "google", Subject: "2", UserID: "usr_bob"},
	} {
		f.must(state.LinkIdentity{Identity: i, SessionID: strings.Replace(i.UserID, "usr_", "ses_", 1), At: f.now})
	}
	f.must(state.DeleteUser{UserID: "usr_ada", PasswordHash: "hash of ada", At: f.now})
	if identities, listed, err := f.fsm.Identities(); identities != 1 || listed != 1 || err != nil {
		t.Errorf("%d identities, %d listed, %v; want bob's", identities, listed, err)
	}
}

func TestDisabledUser_KeysAreDeadMeanwhile(t *testing.T) {
	t.Parallel()
	f := team(t)
	byAdam := func(id, maker string, actor state.Actor) {
		t.Helper()
		key := newKey(id, "org_team", f.now, "*")
		key.CreatedBy = maker
		f.must(state.CreateKey{Key: key, Actor: actor})
	}
	byAdam("key_1", "usr_adam", owner("adam"))
	for i := 2; i <= 17; i++ {
		byAdam(fmt.Sprint("key_", i), fmt.Sprint("key_", i-1), keyActor(fmt.Sprint("key_", i-1)))
	}
	byAdam("key_ann", "usr_ann", owner("ann"))
	dead := func(id string) bool {
		t.Helper()
		auth := get[*state.KeyAuth](t)(f.view.KeyAuth(hash32("secret " + id)))
		if auth == nil || auth.Key.ID != id || auth.Organization == nil || auth.Organization.ID != "org_team" {
			t.Fatalf("%s: %+v", id, auth)
		}
		return auth.Disabled
	}
	for id, want := range map[string]bool{"key_1": false, "key_16": false, "key_17": true, "key_ann": false} {
		if dead(id) != want {
			t.Errorf("%s dead: %v, want %v", id, !want, want)
		}
	}
	disable := state.SetUserDisabled{UserID: "usr_adam", Disabled: true, At: f.now, Reason: "disabled", Audit: []state.AuditEvent{event("dis", "org_adam", "user.disabled", f.now)}}
	f.raises(true, func() {
		if result := f.must(disable); result.Count != 1 {
			t.Errorf("disabled: %+v", result)
		}
	})
	f.raises(false, func() {
		if result := f.must(disable); result.Count != 0 {
			t.Errorf("disabled again: %+v", result)
		}
	})
	if s := get[*state.Session](t)(f.view.Session("ses_adam")); s.EndedAt == 0 || s.EndReason != "disabled" {
		t.Errorf("session: %+v", s)
	}
	for id, want := range map[string]bool{"key_1": true, "key_2": true, "key_16": true, "key_ann": false} {
		if dead(id) != want {
			t.Errorf("%s dead: %v, want %v", id, !want, want)
		}
	}
	// Neither the user nor the keys change anything, wherever the request was let in.
	name := "x"
	for _, actor := range []state.Actor{owner("adam"), orgKeyActor("key_1"), orgKeyActor("key_5")} {
		f.refused(state.CodeForbidden, state.UpdateOrg{OrganizationID: "org_team", Actor: actor, Name: &name})
	}
	f.refused(state.CodeForbidden, state.RevokeKey{KeyID: "key_ann", Actor: keyActor("key_1"), At: f.now})
	f.refused(state.CodeNotFound, state.DeleteUser{UserID: "usr_adam", PasswordHash: "hash of adam"})

	disable.Disabled = false
	f.must(disable)
	if dead("key_1") || dead("key_16") {
		t.Error("keys stay dead after the user was enabled")
	}
	if s := get[*state.Session](t)(f.view.Session("ses_adam")); s.EndedAt == 0 {
		t.Error("a session came back")
	}
	// The keys are the organization's: they outlive the account.
	f.must(state.DeleteUser{UserID: "usr_adam", PasswordHash: "hash of adam", At: f.now})
	if dead("key_1") || dead("key_16") {
		t.Error("keys died with their maker's account")
	}
	if auth := get[*state.KeyAuth](t)(f.view.KeyAuth(hash32("nothing"))); auth != nil {
		t.Errorf("unknown hash: %+v", auth)
	}
	f.refused(state.CodeNotFound, state.SetUserDisabled{UserID: "usr_nobody", Disabled: true})
}
