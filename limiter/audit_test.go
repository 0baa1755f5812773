package limiter

import (
	"fmt"
	"testing"
)

// calmNet lets all nodes run and hear each other.
func (s *sim) calmNet() {
	clear(s.cut)
	s.loss, s.repeat, s.delay = 0, 0, 1
	for _, n := range s.nodes {
		s.resume(n)
	}
}

// aftermath lets the news of a violation get about, as it does in a cluster that lives on, and returns what the auditors found.
func (s *sim) aftermath() (found uint64) {
	s.calmNet()
	for range 2 {
		for _, n := range s.nodes {
			if n.up {
				s.news(n)
			}
		}
		s.tick(3)
	}
	for _, n := range s.nodes {
		if n.up {
			found = max(found, s.audit(n))
		}
	}
	return found
}

// The auditor sees a limit exceeded where a safeguard is switched off. (That it sees none where all are on, every schedule of the
// simulator holds.) Of what goes wrong at restarts it sees the windows that follow.
func TestAudit_FindsOverAdmission(t *testing.T) {
	t.Parallel()
	if raceEnabled || testing.Short() {
		t.Skip("one goroutine for each; slow with the race detector")
	}
	for name, unsafely := range map[string]func(*ledger){
		"signed charge":               func(l *ledger) { l.unsafeSigned = true },
		"growth not charged":          func(l *ledger) { l.unsafeNoGrowth = true },
		"one window only":             func(l *ledger) { l.unsafeOneWindow = true },
		"cells added up":              func(l *ledger) { l.unsafeSum = true },
		"newest roster, no horizon":   func(l *ledger) { l.unsafeNewest = true },
		"charge of what was used":     func(l *ledger) { l.unsafeUsedCharge = true },
		"windows before the start":    func(l *ledger) { l.unsafeForget = true },
		"answer before the debit":     func(l *ledger) { l.unsafeLateDebit = true },
		"no record of what was spent": func(l *ledger) { l.unsafeNoRecord = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			violations := 0
			for seed := uint64(1); seed <= 4000; seed++ {
				p := randomSchedule(seed)
				p.opt.unsafely = unsafely
				p.opt.calm, p.opt.ending = false, false
				s := p.run(false)
				if kind(s.failure) != "I1" {
					continue
				}
				violations++
				if over := s.aftermath(); over > 0 {
					t.Logf("schedule %d: %d grains over; %d violations in all were looked at", seed, over, violations)
					return
				}
			}
			t.Fatalf("none of %d violations found", violations)
		})
	}
}

// auditSim is a cluster at rest with one bucket, at the beginning of a window.
func auditSim(nodes int, rule Rule) *sim {
	s := newSim(11, simOptions{nodes: nodes, slots: 64, delay: 1,
		buckets: []simBucket{{bucketID(&[16]byte{}, "p", rule, []byte("s")), rule}}})
	w := rule.Window * 1000
	s.now = w * (s.now/w + 3)
	s.horizonAt(s.now + 10*w)
	s.tick(1)
	return s
}

// audited are the audits of all nodes, summed up.
func (s *sim) audited() (a auditStats) {
	for _, n := range s.nodes {
		s.audit(n)
		for i := range n.led.shards {
			st := &n.led.shards[i].stats.audit
			a.over += st.over
			a.windows += st.windows
			a.vague += st.vague
			a.contested += st.contested
			a.unused += st.unused
		}
	}
	return a
}

func TestAudit_Unused(t *testing.T) {
	t.Parallel()
	for _, alg := range []Algorithm{FixedWindow, SlidingWindow} {
		for _, c := range []struct {
			name   string
			split  bool // nodes cannot lend
			asks   int  // at the first node
			unused uint64
			nodes  uint64 // that refuse somebody
		}{
			{name: "not used up", asks: 8},
			{name: "used up", asks: 12, nodes: 1},
			{name: "two thirds out of reach", split: true, asks: 6, nodes: 1, unused: 2 * million / 3},
		} {
			t.Run(fmt.Sprintf("%d/%s", alg, c.name), func(t *testing.T) {
				t.Parallel()
				rule := Rule{Limit: 9, Window: 10, Algorithm: alg}
				s := auditSim(3, rule)
				if c.split {
					for _, other := range []int{1, 2} {
						s.cut[[2]int{0, other}], s.cut[[2]int{other, 0}] = true, true
					}
				}
				for range c.asks {
					s.attempt(s.nodes[0], s.one(0))
					s.tick(30)
				}
				s.gossip()
				s.tick(10_000)
				s.advance(3000)
				got := s.audited()
				// In 254ths of the limit.
				if got.over != 0 || got.contested != c.nodes || got.unused+million/refusedParts < c.unused || got.unused > c.unused {
					t.Errorf("got %+v, want %d contested with %d unused", got, c.nodes, c.unused)
				}
				if got.windows == 0 || got.vague != 0 {
					t.Errorf("got %+v: windows were not summed up", got)
				}
			})
		}
	}
}

// What may be taken back, or cannot be told from the totals, is left out.
func TestAudit_LeavesOut(t *testing.T) {
	t.Parallel()
	rule := Rule{Limit: 9, Window: 60, Algorithm: FixedWindow}
	for name, do := range map[string]func(s *sim){
		"a refund":         func(s *sim) { s.refund(s.nodes[0]) },
		"another limit":    func(s *sim) { s.buckets[0].rule.Limit = 20 },
		"a restart":        func(s *sim) { s.nodes[0].up = false; s.start(s.nodes[0], startKeep) },
		"a clock set back": func(s *sim) { s.nodes[0].offset = -5000 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := auditSim(2, rule)
			s.advance(10_000)
			s.attempt(s.nodes[0], s.one(0))
			do(s)
			s.attempt(s.nodes[0], s.one(0))
			s.tick(5)
			s.gossip()
			s.tick(5)
			b := s.nodes[1].led.shards[shardOf(&s.buckets[0].id)].get(&s.buckets[0].id)
			if b == nil {
				t.Fatal("no news has come")
			}
			a := b.sum(b.span.at(s.now))
			if !a.vague || a.used == 0 {
				t.Errorf("the other node sums up %+v", a)
			}
		})
	}
}

// Units that a refund freed carry the mark along, however many nodes they pass.
func TestAudit_RefundedUnitsAreMarked(t *testing.T) {
	t.Parallel()
	rule := Rule{Limit: 2, Window: 60, Algorithm: FixedWindow}
	s := auditSim(2, rule)
	for range 2 {
		s.attempt(s.nodes[0], s.one(0))
		s.tick(5)
	}
	if s.admitted != 2 {
		t.Fatalf("%d admitted, want all 2", s.admitted)
	}
	s.gossip() // both units are known to be used at the first node
	s.tick(5)
	s.refund(s.nodes[0])
	// The news of the refund is lost, but the ask of the other node is not.
	s.nodes[0].led.news(s.instant(s.nodes[0]), 1<<20, typeNews, func([]byte) {})
	id := &s.buckets[0].id
	b := s.nodes[1].led.shards[shardOf(id)].get(id)
	b.know[0].used, b.know[0].net = 0, -1000 // it believes that there is something to ask for
	s.attempt(s.nodes[1], s.one(0))
	s.tick(30)
	b = s.nodes[1].led.shards[shardOf(id)].get(id)
	b.know[0].used, b.know[0].flags = 2*grains, 0 // as the last news said
	if s.admitted != 3 {
		t.Fatalf("%d admitted, want the refunded unit to move", s.admitted)
	}
	if w := b.find(b.span.at(s.now)); w == nil || !w.vague {
		t.Errorf("the refunded unit is spent in %+v, which is not marked", w)
	}
	if over := s.audit(s.nodes[1]); over != 0 {
		t.Errorf("%d grains over", over)
	}
}

// Whatever a member claims, the auditor neither fails nor wraps around: it believes it.
func TestAudit_AbsurdClaims(t *testing.T) {
	t.Parallel()
	rule := Rule{Limit: 10, Window: 60, Algorithm: SlidingWindow}
	s := auditSim(40, rule)
	s.attempt(s.nodes[0], s.one(0))
	l := s.nodes[0].led
	id := s.buckets[0].id
	n := span(60_000).at(s.now)
	for _, from := range s.nodes[1:] {
		h := header{kind: typeNews, sender: nodeHash(from.id), inc: 1, seq: 1 << 40, clock: s.now}
		name := bucketName{id: id, rule: Rule{Window: 60, Algorithm: SlidingWindow}, n: n}
		c := counters{limit: maxLimit, used: maxWireUnit, prevUsed: maxWireUnit}
		var out outbox
		l.receive(s.instant(s.nodes[0]), from.id, appendCounters(appendBucket(append(appendHeader(nil, h), 1), &name), &c), &out)
	}
	sh := &l.shards[shardOf(&id)]
	l.audit(sh, sh.get(&id))
	if got := sh.stats.audit.over; got < 1<<60 {
		t.Errorf("%d grains over, want all that was claimed", got)
	}
}
