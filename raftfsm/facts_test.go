package raftfsm_test

import (
	"testing"

	"sluice/raftfsm/state"
)

// What KeyAuth remembers of organizations and makers is never older than the state.
func TestKeyAuth_RemembersNothingOld(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	key := newKey("key_1", "org_ada", f.now, "*")
	key.CreatedBy = "usr_ada"
	f.must(state.CreateKey{Key: key, Actor: owner("ada")})
	child := newKey("key_2", "org_ada", f.now, "*")
	child.CreatedBy = "key_1"
	f.must(state.CreateKey{Key: child, Actor: keyActor("key_1")})
	want := func(what, plan string, disabled, deleted bool) {
		t.Helper()
		for _, id := range []string{"key_1", "key_2"} {
			for range 2 { // read, and remembered
				auth := get[*state.KeyAuth](t)(f.view.KeyAuth(hash32("secret " + id)))
				if auth == nil || auth.Organization == nil || auth.Organization.Plan != plan || auth.Disabled != disabled || (auth.Organization.DeletedAt != 0) != deleted {
					t.Fatalf("%s, %s: %+v, organization %+v", what, id, auth, auth.Organization)
				}
				auth.Organization.Plan = "the caller's own" // is nobody else's
			}
		}
	}
	want("at first", "", false, false)
	before := takeSnapshot(t, f.fsm)
	f.must(state.SetPlan{OrganizationID: "org_ada", Plan: "gold", At: f.now})
	want("with a plan", "gold", false, false)
	f.must(state.SetUserDisabled{UserID: "usr_ada", Disabled: true, At: f.now, Reason: "disabled"})
	want("disabled", "gold", true, false)
	f.must(state.SetUserDisabled{UserID: "usr_ada", At: f.now})
	want("enabled", "gold", false, false)
	f.must(state.DeleteUser{UserID: "usr_ada", PasswordHash: "hash of ada", At: f.now})
	want("without the account", "gold", false, true)
	if err := f.fsm.Restore(reader(before)); err != nil {
		t.Fatal(err)
	}
	want("restored", "", false, false)
}

// What TokenAuth remembers of users and roles is never older than the state.
func TestTokenAuth_RemembersNothingOld(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	f.register("bob")
	want := func(what, org, role string, active bool) {
		t.Helper()
		for range 2 { // read, and remembered
			auth := get[*state.TokenAuth](t)(f.view.TokenAuth("ses_bob", "usr_bob", org))
			if org == "" {
				org = "org_bob"
			}
			if auth == nil || auth.Session.UserID != "usr_bob" || auth.OrganizationID != org || auth.Role != role || auth.UserActive != active {
				t.Fatalf("%s: %+v, want role %q in %s, active %v", what, auth, role, org, active)
			}
		}
	}
	want("at first", "", state.RoleOwner, true)
	want("no member", "org_ada", "", true)
	before := takeSnapshot(t, f.fsm)
	f.must(state.AddMember{Membership: state.Membership{OrganizationID: "org_ada", UserID: "usr_bob", Role: state.RoleMember, CreatedAt: f.now}, Actor: owner("ada")})
	want("a member", "org_ada", state.RoleMember, true)
	want("at home", "org_bob", state.RoleOwner, true)
	f.must(state.UpdateMember{OrganizationID: "org_ada", UserID: "usr_bob", Role: state.RoleAdmin, Actor: owner("ada")})
	want("an admin", "org_ada", state.RoleAdmin, true)
	f.must(state.SetUserDisabled{UserID: "usr_bob", Disabled: true, At: f.now, Reason: "disabled"})
	want("disabled", "org_ada", state.RoleAdmin, false)
	f.must(state.SetUserDisabled{UserID: "usr_bob", At: f.now})
	want("enabled", "org_ada", state.RoleAdmin, true)
	f.must(state.RemoveMember{OrganizationID: "org_ada", UserID: "usr_bob", Actor: owner("ada")})
	want("removed", "org_ada", "", true)
	f.must(state.DeleteUser{UserID: "usr_bob", PasswordHash: "hash of bob", At: f.now})
	want("without the account", "", "", false)
	if err := f.fsm.Restore(reader(before)); err != nil {
		t.Fatal(err)
	}
	want("restored", "", state.RoleOwner, true)
	for _, unknown := range [][2]string{{"ses_none", "usr_bob"}, {"ses_bob", "usr_none"}} {
		if auth := get[*state.TokenAuth](t)(f.view.TokenAuth(unknown[0], unknown[1], "")); auth != nil && (auth.UserActive || auth.Role != "") {
			t.Errorf("%v: %+v", unknown, auth)
		}
	}
}
