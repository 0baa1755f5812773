package limiter

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// tellers are ledgers joined without loss or delay; it counts what each sends.
type tellers struct {
	now     instant
	ledgers []*ledger
	sent    []int
	order   func(entry BucketID) // called for each entry of news that the first sends
}

func newTellers(names ...string) *tellers {
	c := &tellers{now: instant{ms: testStart, mono: 1}, sent: make([]int, len(names))}
	for _, name := range names {
		l := newLedger(ledgerConfig{self: name, inc: 1, skewMillis: 1000, maxBuckets: 1 << 20})
		l.mark.Store(1 << 50)
		l.setState(State{HorizonMillis: 1 << 50, Rosters: []Roster{{Index: 1, Nodes: names}}})
		c.ledgers = append(c.ledgers, l)
	}
	return c
}

func (c *tellers) send(from int, out *outbox) {
	for _, p := range out.to {
		to := c.ledgers[from].peers.at(p.peer).id
		c.hand(from, to, out.data[p.start:p.end])
	}
}

func (c *tellers) hand(from int, to string, packet []byte) {
	c.sent[from] += len(packet)
	for i, l := range c.ledgers {
		if l.self == to {
			var out outbox
			l.receive(c.now, c.ledgers[from].self, packet, &out)
			c.send(i, &out)
		}
	}
}

func (c *tellers) gossip(i, budget int) {
	c.ledgers[i].gossip(c.now, budget, func(peer uint16, packet []byte) {
		to := c.ledgers[i].peers.at(peer).id
		if i == 0 && c.order != nil && to == c.ledgers[1].self {
			r := reader{b: packet}
			r.header()
			for range r.byte() {
				c.order(r.bucket().id)
				r.counters()
			}
		}
		c.hand(i, to, packet)
	})
}

// A hundred thousand buckets change all the time, one in a hundred of them near its limit: each node sends less than a
// MiB a second, asks and answers included, and of those near their limit the others know everything at once.
func TestGossip_HundredThousandBuckets(t *testing.T) {
	t.Parallel()
	if raceEnabled || testing.Short() {
		t.Skip("some seconds; one goroutine, so nothing for the race detector")
	}
	const (
		buckets  = 100_000
		near     = buckets / 100
		seconds  = 4
		interval = 50
		most     = 1 << 20
	)
	c := newTellers("a", "b", "c")
	rng := rand.New(rand.NewPCG(4, 4))
	plenty, scarce := Rule{Limit: 1000, Window: 3600, Algorithm: SlidingWindow}, Rule{Limit: 60, Window: 3600, Algorithm: SlidingWindow}
	ids := make([]BucketID, buckets)
	isNear := map[BucketID]bool{}
	take := func(node, i int, cost int64) {
		charge := [1]Charge{{Bucket: ids[i], Rule: plenty, Cost: cost}}
		if i < near {
			charge[0].Rule = scarce
		}
		var verdicts [1]Verdict
		var out outbox
		w := &waiter{}
		if _, pending := c.ledgers[node].take(c.now, charge[:], verdicts[:], w, &out); pending {
			c.send(node, &out)
			c.ledgers[node].leave(w, charge[:])
			c.ledgers[node].take(c.now, charge[:], verdicts[:], nil, &outbox{})
		}
	}
	for i := range ids {
		rule := plenty
		if i < near {
			rule = scarce
		}
		ids[i] = bucketID(&[16]byte{1}, "p", rule, fmt.Append(nil, i))
		isNear[ids[i]] = i < near
		for node := range 3 {
			if i < near {
				take(node, i, 17) // of 20 here, 51 of 60 together
			} else if i%3 == node {
				take(node, i, 1)
			}
		}
	}
	live := 0
	for i := range c.ledgers[0].shards {
		live += c.ledgers[0].shards[i].live
	}
	if live < buckets/3 {
		t.Fatalf("only %d buckets live", live)
	}
	late, nearSoFar, others := 0, 0, 0
	c.order = func(id BucketID) {
		if !isNear[id] {
			others++
			return
		}
		nearSoFar++
		late += btoi(others > 0)
	}
	budget := DefaultGossipBytes * interval / 1000
	clear(c.sent)
	var greatest int
	for ms := range seconds * 1000 {
		c.now.ms++
		c.now.mono += 1e6
		for range 30 { // and of these one in thirty for a bucket near its limit
			i := near + rng.IntN(buckets-near)
			if rng.IntN(30) == 0 {
				i = rng.IntN(near)
			}
			take(rng.IntN(3), i, 1)
		}
		if ms%interval == interval-1 {
			others = 0
			for i := range c.ledgers {
				c.gossip(i, budget)
			}
		}
		if ms%1000 == 999 {
			for i, bytes := range c.sent {
				if greatest = max(greatest, bytes); bytes > most {
					t.Errorf("node %d sent %d bytes in second %d, want at most %d", i, bytes, ms/1000, most)
				}
			}
			clear(c.sent)
		}
	}
	if late > 0 {
		t.Errorf("%d entries of buckets near their limit came after others of the same interval", late)
	}
	// Otherwise it is not the cap that was tested.
	if greatest < DefaultGossipBytes*9/10 || nearSoFar < near/2 {
		t.Errorf("only %d bytes in a second, only %d entries of buckets near their limit", greatest, nearSoFar)
	}
	for i := range c.ledgers {
		c.gossip(i, budget)
	}
	compared := 0
	for i := range near {
		charge := Charge{Bucket: ids[i], Rule: scarce, Cost: 1}
		a, b := c.ledgers[0].peek(c.now, charge), c.ledgers[1].peek(c.now, charge)
		if a.Outcome != Admitted || b.Outcome != Admitted {
			continue // a refusal says 0, though others may have some left
		}
		if compared++; a.Remaining != b.Remaining {
			t.Fatalf("bucket %d near its limit: %d remain as one node knows, %d as another", i, a.Remaining, b.Remaining)
		}
	}
	if compared < near/4 {
		t.Errorf("only %d buckets near their limit were compared", compared)
	}
	t.Logf("at most %d bytes a second from a node", greatest)
}

// Nobody is told what nobody can need: what was spent in a window long over, or where there is nobody to tell.
func TestGossip_NothingNeedless(t *testing.T) {
	t.Parallel()
	rule := Rule{Limit: 30, Window: 60, Algorithm: SlidingWindow}
	spend := func(c *tellers, subjects int) {
		for i := range subjects {
			charges := []Charge{{Bucket: bucketID(&[16]byte{1}, "p", rule, []byte{byte(i)}), Rule: rule, Cost: 1}}
			if o, _ := c.ledgers[0].take(c.now, charges, make([]Verdict, 1), nil, &outbox{}); o != Admitted {
				t.Fatal(o)
			}
		}
	}
	for _, packed := range []bool{false, true} {
		c := newTellers("a", "b")
		if packed {
			c.ledgers[0].fullPerShard = 0
		}
		spend(c, 100)
		c.now.ms += 60_000
		c.gossip(0, 1000) // less than all
		if c.sent[0] == 0 {
			t.Error("nothing is said of what was spent in the window before")
		}
		c.now.ms += 60_000
		c.sent[0] = 0
		c.gossip(0, 1<<20)
		if c.sent[0] != 0 {
			t.Errorf("%d bytes of what was spent in a window long over", c.sent[0])
		}
		alone := newTellers("a")
		if packed {
			alone.ledgers[0].fullPerShard = 0
		}
		spend(alone, 100)
		alone.gossip(0, 1<<20)
		if alone.sent[0] != 0 {
			t.Error("a node that is alone sends news")
		}
		// Who joins is told; and what nobody was told is forgotten all the same.
		alone.ledgers = append(alone.ledgers, newTellers("a", "b").ledgers[1])
		alone.ledgers[0].setState(State{HorizonMillis: 1<<50 + 1, Rosters: []Roster{{Index: 1, Nodes: []string{"a"}}, {Index: 2, FromMillis: 1 << 50, Nodes: []string{"a", "b"}}}})
		alone.gossip(0, 1<<20)
		if alone.sent[0] == 0 {
			t.Error("a node that joins is told nothing")
		}
		spend(alone, 100)
		alone.now.ms += 600_000
		l := alone.ledgers[0]
		for i := range l.shards {
			sh := &l.shards[i]
			l.advance(sh, alone.now.ms)
			l.sweepShard(sh, 64)
			l.sweepShard(sh, 64)
			if sh.live > 0 {
				t.Fatalf("%d buckets are kept though nothing is left to remember", sh.live)
			}
		}
	}
}
