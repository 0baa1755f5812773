package limiter

import (
	"fmt"
	"testing"
)

// Large clusters: the limit holds, hardly anything of it is wasted, and what a node sends grows no faster than
// the number of nodes.
func TestLedger_Scale(t *testing.T) {
	t.Parallel()
	if raceEnabled || testing.Short() {
		t.Skip("one goroutine, so nothing for the race detector")
	}
	const limit, buckets = 100, 4
	perNode := map[int]float64{}
	for _, nodes := range []int{10, 50, 200} {
		for _, alg := range []Algorithm{FixedWindow, SlidingWindow, TokenBucket} {
			name := fmt.Sprintf("nodes=%d/algorithm=%d", nodes, alg)
			rule := Rule{Limit: limit, Window: 3600, Algorithm: alg}
			if alg == TokenBucket {
				rule.Burst = limit
			}
			opt := simOptions{nodes: nodes, slots: 16, delay: 2, skew: 20}
			for i := range buckets {
				opt.buckets = append(opt.buckets, simBucket{bucketID(&[16]byte{}, "p", rule, []byte{byte(i)}), rule})
			}
			s := newSim(uint64(nodes), opt)
			s.now = rule.Window * 1000 * 480_000
			s.horizonAt(s.now + 36_000_000)
			s.advance(100)
			s.bytes = 0
			const ms = 1000
			asked := 0
			for range ms {
				s.advance(1)
				for range 4 {
					n := s.nodes[s.rng.IntN(nodes)]
					n.done = nil
					s.attempt(n, s.one(s.rng.IntN(buckets)))
					asked++
				}
				for i, n := range s.nodes { // each node's own interval of 50 ms
					if (s.now+int64(i))%50 == 0 {
						s.news(n)
					}
				}
				if s.failure != "" {
					t.Fatalf("%s: %s", name, s.failure)
				}
			}
			if used := s.admitted; used > limit*buckets || used*100 < limit*buckets*95 {
				t.Errorf("%s: %d of %d used by %d requests", name, used, limit*buckets, asked)
			}
			bytes := float64(s.bytes) / float64(nodes) * 1000 / ms
			t.Logf("%s: %d of %d used, %.0f bytes a second from each node", name, s.admitted, limit*buckets, bytes)
			perNode[nodes] = max(perNode[nodes], bytes)
		}
	}
	for _, c := range [][2]int{{10, 50}, {50, 200}} {
		if grown, most := perNode[c[1]]/perNode[c[0]], float64(c[1])/float64(c[0]); grown > most {
			t.Errorf("from %d to %d nodes each sends %.1f times the bytes, want at most %.1f", c[0], c[1], grown, most)
		}
	}
}
