package limiter

import (
	"fmt"
	"testing"
)

// A node that is cut off from the log while the others go on without it: with Strict it decides nothing in windows beyond its
// horizon, and the limit holds; with Available the excess is at most its base share under the roster that it knows.
func TestLedger_Isolation(t *testing.T) {
	t.Parallel()
	for _, available := range []bool{false, true} {
		for _, alg := range []Algorithm{FixedWindow, SlidingWindow} {
			for _, limit := range []int64{1, 2, 10, 100, 1000} {
				t.Run(fmt.Sprintf("available=%v/algorithm=%d/limit=%d", available, alg, limit), func(t *testing.T) {
					t.Parallel()
					checkIsolation(t, available, Rule{Limit: limit, Window: 60, Algorithm: alg})
				})
			}
		}
	}
}

func checkIsolation(t *testing.T, available bool, rule Rule) {
	s := newSim(uint64(rule.Limit), simOptions{nodes: 3, slots: 64, delay: 1,
		buckets:  []simBucket{{bucketID(&[16]byte{}, "p", rule, []byte("s")), rule}},
		unsafely: func(l *ledger) { l.available = available },
	})
	alone := s.nodes[2]
	r := alone.led.view.Load().governing(s.now)
	share := r.share(s.buckets[0].id.low(), r.self, rule.Limit)
	for other := range 2 {
		s.cut[[2]int{2, other}], s.cut[[2]int{other, 2}] = true, true
	}
	alone.late = true
	s.leader = 0
	s.members = []int{0, 1}
	s.commitRoster()
	spent := func(n int64) int64 { return s.at(simKey{n: n}).used }
	for window := range 3 {
		n := s.now/60_000 + 3
		s.horizonAt(n*60_000 + 1)
		s.advance(n*60_000 - s.now)
		others := s.admitted
		for i := range 300 {
			for range 1 + rule.Limit/100 {
				s.attempt(s.nodes[i%2], s.one(0))
			}
			s.advance(1)
		}
		others = s.admitted - others
		undecided := s.undecided
		for range 2 * rule.Limit {
			s.attempt(alone, s.one(0))
		}
		s.tick(30)
		if int64(others) != rule.Limit {
			t.Errorf("window %d: the two that hear each other admit %d, want %d", window, others, rule.Limit)
		}
		switch over := spent(n) - rule.Limit; {
		case !available && (over > 0 || s.undecided == undecided):
			t.Errorf("window %d: %d over the limit, %d undecided on the node cut off", window, over, s.undecided-undecided)
		case available && over != share:
			t.Errorf("window %d: %d over the limit, want %d, the share of the node cut off", window, over, share)
		}
	}
	if !available && s.failure != "" {
		t.Error(s.failure)
	}
}
