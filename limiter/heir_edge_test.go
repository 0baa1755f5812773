package limiter

import "testing"

// A node that came in the midst of a window has no share of it. What it borrowed there and did not spend, its heir has when it leaves.
func TestHeir_OfAGuest(t *testing.T) {
	t.Parallel()
	for _, alg := range []Algorithm{FixedWindow, SlidingWindow} {
		s := leaveSim(1, Rule{Limit: 20, Window: 3600, Algorithm: alg})
		if got := s.spend(1); got != 1 {
			t.Fatal("the first is refused")
		}
		guest := s.addNode()
		s.start(guest, startKeep)
		s.members = append(s.members, guest.index)
		s.commitRoster()
		s.tick(2)
		s.gossip()
		s.tick(2)
		s.attempt(guest, s.one(0))
		s.tick(25)
		if s.admitted != 2 {
			t.Fatalf("%d admitted, want one on each node", s.admitted)
		}
		if v := guest.led.peek(s.instant(guest), s.one(0).charges[0]); v.Remaining != 18 {
			t.Errorf("the guest names %d as what remains, want 18", v.Remaining)
		}
		s.depart(guest)
		s.bequeath(guest, s.nodes[0], false)
		s.commitLeave(guest, 0)
		s.tick(2)
		guest.up = false
		s.do(step{op: opRemove, node: guest.index})
		s.tick(2)
		s.gossip()
		s.tick(4)
		if got := s.spend(40); got != 18 || s.failure != "" {
			t.Errorf("algorithm %d: %d more admitted, want 18; %s", alg, got, s.failure)
		}
	}
}

// All nodes are replaced within one sliding window. One of the new ones has inherited all of it and lent it to the others. In the
// next window, where the three have equal shares, what was not used is there at once, and what slides out as it does.
func TestHeir_OfAllInTheNextWindow(t *testing.T) {
	t.Parallel()
	const window = 3_600_000
	rule := Rule{Limit: 12, Window: window / 1000, Algorithm: SlidingWindow}
	for _, c := range [][2]int{{5, 3}, {5, 4}, {5, 5}, {12, 3}, {12, 5}} {
		used, asking := c[0], c[1]
		s := newSim(1, simOptions{nodes: 3, slots: 64, delay: 1, buckets: []simBucket{{bucketID(&[16]byte{}, "p", rule, []byte("s")), rule}}})
		s.advance(window - s.now%window + window/2)
		s.horizonAt(s.now + 60_000)
		for i := range 3 {
			s.replace(t, i, func(*simNode) *simNode { return s.nodes[3] })
		}
		for i := range used {
			s.attempt(s.nodes[4+i%2], s.one(0))
			s.tick(25)
			s.gossip()
		}
		if s.admitted != used {
			t.Fatalf("%d admitted, want %d", s.admitted, used)
		}
		s.horizonAt(s.now + 2*window)
		s.advance(window - s.now%window + 1000)
		spend := func() (admitted int) {
			before := s.admitted
			for range 30 { // on one node, which has to know who else has something
				s.attempt(s.nodes[asking], s.one(0))
				s.tick(25)
				s.gossip()
			}
			return s.admitted - before
		}
		if got, want := spend(), int(rule.Limit)-used; got != want {
			t.Errorf("node %d, %d used: %d more admitted as the next window begins, want %d", asking, used, got, want)
		}
		s.advance(window / 2)
		if got, want := spend(), used/2; got != want {
			t.Errorf("node %d, %d used: %d admitted when half of it is out, want %d", asking, used, got, want)
		}
		if s.failure != "" {
			t.Error(s.failure)
		}
	}
}
