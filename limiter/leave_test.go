package limiter

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// leaveTo lets node i leave its shares to node heir, as the log would say it.
func (c *testCluster) leaveTo(t testing.TB, i, heir int) Bequest {
	t.Helper()
	leaver := c.node(i)
	if err := leaver.Leave(); err != nil {
		t.Fatal(err)
	}
	var data bytes.Buffer
	q, err := leaver.WriteBequest(&data)
	if err != nil {
		t.Fatal(err)
	}
	if q.Bytes != int64(data.Len()) {
		t.Errorf("list of %d bytes, said %d", data.Len(), q.Bytes)
	}
	if err := c.node(heir).StoreBequest(c.names[i], q.List, &data); err != nil {
		t.Fatal(err)
	}
	c.commit(Leave{Index: uint64(100 + len(c.state.Leaves)), Leaver: c.names[i], Heir: c.names[heir], MarkMillis: q.MarkMillis, List: q.List})
	return q
}

// commit gives every node that runs a state with one more leave.
func (c *testCluster) commit(f Leave) {
	c.state.Leaves = append(c.state.Leaves, f)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.nodes {
		l.SetState(c.state)
	}
}

func lists(t testing.TB, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, listPrefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestLimiter_LeaveAndInherit(t *testing.T) {
	t.Parallel()
	for _, alg := range []Algorithm{FixedWindow, SlidingWindow} {
		dirs := inDirs(t, 3)
		c := openCluster(t, 3, dirs)
		var dir Config
		dirs(2, &dir)
		rule := Rule{Limit: 100, Window: 3600, Algorithm: alg}
		spent := 0
		for i := range 30 {
			if o, _ := take(c.node(i%3), rule, "s", 1); o == Admitted {
				spent++
			}
		}
		if spent != 30 {
			t.Fatalf("%d admitted at first", spent)
		}
		c.leaveTo(t, 0, 2)
		if o, _ := take(c.node(0), rule, "s", 1); o != Undecided || !c.node(0).Leaving() {
			t.Errorf("the leaver decides: %d", o)
		}
		// A restart stays a leaver, and its heir keeps what it inherited.
		c.kill(t, 0)
		c.open(t, 0, dirs)
		if o, _ := take(c.node(0), rule, "s", 1); o != Undecided || !c.node(0).Leaving() || !c.node(0).Stats().Leaving {
			t.Errorf("the leaver decides after a restart: %d", o)
		}
		c.kill(t, 2)
		c.open(t, 2, dirs)
		if s := c.node(2).Stats(); s.Inherited != 1 || len(lists(t, dir.Dir)) != 1 {
			t.Errorf("the heir after a restart: %d legacies, files %v", s.Inherited, lists(t, dir.Dir))
		}
		c.leaveTo(t, 1, 2)
		left := 0
		for range 200 {
			if o, _ := take(c.node(2), rule, "s", 1); o == Admitted {
				left++
			}
		}
		if left != 70 {
			t.Errorf("algorithm %d: %d admitted by the heir of both, want 70", alg, left)
		}
		untouched := 0
		for range 200 {
			if o, _ := take(c.node(2), rule, "untouched", 1); o == Admitted {
				untouched++
			}
		}
		if untouched != 100 {
			t.Errorf("algorithm %d: %d admitted of a bucket that nobody touched, want 100", alg, untouched)
		}
		// Without the lists it has its own share alone, of which it has spent more already.
		c.kill(t, 2)
		for _, path := range lists(t, dir.Dir) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		c.open(t, 2, dirs)
		for _, subject := range []string{"s", "untouched"} {
			if o, _ := take(c.node(2), rule, subject, 1); o != Refused {
				t.Errorf("algorithm %d: %s: outcome %d without the lists", alg, subject, o)
			}
		}
	}
}

func TestLimiter_StoreBequestRefuses(t *testing.T) {
	t.Parallel()
	dirs := inDirs(t, 3)
	c := openCluster(t, 3, dirs)
	rule := Rule{Limit: 10, Window: 3600, Algorithm: FixedWindow}
	take(c.node(0), rule, "s", 1)
	if _, err := c.node(0).WriteBequest(&bytes.Buffer{}); !errors.Is(err, ErrNotLeaving) {
		t.Errorf("a node that stays hands over: %v", err)
	}
	if err := c.node(0).Leave(); err != nil {
		t.Fatal(err)
	}
	var data bytes.Buffer
	q, err := c.node(0).WriteBequest(&data)
	if err != nil {
		t.Fatal(err)
	}
	good := data.Bytes()
	heir := c.node(1)
	for at := range good {
		bad := bytes.Clone(good)
		bad[at] ^= 0x41
		if err := heir.StoreBequest(c.names[0], q.List, bytes.NewReader(bad)); !errors.Is(err, ErrBequest) {
			t.Errorf("byte %d changed: %v", at, err)
		}
	}
	for name, bad := range map[string][]byte{"nothing": nil, "cut short": good[:len(good)-1], "longer": append(bytes.Clone(good), 0)} {
		if err := heir.StoreBequest(c.names[0], q.List, bytes.NewReader(bad)); !errors.Is(err, ErrBequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := heir.StoreBequest(c.names[2], q.List, bytes.NewReader(good)); !errors.Is(err, ErrBequest) {
		t.Errorf("of another node: %v", err)
	}
	if err := c.node(0).StoreBequest(c.names[0], q.List, bytes.NewReader(good)); !errors.Is(err, ErrLeaving) {
		t.Errorf("a leaver as heir: %v", err)
	}
	var dir Config
	dirs(1, &dir)
	if left := lists(t, dir.Dir); len(left) != 0 {
		t.Errorf("files of what was refused: %v", left)
	}
	if err := heir.StoreBequest(c.names[0], q.List, bytes.NewReader(good)); err != nil {
		t.Fatal(err)
	}
	// The leaver has another heir in the end.
	c.commit(Leave{Index: 100, Leaver: c.names[0], Heir: c.names[2], MarkMillis: q.MarkMillis, List: q.List})
	if left := lists(t, dir.Dir); len(left) != 0 || heir.ledger.listCount() != 0 {
		t.Errorf("files of a list that counts for nobody here: %v", left)
	}
}

func FuzzReadBequest(f *testing.F) {
	s := leaveSim(2, Rule{Limit: 10, Window: 3600, Algorithm: SlidingWindow})
	s.spend(3)
	s.depart(s.nodes[0])
	var data bytes.Buffer
	if _, err := writeBequest(&data, s.nodes[0].led); err != nil {
		f.Fatal(err)
	}
	f.Add(data.Bytes())
	f.Add([]byte(bequestMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		q, _, err := readBequest(bytes.NewReader(data), 1000)
		if err != nil {
			return
		}
		for _, i := range q.lists {
			for _, e := range *i.entries.Load() {
				if i.covers(e.span, e.n) && (e.span.end(e.n+1) <= e.span.begin(e.n) || e.used < 0) {
					t.Fatalf("covers %+v", e)
				}
			}
		}
	})
}
