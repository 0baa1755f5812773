package raftfsm_test

import (
	"bytes"
	"fmt"
	"testing"

	"sluice/raftfsm"
	"sluice/raftfsm/state"
)

func gossipKeyring(version uint64, primary string, ids ...string) state.PutGossipKeyring {
	k := state.GossipKeyring{Version: version, Primary: primary}
	for i, id := range ids {
		k.Keys = append(k.Keys, state.GossipKey{ID: id, Sealed: bytes.Repeat([]byte{byte(i + 1)}, 61), InstalledAt: 1_700_000_000_000 + int64(i)})
	}
	return state.PutGossipKeyring{Keyring: k}
}

// A keyring follows the one before or is refused, and its audit event goes with it.
func TestPutGossipKeyring(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	calls := 0
	f.fsm.Subscribe(func() { calls++ })
	if got := f.fsm.GossipKeyring(); got.Version != 0 || len(got.Keys) != 0 {
		t.Fatalf("before any: %+v", got)
	}
	first := gossipKeyring(1, "a", "a", "b")
	first.Audit = []state.AuditEvent{event("installed", "", "gossip_key.installed", f.now)}
	f.raises(false, func() { f.must(first) })
	want := fmt.Sprint(first.Keyring)
	if got := fmt.Sprint(f.fsm.GossipKeyring()); got != want || calls != 1 {
		t.Fatalf("got %s after %d calls, want %s", got, calls, want)
	}
	lost := gossipKeyring(1, "a", "a")
	lost.Audit = []state.AuditEvent{event("lost", "", "gossip_key.removed", f.now)}
	f.refused(state.CodeConflict, lost)
	f.refused(state.CodeConflict, gossipKeyring(3, "a", "a"))
	many := make([]string, state.MaxGossipKeys+1)
	for i := range many {
		many[i] = fmt.Sprint("key", i)
	}
	unsealed, long := gossipKeyring(2, "a", "a"), gossipKeyring(2, "a", "a")
	unsealed.Keyring.Keys[0].Sealed = nil
	long.Keyring.Keys[0].Sealed = make([]byte, 257)
	for _, wrong := range []state.PutGossipKeyring{
		gossipKeyring(0, "a", "a"), gossipKeyring(2, ""), gossipKeyring(2, "c", "a", "b"), gossipKeyring(2, "a", "a", "a"),
		gossipKeyring(2, "", ""), gossipKeyring(2, "key0", many...), unsealed, long,
	} {
		f.refused(state.CodeInvalid, wrong)
	}
	if events, _ := f.audit(state.AuditFilter{Event: "gossip_key.*"}, "", 10); len(events) != 1 || events[0].ID != first.Audit[0].ID {
		t.Errorf("audit: %+v", events)
	}
	if got := fmt.Sprint(f.fsm.GossipKeyring()); got != want || calls != 1 {
		t.Errorf("a refusal changed something: %s after %d calls", got, calls)
	}
	f.must(gossipKeyring(2, "b", "b"))
	if got := f.fsm.GossipKeyring(); got.Version != 2 || got.Primary != "b" || len(got.Keys) != 1 {
		t.Errorf("the second: %+v", got)
	}
}

// The keyring survives a snapshot and a start, and the bytes stay readable.
func TestSnapshot_GossipKeyring(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := open(t, dir)
	f.must(initCluster("cluster_golden"))
	f.must(gossipKeyring(1, "b", "a", "b"))
	want := fmt.Sprint(f.fsm.GossipKeyring())
	file := golden(t, f, "v1-gossip-keyring.snap")
	other := fresh(t)
	if err := other.fsm.Restore(reader(file)); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(other.fsm.GossipKeyring()); got != want {
		t.Errorf("after a restore: %s, want %s", got, want)
	}
	if err := f.fsm.Close(); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(open(t, dir).fsm.GossipKeyring()); got != want {
		t.Errorf("after a start: %s, want %s", got, want)
	}
}

// A backup brings neither a keyring nor the lack of one to a cluster that runs.
func TestWriteReplaced_KeepsTheKeyring(t *testing.T) {
	t.Parallel()
	plain, rotated := goldenState(t), goldenState(t)
	rotated.must(gossipKeyring(1, "b", "a", "b"))
	for _, tt := range []struct {
		name            string
		cluster, backup *fixture
	}{{"of before a rotation", rotated, plain}, {"of another rotation", plain, rotated}} {
		want := fmt.Sprint(tt.cluster.fsm.GossipKeyring())
		snapshot := replaced(t, tt.cluster, takeSnapshot(t, tt.backup.fsm), raftfsm.Replacement{})
		other := fresh(t)
		if err := other.fsm.Restore(reader(snapshot)); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(other.fsm.GossipKeyring()); got != want {
			t.Errorf("a backup %s: %s, want %s", tt.name, got, want)
		}
	}
}
