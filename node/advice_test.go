package node

import (
	"strings"
	"testing"
)

func TestClusterStatus_Advice(t *testing.T) {
	t.Parallel()
	lag := uint64(9999)
	node := func(id string, alive bool) NodeStatus {
		return NodeStatus{ID: id, Name: "name-" + id, Role: "voter", Alive: alive}
	}
	for _, test := range []struct {
		name    string
		status  ClusterStatus
		mayFail int
		want    []string // parts of the lines
	}{
		{"not formed", ClusterStatus{}, 0, nil},
		{"one", ClusterStatus{Voters: 1, VotersAnswering: 1, Leader: "a"}, 0, nil},
		{"two", ClusterStatus{Voters: 2, VotersAnswering: 2, Leader: "a"}, 0, []string{"two voters"}},
		{"three", ClusterStatus{Voters: 3, VotersAnswering: 3, Leader: "a"}, 1, nil},
		{"four", ClusterStatus{Voters: 4, VotersAnswering: 4, Leader: "a"}, 1, []string{"no more than 3 would"}},
		{"one of three is down", ClusterStatus{Voters: 3, VotersAnswering: 2, Leader: "a", Nodes: []NodeStatus{node("a", true), node("b", true), node("c", false)}}, 0,
			[]string{"name-c (c): start it again; where it is gone for good, let a new node join and `sluice cluster remove c`"}},
		{"two of three are down", ClusterStatus{Voters: 3, VotersAnswering: 1, Nodes: []NodeStatus{node("a", true), node("b", false), node("c", false)}}, 0,
			[]string{"until 2 of 3 do; where they are lost for good, `sluice cluster recover`"}},
		{"no leader", ClusterStatus{Voters: 3, VotersAnswering: 3}, 1, []string{"nobody leads"}},
		{"behind", ClusterStatus{Voters: 3, VotersAnswering: 3, Leader: "a", Nodes: []NodeStatus{{ID: "b", Alive: true, Lag: &lag}}}, 1, []string{"b: it should catch up"}},
	} {
		test.status.advise()
		if test.status.MayFail != test.mayFail || len(test.status.Advice) != len(test.want) {
			t.Errorf("%s: %d may fail, advice %q", test.name, test.status.MayFail, test.status.Advice)
			continue
		}
		for i, want := range test.want {
			if !strings.Contains(test.status.Advice[i], want) {
				t.Errorf("%s: advice %q, want %q", test.name, test.status.Advice[i], want)
			}
		}
	}
}
