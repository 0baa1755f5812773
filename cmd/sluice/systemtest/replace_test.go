package systemtest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// longWindow is an hour, or more where the present hour is about to end.
func longWindow() string {
	for _, hours := range []int64{1, 2, 3, 5, 7} {
		if w := hours * 3600; w-time.Now().Unix()%w > 600 {
			return fmt.Sprintf("%dh", hours)
		}
	}
	return "744h"
}

// command runs the program against a node of the cluster and returns what it prints.
func (c *cluster) command(t *testing.T, node int, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, append(args, "--config", filepath.Join(c.dir, fmt.Sprintf("node%d.toml", node)))...)
	cmd.Env = cleanEnvironment()
	var out, errs lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// passes asks for one request of a client and says whether it passed. A share that is on its way may take a moment.
func passes(t *testing.T, url string, r request) bool {
	t.Helper()
	for range 5 {
		res, err := send(url, r)
		if err != nil {
			t.Fatal(err)
		}
		switch res.status {
		case http.StatusOK:
			return true
		case http.StatusTooManyRequests:
		default:
			t.Fatalf("got %v", res)
		}
		<-time.After(30 * time.Millisecond)
	}
	return false
}

// TestReplace_ThreeNodes spends 4 of 10 an hour and replaces all three nodes, one after another: exactly 6 more pass,
// spread over the new ones.
func TestReplace_ThreeNodes(t *testing.T) {
	c := startCluster(t, options{variables: []string{"SLUICE_LIMITS__ANONYMOUS__WINDOW=" + longWindow()}})
	r := request{path: "/api/v1/auth/verify", address: newAddress()}
	for i := range 4 {
		if !passes(t, c.urls[i%3], r) {
			t.Fatalf("request %d of the first four is refused", i+1)
		}
	}
	for old := 1; old <= 3; old++ {
		joined := c.join(t, old)
		// Asked at the node that goes, and elsewhere.
		ask := joined
		if old == 2 {
			ask = old
		}
		begun := time.Now()
		stdout, stderr, err := c.command(t, ask, "cluster", "remove", fmt.Sprintf("node%d", old))
		if err != nil || !strings.Contains(stdout, "has its share") {
			t.Fatalf("remove node%d: %v\n%s%s", old, err, stdout, stderr)
		}
		t.Logf("node%d left within %v: %s", old, time.Since(begun).Round(time.Millisecond), strings.TrimSpace(stdout))
		eventually(t, stopWithin, "the node has ended well", func() error {
			want := fmt.Sprintf("node%d (pid %d) ended: exit status 0", old, c.pid(t, old))
			if !strings.Contains(c.stderr.String(), want) {
				return fmt.Errorf("no %q in %q", want, c.stderr.String())
			}
			return nil
		})
	}
	if _, stderr, err := c.command(t, 1, "node"); err == nil || !strings.Contains(stderr, "has left the cluster for good") {
		t.Errorf("a node that left starts again: %v\n%s", err, stderr)
	}
	eventually(t, readyWithin, "the status finds nothing wrong", func() error {
		stdout, stderr, err := c.command(t, 5, "cluster", "status", "--output", "json")
		if err != nil {
			return fmt.Errorf("%w: %s%s", err, stdout, stderr)
		}
		var status struct {
			Nodes  []struct{ Name string }
			Leaves []struct{ Node, Heir string }
			Roster struct{ Nodes []string }
		}
		if err := json.Unmarshal([]byte(stdout), &status); err != nil {
			return err
		}
		if len(status.Nodes) != 3 || len(status.Leaves) != 3 || len(status.Roster.Nodes) != 3 {
			return fmt.Errorf("got %s", stdout)
		}
		return nil
	})
	admitted := 0
	for i := range 18 {
		if passes(t, c.urls[3+i%3], r) {
			admitted++
		}
	}
	if admitted != 6 {
		t.Errorf("%d more passed, want 6", admitted)
	}
	for _, url := range c.urls[3:] {
		res, err := send(url, r)
		if err != nil || res.status != http.StatusTooManyRequests || res.header.Get("X-RateLimit-Remaining") != "0" {
			t.Errorf("the next at %s: %v, %v", url, res, err)
		}
	}
}

// TestRestart_AllInTurn spends 20 of 100 an hour, then kills each node and starts it again: never more than 100 pass, and
// at least 60 of the 80 left.
func TestRestart_AllInTurn(t *testing.T) {
	c := startCluster(t, options{variables: []string{"SLUICE_LIMITS__ANONYMOUS__WINDOW=" + longWindow(), "SLUICE_LIMITS__ANONYMOUS__LIMIT=100"}})
	r := request{path: "/api/v1/auth/verify", address: newAddress()}
	for i := range 20 {
		if !passes(t, c.urls[i%3], r) {
			t.Fatalf("request %d of the first twenty is refused", i+1)
		}
	}
	for node := 1; node <= 3; node++ {
		c.kill(t, node)
		c.startNode(t, node)
		c.waitReadyz(t, node, 2*readyWithin)
	}
	admitted, refused := 0, 0
	for i := 0; refused < 12; i++ {
		if passes(t, c.urls[i%3], r) {
			admitted++
			refused = 0
		} else {
			refused++
		}
	}
	t.Logf("20 before the restarts, %d after them", admitted)
	if admitted > 80 || admitted < 60 {
		t.Errorf("%d more passed, want 60 to 80", admitted)
	}
}
