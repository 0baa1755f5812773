package node_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sluice/node"
	"sluice/node/nodetest"
)

// recovered makes a cluster of one stopped member and starts it again.
func recovered(t *testing.T, c *nodetest.Cluster, i int, deadSince time.Time) node.Recovery {
	t.Helper()
	r, err := node.Recover(c.Members[i].Config, node.RecoverOptions{Apply: true, DeadSince: deadSince, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatalf("recover: %v", err)
	}
	return r
}

// Two of three are lost with their disks. The third goes on as a cluster of its own with all that it had, two new nodes join it, and
// no limit is exceeded on the way.
func TestRecover_FromOneOfThree(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3, nodetest.WithConfig(monthly))
	const users = 20
	for i := range users {
		register(t, c.Members[i%3].Node, fmt.Sprintf("user%d", i))
	}
	const client = "203.0.113.77"
	spent := spend(t, c, client, 4, 0, 1, 2)
	left := c.Followers()[0]
	survivor := c.Members[left]
	id := survivor.Node.ID()
	if err := survivor.Node.Cluster().CatchUp(bounded(t)); err != nil {
		t.Fatal(err)
	}
	for i := range users {
		knows(t, survivor.Node, fmt.Sprintf("user%d", i))
	}
	before := survivor.Node.Health()[0].Detail
	horizon := survivor.Node.Rosters().Horizon

	if _, err := node.Recover(survivor.Config, node.RecoverOptions{Apply: true, Logger: slog.New(slog.DiscardHandler)}); !errors.Is(err, node.ErrDataDirInUse) {
		t.Errorf("of a node that runs: %v", err)
	}
	var lost []int
	for i := range c.Members {
		c.Stop(i)
		if i != left {
			lost = append(lost, i)
		}
	}
	// First it is only said what would be done, and nothing is.
	said, err := node.Recover(survivor.Config, node.RecoverOptions{Logger: slog.New(slog.DiscardHandler)})
	if err != nil || said.Done || said.Node != id || said.Cluster != before || len(said.Members) != 3 || len(said.Lost) != 2 || slices.Contains(said.Lost, id) || said.Backup != "" {
		t.Fatalf("what would be done: %+v, %v", said, err)
	}
	if until := time.Until(said.SharesFrom); until < 8*time.Minute || until > 9*time.Minute {
		t.Errorf("shares from in %s on", until)
	}
	if _, err := node.Recover(survivor.Config, node.RecoverOptions{DeadSince: time.Now().Add(time.Hour), Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("dead since an hour from now")
	}

	// That no lost node has run for ten minutes is not so, but keeps this test short: the horizon that is known here lies behind.
	r := recovered(t, c, left, time.Now().Add(-10*time.Minute))
	if !r.Done || r.Becomes == before || !strings.HasPrefix(r.Becomes, before+"_r1_") || r.SharesFrom.UnixMilli() < horizon {
		t.Fatalf("recovered: %+v", r)
	}
	if _, err := os.Stat(filepath.Join(r.Backup, "raft", "log.db")); err != nil {
		t.Errorf("the copy of the log: %v", err)
	}
	c.Start(left)
	c.WaitReady()
	if now := survivor.Node.Health()[0].Detail; now != r.Becomes || survivor.Node.ID() != id {
		t.Errorf("it is %s in %s", survivor.Node.ID(), now)
	}
	for i := range users {
		knows(t, survivor.Node, fmt.Sprintf("user%d", i))
	}
	register(t, survivor.Node, "after")
	rosters := survivor.Node.Rosters().Rosters
	if n := len(rosters); n < 3 || slices.Contains(rosters[n-2].Nodes, id) || !slices.Equal(rosters[n-1].Nodes, []string{id}) {
		t.Errorf("rosters: %+v", rosters)
	}
	// In the month that goes on the shares of the lost stay theirs.
	spent += spend(t, c, client, 15, left)
	if spent > 10 || spent < 4 {
		t.Errorf("%d of 10 were admitted", spent)
	}

	for _, i := range lost {
		m := c.Members[i]
		m.Dir = filepath.Join(t.TempDir(), "data")
		m.Config.DataDir, m.Config.InitialMembers = m.Dir, nil
		m.Config.Join = []string{survivor.Config.Peer.Listen}
		c.Start(i)
	}
	c.WaitReady()
	s := roles(t, survivor, 3, 0)
	if len(s.Nodes) != 3 || s.ClusterID != r.Becomes {
		t.Errorf("status: %+v", s)
	}
	for _, i := range lost {
		knows(t, c.Members[i].Node, "after")
		knows(t, c.Members[i].Node, "user7")
		register(t, c.Members[i].Node, fmt.Sprintf("new%d", i))
	}
	if spent += spend(t, c, client, 15, 0, 1, 2); spent > 10 {
		t.Errorf("%d of 10 were admitted", spent)
	}
	// The new ones carry it: it need not lead.
	c.Stop(left)
	register(t, c.Members[lost[0]].Node, "without")
}

// The lost nodes were not lost after all, and are the majority of what was. They hear of it and end; nothing of theirs comes in.
func TestRecover_TheLostComeBack(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3, nodetest.WithConfig(withAdmin))
	register(t, c.Members[0].Node, "anna")
	leader := c.Leader()
	for i := range c.Members {
		c.Stop(i)
	}
	// As after a crash of the machine: nothing says any more which entries of the log were committed.
	if err := os.RemoveAll(filepath.Join(c.Members[leader].Dir, "state")); err != nil {
		t.Fatal(err)
	}
	r := recovered(t, c, leader, time.Time{})
	for i := range c.Members {
		c.Start(i)
	}
	survivor := c.Members[leader].Node
	for i, m := range c.Members {
		if i == leader {
			continue
		}
		if err := ended(t, m.Node); !errors.Is(err, node.ErrSuperseded) || !strings.Contains(err.Error(), r.Becomes) {
			t.Errorf("node %d: %v", i, err)
		}
		c.Stop(i)
	}
	c.WaitReady()
	register(t, survivor, "bert")
	if s := roles(t, c.Members[leader], 1, 0); s.ClusterID != r.Becomes || s.Leader != survivor.ID() {
		t.Errorf("status: %+v", s)
	}
	if log := c.Log(); !strings.Contains(log, "as it was before its recovery") {
		t.Error("the log of the one that refuses does not say why")
	}
	knows(t, survivor, "anna")
	// Windows that they may have opened are not the survivor's.
	for _, roster := range survivor.Rosters().Rosters {
		if slices.Contains(roster.Nodes, survivor.ID()) && roster.From < r.SharesFrom.UnixMilli() {
			t.Errorf("it holds shares by the roster %+v", roster)
		}
	}
	if horizon := survivor.Rosters().Horizon; horizon < r.SharesFrom.UnixMilli() {
		t.Errorf("the horizon is %d, shares are promised from %s on", horizon, r.SharesFrom)
	}
}

// A recovery that is cut off is gone on with, wherever it was, and no node starts in between.
func TestRecover_CutOff(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 2, nodetest.WithConfig(frequentSnapshots))
	for i := range 40 {
		register(t, c.Members[0].Node, fmt.Sprintf("user%d", i))
	}
	waitSnapshot(t, c, 0)
	m := c.Members[0]
	cluster := m.Node.Health()[0].Detail
	other := c.Members[1].Node.ID()
	c.Stop(0)
	c.Stop(1)
	path := func(name string) string { return filepath.Join(m.Dir, name) }
	// What was copied aside undoes a recovery.
	first := recovered(t, c, 0, time.Time{})
	for _, name := range []string{"member.json", "formation.json", "raft", "state"} {
		if err := os.RemoveAll(path(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(m.Dir, os.DirFS(first.Backup)); err != nil {
		t.Fatal(err)
	}
	c.Start(0)
	c.Start(1)
	c.WaitReady()
	register(t, m.Node, "undone")
	if got := m.Node.Health()[0].Detail; got != cluster {
		t.Errorf("undone, it is %s, want %s", got, cluster)
	}
	c.Stop(0)
	c.Stop(1)
	mark, err := os.ReadFile(path("member.json"))
	if err != nil {
		t.Fatal(err)
	}
	becomes := cluster + "_r1_0a0b0c0d"
	plan, err := json.Marshal(map[string]any{
		"version": 1, "previous": cluster, "cluster_id": becomes, "lost": []string{other}, "until": time.Now().UnixMilli(), "backup": "elsewhere",
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, cut := range []string{"before the entry", "before the marks"} {
		if err := os.WriteFile(path("recovery.json"), plan, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path("member.json"), mark, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Open(0); !errors.Is(err, node.ErrRecovering) {
			t.Fatalf("cut off %s, the node starts: %v", cut, err)
		}
		r := recovered(t, c, 0, time.Time{})
		if !r.Done || r.Becomes != becomes || r.Backup != "elsewhere" {
			t.Errorf("cut off %s: %+v", cut, r)
		}
	}
	c.Start(0)
	c.WaitReady()
	for i := range 40 {
		knows(t, m.Node, fmt.Sprintf("user%d", i))
	}
	if got := m.Node.Health()[0].Detail; got != becomes {
		t.Errorf("it is %s", got)
	}
	register(t, m.Node, "after")
}

func TestRecover_NothingThere(t *testing.T) {
	t.Parallel()
	cfg := node.DefaultConfig()
	cfg.DataDir = t.TempDir()
	if _, err := node.Recover(cfg, node.RecoverOptions{Apply: true, Logger: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), "no node's data directory") {
		t.Errorf("an empty directory: %v", err)
	}
	if names, err := os.ReadDir(cfg.DataDir); err != nil || len(names) > 0 {
		t.Errorf("it holds %v now, %v", names, err)
	}
	// A member that never got into a cluster.
	c := nodetest.New(t, 2)
	c.Start(0)
	c.Stop(0)
	if _, err := node.Recover(c.Members[0].Config, node.RecoverOptions{Apply: true, Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("a node without a cluster")
	}
}
