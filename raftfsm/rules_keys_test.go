package raftfsm_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"sluice/raftfsm/state"
)

func TestCreateKey_Rules(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	f.register("bob")
	f.key("key_root", "ada", "*")
	f.key("key_weak", "ada", "api-keys:manage", "events:*")
	f.key("key_blind", "ada", "events:*")
	f.key("key_bob", "bob", "*")
	expiring := newKey("key_old", "org_ada", f.now, "*")
	expiring.ExpiresAt = f.now + 5
	f.must(state.CreateKey{Key: expiring, Actor: owner("ada")})
	f.key("key_dead", "ada", "*")
	f.must(state.RevokeKey{KeyID: "key_dead", Actor: owner("ada"), At: f.now})
	f.now += 10

	n := 0
	try := func(actor state.Actor, want string, change func(*state.APIKey)) {
		t.Helper()
		n++
		key := newKey(fmt.Sprint("key_try_", n), "org_ada", f.now, "events:read")
		if change != nil {
			change(&key)
		}
		if result := f.do(state.CreateKey{Key: key, Actor: actor}); result.Refused != want {
			t.Errorf("actor %+v, key %+v: got %q, want %q", actor, key, result.Refused, want)
		}
	}
	try(owner("ada"), "", nil)
	try(owner("bob"), state.CodeForbidden, nil)
	try(owner("nobody"), state.CodeForbidden, nil)
	try(state.Actor{UserID: "usr_ada", Roles: []string{state.RoleViewer}}, state.CodeForbidden, nil)
	try(state.Actor{UserID: "usr_ada"}, state.CodeForbidden, nil)
	try(state.Actor{}, state.CodeForbidden, nil)
	try(state.Actor{UserID: "usr_ada", KeyID: "key_root", Roles: []string{state.RoleOwner}, Scopes: []string{"api-keys:manage"}}, state.CodeForbidden, nil)
	try(keyActor("key_root"), "", nil)
	try(keyActor("key_root"), "", func(k *state.APIKey) { k.Scopes = []string{"*"} })
	try(keyActor("key_weak"), "", func(k *state.APIKey) { k.Scopes = []string{"events:*", "events:read", "api-keys:manage"} })
	try(keyActor("key_weak"), state.CodeForbidden, func(k *state.APIKey) { k.Scopes = []string{"*"} })
	try(keyActor("key_weak"), state.CodeForbidden, func(k *state.APIKey) { k.Scopes = []string{"events:read", "triggers:read"} })
	try(keyActor("key_blind"), state.CodeForbidden, nil)
	try(state.Actor{KeyID: "key_blind"}, state.CodeForbidden, nil)
	try(keyActor("key_bob"), state.CodeForbidden, nil)
	try(keyActor("key_old"), state.CodeForbidden, nil)
	try(keyActor("key_dead"), state.CodeForbidden, nil)
	try(keyActor("key_none"), state.CodeForbidden, nil)
	try(owner("ada"), state.CodeNotFound, func(k *state.APIKey) { k.OrganizationID = "org_none" })
	try(owner("ada"), state.CodeConflict, func(k *state.APIKey) { k.ID = "key_root" })
	try(owner("ada"), state.CodeConflict, func(k *state.APIKey) { k.Hash = hash("secret key_root") })
	try(owner("ada"), state.CodeConflict, func(k *state.APIKey) { k.Hash = hash("secret key_dead") })
	try(owner("ada"), state.CodeInvalid, func(k *state.APIKey) { k.Hash = []byte("short") })
	try(owner("ada"), state.CodeInvalid, func(k *state.APIKey) { k.ID = "" })
	try(owner("ada"), state.CodeInvalid, func(k *state.APIKey) { k.Scopes = []string{""} })
}

func TestKeys_Views(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	f.register("bob")
	f.key("key_b", "bob", "*")
	for i := range 7 {
		f.key(fmt.Sprint("key_", i), "ada", "events:*")
	}
	f.must(state.RevokeKey{KeyID: "key_3", Actor: owner("ada"), At: f.now})
	var got []string
	for after := ""; ; {
		page := get[[]state.APIKey](t)(f.view.Keys("org_ada", after, 2))
		for _, key := range page {
			got = append(got, key.ID)
		}
		if len(page) < 2 {
			break
		}
		after = page[1].ID
	}
	if want := []string{"key_0", "key_1", "key_2", "key_4", "key_5", "key_6"}; !slices.Equal(got, want) {
		t.Errorf("listed %v, want %v", got, want)
	}
	if keys := get[[]state.APIKey](t)(f.view.Keys("org_ada", "", 0)); keys != nil {
		t.Errorf("limit 0: %+v", keys)
	}
	if key := get[*state.APIKey](t)(f.view.KeyByHash(hash32("nothing"))); key != nil {
		t.Errorf("unknown hash: %+v", key)
	}
}

func TestUpdateKey(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	f.key("key_1", "ada", "events:*", "triggers:read")
	f.key("key_weak", "ada", "api-keys:manage", "events:*")
	name, scopes, expires := "renamed", []string{"events:read"}, f.now+1000
	f.raises(false, func() { f.must(state.UpdateKey{KeyID: "key_1", Actor: owner("ada"), Name: &name}) })
	f.raises(true, func() { f.must(state.UpdateKey{KeyID: "key_1", Actor: owner("ada"), Scopes: &scopes}) })
	f.raises(true, func() { f.must(state.UpdateKey{KeyID: "key_1", Actor: owner("ada"), ExpiresAt: &expires}) })
	f.raises(true, func() {
		f.must(state.UpdateKey{KeyID: "key_1", Actor: owner("ada"), SetRateLimit: true, RateLimit: 5, RateWindow: 60})
	})
	key := get[*state.APIKey](t)(f.view.Key("key_1"))
	if key.Name != name || !slices.Equal(key.Scopes, scopes) || key.ExpiresAt != expires || key.RateLimit != 5 || key.RateWindow != 60 {
		t.Errorf("updated: %+v", key)
	}
	wide := []string{"events:*", "limits:check"}
	f.refused(state.CodeForbidden, state.UpdateKey{KeyID: "key_1", Actor: keyActor("key_weak"), Scopes: &wide})
	f.must(state.UpdateKey{KeyID: "key_1", Actor: keyActor("key_weak"), Scopes: &scopes})
	// A stronger key is not weakened, renamed or kept alive by a weaker one either: it may have been as weak when the
	// change was proposed, and have got its scopes before this entry.
	f.must(state.UpdateKey{KeyID: "key_1", Actor: owner("ada"), Scopes: &wide})
	for _, change := range []state.UpdateKey{{Scopes: &scopes}, {Name: &name}, {ExpiresAt: &expires}, {SetRateLimit: true}} {
		change.KeyID, change.Actor = "key_1", keyActor("key_weak")
		f.refused(state.CodeForbidden, change)
	}
	f.refused(state.CodeForbidden, state.UpdateKey{KeyID: "key_1", Actor: owner("nobody"), Name: &name})
	f.refused(state.CodeNotFound, state.UpdateKey{KeyID: "key_none", Actor: owner("ada"), Name: &name})
	f.must(state.RevokeKey{KeyID: "key_1", Actor: owner("ada"), At: f.now})
	f.refused(state.CodeNotFound, state.UpdateKey{KeyID: "key_1", Actor: owner("ada"), Name: &name})
}

func TestRotateKey(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	f.key("key_1", "ada", "events:*")
	f.key("key_weak", "ada", "api-keys:manage")
	rotate := func(from, to string, until int64) state.RotateKey {
		return state.RotateKey{KeyID: "key_1", Actor: owner("ada"), OldHash: hash(from), NewHash: hash(to), NewPrefix: "sk_live_" + to, At: f.now, PreviousUntil: until}
	}
	f.raises(true, func() { f.must(rotate("secret key_1", "two", f.now+1000)) })
	for _, secret := range []string{"secret key_1", "two"} {
		key := get[*state.APIKey](t)(f.view.KeyByHash(hash32(secret)))
		if key == nil || key.ID != "key_1" || key.PreviousUntil == 0 || key.Prefix != "sk_live_two" {
			t.Errorf("by %s: %+v", secret, key)
		}
	}
	f.refused(state.CodeConflict, rotate("secret key_1", "three", 0))
	f.refused(state.CodeConflict, rotate("two", "secret key_weak", 0))
	f.must(rotate("two", "three", 0))
	if key := get[*state.APIKey](t)(f.view.KeyByHash(hash32("secret key_1"))); key != nil {
		t.Errorf("a secret older than the previous one finds %+v", key)
	}
	if key := get[*state.APIKey](t)(f.view.KeyByHash(hash32("two"))); key == nil || key.PreviousUntil != 0 {
		t.Errorf("by the previous secret: %+v", key)
	}
	// Rotating hands out the secret, so a key can't rotate a stronger one.
	stronger := rotate("three", "four", 0)
	stronger.Actor = keyActor("key_weak")
	f.refused(state.CodeForbidden, stronger)
	self := state.RotateKey{KeyID: "key_weak", Actor: keyActor("key_weak"), OldHash: hash("secret key_weak"), NewHash: hash("weak two"), At: f.now}
	f.must(self)
	self.KeyID = "key_none"
	f.refused(state.CodeNotFound, self)

	again := rotate("three", "four", 0)
	again.Idempotency = idempotency("rotate", "x", f.now)
	f.must(again)
	if result := f.must(again); result.Replay == nil {
		t.Error("no replay of a rotation")
	}
}

func TestRevokeKey_IsAPositiveRecord(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	f.register("bob")
	f.key("key_1", "ada", "*")
	f.must(state.RotateKey{KeyID: "key_1", Actor: owner("ada"), OldHash: hash("secret key_1"), NewHash: hash("two"), At: f.now, PreviousUntil: f.now + 1_000_000})
	f.refused(state.CodeForbidden, state.RevokeKey{KeyID: "key_1", Actor: owner("bob"), At: f.now})
	f.raises(true, func() { f.must(state.RevokeKey{KeyID: "key_1", Actor: owner("ada"), At: f.now}) })
	for _, secret := range []string{"secret key_1", "two"} {
		if key := get[*state.APIKey](t)(f.view.KeyByHash(hash32(secret))); key == nil || key.RevokedAt == 0 {
			t.Errorf("by %s: %+v, want the revoked key", secret, key)
		}
	}
	f.refused(state.CodeNotFound, state.RevokeKey{KeyID: "key_1", Actor: owner("ada"), At: f.now})
	f.refused(state.CodeNotFound, state.RotateKey{KeyID: "key_1", Actor: owner("ada"), OldHash: hash("two"), NewHash: hash("three"), At: f.now})
}

func TestRevokeKeyBySecret(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	f.key("key_1", "ada", "*")
	f.must(state.RotateKey{KeyID: "key_1", Actor: owner("ada"), OldHash: hash("secret key_1"), NewHash: hash("two"), At: f.now, PreviousUntil: f.now + 1000})
	revoke := func(secret string, previous bool, at int64) state.RevokeKeyBySecret {
		return state.RevokeKeyBySecret{Hash: hash(secret), At: at, Previous: previous,
			Audit: []state.AuditEvent{event("rev_"+secret+fmt.Sprint(f.now), "org_ada", "token.revoked", at)}}
	}
	f.refused(state.CodeNotFound, revoke("nothing", false, f.now))
	f.refused(state.CodeInvalid, state.RevokeKeyBySecret{Hash: []byte("short"), At: f.now})
	// Which of the two secrets it is has changed since the proposer looked.
	f.refused(state.CodeConflict, revoke("secret key_1", false, f.now))
	f.refused(state.CodeConflict, revoke("two", true, f.now))
	// A secret whose grace is over ends nothing, and one within it ends itself only.
	f.refused(state.CodeNotFound, revoke("secret key_1", true, f.now+10_000))
	f.raises(true, func() { f.must(revoke("secret key_1", true, f.now)) })
	key := get[*state.APIKey](t)(f.view.KeyByHash(hash32("secret key_1")))
	if key == nil || key.PreviousUntil != 0 || key.RevokedAt != 0 {
		t.Errorf("after the previous secret was revoked: %+v", key)
	}
	f.refused(state.CodeNotFound, revoke("secret key_1", true, f.now))
	f.raises(true, func() { f.must(revoke("two", false, f.now)) })
	if key := get[*state.APIKey](t)(f.view.KeyByHash(hash32("two"))); key == nil || key.RevokedAt == 0 {
		t.Errorf("after the secret was revoked: %+v", key)
	}
	if keys := get[[]state.APIKey](t)(f.view.Keys("org_ada", "", 10)); len(keys) != 0 {
		t.Errorf("a revoked key is listed: %+v", keys)
	}
	f.refused(state.CodeNotFound, revoke("two", false, f.now))
	if events, _ := f.audit(state.AuditFilter{OrganizationID: "org_ada", Event: "token.revoked"}, "", 10); len(events) != 2 {
		t.Errorf("%d events, want 2", len(events))
	}
	expiring := newKey("key_2", "org_ada", f.now, "*")
	expiring.ExpiresAt = f.now + 5
	f.must(state.CreateKey{Key: expiring, Actor: owner("ada")})
	f.refused(state.CodeNotFound, revoke("secret key_2", false, expiring.ExpiresAt))
}

func TestRecordKeyUse(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	f.key("key_1", "ada", "*")
	f.key("key_2", "ada", "*")
	f.must(state.TouchKeys{Keys: []state.KeyUse{{KeyID: "key_1", At: 500}}})
	record := func(uses ...state.KeyUses) int { return f.must(state.RecordKeyUse{Keys: uses}).Count }
	f.raises(false, func() {
		if n := record(state.KeyUses{KeyID: "key_1", At: 400, IP: "192.0.2.1", Count: 3}, state.KeyUses{KeyID: "key_none", At: 1, Count: 1}, state.KeyUses{At: 1}); n != 1 {
			t.Errorf("%d keys known, want 1", n)
		}
	})
	usage := func(id string) state.KeyUsage { return get[[]state.KeyUsage](t)(f.view.KeyUsage(id))[0] }
	// An older use moves neither time nor address back, and its number counts.
	if got, want := usage("key_1"), (state.KeyUsage{LastAt: 500, Count: 3, RecordedAt: f.now}); got != want {
		t.Errorf("usage %+v, want %+v", got, want)
	}
	record(state.KeyUses{KeyID: "key_1", At: 600, IP: "192.0.2.2", Count: 4}, state.KeyUses{KeyID: "key_2", At: 7, IP: strings.Repeat("9", 100), Count: -5})
	if got, want := usage("key_1"), (state.KeyUsage{LastAt: 600, LastIP: "192.0.2.2", Count: 7, RecordedAt: f.now}); got != want {
		t.Errorf("usage %+v, want %+v", got, want)
	}
	if got := usage("key_2"); got.Count != 0 || len(got.LastIP) != 64 {
		t.Errorf("usage %+v, want no count and the address cut", got)
	}
	record(state.KeyUses{KeyID: "key_1", Count: math.MaxInt64})
	if got := usage("key_1"); got.Count != math.MaxInt64 || got.LastAt != 600 {
		t.Errorf("usage %+v, want the greatest count", got)
	}
	record(state.KeyUses{KeyID: "key_1", At: 700})
	key := get[*state.APIKey](t)(f.view.Key("key_1"))
	if listed := get[[]state.APIKey](t)(f.view.Keys("org_ada", "", 1)); key.LastUsedAt != 700 || listed[0].LastUsedAt != 700 || usage("key_1").LastAt != 700 {
		t.Errorf("last use %d, %d, %d, want 700", key.LastUsedAt, listed[0].LastUsedAt, usage("key_1").LastAt)
	}
	if got := usage("key_none"); got != (state.KeyUsage{}) {
		t.Errorf("usage of no key: %+v", got)
	}
}

func TestTouchKeys(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	f.key("key_1", "ada", "*")
	f.raises(false, func() {
		f.must(state.TouchKeys{Keys: []state.KeyUse{{KeyID: "key_1", At: 500}, {KeyID: "key_none", At: 500}, {KeyID: "", At: 1}}})
	})
	f.must(state.TouchKeys{Keys: []state.KeyUse{{KeyID: "key_1", At: 400}}})
	key := get[*state.APIKey](t)(f.view.Key("key_1"))
	listed := get[[]state.APIKey](t)(f.view.Keys("org_ada", "", 1))
	if key.LastUsedAt != 500 || listed[0].LastUsedAt != 500 {
		t.Errorf("last use %d, %d, want 500", key.LastUsedAt, listed[0].LastUsedAt)
	}
	// A change of the key keeps it.
	name := "x"
	f.must(state.UpdateKey{KeyID: "key_1", Actor: owner("ada"), Name: &name})
	if key := get[*state.APIKey](t)(f.view.Key("key_1")); key.LastUsedAt != 500 {
		t.Errorf("after an update: %d", key.LastUsedAt)
	}
}
