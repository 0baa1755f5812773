package limiter

import (
	"math/rand/v2"
	"testing"
)

// tellAgain lets every node say of all its token buckets what it counts, once the others' clocks are known.
func (s *sim) tellAgain() {
	for range 3 {
		for _, n := range s.nodes {
			if !n.up {
				continue
			}
			for i := range s.buckets {
				sh := &n.led.shards[shardOf(&s.buckets[i].id)]
				if b := sh.get(&s.buckets[i].id); b != nil {
					sh.touchCold(b)
				}
			}
		}
		s.gossip()
		s.tick(3)
	}
}

// The auditor sees too much admitted of a token bucket where a safeguard is switched off. (That it sees nothing where all are on,
// every schedule of the simulator holds.)
func TestAudit_FindsTokenOverAdmission(t *testing.T) {
	t.Parallel()
	if raceEnabled || testing.Short() {
		t.Skip("one goroutine for each; slow with the race detector")
	}
	for name, unsafely := range map[string]func(*ledger){
		"lent tokens taken back":   func(l *ledger) { l.unsafeTakeBack = true },
		"leases taken twice":       func(l *ledger) { l.unsafeTwice = true },
		"leases without an end":    func(l *ledger) { l.unsafeNoClip = true },
		"token rosters at once":    func(l *ledger) { l.unsafeNoPause = true },
		"packed without its loans": func(l *ledger) { l.unsafePacked = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			violations := 0
			for seed := uint64(1); seed <= 20_000; seed++ {
				p := sceneSchedule(seed)
				p.opt.unsafely = unsafely
				s := p.run(false)
				if kind(s.failure) != "I1" {
					continue
				}
				violations++
				s.calmNet()
				s.tellAgain()
				for _, n := range s.nodes {
					if n.up {
						if over := s.audit(n); over > 0 {
							t.Logf("schedule %d: %d grains over; %d violations in all were looked at", seed, over, violations)
							return
						}
					}
				}
			}
			t.Fatalf("none of %d violations found", violations)
		})
	}
}

// tokenSim is a cluster at rest with one token bucket, whose nodes know each other's clocks.
func tokenSim(t *testing.T, nodes int, rule Rule) *sim {
	t.Helper()
	s := newSim(13, simOptions{nodes: nodes, slots: 8, delay: 1, buckets: []simBucket{{bucketID(&[16]byte{}, "p", rule, []byte("s")), rule}}})
	s.horizonAt(s.now + 3_600_000)
	s.tick(1)
	for _, n := range s.nodes {
		s.attempt(n, s.one(0))
	}
	s.tellAgain()
	s.advance(60_000) // full again
	for _, n := range s.nodes {
		for p := range uint16(nodes) {
			if peer := n.led.peers.at(p); peer.id != n.id && peer.bound.Load() == nil {
				t.Fatalf("%s does not know the clock of %s", n.id, peer.id)
			}
		}
	}
	return s
}

func (s *sim) tokensOf(n *simNode) *tokens {
	id := &s.buckets[0].id
	return n.led.shards[shardOf(id)].get(id).tok
}

// What all nodes admit is summed up on each of them, and held against burst + rate · t exactly.
func TestAudit_SumsUpTokens(t *testing.T) {
	t.Parallel()
	rule := Rule{Limit: 60, Window: 60, Algorithm: TokenBucket, Burst: 30}
	for extra, want := range map[int64]bool{0: false, 3: true} {
		s := tokenSim(t, 3, rule)
		for range 40 {
			for _, n := range s.nodes {
				n.done = nil
				s.attempt(n, s.one(0))
			}
			s.tick(1)
		}
		// One admits more than it has.
		for range extra {
			tk := s.tokensOf(s.nodes[0])
			tk.count(1, span(rule.Window*1000).nanos())
		}
		s.tellAgain()
		for _, n := range s.nodes {
			b := n.led.shards[shardOf(&s.buckets[0].id)].get(&s.buckets[0].id)
			if counting(b) != 3 {
				t.Fatalf("%s knows of %d nodes that count", n.id, counting(b))
			}
			if s.admitted < 30 {
				t.Fatalf("only %d admitted", s.admitted)
			}
			over := s.audit(n)
			if s.failure != "" && !want {
				t.Fatal(s.failure)
			}
			if s.failure = ""; (over > 0) != want || over > uint64(extra*grains) {
				t.Errorf("%d too many: %s finds %d grains over", extra, n.id, over)
			}
			if again := s.audit(n); again != over {
				t.Errorf("found again: %d grains over after %d", again, over)
			}
			s.failure = ""
		}
	}
}

// Tokens that a refund freed carry the mark along, to who borrows them, and back to who lent them.
func TestAudit_RefundedTokensAreMarked(t *testing.T) {
	t.Parallel()
	rule := Rule{Limit: 1, Window: 60, Algorithm: TokenBucket, Burst: 10}
	s := tokenSim(t, 2, rule)
	s.advance(600_000)
	a, b := s.nodes[0], s.nodes[1]
	take := func(n *simNode, units int64) {
		t.Helper()
		before := s.admitted
		s.attempt(n, s.newRequest([]int{0}, func(int64) int64 { return units }, false))
		s.tick(10)
		if s.admitted != before+1 {
			t.Fatalf("%d units at %s do not pass", units, n.id)
		}
	}
	a.done = nil
	take(a, 5)
	if tk := s.tokensOf(a); tk.counted != 5 || tk.blurred() {
		t.Fatalf("%d counted of 5 spent", tk.counted)
	}
	s.refund(a)
	if !s.tokensOf(a).blurred() {
		t.Fatal("a refund leaves no mark")
	}
	take(b, 7) // two of them are refunded ones
	if !s.tokensOf(b).blurred() {
		t.Error("who borrows refunded tokens is not marked")
	}
	s = tokenSim(t, 2, rule)
	s.advance(600_000)
	a, b = s.nodes[0], s.nodes[1]
	b.done = nil
	take(b, 2)
	s.refund(b)
	var out outbox
	id := s.buckets[0].id
	h := header{typeLeaseAsk, nodeHash(b.id), b.inc, 1 << 30, s.now}
	a.led.receive(s.instant(a), b.id, appendLeaseAsk(nil, h, &leaseAsk{receiver: nodeHash(a.id), tokenName: tokenName{id, rule}, ask: 1 << 30, want: 1000}), &out)
	h = header{typeLeaseOver, nodeHash(b.id), b.inc, 1<<30 + 1, s.now}
	a.led.receive(s.instant(a), b.id, appendLeaseOver(nil, h, &leaseOver{receiver: nodeHash(a.id), tokenName: tokenName{id, rule}, ask: 1 << 30, back: 1000, flags: flagBlurred}), &out)
	if !s.tokensOf(a).blurred() {
		t.Error("who gets back what another had refunded is not marked")
	}
}

// What is known of another clock never puts a reading of it later than it was, however late answers come, and is given up
// with the incarnation.
func TestClockBound_NeverLate(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(9, 9))
	for range 200 {
		var p peer
		offset := rng.Int64N(1e15) - 5e14 // of their clock
		drift := rng.Int64N(2*int64(1e6)/driftPart) - int64(1e6)/driftPart
		theirs := func(mine int64) int64 { return mine + mine/1e6*drift + offset }
		now := int64(0)
		for range 50 {
			asked := now
			answered := asked + rng.Int64N(int64(1e9))
			now = answered + rng.Int64N(int64(5e9))
			p.bind(clockBound{inc: 3, mine: asked, theirs: theirs(answered)}, now)
			at := now - rng.Int64N(now+1)
			got := p.bound.Load().at(theirs(at))
			if got > at {
				t.Fatalf("a reading at %d is put at %d", at, got)
			}
			if late := at - got; late > int64(1e9)+now/100 {
				t.Fatalf("a reading at %d is put at %d", at, got)
			}
			now += rng.Int64N(int64(20e9))
		}
		if p.bind(clockBound{inc: 2}, now); p.bound.Load().inc != 3 {
			t.Fatal("an earlier incarnation's clock took over")
		}
		// This node was frozen for an hour, with its clock: what was known is wrong, and what is asked now is not.
		asked := theirs(now + 3600e9)
		if p.bind(clockBound{inc: 3, mine: now, theirs: asked}, now+1e6); p.bound.Load().at(asked) > now+1e6 {
			t.Fatal("a clock that stood still is believed")
		}
	}
}
