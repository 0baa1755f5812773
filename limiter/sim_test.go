package limiter

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"strconv"
)

// The simulator drives the real ledgers of 1 to 200 nodes through a schedule: a list of steps made from a seed
// (sim_plan_test.go). Every step brings its own randomness, so that steps can be left out without changing the others, and a
// failure shrinks (sim_shrink_test.go). The limit is checked at every admission, with exact arithmetic; what holds of a
// cluster at rest is checked at the end (sim_end_test.go).

type simOptions struct {
	nodes    int // at first; steps may let more join
	buckets  []simBucket
	loss     int // per cent of packets
	repeat   int
	delay    int64 // milliseconds at most
	skew     int64 // clocks are at first at most so far from the true time
	slots    int   // of each records file
	perShard int   // buckets in a shard, 0 for plenty
	full     int   // of these in full form after a call, as far as they can be packed
	calm     bool  // nothing happens that could make Remaining rise
	ending   bool  // check at the end what holds of a cluster at rest
	unsafely func(l *ledger)
	anyBoot  bool // records of another boot are believed
	dozing   bool // the nodes' monotonic clocks stand still while they pause
	lateMark bool // the persisted mark is where the clock is, not ahead of it
	anyLeave bool // the log takes a leave though its list knows nothing of what the leaver inherited since
}

type simBucket struct {
	id   BucketID
	rule Rule
}

type simRequest struct {
	on       []int // the buckets' indexes
	charges  []Charge
	verdicts []Verdict
	w        *waiter
	since    int64
	stale    int64 // milliseconds between the reading of the clock and the decision
	windows  []simKey
	spends   []*simSpend // an admission of a token bucket
}

type simNode struct {
	index   int
	id      string
	led     *ledger
	inc     uint64
	boot    int
	offset  int64 // of its clock
	dozed   int64 // milliseconds by which its monotonic clock is behind, and since when it is paused
	since   int64
	mark    int64 // persisted
	words   []uint64
	synced  []uint64 // words as they were last on disk
	slots   int
	applied int
	up      bool
	paused  bool
	late    bool     // learns of log entries only when told
	stalled bool     // its disk takes no mark
	dying   int      // dies at so many stores to its records from now on, 0 for not
	corpse  []uint64 // its records when it did
	leaving bool     // persisted
	left    bool     // a log entry says so
	offers  []simOffer
	lists   map[[32]byte][]byte // what leavers handed over, as stored
	buffer  []simPacket
	waiting []*simRequest
	done    []simRequest // admitted, refundable
	said    map[int]simSaid
}

// simSaid is the last Remaining that a node named for a bucket.
type simSaid struct{ n, remaining, ms, limit int64 }

type simTally struct {
	used  int64
	limit int64 // the highest in force
	view  int64 // least milliseconds of the window before that a decision in this one saw
}

type sim struct {
	opt     simOptions
	pcg     *rand.PCG
	rng     *rand.Rand
	now     int64
	horizon int64
	leader  int
	members []int   // the newest roster, in order
	log     []State // the replicated state after each entry
	nodes   []*simNode
	buckets []simBucket
	earlier []Rule // of each bucket before its last change
	tokens  map[simName]*simTokens
	force   []simForce
	names   map[BucketID]simName
	handed  []simHandBack
	cut     map[[2]int]bool
	loss    int
	repeat  int
	delay   int64
	net     packetHeap
	bytes   int64
	old     []simPacket // of those sent so far, some
	tally   map[simKey]*simTally
	trace   []string
	tracing bool
	failure string
	turn    int // round robin's
	victim  int // the attacker's present node
	audits  int
	packed  [2]int // buckets found in packed form: of windows, of tokens
	counts  int    // token buckets audited of which two nodes or more were known to count

	admitted, refused, undecided int
	refusedLate                  int // refused after they waited for shares
}

func (s *sim) logf(format string, args ...any) {
	if s.tracing {
		s.trace = append(s.trace, fmt.Sprintf("%d     ", s.now)+fmt.Sprintf(format, args...))
	}
}

// fail notes the first violation. What stands before the colon is its kind.
func (s *sim) fail(format string, args ...any) {
	if s.failure == "" {
		s.failure = fmt.Sprintf(format, args...)
		s.logf("%s", s.failure)
	}
}

const simStart = 1_700_000_040_000

func newSim(seed uint64, opt simOptions) *sim {
	pcg := rand.NewPCG(seed, 77)
	s := &sim{opt: opt, pcg: pcg, rng: rand.New(pcg), tally: map[simKey]*simTally{}, cut: map[[2]int]bool{},
		loss: opt.loss, repeat: opt.repeat, delay: opt.delay, buckets: slices.Clone(opt.buckets)}
	s.names, s.tokens, s.force = map[BucketID]simName{}, map[simName]*simTokens{}, make([]simForce, len(s.buckets))
	for i, b := range s.buckets {
		s.earlier = append(s.earlier, b.rule)
		s.names[b.id] = simName{bucket: i}
	}
	s.now = simStart + s.rng.Int64N(120_000)
	s.members = s.rng.Perm(opt.nodes)
	s.commitRoster()
	for range opt.nodes {
		n := s.addNode()
		if opt.skew > 0 {
			n.offset = s.rng.Int64N(2*opt.skew+1) - opt.skew
		}
		s.start(n, startKeep)
	}
	s.commitHorizon(2000 + s.rng.Int64N(4000))
	for _, n := range s.nodes {
		s.learn(n, len(s.log))
	}
	return s
}

func (s *sim) addNode() *simNode {
	n := &simNode{index: len(s.nodes), id: fmt.Sprintf("n%d", len(s.nodes)), slots: s.opt.slots}
	s.nodes = append(s.nodes, n)
	return n
}

// How a node starts.
const (
	startKeep    = 0 // on the records that it left
	startReboot  = 1 // of another boot: the records prove nothing
	startGone    = 2 // the records file is gone
	startResized = 3 // a records file of another size takes over
)

func (s *sim) start(n *simNode, how int) {
	n.inc++
	if how == startReboot {
		n.boot += btoi(!s.opt.anyBoot)
		s.tear(n)
	}
	if how == startGone {
		n.words = nil
	}
	boot := strconv.Itoa(n.boot)
	c := ledgerConfig{self: n.id, inc: n.inc, skewMillis: 1000, maxBuckets: 16_000, startMark: n.mark, lostThrough: n.mark, startMono: s.instant(n).mono}
	ok := false
	if n.words != nil {
		var lost int64
		if c.records, c.restored, lost, ok = openRecords(slices.Clone(n.words), boot); ok {
			c.lostThrough = lost
		}
	}
	if !ok || how == startResized {
		// As loadRecords does with files.
		if how == startResized {
			n.slots = 2 + (n.slots*3+1)%97
		}
		c.records = newRecords(make([]uint64, headerWords+n.slots*slotWords), n.slots, boot, c.lostThrough)
		c.records.takeOver(c.restored)
	}
	n.words = c.records.words
	n.synced = slices.Clone(n.words)
	n.led = newLedger(c)
	n.dying, n.corpse = 0, nil
	words := n.words
	c.records.stored = func() {
		if n.dying > 0 {
			if n.dying--; n.dying == 0 {
				n.corpse = slices.Clone(words)
			}
		}
	}
	n.led.fullPerShard = s.opt.full
	if s.opt.perShard > 0 {
		n.led.maxPerShard = s.opt.perShard
	}
	if s.opt.unsafely != nil {
		s.opt.unsafely(n.led)
	}
	n.up, n.paused, n.said = true, false, nil
	s.raise(n)
	s.restoreLeaves(n)
	if n.applied > 0 {
		n.led.setState(s.log[n.applied-1])
	}
}

// tear leaves of the records what the disk has: of each page what was there at the last start, or what is there now.
func (s *sim) tear(n *simNode) {
	if len(n.synced) != len(n.words) {
		return
	}
	for at := headerWords; at < len(n.words); at += slotWords {
		if s.rng.IntN(2) == 0 {
			copy(n.words[at:at+slotWords], n.synced[at:])
		}
	}
}

func (s *sim) raise(n *simNode) {
	mark := max(n.led.markMillis(), s.clock(n)+5000)
	n.led.mark.Store(mark)
	n.mark = mark
	if s.opt.lateMark {
		n.mark = s.clock(n)
	}
}

func (s *sim) clock(n *simNode) int64 { return s.now + n.offset }

func (s *sim) instant(n *simNode) instant {
	return instant{ms: s.clock(n), mono: (s.now - n.dozed) * 1e6}
}

func (s *sim) commitHorizon(lease int64) {
	leader := s.nodes[s.leader%len(s.nodes)]
	if !leader.up || leader.paused {
		return
	}
	s.horizonAt(s.clock(leader) + lease)
}

func (s *sim) horizonAt(g int64) {
	if g > s.horizon {
		s.horizon = g
		st := s.log[len(s.log)-1]
		st.HorizonMillis = g
		s.log = append(s.log, st)
		s.logf("horizon %d", g)
	}
}

func (s *sim) commitRoster() {
	var st State
	if len(s.log) > 0 {
		st = s.log[len(s.log)-1]
	}
	r := Roster{Index: uint64(len(s.log) + 1), FromMillis: s.horizon}
	for _, i := range s.members {
		r.Nodes = append(r.Nodes, fmt.Sprintf("n%d", i))
	}
	st.Rosters = append(slices.Clip(st.Rosters), r)
	s.log = append(s.log, st)
	s.logf("roster %v from %d", r.Nodes, r.FromMillis)
}

// learn lets n apply up to count more entries of the log.
func (s *sim) learn(n *simNode, count int) {
	to := min(n.applied+count, len(s.log))
	if to == n.applied || !n.up || n.paused {
		return
	}
	n.applied = to
	n.led.setState(s.log[to-1])
}

// key is the window of a request for bucket b at ms by n's clock, in the generation that n knows.
func (s *sim) key(n *simNode, b int, ms int64) simKey {
	rule := s.buckets[b].rule
	name := n.led.view.Load().name(s.buckets[b].id, rule.Window, ms)
	return simKey{s.names[name], span(rule.Window * 1000).at(ms)}
}

func (s *sim) at(k simKey) *simTally {
	t := s.tally[k]
	if t == nil {
		t = &simTally{view: s.buckets[k.bucket].rule.Window * 1000}
		s.tally[k] = t
	}
	return t
}

// saw notes that a node decided in window n by its clock, which weighed n−1 in n, and n in n+1 where that was open.
func (s *sim) saw(k simKey, clock int64) {
	for range 2 {
		t := s.at(k)
		t.view = min(t.view, span(s.buckets[k.bucket].rule.Window*1000).inView(k.n, clock))
		k.n++
	}
}

// finish notes an end of a decision and checks the limit.
func (s *sim) finish(n *simNode, r *simRequest, outcome Outcome) {
	for i := range r.charges {
		s.checkVerdict(n, r, i, outcome)
	}
	switch outcome {
	case Admitted:
		s.admitted++
		for i := range r.charges {
			c, k := &r.charges[i], r.windows[i]
			if c.Rule.Algorithm == TokenBucket {
				s.drawn(n, r, i)
				continue
			}
			s.at(k).used += c.Cost
			s.saw(k, s.clock(n)-r.stale)
			s.logf("%s admits %d of %d, %+v", n.id, c.Cost, c.Rule.Limit, k)
			if c.charged != k.n+1 || s.names[c.id] != k.simName {
				s.fail("charge: an admitted charge is noted in %+v window %d, not %+v", s.names[c.id], c.charged-1, k)
			}
		}
		for i, k := range r.windows {
			if r.charges[i].Rule.Algorithm == TokenBucket {
				continue
			}
			s.check(k)
			k.n++
			s.check(k)
			k.generation = 0
			s.check(k)
		}
		if len(n.done) < 64 {
			n.done = append(n.done, *r)
		}
	case Refused:
		s.refused++
		s.refusedLate += btoi(s.now > r.since)
	default:
		s.undecided++
	}
}

// checkVerdict holds what the headers say against what was decided.
func (s *sim) checkVerdict(n *simNode, r *simRequest, i int, whole Outcome) {
	c, v := &r.charges[i], &r.verdicts[i]
	most, patience := c.Rule.Limit, 2*c.Rule.Window+1
	if c.Rule.Algorithm == TokenBucket {
		most, patience = c.Rule.Burst, c.Rule.Window*(c.Rule.Burst/max(c.Rule.Limit, 1)+2)
	}
	bad := v.Remaining < 0 || v.Remaining > most || v.Limit != c.Rule.Limit || v.Outcome > whole
	switch v.Outcome {
	case Admitted:
		bad = bad || v.RetryAfter != 0
	case Refused:
		bad = bad || v.RetryAfter < 1 || v.RetryAfter > patience || v.Remaining >= c.Cost
	case Undecided:
		bad = bad || v.RetryAfter < 1
	default:
		bad = true
	}
	if bad {
		s.fail("verdict: outcome %d of %+v with %+v", whole, *c, *v)
	}
	if !s.opt.calm || v.Outcome != Admitted || c.Rule.Algorithm == TokenBucket {
		return
	}
	// I4: inside a window Remaining rises only by what slid out for the clock furthest ahead, and a unit for rounding.
	b := r.on[i]
	sp := span(c.Rule.Window * 1000)
	now := simSaid{r.windows[i].n, v.Remaining, s.clock(n) - r.stale, c.Rule.Limit}
	if old, ok := n.said[b]; ok && old.n == now.n && old.limit == now.limit && now.ms >= old.ms {
		most := old.remaining
		if c.Rule.Algorithm == SlidingWindow {
			prev := s.at(simKey{r.windows[i].simName, now.n - 1}).used
			most += sp.weigh(prev, now.n, old.ms) - sp.weigh(prev, now.n, now.ms+2*s.opt.skew) + 1
		}
		if now.remaining > most {
			s.fail("I4: Remaining of bucket %d at %s in window %d rose from %d to %d, at most %d slid out",
				b, n.id, now.n, old.remaining, now.remaining, most-old.remaining)
		}
	}
	if n.said == nil {
		n.said = map[int]simSaid{}
	}
	n.said[b] = now
}

// check is I1, exactly: used(n) · W + view · used(n−1) ≤ limit · W.
func (s *sim) check(k simKey) {
	t := s.tally[k]
	if t == nil || t.used <= 0 {
		return
	}
	rule := s.buckets[k.bucket].rule
	before := s.tally[s.before(k)]
	if rule.Algorithm == FixedWindow || before == nil {
		before = &simTally{}
	}
	limit := max(t.limit, before.limit)
	w := uint64(rule.Window * 1000)
	hi, lo := bits.Mul64(uint64(t.used), w)
	h2, l2 := bits.Mul64(uint64(t.view), uint64(before.used))
	var carry uint64
	lo, carry = bits.Add64(lo, l2, 0)
	hi += h2 + carry
	mostHi, mostLo := bits.Mul64(uint64(limit), w)
	if hi > mostHi || hi == mostHi && lo > mostLo {
		s.fail("I1: %+v (%+v): used %d, before %d of which %d/%d in view, limit %d",
			k, rule, t.used, before.used, t.view, w, limit)
	}
}

// newRequest makes a request for the buckets on, at the limits that the node goes by.
func (s *sim) newRequest(on []int, cost func(limit int64) int64, old bool) *simRequest {
	r := &simRequest{on: on, w: &waiter{}, since: s.now}
	for _, i := range on {
		rule := s.buckets[i].rule
		if old {
			rule = s.earlier[i] // this node has not heard of the new one yet
		}
		r.charges = append(r.charges, Charge{Bucket: s.buckets[i].id, Rule: rule, Cost: cost(rule.most())})
	}
	r.verdicts = make([]Verdict, len(on))
	r.windows = make([]simKey, len(on))
	r.spends = make([]*simSpend, len(on))
	return r
}

// one is a request of one unit of one bucket.
func (s *sim) one(b int) *simRequest {
	return s.newRequest([]int{b}, func(int64) int64 { return 1 }, false)
}

func (s *sim) attempt(n *simNode, r *simRequest) Outcome {
	w := r.w
	if s.now-r.since >= 20 {
		w = nil
	}
	t := s.instant(n)
	t.ms -= r.stale
	t.mono -= r.stale * 1e6
	for i := range r.charges {
		c := &r.charges[i]
		r.windows[i] = s.key(n, r.on[i], t.ms)
		tally := s.at(r.windows[i])
		tally.limit = max(tally.limit, c.Rule.Limit) // in force from the asking on, not from the answer
	}
	var out outbox
	outcome, pending := n.led.take(t, r.charges, r.verdicts, w, &out)
	if s.died(n) {
		return 0
	}
	s.transmit(n, &out)
	if pending {
		n.waiting = append(n.waiting, r)
		return 0
	}
	s.finish(n, r, outcome)
	return outcome
}

func (s *sim) retry(n *simNode) {
	if len(n.waiting) == 0 {
		return
	}
	waiting := n.waiting
	n.waiting = nil
	for _, r := range waiting {
		if !n.up {
			return
		}
		if r.w.woken || s.now-r.since >= 5 {
			n.led.leave(r.w, r.charges)
			r.stale = 0
			s.attempt(n, r)
		} else {
			n.waiting = append(n.waiting, r)
		}
	}
}

// died says whether n was killed in the middle of what it just did: nobody hears of that, and its records are those of
// then.
func (s *sim) died(n *simNode) bool {
	if n.corpse == nil {
		return false
	}
	n.words, n.corpse = n.corpse, nil
	s.kill(n)
	s.logf("%s dies between two stores", n.id)
	return true
}

func (s *sim) kill(n *simNode) {
	n.up, n.paused = false, false
	n.waiting, n.done, n.buffer = nil, nil, nil
}

func (s *sim) refund(n *simNode) {
	if len(n.done) == 0 {
		return
	}
	i := s.rng.IntN(len(n.done))
	r := n.done[i]
	n.done = slices.Delete(n.done, i, i+1)
	for i := range r.charges {
		if r.spends[i] != nil {
			r.spends[i].cost = 0
			s.tokens[r.windows[i].simName].sorted = false
		} else {
			s.at(r.windows[i]).used -= r.charges[i].Cost
		}
	}
	n.led.refund(r.charges)
	n.led.refund(r.charges) // a second one gives nothing
}

func (s *sim) news(n *simNode) {
	var out outbox
	n.led.tick(s.instant(n), &out)
	s.transmit(n, &out)
	n.led.gossip(s.instant(n), 1<<20, func(peer uint16, packet []byte) {
		s.put(n, n.led.peers.at(peer).id, slices.Clone(packet))
	})
}

func (s *sim) sweep(n *simNode) {
	for i := range n.led.shards {
		sh := &n.led.shards[i]
		n.led.advance(sh, s.clock(n))
		n.led.sweepShard(sh, 64)
		n.led.sweepCells(sh)
		n.led.rest(sh, s.now*1e6, 2)
		if len(sh.cells) > cellsPerShard || sh.live > max(n.led.maxPerShard, len(s.buckets)) {
			s.fail("I5: a shard of %s holds %d buckets and %d cells", n.id, sh.live, len(sh.cells))
		}
	}
	s.died(n)
}

// advance lets time pass, and what runs by itself run.
func (s *sim) advance(ms int64) {
	s.now += ms
	for _, n := range s.nodes {
		if !n.up || n.paused {
			continue
		}
		if !n.stalled {
			s.raise(n)
		}
		if !n.late {
			s.learn(n, len(s.log))
		}
	}
	s.deliver()
	for _, n := range s.nodes {
		if n.up && !n.paused {
			s.retry(n)
		}
	}
	s.audits++
	if n := s.nodes[s.audits%len(s.nodes)]; n.up && !n.paused {
		s.audit(n)
	}
}

// audit lets a node's auditor look at all buckets, and holds that it finds no excess where there is none.
func (s *sim) audit(n *simNode) (over uint64) {
	for i := range s.buckets {
		id := &s.buckets[i].id
		sh := &n.led.shards[shardOf(id)]
		e := sh.lookup(id)
		packed := e != nil && *e&entryFull == 0
		if b := sh.get(id); b != nil {
			if packed {
				s.packed[btoi(b.tok != nil)]++
			}
			s.counts += btoi(counting(b) > 1)
			n.led.advance(sh, s.clock(n))
			n.led.audit(sh, b)
		}
	}
	for i := range n.led.shards {
		over += n.led.shards[i].stats.audit.over
	}
	if over > 0 {
		s.fail("audit: %s finds %d grains over where nothing is", n.id, over)
	}
	return over
}
