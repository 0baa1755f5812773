package node_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sluice/authapi"
	"sluice/node"
	"sluice/node/nodetest"
	"sluice/raftfsm/state"
)

const gib = int64(1) << 30

// spaces is what each member's disk has free.
type spaces []atomic.Int64

func (s spaces) options(i int) []node.Option {
	return []node.Option{node.WithDiskSpace(func(string) (node.DiskSpace, error) {
		return node.DiskSpace{Free: s[i].Load(), Size: 100 * gib, Inodes: -1}, nil
	})}
}

// roomy is n disks with more than enough.
func roomy(n int) spaces {
	s := make(spaces, n)
	for i := range s {
		s[i].Store(50 * gib)
	}
	return s
}

// storageCheck is what a node says of its disks.
func storageCheck(n *node.Node) authapi.HealthCheck {
	checks := n.Health()
	return checks[slices.IndexFunc(checks, func(c authapi.HealthCheck) bool { return c.Name == "storage" })]
}

// newLeader waits until running members other than one agree on a leader among them.
func newLeader(t *testing.T, c *nodetest.Cluster, than int) (leader int) {
	t.Helper()
	nodetest.WaitFor(t, "another leader", func() error {
		named := make(map[string]int)
		for i, m := range c.Members {
			if i != than {
				named[m.Node.LeaderID()]++
			}
		}
		for i, m := range c.Members {
			if i != than && named[m.Node.ID()] == len(c.Members)-1 {
				leader = i
				return nil
			}
		}
		return fmt.Errorf("leaders: %v", named)
	})
	return leader
}

// caughtUp waits until a node has applied what another has.
func caughtUp(t *testing.T, n, with *node.Node) {
	t.Helper()
	want := with.AppliedIndex()
	nodetest.WaitFor(t, "a node to catch up", func() error {
		if at := n.AppliedIndex(); at < want {
			return fmt.Errorf("applied up to %d of %d", at, want)
		}
		return nil
	})
}

// A leader whose disk is nearly full hands over to a node with space and goes on serving; where there is none it takes only what must not
// wait; and all is as before once there is space.
func TestStorage_LowDisk(t *testing.T) {
	t.Parallel()
	free := roomy(3)
	c := nodetest.Start(t, 3, nodetest.WithOptions(free.options))
	for _, m := range c.Members {
		if limit, needed := m.Node.Files(); limit == 0 || needed == 0 {
			t.Errorf("files: limit %d, needed %d", limit, needed)
		}
	}
	first := c.Leader()
	low := c.Members[first].Node
	spared := c.Followers()[0]
	free[spared].Store(gib / 2) // the other follower is the only one with space
	nodetest.WaitFor(t, "the follower to notice", func() error {
		if got := storageCheck(c.Members[spared].Node); got.Err != nil || !strings.Contains(got.Degraded, "not ready for writes: 512 MiB free on the volume of raft") {
			return fmt.Errorf("%+v", got)
		}
		return nil
	})
	free[first].Store(gib / 2)
	second := newLeader(t, c, first)
	if second == spared {
		t.Fatalf("node %d leads, which is as short of space as node %d", second, first)
	}
	register(t, low, "through-the-low-one")
	knows(t, low, "through-the-low-one")
	if got := storageCheck(low); got.Err != nil || got.Degraded == "" {
		t.Fatalf("a node short of space: %+v, want it ready and degraded", got)
	}

	// Now nobody has more.
	free[second].Store(gib / 2)
	nodetest.WaitFor(t, "a refusal", func() error {
		began := time.Now()
		_, err := low.Cluster().Propose(bounded(t), nodetest.RequestID(), nodetest.Register("nowhere"))
		if !errors.Is(err, authapi.ErrUnavailable) {
			return fmt.Errorf("a new account where all disks are nearly full: %w", err)
		}
		if took := time.Since(began); took > 3*time.Second || !strings.Contains(err.Error(), "no node that could lead has disk space") {
			return fmt.Errorf("refused after %s: %w", took, err)
		}
		return nil
	})
	if _, err := low.Cluster().Propose(bounded(t), nodetest.RequestID(), state.EndSessions{UserID: "usr_through-the-low-one", At: time.Now().UnixMilli(), Reason: "logout"}); err != nil {
		t.Fatalf("an ended session where all disks are nearly full: %v", err)
	}
	for i := range c.Members {
		if got := storageCheck(c.Members[i].Node); got.Err != nil {
			t.Fatalf("node %d: %v", i, got.Err)
		}
		free[i].Store(gib + gib/16) // above the mark, but not clearly so
	}
	nodetest.WaitFor(t, "the space to be seen", func() error {
		if got := storageCheck(low); !strings.Contains(got.Degraded, "1088 MiB") {
			return fmt.Errorf("%+v", got)
		}
		return nil
	})
	for i := range c.Members {
		free[i].Store(2 * gib)
	}
	nodetest.WaitFor(t, "space", func() error {
		for i, m := range c.Members {
			if got := storageCheck(m.Node); got.Degraded != "" {
				return fmt.Errorf("node %d: %s", i, got.Degraded)
			}
		}
		return nil
	})
	register(t, low, "with-space-again")
}

// A node without space takes no entry, leads nobody and says so; the others go on, and it catches up once there is space.
func TestStorage_CriticalDisk(t *testing.T) {
	t.Parallel()
	free := roomy(3)
	c := nodetest.Start(t, 3, nodetest.WithOptions(free.options))
	first := c.Leader()
	full := c.Members[first].Node
	register(t, full, "before")
	free[first].Store(gib / 8)
	second := newLeader(t, c, first)
	nodetest.WaitFor(t, "the full node to say so", func() error {
		if got := storageCheck(full); got.Err == nil || !strings.Contains(got.Err.Error(), "takes no entries") {
			return fmt.Errorf("%+v", got)
		}
		return nil
	})
	// What was in its log already may still be applied.
	stands := full.AppliedIndex()
	for i := range 5 {
		register(t, c.Members[second].Node, fmt.Sprintf("while-full-%d", i))
	}
	if at, lead := full.AppliedIndex(), c.Members[second].Node.AppliedIndex(); at > stands || at >= lead {
		t.Fatalf("the full node has applied up to %d, %d when it stopped; the leader is at %d", at, stands, lead)
	}
	began := time.Now()
	if _, err := full.Cluster().Propose(bounded(t), nodetest.RequestID(), nodetest.Register("nowhere")); !errors.Is(err, authapi.ErrUnavailable) || time.Since(began) > time.Second {
		t.Fatalf("a write through the full node: %v after %s", err, time.Since(began))
	}
	free[first].Store(50 * gib)
	c.WaitReady()
	caughtUp(t, full, c.Members[second].Node)
	for i := range 5 {
		knows(t, full, fmt.Sprintf("while-full-%d", i))
	}
	register(t, full, "after")
	caughtUp(t, c.Members[second].Node, full)
	knows(t, c.Members[second].Node, "after")
}

// A snapshot that would bring the volume below the critical mark is not written; it is once there is space.
func TestStorage_NoSnapshotWithoutSpace(t *testing.T) {
	t.Parallel()
	free := roomy(1)
	c := nodetest.Start(t, 1, nodetest.WithConfig(frequentSnapshots), nodetest.WithOptions(free.options))
	n := c.Members[0].Node
	const more = 20 // than a snapshot waits for
	for i := range more {
		register(t, n, fmt.Sprintf("early%d", i))
	}
	waitSnapshot(t, c, 0)
	for i := range more {
		register(t, n, fmt.Sprintf("late%d", i))
	}
	free[0].Store(gib / 4) // the critical mark: nothing is refused yet but what takes more of it
	nodetest.WaitFor(t, "a snapshot to be refused", func() error {
		if !strings.Contains(c.Log(), "no room for a snapshot") {
			return errors.New("none was")
		}
		return nil
	})
	if got := storageCheck(n); got.Err != nil {
		t.Fatalf("at the critical mark: %v", got.Err)
	}
	free[0].Store(50 * gib)
	waitSnapshot(t, c, 0)
}

func TestStorage_NoStartWithoutSpace(t *testing.T) {
	t.Parallel()
	free := roomy(1)
	free[0].Store(gib / 8)
	c := nodetest.New(t, 1, nodetest.WithOptions(free.options))
	if n, err := c.Open(0); !errors.Is(err, node.ErrNoSpace) {
		t.Fatalf("a start on a full disk: %v, %v; want %v", n, err, node.ErrNoSpace)
	}
	free[0].Store(50 * gib)
	c.Start(0)
	c.WaitReady()
}

// disks makes the log stores of members stand still, or fail.
type disks []struct {
	mu      sync.Mutex
	blocked chan struct{} // nil while it works
	err     error
}

func (d disks) options(i int) []node.Option {
	return []node.Option{node.WithLogStore(func(inner node.LogStore) node.LogStore { return faultyLog{inner, d, i} })}
}

// block makes a member's appends wait, and unblock ends that.
func (d disks) block(i int) (unblock func()) {
	d[i].mu.Lock()
	defer d[i].mu.Unlock()
	ch := make(chan struct{})
	d[i].blocked = ch
	return sync.OnceFunc(func() {
		d[i].mu.Lock()
		defer d[i].mu.Unlock()
		d[i].blocked = nil
		close(ch)
	})
}

func (d disks) fail(i int, err error) {
	d[i].mu.Lock()
	defer d[i].mu.Unlock()
	d[i].err = err
}

type faultyLog struct {
	node.LogStore
	disks disks
	i     int
}

func (l faultyLog) IsMonotonic() bool { return true }

func (l faultyLog) StoreLogs(logs []*raft.Log) error {
	d := &l.disks[l.i]
	d.mu.Lock()
	blocked, err := d.blocked, d.err
	d.mu.Unlock()
	if blocked != nil {
		<-blocked
	}
	if err != nil {
		return err
	}
	return l.LogStore.StoreLogs(logs)
}

const appendTimeout = 300 * time.Millisecond

func shortAppends(_ int, cfg *node.Config) { cfg.Storage.AppendTimeout = node.Duration(appendTimeout) }

// A leader whose disk does not answer would stay in office: Raft's heartbeats go on. Another is elected all the same, writes go on, and
// the old one follows once its disk answers.
func TestWatchdog_BlockedAppend(t *testing.T) {
	t.Parallel()
	d := make(disks, 3)
	c := nodetest.Start(t, 3, nodetest.WithConfig(shortAppends), nodetest.WithOptions(d.options))
	first := c.Leader()
	stalled := c.Members[first].Node
	register(t, stalled, "before")
	// What was waited for when it stopped.
	inFlight := make(chan error, 1)
	began := time.Now()
	unblock := d.block(first)
	t.Cleanup(unblock) // before the nodes are closed
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	go func() {
		_, err := stalled.Cluster().Propose(ctx, nodetest.RequestID(), nodetest.Register("in-flight"))
		inFlight <- err
	}()
	second := newLeader(t, c, first)
	register(t, c.Members[second].Node, "while-stalled")
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("writes went on after %s", took)
	}
	select {
	case err := <-inFlight:
		if err == nil {
			t.Fatal("a write was acknowledged by a node that could not store it")
		}
	default:
	}
	if got := storageCheck(stalled); got.Err == nil || !strings.Contains(got.Err.Error(), "has not answered for") {
		t.Fatalf("a node with a stalled disk: %+v", got)
	}
	if got := stalled.LeaderID(); got == stalled.ID() {
		t.Fatal("the stalled node takes itself for the leader")
	}
	unblock()
	c.WaitReady()
	nodetest.WaitFor(t, "the stalled node to follow", func() error {
		if got, want := stalled.LeaderID(), c.Members[second].Node.LeaderID(); got != want || got == "" {
			return fmt.Errorf("it takes %q for the leader, the others %q", got, want)
		}
		return nil
	})
	caughtUp(t, stalled, c.Members[second].Node)
	knows(t, stalled, "while-stalled")
	register(t, stalled, "after")
	if err := <-inFlight; err == nil {
		caughtUp(t, c.Members[second].Node, stalled)
		knows(t, c.Members[second].Node, "in-flight") // it was tried again, at the new leader
	}
}

// A leader whose log cannot be written steps down, acknowledges nothing and stays aside; a closed store is one that fails.
func TestStorage_LogStoreFails(t *testing.T) {
	t.Parallel()
	for _, failure := range []error{syscall.EIO, syscall.ENOSPC, errors.New("database not open")} {
		t.Run(failure.Error(), func(t *testing.T) {
			t.Parallel()
			d := make(disks, 3)
			c := nodetest.Start(t, 3, nodetest.WithOptions(d.options))
			first := c.Leader()
			broken := c.Members[first].Node
			d.fail(first, failure)
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			_, err := broken.Cluster().Propose(ctx, nodetest.RequestID(), nodetest.Register("lost"))
			cancel()
			if err == nil {
				// Only where another leader took it: then the broken node could not have applied it in time.
				t.Fatal("a write was acknowledged through a node whose log cannot be written")
			}
			second := newLeader(t, c, first)
			register(t, c.Members[second].Node, "elsewhere")
			if got := storageCheck(broken); got.Err == nil || !strings.Contains(got.Err.Error(), "the raft log cannot be written: "+failure.Error()) {
				t.Fatalf("a node whose log cannot be written: %+v", got)
			}
			d.fail(first, nil) // a disk that works again is not believed
			c.Stop(first)
			c.Start(first)
			c.WaitReady()
			caughtUp(t, c.Members[first].Node, c.Members[second].Node)
			knows(t, c.Members[first].Node, "elsewhere")
		})
	}
}
