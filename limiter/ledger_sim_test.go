package limiter

import (
	"flag"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

var (
	simSeed      = flag.Uint64("seed", 0, "run this one schedule of the simulator; with -v, print it")
	simFirst     = flag.Uint64("first", 1, "the first seed of the simulator's schedules")
	simSchedules = flag.Int("schedules", 4000, "number of schedules for the simulator")
)

// simTotals is what schedules did, all together.
type simTotals struct {
	admitted atomic.Int64
	packed   [2]atomic.Int64
	counts   atomic.Int64
}

// runSchedules runs count schedules and returns the failing one with the least seed among those that ran, nil for none.
func runSchedules(count int, plan func(seed uint64) *schedule, unsafely func(*simOptions)) (failed *schedule, failure string, total *simTotals) {
	var next atomic.Int64
	total = &simTotals{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				seed := uint64(next.Add(1))
				mu.Lock()
				stop := failed != nil
				mu.Unlock()
				if stop || seed > uint64(count) {
					return
				}
				p := plan(seed + *simFirst - 1)
				if unsafely != nil {
					unsafely(&p.opt)
					p.opt.calm, p.opt.ending = false, false // what is looked for is I1
				}
				s := p.run(false)
				total.admitted.Add(int64(s.admitted))
				total.counts.Add(int64(s.counts))
				for i := range s.packed {
					total.packed[i].Add(int64(s.packed[i]))
				}
				if s.failure != "" {
					mu.Lock()
					if failed == nil || p.seed < failed.seed {
						failed, failure = p, s.failure
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return failed, failure, total
}

func TestLedger_NeverOver(t *testing.T) {
	t.Parallel()
	count := *simSchedules
	if raceEnabled {
		count /= 20
	}
	var p *schedule
	var failure string
	var total *simTotals
	if *simSeed != 0 {
		p = randomSchedule(*simSeed)
		s := p.run(testing.Verbose())
		t.Logf("%+v\n%s", s.opt, strings.Join(s.trace, "\n"))
		if failure = s.failure; failure == "" {
			return
		}
	} else {
		p, failure, total = runSchedules(count, randomSchedule, nil)
	}
	if p != nil {
		seed, steps := p.seed, len(p.steps)
		p, failure = shrink(p, failure, 3000)
		t.Fatalf("schedule %d, shrunk from %d steps: %s\nagain: go test ./limiter -run NeverOver -seed=%d", seed, steps, p.report(failure), seed)
	}
	admitted, packed, packedTokens := total.admitted.Load(), total.packed[0].Load(), total.packed[1].Load()
	t.Logf("%d schedules, %d admissions; %d times windows were unpacked, %d times tokens; %d audits of tokens of two nodes and more",
		count, admitted, packed, packedTokens, total.counts.Load())
	if packed < int64(count) || packedTokens < int64(count) {
		t.Errorf("windows were packed only %d times, token buckets %d times", packed, packedTokens)
	}
	if total.counts.Load() < int64(count)/10 {
		t.Errorf("only %d audits of tokens of two nodes and more", total.counts.Load())
	}
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
	off := func(unsafely func(*ledger)) func(*simOptions) {
		return func(o *simOptions) { o.unsafely = unsafely }
	}
	for name, change := range map[string]func(*simOptions){
		"signed charge":               off(func(l *ledger) { l.unsafeSigned = true }),
		"growth not charged":          off(func(l *ledger) { l.unsafeNoGrowth = true }),
		"one window only":             off(func(l *ledger) { l.unsafeOneWindow = true }),
		"windows before the start":    off(func(l *ledger) { l.unsafeForget = true }),
		"cells of any incarnation":    off(func(l *ledger) { l.unsafeAnyInc = true }),
		"cells added up":              off(func(l *ledger) { l.unsafeSum = true }),
		"answer before the debit":     off(func(l *ledger) { l.unsafeLateDebit = true }),
		"newest roster, no horizon":   off(func(l *ledger) { l.unsafeNewest = true }),
		"charge of what was used":     off(func(l *ledger) { l.unsafeUsedCharge = true }),
		"no record of what was spent": off(func(l *ledger) { l.unsafeNoRecord = true }),
		"overflow not taken over":     off(func(l *ledger) { l.unsafeNoAdopt = true }),
		"handed back, not charged":    off(func(l *ledger) { l.unsafeHandBack = true }),
		"handed back to a cell":       off(func(l *ledger) { l.unsafeCellBack = true }),
		"packed without its gifts":    off(func(l *ledger) { l.unsafePacked = true }),
		"more than a list covers":     off(func(l *ledger) { l.unsafeUncovered = true }),
		"a leaver that goes on":       off(func(l *ledger) { l.unsafeStays = true }),
		"heir without counters":       off(func(l *ledger) { l.unsafeHeirLost = true }),
		"mark of the leaver":          off(func(l *ledger) { l.unsafeHeirMark = true }),
		"records of another boot":     func(o *simOptions) { o.anyBoot = true },
		"mark not ahead of its use":   func(o *simOptions) { o.lateMark = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wantMissed(t, randomSchedule, change)
		})
	}
	for name, change := range map[string]func(*simOptions){
		"tokens full at every start": off(func(l *ledger) { l.unsafeStartFull = true }),
		"no lease waited for":        off(func(l *ledger) { l.heldUntil = 0 }),
		"lent tokens taken back":     off(func(l *ledger) { l.unsafeTakeBack = true }),
		"borrowed tokens lent on":    off(func(l *ledger) { l.unsafeLendOn = true }),
		"leases taken twice":         off(func(l *ledger) { l.unsafeTwice = true }),
		"leases without an end":      off(func(l *ledger) { l.unsafeNoClip = true }),
		"token rosters at once":      off(func(l *ledger) { l.unsafeNoPause = true }),
		"refunds beyond the room":    off(func(l *ledger) { l.unsafeRefund = true }),
		"packed without its loans":   off(func(l *ledger) { l.unsafePacked = true }),
		"clocks that stop in pauses": func(o *simOptions) { o.dozing = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wantMissed(t, sceneSchedule, change)
		})
	}
}

func wantMissed(t *testing.T, plan func(uint64) *schedule, change func(*simOptions)) {
	t.Helper()
	p, failure, _ := runSchedules(30_000, plan, change)
	if p == nil || kind(failure) != "I1" {
		t.Fatalf("no schedule misses it: %s", failure)
	}
	t.Logf("schedule %d: %s", p.seed, failure)
}

// clusterSizes are the numbers of nodes on which the use of limits is tried. The race detector, under which the larger ones take
// minutes, has nothing to find in a simulator of one goroutine.
func clusterSizes() []int {
	if raceEnabled {
		return []int{2, 3}
	}
	return []int{2, 3, 5, 10, 20}
}

// On a connected cluster a client that asks for more than the limit gets all of it, or 99 of 100, however its requests
// are spread over the nodes.
func TestLedger_NothingWasted(t *testing.T) {
	t.Parallel()
	for name, pick := range loadPatterns {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, nodes := range clusterSizes() {
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
	s.now = rule.Window * 1000 * 480_000
	s.horizonAt(s.now + 3_600_000)
	end := s.now + 1500
	for i := 0; s.now < end; {
		s.advance(1)
		for range max(limit/200, 2) {
			n := s.nodes[pick(s, i)]
			i++
			before := len(n.waiting)
			s.attempt(n, s.one(0))
			waits += len(n.waiting) - before
		}
		if s.now%50 == 0 {
			s.gossip()
		}
	}
	return int64(s.admitted), waits
}

// Under an attack that goes on for longer than a window, what slides out is used in full, though it slides out in
// parts of units on each node, and hardly a refusal waits.
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
				s.now = 60_000*29_000_000 + 50_000
				s.horizonAt(s.now + 36_000_000)
				second := 0
				for end := s.now + 80_000; s.now < end && s.failure == ""; {
					// What the first window admits falls due in the second, which begins after 10 s and ends after 70 s.
					if s.now%60_000 < 1000 && s.now < end-60_000 {
						second = s.admitted
					}
					s.storm(6)
				}
				if s.failure != "" {
					t.Fatal(s.failure)
				}
				if got := int64(s.admitted - second); got < limit-1-limit/100 {
					t.Errorf("%d admitted in the second window, want %d", got, limit-1)
				}
				if s.refusedLate*1000 > s.refused {
					t.Errorf("%d of %d refusals waited", s.refusedLate, s.refused)
				}
				t.Logf("%d of %d refusals waited", s.refusedLate, s.refused)
			})
		}
	}
}

// storm does what a millisecond brings: packets, news every 50 ms, and requests at random nodes.
func (s *sim) storm(requests int) {
	s.advance(1)
	for range requests {
		n := s.nodes[s.rng.IntN(len(s.nodes))]
		n.done = nil
		s.attempt(n, s.one(0))
	}
	if s.now%50 == 0 {
		s.gossip()
	}
}

func (s *sim) gossip() {
	for _, n := range s.nodes {
		s.news(n)
	}
}
