package limiter

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// testNet joins limiters in one process: packets are handed over by goroutines, after a little while.
type testNet struct {
	mu    sync.Mutex
	nodes map[string]*Limiter
	loss  int // per cent
	sent  atomic.Int64
	wg    sync.WaitGroup
	delay time.Duration
}

type testPort struct {
	net  *testNet
	from string
}

func (p testPort) Send(to string, packet []byte) {
	p.net.mu.Lock()
	l := p.net.nodes[to]
	p.net.mu.Unlock()
	p.net.sent.Add(1)
	if l == nil || rand.IntN(100) < p.net.loss {
		return
	}
	data := append([]byte(nil), packet...)
	p.net.wg.Go(func() {
		if p.net.delay > 0 {
			timer := time.NewTimer(p.net.delay)
			<-timer.C
		}
		l.Receive(p.from, data)
	})
}

// testClock stands still inside a window, far from its edges, unless moved.
type testClock struct{ ms atomic.Int64 }

func (c *testClock) now() time.Time { return time.UnixMilli(c.ms.Load()) }

const testStart = 28_333_334*60_000 + 10_000

type testCluster struct {
	*testNet
	clock *testClock
	names []string
	state State
}

func openCluster(t testing.TB, n int, change func(i int, c *Config)) *testCluster {
	t.Helper()
	c := &testCluster{testNet: &testNet{nodes: map[string]*Limiter{}}, clock: &testClock{}}
	c.clock.ms.Store(testStart)
	for i := range n {
		c.names = append(c.names, fmt.Sprintf("node-%d", i))
	}
	c.state = State{HorizonMillis: testStart + 3_600_000, Rosters: []Roster{{Index: 1, Nodes: c.names}}}
	t.Cleanup(c.wg.Wait) // after every node is closed and sends no more
	for i := range n {
		c.open(t, i, change)
	}
	return c
}

func (c *testCluster) open(t testing.TB, i int, change func(i int, c *Config)) *Limiter {
	t.Helper()
	cfg := Config{NodeID: c.names[i], Incarnation: 1, Clock: c.clock.now, Transport: testPort{c.testNet, c.names[i]},
		MaxBuckets: 4096, GossipInterval: 10 * time.Millisecond, BootID: "boot"}
	if change != nil {
		change(i, &cfg)
	}
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	l.SetState(c.state)
	c.mu.Lock()
	c.nodes[c.names[i]] = l
	c.mu.Unlock()
	return l
}

// move sets the clock, and lets every mark follow.
func (c *testCluster) move(t testing.TB, ms int64) {
	t.Helper()
	c.clock.ms.Store(ms)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.nodes {
		if err := l.raiseMark(); err != nil {
			t.Fatal(err)
		}
	}
}

func (c *testCluster) node(i int) *Limiter {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[c.names[i%len(c.names)]]
}

func take(l *Limiter, rule Rule, subject string, cost int64) (Outcome, Verdict) {
	c := [1]Charge{{Bucket: l.Bucket("p", rule, []byte(subject)), Rule: rule, Cost: cost}}
	var v [1]Verdict
	return l.Take(c[:], v[:]), v[0]
}

// takePatient is take for shares that are there: on a machine too busy to answer within a wait, or to wait at all, it takes
// again.
func takePatient(l *Limiter, rule Rule, subject string, cost int64) (o Outcome, v Verdict) {
	for range 100 {
		skipped := l.waitsSkipped.Load()
		if o, v = take(l, rule, subject, cost); o != Refused || !v.Waited && l.waitsSkipped.Load() == skipped {
			break
		}
	}
	return o, v
}

// storm sends requests at once, spread by pick, and then keeps asking until the limit is used, as long as
// patience allows.
func storm(t *testing.T, c *testCluster, rule Rule, requests int, patience time.Duration, pick func(i int) int) {
	t.Helper()
	var admitted atomic.Int64
	var slowest atomic.Int64
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range requests {
		wg.Go(func() {
			<-start
			began := time.Now()
			o, v := take(c.node(pick(i)), rule, "s", 1)
			if d := int64(time.Since(began)); d > slowest.Load() {
				slowest.Store(d)
			}
			switch o {
			case Admitted:
				admitted.Add(1)
			case Undecided:
				t.Errorf("undecided: %+v", v)
			case Refused:
				if v.RetryAfter < 1 || v.Remaining != 0 {
					t.Errorf("refused with %+v", v)
				}
			}
		})
	}
	close(start)
	wg.Wait()
	atOnce := admitted.Load()
	deadline := time.Now().Add(patience)
	for i := 0; admitted.Load() < rule.Limit && time.Now().Before(deadline); i++ {
		if o, _ := take(c.node(pick(i)), rule, "s", 1); o == Admitted {
			admitted.Add(1)
		}
	}
	if got := admitted.Load(); got > rule.Limit || got < rule.Limit*99/100 || rule.Limit <= 10 && got != rule.Limit {
		t.Errorf("limit %d: %d admitted at once, %d in the end", rule.Limit, atOnce, got)
	}
	// Never over, whatever comes after.
	for i := range 30 {
		if o, _ := take(c.node(i), rule, "s", 1); o == Admitted && admitted.Add(1) > rule.Limit {
			t.Fatalf("limit %d: %d admitted", rule.Limit, admitted.Load())
		}
	}
	t.Logf("limit %d: %d at once, %d in the end, slowest %v, %d packets", rule.Limit, atOnce, admitted.Load(), time.Duration(slowest.Load()), c.sent.Load())
}

func TestLimiter_Storms(t *testing.T) {
	t.Parallel()
	patterns := map[string]func(i int) int{
		"one node":    func(int) int { return 0 },
		"round robin": func(i int) int { return i },
		"random":      func(int) int { return rand.IntN(100) },
	}
	for name, pick := range patterns {
		for _, nodes := range []int{3, 5} {
			for _, limit := range []int64{3, 10, 100, 1000} {
				for _, alg := range []Algorithm{FixedWindow, SlidingWindow, TokenBucket} {
					rule := Rule{Limit: limit, Window: 60, Algorithm: alg}
					if alg == TokenBucket { // gains nothing to speak of meanwhile
						rule.Window, rule.Burst = maxWindow, limit
					}
					t.Run(fmt.Sprintf("%s/nodes=%d/limit=%d/alg=%d", name, nodes, limit, alg), func(t *testing.T) {
						t.Parallel()
						c := openCluster(t, nodes, nil)
						storm(t, c, rule, 1500, time.Second, pick)
					})
				}
			}
		}
	}
}

func TestLimiter_StormUnderLoss(t *testing.T) {
	t.Parallel()
	for _, limit := range []int64{10, 100} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			c := openCluster(t, 3, nil)
			c.loss = 30
			storm(t, c, Rule{Limit: limit, Window: 60, Algorithm: SlidingWindow}, 500, 10*time.Second, func(int) int { return 1 })
		})
	}
}

// What one node spent just before the window ends leaves the others only what has slid out.
func TestLimiter_SlidesAcrossNodes(t *testing.T) {
	t.Parallel()
	c := openCluster(t, 3, nil)
	rule := Rule{Limit: 30, Window: 60, Algorithm: SlidingWindow}
	c.move(t, 28_333_335*60_000-50)
	n := 0
	for i := 0; i < 200 && n < 30; i++ {
		if o, _ := take(c.node(0), rule, "s", 1); o == Admitted {
			n++
		}
	}
	if n != 30 {
		t.Fatalf("%d admitted before the edge, want 30", n)
	}
	c.move(t, 28_333_335*60_000)
	for i := range 30 {
		if o, v := take(c.node(i), rule, "s", 1); o == Admitted {
			t.Fatalf("admitted right after the edge: %+v", v)
		}
	}
	// A third of the window later a third has slid out. What has no whole unit on any node stays behind: at most one unit a node.
	c.move(t, 28_333_335*60_000+20_000)
	n = 0
	for i := range 120 {
		if o, _ := take(c.node(i), rule, "s", 1); o == Admitted {
			n++
		}
	}
	if n > 10 || n < 8 {
		t.Fatalf("%d admitted a third of the window later, want 8 to 10", n)
	}
}

// With the roster's shares of 34, 33 and 33, a cost of 50 takes shares of all.
func TestLimiter_CostAboveAShare(t *testing.T) {
	t.Parallel()
	c := openCluster(t, 3, nil)
	rule := Rule{Limit: 100, Window: 60, Algorithm: FixedWindow}
	for i := range 2 {
		if o, v := takePatient(c.node(0), rule, "s", 50); o != Admitted {
			t.Fatalf("request %d of cost 50: %+v", i+1, v)
		}
	}
	if o, _ := take(c.node(1), rule, "s", 1); o != Refused {
		t.Fatal("admitted over the limit")
	}
	if o, v := take(c.node(1), rule, "t", 101); o != Refused || v.Waited {
		t.Fatalf("cost above the limit: %v %+v", o, v)
	}
}

func TestLimiter_SeveralAreAllOrNone(t *testing.T) {
	t.Parallel()
	c := openCluster(t, 1, nil)
	l := c.node(0)
	key, user := Rule{Limit: 10, Window: 60, Algorithm: FixedWindow}, Rule{Limit: 3, Window: 3600, Algorithm: SlidingWindow}
	charges := []Charge{
		{Bucket: l.Bucket("key", key, []byte("k")), Rule: key, Cost: 1},
		{Bucket: l.Bucket("user", user, []byte("u")), Rule: user, Cost: 1},
	}
	var v [2]Verdict
	for i := range 3 {
		if o := l.Take(charges, v[:]); o != Admitted {
			t.Fatalf("request %d: %v %+v", i, o, v)
		}
	}
	if o := l.Take(charges, v[:]); o != Refused || v[0].Outcome != Admitted || v[1].Outcome != Refused {
		t.Fatalf("got %v %+v, want the user's policy alone to refuse", o, v)
	}
	if got := l.Peek(charges[0]); got.Remaining != 7 || got.Outcome != Admitted {
		t.Fatalf("key's bucket after a refusal by the user's: %+v, want 7 remaining", got)
	}
	twice := []Charge{charges[0], charges[0]}
	twice[0].Cost, twice[1].Cost = 4, 4
	if o := l.Take(twice, v[:]); o != Refused {
		t.Fatalf("one bucket named twice for 8 of 7 units: %v", o)
	}
}

func TestLimiter_Refund(t *testing.T) {
	t.Parallel()
	c := openCluster(t, 1, nil)
	l := c.node(0)
	rule := Rule{Limit: 2, Window: 60, Algorithm: FixedWindow}
	charges := []Charge{{Bucket: l.Bucket("p", rule, []byte("s")), Rule: rule, Cost: 2}}
	var v [1]Verdict
	if o := l.Take(charges, v[:]); o != Admitted || v[0].Remaining != 0 {
		t.Fatalf("%v %+v", o, v)
	}
	l.Refund(charges)
	l.Refund(charges) // a second time gives nothing
	if got := l.Peek(charges[0]); got.Remaining != 2 {
		t.Fatalf("after the refund: %+v", got)
	}
	if o := l.Take(charges, v[:]); o != Admitted {
		t.Fatalf("%v %+v", o, v)
	}
	c.move(t, testStart+60_000)
	other := []Charge{charges[0]}
	if o := l.Take(other, v[:]); o != Admitted {
		t.Fatalf("%v %+v", o, v)
	}
	l.Refund(charges) // of the window before: the present one keeps its units
	if got := l.Peek(charges[0]); got.Remaining != 0 {
		t.Fatalf("a late refund gave units of another window: %+v", got)
	}
}

func TestLimiter_Headers(t *testing.T) {
	t.Parallel()
	c := openCluster(t, 3, nil)
	rule := Rule{Limit: 10, Window: 60, Algorithm: SlidingWindow}
	last := int64(10)
	for i := range 10 {
		o, v := takePatient(c.node(0), rule, "s", 1)
		if o != Admitted || v.Remaining != last-1 || v.Limit != 10 || v.ResetAt != 28_333_335*60 || v.RetryAfter != 0 {
			t.Fatalf("request %d: %v %+v", i, o, v)
		}
		last = v.Remaining
	}
	o, v := take(c.node(0), rule, "s", 1)
	// All ten were spent at 10 s; they begin to slide out when the next window begins, in 50 s, and a whole unit of some
	// node's is out some seconds later.
	if o != Refused || v.Remaining != 0 || v.RetryAfter < 51 || v.RetryAfter > 75 {
		t.Fatalf("refused: %v %+v", o, v)
	}
	waitFor(t, "the others know", func() error {
		for i := 1; i < 3; i++ {
			p := c.node(i).Peek(Charge{Bucket: c.node(i).Bucket("p", rule, []byte("s")), Rule: rule, Cost: 1})
			if p.Remaining != 0 {
				return fmt.Errorf("node %d says %+v", i, p)
			}
		}
		return nil
	})
	// RetryAfter is honest: a request then passes, one a second before does not, wherever it goes.
	at := c.clock.ms.Load() + v.RetryAfter*1000
	c.move(t, at-1000)
	for i := range 3 {
		if o, _ := take(c.node(i), rule, "s", 1); o == Admitted {
			t.Fatalf("node %d admits a second before Retry-After", i)
		}
	}
	c.move(t, at)
	passed := false
	for i := range 3 {
		o, _ := take(c.node(i), rule, "s", 1)
		passed = passed || o == Admitted
	}
	if !passed {
		t.Fatal("no node admits after Retry-After")
	}
}

// On each node Remaining never rises inside a window, and soon says the same everywhere.
func TestLimiter_RemainingNeverRises(t *testing.T) {
	t.Parallel()
	c := openCluster(t, 3, nil)
	rule := Rule{Limit: 200, Window: 60, Algorithm: SlidingWindow}
	last := []int64{200, 200, 200}
	for i := range 150 {
		at := rand.IntN(3)
		o, v := takePatient(c.node(at), rule, "s", 1)
		if o != Admitted || v.Remaining >= last[at] || v.Remaining < 199-int64(i) {
			t.Fatalf("request %d on node %d: %v %+v, after %d", i, at, o, v, last[at])
		}
		last[at] = v.Remaining
	}
	waitFor(t, "the nodes agree", func() error {
		for i := range 3 {
			l := c.node(i)
			if p := l.Peek(Charge{Bucket: l.Bucket("p", rule, []byte("s")), Rule: rule, Cost: 1}); p.Remaining != 50 {
				return fmt.Errorf("node %d says %+v", i, p)
			}
		}
		return nil
	})
}

// With isolation "available" a node that is cut off goes on with its base share, and the excess is no more than that.
func TestLimiter_AvailableExcess(t *testing.T) {
	t.Parallel()
	c := openCluster(t, 3, func(_ int, cfg *Config) { cfg.Isolation = Available })
	rule := Rule{Limit: 30, Window: 60, Algorithm: FixedWindow}
	// The others removed node 2; it does not know, and its horizon stays where it was.
	horizon := c.state.HorizonMillis
	c.mu.Lock()
	cut := c.nodes[c.names[2]]
	delete(c.nodes, c.names[2])
	c.mu.Unlock()
	c.names = c.names[:2]
	next := State{HorizonMillis: horizon + 3_600_000, Rosters: append(c.state.Rosters, Roster{Index: 2, FromMillis: horizon, Nodes: c.names})}
	for i := range 2 {
		c.node(i).SetState(next)
	}
	at := (horizon/60_000 + 1) * 60_000
	c.move(t, at)
	if err := cut.raiseMark(); err != nil {
		t.Fatal(err)
	}
	kept := drain(t, c, rule, "s")
	alone := int64(0)
	for range 60 {
		if o, _ := take(cut, rule, "s", 1); o == Admitted {
			alone++
		}
	}
	if kept != 30 || alone != 10 {
		t.Fatalf("the others admitted %d, the node cut off %d; want 30 and its share of 10", kept, alone)
	}
	// What it says of itself gets through, and the others' auditors see what that comes to.
	waitFor(t, "the auditors", func() error {
		for i := range 2 {
			if a := c.node(i).Stats().Audit; a.Overadmitted != 10 {
				return fmt.Errorf("node %d found %d units over, want 10", i, a.Overadmitted)
			}
		}
		return nil
	})
}

// The counts of what goes between nodes fit together.
func TestStats_WaitsAndTransfers(t *testing.T) {
	t.Parallel()
	c := openCluster(t, 2, nil)
	rule := Rule{Limit: 10, Window: 60, Algorithm: FixedWindow}
	for range 10 {
		if o, v := takePatient(c.node(0), rule, "s", 1); o != Admitted {
			t.Fatalf("%v %+v", o, v)
		}
	}
	waitFor(t, "counters", func() error {
		got, other := c.node(0).Stats(), c.node(1).Stats()
		var waited uint64
		for _, n := range got.WaitTimes {
			waited += n
		}
		if waited == 0 || waited != got.Waits || got.WaitTime <= 0 {
			return fmt.Errorf("%d requests waited, %d of them are in %v, in all %v", got.Waits, waited, got.WaitTimes, got.WaitTime)
		}
		if got.Asks == 0 || got.Answers == 0 || got.Answers > other.AsksAnswered || got.UnitsReceived != 5 || other.UnitsGiven != 5 {
			return fmt.Errorf("asked %+v, gave %+v", got, other)
		}
		if got.TransferPackets < got.Asks || got.TransferBytes == 0 || got.GossipPackets == 0 || other.BytesReceived < got.TransferBytes || got.PacketsRefused+got.PacketsForeign != 0 {
			return fmt.Errorf("asked %+v, gave %+v", got, other)
		}
		for _, p := range c.node(0).Peers() {
			if p.Unheard > time.Second {
				return fmt.Errorf("%s unheard for %v", p.Node, p.Unheard)
			}
		}
		return nil
	})
}

func waitFor(t testing.TB, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		timer := time.NewTimer(time.Millisecond)
		<-timer.C
	}
}

// Under an attack that goes on, refusals wait for nothing.
func TestLimiter_AttackIsRefusedLocally(t *testing.T) {
	t.Parallel()
	for _, alg := range []Algorithm{FixedWindow, SlidingWindow} {
		t.Run(fmt.Sprint(alg), func(t *testing.T) {
			t.Parallel()
			c := openCluster(t, 3, nil)
			rule := Rule{Limit: 100, Window: 60, Algorithm: alg}
			var refused, waited, admitted int
			const each = 40 // requests for each millisecond of the clock
			for i := range 60_000 {
				if i%each == 0 {
					c.clock.ms.Add(1)
				}
				o, v := take(c.node(i), rule, "s", 1)
				switch o {
				case Refused:
					refused++
					waited += btoi(v.Waited)
				case Admitted:
					admitted++
				default:
					t.Fatalf("%v %+v", o, v)
				}
			}
			if admitted > 100 || admitted < 99 {
				t.Errorf("%d admitted", admitted)
			}
			if waited*1000 > refused {
				t.Errorf("%d of %d refusals waited", waited, refused)
			}
			t.Logf("%d refused, %d of them waited", refused, waited)
		})
	}
}

// A dead peer costs some waits, and never an error or a wait beyond the bound.
func TestLimiter_DeadPeer(t *testing.T) {
	t.Parallel()
	c := openCluster(t, 3, nil)
	c.mu.Lock()
	delete(c.nodes, c.names[2])
	c.mu.Unlock()
	dead := 0
	rule := Rule{Limit: 30, Window: 60, Algorithm: FixedWindow}
	began, slowest := time.Now(), time.Duration(0)
	admitted := 0
	for i := range 2000 {
		at := time.Now()
		c.names = c.names[:3]
		c.mu.Lock()
		l := c.nodes[c.names[i%2]]
		c.mu.Unlock()
		o, v := take(l, rule, "s", 1)
		slowest = max(slowest, time.Since(at))
		switch {
		case o == Admitted:
			admitted++
		case o != Refused:
			t.Fatalf("%v %+v", o, v)
		case v.Waited:
			dead++
		}
	}
	if admitted != 20 {
		t.Errorf("%d admitted, want the two live shares of 10", admitted)
	}
	t.Logf("2000 requests in %v, slowest %v, %d refusals waited", time.Since(began), slowest, dead)
	if dead > 30 {
		t.Errorf("%d refusals waited for a dead peer", dead)
	}
}

func TestLimiter_Isolation(t *testing.T) {
	t.Parallel()
	rule := Rule{Limit: 30, Window: 60, Algorithm: FixedWindow}
	for _, iso := range []Isolation{Strict, Available} {
		c := openCluster(t, 1, func(_ int, cfg *Config) { cfg.Isolation = iso })
		l := c.node(0)
		if o, v := take(l, rule, "s", 1); o != Admitted {
			t.Fatalf("inside the horizon: %v %+v", o, v)
		}
		c.move(t, c.state.HorizonMillis+60_000)
		want := Undecided
		if iso == Available {
			want = Admitted
		}
		if o, v := take(l, rule, "t", 1); o != want {
			t.Fatalf("beyond the horizon, isolation %d: %v %+v", iso, o, v)
		}
	}
}
