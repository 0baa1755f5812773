package raftfsm_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"sluice/raftfsm"
	"sluice/raftfsm/state"
)

func moment(t testing.TB, f *fixture) *raftfsm.Moment {
	t.Helper()
	m, err := f.fsm.Moment()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

func contents(t testing.TB, f *fixture) raftfsm.Contents {
	t.Helper()
	m, err := f.fsm.Moment()
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	c, err := m.Contents()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// replaced is what WriteReplaced makes of backup for f's cluster.
func replaced(t testing.TB, f *fixture, backup []byte, how raftfsm.Replacement) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := moment(t, f).WriteReplaced(&out, bytes.NewReader(backup), how); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestContents_OfStateAndSnapshot(t *testing.T) {
	t.Parallel()
	f := goldenState(t)
	snapshot := takeSnapshot(t, f.fsm)
	of, err := raftfsm.InspectSnapshot(bytes.NewReader(snapshot))
	if err != nil {
		t.Fatal(err)
	}
	here := contents(t, f)
	if of.Hash != here.Hash || !slices.Equal(of.Sections, here.Sections) || of.Header != here.Header {
		t.Errorf("snapshot and state differ: %+v, %+v", of, here)
	}
	counts := map[string]uint64{}
	for _, s := range of.Sections {
		counts[s.Name] = s.Records
	}
	if counts["users"] != 1 || counts["api_keys"] != 2 || counts["signing_keys"] != 1 || counts["secrets"] != 1 || counts["key_usage"] != 0 {
		t.Errorf("counted %v", counts)
	}
	// What a cluster does by itself leaves the hash alone, what people do changes it.
	f.must(state.Horizon{Until: f.now + 100_000})
	f.must(state.RecordKeyUse{Keys: []state.KeyUses{{KeyID: "key_1", At: f.now, Count: 3}}})
	f.must(state.PutNode{Node: state.NodeInfo{ID: "node_b"}})
	if now := contents(t, f); now.Hash != here.Hash {
		t.Error("the hash changed by itself")
	}
	f.must(state.RevokeKey{KeyID: "key_1", Actor: owner("ada"), At: f.now})
	if now := contents(t, f); now.Hash == here.Hash {
		t.Error("the hash does not see a revocation")
	}
}

// A backup of one cluster goes into another one, which keeps what is its own.
func TestWriteReplaced_KeepsTheClustersOwn(t *testing.T) {
	t.Parallel()
	source := goldenState(t)
	once := source.now + 100_000
	source.must(state.UseOnce{Once: state.Once{Kind: "k", Hash: hash("used there"), ExpiresAt: once}})
	backup := takeSnapshot(t, source.fsm)
	want := contents(t, source)

	target := fresh(t)
	target.must(initCluster("cluster_other"))
	target.register("zoe")
	target.must(state.Horizon{Until: target.now + 900_000})
	target.must(state.SetRoster{Nodes: []string{"node_x"}})
	target.must(state.ResetBucket{Buckets: []state.ResetTarget{{Bucket: bytes.Repeat([]byte{7}, 16)}}, At: target.now})
	target.must(state.PutNode{Node: state.NodeInfo{ID: "node_x", JoinedAt: target.now}})
	target.must(state.UseOnce{Once: state.Once{Kind: "k", Hash: hash("used here"), ExpiresAt: once}})
	own, limits, resets, index := get[*state.ClusterSecrets](t)(target.view.ClusterSecrets()), target.fsm.Limiter(), slices.Clone(target.fsm.Resets()), target.fsm.AppliedIndex()

	merged := replaced(t, target, backup, raftfsm.Replacement{})
	if err := raftfsm.CheckSnapshot(bytes.NewReader(merged)); err != nil {
		t.Fatal(err)
	}
	if err := target.fsm.Restore(reader(merged)); err != nil {
		t.Fatal(err)
	}
	if got := contents(t, target); got.Hash != want.Hash {
		t.Errorf("content hash %x, want %x", got.Hash, want.Hash)
	}
	if got := target.fsm.AppliedIndex(); got != index {
		t.Errorf("applied index %d, want %d", got, index)
	}
	now := target.fsm.Limiter()
	if now.Horizon != limits.Horizon || len(now.Rosters) != 1 || now.Rosters[0].Nodes[0] != "node_x" || len(target.fsm.Resets()) != 1 || target.fsm.Resets()[0].Generation != resets[0].Generation {
		t.Errorf("limits changed: %+v, %+v", now, target.fsm.Resets())
	}
	secrets := get[*state.ClusterSecrets](t)(target.view.ClusterSecrets())
	if secrets.ClusterID != "cluster_other" || !bytes.Equal(secrets.BucketKey, own.BucketKey) {
		t.Errorf("secrets of the cluster: %+v", secrets)
	}
	if u := get[*state.User](t)(target.view.UserByName("zoe")); u != nil {
		t.Error("a user of before is there")
	}
	if u := get[*state.User](t)(target.view.UserByName("ada")); u == nil {
		t.Error("the backup's user is not there")
	}
	nodes := get[[]state.NodeInfo](t)(target.fsm.Nodes())
	if len(nodes) != 1 || nodes[0].ID != "node_x" {
		t.Errorf("nodes: %+v", nodes)
	}
	// What was used up in either stays so.
	for _, what := range []string{"used here", "used there"} {
		if r := target.do(state.UseOnce{Once: state.Once{Kind: "k", Hash: hash(what), ExpiresAt: once}}); r.Refused != state.CodeAlreadyUsed {
			t.Errorf("%s: %+v", what, r)
		}
	}
	// The log goes on.
	target.register("bob")
}

func TestWriteReplaced_EndsSessions(t *testing.T) {
	t.Parallel()
	f := goldenState(t)
	backup := takeSnapshot(t, f.fsm)
	if len(get[[]state.Session](t)(f.view.SessionsOf("usr_ada"))) == 0 {
		t.Fatal("no session to end")
	}
	merged := replaced(t, f, backup, raftfsm.Replacement{EndSessionsAt: f.now})
	if err := f.fsm.Restore(reader(merged)); err != nil {
		t.Fatal(err)
	}
	if live := get[[]state.Session](t)(f.view.SessionsOf("usr_ada")); len(live) != 0 {
		t.Errorf("sessions live: %+v", live)
	}
	s := get[*state.Session](t)(f.view.Session("ses_2"))
	if s == nil || s.EndedAt != f.now || s.EndReason != "restored" {
		t.Errorf("session %+v", s)
	}
	// They are pruned when they would have expired.
	f.now = s.ExpiresAt + 1
	f.must(state.Prune{SessionsBefore: f.now, Max: 10})
	if s := get[*state.Session](t)(f.view.Session("ses_2")); s != nil {
		t.Errorf("not pruned: %+v", s)
	}
}

func TestWriteReplaced_RefusesDamage(t *testing.T) {
	t.Parallel()
	f := goldenState(t)
	backup := takeSnapshot(t, f.fsm)
	m := moment(t, f)
	for i := range backup {
		damaged := bytes.Clone(backup)
		damaged[i] ^= 0x10
		var out bytes.Buffer
		if err := m.WriteReplaced(&out, bytes.NewReader(damaged), raftfsm.Replacement{}); err == nil {
			t.Fatalf("byte %d flipped: taken", i)
		}
	}
	empty := fresh(t)
	var out bytes.Buffer
	if err := m.WriteReplaced(&out, bytes.NewReader(takeSnapshot(t, empty.fsm)), raftfsm.Replacement{}); !errors.Is(err, raftfsm.ErrSnapshot) {
		t.Errorf("a snapshot of no cluster: %v", err)
	}
	if !moment(t, empty).Empty() || m.Empty() {
		t.Error("Empty is wrong")
	}
}

// A new kind of record has to be thought of here.
func TestWriteReplaced_KnowsEveryKind(t *testing.T) {
	t.Parallel()
	if kinds := raftfsm.UnclassedKinds(); len(kinds) != 0 {
		t.Errorf("kinds %q are in no section and under no rule", kinds)
	}
}
