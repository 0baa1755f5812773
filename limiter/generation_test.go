package limiter

import "testing"

// resetOn tells the first count nodes of a reset of the bucket.
func (c *testCluster) resetOn(id BucketID, generation uint64, count int) {
	c.state.Resets = []Reset{{Bucket: id, Generation: generation}}
	for i := range count {
		c.node(i).SetState(c.state)
	}
}

func TestReset_FullLimitOnEveryNode(t *testing.T) {
	t.Parallel()
	c := openCluster(t, 3, nil)
	for _, rule := range []Rule{{Limit: 10, Window: 3600, Algorithm: FixedWindow}, {Limit: 10, Window: 3600, Algorithm: SlidingWindow}} {
		id := c.node(0).Bucket("p", rule, []byte("s"))
		for generation := range uint64(4) {
			if generation > 0 {
				c.resetOn(id, generation+2*uint64(rule.Algorithm), 3)
			}
			passed := 0
			for i := range 30 {
				if o, _ := takePatient(c.node(i%3), rule, "s", 1); o == Admitted {
					passed++
				}
			}
			if passed != 10 {
				t.Errorf("algorithm %d, after %d resets: %d of 10 passed", rule.Algorithm, generation, passed)
			}
		}
		if c.node(1).Bucket("p", rule, []byte("s")) != id {
			t.Error("a reset changed the bucket's first name")
		}
	}
}

// A node that learns of a reset late goes on with what is left of the old generation: both limits bound what passes.
func TestReset_LateNode(t *testing.T) {
	t.Parallel()
	c := openCluster(t, 3, nil)
	rule := Rule{Limit: 30, Window: 3600, Algorithm: FixedWindow}
	for range 4 {
		if o, _ := take(c.node(0), rule, "s", 1); o != Admitted {
			t.Fatal("not admitted")
		}
	}
	c.resetOn(c.node(0).Bucket("p", rule, []byte("s")), 5, 2)
	passed := [3]int{}
	for i := range 300 {
		if o, _ := takePatient(c.node(i%3), rule, "s", 1); o == Admitted {
			passed[i%3]++
		}
	}
	if passed[0]+passed[1] > 30 || passed[2] > 26 || passed[0] == 0 || passed[1] == 0 || passed[2] < 10 {
		t.Errorf("passed %v: at most 30 on the first two together, 26 on the last", passed)
	}
	// Once it learns of it, it holds its part of the new one; what that lent away stays lent.
	c.resetOn(c.node(0).Bucket("p", rule, []byte("s")), 5, 3)
	more := 0
	for i := range 90 {
		if o, _ := takePatient(c.node(i%3), rule, "s", 1); o == Admitted {
			more++
		}
	}
	if passed[0]+passed[1]+more != 30 {
		t.Errorf("%d and %d of 30 in the new generation", passed[0]+passed[1], more)
	}
}

func TestReset_RefundStaysInItsGeneration(t *testing.T) {
	t.Parallel()
	c := openCluster(t, 1, nil)
	rule := Rule{Limit: 3, Window: 3600, Algorithm: FixedWindow}
	charges := []Charge{{Bucket: c.node(0).Bucket("p", rule, []byte("s")), Rule: rule, Cost: 3}}
	verdicts := make([]Verdict, 1)
	if o := c.node(0).Take(charges, verdicts); o != Admitted {
		t.Fatalf("outcome %d", o)
	}
	old := append([]Charge(nil), charges...)
	c.resetOn(charges[0].Bucket, 7, 1)
	if o := c.node(0).Take(charges, verdicts); o != Admitted {
		t.Fatalf("after the reset: outcome %d", o)
	}
	c.node(0).Refund(old)
	if v := c.node(0).Peek(charges[0]); v.Outcome != Refused {
		t.Errorf("a refund of the old generation gave units in the new one: %+v", v)
	}
	c.node(0).Refund(charges)
	if v := c.node(0).Peek(charges[0]); v.Remaining != 3 {
		t.Errorf("after the refund: %+v", v)
	}
}

// An older state, without a reset that is known, changes nothing.
func TestReset_NeverForgottenByAnOlderState(t *testing.T) {
	t.Parallel()
	l := newTestLedger("a", 1)
	id := BucketID{1, 2, 3}
	s := State{HorizonMillis: 1 << 50, Rosters: []Roster{{Index: 1, Nodes: []string{"a"}}}}
	old := s
	s.Resets = []Reset{{Bucket: id, Generation: 9}}
	l.setState(s)
	l.setState(old)
	now := l.view.Load()
	if now.name(id, 60, testStart) != generationID(id, 9) {
		t.Error("the reset was undone")
	}
	s.HorizonMillis++
	l.setState(s)
	if v := l.view.Load(); v.gens != now.gens || v.horizon != s.HorizonMillis {
		t.Error("the names were made anew though nothing changed")
	}
	for _, window := range []int64{0, -1, 1 << 62, maxWindow + 1} {
		if now.name(id, window, testStart) != id {
			t.Errorf("a rule that cannot be, of window %d, has a generation", window)
		}
	}
}

func TestGenerationID_KeepsWhatOthersGoBy(t *testing.T) {
	t.Parallel()
	id := bucketID(&[16]byte{1}, "p", Rule{Limit: 1, Window: 60, Algorithm: FixedWindow}, []byte("s"))
	seen := map[BucketID]bool{id: true}
	for n := range uint64(1000) {
		g := generationID(id, n)
		if g.class() != id.class() || g.low() != id.low() || shardOf(&g) != shardOf(&id) || seen[g] {
			t.Fatalf("generation %d of %x is %x", n, id, g)
		}
		seen[g] = true
	}
}

// Handed back, a fixed window begins as any other. A sliding one is charged the whole share for the window before, since
// what was spent there stands under another name.
func TestReset_HandedBack(t *testing.T) {
	t.Parallel()
	const w = 60_000
	for alg, want := range map[Algorithm][2]int64{FixedWindow: {10, 10}, SlidingWindow: {0, 5}} {
		l := newLedger(ledgerConfig{self: "a", inc: 1, skewMillis: 1000, maxBuckets: 6400})
		rule := Rule{Limit: 10, Window: 60, Algorithm: alg}
		id := bucketID(&[16]byte{1}, "p", rule, []byte("s"))
		begin := int64(testStart/w) * w
		until := begin + w
		s := State{HorizonMillis: until, Rosters: []Roster{{Index: 1, Nodes: []string{"a"}}}, Resets: []Reset{{Bucket: id, Generation: 3}}}
		l.setState(s)
		spend := func(ms int64) int64 {
			l.mark.Store(ms + 5000)
			passed := int64(0)
			for range 20 {
				charges, verdicts := []Charge{{Bucket: id, Rule: rule, Cost: 1}}, make([]Verdict, 1)
				if o, _ := l.take(instant{ms: ms}, charges, verdicts, nil, &outbox{}); o == Admitted {
					passed++
				}
			}
			return passed
		}
		if got := spend(begin + 10_000); got != 10 {
			t.Fatalf("algorithm %d: %d of 10 in the generation", alg, got)
		}
		s.HorizonMillis, s.Resets = until+10*w, []Reset{{Bucket: id, Generation: 3, UntilMillis: until}}
		l.setState(s)
		if got := spend(until - 1); got != 0 {
			t.Errorf("algorithm %d: %d more before its end", alg, got)
		}
		if got := [2]int64{spend(until), spend(until + w/2)}; got[0] != want[0] || got[0]+got[1] != want[1] {
			t.Errorf("algorithm %d: %v handed back, want %v in all by then", alg, got, want)
		}
		if got := spend(until + 3*w); got != 10 {
			t.Errorf("algorithm %d: %d of 10 long after", alg, got)
		}
	}
}
