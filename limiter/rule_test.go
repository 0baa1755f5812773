package limiter

import (
	"fmt"
	"math/big"
	"math/rand/v2"
	"testing"
)

func TestSpan_Windows(t *testing.T) {
	t.Parallel()
	w := span(60_000)
	for _, c := range []struct{ ms, n, view int64 }{
		{0, 0, 60_000}, {59_999, 0, 1}, {60_000, 1, 60_000}, {90_000, 1, 30_000}, {-1, -1, 1},
	} {
		if n := w.at(c.ms); n != c.n || w.inView(n, c.ms) != c.view {
			t.Errorf("at %d: window %d, %d in view; want %d, %d", c.ms, n, w.inView(n, c.ms), c.n, c.view)
		}
	}
	if w.inView(5, 0) != 60_000 || w.inView(5, 1_000_000) != 0 {
		t.Error("before a window begins all is in view, after it ends nothing")
	}
}

func TestSpan_WeighIsExact(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(3, 4))
	for range 20_000 {
		w := span((1 + rng.Int64N(maxWindow)) * 1000)
		n := rng.Int64N(1000)
		ms := w.begin(n) + rng.Int64N(int64(w))
		charge := rng.Int64N(maxLimit + 1)
		want := new(big.Int).Mul(big.NewInt(charge), big.NewInt(w.inView(n, ms)))
		want.Add(want, big.NewInt(int64(w)-1)).Div(want, big.NewInt(int64(w)))
		if got := w.weigh(charge, n, ms); got != want.Int64() {
			t.Fatalf("weigh %d of %d/%d: got %d, want %v", charge, w.inView(n, ms), w, got, want)
		}
		units := rng.Int64N(maxLimit)
		c := w.unweigh(units, n, ms)
		if w.weigh(min(c, maxLimit), n, ms) > units || c < maxLimit && w.weigh(c+1, n, ms) <= units {
			t.Fatalf("unweigh %d at %d of %d: got %d", units, w.inView(n, ms), w, c)
		}
	}
}

// Shares add up to the limit exactly, differ by one at most, and never fall as the limit rises.
func TestRoster_Shares(t *testing.T) {
	t.Parallel()
	for n := 1; n <= 20; n++ {
		s := State{Rosters: []Roster{{Index: 1}}}
		for i := range n {
			s.Rosters[0].Nodes = append(s.Rosters[0].Nodes, fmt.Sprint("node", i))
		}
		r := newView(s, newPeerTable(), "node0", nil).governing(0)
		for low := range uint64(10) {
			before := make([]int64, n)
			for limit := range int64(3*n + 2) {
				var sum int64
				for pos := range n {
					got := r.share(low, pos, limit)
					if got < before[pos] || got < limit/int64(n) || got > limit/int64(n)+1 {
						t.Fatalf("%d nodes, limit %d: node %d holds %d after %d", n, limit, pos, got, before[pos])
					}
					before[pos] = got
					sum += got
				}
				if sum != limit {
					t.Fatalf("%d nodes: shares of %d add up to %d", n, limit, sum)
				}
			}
		}
	}
}

func TestView_Governing(t *testing.T) {
	t.Parallel()
	v := newView(State{Rosters: []Roster{
		{Index: 9, FromMillis: 500, Nodes: []string{"c"}},
		{Index: 2, Nodes: []string{"a"}},
		{Index: 7, FromMillis: 500, Nodes: []string{"b", "b"}},
	}}, newPeerTable(), "b", nil)
	for begin, want := range map[int64]uint64{0: 2, 499: 2, 500: 9, 9000: 9} {
		if got := v.governing(begin); got == nil || got.index != want {
			t.Errorf("at %d: got %+v, want roster %d", begin, got, want)
		}
	}
	if v.governing(-1) != nil {
		t.Error("a roster governs a window before all rosters")
	}
	if len(v.rosters[1].peers) != 1 {
		t.Error("a node named twice counts twice")
	}
}

func TestBucketID_LeavesOutTheLimit(t *testing.T) {
	t.Parallel()
	key := [16]byte{1}
	rule := Rule{Limit: 10, Window: 60, Algorithm: FixedWindow}
	id := bucketID(&key, "p", rule, []byte("s"))
	same := rule
	same.Limit = 99
	if bucketID(&key, "p", same, []byte("s")) != id {
		t.Error("another limit names another bucket")
	}
	other := rule
	other.Window = 61
	sliding := rule
	sliding.Algorithm = SlidingWindow
	for what, got := range map[string]BucketID{
		"policy": bucketID(&key, "q", rule, []byte("s")), "subject": bucketID(&key, "p", rule, []byte("t")),
		"window": bucketID(&key, "p", other, []byte("s")), "algorithm": bucketID(&key, "p", sliding, []byte("s")),
		"split": bucketID(&key, "ps", rule, nil), "key": bucketID(&[16]byte{2}, "p", rule, []byte("s")),
	} {
		if got == id {
			t.Errorf("another %s names the same bucket", what)
		}
	}
}

// A limit that changes while in use: at most the highest of those in force passes in the window of the change.
func TestLimiter_LimitChanges(t *testing.T) {
	t.Parallel()
	c := openCluster(t, 3, nil)
	low, high := Rule{Limit: 9, Window: 60, Algorithm: FixedWindow}, Rule{Limit: 30, Window: 60, Algorithm: FixedWindow}
	if n := drain(t, c, low, "s"); n != 9 {
		t.Fatalf("%d admitted at first, want 9", n)
	}
	if n := drain(t, c, high, "s"); n != 21 {
		t.Fatalf("%d admitted after the limit was raised, want 21", n)
	}
	if n := drain(t, c, low, "s"); n != 0 {
		t.Fatalf("%d admitted after it was lowered, want 0", n)
	}
	c.move(t, testStart+60_000)
	if n := drain(t, c, low, "s"); n != 9 {
		t.Fatalf("%d admitted in the next window, want 9", n)
	}
}

// A flood of addresses leaves room for keys, takes no more memory than allowed, and lets nobody over the limit.
func TestLimiter_Flood(t *testing.T) {
	t.Parallel()
	dirs := inDirs(t, 1)
	open := func(i int, c *Config) { dirs(i, c); c.MaxBuckets = 6400 }
	c := openCluster(t, 1, open)
	l := c.node(0)
	rule := Rule{Limit: 3, Window: 60, Algorithm: FixedWindow}
	charge := func(policy string, i int) []Charge {
		return []Charge{{Bucket: l.Bucket(policy, rule, fmt.Append(nil, i)), Rule: rule, Cost: 1}}
	}
	var v [1]Verdict
	late := 0
	for i := range 60_000 {
		if o := l.Take(charge("anonymous", i), v[:]); o == Refused {
			late++
		}
	}
	s := l.Stats()
	if s.Buckets > 6400 || s.OverflowDecisions == 0 || late == 0 {
		t.Fatalf("after the flood: %d buckets, %d decisions in cells, %d refused", s.Buckets, s.OverflowDecisions, late)
	}
	for i := range 1000 {
		for n := range 4 {
			want := Admitted
			if n == 3 {
				want = Refused
			}
			if o := l.Take(charge("api_key", i), v[:]); o != want {
				t.Fatalf("key %d, request %d during the flood: %v %+v", i, n, o, v)
			}
		}
	}
	for i := range 200 {
		n := 0
		for range 5 {
			if l.Take(charge("anonymous", 100_000+i), v[:]) == Admitted {
				n++
			}
		}
		if n > 3 {
			t.Fatalf("an address in a cell got %d of 3", n)
		}
	}
	// A restart in the flood keeps what was spent, though the cells stood for many.
	c.kill(t, 0)
	l = c.open(t, 0, open)
	for i := range 1000 {
		if o := l.Take(charge("api_key", i), v[:]); o == Admitted {
			t.Fatalf("key %d passes again after a restart", i)
		}
	}
	for i := range 200 {
		if l.Take(charge("anonymous", 100_000+i), v[:]) == Admitted {
			t.Fatalf("address %d passes again after a restart", i)
		}
	}
	// Afterwards all is forgotten, a little at a time.
	c.move(t, testStart+300_000)
	for range 2000 {
		l.sweep()
	}
	if s := l.Stats(); s.Buckets != 0 || s.OverflowCells != 0 || s.RecordsUsed != 0 {
		t.Fatalf("long after: %d buckets, %d cells, %d records", s.Buckets, s.OverflowCells, s.RecordsUsed)
	}
}

// Under round robin below the limit almost no decision waits.
func TestLimiter_RoundRobinWaitsForNothing(t *testing.T) {
	t.Parallel()
	for _, limit := range []int64{10, 100, 10_000} {
		c := openCluster(t, 3, nil)
		rule := Rule{Limit: limit, Window: 60, Algorithm: SlidingWindow}
		waited, n := 0, int(limit*8/10)
		for i := range n {
			o, v := take(c.node(i), rule, "s", 1)
			if o != Admitted {
				t.Fatalf("limit %d, request %d: %v %+v", limit, i, o, v)
			}
			waited += btoi(v.Waited)
		}
		if waited*100 > n {
			t.Errorf("limit %d: %d of %d decisions waited", limit, waited, n)
		}
	}
}

// The byte cap holds, and buckets near their limit come first.
func TestNews_BudgetAndOrder(t *testing.T) {
	t.Parallel()
	l := newTestLedger("a", 1)
	now := instant{ms: testStart}
	rule := Rule{Limit: 300, Window: 60, Algorithm: FixedWindow}
	hot := map[BucketID]bool{}
	for i := range 500 {
		c := []Charge{{Bucket: bucketID(&[16]byte{1}, "p", rule, fmt.Append(nil, i)), Rule: rule, Cost: 1}}
		if i%50 == 0 {
			c[0].Cost = 90
			hot[c[0].Bucket] = true
		}
		var v [1]Verdict
		var out outbox
		if o, _ := l.take(now, c, v[:], nil, &out); o != Admitted {
			t.Fatalf("%v %+v", o, v)
		}
	}
	var names []BucketID
	send := func(budget int) (bytes int) {
		l.news(now, budget, typeNews, func(p []byte) {
			if len(p) > MaxPacket {
				t.Fatalf("packet of %d bytes", len(p))
			}
			bytes += len(p)
			r := reader{b: p}
			r.header()
			for range int(r.byte()) {
				names = append(names, r.bucket().id)
				r.counters()
			}
			if !r.done() {
				t.Fatal("packet does not decode")
			}
		})
		return bytes
	}
	if n := send(2 * MaxPacket); n > 3*MaxPacket {
		t.Fatalf("%d bytes with a budget of %d", n, 2*MaxPacket)
	}
	for i := range hot {
		found := false
		for _, id := range names[:len(hot)] {
			found = found || id == i
		}
		if !found {
			t.Fatal("a bucket near its limit did not come first")
		}
	}
	for send(2*MaxPacket) > 0 {
	}
	if len(names) != 500 {
		t.Fatalf("%d buckets were sent, want each of 500 once", len(names))
	}
}

// What a peer held at an earlier limit says what it holds at this one, but for a base that it lost with a restart.
func TestOutlook_LimitChangedSince(t *testing.T) {
	t.Parallel()
	l := newTestLedger("a", 1)
	v := l.view.Load()
	r := v.governing(testStart)
	for i := range 20 {
		rule := Rule{Limit: 1, Window: 60, Algorithm: FixedWindow}
		b := &bucket{id: bucketID(&[16]byte{1}, "p", rule, []byte{byte(i)}), span: 60_000, alg: FixedWindow}
		for pos, peer := range r.peers {
			for _, said := range []int64{0, 1, 2, 30} {
				for _, lost := range []bool{false, true} {
					k := counters{n: 7, limit: said, base: r.share(b.id.low(), pos, said) * grains, peer: peer}
					want := r.share(b.id.low(), pos, 8) * grains
					if lost && k.base > 0 {
						k.base, want = 0, 0
					}
					b.know = []counters{k}
					if got := l.outlookOf(v, b, r, pos, 7, 8).base; got != want {
						t.Fatalf("node %d said base %d at limit %d: believed to hold %d at 8, want %d", pos, k.base, said, got, want)
					}
				}
			}
		}
	}
}

// A request that names a bucket twice and asks it for more than the cluster has is refused at once: it waited for nothing
// that anybody was asked for.
func TestLedger_BucketNamedTwice(t *testing.T) {
	t.Parallel()
	rule := Rule{Limit: 9, Window: 60, Algorithm: FixedWindow} // 3 of them here
	id := bucketID(&[16]byte{1}, "p", rule, []byte("s"))
	for _, c := range []struct {
		costs   [2]int64
		outcome Outcome
		asks    int
	}{{[2]int64{8, 2}, Refused, 0}, {[2]int64{2, 3}, Refused, 1}, {[2]int64{2, 1}, Admitted, 0}} {
		l := newTestLedger("a", 1)
		charges := []Charge{{Bucket: id, Rule: rule, Cost: c.costs[0]}, {Bucket: id, Rule: rule, Cost: c.costs[1]}}
		var verdicts [2]Verdict
		var out outbox
		got, pending := l.take(instant{ms: testStart}, charges, verdicts[:], &waiter{}, &out)
		if got != c.outcome || pending != (c.asks > 0) || len(out.to) != c.asks {
			t.Errorf("costs %v: outcome %d, pending %v, %d asks; want %d and %d asks", c.costs, got, pending, len(out.to), c.outcome, c.asks)
		}
	}
}
