package raftfsm_test

import (
	"bytes"
	"crypto/sha256"
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
		"unknown kind":      {resealed(4, "x", "", "y")},
		"no kind":           {resealed(0, "x", "", "y")},
		"refresh with id":   {resealed(state.SealedRefreshKey, "x", "", "y")},
		"signing without":   {resealed(state.SealedSigningKey, "", "", "y")},
		"scope of no hash":  {resealed(state.SealedAnswer, "x", "", "y")},
		"nothing in it":     {resealed(state.SealedRefreshKey, "", "", "")},
		"hash of no length": {{Kind: state.SealedRefreshKey, OldHash: []byte("x"), Sealed: []byte("y")}},
	} {
		if got := f.do(state.Reseal{Records: records}); got.Refused != state.CodeInvalid {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
