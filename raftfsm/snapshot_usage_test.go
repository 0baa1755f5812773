package raftfsm_test

import (
	"testing"

	"sluice/raftfsm/state"
)

// What the first golden snapshot has no record of: keys' usage.
func TestSnapshot_GoldenBytesOfKeyUsage(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.must(initCluster("cluster_golden"))
	f.register("ada")
	f.key("key_1", "ada", "*")
	f.must(state.RecordKeyUse{Keys: []state.KeyUses{{KeyID: "key_1", At: f.now, IP: "2001:db8::1", Count: 7}}})
	want := golden(t, f, "v1-key-usage.snap")
	other := fresh(t)
	if err := other.fsm.Restore(reader(want)); err != nil {
		t.Fatalf("restore golden snapshot: %v", err)
	}
	if digest(t, other.fsm) != digest(t, f.fsm) {
		t.Error("the golden snapshot restores to another state")
	}
	if usage := get[[]state.KeyUsage](t)(other.view.KeyUsage("key_1")); usage[0].Count != 7 || usage[0].LastIP != "2001:db8::1" {
		t.Errorf("usage after the restore: %+v", usage)
	}
}
