// Package nodetest runs clusters of real nodes in one process, for tests: real listeners on loopback, real data
// directories, real consensus and gossip. Start with [Start]; [Cluster.Stop], [Cluster.Start] and [WaitFor] do the rest.
//
// A node that is stopped here is closed abruptly: no drain, no handing over of leadership, no goodbye. What a process
// killed by the system leaves behind beyond that (unsynced files) is not covered; tests with processes are.
package nodetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"sluice/node"
	"sluice/raftfsm/state"
)

// Timeout is how long the waits of this package take at most.
const Timeout = 30 * time.Second

// Cluster is a set of members that know each other. Its methods are for the test's goroutine but for those that say
// otherwise.
type Cluster struct {
	t       testing.TB
	host    string
	secret  string
	key     string
	change  func(i int, cfg *node.Config)
	clock   func(i int) func() time.Time
	options func(i int) []node.Option
	names   *net.Resolver
	Members []*Member
	logs    *logBuffer
}

// Member is one node's place in a cluster: its directory and addresses, which outlive the node.
type Member struct {
	Dir    string
	Config node.Config
	Node   *node.Node // nil while stopped
	peer   net.Listener
	http   net.Listener
}

// logBuffer keeps the log of all nodes for the case that the test fails.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// String is the log so far. Safe for concurrent use.
func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// Option changes a cluster before its nodes start.
type Option func(*Cluster)

// WithConfig changes each member's configuration, i counted from 0.
func WithConfig(change func(i int, cfg *node.Config)) Option {
	return func(c *Cluster) { c.change = change }
}

// WithClock gives each member a clock of its own, i counted from 0.
func WithClock(clock func(i int) func() time.Time) Option {
	return func(c *Cluster) { c.clock = clock }
}

// WithOptions gives each member options beyond this package's own, i counted from 0.
func WithOptions(options func(i int) []node.Option) Option {
	return func(c *Cluster) { c.options = options }
}

// WithResolver has all members look up names with r.
func WithResolver(r *net.Resolver) Option { return func(c *Cluster) { c.names = r } }

// New prepares n members whose initial_members are all of them, without starting any.
func New(t testing.TB, n int, opts ...Option) *Cluster {
	t.Helper()
	c := &Cluster{t: t, host: loopback(t), secret: node.NewSecret(), key: node.NewSecret(), logs: new(logBuffer)}
	for _, opt := range opts {
		opt(c)
	}
	for range n {
		c.add()
	}
	var initial []string
	for _, m := range c.Members {
		initial = append(initial, m.Config.Peer.Listen)
	}
	for _, m := range c.Members {
		m.Config.InitialMembers = initial
	}
	t.Cleanup(func() {
		var wg sync.WaitGroup
		for _, m := range c.Members {
			if m.Node != nil {
				wg.Go(func() {
					if err := m.Node.Close(); err != nil {
						t.Errorf("close node: %v", err)
					}
				})
			}
			for _, ln := range []net.Listener{m.peer, m.http} {
				if ln != nil {
					ln.Close()
				}
			}
		}
		wg.Wait()
		if t.Failed() {
			t.Logf("log of the nodes:\n%s", c.logs)
		}
	})
	return c
}

// Start prepares n members, starts them all at once and waits until they are ready.
func Start(t testing.TB, n int, opts ...Option) *Cluster {
	t.Helper()
	c := New(t, n, opts...)
	for i := range c.Members {
		c.Start(i)
	}
	c.WaitReady()
	return c
}

// loopback is an address of the loopback network of this cluster's own, so that a port that is free between a node's
// stop and its next start is not taken by others meanwhile.
func loopback(t testing.TB) string {
	t.Helper()
	var b [3]byte
	rand.Read(b[:])
	host := fmt.Sprintf("127.%d.%d.%d", 1+b[0]%250, b[1], 1+b[2]%250)
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return "127.0.0.1" // not Linux
	}
	ln.Close()
	return host
}

// add makes a place for one more member.
func (c *Cluster) add() *Member {
	c.t.Helper()
	i := len(c.Members)
	m := &Member{Dir: filepath.Join(c.t.TempDir(), "data")}
	cfg := node.DefaultConfig()
	cfg.Name = fmt.Sprintf("node%d", i+1)
	cfg.Cluster = "test"
	cfg.DataDir = m.Dir
	cfg.Secrets = node.SecretsConfig{Cluster: node.Secret(c.secret), Key: node.Secret(c.key)}
	cfg.HTTP.DrainDelay = 0
	cfg.HTTP.DrainTimeout = node.Duration(2 * time.Second)
	cfg.Admin.Listen = ""
	cfg.Gossip.Listen = net.JoinHostPort(c.host, "0")
	cfg.Raft.HeartbeatTimeout = node.Duration(500 * time.Millisecond)
	cfg.Raft.ElectionTimeout = node.Duration(500 * time.Millisecond)
	cfg.Limits.MaxBuckets = 4096
	cfg.Membership.StabilizationTime = node.Duration(100 * time.Millisecond)
	m.peer = c.listen("0")
	m.http = c.listen("0")
	cfg.Peer.Listen = m.peer.Addr().String()
	cfg.HTTP.Listen = m.http.Addr().String()
	if c.change != nil {
		c.change(i, &cfg)
	}
	m.Config = cfg
	c.Members = append(c.Members, m)
	return m
}

// Add makes a place for a member that joins those that run. Its number is returned.
func (c *Cluster) Add() int {
	c.t.Helper()
	m := c.add()
	for _, other := range c.Members {
		if other != m {
			m.Config.Join = append(m.Config.Join, other.Config.Peer.Listen)
		}
	}
	return len(c.Members) - 1
}

func (c *Cluster) listen(port string) net.Listener {
	c.t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(c.host, port))
	if err != nil {
		c.t.Fatalf("listen: %v", err)
	}
	return ln
}

// Absent closes the listeners that are held for a member that has not started, so that whoever dials it is refused at
// once, as by a machine without the process.
func (c *Cluster) Absent(i int) {
	m := c.Members[i]
	for _, ln := range []*net.Listener{&m.peer, &m.http} {
		if *ln != nil {
			(*ln).Close()
			*ln = nil
		}
	}
}

// Start starts a member that does not run, on the addresses that it had before.
func (c *Cluster) Start(i int) *node.Node {
	c.t.Helper()
	n, err := c.Open(i)
	if err != nil {
		c.t.Fatalf("start node %d: %v", i, err)
	}
	return n
}

// Open is Start for a node that may refuse to.
func (c *Cluster) Open(i int) (*node.Node, error) {
	c.t.Helper()
	m := c.Members[i]
	if m.Node != nil {
		c.t.Fatalf("node %d runs already", i)
	}
	for _, l := range []struct {
		ln      *net.Listener
		address string
	}{{&m.peer, m.Config.Peer.Listen}, {&m.http, m.Config.HTTP.Listen}} {
		if *l.ln == nil {
			WaitFor(c.t, "the port "+l.address, func() (err error) {
				*l.ln, err = net.Listen("tcp", l.address)
				return err
			})
		}
	}
	logger := slog.New(slog.NewTextHandler(c.logs, &slog.HandlerOptions{Level: slog.LevelInfo}))
	opts := []node.Option{
		node.WithLogger(logger.With("member", i)), node.WithVersion("test"),
		node.WithPeerListener(m.peer), node.WithHTTPListener(m.http),
		node.WithFatal(func(err error) { c.t.Errorf("node %d: fatal: %v", i, err) }),
	}
	if c.names != nil {
		opts = append(opts, node.WithResolver(c.names))
	}
	if c.clock != nil {
		opts = append(opts, node.WithClock(c.clock(i)))
	}
	if c.options != nil {
		opts = append(opts, c.options(i)...)
	}
	n, err := node.Open(context.Background(), m.Config, opts...)
	m.peer, m.http = nil, nil
	if err != nil {
		return nil, err
	}
	m.Node = n
	m.Config.Gossip.Listen = n.GossipAddress()
	return n, nil
}

// Stop closes a member abruptly.
func (c *Cluster) Stop(i int) {
	c.t.Helper()
	m := c.Members[i]
	if m.Node == nil {
		c.t.Fatalf("node %d does not run", i)
	}
	if err := m.Node.Close(); err != nil {
		c.t.Errorf("stop node %d: %v", i, err)
	}
	m.Node = nil
}

// Log is what all nodes have logged so far. Safe for concurrent use.
func (c *Cluster) Log() string { return c.logs.String() }

// WaitReady waits until every member that runs has been ready once and is so now.
func (c *Cluster) WaitReady() {
	c.t.Helper()
	WaitFor(c.t, "ready nodes", func() error {
		for i, m := range c.Members {
			if m.Node == nil {
				continue
			}
			select {
			case <-m.Node.Done():
				c.t.Fatalf("node %d ended: %v", i, m.Node.Err())
			default:
			}
			for _, check := range m.Node.Health() {
				if check.Err != nil {
					return fmt.Errorf("node %d: %s: %w", i, check.Name, check.Err)
				}
			}
		}
		return nil
	})
}

// Leader waits until all running members agree on a running leader and returns its number.
func (c *Cluster) Leader() int {
	c.t.Helper()
	leader := -1
	WaitFor(c.t, "a leader", func() error {
		leader = -1
		id := ""
		for i, m := range c.Members {
			if m.Node == nil {
				continue
			}
			theirs := m.Node.LeaderID()
			if theirs == "" || (id != "" && theirs != id) {
				return fmt.Errorf("node %d takes %q for the leader, others %q", i, theirs, id)
			}
			id = theirs
			if m.Node.ID() == id && m.Node.Cluster().Leader() {
				leader = i
			}
		}
		if leader < 0 {
			return errors.New("the leader does not run")
		}
		return nil
	})
	return leader
}

// Followers lists the running members that do not lead.
func (c *Cluster) Followers() []int {
	c.t.Helper()
	leader := c.Leader()
	var out []int
	for i, m := range c.Members {
		if m.Node != nil && i != leader {
			out = append(out, i)
		}
	}
	return out
}

// RequestID makes a request id.
func RequestID() (id [16]byte) {
	rand.Read(id[:])
	return id
}

// Register is a command that makes a user of a name, with everything it needs.
func Register(name string) state.RegisterUser {
	now := time.Now().UnixMilli()
	return state.RegisterUser{
		User:         state.User{ID: "usr_" + name, Username: name, Email: name + "@example.com", CreatedAt: now, PersonalOrg: "org_" + name},
		Organization: state.Organization{ID: "org_" + name, Name: name, Personal: true, CreatedAt: now, CreatedBy: "usr_" + name},
		Session: state.Session{
			ID: "ses_" + name, UserID: "usr_" + name, CreatedAt: now, RefreshedAt: now, ExpiresAt: now + 3_600_000,
			RefreshHash: bytes.Repeat([]byte{1}, 32),
		},
	}
}

// WaitFor tries check until it returns nil, and fails the test with its last error after Timeout.
func WaitFor(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(Timeout)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s: %v", Timeout, what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
