package raftfsm_test

import (
	"fmt"
	"reflect"
	"slices"
	"testing"

	"sluice/raftfsm"
	"sluice/raftfsm/state"
)

func initCluster(id string) state.InitCluster {
	return state.InitCluster{
		Secrets:    state.ClusterSecrets{ClusterID: id, BucketKey: hash("bucket")[:16], SealedRefreshKey: []byte("sealed"), SealedCheck: []byte("check")},
		SigningKey: state.SigningKey{ID: "kid_1", Algorithm: "HS256", SealedSecret: []byte("sealed"), CreatedAt: 1, SignsFrom: 1},
	}
}

func TestInitCluster_FirstWins(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	if secrets := get[*state.ClusterSecrets](t)(f.view.ClusterSecrets()); secrets != nil {
		t.Errorf("before: %+v", secrets)
	}
	f.refused(state.CodeInvalid, state.InitCluster{})
	f.raises(true, func() { f.must(initCluster("one")) })
	f.refused(state.CodeConflict, initCluster("two"))
	if secrets := get[*state.ClusterSecrets](t)(f.view.ClusterSecrets()); secrets == nil || secrets.ClusterID != "one" {
		t.Errorf("secrets: %+v", secrets)
	}
}

func TestPutSigningKey(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.must(initCluster("one"))
	put := func(id, previous string, created, previousTo int64) state.PutSigningKey {
		return state.PutSigningKey{Key: state.SigningKey{ID: id, Algorithm: "HS256", CreatedAt: created, SignsFrom: created}, PreviousID: previous, PreviousVerifiesTo: previousTo}
	}
	f.refused(state.CodeConflict, put("kid_2", "kid_0", 10, 100))
	f.refused(state.CodeConflict, put("kid_1", "kid_1", 10, 100))
	f.refused(state.CodeInvalid, put("", "kid_1", 10, 100))
	f.raises(true, func() { f.must(put("kid_2", "kid_1", 10, 100)) })
	f.refused(state.CodeConflict, put("kid_3", "kid_1", 20, 200))
	ids := func() (ids []string) {
		for _, key := range get[[]state.SigningKey](t)(f.view.SigningKeys()) {
			ids = append(ids, fmt.Sprint(key.ID, " ", key.VerifiesTo))
		}
		return ids
	}
	if got, want := ids(), []string{"kid_1 100", "kid_2 0"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	// What verifies nothing any more goes with the next one.
	f.must(put("kid_3", "kid_2", 150, 300))
	if got, want := ids(), []string{"kid_2 300", "kid_3 0"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestLimiter_HorizonAndRosters(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	calls := 0
	cancel := f.fsm.Subscribe(func() { calls++ })
	f.must(state.Horizon{Until: 1000})
	first := f.must(state.SetRoster{Nodes: []string{"a", "b"}})
	f.must(state.Horizon{Until: 900})
	f.must(state.Horizon{Until: 2000})
	if calls != 3 {
		t.Errorf("%d calls, want 3: a lower horizon changes nothing", calls)
	}
	want := state.LimiterState{Horizon: 2000, Rosters: []state.Roster{{Index: first.Index, From: 0, Nodes: []string{"a", "b"}}}}
	if got := f.fsm.Limiter(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	f.refused(state.CodeConflict, state.SetRoster{Nodes: []string{"a"}})
	f.refused(state.CodeInvalid, state.SetRoster{PreviousIndex: first.Index})
	f.refused(state.CodeInvalid, state.SetRoster{Nodes: []string{"a", "a"}, PreviousIndex: first.Index})
	second := f.must(state.SetRoster{Nodes: []string{"a"}, PreviousIndex: first.Index, KeepFrom: 2000})
	want.Rosters = append(want.Rosters, state.Roster{Index: second.Index, From: 2000, Nodes: []string{"a"}})
	if got := f.fsm.Limiter(); !reflect.DeepEqual(got, want) {
		t.Errorf("a roster superseded at KeepFrom is still needed: got %+v, want %+v", got, want)
	}
	f.must(state.Horizon{Until: 3000})
	third := f.must(state.SetRoster{Nodes: []string{"a", "c"}, PreviousIndex: second.Index, KeepFrom: 2001})
	want = state.LimiterState{Horizon: 3000, Rosters: []state.Roster{
		{Index: second.Index, From: 2000, Nodes: []string{"a"}}, {Index: third.Index, From: 3000, Nodes: []string{"a", "c"}},
	}}
	got := f.fsm.Limiter()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	got.Rosters[0].Nodes[0] = "changed"
	if again := f.fsm.Limiter(); !reflect.DeepEqual(again, want) {
		t.Errorf("what was returned is shared: %+v", again)
	}
	// The newest stays whatever KeepFrom says.
	fourth := f.must(state.SetRoster{Nodes: []string{"d"}, PreviousIndex: third.Index, KeepFrom: 1 << 60})
	if got := f.fsm.Limiter(); len(got.Rosters) != 1 || got.Rosters[0].Index != fourth.Index {
		t.Errorf("got %+v", got)
	}
	before := calls
	cancel()
	f.must(state.Horizon{Until: 9000})
	if calls != before {
		t.Error("called after cancel")
	}
}

func TestLeave(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	list := hash("list")
	first := f.must(state.SetRoster{Nodes: []string{"a", "b", "c"}})
	f.must(state.PutNode{Node: state.NodeInfo{ID: "gone", RemovedAt: 9}})
	for name, c := range map[string]state.Leave{
		"nobody": {Heir: "b", List: list}, "no heir": {Leaver: "a", List: list}, "own heir": {Leaver: "a", Heir: "a", List: list},
		"no list": {Leaver: "a", Heir: "b"}, "negative mark": {Leaver: "a", Heir: "b", List: list, Mark: -1},
	} {
		if result := f.do(c); result.Refused != state.CodeInvalid {
			t.Errorf("%s: %+v", name, result)
		}
	}
	f.refused(state.CodeConflict, state.Leave{Leaver: "a", Heir: "gone", List: list})
	calls := 0
	f.fsm.Subscribe(func() { calls++ })
	a := f.must(state.Leave{Leaver: "a", Heir: "b", List: list, Mark: 5, Audit: []state.AuditEvent{event("left", "", "cluster.node_left", 7)}})
	if calls != 1 {
		t.Errorf("%d calls after a leave, want 1", calls)
	}
	want := []state.LeaveInfo{{Index: a.Index, Leaver: "a", Heir: "b", List: list, Mark: 5}}
	if got := f.fsm.Limiter(); !reflect.DeepEqual(got.Leaves, want) {
		t.Errorf("got %+v, want %+v", got.Leaves, want)
	}
	if events, _ := f.audit(state.AuditFilter{Event: "cluster.node_left"}, "", 10); len(events) != 1 {
		t.Errorf("audit: %+v", events)
	}
	f.refused(state.CodeConflict, state.Leave{Leaver: "a", Heir: "c", List: list, Applied: a.Index})      // again
	f.refused(state.CodeConflict, state.Leave{Leaver: "c", Heir: "a", List: list, Applied: a.Index})      // to one that left
	f.refused(state.CodeConflict, state.Leave{Leaver: "b", Heir: "c", List: list, Applied: a.Index - 1})  // it became an heir since
	f.refused(state.CodeConflict, state.SetRoster{Nodes: []string{"a", "b"}, PreviousIndex: first.Index}) // a node that left
	b := f.must(state.Leave{Leaver: "b", Heir: "c", List: list, Applied: a.Index, Mark: 6})
	f.must(state.Horizon{Until: 500})
	second := f.must(state.SetRoster{Nodes: []string{"c"}, PreviousIndex: first.Index, KeepFrom: 500})
	if got := f.fsm.Limiter(); len(got.Leaves) != 2 || got.Leaves[1].Index != b.Index {
		t.Errorf("leaves of a roster that is kept: %+v", got.Leaves)
	}
	f.must(state.Horizon{Until: 1000})
	third := f.must(state.SetRoster{Nodes: []string{"c", "d"}, PreviousIndex: second.Index, KeepFrom: 1000})
	f.must(state.Horizon{Until: 2000})
	if got := f.fsm.Limiter(); len(got.Leaves) != 0 || len(got.Rosters) != 2 {
		t.Errorf("the first roster is gone, and its leaves are not: %+v", got)
	}
	// One that is a member still must not come into a roster, though none names it.
	f.must(state.PutNode{Node: state.NodeInfo{ID: "e"}})
	f.must(state.Leave{Leaver: "e", Heir: "d", List: list, Applied: b.Index})
	fourth := f.must(state.SetRoster{Nodes: []string{"d"}, PreviousIndex: third.Index, KeepFrom: 1 << 60})
	f.refused(state.CodeConflict, state.SetRoster{Nodes: []string{"d", "e"}, PreviousIndex: fourth.Index})
	f.must(state.PutNode{Node: state.NodeInfo{ID: "e", RemovedAt: 11}})
	f.must(state.SetRoster{Nodes: []string{"d", "f"}, PreviousIndex: fourth.Index, KeepFrom: 1 << 60})
	if got := f.fsm.Limiter(); len(got.Leaves) != 0 {
		t.Errorf("a leave that nothing needs: %+v", got.Leaves)
	}
}

func TestPutNode(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	calls := 0
	f.fsm.Subscribe(func() { calls++ })
	f.must(state.PutNode{Node: state.NodeInfo{ID: "b", PeerAddress: "h:1", JoinedAt: 5}})
	f.must(state.PutNode{Node: state.NodeInfo{ID: "a", PeerAddress: "h:2"}})
	f.must(state.PutNode{Node: state.NodeInfo{ID: "b", PeerAddress: "h:3", RemovedAt: 9}})
	f.must(state.PutNode{Node: state.NodeInfo{ID: "b", PeerAddress: "h:4"}})
	f.refused(state.CodeInvalid, state.PutNode{})
	got, err := f.fsm.Nodes()
	if err != nil {
		t.Fatal(err)
	}
	want := []state.NodeInfo{{ID: "a", PeerAddress: "h:2"}, {ID: "b", PeerAddress: "h:4", JoinedAt: 5, RemovedAt: 9}}
	if !slices.Equal(got, want) || calls != 4 {
		t.Errorf("got %+v and %d calls, want %+v and 4", got, calls, want)
	}
}

func TestAudit_FilterCursorAndPrune(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	var events []state.AuditEvent
	for i := range 40 {
		// Ids do not rise with time: two nodes' clocks differ, and the order is that of the times.
		e := event(fmt.Sprintf("%02d", (i*7)%40), []string{"org_a", "org_b", ""}[i%3], []string{"api_key.created", "api_key.revoked", "session.created"}[i%3], int64(1000+i/2))
		e.ActorID = []string{"usr_1", "usr_2"}[i%2]
		e.SubjectID = []string{"key_1", "key_2", "key_3", ""}[i%4]
		e.Result = []string{"success", "failure", "success", "denied", "success"}[i%5]
		events = append(events, e)
	}
	for _, chunk := range slices.Collect(slices.Chunk(events, 10)) {
		f.must(state.AppendAudit{Events: chunk})
	}
	f.must(state.AppendAudit{Events: events[:3]}) // known ids change nothing
	f.must(state.AppendAudit{Events: []state.AuditEvent{{ID: ""}, {ID: "evt_bad", OrganizationID: "a\x00b"}}})
	slices.SortFunc(events, func(a, b state.AuditEvent) int {
		if a.At != b.At {
			return int(b.At - a.At)
		}
		if a.ID > b.ID {
			return -1
		}
		return 1
	})
	for name, filter := range map[string]state.AuditFilter{
		"all":      {},
		"org":      {OrganizationID: "org_a"},
		"event":    {Event: "api_key.revoked"},
		"group":    {Event: "api_key.*"},
		"actor":    {ActorID: "usr_2"},
		"since":    {Since: 1010},
		"until":    {Until: 1010},
		"span":     {Since: 1005, Until: 1012, OrganizationID: "org_b"},
		"nothing":  {OrganizationID: "org"},
		"no group": {Event: "api*"},
		"subject":  {SubjectID: "key_2"},
		"result":   {Result: "denied"},
		"both":     {SubjectID: "key_1", Result: "success", OrganizationID: "org_b"},
		"mixed":    {OrganizationID: "org_a", Event: "api_key.*", ActorID: "usr_1", Since: 1001, Until: 1018},
	} {
		var want, got []string
		for _, e := range events {
			group := filter.Event == "" || e.Event == filter.Event || filter.Event == "api_key.*" && e.Event[:8] == "api_key."
			if group && (filter.OrganizationID == "" || e.OrganizationID == filter.OrganizationID) && (filter.ActorID == "" || e.ActorID == filter.ActorID) &&
				(filter.SubjectID == "" || e.SubjectID == filter.SubjectID) && (filter.Result == "" || e.Result == filter.Result) &&
				e.At >= filter.Since && (filter.Until == 0 || e.At < filter.Until) {
				want = append(want, e.ID)
			}
		}
		for before := ""; ; {
			page, next := f.audit(filter, before, 3)
			for _, e := range page {
				got = append(got, e.ID)
			}
			if next == "" {
				break
			}
			if len(page) < 3 || next != page[2].ID {
				t.Errorf("%s: next is %s after %d events", name, next, len(page))
			}
			before = next
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
	if result := f.must(state.Prune{AuditBefore: 1005, Max: 4}); result.Count != 4 {
		t.Errorf("pruned %d, want 4", result.Count)
	}
	if result := f.must(state.Prune{AuditBefore: 1005}); result.Count != 6 {
		t.Errorf("pruned %d, want the other 6", result.Count)
	}
	if left, _ := f.audit(state.AuditFilter{}, "", 100); len(left) != 30 || left[29].At != 1005 {
		t.Errorf("%d left", len(left))
	}
	if page, _ := f.audit(state.AuditFilter{}, "evt_00", 100); len(page) != 0 {
		t.Errorf("after an event that was pruned: %d events", len(page))
	}
	if page, _ := f.audit(state.AuditFilter{OrganizationID: "org_a", Until: 1005}, "", 100); len(page) != 0 {
		t.Errorf("pruned events are listed: %+v", page)
	}
}

func TestAudit_LongLog(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	const count, each = 2*raftfsm.AuditScan + 500, 500
	for i := 0; i < count; i += each {
		events := make([]state.AuditEvent, each)
		for j := range events {
			events[j] = state.AuditEvent{ID: fmt.Sprintf("evt_%06d", i+j), OrganizationID: "org_a", Event: "session.created", At: int64(i + j)}
		}
		if i == 0 {
			events[0].Event = "organization.created"
		}
		f.must(state.AppendAudit{Events: events})
	}
	// The one event that is asked for is the oldest: no call looks at them all, and none is missed.
	var got []string
	calls := 0
	for before := ""; ; calls++ {
		page, next := f.audit(state.AuditFilter{OrganizationID: "org_a", Event: "organization.*"}, before, 1)
		for _, e := range page {
			got = append(got, e.ID)
		}
		if before = next; next == "" {
			break
		}
	}
	if !slices.Equal(got, []string{"evt_000000"}) || calls != 2 {
		t.Errorf("got %v after %d cut pages, want the oldest after 2", got, calls)
	}
	if page, next := f.audit(state.AuditFilter{}, "", 2); len(page) != 2 || next != page[1].ID {
		t.Errorf("without a filter: %d events, next %q", len(page), next)
	}
}
