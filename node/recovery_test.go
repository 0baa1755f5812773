package node_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sluice/node"
	"sluice/node/nodetest"
)

// frequentSnapshots makes Raft drop its log soon, so that what is before a snapshot can only come from there.
func frequentSnapshots(_ int, cfg *node.Config) {
	cfg.Raft.SnapshotThreshold = 16
	cfg.Raft.TrailingLogs = 32
	cfg.Raft.SnapshotInterval = node.Duration(time.Second)
}

// waitSnapshot waits until a member has a snapshot that holds at least the entries applied so far.
func waitSnapshot(t *testing.T, c *nodetest.Cluster, i int) {
	t.Helper()
	at := c.Members[i].Node.AppliedIndex()
	nodetest.WaitFor(t, "a snapshot", func() error {
		names, err := filepath.Glob(filepath.Join(c.Members[i].Dir, "raft", "snapshots", "*-*-*"))
		if err != nil {
			return err
		}
		for _, name := range names {
			var term, index, stamp uint64
			if _, err := fmt.Sscanf(filepath.Base(name), "%d-%d-%d", &term, &index, &stamp); err == nil && filepath.Ext(name) == "" && index >= at {
				return nil
			}
		}
		return fmt.Errorf("entry %d is in none of %v", at, names)
	})
}

func TestRecovery_FromSnapshot(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 1, nodetest.WithConfig(frequentSnapshots))
	const users = 100
	for i := range users {
		register(t, c.Members[0].Node, fmt.Sprintf("user%d", i))
	}
	waitSnapshot(t, c, 0)

	// A node that joins cannot get the first entries any more: it is sent the snapshot.
	second := c.Add()
	c.Start(second)
	c.WaitReady()
	for i := range users {
		knows(t, c.Members[second].Node, fmt.Sprintf("user%d", i))
	}

	// A state that was thrown away, as after a crash of the machine, comes back from the snapshot and the log after it.
	register(t, c.Members[0].Node, "after")
	c.Stop(0)
	if err := os.RemoveAll(filepath.Join(c.Members[0].Dir, "state")); err != nil {
		t.Fatal(err)
	}
	c.Start(0)
	c.WaitReady()
	for i := range users {
		knows(t, c.Members[0].Node, fmt.Sprintf("user%d", i))
	}
	knows(t, c.Members[0].Node, "after")
}

// A node may come back under other addresses: what it says of itself at its start is enough for the others to reach it.
func TestRecovery_OtherAddresses(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3, nodetest.WithConfig(withAdmin))
	moved := c.Followers()[0]
	c.Stop(moved)
	m := c.Members[moved]
	before := m.Config.Peer.Listen
	host, _, err := net.SplitHostPort(before)
	if err != nil {
		t.Fatal(err)
	}
	m.Config.Peer.Listen, m.Config.Gossip.Listen = net.JoinHostPort(host, "0"), net.JoinHostPort(host, "0")
	c.Start(moved)
	c.WaitReady()
	for _, other := range c.Members {
		nodetest.WaitFor(t, "gossip to see it there", func() error {
			s, err := clusterStatus(other)
			if err == nil && len(s.Problems) > 0 {
				err = fmt.Errorf("%v", s.Problems)
			}
			for _, n := range s.Nodes {
				if len(n.Problems) > 0 {
					err = fmt.Errorf("%s: %v", n.ID, n.Problems)
				}
			}
			return err
		})
	}
	if got := m.Node.PeerAddress(); got == before {
		t.Fatalf("still at %s", got)
	}
	register(t, m.Node, "anna")
	// It can lead from there too, once the others have gone one after the other.
	m.Config.Peer.Listen = m.Node.PeerAddress()
	for range 2 * len(c.Members) {
		leader := c.Leader()
		if leader == moved {
			break
		}
		c.Stop(leader)
		c.Start(leader)
	}
	c.WaitReady()
	register(t, c.Members[(moved+1)%3].Node, "bert")
	knows(t, c.Members[(moved+1)%3].Node, "anna")
}

func TestOpen_StateAheadOfTheLog(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 1)
	older := filepath.Join(t.TempDir(), "log.db")
	log := filepath.Join(c.Members[0].Dir, "raft", "log.db")
	copyFile := func(from, to string) {
		t.Helper()
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.Stop(0)
	copyFile(log, older)
	c.Start(0)
	c.WaitReady()
	register(t, c.Members[0].Node, "anna")
	c.Stop(0)
	copyFile(older, log)
	if err := ended(t, c.Start(0)); !errors.Is(err, node.ErrLogLost) {
		t.Errorf("node with an older log than its state: %v, want ErrLogLost", err)
	}
}
