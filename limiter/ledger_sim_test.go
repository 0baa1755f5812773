package limiter

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

var (
	simSeed      = flag.Uint64("limiter.seed", 0, "run this one schedule of the simulator and print it")
	simFirst     = flag.Uint64("limiter.first", 1, "the first seed of the simulator's schedules")
	simSchedules = flag.Int("limiter.schedules", 4000, "number of schedules for the simulator")
)

// runSchedules runs count seeds and returns the first that fails, 0 for none.
func runSchedules(count int, opts func(seed uint64) simOptions) (failed uint64, failure string, admitted int64) {
	var next, total atomic.Int64
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				seed := uint64(next.Add(1))
				mu.Lock()
				stop := failed != 0
				mu.Unlock()
				if stop || seed > uint64(count) {
					return
				}
				seed += *simFirst - 1
				s := newSim(seed, opts(seed))
				s.run()
				total.Add(int64(s.admitted))
				if s.failure != "" {
					mu.Lock()
					if failed == 0 || seed < failed {
						failed, failure = seed, s.failure
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return failed, failure, total.Load()
}

func TestLedger_NeverOver(t *testing.T) {
	t.Parallel()
	if *simSeed != 0 {
		s := newSim(*simSeed, randomOptions(*simSeed))
		s.tracing = true
		s.run()
		t.Logf("%+v\n%s", s.opt, strings.Join(s.trace, "\n"))
		if s.failure != "" {
			t.Fatal(s.failure)
		}
		return
	}
	count := *simSchedules
	if raceEnabled {
		count /= 20
	}
	seed, failure, admitted := runSchedules(count, randomOptions)
	if seed != 0 {
		t.Fatalf("schedule %d: %s\nagain: %s -test.run NeverOver -limiter.seed %d -test.v", seed, failure, os.Args[0], seed)
	}
	t.Logf("%d schedules, %d admissions", count, admitted)
	if admitted < int64(count)*10 {
		t.Fatalf("only %d admissions in %d schedules: the simulator tests nothing", admitted, count)
	}
}

// Each safeguard is missed when it is switched off: the simulator can see what it looks for.
func TestLedger_SafeguardsMatter(t *testing.T) {
	t.Parallel()
	if raceEnabled || testing.Short() {
		t.Skip("tests the simulator, not the ledger; slow with the race detector")
	}
	for name, off := range map[string]func(*ledger){
		"signed charge":               func(l *ledger) { l.unsafeSigned = true },
		"growth not charged":          func(l *ledger) { l.unsafeNoGrowth = true },
		"one window only":             func(l *ledger) { l.unsafeOneWindow = true },
		"windows before the start":    func(l *ledger) { l.unsafeForget = true },
		"cells of any incarnation":    func(l *ledger) { l.unsafeAnyInc = true },
		"answer before the debit":     func(l *ledger) { l.unsafeLateDebit = true },
		"newest roster, no horizon":   func(l *ledger) { l.unsafeNewest = true },
		"charge of what was used":     func(l *ledger) { l.unsafeUsedCharge = true },
		"no record of what was spent": func(l *ledger) { l.unsafeNoRecord = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seed, failure, _ := runSchedules(30_000, func(seed uint64) simOptions {
				o := randomOptions(seed)
				o.unsafely = off
				return o
			})
			if seed == 0 {
				t.Fatal("no schedule misses it")
			}
			t.Logf("schedule %d: %s", seed, failure)
		})
	}
}

// On a connected cluster a client that asks for more than the limit gets all of it, or 99 of 100, however its requests
// are spread over the nodes.
func TestLedger_NothingWasted(t *testing.T) {
	t.Parallel()
	patterns := map[string]func(s *sim, i int) int{
		"one node":    func(*sim, int) int { return 0 },
		"round robin": func(s *sim, i int) int { return i % len(s.nodes) },
		"random":      func(s *sim, _ int) int { return s.rng.IntN(len(s.nodes)) },
		"two nodes":   func(s *sim, i int) int { return i % 2 },
		"attacker":    func(s *sim, _ int) int { return (s.refused + 1) % len(s.nodes) },
		"in turn":     func(s *sim, i int) int { return i / 40 % len(s.nodes) },
	}
	for name, pick := range patterns {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, nodes := range []int{2, 3, 5, 10, 20} {
				for _, limit := range []int64{1, 3, 10, 100, 1000} {
					for _, alg := range []Algorithm{FixedWindow, SlidingWindow} {
						used, waits := pour(nodes, limit, alg, pick)
						if used > limit || used*100 < limit*99 || limit <= 10 && used != limit {
							t.Errorf("%d nodes, algorithm %d: %d of %d used", nodes, alg, used, limit)
						}
						if testing.Verbose() {
							t.Logf("%d nodes, algorithm %d: %d of %d used, %d requests waited", nodes, alg, used, limit, waits)
						}
					}
				}
			}
		})
	}
}

// pour sends requests for a second or more of simulated time, far from a window's edge.
func pour(nodes int, limit int64, alg Algorithm, pick func(s *sim, i int) int) (used int64, waits int) {
	rule := Rule{Limit: limit, Window: 3600, Algorithm: alg}
	s := newSim(uint64(nodes)*uint64(limit), simOptions{
		nodes: nodes, slots: 64, delay: 1, buckets: []simBucket{{bucketID(&[16]byte{}, "p", rule, []byte("s")), rule}},
	})
	s.now = rule.Window * 1000 * 400_000
	s.horizon = s.now + 3_600_000
	s.log = append(s.log, simEntry{horizon: s.horizon})
	for _, n := range s.nodes {
		n.applied = len(s.log)
		s.inform(n)
	}
	end := s.now + 1500
	for i := 0; s.now < end; {
		s.now++
		for _, n := range s.nodes {
			s.raise(n)
		}
		s.deliver()
		for _, n := range s.nodes {
			s.retry(n)
		}
		for range max(limit/200, 2) {
			n := s.nodes[pick(s, i)]
			i++
			c := []Charge{{Bucket: s.opt.buckets[0].id, Rule: rule, Cost: 1}}
			before := len(n.waiting)
			s.attempt(n, &simRequest{charges: c, verdicts: make([]Verdict, 1), w: &waiter{}, since: s.now})
			waits += len(n.waiting) - before
		}
		if s.now%50 == 0 {
			s.gossip()
		}
	}
	return int64(s.admitted), waits
}

// Under an attack that goes on for longer than a window, what slides out is used in full, though it slides out in
// parts of units on each node, and hardly a request waits.
func TestLedger_SlidingSteadyState(t *testing.T) {
	t.Parallel()
	if raceEnabled || testing.Short() {
		t.Skip("half a million requests; one goroutine, so nothing for the race detector")
	}
	for _, limit := range []int64{3, 10, 100} {
		for _, skew := range []int64{0, 100} {
			t.Run(fmt.Sprintf("limit=%d/skew=%d", limit, skew), func(t *testing.T) {
				t.Parallel()
				rule := Rule{Limit: limit, Window: 60, Algorithm: SlidingWindow}
				s := newSim(7, simOptions{nodes: 3, slots: 64, delay: 1, skew: skew,
					buckets: []simBucket{{bucketID(&[16]byte{}, "p", rule, []byte("s")), rule}}})
				s.now = 60_000*28_000_000 + 50_000
				s.log = append(s.log, simEntry{horizon: s.now + 36_000_000})
				for _, n := range s.nodes {
					n.applied = len(s.log)
					s.inform(n)
				}
				waits, requests, second := 0, 0, 0
				for end := s.now + 80_000; s.now < end && s.failure == ""; {
					// What the first window admits falls due in the second, which begins after 10 s and ends after 70 s.
					if s.now++; s.now%60_000 < 1000 && s.now < end-60_000 {
						second = s.admitted
					}
					w, r := s.tick(6)
					waits, requests = waits+w, requests+r
				}
				if s.failure != "" {
					t.Fatal(s.failure)
				}
				if got := int64(s.admitted - second); got < limit-1-limit/100 {
					t.Errorf("%d admitted in the second window, want %d", got, limit-1)
				}
				if waits*1000 > requests {
					t.Errorf("%d of %d requests waited", waits, requests)
				}
			})
		}
	}
}

// tick does what a millisecond brings: packets, news every 50 ms, and requests at random nodes.
func (s *sim) tick(requests int) (waits, made int) {
	for _, n := range s.nodes {
		s.raise(n)
	}
	s.deliver()
	for _, n := range s.nodes {
		s.retry(n)
	}
	b := s.opt.buckets[0]
	for range requests {
		n := s.nodes[s.rng.IntN(len(s.nodes))]
		n.done = nil
		before := len(n.waiting)
		s.attempt(n, &simRequest{charges: []Charge{{Bucket: b.id, Rule: b.rule, Cost: 1}}, verdicts: make([]Verdict, 1), w: &waiter{}, since: s.now})
		waits += len(n.waiting) - before
	}
	if s.now%50 == 0 {
		s.gossip()
	}
	return waits, requests
}

func (s *sim) gossip() {
	for _, n := range s.nodes {
		n.led.news(s.instant(n), 1<<20, func(p []byte) {
			for _, peer := range n.led.audience() {
				s.put(n, n.led.peers.at(peer).id, p)
			}
		})
	}
}
