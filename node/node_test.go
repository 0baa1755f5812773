package node_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sluice/authapi"
	"sluice/node"
	"sluice/node/nodetest"
	"sluice/raftfsm/state"
)

// bounded is the context of a test's own waits.
func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), nodetest.Timeout)
	t.Cleanup(cancel)
	return ctx
}

// register proposes a user on a node and wants it done.
func register(t *testing.T, n *node.Node, name string) {
	t.Helper()
	result, err := n.Cluster().Propose(bounded(t), nodetest.RequestID(), nodetest.Register(name))
	if err != nil || result.Refused != "" {
		t.Fatalf("register %s on %s: %+v, %v", name, n.ID(), result, err)
	}
}

// knows wants a user on a node, at once.
func knows(t *testing.T, n *node.Node, name string) {
	t.Helper()
	if u, err := n.State().UserByName(name); err != nil || u == nil {
		t.Errorf("%s does not know %s: %v", n.ID(), name, err)
	}
}

// ended waits for a node to give up and returns why.
func ended(t *testing.T, n *node.Node) error {
	t.Helper()
	select {
	case <-n.Done():
		return n.Err()
	case <-time.After(nodetest.Timeout):
		t.Fatalf("node did not end")
		return nil
	}
}

func TestCluster_WritesAnywhereReadsEverywhere(t *testing.T) {
	t.Parallel()
	began := time.Now()
	c := nodetest.Start(t, 3)
	t.Logf("ready after %s", time.Since(began))
	for i, m := range c.Members {
		name := fmt.Sprintf("user%d", i)
		began := time.Now()
		register(t, m.Node, name)
		t.Logf("write on node %d (leader: %t): %s", i, m.Node.Cluster().Leader(), time.Since(began))
		knows(t, m.Node, name) // read-your-writes
		// What was acknowledged there is here after catching up, whatever the follower has heard so far.
		for _, other := range c.Members {
			began := time.Now()
			if err := other.Node.Cluster().CatchUp(bounded(t)); err != nil {
				t.Fatalf("catch up: %v", err)
			}
			t.Logf("caught up in %s", time.Since(began))
			knows(t, other.Node, name)
		}
	}
	rosters := c.Members[0].Node.Rosters().Rosters
	var ids []string
	for _, m := range c.Members {
		ids = append(ids, m.Node.ID())
	}
	slices.Sort(ids)
	if len(rosters) != 1 || rosters[0].From != 0 || !slices.Equal(rosters[0].Nodes, ids) {
		t.Errorf("rosters are %+v, want one from 0 with %v: the first has to hold all initial members", rosters, ids)
	}
}

func TestCluster_FormsInAnyOrder(t *testing.T) {
	t.Parallel()
	for _, late := range []int{0, 1, 2} {
		t.Run(fmt.Sprintf("node %d late", late), func(t *testing.T) {
			t.Parallel()
			c := nodetest.New(t, 3)
			c.Absent(late)
			for i := range c.Members {
				if i != late {
					c.Start(i)
				}
			}
			first := c.Members[(late+1)%3].Node
			nodetest.WaitFor(t, "the health check to say who is missing", func() error {
				check := first.Health()[0]
				if check.Err == nil || !strings.Contains(check.Err.Error(), c.Members[late].Config.Peer.Listen) {
					return fmt.Errorf("it says: %v", check.Err)
				}
				return nil
			})
			// Two of three are a majority, and must not go ahead all the same; nor after a restart in between.
			other := (late + 2) % 3
			id := c.Members[other].Node.ID()
			c.Stop(other)
			c.Start(other)
			if got := c.Members[other].Node.ID(); got != id {
				t.Errorf("id is %s after a restart, %s before", got, id)
			}
			if first.LeaderID() != "" {
				t.Fatal("a leader without all initial members")
			}
			c.Start(late)
			c.WaitReady()
			register(t, c.Members[late].Node, "anna")
		})
	}
}

func TestCluster_LeaderStops(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3)
	register(t, c.Members[0].Node, "before")
	leader := c.Leader()
	c.Stop(leader)
	stopped := time.Now()
	rest := c.Members[(leader+1)%3].Node
	register(t, rest, "after")
	if took := time.Since(stopped); took > 5*time.Second {
		t.Errorf("the first write after the leader's end took %s, want 5s at most", took)
	} else {
		t.Logf("the first write after the leader's end took %s", took)
	}
	c.Start(leader)
	c.WaitReady()
	for _, name := range []string{"before", "after"} {
		if err := c.Members[leader].Node.Cluster().CatchUp(bounded(t)); err != nil {
			t.Fatal(err)
		}
		knows(t, c.Members[leader].Node, name)
	}
	for i := range c.Members {
		c.Stop(i)
	}
	for i := range c.Members {
		c.Start(i)
	}
	c.WaitReady()
	for _, m := range c.Members {
		knows(t, m.Node, "before")
		knows(t, m.Node, "after")
	}
}

// Writers on all nodes go on while leaders stop. Each command would be refused the second time, so that a repetition
// that happened twice shows as a refusal; whatever was acknowledged has to be everywhere in the end.
func TestCluster_ExactlyOnceWhileLeadersStop(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3)
	const writers = 3
	stop := make(chan struct{})
	var mu sync.Mutex
	var done []string
	unknown, unavailable := 0, 0
	var wg sync.WaitGroup
	nodes := make([]*node.Node, len(c.Members))
	var nodesMu sync.RWMutex
	for i, m := range c.Members {
		nodes[i] = m.Node
	}
	for w := range writers {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				nodesMu.RLock()
				n := nodes[(w+i)%len(nodes)]
				nodesMu.RUnlock()
				name := fmt.Sprintf("w%dn%d", w, i)
				ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
				result, err := n.Cluster().Propose(ctx, nodetest.RequestID(), nodetest.Register(name))
				cancel()
				mu.Lock()
				switch {
				case err == nil && result.Refused == "":
					done = append(done, name)
				case err == nil:
					t.Errorf("%s was refused (%s): it must have happened before", name, result.Refused)
				case errors.Is(err, authapi.ErrUnknown):
					unknown++
				case errors.Is(err, authapi.ErrUnavailable):
					unavailable++
				default:
					t.Errorf("%s: %v is none of the three outcomes", name, err)
				}
				mu.Unlock()
			}
		})
	}
	for range 2 {
		before := count(&mu, &done)
		nodetest.WaitFor(t, "writes", func() error {
			if now := count(&mu, &done); now < before+20 {
				return fmt.Errorf("%d", now-before)
			}
			return nil
		})
		leader := c.Leader()
		c.Stop(leader)
		restarted := c.Start(leader)
		nodesMu.Lock()
		nodes[leader] = restarted
		nodesMu.Unlock()
	}
	before := count(&mu, &done)
	nodetest.WaitFor(t, "writes after the last stop", func() error {
		if now := count(&mu, &done); now < before+20 {
			return fmt.Errorf("%d", now-before)
		}
		return nil
	})
	close(stop)
	wg.Wait()
	t.Logf("%d done, %d unknown, %d unavailable", len(done), unknown, unavailable)
	c.WaitReady()
	for _, m := range c.Members {
		if err := m.Node.Cluster().CatchUp(bounded(t)); err != nil {
			t.Fatal(err)
		}
		for _, name := range done {
			knows(t, m.Node, name)
		}
	}
}

func count(mu *sync.Mutex, list *[]string) int {
	mu.Lock()
	defer mu.Unlock()
	return len(*list)
}

func TestPropose_SameRequestHappensOnce(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3)
	id := nodetest.RequestID()
	var first state.Result
	for i, m := range c.Members {
		result, err := m.Node.Cluster().Propose(bounded(t), id, nodetest.Register("anna"))
		if err != nil || result.Refused != "" {
			t.Fatalf("node %d: %+v, %v", i, result, err)
		}
		if i == 0 {
			first = result
		} else if result.Index != first.Index {
			t.Errorf("node %d: entry %d, want the first one's %d", i, result.Index, first.Index)
		}
	}
	result, err := c.Members[0].Node.Cluster().Propose(bounded(t), nodetest.RequestID(), nodetest.Register("anna"))
	if err != nil || result.Refused == "" {
		t.Errorf("another request for the same name: %+v, %v, want a refusal", result, err)
	}
}

func TestPropose_WithoutMajority(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3)
	followers := c.Followers()
	for _, i := range followers {
		c.Stop(i)
	}
	leader := c.Members[3-followers[0]-followers[1]].Node
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := leader.Cluster().Propose(ctx, nodetest.RequestID(), nodetest.Register("anna"))
	if !errors.Is(err, authapi.ErrUnknown) && !errors.Is(err, authapi.ErrUnavailable) {
		t.Errorf("without a majority: %v, want unknown or unavailable", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := leader.Cluster().CatchUp(ctx); err == nil {
		t.Error("caught up without a majority")
	}
	nodetest.WaitFor(t, "the state to be too old", func() error {
		if leader.Cluster().Fresh() {
			return errors.New("still fresh")
		}
		return nil
	})
}

func TestJoin_NewNodeAndWipedMember(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3)
	register(t, c.Members[0].Node, "anna")
	fourth := c.Add()
	c.Start(fourth)
	c.WaitReady()
	n := c.Members[fourth].Node
	knows(t, n, "anna")
	register(t, n, "bert")
	nodetest.WaitFor(t, "the new node in everybody's roster", func() error {
		for i, m := range c.Members {
			rosters := m.Node.Rosters().Rosters
			if last := rosters[len(rosters)-1]; len(last.Nodes) != 4 || !slices.Contains(last.Nodes, n.ID()) {
				return fmt.Errorf("node %d has %v", i, last.Nodes)
			}
		}
		return nil
	})
	// It comes back as what it was.
	id := n.ID()
	c.Stop(fourth)
	c.Start(fourth)
	c.WaitReady()
	n = c.Members[fourth].Node
	if got := n.ID(); got != id {
		t.Errorf("id is %s after a restart, %s before", got, id)
	}

	// A member that lost its disk is another node, and the cluster was formed without that one.
	wiped := c.Followers()[0]
	if wiped == fourth {
		wiped = c.Followers()[1]
	}
	c.Stop(wiped)
	if err := os.RemoveAll(c.Members[wiped].Dir); err != nil {
		t.Fatal(err)
	}
	again := c.Start(wiped)
	if err := ended(t, again); !errors.Is(err, node.ErrNotMember) {
		t.Errorf("wiped member: %v, want ErrNotMember", err)
	}
	c.Stop(wiped)
	// As a new node it may not take the old one's address, which still is a member's.
	m := c.Members[wiped]
	m.Config.InitialMembers = nil
	m.Config.Join = []string{c.Members[fourth].Config.Peer.Listen}
	if err := ended(t, c.Start(wiped)); err == nil || !strings.Contains(err.Error(), "remove it first") {
		t.Errorf("wiped member joining under its old address: %v, want to be told to remove the old one", err)
	}
	register(t, n, "cora")
}

func TestOpen_LogLost(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 1)
	register(t, c.Members[0].Node, "anna")
	c.Stop(0)
	if err := os.RemoveAll(filepath.Join(c.Members[0].Dir, "raft")); err != nil {
		t.Fatal(err)
	}
	if err := ended(t, c.Start(0)); !errors.Is(err, node.ErrLogLost) {
		t.Errorf("node without its log: %v, want ErrLogLost", err)
	}
}

func TestOpen_DataDirInUse(t *testing.T) {
	t.Parallel()
	c := nodetest.New(t, 2)
	c.Start(0)
	c.Members[1].Config.DataDir = c.Members[0].Dir
	if _, err := c.Open(1); !errors.Is(err, node.ErrDataDirInUse) {
		t.Errorf("second node in one directory: %v, want ErrDataDirInUse", err)
	}
}

func TestOpen_OtherClusterSecret(t *testing.T) {
	t.Parallel()
	c := nodetest.New(t, 2, nodetest.WithConfig(func(i int, cfg *node.Config) {
		if i == 1 {
			cfg.Secrets.Cluster = node.Secret(node.NewSecret())
		}
	}))
	c.Start(0)
	c.Start(1)
	nodetest.WaitFor(t, "both to say what is wrong", func() error {
		for i, m := range c.Members {
			if err := m.Node.Health()[0].Err; err == nil || !strings.Contains(err.Error(), "does not hold this cluster's secret") {
				return fmt.Errorf("node %d says: %v", i, err)
			}
		}
		if !strings.Contains(c.Log(), "peer not reached") {
			return errors.New("nothing in the log")
		}
		return nil
	})
}

func TestOpen_OtherKey(t *testing.T) {
	t.Parallel()
	c := nodetest.New(t, 3, nodetest.WithConfig(func(i int, cfg *node.Config) {
		if i == 2 {
			cfg.Secrets.Key = node.Secret(node.NewSecret())
		}
	}))
	for i := range c.Members {
		c.Start(i)
	}
	// Whoever leads first makes the cluster's secrets under its own key; the ones with another key have to say so.
	nodetest.WaitFor(t, "the odd one out to end", func() error {
		for _, m := range c.Members {
			if errors.Is(m.Node.Err(), node.ErrOtherKey) {
				return nil
			}
		}
		return errors.New("all run")
	})
}

// TestJoin_OtherKey shows that a node with another key for secrets at rest is refused before it is a member.
func TestJoin_OtherKey(t *testing.T) {
	t.Parallel()
	c := nodetest.New(t, 1, nodetest.WithConfig(func(i int, cfg *node.Config) {
		if i == 1 {
			cfg.Secrets.Key = node.Secret(node.NewSecret())
		}
	}))
	c.Start(0)
	c.WaitReady()
	i := c.Add()
	joining := c.Start(i)
	nodetest.WaitFor(t, "the joining node to end", func() error {
		err := joining.Err()
		if err == nil {
			return errors.New("it runs")
		}
		if !strings.Contains(err.Error(), node.ErrOtherKey.Error()) {
			t.Fatalf("ended with %v", err)
		}
		return nil
	})
	if strings.Contains(c.Log(), "node taken in") {
		t.Error("it came into the configuration first")
	}
}

func TestDrain_HandsOver(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3)
	leader := c.Leader()
	n := c.Members[leader].Node
	if err := n.Drain(bounded(t)); err != nil {
		t.Fatalf("drain: %v", err)
	}
	if n.Cluster().Leader() {
		t.Error("still the leader after draining")
	}
	if _, err := http.Get("http://" + n.HTTPAddr().String() + "/livez"); err == nil {
		t.Error("the public listener still answers after draining")
	}
	began := time.Now()
	register(t, c.Members[(leader+1)%3].Node, "anna")
	t.Logf("first write after draining the leader: %s", time.Since(began))
	c.Stop(leader)
	c.Start(leader)
	c.WaitReady()
}

func TestRoster_SilentNodeLosesItsShareAndGetsItBack(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3, nodetest.WithConfig(func(_ int, cfg *node.Config) {
		cfg.Limits.DeadAfter = node.Duration(2 * time.Second)
	}))
	gone := c.Followers()[0]
	id := c.Members[gone].Node.ID()
	leader := c.Members[c.Leader()].Node
	c.Stop(gone)
	in := func() bool {
		rosters := leader.Rosters().Rosters
		return slices.Contains(rosters[len(rosters)-1].Nodes, id)
	}
	nodetest.WaitFor(t, "the silent node out of the roster", func() error {
		if in() {
			return errors.New("still in it")
		}
		return nil
	})
	c.Start(gone)
	c.WaitReady()
	if !in() {
		t.Error("the node is ready without being in the roster")
	}
}

// TestRoster_DeadAfter holds dead_after: windows that begin so long after a death, of a follower and of the leader, are
// shared out without the dead node.
func TestRoster_DeadAfter(t *testing.T) {
	t.Parallel()
	const deadAfter = 15 * time.Second
	for _, leads := range []bool{false, true} {
		t.Run(map[bool]string{false: "follower", true: "leader"}[leads], func(t *testing.T) {
			t.Parallel()
			c := nodetest.Start(t, 3, nodetest.WithConfig(func(_ int, cfg *node.Config) {
				cfg.Limits.DeadAfter, cfg.Limits.Lease = node.Duration(deadAfter), node.Duration(3*time.Second)
			}))
			gone := c.Leader()
			if !leads {
				gone = c.Followers()[0]
			}
			id, other := c.Members[gone].Node.ID(), c.Members[(gone+1)%3].Node
			died := time.Now()
			c.Stop(gone)
			nodetest.WaitFor(t, "the dead node out of the roster", func() error {
				rosters := other.Rosters().Rosters
				last := rosters[len(rosters)-1]
				if slices.Contains(last.Nodes, id) {
					return errors.New("still in it")
				}
				if from := time.UnixMilli(last.From).Sub(died); from > deadAfter || from < 3*time.Second {
					t.Errorf("windows that begin %v after the death are the first without it, want %v at most", from, deadAfter)
				}
				return nil
			})
		})
	}
}

// A clock an hour ahead must not get into the log: the horizon never falls, and would freeze the roster for an hour.
func TestClock_OneNodeAhead(t *testing.T) {
	t.Parallel()
	c := nodetest.New(t, 3, nodetest.WithClock(func(i int) func() time.Time {
		if i > 0 {
			return time.Now
		}
		return func() time.Time { return time.Now().Add(time.Hour) }
	}))
	for i := range c.Members {
		c.Start(i)
	}
	for _, m := range c.Members[1:] {
		select {
		case <-m.Node.Ready():
		case <-time.After(nodetest.Timeout):
			t.Fatalf("a node with a good clock is not ready: %+v", m.Node.Health())
		}
	}
	nodetest.WaitFor(t, "the node to say that its clock is off", func() error {
		for _, check := range c.Members[0].Node.Health() {
			if check.Name == "clock" && check.Err != nil && strings.Contains(check.Err.Error(), "1h0m0s off") {
				return nil
			}
		}
		return fmt.Errorf("%+v", c.Members[0].Node.Health())
	})
	for _, m := range c.Members[1:] {
		for _, check := range m.Node.Health() {
			if check.Name == "clock" && check.Err != nil {
				t.Errorf("a node with a good clock: %v", check.Err)
			}
		}
		if ahead := time.Until(time.UnixMilli(m.Node.Rosters().Horizon)); ahead > time.Minute {
			t.Errorf("the horizon is %s ahead", ahead)
		}
	}
}

func TestHTTP_BeforeTheClusterIsFormed(t *testing.T) {
	t.Parallel()
	c := nodetest.New(t, 2)
	c.Absent(1)
	n := c.Start(0)
	get := func(path string) (int, string) {
		t.Helper()
		resp, err := http.Get("http://" + n.HTTPAddr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	if status, body := get("/livez"); status != http.StatusOK {
		t.Errorf("/livez: %d %s, want 200", status, body)
	}
	if status, body := get("/readyz"); status != http.StatusServiceUnavailable {
		t.Errorf("/readyz: %d %s, want 503", status, body)
	}
	if status, body := get("/api/v1/auth/me"); status != http.StatusServiceUnavailable {
		t.Errorf("/api/v1/auth/me: %d %s, want 503", status, body)
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestAdmin_Metrics(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 1, nodetest.WithConfig(func(_ int, cfg *node.Config) { cfg.Admin.Listen = "127.0.0.1:0" }))
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for path, want := range map[string]string{
		"/metrics": "sluice_raft_is_leader 1", "/readyz": "[+] leader: ok", "/livez": "ok",
	} {
		resp, err := client.Get("http://" + c.Members[0].Node.AdminAddr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s: %d, %v, want %q in\n%s", path, resp.StatusCode, err, want, body)
		}
	}
}
