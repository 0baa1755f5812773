package limiter

import (
	"fmt"
	"testing"
)

// loadPatterns are how a client's requests are spread over the nodes.
var loadPatterns = map[string]func(s *sim, i int) int{
	"one node":    func(*sim, int) int { return 0 },
	"round robin": func(s *sim, i int) int { return i % len(s.nodes) },
	"random":      func(s *sim, _ int) int { return s.rng.IntN(len(s.nodes)) },
	"two nodes":   func(s *sim, i int) int { return i % 2 },
	"attacker":    func(s *sim, _ int) int { return (s.refused + 1) % len(s.nodes) },
	"in turn":     func(s *sim, i int) int { return i / 40 % len(s.nodes) },
}

// pourTokens asks a token bucket of a resting cluster for more than it has for some seconds, and gives what passed and what
// burst + rate · t is.
func pourTokens(nodes int, rule Rule, ms int64, pick func(s *sim, i int) int) (s *sim, used, due int64) {
	s = newSim(uint64(nodes)*uint64(rule.Limit), simOptions{
		nodes: nodes, slots: 16, delay: 1, buckets: []simBucket{{bucketID(&[16]byte{}, "p", rule, []byte("s")), rule}},
	})
	s.horizonAt(s.now + 3_600_000)
	s.advance(100)
	begin := s.now
	for i := 0; s.now < begin+ms; {
		s.advance(1)
		for range 4 + 2*rule.Limit/(rule.Window*1000) {
			n := s.nodes[pick(s, i)]
			n.done = nil
			s.attempt(n, s.one(0))
			i++
		}
		if s.now%50 == 0 {
			s.gossip()
		}
	}
	return s, int64(s.admitted), rule.Burst + rule.Limit*(s.now-begin)/(rule.Window*1000)
}

// On a connected cluster a client that asks for more gets burst + rate · t, or 99 of 100 of it, however its requests are
// spread over the nodes.
func TestTokens_NothingWasted(t *testing.T) {
	t.Parallel()
	for name, pick := range loadPatterns {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, nodes := range clusterSizes() {
				for _, rule := range []Rule{
					{Limit: 10, Window: 1, Burst: 20}, {Limit: 10, Window: 1, Burst: 10}, {Limit: 100, Window: 1, Burst: 100},
					{Limit: 1000, Window: 1, Burst: 500}, {Limit: 100, Window: 60, Burst: 10}, {Limit: 3, Window: 1, Burst: 3},
					{Limit: 1000, Window: 60, Burst: 1000}, {Limit: 10, Window: 3600, Burst: 10},
				} {
					rule.Algorithm = TokenBucket
					s, used, due := pourTokens(nodes, rule, 3000, pick)
					if s.failure != "" {
						t.Error(s.failure)
					}
					// Two may be in pieces that are on their way. Where a node holds less than half a token of the burst, its part
					// is full again before the pieces were put together.
					least := (due - 2) * 99 / 100
					if rule.Burst < int64(nodes)/2 {
						least = due * 2 / 3
					}
					if used > due || used < least {
						t.Errorf("%d nodes, %+v: %d of %d used", nodes, rule, used, due)
					}
					t.Logf("%d nodes, %s: %d of %d used, %d of %d refusals waited, %d bytes", nodes,
						fmt.Sprintf("%d/%d s + %d", rule.Limit, rule.Window, rule.Burst), used, due, s.refusedLate, s.refused, s.bytes)
				}
			}
		})
	}
}

// Under an attack that goes on, hardly a refusal waits for a message: of the nodes that could each gather a token, one does.
func TestTokens_RefusalsHardlyWait(t *testing.T) {
	t.Parallel()
	if raceEnabled || testing.Short() {
		t.Skip("some million requests; one goroutine, so nothing for the race detector")
	}
	for name, pick := range loadPatterns {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for nodes, parts := range map[int]int{3: 1000, 20: 200} {
				for _, rule := range []Rule{{Limit: 10, Window: 1, Burst: 10}, {Limit: 3, Window: 1, Burst: 3}} {
					rule.Algorithm = TokenBucket
					s, used, due := pourTokens(nodes, rule, 10_000, pick)
					if s.failure != "" {
						t.Error(s.failure)
					}
					if s.refusedLate*parts > s.refused || used < due-3 {
						t.Errorf("%d nodes, %+v: %d of %d refusals waited, want 1 of %d at most; %d of %d used", nodes, rule, s.refusedLate, s.refused, parts, used, due)
					}
				}
			}
		})
	}
}
