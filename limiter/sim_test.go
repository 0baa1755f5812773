package limiter

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
)

// The simulator drives the real ledgers of a few nodes through one schedule made from a seed: a network that loses,
// repeats, delays and reorders, clocks apart and stepping, kills with and without the records, reboots, rosters that
// some nodes learn late, limits changed while in use. It checks the limit after every admission, with exact arithmetic.

type simOptions struct {
	nodes    int
	buckets  []simBucket
	loss     int // per cent of packets
	repeat   int
	delay    int64 // milliseconds at most
	skew     int64 // clocks are at most so far from the true time
	steps    int
	crash    int // per thousand steps
	reboot   int // per cent of crashes that lose the records
	rosters  int // per thousand steps
	limits   int // per thousand steps
	clocks   int // per thousand steps: clock steps
	lag      int // per cent of steps in which a node does not learn of new log entries
	slots    int // of each records file
	crowd    bool
	stall    int // per cent of chances to raise the mark that are missed
	unsafely func(l *ledger)
}

type simBucket struct {
	id   BucketID
	rule Rule
}

type simEntry struct {
	horizon int64
	roster  *Roster
}

type simPacket struct {
	at       int64
	from, to int
	data     []byte
}

type simRequest struct {
	charges  []Charge
	verdicts []Verdict
	w        *waiter
	since    int64
}

type simNode struct {
	index   int
	id      string
	led     *ledger
	inc     uint64
	offset  int64 // of its clock
	mark    int64 // persisted
	words   []uint64
	applied int
	up      bool
	waiting []*simRequest
	done    []simRequest // admitted, refundable
}

type simKey struct {
	bucket int
	n      int64
}

type simTally struct {
	used  int64
	limit int64 // the highest in force
	view  int64 // least milliseconds of the window before that a decision in this one saw
}

type sim struct {
	opt     simOptions
	rng     *rand.Rand
	now     int64
	horizon int64
	log     []simEntry
	nodes   []*simNode
	net     []simPacket
	tally   map[simKey]*simTally
	trace   []string
	tracing bool
	failure string

	admitted, refused, undecided int
}

func (s *sim) logf(format string, args ...any) {
	if s.tracing {
		s.trace = append(s.trace, fmt.Sprintf("%d ", s.now)+fmt.Sprintf(format, args...))
	}
}

func newSim(seed uint64, opt simOptions) *sim {
	s := &sim{opt: opt, rng: rand.New(rand.NewPCG(seed, 77)), tally: map[simKey]*simTally{}}
	s.now = 1_700_000_040_000 + s.rng.Int64N(120_000)
	s.log = append(s.log, simEntry{roster: &Roster{Index: 1, Nodes: s.pickRoster(opt.nodes)}})
	for i := range opt.nodes {
		n := &simNode{index: i, id: fmt.Sprintf("n%d", i)}
		if opt.skew > 0 {
			n.offset = s.rng.Int64N(2*opt.skew+1) - opt.skew
		}
		s.nodes = append(s.nodes, n)
		s.start(n, true)
	}
	s.commitHorizon()
	for _, n := range s.nodes {
		n.applied = len(s.log)
		s.inform(n)
	}
	return s
}

func (s *sim) pickRoster(most int) []string {
	var ids []string
	for i := range most {
		if i == 0 || s.rng.IntN(4) > 0 || s.opt.rosters == 0 {
			ids = append(ids, fmt.Sprintf("n%d", i))
		}
	}
	s.rng.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	return ids
}

func (s *sim) start(n *simNode, keep bool) {
	n.inc++
	c := ledgerConfig{self: n.id, inc: n.inc, skewMillis: 1000, maxBuckets: 1000, startMark: n.mark}
	ok := false
	if keep && n.words != nil {
		c.records, c.restored, c.lostThrough, ok = openRecords(slices.Clone(n.words), "boot")
	}
	if !ok {
		c.lostThrough = n.mark
		c.records = newRecords(make([]uint64, headerWords+s.opt.slots*slotWords), s.opt.slots, "boot", c.lostThrough)
	}
	n.words = c.records.words
	n.led = newLedger(c)
	if s.opt.crowd {
		n.led.maxPerShard = 1
	}
	if s.opt.unsafely != nil {
		s.opt.unsafely(n.led)
	}
	n.up = true
	s.raise(n)
	s.inform(n)
}

func (s *sim) raise(n *simNode) {
	n.mark = max(n.mark, s.clock(n)+5000)
	n.led.mark.Store(n.mark)
}

func (s *sim) clock(n *simNode) int64 { return s.now + n.offset }

func (s *sim) instant(n *simNode) instant {
	return instant{ms: s.clock(n), mono: s.now * 1e6}
}

func (s *sim) commitHorizon() {
	leader := s.nodes[s.rng.IntN(len(s.nodes))]
	if g := s.clock(leader) + 2000 + s.rng.Int64N(4000); g > s.horizon {
		s.horizon = g
		s.log = append(s.log, simEntry{horizon: g})
	}
}

func (s *sim) commitRoster() {
	s.log = append(s.log, simEntry{roster: &Roster{
		Index: uint64(len(s.log) + 1), FromMillis: s.horizon, Nodes: s.pickRoster(s.opt.nodes)}})
}

func (s *sim) inform(n *simNode) {
	var st State
	for _, e := range s.log[:n.applied] {
		if e.roster != nil {
			st.Rosters = append(st.Rosters, *e.roster)
		} else {
			st.HorizonMillis = e.horizon
		}
	}
	n.led.setState(st)
}

func (s *sim) transmit(from *simNode, out *outbox) {
	for _, p := range out.to {
		s.put(from, from.led.peers.at(p.peer).id, out.data[p.start:p.end])
	}
}

func (s *sim) put(from *simNode, to string, data []byte) {
	for range 1 + btoi(s.rng.IntN(100) < s.opt.repeat) {
		if s.rng.IntN(100) < s.opt.loss {
			continue
		}
		s.net = append(s.net, simPacket{at: s.now + s.rng.Int64N(s.opt.delay+1), from: from.index, to: must(strconv.Atoi(to[1:])), data: slices.Clone(data)})
	}
}

func must(n int, err error) int {
	if err != nil {
		panic(err)
	}
	return n
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// deliver hands over what is due.
func (s *sim) deliver() {
	for i := 0; i < len(s.net); {
		p := s.net[i]
		if p.at > s.now {
			i++
			continue
		}
		s.net[i] = s.net[len(s.net)-1]
		s.net = s.net[:len(s.net)-1]
		n := s.nodes[p.to]
		if !n.up {
			continue
		}
		given := s.given(n)
		var out outbox
		n.led.receive(s.instant(n), s.nodes[p.from].id, p.data, &out)
		if s.given(n) != given {
			r := reader{b: p.data}
			r.header()
			m := r.ask()
			for b := range s.opt.buckets {
				if s.opt.buckets[b].id == m.id {
					s.saw(b, m.n, s.clock(n))
					s.logf("%s gives bucket %d window %d to %s", n.id, b, m.n, s.nodes[p.from].id)
				}
			}
		}
		s.transmit(n, &out)
		s.retry(n)
	}
}

func (s *sim) given(n *simNode) (sum uint64) {
	for i := range n.led.shards {
		sum += n.led.shards[i].stats.given
	}
	return sum
}

func (s *sim) at(b int, n int64) *simTally {
	k := simKey{b, n}
	t := s.tally[k]
	if t == nil {
		t = &simTally{view: s.opt.buckets[b].rule.Window * 1000}
		s.tally[k] = t
	}
	return t
}

// saw notes that a node decided in window n by its clock, which weighed n−1 in n, and n in n+1 where that was open.
func (s *sim) saw(b int, n, clock int64) {
	for _, m := range []int64{n, n + 1} {
		t := s.at(b, m)
		t.view = min(t.view, span(s.opt.buckets[b].rule.Window*1000).inView(m, clock))
	}
}

// finish notes an end of a decision and checks the limit.
func (s *sim) finish(n *simNode, r *simRequest, outcome Outcome) {
	for i := range r.charges {
		c := &r.charges[i]
		b := slices.IndexFunc(s.opt.buckets, func(b simBucket) bool { return b.id == c.Bucket })
		w := span(c.Rule.Window * 1000).at(s.clock(n))
		t := s.at(b, w)
		s.checkVerdict(c, &r.verdicts[i], outcome)
		if outcome != Admitted {
			continue
		}
		t.used += c.Cost
		s.saw(b, w, s.clock(n))
		s.logf("%s admits %d bucket %d window %d", n.id, c.Cost, b, w)
	}
	switch outcome {
	case Admitted:
		s.admitted++
		for i := range r.charges {
			s.check(&r.charges[i], s.clock(n))
		}
		n.done = append(n.done, *r)
	case Refused:
		s.refused++
	default:
		s.undecided++
	}
}

// checkVerdict holds what the headers say against what was decided.
func (s *sim) checkVerdict(c *Charge, v *Verdict, whole Outcome) {
	bad := v.Remaining < 0 || v.Remaining > c.Rule.Limit || v.Limit != c.Rule.Limit || v.Outcome > whole
	switch v.Outcome {
	case Admitted:
		bad = bad || v.RetryAfter != 0
	case Refused:
		bad = bad || v.RetryAfter < 1 || v.RetryAfter > 2*c.Rule.Window+1 || v.Remaining >= c.Cost
	case Undecided:
		bad = bad || v.RetryAfter < 1
	default:
		bad = true
	}
	if bad && s.failure == "" {
		s.failure = fmt.Sprintf("at %d: outcome %d of %+v with %+v", s.now, whole, *c, *v)
	}
}

func (s *sim) check(c *Charge, clock int64) {
	b := slices.IndexFunc(s.opt.buckets, func(b simBucket) bool { return b.id == c.Bucket })
	sp := span(c.Rule.Window * 1000)
	n := sp.at(clock)
	for _, n := range []int64{n, n + 1} {
		t := s.tally[simKey{b, n}]
		if t == nil || t.used == 0 {
			continue
		}
		before := s.tally[simKey{b, n - 1}]
		if c.Rule.Algorithm == FixedWindow || before == nil {
			before = &simTally{}
		}
		limit := max(t.limit, before.limit)
		if t.used*int64(sp)+t.view*before.used > limit*int64(sp) && s.failure == "" {
			s.failure = fmt.Sprintf("at %d: bucket %d (%+v) window %d: used %d, before %d of which %d/%d in view, limit %d",
				s.now, b, c.Rule, n, t.used, before.used, t.view, int64(sp), limit)
			s.logf("%s", s.failure)
		}
	}
}

func (s *sim) request(n *simNode) {
	var charges []Charge
	for _, i := range s.rng.Perm(len(s.opt.buckets))[:1+s.rng.IntN(len(s.opt.buckets))] {
		b := s.opt.buckets[i]
		cost := int64(1)
		if s.rng.IntN(5) == 0 {
			cost += s.rng.Int64N(3)
		}
		charges = append(charges, Charge{Bucket: b.id, Rule: b.rule, Cost: cost})
		if s.rng.IntN(3) > 0 {
			break
		}
	}
	r := &simRequest{charges: charges, verdicts: make([]Verdict, len(charges)), w: &waiter{}, since: s.now}
	s.attempt(n, r)
}

func (s *sim) attempt(n *simNode, r *simRequest) {
	w := r.w
	if s.now-r.since >= 20 {
		w = nil
	}
	for i := range r.charges {
		c := &r.charges[i]
		b := slices.IndexFunc(s.opt.buckets, func(b simBucket) bool { return b.id == c.Bucket })
		t := s.at(b, span(c.Rule.Window*1000).at(s.clock(n)))
		t.limit = max(t.limit, c.Rule.Limit) // in force from the asking on, not from the answer
	}
	var out outbox
	outcome, pending := n.led.take(s.instant(n), r.charges, r.verdicts, w, &out)
	s.transmit(n, &out)
	if pending {
		n.waiting = append(n.waiting, r)
		return
	}
	s.finish(n, r, outcome)
}

func (s *sim) retry(n *simNode) {
	waiting := n.waiting
	n.waiting = nil
	for _, r := range waiting {
		if r.w.woken || s.now-r.since >= 5 {
			n.led.leave(r.w, r.charges)
			s.attempt(n, r)
		} else {
			n.waiting = append(n.waiting, r)
		}
	}
}

func (s *sim) refund(n *simNode) {
	if len(n.done) == 0 {
		return
	}
	r := n.done[len(n.done)-1]
	n.done = n.done[:len(n.done)-1]
	for i := range r.charges {
		c := &r.charges[i]
		b := slices.IndexFunc(s.opt.buckets, func(b simBucket) bool { return b.id == c.Bucket })
		if c.charged == 0 {
			s.failure = "admitted charge is not marked"
			return
		}
		s.at(b, c.charged-1).used -= c.Cost
	}
	n.led.refund(r.charges)
}

func (s *sim) crash(n *simNode) {
	keep := s.rng.IntN(100) >= s.opt.reboot
	s.logf("%s restarts, records %v", n.id, keep)
	// Its clock may have been set meanwhile, and its log is applied anew from where it was made durable.
	if s.opt.clocks > 0 && s.rng.IntN(3) == 0 {
		s.step(n)
	}
	n.waiting, n.done = nil, nil
	n.applied = max(1, n.applied-s.rng.IntN(4))
	s.start(n, keep)
}

func (s *sim) step(n *simNode) {
	n.offset = s.rng.Int64N(2*s.opt.skew+1) - s.opt.skew
	s.logf("%s clock %+d", n.id, n.offset)
}

func (s *sim) chance(perMille int) bool { return s.rng.IntN(1000) < perMille }

// run does the whole schedule, or up to the first violation.
func (s *sim) run() {
	shortest := int64(1) << 40
	for _, b := range s.opt.buckets {
		shortest = min(shortest, b.rule.Window*1000)
	}
	hot := 0
	for range s.opt.steps {
		if s.failure != "" {
			return
		}
		switch s.rng.IntN(12) {
		case 0:
			s.now += s.rng.Int64N(shortest/3 + 1)
		case 1:
			if s.rng.IntN(4) == 0 {
				s.now += shortest - s.now%shortest - s.rng.Int64N(40) // just before an edge
			}
		default:
			s.now += s.rng.Int64N(6)
		}
		if s.rng.IntN(6) == 0 {
			hot = s.rng.IntN(len(s.nodes))
		}
		for _, n := range s.nodes {
			if s.rng.IntN(100) >= s.opt.stall {
				s.raise(n)
			}
			if n.applied < len(s.log) && s.rng.IntN(100) >= s.opt.lag {
				n.applied += 1 + s.rng.IntN(len(s.log)-n.applied)
				s.inform(n)
			}
		}
		if s.rng.IntN(3) == 0 {
			s.commitHorizon()
		}
		if s.chance(s.opt.rosters) {
			s.commitRoster()
			s.logf("roster %v from %d", s.log[len(s.log)-1].roster.Nodes, s.horizon)
		}
		if s.chance(s.opt.limits) {
			b := &s.opt.buckets[s.rng.IntN(len(s.opt.buckets))]
			b.rule.Limit = 1 + s.rng.Int64N(24)
		}
		n := s.nodes[s.rng.IntN(len(s.nodes))]
		if s.opt.skew > 0 && s.chance(s.opt.clocks) {
			s.step(n)
		}
		if s.chance(s.opt.crash) {
			s.crash(n)
		}
		s.deliver()
		for _, n := range s.nodes {
			s.retry(n)
		}
		target := s.nodes[hot]
		if s.rng.IntN(3) == 0 {
			target = n
		}
		for range 1 + s.rng.IntN(4) {
			s.request(target)
		}
		if s.rng.IntN(20) == 0 {
			s.refund(target)
		}
		if s.rng.IntN(8) == 0 {
			n.led.news(s.instant(n), 1<<20, func(p []byte) {
				for _, peer := range n.led.audience() {
					s.put(n, n.led.peers.at(peer).id, p)
				}
			})
		}
		if s.rng.IntN(10) == 0 {
			for i := range n.led.shards {
				n.led.advance(&n.led.shards[i], s.clock(n))
				n.led.sweepShard(&n.led.shards[i], 64)
				n.led.sweepCells(&n.led.shards[i])
			}
		}
	}
}

// randomOptions makes the faults of one schedule from its seed.
func randomOptions(seed uint64) simOptions {
	rng := rand.New(rand.NewPCG(seed, 5))
	pick := func(v ...int) int { return v[rng.IntN(len(v))] }
	opt := simOptions{
		nodes: 2 + rng.IntN(7), loss: pick(0, 0, 5, 30), repeat: pick(0, 10, 30), delay: int64(pick(1, 5, 50, 3000)),
		skew: int64(pick(0, 50, 900, 10_000, 70_000)), steps: 60 + rng.IntN(180), crash: pick(0, 5, 20, 60), reboot: pick(0, 30, 100),
		rosters: pick(0, 0, 5, 20), limits: pick(0, 0, 10), clocks: pick(0, 5, 30), lag: pick(0, 20, 90),
		slots: pick(2, 8, 64, 64), crowd: rng.IntN(5) == 0, stall: pick(0, 0, 30),
	}
	if rng.IntN(2) == 0 {
		opt.nodes = 2 + rng.IntN(2)
	}
	for i := range 1 + rng.IntN(3) {
		b := simBucket{rule: Rule{Limit: int64(pick(1, 2, 3, 4, 6, 10, 20)), Window: int64(pick(1, 2, 10, 60, 60, 120)), Algorithm: Algorithm(1 + rng.IntN(2))}}
		b.id = bucketID(&[16]byte{1}, "policy", b.rule, []byte{byte(i)})
		if opt.crowd {
			b.id[15] = 7
		}
		opt.buckets = append(opt.buckets, b)
	}
	return opt
}
