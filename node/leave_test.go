package node_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sluice/node"
	"sluice/node/nodetest"
)

// adminPost calls a member's admin API.
func adminPost(m *nodetest.Member, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	resp, err := http.Post("http://"+m.Node.AdminAddr().String()+path, "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return json.NewDecoder(resp.Body).Decode(out)
	}
	p := new(node.AdminProblem)
	if err := json.NewDecoder(resp.Body).Decode(p); err != nil {
		return err
	}
	return p
}

// refused says whether err is the admin API's answer with a code, and what it says holds text.
func refused(err error, code, text string) bool {
	var p *node.AdminProblem
	return errors.As(err, &p) && p.Code == code && strings.Contains(p.Detail, text)
}

// monthly gives anonymous clients 10 requests in a window that does not end during a test, unless it is a bad month.
func monthly(i int, cfg *node.Config) {
	withAdmin(i, cfg)
	cfg.TrustedProxies = []string{"127.0.0.0/8"}
	cfg.Limits.Anonymous = node.RuleConfig{Limit: 10, Window: node.Duration(744 * time.Hour), Algorithm: "fixed_window"}
}

// spend asks for n requests of a client, one at a time at the members in turn, and says how many passed. Where a share may
// be on its way it asks again.
func spend(t *testing.T, c *nodetest.Cluster, client string, n int, at ...int) (admitted int) {
	t.Helper()
	for i := range n {
		for try := range 10 {
			req, err := http.NewRequest(http.MethodGet, "http://"+c.Members[at[i%len(at)]].Node.HTTPAddr().String()+"/api/v1/auth/verify", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-Forwarded-For", client)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				admitted++
				break
			}
			if resp.StatusCode != http.StatusTooManyRequests {
				t.Fatalf("request %d of %s: %s", i, client, resp.Status)
			}
			if try > 0 {
				time.Sleep(20 * time.Millisecond) // paces the asking; how often is bounded
			}
		}
	}
	return admitted
}

func waitEnded(t *testing.T, m *nodetest.Member) {
	t.Helper()
	select {
	case <-m.Node.Done():
	case <-time.After(nodetest.Timeout):
		t.Fatal("the node goes on")
	}
	if err := m.Node.Err(); err != nil {
		t.Errorf("the node ended with %v", err)
	}
}

// Four of ten are spent; then all three nodes are replaced, one after another. Six more pass, and the seventh does not.
func TestLeave_ReplaceAll(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3, nodetest.WithConfig(monthly))
	if got := spend(t, c, "203.0.113.1", 4, 0, 1, 2); got != 4 {
		t.Fatalf("%d admitted at first, want 4", got)
	}
	for old := range 3 {
		joined := c.Add()
		c.Start(joined)
		c.WaitReady()
		ids := []string{c.Members[old].Node.ID(), c.Members[joined].Node.ID()}
		var removed node.RemovedNode
		// Asked elsewhere, at the node itself, and by name.
		ask, name := c.Members[joined], ids[0]
		switch old {
		case 1:
			ask = c.Members[old]
		case 2:
			name = c.Members[old].Config.Name
		}
		if err := adminPost(ask, "/v1/cluster/remove", node.RemoveNode{Node: name}, &removed); err != nil {
			t.Fatal(err)
		}
		if removed.Node != ids[0] || removed.Heir == "" || removed.Heir == ids[0] {
			t.Errorf("removed: %+v", removed)
		}
		waitEnded(t, c.Members[old])
		c.Stop(old)
		if _, err := c.Open(old); !errors.Is(err, node.ErrLeft) {
			t.Errorf("a node that left starts again: %v", err)
		}
		nodetest.WaitFor(t, "a cluster without it", func() error {
			s, err := clusterStatus(c.Members[joined])
			if err != nil {
				return err
			}
			if len(s.Nodes) != 3 || len(s.Roster.Nodes) != 3 || slices.Contains(s.Roster.Nodes, ids[0]) || len(s.Leaves) != old+1 {
				return fmt.Errorf("%+v", s)
			}
			return nil
		})
		c.WaitReady()
	}
	if got := spend(t, c, "203.0.113.1", 12, 3, 4, 5); got != 6 {
		t.Errorf("%d more admitted, want 6", got)
	}
	if got := spend(t, c, "203.0.113.2", 15, 3, 4, 5); got != 10 {
		t.Errorf("%d admitted of what nobody touched, want 10", got)
	}
}

func TestRemove_Guards(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3, nodetest.WithConfig(monthly))
	leader, followers := c.Leader(), c.Followers()
	asked := c.Members[followers[0]]
	var removed node.RemovedNode
	if err := adminPost(asked, "/v1/cluster/remove", node.RemoveNode{Node: "nod_nobody"}, &removed); !refused(err, "not_found", "no member") {
		t.Errorf("nobody: %v", err)
	}
	if err := adminPost(asked, "/v1/cluster/remove", node.RemoveNode{}, &removed); !refused(err, "invalid_input", "missing") {
		t.Errorf("no node: %v", err)
	}
	var moved node.TransferredLeader
	to := c.Members[followers[1]].Node.ID()
	if err := adminPost(asked, "/v1/cluster/transfer-leader", node.TransferLeader{Node: to}, &moved); err != nil || moved.Leader != to {
		t.Errorf("leadership to %s: %+v, %v", to, moved, err)
	}
	if err := adminPost(asked, "/v1/cluster/transfer-leader", node.TransferLeader{}, &moved); err != nil || moved.Leader == to {
		t.Errorf("leadership to anybody: %+v, %v", moved, err)
	}
	// One is dead: of the other two each is needed.
	deadID := c.Members[leader].Node.ID()
	c.Stop(leader)
	c.Leader()
	if err := adminPost(asked, "/v1/cluster/remove", node.RemoveNode{Node: to}, &removed); !refused(err, "conflict", "lose its majority") {
		t.Errorf("the second of two: %v", err)
	}
	if err := adminPost(asked, "/v1/cluster/remove", node.RemoveNode{Node: asked.Node.ID()}, &removed); !refused(err, "conflict", "lose its majority") {
		t.Errorf("itself: %v", err)
	}
	if err := adminPost(asked, "/v1/cluster/remove", node.RemoveNode{Node: deadID}, &removed); err != nil || removed.Heir != "" {
		t.Errorf("the dead one: %+v, %v", removed, err)
	}
	nodetest.WaitFor(t, "a cluster of two", func() error {
		s, err := clusterStatus(asked)
		if err == nil && (len(s.Nodes) != 2 || len(s.Roster.Nodes) != 2 || len(s.Problems) > 0) {
			err = fmt.Errorf("%+v", s)
		}
		return err
	})
	if err := adminPost(asked, "/v1/cluster/remove", node.RemoveNode{Node: to}, &removed); err != nil || removed.Heir != asked.Node.ID() {
		t.Errorf("the second of two, both alive: %+v, %v", removed, err)
	}
	waitEnded(t, c.Members[followers[1]])
	if err := adminPost(asked, "/v1/cluster/remove", node.RemoveNode{Node: asked.Node.ID(), Force: true}, &removed); !refused(err, "conflict", "last voter") {
		t.Errorf("the last: %v", err)
	}
	// The dead node's share, 3 or 4, stands idle until the window ends; that of the one that left does not.
	if got := spend(t, c, "203.0.113.1", 15, followers[0]); got != 6 && got != 7 {
		t.Errorf("the last admits %d, want 6 or 7", got)
	}
}

// A leaver that is stopped on its way goes on at its next start; the leader among them.
func TestLeave_GoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 4, nodetest.WithConfig(monthly))
	if got := spend(t, c, "203.0.113.1", 4, 0, 1, 2, 3); got != 4 {
		t.Fatalf("%d admitted at first, want 4", got)
	}
	for _, old := range []int{c.Leader(), -1} {
		if old < 0 {
			old = c.Followers()[0]
		}
		m := c.Members[old]
		before := markOf(t, m)
		asked := make(chan error, 1)
		admin := *m
		go func() {
			var removed node.RemovedNode
			asked <- adminPost(&admin, "/v1/cluster/remove", node.RemoveNode{Node: admin.Node.ID()}, &removed)
		}()
		nodetest.WaitFor(t, "the note that it leaves", func() error {
			if text := markOf(t, m); text == before {
				return fmt.Errorf("marks %q", text)
			}
			return nil
		})
		c.Stop(old)
		<-asked // done, or cut off
		if n, err := c.Open(old); err == nil {
			waitEnded(t, m)
			if n.Err() != nil {
				t.Error(n.Err())
			}
			c.Stop(old)
			if _, err = c.Open(old); !errors.Is(err, node.ErrLeft) {
				t.Errorf("it starts again: %v", err)
			}
		} else if !errors.Is(err, node.ErrLeft) {
			t.Fatal(err)
		}
		c.Leader()
		c.WaitReady()
	}
	left := []int{c.Leader(), c.Followers()[0]}
	if got := spend(t, c, "203.0.113.1", 12, left...); got != 6 {
		t.Errorf("%d more admitted by the two that are left, want 6", got)
	}
}

// markOf tells which kind of mark a node's limiter has written: the first eight bytes of each copy.
func markOf(t *testing.T, m *nodetest.Member) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(m.Dir, "limiter", "limits.mark"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(data[:8])
	if len(data) > 4096+8 {
		text += string(data[4096 : 4096+8])
	}
	return text
}
