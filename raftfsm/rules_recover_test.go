package raftfsm_test

import (
	"reflect"
	"testing"

	"sluice/raftfsm/state"
)

func TestRecoverCluster(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	recovery := state.RecoverCluster{
		Previous: "one", ClusterID: "two", Node: "nod_a", Lost: []string{"nod_c", "nod_b"}, Until: 9000,
		Audit: []state.AuditEvent{{ID: "evt_1", Event: "cluster.recovered", ActorType: "operator", Result: "success", At: 1}},
	}
	f.refused(state.CodeConflict, recovery) // no cluster yet
	f.must(initCluster("one"))
	for _, id := range []string{"nod_a", "nod_b", "nod_c"} {
		f.must(state.PutNode{Node: state.NodeInfo{ID: id, Name: id, JoinedAt: 5}})
	}
	f.must(state.SetRoster{Nodes: []string{"nod_a", "nod_b", "nod_c"}})
	f.must(state.Horizon{Until: 5000})
	before := f.fsm.Limiter()
	recovery.Committed, recovery.Since = f.fsm.AppliedIndex(), before.Horizon
	// What comes behind may have been committed otherwise by the lost nodes.
	f.must(state.Horizon{Until: 6000})
	f.must(state.SetRoster{Nodes: []string{"nod_a", "nod_b"}, PreviousIndex: before.Rosters[0].Index})
	f.must(state.Leave{Leaver: "nod_c", Heir: "nod_a", List: hash("list"), Mark: 1})
	f.must(state.Horizon{Until: 7000})

	for name, change := range map[string]func(*state.RecoverCluster){
		"the same id":        func(c *state.RecoverCluster) { c.ClusterID = "one" },
		"no id":              func(c *state.RecoverCluster) { c.ClusterID = "" },
		"no node":            func(c *state.RecoverCluster) { c.Node = "" },
		"itself among them":  func(c *state.RecoverCluster) { c.Lost = []string{"nod_a"} },
		"one of them twice":  func(c *state.RecoverCluster) { c.Lost = []string{"nod_b", "nod_b"} },
		"one without a name": func(c *state.RecoverCluster) { c.Lost = []string{""} },
	} {
		t.Run(name, func(t *testing.T) {
			c := recovery
			change(&c)
			f.refused(state.CodeInvalid, c)
		})
	}
	other := recovery
	other.Previous = "three"
	f.refused(state.CodeConflict, other)

	var index uint64
	f.raises(true, func() { index = f.must(recovery).Index })
	if secrets := get[*state.ClusterSecrets](t)(f.view.ClusterSecrets()); secrets.ClusterID != "two" || len(secrets.BucketKey) != 16 {
		t.Errorf("secrets: %+v", secrets)
	}
	want := state.LimiterState{Horizon: 9000, Rosters: append(before.Rosters, state.Roster{Index: index, From: 5000, Nodes: []string{"nod_b", "nod_c"}})}
	if got := f.fsm.Limiter(); !reflect.DeepEqual(got, want) {
		t.Errorf("shares: %+v, want %+v", got, want)
	}
	if level := f.fsm.Level(); level != state.LevelOf(state.TypeRecoverCluster) {
		t.Errorf("level %d", level)
	}
	// The next roster is what the node that is left makes of it: from the horizon on, and no earlier.
	f.must(state.SetRoster{Nodes: []string{"nod_a"}, PreviousIndex: index})
	rosters := f.fsm.Limiter().Rosters
	if last := rosters[len(rosters)-1]; last.From != 9000 {
		t.Errorf("the roster after it: %+v", last)
	}
	nodes := get[[]state.NodeInfo](t)(f.fsm.Nodes())
	for _, n := range nodes {
		if (n.RemovedAt != 0) != (n.ID != "nod_a") {
			t.Errorf("%s removed at %d", n.ID, n.RemovedAt)
		}
	}
	if events, _ := f.audit(state.AuditFilter{Event: "cluster.recovered"}, "", 10); len(events) != 1 {
		t.Errorf("audit: %v", events)
	}
	// Once is enough: a recovery that was cut off is done again.
	f.refused(state.CodeConflict, recovery)
	// A horizon that is further away stays.
	again := state.RecoverCluster{Previous: "two", ClusterID: "three", Node: "nod_a", Until: 1}
	f.must(again)
	if got := f.fsm.Limiter(); got.Horizon != 9000 || len(got.Rosters) != len(rosters) {
		t.Errorf("shares after a recovery of one node: %+v", got)
	}
}
