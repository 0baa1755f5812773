package limiter

import (
	"fmt"
	"testing"
)

// leaveSim is a cluster at rest with one bucket, in the middle of a window of an hour.
func leaveSim(nodes int, rule Rule) *sim {
	s := newSim(uint64(nodes), simOptions{nodes: nodes, slots: 64, delay: 1,
		buckets: []simBucket{{bucketID(&[16]byte{}, "p", rule, []byte("s")), rule}}})
	w := rule.Window * 1000
	s.horizonAt(s.now - s.now%w + 9*w)
	s.advance(w - s.now%w + w/2)
	return s
}

// replace lets a new node join, and node leave its shares to it or to another.
func (s *sim) replace(t *testing.T, node int, heir func(joined *simNode) *simNode) *simNode {
	t.Helper()
	joined := s.addNode()
	s.start(joined, startKeep)
	s.members = append(s.members, joined.index)
	s.commitRoster()
	s.tick(2)
	s.gossip()
	s.tick(2)
	n := s.nodes[node]
	s.depart(n)
	s.bequeath(n, heir(joined), false)
	s.commitLeave(n, 0)
	s.tick(2)
	if !n.left {
		t.Fatalf("%s did not leave", n.id)
	}
	n.up = false
	s.do(step{op: opRemove, node: node})
	s.tick(2)
	s.gossip()
	s.tick(4)
	return joined
}

// spend asks for n units, spread over the nodes that run, and says how many were admitted.
func (s *sim) spend(n int) int {
	before := s.admitted
	for i := range n {
		for try := range s.nodes {
			if m := s.nodes[(i+try)%len(s.nodes)]; m.up && !m.leaving {
				s.attempt(m, s.one(0))
				break
			}
		}
		s.tick(25)
	}
	return s.admitted - before
}

// Four of ten are spent, then all three nodes are replaced one after another: six more pass.
func TestHeir_ThreeReplacements(t *testing.T) {
	t.Parallel()
	for _, alg := range []Algorithm{FixedWindow, SlidingWindow} {
		for name, heir := range map[string]func(s *sim, joined *simNode) *simNode{
			"the new node": func(_ *sim, joined *simNode) *simNode { return joined },
			"the next of the old": func(s *sim, joined *simNode) *simNode {
				for _, n := range s.nodes[:3] {
					if !n.leaving {
						return n
					}
				}
				return joined
			},
		} {
			t.Run(fmt.Sprintf("%s/algorithm=%d", name, alg), func(t *testing.T) {
				t.Parallel()
				rule := Rule{Limit: 10, Window: 3600, Algorithm: alg}
				s := leaveSim(3, rule)
				if got := s.spend(4); got != 4 {
					t.Fatalf("%d admitted at first, want 4", got)
				}
				for i := range 3 {
					s.replace(t, i, func(joined *simNode) *simNode { return heir(s, joined) })
				}
				for _, n := range s.nodes[3:] {
					if v := n.led.peek(s.instant(n), s.one(0).charges[0]); v.Outcome == Admitted && v.Remaining != 6 {
						t.Errorf("%s names %d as what remains, want 6", n.id, v.Remaining)
					}
				}
				if got := s.spend(20); got != 6 {
					t.Errorf("%d more admitted, want 6", got)
				}
				// The next window has nobody's leavings: the new nodes share it.
				s.advance(3_600_000)
				if got := s.spend(20); alg == FixedWindow && got != 10 {
					t.Errorf("%d admitted in the next window, want 10", got)
				}
				if s.failure != "" {
					t.Error(s.failure)
				}
			})
		}
	}
}

// The leaver's clock is ahead, and it has spent in a window that its heir's mark does not reach yet: what the heir spends in
// the one before still counts there.
func TestHeir_LeaverAhead(t *testing.T) {
	t.Parallel()
	for _, unsafe := range []bool{false, true} {
		rule := Rule{Limit: 10, Window: 60, Algorithm: SlidingWindow}
		s := leaveSim(2, rule)
		s.advance(60_000 - s.now%60_000 - 10_000)
		leaver, heir := s.nodes[0], s.nodes[1]
		heir.led.unsafeHeirMark = unsafe
		leaver.offset = 12_000
		s.tick(1)
		for range 10 {
			s.attempt(leaver, s.one(0))
		}
		s.cut[[2]int{0, 1}], s.cut[[2]int{1, 0}] = true, true
		s.depart(leaver)
		s.bequeath(leaver, heir, false)
		s.commitLeave(leaver, 0)
		s.tick(1)
		for range 20 {
			s.attempt(heir, s.one(0))
		}
		if (s.failure != "") != unsafe {
			t.Errorf("safeguard off %t: %s, %d admitted", unsafe, s.failure, s.admitted)
		}
	}
}
