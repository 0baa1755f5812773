package raftfsm_test

import (
	"fmt"
	"testing"

	"sluice/raftfsm/state"
)

func importedUser(name string) state.ImportRow {
	return state.ImportRow{
		User:         &state.User{ID: "usr_" + name, Username: name, Email: name + "@example.org", PasswordHash: "h", CreatedAt: 1, PersonalOrg: "org_" + name},
		Organization: &state.Organization{ID: "org_" + name, Name: name, Personal: true, CreatedAt: 1},
	}
}

func importedKey(id, owner string) state.ImportRow {
	return state.ImportRow{Key: &state.APIKey{ID: id, Name: id, Hash: hash("secret " + id), Scopes: []string{"events:*"}, Environment: "live", CreatedAt: 1}, Owner: owner}
}

func (f *fixture) imports(rows ...state.ImportRow) string {
	f.t.Helper()
	return f.must(state.ImportAccounts{Rows: rows}).Rows
}

func TestImport_RowsAreForThemselves(t *testing.T) {
	t.Parallel()
	f := goldenState(t)
	other := importedUser("bob")
	other.User.ID, other.User.Email = "usr_bob2", "other@example.org"
	email := importedUser("eve")
	email.User.Email = "bob@example.org"
	id := importedUser("dan")
	id.User.ID = "usr_ada"
	both := importedUser("x")
	both.Key = importedKey("key_x", "").Key
	long := importedKey("key_long", "bob")
	long.Key.Hash = long.Key.Hash[1:]
	revoked := importedKey("key_2", "ada")
	byID := importedKey("key_c", "")
	byID.Key.OrganizationID = "org_bob"
	again := importedKey("key_again", "ada")
	again.Key.Hash = hash("secret key_b")

	got := f.imports(importedUser("bob"), importedKey("key_b", "bob"), importedUser("bob"), other, email, id, both, long,
		importedKey("key_d", "nobody"), revoked, byID, again, importedKey("key_b", "bob"))
	want := string([]byte{
		state.RowDone, state.RowDone, state.RowExists, state.RowUsernameTaken, state.RowEmailTaken, state.RowConflict, state.RowInvalid, state.RowInvalid,
		state.RowNoOwner, state.RowKeyTaken, state.RowDone, state.RowKeyTaken, state.RowExists,
	})
	if got != want {
		t.Errorf("rows %v, want %v", []byte(got), []byte(want))
	}
	user := get[*state.User](t)(f.view.UserByName("bob"))
	if user == nil || user.ID != "usr_bob" || user.PersonalOrg != "org_bob" {
		t.Fatalf("user %+v", user)
	}
	if m := get[*state.Membership](t)(f.view.Membership("org_bob", "usr_bob")); m == nil || m.Role != state.RoleOwner {
		t.Errorf("membership %+v", m)
	}
	keys := get[[]state.APIKey](t)(f.view.Keys("org_bob", "", 10))
	if len(keys) != 2 || keys[0].CreatedBy != "usr_bob" || keys[0].OrganizationID != "org_bob" {
		t.Errorf("keys %+v", keys)
	}
	if k := get[*state.APIKey](t)(f.view.KeyByHash(hash32("secret key_b"))); k == nil || k.ID != "key_b" {
		t.Errorf("key %+v", k)
	}
	for _, name := range []string{"eve", "dan", "x"} {
		if u := get[*state.User](t)(f.view.UserByName(name)); u != nil {
			t.Errorf("half of %s was applied: %+v", name, u)
		}
	}
	f.refused(state.CodeInvalid, state.ImportAccounts{})
	f.refused(state.CodeInvalid, state.ImportAccounts{Rows: make([]state.ImportRow, 513)})
	// The request id gives the first answer again, rows and all.
	e := state.Envelope{RequestID: f.requestID(), ProposedAt: f.now, Command: state.ImportAccounts{Rows: []state.ImportRow{importedUser("fay")}}}
	first, second := f.send(e), f.send(e)
	if first.Rows != string([]byte{state.RowDone}) || second != first {
		t.Errorf("first %+v, again %+v", first, second)
	}
}

func TestReplacePassword(t *testing.T) {
	t.Parallel()
	f := goldenState(t)
	f.refused(state.CodeConflict, state.ReplacePassword{UserID: "usr_ada", OldHash: "other", NewHash: "n"})
	f.refused(state.CodeConflict, state.ReplacePassword{UserID: "usr_nobody", OldHash: "other", NewHash: "n"})
	f.refused(state.CodeInvalid, state.ReplacePassword{UserID: "usr_ada", OldHash: "hash of ada"})
	live := len(get[[]state.Session](t)(f.view.SessionsOf("usr_ada")))
	f.must(state.ReplacePassword{UserID: "usr_ada", OldHash: "hash of ada", NewHash: "n"})
	if u := get[*state.User](t)(f.view.User("usr_ada")); u.PasswordHash != "n" {
		t.Errorf("user %+v", u)
	}
	if now := len(get[[]state.Session](t)(f.view.SessionsOf("usr_ada"))); now != live || live == 0 {
		t.Errorf("%d sessions, %d before", now, live)
	}
}

// go test -run - -bench Import ./raftfsm; a row is a user with a personal organization, or a key.
func BenchmarkImport(b *testing.B) {
	f := fresh(b)
	f.must(initCluster("bench"))
	const rows = 128
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		var list []state.ImportRow
		for range rows / 2 {
			n++
			name := fmt.Sprintf("user%d", n)
			key := importedKey(fmt.Sprintf("key_%d", n), name)
			key.Key.Hash = hash(fmt.Sprintf("secret %d", n))
			list = append(list, importedUser(name), key)
		}
		for i, code := range []byte(f.imports(list...)) {
			if code != state.RowDone {
				b.Fatalf("row %d: %d", i, code)
			}
		}
	}
	b.ReportMetric(float64(rows*b.N)/b.Elapsed().Seconds(), "rows/s")
}
