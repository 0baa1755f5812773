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
