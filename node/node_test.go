package node_test

import (
	"context"
	"testing"
	"time"

	"sluice/node/nodetest"
)

func TestCluster_FormsAndTakesWritesOnEveryNode(t *testing.T) {
	t.Parallel()
	began := time.Now()
	c := nodetest.Start(t, 3)
	t.Logf("ready after %s", time.Since(began))
	ctx, cancel := context.WithTimeout(t.Context(), nodetest.Timeout)
	defer cancel()
	names := []string{"anna", "bert", "cora"}
	for i, m := range c.Members {
		began := time.Now()
		result, err := m.Node.Cluster().Propose(ctx, nodetest.RequestID(), nodetest.Register(names[i]))
		if err != nil || result.Refused != "" {
			t.Fatalf("propose on node %d: %+v, %v", i, result, err)
		}
		t.Logf("node %d (leader: %t): %s", i, m.Node.Cluster().Leader(), time.Since(began))
		// Read-your-writes, at once.
		if u, err := m.Node.State().UserByName(names[i]); err != nil || u == nil {
			t.Fatalf("node %d does not see its own write: %v, %v", i, u, err)
		}
	}
	for i, m := range c.Members {
		if err := m.Node.Cluster().CatchUp(ctx); err != nil {
			t.Fatalf("catch up on node %d: %v", i, err)
		}
		for _, name := range names {
			if u, err := m.Node.State().UserByName(name); err != nil || u == nil {
				t.Errorf("node %d does not know %s after catching up: %v", i, name, err)
			}
		}
	}
}
