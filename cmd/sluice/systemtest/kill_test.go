package systemtest

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// failover is how long the cluster may refuse writes after it lost a node.
const failover = 5 * time.Second

// wide lets the tests below ask as often as they like.
var wide = []string{"SLUICE_LIMITS__USER__LIMIT=100000000", "SLUICE_LIMITS__API_KEY__LIMIT=100000000"}

// TestKill_OneNode kills each node in turn, and so the leader too: reads on the others go on without a failure, writes
// soon, and the node comes back by its file alone.
func TestKill_OneNode(t *testing.T) {
	c := startCluster(t, options{variables: wide})
	a := register(t, c.urls[0])
	key := a.newKey(t, c.urls[0], 0, "triggers:read")
	everywhere(t, c, request{path: "/api/v1/triggers", key: key.secret, address: a.address}, http.StatusOK)

	for node := 1; node <= len(c.urls); node++ {
		leader := c.leader(t)
		t.Logf("killing node%d; the leader is node%d", node, leader)
		var others []string
		for i, url := range c.urls {
			if i+1 != node {
				others = append(others, url)
			}
		}
		reading, stopReading := context.WithCancel(context.Background())
		var readers sync.WaitGroup
		for _, url := range others {
			for _, read := range []request{
				{path: "/api/v1/triggers", key: key.secret, address: a.address},
				{path: "/api/v1/api-keys/" + key.id, token: a.token, address: a.address},
			} {
				readers.Go(func() { keepReading(reading, t, url, read) })
			}
		}
		c.kill(t, node)
		killed := time.Now()
		var made string
		eventually(t, failover, "a write succeeds", func() error {
			res, err := send(others[0], request{method: "POST", path: "/api/v1/organizations", token: a.token, address: a.address,
				body: map[string]any{"name": unique("after")}, header: map[string]string{"Idempotency-Key": fmt.Sprintf("kill-%d", node)}})
			if err != nil {
				return err
			}
			if res.status != http.StatusCreated {
				return fmt.Errorf("got %v", res)
			}
			made = res.field(t, "id")
			return nil
		})
		t.Logf("a write after %v", time.Since(killed).Round(time.Millisecond))
		eventually(t, readyWithin, "the death is reported", func() error {
			if want := fmt.Sprintf("node%d (pid", node); !strings.Contains(c.stderr.String(), want) {
				return fmt.Errorf("no %q in %q", want, c.stderr.String())
			}
			return nil
		})
		c.startNode(t, node)
		c.waitReadyz(t, node, 2*readyWithin)
		t.Logf("back after %v", time.Since(killed).Round(time.Millisecond))
		// It has caught up: what was written without it is there, and so is what was there before.
		eventually(t, failover, "the node has caught up", func() error {
			res, err := send(c.urls[node-1], request{path: "/api/v1/organizations/" + made, token: a.token, address: a.address})
			if err != nil {
				return err
			}
			if res.status != http.StatusOK {
				return fmt.Errorf("got %v", res)
			}
			return nil
		})
		must(t, c.urls[node-1], request{path: "/api/v1/triggers", key: key.secret, address: a.address}, http.StatusOK)
		stopReading()
		readers.Wait()
		if t.Failed() {
			return
		}
		// The pid file is of the process that dev started; the next round kills another node.
	}
}

// keepReading asks until ctx ends and fails the test for every answer but 200.
func keepReading(ctx context.Context, t *testing.T, url string, r request) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		begun := time.Now()
		res, err := send(url, r)
		if err != nil || res.status != http.StatusOK {
			t.Errorf("read %d of %s at %s (took %v): %v, %v", n, r.path, url, time.Since(begun), res, err)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// leader asks the nodes who leads; 0 where nobody says so.
func (c *cluster) leader(t *testing.T) int {
	t.Helper()
	for i, url := range c.urls {
		res, err := send(url, request{path: "/api/v1/health", address: newAddress()})
		if err == nil && strings.Contains(strings.ReplaceAll(string(res.body), " ", ""), `"leader":true`) {
			return i + 1
		}
	}
	return 0
}

// TestKill_AllNodes kills every process at once while writes run, and finds every acknowledged one after the restart.
func TestKill_AllNodes(t *testing.T) {
	c := startCluster(t, options{variables: wide})
	a := register(t, c.urls[0])
	key := a.newKey(t, c.urls[1], 0, "triggers:read")
	gone := a.newKey(t, c.urls[2], 0, "triggers:read")
	must(t, c.urls[0], request{method: "DELETE", path: "/api/v1/api-keys/" + gone.id, token: a.token, address: a.address}, http.StatusNoContent)

	var mu sync.Mutex
	var acknowledged []string
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(acknowledged)
	}
	writing, stopWriting := context.WithCancel(context.Background())
	defer stopWriting()
	var writers sync.WaitGroup
	for i, url := range c.urls {
		writers.Go(func() {
			for n := 0; writing.Err() == nil; n++ {
				res, err := send(url, request{method: "POST", path: "/api/v1/organizations", token: a.token, address: a.address, body: map[string]any{"name": fmt.Sprintf("w%d-%d", i, n)}})
				if err != nil {
					return // killed
				}
				if res.status == http.StatusCreated {
					mu.Lock()
					acknowledged = append(acknowledged, res.field(t, "id"))
					mu.Unlock()
				}
			}
		})
	}
	eventually(t, readyWithin, "enough is written", func() error {
		if n := count(); n < 40 {
			return fmt.Errorf("%d writes so far", n)
		}
		return nil
	})
	var pids []int
	for node := range c.urls {
		pids = append(pids, c.pid(t, node+1))
	}
	for _, pid := range pids {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	stopWriting()
	writers.Wait()
	select {
	case <-c.exited:
	case <-time.After(stopWithin):
		t.Fatal("dev goes on without a node")
	}
	if code := c.cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("exit code %d after all nodes had died, want 1", code)
	}

	again := startCluster(t, options{dir: c.dir, port: c.port, variables: wide})
	t.Logf("%d acknowledged writes; ready again after %v", count(), again.took.Round(time.Millisecond))
	for i, id := range acknowledged {
		must(t, again.urls[i%len(again.urls)], request{path: "/api/v1/organizations/" + id, token: a.token, address: a.address}, http.StatusOK)
	}
	everywhere(t, again, request{path: "/api/v1/triggers", key: key.secret, address: a.address}, http.StatusOK)
	everywhere(t, again, request{path: "/api/v1/triggers", key: gone.secret, address: a.address}, http.StatusUnauthorized)
}
