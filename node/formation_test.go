package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// formers is a network of nodes that form a cluster. A node is there only while it is in up.
type formers struct {
	mu     sync.Mutex
	up     map[string]*former // by address
	formed map[string]string  // by address: cluster id
	names  map[string]addresses
}

// addresses are what a name stands for.
type addresses []string

func (a addresses) or(entry string) (list []endpoint) {
	if a == nil {
		a = addresses{entry}
	}
	for _, address := range a {
		list = append(list, endpoint{entry: entry, address: address})
	}
	return list
}

var errAbsent = errors.New("nobody there")

func (n *formers) hello(_ context.Context, address string) (helloReply, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f := n.up[address]
	if f == nil {
		return helloReply{}, errAbsent
	}
	return helloReply{
		NodeID: f.self, Peer: f.address, Members: membersHash(f.initial, f.count), Agreed: f.agreedID(), Formed: n.formed[address],
	}, nil
}

// start makes a node with a data directory of its own.
func (n *formers) start(t *testing.T, address string, initial ...string) *former {
	t.Helper()
	data, err := openDataDir(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { data.close() })
	f := &former{
		self: data.NodeID, address: address, cluster: "test", initial: initial, data: data,
		expand: func(_ context.Context, entry string) ([]endpoint, error) { return n.names[entry].or(entry), nil },
		hello:  n.hello, learn: func(helloReply) {}, log: discard(),
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.up[address] = f
	return f
}

func (n *formers) bootstrap(address string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.formed[address] = n.up[address].agreedID()
}

// round runs one round and fails the test on an error.
func round(t *testing.T, f *former) bool {
	t.Helper()
	done, err := f.round(t.Context())
	if err != nil {
		t.Fatalf("%s: %v", f.address, err)
	}
	return done
}

func TestFormation_Waits(t *testing.T) {
	t.Parallel()
	n := &formers{up: make(map[string]*former), formed: make(map[string]string)}
	a := n.start(t, "a", "a", "b", "c")
	b := n.start(t, "b", "c", "b", "a") // the order in the file does not matter
	for range 3 {
		if round(t, a) || round(t, b) {
			t.Fatal("formed without c")
		}
	}
	if got := a.waiting(); !strings.Contains(got, "c (nobody there)") || strings.Contains(got, "b (") {
		t.Errorf("a waits for %q", got)
	}
	if a.agreedID() != "" {
		t.Error("agreed without having heard of c")
	}
	c := n.start(t, "c", "a", "b", "c")
	// Each has to see that all the others have agreed before it goes ahead.
	if round(t, a) {
		t.Fatal("a formed before the others agreed")
	}
	if round(t, b) || !round(t, c) {
		t.Fatal("c, the last to agree, can go ahead; b, which came before it, can't")
	}
	n.bootstrap("c")
	if !round(t, a) || !round(t, b) {
		t.Fatal("a and b do not follow c")
	}
	if a.agreedID() != b.agreedID() || b.agreedID() != c.agreedID() {
		t.Errorf("three clusters: %s %s %s", a.agreedID(), b.agreedID(), c.agreedID())
	}
	// What was agreed outlives the process.
	if f, err := a.data.formation(); err != nil || f == nil || f.ClusterID != a.agreedID() || len(f.Members) != 3 {
		t.Errorf("on disk: %+v, %v", f, err)
	}
}

// One formed and the rest are away: its word is enough, since it went ahead only after all had agreed.
func TestFormation_FollowsOneThatFormed(t *testing.T) {
	t.Parallel()
	n := &formers{up: make(map[string]*former), formed: make(map[string]string)}
	a, b, c := n.start(t, "a", "a", "b", "c"), n.start(t, "b", "a", "b", "c"), n.start(t, "c", "a", "b", "c")
	round(t, a)
	round(t, b)
	if !round(t, c) {
		t.Fatal("not formed")
	}
	n.bootstrap("c")
	n.mu.Lock()
	delete(n.up, "b")
	n.mu.Unlock()
	if !round(t, a) {
		t.Error("a does not follow c while b is away")
	}
}

func TestFormation_MemberLostItsDisk(t *testing.T) {
	t.Parallel()
	n := &formers{up: make(map[string]*former), formed: make(map[string]string)}
	a, b := n.start(t, "a", "a", "b"), n.start(t, "b", "a", "b")
	if round(t, a) {
		t.Fatal("formed at once")
	}
	// Before anybody formed, nobody can tell.
	again := n.start(t, "b", "a", "b")
	if _, err := a.round(t.Context()); !errors.Is(err, ErrFormationChanged) {
		t.Errorf("a: %v, want ErrFormationChanged", err)
	}
	if round(t, again) {
		t.Error("b went ahead with a configuration that a has not agreed to")
	}
	// After that, it is plainly no member.
	n.mu.Lock()
	n.up["b"] = b
	n.mu.Unlock()
	round(t, b)
	n.bootstrap("a")
	third := n.start(t, "b", "a", "b")
	if _, err := third.round(t.Context()); !errors.Is(err, ErrNotMember) {
		t.Errorf("wiped b: %v, want ErrNotMember", err)
	}
}

// One name for all: whatever it leads to at the moment, nobody goes on with fewer members or with more.
func TestFormation_ByOneName(t *testing.T) {
	t.Parallel()
	n := &formers{up: make(map[string]*former), formed: make(map[string]string), names: make(map[string]addresses)}
	var all []*former
	for _, address := range []string{"a", "b", "c"} {
		f := n.start(t, address, "all")
		f.count = 3
		all = append(all, f)
	}
	for _, test := range []struct {
		addresses addresses
		want      string
	}{
		{addresses{"a"}, "2 of 3 initial members"},
		{addresses{"a", "b", "gone"}, "1 of 3 initial members: no answer of"},
		{addresses{"b", "c"}, "1 of 3 initial members"},
	} {
		n.names["all"] = test.addresses
		for _, f := range all {
			if round(t, f) || !strings.Contains(f.waiting()+":", test.want) {
				t.Errorf("%v: %s waits for %q, want %q", test.addresses, f.address, f.waiting(), test.want)
			}
		}
	}
	// An address that nobody has any more does no harm, and neither does one more of a node that is there.
	n.up["a2"] = all[0]
	n.names["all"] = addresses{"a", "a2", "b", "c", "gone"}
	for _, f := range all {
		round(t, f)
	}
	for _, f := range all {
		if !round(t, f) || f.agreedID() != all[0].agreedID() {
			t.Errorf("%s waits for %q", f.address, f.waiting())
		}
	}
	for _, m := range all[2].agreed.Load().Members {
		if !slices.Contains([]string{"a", "b", "c"}, m.Address) {
			t.Errorf("a member at %q", m.Address)
		}
	}
	n.bootstrap("a")

	// A fourth of the same name is too many while there is no cluster, and may join one that there is.
	d := n.start(t, "d", "all")
	d.count = 3
	n.names["all"] = addresses{"a", "b", "c", "d"}
	if _, err := d.round(t.Context()); !errors.Is(err, ErrNotMember) {
		t.Errorf("a fourth: %v", err)
	}
	d.others = []string{"all"}
	if _, err := d.round(t.Context()); !errors.Is(err, errExists) {
		t.Errorf("a fourth that may join: %v", err)
	}
	clear(n.formed)
	if round(t, d) || !strings.Contains(d.waiting(), "they lead to 4 nodes, and initial_count is 3") {
		t.Errorf("a fourth waits for %q", d.waiting())
	}
}

func TestFormation_ListsThatCannotBe(t *testing.T) {
	t.Parallel()
	t.Run("different lists", func(t *testing.T) {
		n := &formers{up: make(map[string]*former), formed: make(map[string]string)}
		a := n.start(t, "a", "a", "b")
		n.start(t, "b", "a", "b", "c")
		if round(t, a) || !strings.Contains(a.waiting(), "same initial_members") {
			t.Errorf("waits for %q", a.waiting())
		}
	})
	t.Run("one node twice", func(t *testing.T) {
		n := &formers{up: make(map[string]*former), formed: make(map[string]string)}
		a := n.start(t, "a", "a", "b", "b2")
		b := n.start(t, "b", "a", "b", "b2")
		n.mu.Lock()
		n.up["b2"] = b
		n.mu.Unlock()
		if round(t, a) || !strings.Contains(a.waiting(), "are the same node") {
			t.Errorf("waits for %q", a.waiting())
		}
	})
	t.Run("a name of several", func(t *testing.T) {
		n := &formers{up: make(map[string]*former), formed: make(map[string]string), names: map[string]addresses{"all": {"a", "b"}}}
		a := n.start(t, "a", "all")
		n.start(t, "b", "all")
		if round(t, a) || !strings.Contains(a.waiting(), "initial_count to be set: all leads to several nodes") {
			t.Errorf("waits for %q", a.waiting())
		}
		// Before the others are there it looks like the name of one node.
		n.names["all"] = addresses{"a"}
		if round(t, a) || !strings.Contains(a.waiting(), "initial_count to be set") {
			t.Errorf("waits for %q", a.waiting())
		}
	})
	t.Run("without itself", func(t *testing.T) {
		n := &formers{up: make(map[string]*former), formed: make(map[string]string)}
		a := n.start(t, "a", "b")
		n.start(t, "b", "b")
		if round(t, a) || !strings.Contains(a.waiting(), "none of them is this node") {
			t.Errorf("waits for %q", a.waiting())
		}
	})
}

// Random schedules of rounds, restarts and lost disks: no two nodes ever form different clusters.
func TestFormation_NeverTwo(t *testing.T) {
	t.Parallel()
	for seed := range uint64(100) {
		n := &formers{up: make(map[string]*former), formed: make(map[string]string)}
		addresses := []string{"a", "b", "c"}
		dead := make(map[string]bool) // nodes that ended with an error
		rnd := seed*2862933555777941757 + 3037000493
		next := func(k uint64) uint64 {
			rnd = rnd*6364136223846793005 + 1442695040888963407
			return (rnd >> 33) % k
		}
		for _, address := range addresses {
			n.start(t, address, addresses...)
		}
		trace := ""
		for range 40 {
			address := addresses[next(3)]
			f := n.up[address]
			switch {
			case next(12) == 0:
				trace += " wipe " + address
				n.start(t, address, addresses...)
				delete(n.formed, address)
				delete(dead, address)
			case f == nil || dead[address] || n.formed[address] != "":
			default:
				done, err := f.round(t.Context())
				trace += fmt.Sprintf(" %s:%t", address, done)
				if err != nil {
					dead[address] = true
					trace += "!"
				} else if done {
					n.bootstrap(address)
				}
			}
			ids := make(map[string]bool)
			for _, id := range n.formed {
				ids[id] = true
			}
			if len(ids) > 1 {
				t.Fatalf("seed %d: %v after%s", seed, n.formed, trace)
			}
		}
	}
}
