package node_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"sluice/node"
	"sluice/node/nodetest"
)

// roles waits until a member sees so many voters, the leader among them, and others.
func roles(t *testing.T, asked *nodetest.Member, voters, others int) (status node.ClusterStatus) {
	t.Helper()
	nodetest.WaitFor(t, fmt.Sprintf("%d voters and %d others", voters, others), func() (err error) {
		if status, err = clusterStatus(asked); err != nil {
			return err
		}
		v, o := 0, 0
		for _, n := range status.Nodes {
			if n.Role == "nonvoter" {
				o++
			} else {
				v++
			}
		}
		if v != voters || o != others || status.Leader == "" {
			return fmt.Errorf("%d and %d, led by %q", v, o, status.Leader)
		}
		return nil
	})
	return status
}

func roleOf(s node.ClusterStatus, id string) string {
	for _, n := range s.Nodes {
		if n.ID == id {
			return n.Role
		}
	}
	return ""
}

// A node that only listens validates and limits like any other; votes are given and taken by operators, and stay as they were
// said over restarts.
func TestVoters_PromoteAndDemote(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3, nodetest.WithConfig(monthly))
	register(t, c.Members[0].Node, "anna")
	fourth := c.Add()
	c.Members[fourth].Config.Membership.Voter = false
	c.Start(fourth)
	c.WaitReady()
	listener := c.Members[fourth]
	id := listener.Node.ID()
	s := roles(t, listener, 3, 1)
	if roleOf(s, id) != "nonvoter" || len(s.Roster.Nodes) != 4 {
		t.Fatalf("the new node: %+v", s)
	}
	knows(t, listener.Node, "anna")
	register(t, listener.Node, "bert")
	if got := spend(t, c, "203.0.113.9", 3, fourth); got != 3 {
		t.Errorf("it admits %d of 3", got)
	}

	var changed node.ChangedVote
	asked := c.Members[c.Followers()[0]]
	voter := asked.Node.ID()
	for _, test := range []struct {
		path, node, code, text string
	}{
		{"promote", "", "invalid_input", "node is missing"},
		{"promote", "nod_nobody", "not_found", "no member"},
		{"demote", voter, "conflict", "2 voters would be left, and membership.min_voters is 3"},
	} {
		if err := adminPost(asked, "/v1/cluster/"+test.path, node.ChangeVote{Node: test.node}, &changed); !refused(err, test.code, test.text) {
			t.Errorf("%s %q: %v", test.path, test.node, err)
		}
	}
	nodetest.WaitFor(t, "the fourth to be stable", func() error {
		err := adminPost(asked, "/v1/cluster/promote", node.ChangeVote{Node: "node4"}, &changed)
		if err != nil && !refused(err, "conflict", "has to answer for") {
			t.Fatalf("promote: %v", err)
		}
		return err
	})
	if changed.Node != id || !changed.Voter {
		t.Errorf("promoted: %+v", changed)
	}
	roles(t, asked, 4, 0)

	// The leader itself: it hands over first.
	leader := c.Members[c.Leader()]
	leaderAt, leaderID := c.Leader(), leader.Node.ID()
	if err := adminPost(leader, "/v1/cluster/demote", node.ChangeVote{Node: leaderID}, &changed); err != nil {
		t.Fatalf("demote the leader: %v", err)
	}
	s = roles(t, leader, 3, 1)
	if roleOf(s, leaderID) != "nonvoter" || s.Leader == leaderID {
		t.Errorf("the leader of before: %+v", s)
	}
	// Neither goes back to what it was made as.
	for _, i := range []int{leaderAt, fourth} {
		c.Stop(i)
		c.Start(i)
		c.WaitReady()
	}
	s = roles(t, listener, 3, 1)
	if roleOf(s, leaderID) != "nonvoter" || roleOf(s, id) == "nonvoter" {
		t.Errorf("after restarts: %+v", s)
	}
	register(t, leader.Node, "cora")
}

// The leader removes a dead node by itself, where enough voters are left, and says so.
func TestCleanup_RemovesTheDead(t *testing.T) {
	t.Parallel()
	c := nodetest.New(t, 4, nodetest.WithConfig(func(i int, cfg *node.Config) {
		withAdmin(i, cfg)
		cfg.Limits.Lease, cfg.Limits.DeadAfter = node.Duration(2*time.Second), node.Duration(2*time.Second)
		cfg.Membership.DeadServerCleanup = node.Duration(2 * time.Second)
	}))
	for i := range c.Members {
		c.Start(i)
	}
	c.WaitReady()
	dead := c.Followers()[0]
	id := c.Members[dead].Node.ID()
	c.Stop(dead)
	asked := c.Members[c.Leader()]
	s := roles(t, asked, 3, 0)
	if roleOf(s, id) != "" {
		t.Errorf("it is still there: %+v", s)
	}
	nodetest.WaitFor(t, "the log and the metrics to say so", func() error {
		log, metrics := c.Log(), adminText(t, asked.Node, "/metrics")
		if !strings.Contains(log, `msg="dead node removed"`) || !strings.Contains(log, "removed="+id) || !strings.Contains(metrics, "sluice_cluster_dead_nodes_removed_total 1\n") {
			return errors.New("not yet")
		}
		return nil
	})
	// Its own directory is of no use any more, and it says so.
	if err := ended(t, c.Start(dead)); !errors.Is(err, node.ErrRemoved) {
		t.Errorf("the removed node: %v", err)
	}
}
