package node_test

import (
	"fmt"
	"testing"
	"time"

	"sluice/node/nodetest"
	"sluice/raftfsm/state"
)

// What a revocation's answer promises: every node that can be reached has it already.
func TestPropose_RevocationIsEverywhereWithItsAnswer(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3)
	const rounds = 60
	revoke := func(on, i int) string {
		t.Helper()
		by := c.Members[on].Node
		name := fmt.Sprintf("user%d", i)
		register(t, by, name)
		made := nodetest.Register(name).Session
		result, err := by.Cluster().Propose(bounded(t), nodetest.RequestID(),
			state.EndSession{SessionID: made.ID, UserID: made.UserID, At: made.CreatedAt, Reason: "logout"})
		if err != nil || result.Count != 1 {
			t.Fatalf("end session: %+v, %v", result, err)
		}
		return made.ID
	}
	late := 0
	for i := range rounds {
		session := revoke(i%len(c.Members), i)
		for _, m := range c.Members {
			if s, err := m.Node.State().Session(session); err != nil {
				t.Fatal(err)
			} else if s == nil || s.EndedAt == 0 {
				late++
			}
		}
	}
	// The wait is bounded, so a machine that stands still for as long may show one; without the wait most are late.
	if late > rounds/10 {
		t.Errorf("%d of %d looks at other nodes after the answer found the session alive", late, 2*rounds)
	}

	// A node that is gone holds nothing up for long.
	c.Stop(c.Followers()[0])
	began := time.Now()
	revoke(c.Leader(), rounds)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("a revocation without one node took %s", took)
	}
}
