package limiter

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// kill leaves the files as a killed process leaves them, and lets another start on them.
func (c *testCluster) kill(t testing.TB, i int) {
	t.Helper()
	c.mu.Lock()
	l := c.nodes[c.names[i]]
	delete(c.nodes, c.names[i])
	c.mu.Unlock()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func inDirs(t testing.TB, n int) func(i int, c *Config) {
	t.Helper()
	dirs := make([]string, n)
	for i := range dirs {
		dirs[i] = t.TempDir()
	}
	return func(i int, c *Config) { c.Dir, c.Incarnation = dirs[i], 0 }
}

// drain asks all nodes until nothing passes any more.
func drain(t testing.TB, c *testCluster, rule Rule, subject string) (admitted int) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for idle, i := 0, 0; idle < 3*30; i++ {
		if time.Now().After(deadline) {
			t.Fatal("requests do not end")
		}
		o, v := take(c.node(i), rule, subject, 1)
		if o == Undecided {
			t.Fatalf("undecided: %+v", v)
		}
		if idle++; o == Admitted {
			admitted++
			idle = 0
		}
	}
	return admitted
}

// All nodes are killed and started again inside a window: what was spent stays spent, what was left can be used.
func TestLimiter_RestartKeepsCounters(t *testing.T) {
	t.Parallel()
	for _, alg := range []Algorithm{FixedWindow, SlidingWindow} {
		dirs := inDirs(t, 3)
		c := openCluster(t, 3, dirs)
		rule := Rule{Limit: 100, Window: 3600, Algorithm: alg}
		spent := 0
		for i := range 60 {
			if o, _ := take(c.node(i%2), rule, "s", 1); o == Admitted {
				spent++
			}
		}
		for i := range 3 {
			c.kill(t, i)
			c.open(t, i, dirs)
		}
		left := drain(t, c, rule, "s")
		// Loans whose answer a killed node never took in are lost; here none is.
		if spent+left > 100 || spent+left < 99 {
			t.Errorf("algorithm %d: %d spent before the restart, %d after, want 100 together", alg, spent, left)
		}
		for i := range 3 {
			c.kill(t, i)
		}
		for i := range 3 {
			c.open(t, i, dirs)
		}
		if more := drain(t, c, rule, "s"); spent+left+more > 100 {
			t.Errorf("algorithm %d: %d admitted after the second restart", alg, more)
		}
		// A bucket that nobody touched is whole.
		if n := drain(t, c, rule, "fresh"); n != 100 {
			t.Errorf("algorithm %d: untouched bucket admits %d after restarts, want 100", alg, n)
		}
	}
}

// The windows of a minute and more that a new cluster is restarted in stay usable at once; shorter ones soon.
func TestLimiter_RestartAllAtOnceIsUsable(t *testing.T) {
	t.Parallel()
	dirs := inDirs(t, 3)
	c := openCluster(t, 3, dirs)
	minute := Rule{Limit: 10, Window: 60, Algorithm: SlidingWindow}
	for i := range 4 {
		if o, v := take(c.node(i), minute, "s", 1); o != Admitted {
			t.Fatalf("%v %+v", o, v)
		}
	}
	for i := range 3 {
		c.kill(t, i)
	}
	c.clock.ms.Add(1500)
	for i := range 3 {
		c.open(t, i, dirs)
	}
	if n := drain(t, c, minute, "s"); n != 6 {
		t.Errorf("%d admitted after the restart, want 6", n)
	}
	short := Rule{Limit: 9, Window: 1, Algorithm: FixedWindow}
	if n := drain(t, c, short, "s"); n != 0 {
		t.Errorf("%d admitted in a short window that may have been acted in", n)
	}
	c.move(t, c.clock.ms.Load()+markLead.Milliseconds()+1000)
	if n := drain(t, c, short, "s"); n != 9 {
		t.Errorf("%d admitted in a short window beyond the mark, want 9", n)
	}
}

// After a reboot records prove nothing: the running window is lost, the next ones are whole.
func TestLimiter_RebootLosesTheWindow(t *testing.T) {
	t.Parallel()
	dirs := inDirs(t, 1)
	boot := "boot"
	open := func(i int, c *Config) { dirs(i, c); c.BootID = boot }
	c := openCluster(t, 1, open)
	rule := Rule{Limit: 10, Window: 60, Algorithm: FixedWindow}
	take(c.node(0), rule, "s", 1)
	c.kill(t, 0)
	boot = "another"
	c.open(t, 0, open)
	if n := drain(t, c, rule, "s"); n != 0 {
		t.Fatalf("%d admitted in a lost window", n)
	}
	c.kill(t, 0)
	c.open(t, 0, open) // of the same boot again: what was lost stays lost
	if n := drain(t, c, rule, "s"); n != 0 {
		t.Fatalf("%d admitted in a window that an earlier start had lost", n)
	}
	c.move(t, testStart+60_000)
	if n := drain(t, c, rule, "s"); n != 10 {
		t.Fatalf("%d admitted in the next window, want 10", n)
	}
}

func TestLimiter_DamagedFiles(t *testing.T) {
	t.Parallel()
	rule := Rule{Limit: 10, Window: 60, Algorithm: FixedWindow}
	for name, damage := range map[string]func(dir string) error{
		"records gone":      func(dir string) error { return os.Remove(filepath.Join(dir, recordsName)) },
		"records truncated": func(dir string) error { return os.Truncate(filepath.Join(dir, recordsName), 5000) },
		"records empty":     func(dir string) error { return os.Truncate(filepath.Join(dir, recordsName), 0) },
		"records torn": func(dir string) error {
			return scribble(filepath.Join(dir, recordsName), headerWords*8+10)
		},
		"header torn": func(dir string) error { return scribble(filepath.Join(dir, recordsName), 17) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dirs := inDirs(t, 1)
			c := openCluster(t, 1, dirs)
			take(c.node(0), rule, "s", 4)
			c.kill(t, 0)
			var cfg Config
			dirs(0, &cfg)
			if err := damage(cfg.Dir); err != nil {
				t.Fatal(err)
			}
			c.open(t, 0, dirs)
			if n := drain(t, c, rule, "s"); n != 0 {
				t.Errorf("%d admitted in a window whose records are lost", n)
			}
			c.move(t, testStart+60_000)
			if n := drain(t, c, rule, "s"); n != 10 {
				t.Errorf("%d admitted in the next window, want 10", n)
			}
		})
	}
}

func scribble(path string, at int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte("garbage!"), at)
	return errors.Join(err, f.Close())
}

func TestOpen_Errors(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]Config{
		"no id":          {Incarnation: 1},
		"no incarnation": {NodeID: "a"},
		"negative":       {NodeID: "a", Incarnation: 1, MaxBuckets: -1},
		"isolation":      {NodeID: "a", Incarnation: 1, Isolation: 9},
	} {
		if _, err := Open(cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: got %v, want ErrConfig", name, err)
		}
	}
	if _, err := Open(Config{NodeID: "a", Dir: filepath.Join(t.TempDir(), "missing")}); err == nil {
		t.Error("a missing directory was accepted")
	}
	dir := t.TempDir()
	l, err := Open(Config{NodeID: "a", Dir: dir, MaxBuckets: 100})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{NodeID: "a", Dir: dir, MaxBuckets: 100}); !errors.Is(err, ErrInUse) {
		t.Errorf("second process: got %v, want ErrInUse", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if o, _ := take(l, Rule{Limit: 1, Window: 60, Algorithm: FixedWindow}, "s", 1); o != Undecided {
		t.Errorf("after Close: %v", o)
	}
	l.Stats()
	if err := os.WriteFile(filepath.Join(dir, markName), []byte("garbage that is no mark at all"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{NodeID: "a", Dir: dir}); !errors.Is(err, ErrDamaged) {
		t.Errorf("damaged mark: got %v, want ErrDamaged", err)
	}
}

// Another MaxBuckets makes another size of file; what the old one proves goes with it.
func TestLimiter_ResizeKeepsRecords(t *testing.T) {
	t.Parallel()
	dirs := inDirs(t, 1)
	size := 600
	open := func(i int, c *Config) { dirs(i, c); c.MaxBuckets = size }
	c := openCluster(t, 1, open)
	rule := Rule{Limit: 10, Window: 60, Algorithm: FixedWindow}
	take(c.node(0), rule, "s", 4)
	for _, size = range []int{6000, 100} {
		c.kill(t, 0)
		c.open(t, 0, open)
	}
	if n := drain(t, c, rule, "s"); n != 6 {
		t.Fatalf("%d admitted, want 6", n)
	}
}

// The mark in the file is ahead of the clock at every decision; a torn copy leaves the one before.
func TestMark_TornWrite(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m, fresh, err := openMark(dir)
	if err != nil || !fresh {
		t.Fatalf("fresh %v, %v", fresh, err)
	}
	for i := range int64(5) {
		if err := m.write(3, 1000+i); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.close(); err != nil {
		t.Fatal(err)
	}
	if err := scribble(filepath.Join(dir, markName), markStride*1+20); err != nil { // generation 5 is the newest, at 1
		t.Fatal(err)
	}
	m, fresh, err = openMark(dir)
	if err != nil || fresh || m.inc != 3 || m.mark != 1003 {
		t.Fatalf("fresh %v, incarnation %d, mark %d, %v; want the copy before the torn one", fresh, m.inc, m.mark, err)
	}
	if err := m.close(); err != nil {
		t.Fatal(err)
	}
}

func TestIncarnation_Rises(t *testing.T) {
	t.Parallel()
	dirs := inDirs(t, 1)
	c := openCluster(t, 1, dirs)
	for want := uint64(1); want < 4; want++ {
		if got := c.node(0).Stats().Incarnation; got != want {
			t.Fatalf("incarnation %d, want %d", got, want)
		}
		c.kill(t, 0)
		c.open(t, 0, dirs)
	}
}
