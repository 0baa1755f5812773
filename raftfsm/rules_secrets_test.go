package raftfsm_test

import (
	"bytes"
	"crypto/sha256"
	"reflect"
	"testing"

	"sluice/raftfsm/state"
)

// resealed is a record of a Reseal that replaces one sealed value by another.
func resealed(kind uint8, id, from, to string) state.ResealedRecord {
	sum := sha256.Sum256([]byte(from))
	return state.ResealedRecord{Kind: kind, ID: []byte(id), OldHash: sum[:], Sealed: []byte(to)}
}

func TestRotateSecretsKey(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.refused(state.CodeNotFound, state.RotateSecretsKey{NewCheck: []byte("two")})
	f.must(initCluster("cluster"))
	before, err := f.fsm.View().ClusterSecrets()
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	f.fsm.Subscribe(func() { calls++ })
	rotate := state.RotateSecretsKey{OldCheck: before.SealedCheck, NewCheck: []byte("two"), Audit: []state.AuditEvent{event("rotated", "", "secrets_key.rotated", f.now)}}
	f.raises(false, func() { f.must(rotate) })
	if calls != 1 {
		t.Errorf("told %d times", calls)
	}
	f.refused(state.CodeConflict, rotate)
	f.refused(state.CodeInvalid, state.RotateSecretsKey{OldCheck: []byte("two")})
	f.refused(state.CodeInvalid, state.RotateSecretsKey{OldCheck: []byte("two"), NewCheck: make([]byte, 257)})
	after, err := f.fsm.View().ClusterSecrets()
	if err != nil || string(after.SealedCheck) != "two" || !bytes.Equal(after.SealedRefreshKey, before.SealedRefreshKey) || after.ClusterID != before.ClusterID {
		t.Errorf("secrets: %+v, %v", after, err)
	}
	if events, _ := f.audit(state.AuditFilter{}, "", 10); len(events) != 1 {
		t.Errorf("audit: %+v", events)
	}
}

func TestReseal(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.must(initCluster("cluster"))
	secrets, err := f.fsm.View().ClusterSecrets()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := f.fsm.View().SigningKeys()
	if err != nil || len(keys) != 1 {
		t.Fatal(keys, err)
	}
	create := registration("ada", f.now)
	create.Idempotency = idempotency("made", "x", f.now)
	f.must(create)
	scope, body := string(create.Idempotency.Scope), string(create.Idempotency.SealedBody)

	good := []state.ResealedRecord{
		resealed(state.SealedRefreshKey, "", string(secrets.SealedRefreshKey), "refresh, anew"),
		resealed(state.SealedSigningKey, keys[0].ID, string(keys[0].SealedSecret), "signing, anew"),
		resealed(state.SealedAnswer, scope, body, "answer, anew"),
	}
	stale := []state.ResealedRecord{
		resealed(state.SealedRefreshKey, "", "another", "lost"),
		resealed(state.SealedSigningKey, keys[0].ID, "another", "lost"),
		resealed(state.SealedSigningKey, "nobody", string(keys[0].SealedSecret), "lost"),
		resealed(state.SealedAnswer, scope, "another", "lost"),
		resealed(state.SealedAnswer, string(hash("gone")), body, "lost"),
		resealed(state.SealedAnswer, scope, body, string(make([]byte, len(body)+257))),
	}
	f.raises(false, func() {
		if got := f.must(state.Reseal{Records: stale}); got.Count != 0 {
			t.Errorf("%d of stale records were replaced", got.Count)
		}
		if got := f.must(state.Reseal{Records: good}); got.Count != 3 {
			t.Errorf("%d records were replaced", got.Count)
		}
		// A leader that lost its office, and another that does the same.
		if got := f.must(state.Reseal{Records: good}); got.Count != 0 {
			t.Errorf("%d records were replaced twice", got.Count)
		}
	})
	if s, err := f.fsm.View().ClusterSecrets(); err != nil || string(s.SealedRefreshKey) != "refresh, anew" || !bytes.Equal(s.SealedCheck, secrets.SealedCheck) {
		t.Errorf("secrets: %+v, %v", s, err)
	}
	if k, err := f.fsm.View().SigningKeys(); err != nil || len(k) != 1 || string(k[0].SealedSecret) != "signing, anew" || k[0].CreatedAt != keys[0].CreatedAt {
		t.Errorf("keys: %+v, %v", k, err)
	}
	answers, err := f.fsm.View().Answers(nil, 10)
	if err != nil || len(answers) != 1 || string(answers[0].SealedBody) != "answer, anew" || answers[0].Status != create.Idempotency.Status {
		t.Errorf("answers: %+v, %v", answers, err)
	}
	if more, err := f.fsm.View().Answers(answers[0].Scope, 10); err != nil || len(more) != 0 {
		t.Errorf("after the last: %+v, %v", more, err)
	}
	if got := f.must(create); got.Replay == nil || string(got.Replay.SealedBody) != "answer, anew" {
		t.Errorf("a repetition gets %+v", got)
	}
	for name, records := range map[string][]state.ResealedRecord{
		"none":              nil,
		"too many":          make([]state.ResealedRecord, state.MaxResealed+1),
		"unknown kind":      {resealed(5, "x", "", "y")},
		"no kind":           {resealed(0, "x", "", "y")},
		"refresh with id":   {resealed(state.SealedRefreshKey, "x", "", "y")},
		"signing without":   {resealed(state.SealedSigningKey, "", "", "y")},
		"scope of no hash":  {resealed(state.SealedAnswer, "x", "", "y")},
		"gossip without":    {resealed(state.SealedGossipKey, "", "", "y")},
		"long gossip key":   {resealed(state.SealedGossipKey, "x", "", string(make([]byte, 257)))},
		"nothing in it":     {resealed(state.SealedRefreshKey, "", "", "")},
		"hash of no length": {{Kind: state.SealedRefreshKey, OldHash: []byte("x"), Sealed: []byte("y")}},
	} {
		if got := f.do(state.Reseal{Records: records}); got.Refused != state.CodeInvalid {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// The keys of gossip are sealed anew one by one. The keyring stays the version that it is, and one that is changed meanwhile is neither
// refused nor undone.
func TestReseal_GossipKeyring(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := open(t, dir)
	f.must(initCluster("cluster"))
	a := resealed(state.SealedGossipKey, "a", "sealed a", "anew a")
	b := resealed(state.SealedGossipKey, "b", "sealed b", "anew b")
	if got := f.must(state.Reseal{Records: []state.ResealedRecord{a}}); got.Count != 0 {
		t.Errorf("%d replaced before there is a keyring", got.Count)
	}
	put := gossipKeyring(1, "b", "a", "b")
	for i := range put.Keyring.Keys {
		put.Keyring.Keys[i].Sealed = []byte("sealed " + put.Keyring.Keys[i].ID)
		put.Keyring.Keys[i].InstalledAt = int64(i + 1)
	}
	f.must(put)
	calls := 0
	cancel := f.fsm.Subscribe(func() { calls++ })
	stale := []state.ResealedRecord{
		resealed(state.SealedGossipKey, "a", "another", "lost"),
		resealed(state.SealedGossipKey, "c", "sealed a", "lost"),
	}
	f.raises(false, func() {
		if got := f.must(state.Reseal{Records: stale}); got.Count != 0 || calls != 0 {
			t.Errorf("%d stale ones replaced, %d calls", got.Count, calls)
		}
		if got := f.must(state.Reseal{Records: []state.ResealedRecord{a, b}}); got.Count != 2 || calls != 1 {
			t.Errorf("%d replaced, %d calls", got.Count, calls)
		}
		if got := f.must(state.Reseal{Records: []state.ResealedRecord{a, b}}); got.Count != 0 || calls != 1 {
			t.Errorf("%d replaced twice, %d calls", got.Count, calls)
		}
	})
	cancel()
	want := put.Keyring
	want.Keys = []state.GossipKey{
		{ID: "a", Sealed: []byte("anew a"), InstalledAt: 1},
		{ID: "b", Sealed: []byte("anew b"), InstalledAt: 2},
	}
	if got := f.fsm.GossipKeyring(); !reflect.DeepEqual(got, want) {
		t.Errorf("keyring: %+v, want %+v", got, want)
	}
	if got, err := f.fsm.View().GossipKeyring(); err != nil || !reflect.DeepEqual(*got, want) {
		t.Errorf("view: %+v, %v", got, err)
	}
	// A version that was on its way brings the value of before for a key, and not the other key.
	next := gossipKeyring(2, "a", "a")
	next.Keyring.Keys[0].Sealed = []byte("sealed a")
	f.must(next)
	if got := f.must(state.Reseal{Records: []state.ResealedRecord{a, resealed(state.SealedGossipKey, "b", "anew b", "lost")}}); got.Count != 1 {
		t.Errorf("%d replaced of the next version", got.Count)
	}
	want = next.Keyring
	want.Keys = []state.GossipKey{{ID: "a", Sealed: []byte("anew a"), InstalledAt: next.Keyring.Keys[0].InstalledAt}}
	if got := f.fsm.GossipKeyring(); !reflect.DeepEqual(got, want) {
		t.Errorf("the next version: %+v, want %+v", got, want)
	}
	if err := f.fsm.Close(); err != nil {
		t.Fatal(err)
	}
	if got := open(t, dir).fsm.GossipKeyring(); !reflect.DeepEqual(got, want) {
		t.Errorf("after a restart: %+v, want %+v", got, want)
	}
}
