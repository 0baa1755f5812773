package limiter

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// ledger is the deterministic part: every step takes the instant and gives back what to send. Given the same calls in
// the same order it does the same. Shards are locked one by one in rising order; nothing here waits.
type ledger struct {
	self      string
	selfHash  uint64
	inc       uint64
	available bool
	// skewMillis bounds how far from a window an ask for it is answered; slackMillis is how long after its last use a
	// window is kept for clocks behind.
	skewMillis, slackMillis int64
	maxPerShard             int
	fullPerShard            int

	// What the last start found: windows that begin at or below startMark may have been acted in; of those that begin
	// at or below lostThrough, or are too short for records, nothing is proven.
	startMark, lostThrough int64
	records                *recordFile // nil for none

	mark    atomic.Int64 // Unix milliseconds that no clock reading acted on may pass
	view    atomic.Pointer[view]
	peers   *peerTable
	seq     atomic.Uint64
	newsAt  atomic.Uint32
	relay   relay
	refused atomic.Uint64 // packets not understood
	foreign atomic.Uint64 // packets for or from somebody else

	// Of token buckets: until when this node holds nothing, on the monotonic clock; what rosters it went by; when tick
	// last ran; how many there ever were.
	heldUntil      int64
	phases         atomic.Pointer[phases]
	ticked, births atomic.Int64

	shards [shardCount]shard

	listMu sync.Mutex
	lists  map[[32]byte]*bequest // what leavers handed over

	// For the simulator's tests alone: each switches one safeguard off, to see that it is missed.
	unsafeSigned     bool // the charge may be negative
	unsafeNoGrowth   bool // what the base grew by is not charged
	unsafeOneWindow  bool // the rule is not held in the window after
	unsafeForget     bool // windows from before the start count as never acted in
	unsafeAnyInc     bool // cells to earlier incarnations count
	unsafeNewest     bool // the newest roster governs everything, whatever the horizon
	unsafeUsedCharge bool // the charge is what was used, not the net
	unsafeNoRecord   bool // records are not written
	unsafeLateDebit  bool // a donor answers before its record says so
	unsafeSum        bool // what cells say is added up, not merged by maximum
	unsafeNoAdopt    bool // a bucket takes nothing over from its overflow cell
	unsafeStartFull  bool // token buckets are full at every start
	unsafeTakeBack   bool // a donor takes back what it lent while the lease runs
	unsafeLendOn     bool // what was borrowed is lent on
	unsafeTwice      bool // a lease is taken as often as the answer comes
	unsafeNoClip     bool // a lease does not end for its receiver
	unsafeNoPause    bool // a roster governs token buckets at once
	unsafeRefund     bool // a refund gives back all, whatever came since
	unsafeHandBack   bool // what a handed-back bucket spent under another name is not charged
	unsafeCellBack   bool // a handed-back bucket may begin in an overflow cell
	unsafePacked     bool // what was given is not kept in packed form
	unsafeUncovered  bool // a leaver's share counts in windows that its list does not cover
	unsafeStays      bool // a leaver goes on spending and giving
	unsafeHeirLost   bool // an heir without counters of a window inherits in it all the same
	unsafeHeirMark   bool // windows in which only the leaver may have acted are not open
}

// ledgerConfig is what newLedger needs.
type ledgerConfig struct {
	self                   string
	inc                    uint64
	available              bool
	skewMillis             int64
	maxBuckets             int
	startMark, lostThrough int64
	startMono              int64 // the monotonic clock at the start
	records                *recordFile
	restored               []restoredWindow
}

// restoredWindow is what one record proves, in grains.
type restoredWindow struct {
	id       BucketID
	span     span
	alg      Algorithm
	cell     bool
	lost     bool
	n        int64
	ceiling  int64
	received int64
	slot     int32
}

func newLedger(c ledgerConfig) *ledger {
	l := &ledger{
		self: c.self, selfHash: nodeHash(c.self), inc: c.inc, available: c.available,
		skewMillis: c.skewMillis, slackMillis: 2*c.skewMillis + 1000,
		maxPerShard: max(c.maxBuckets/shardCount, 8), fullPerShard: fullPerShard,
		startMark: c.startMark, lostThrough: c.lostThrough, records: c.records,
		peers: newPeerTable(),
	}
	l.mark.Store(c.startMark)
	l.view.Store(&view{})
	l.peers.add(c.self)
	l.startPhases(c.startMono)
	l.relay.news.kind, l.relay.levels.kind = typeRelay, typeLevels
	for i := range l.shards {
		l.shards[i].maxMillis = c.startMark
		l.shards[i].records = c.records
	}
	for _, r := range c.restored {
		l.restore(r)
		l.trim(&l.shards[shardOf(&r.id)], 0)
	}
	for _, r := range c.restored {
		// What a bucket took over from its cell has no record of its own before it spends in the same window.
		sh := &l.shards[shardOf(&r.id)]
		if b := sh.get(&r.id); b != nil {
			l.adopt(sh, b)
		}
		l.trim(sh, 0)
	}
	return l
}

// restore puts back what a record proves. Records are fewer than MaxBuckets allows, or were when they were written.
func (l *ledger) restore(r restoredWindow) {
	sh := &l.shards[shardOf(&r.id)]
	if r.span.end(r.n)+int64(r.span)+l.slackMillis <= sh.maxMillis {
		if r.slot != noSlot {
			l.records.release(r.slot, r.n)
		}
		return
	}
	var b *bucket
	if r.cell {
		if b = sh.cells[r.id]; b == nil {
			b = sh.addCell(r.id, r.span, r.alg)
		}
		// A cell stands for buckets that may have had counters of their own which found no room in the file.
		r.lost = r.lost || r.span.begin(r.n) <= l.lostThrough
	} else if b = sh.get(&r.id); b == nil {
		if b = sh.add(&r.id, r.span, r.alg); b == nil {
			// There is no room for names made up to collide: what the record proves cannot be kept apart.
			l.lostThrough = max(l.lostThrough, r.span.begin(r.n))
			return
		}
	}
	if b.find(r.n) != nil { // the process died while it moved the record: this is a copy
		if r.slot != noSlot {
			l.records.release(r.slot, r.n)
		}
		return
	}
	// The ceiling holds what was given too, and the limit that it was spent under is not recorded.
	b.wins = append(b.wins, window{n: r.n, used: r.ceiling, received: r.received, slot: r.slot, lost: r.lost, vague: true})
}

func (l *ledger) markMillis() int64 { return l.mark.Load() }

// outbox collects packets to be sent once no lock is held.
type outbox struct {
	data []byte
	to   []outPacket
}

type outPacket struct {
	peer       uint16
	start, end int
}

func (o *outbox) add(peer uint16, encode func([]byte) []byte) {
	start := len(o.data)
	o.data = encode(o.data)
	o.to = append(o.to, outPacket{peer, start, len(o.data)})
}

func validCharge(c *Charge) bool {
	return c.Cost >= 1 && c.Cost <= maxCost && validRule(&c.Rule)
}

func validRule(r *Rule) bool {
	if r.Limit < 0 || r.Limit > maxLimit || r.Window < 1 || r.Window > maxWindow {
		return false
	}
	switch r.Algorithm {
	case FixedWindow, SlidingWindow:
		return r.Burst == 0
	case TokenBucket:
		return r.Burst >= 1 && r.Burst <= maxLimit
	}
	return false
}

func (l *ledger) unlock(mask uint64) {
	for m := mask; m != 0; m &= m - 1 {
		l.shards[bits.TrailingZeros64(m)].mu.Unlock()
	}
}

// take charges all or none and fills verdicts. Where shares that others are believed to hold would let the request
// pass, and w is not nil, it asks for them, leaves w with the first bucket that lacks some and returns pending: the
// caller takes again when w is woken, or after a while, and at last with a nil w. w must be one that no other call uses.
func (l *ledger) take(t instant, charges []Charge, verdicts []Verdict, w *waiter, out *outbox) (outcome Outcome, pending bool) {
	if len(charges) == 1 {
		return l.takeLocked(t, charges, verdicts, w, out, 1<<shardOf(&charges[0].Bucket))
	}
	var mask uint64
	for i := range charges {
		mask |= 1 << shardOf(&charges[i].Bucket)
	}
	return l.takeLocked(t, charges, verdicts, w, out, mask)
}

func (l *ledger) takeLocked(t instant, charges []Charge, verdicts []Verdict, w *waiter, out *outbox, mask uint64) (Outcome, bool) {
	v := l.view.Load()
	closed := false
	for m := mask; m != 0; m &= m - 1 {
		sh := &l.shards[bits.TrailingZeros64(m)]
		sh.mu.Lock()
		l.advance(sh, t.ms)
		closed = closed || sh.closed
	}
	if closed {
		l.unlock(mask)
		for i := range charges {
			charges[i].charged = 0
			verdicts[i] = Verdict{Outcome: Undecided, Limit: charges[i].Rule.Limit, RetryAfter: 1}
		}
		return Undecided, false
	}
	outcome := Admitted
	for i := range charges {
		c := &charges[i]
		c.charged = 0
		c.id = v.name(c.Bucket, c.Rule.Window, t.ms)
		verdicts[i].Outcome = l.try(v, c, t)
		outcome = max(outcome, verdicts[i].Outcome)
	}
	pending := false
	if outcome != Admitted {
		for i := range charges {
			l.undo(&charges[i])
		}
		if outcome == Refused && w != nil {
			pending = l.seek(v, charges, verdicts, t, w, out)
		}
		if outcome == Refused && !pending && (w == nil || w.waited) {
			l.contest(charges, verdicts, w, t)
		}
		for i := 0; i < len(charges) && !pending; i++ {
			l.returnUnused(&charges[i], t, out)
		}
	} else {
		for i := range charges {
			l.settle(v, &charges[i], t, out)
		}
		if w != nil && w.waited {
			l.won(charges)
		}
	}
	if !pending {
		for i := range charges {
			if why := l.report(v, &charges[i], &verdicts[i], t, outcome, w == nil); why != 0 {
				l.shards[shardOf(&charges[i].Bucket)].note(&charges[i], t.ms, why)
			}
		}
	}
	for m := mask; m != 0; m &= m - 1 {
		l.trim(&l.shards[bits.TrailingZeros64(m)], t.mono)
	}
	l.unlock(mask)
	return outcome, pending
}

// try spends c in memory if the rule allows, so that a bucket named twice counts twice. undo takes it back, under the
// same locks.
func (l *ledger) try(v *view, c *Charge, t instant) Outcome {
	if !validCharge(c) {
		return Refused
	}
	sh := &l.shards[shardOf(&c.Bucket)]
	b := l.obtain(sh, &c.id, c.Rule, false)
	if b == nil || b.span != span(c.Rule.Window*1000) || b.alg != c.Rule.Algorithm {
		return Undecided
	}
	if b.alg == TokenBucket {
		return l.tryTokens(v, b, c, t)
	}
	n := b.span.at(t.ms)
	if b.cell && !l.unsafeCellBack && v.handedBack(&c.id, b.span.begin(n-1)) {
		return Undecided // the cell does not know what the bucket spent in the window before
	}
	b.goBy(c.Rule.Limit)
	s := l.stand(sh, v, b, n, c.Rule.Limit, t)
	if s.undecided {
		return Undecided
	}
	if c.Cost*grains > s.room {
		return Refused
	}
	win := l.window(sh, b, n)
	if win == nil {
		return Undecided
	}
	win.used += c.Cost * grains
	c.charged = n + 1
	return Admitted
}

// at finds the bucket that c is counted in: its own, or the overflow cell that stood for it.
func (l *ledger) at(c *Charge) (*shard, *bucket) {
	sh := &l.shards[shardOf(&c.Bucket)]
	if b := sh.get(&c.id); b != nil {
		return sh, b
	}
	return sh, sh.cells[overflowID(&c.id, span(c.Rule.Window*1000), c.Rule.Algorithm)]
}

func (l *ledger) undo(c *Charge) {
	if c.charged == 0 {
		return
	}
	if _, b := l.at(c); b != nil && b.alg == TokenBucket {
		b.undoTokens(c)
	} else if b != nil {
		if win := b.find(c.charged - 1); win != nil {
			win.used -= c.Cost * grains
		}
	}
	c.charged = 0
}

// settle makes what try spent lasting: the record first, since the answer goes out as soon as the locks are open.
func (l *ledger) settle(v *view, c *Charge, t instant, out *outbox) {
	sh, b := l.at(c)
	if b.alg == TokenBucket {
		l.settleTokens(sh, v, b, c, t, out)
		return
	}
	win := b.find(c.charged - 1)
	l.record(b, win)
	sh.touch(b, c.Rule.Limit, win)
	l.askAhead(sh, v, b, c, t, out)
}

// record writes win's ceiling ahead of the use that it covers. It is exact: one store to mapped memory costs less than
// what raising by chunks would leave unused after a restart.
func (l *ledger) record(b *bucket, win *window) {
	if l.records == nil || l.unsafeNoRecord || int64(b.span) < recordedMillis {
		return
	}
	if win.slot == noSlot {
		win.slot = l.records.claim(b, win)
		return
	}
	l.records.raise(win)
}

// touch notes that the others do not know b's counters yet. Near its limit they matter most.
func (sh *shard) touch(b *bucket, limit int64, win *window) {
	if b.cell || b.dirty && b.kind == markHot {
		return
	}
	kind := markCold
	if len(win.cells) > 0 || b.ask.seq != 0 || win.used*8 >= limit*grains {
		kind = markHot
	}
	if b.dirty {
		if kind == markCold {
			return
		}
		sh.unlist(b)
	}
	sh.list(b, kind)
}

// report fills the verdict but for its outcome, after the charge or without it, and says why it does not admit, 0 where it
// does. whole is the outcome of all charges together, 0 for a peek, which is not counted. last says that the request has
// waited in vain.
func (l *ledger) report(v *view, c *Charge, verdict *Verdict, t instant, whole Outcome, last bool) (why Reason) {
	sh := &l.shards[shardOf(&c.Bucket)]
	verdict.Limit = c.Rule.Limit
	verdict.Remaining, verdict.RetryAfter, verdict.Waited = 0, 0, false
	switch whole {
	case Admitted:
		sh.stats.admitted++
	case Refused:
		sh.stats.refused++
	case Undecided:
		sh.stats.undecided++
	}
	if !validCharge(c) {
		verdict.ResetAt, verdict.RetryAfter = t.ms/1000+1, 1
		return 0
	}
	if c.Rule.Algorithm == TokenBucket {
		return l.reportTokens(v, c, verdict, t, last)
	}
	s := span(c.Rule.Window * 1000)
	n := s.at(t.ms)
	verdict.ResetAt = s.end(n) / 1000
	if verdict.Outcome == Undecided {
		verdict.RetryAfter = 1
		return l.whyUndecided(v, c, t)
	}
	_, b := l.at(c)
	if b == nil {
		// It spent nothing, and made room for another charge of this very request: all that is known is the window.
		verdict.RetryAfter = max((s.end(n)-t.ms+999)/1000, 1)
		return 0
	}
	st := l.stand(sh, v, b, n, c.Rule.Limit, t)
	var sv survey
	l.surveyBucket(v, b, &st, n, c.Rule.Limit, &sv)
	verdict.Remaining = sv.remaining(b, n, c.Rule.Limit, t.ms)
	if verdict.Outcome == Refused {
		if whole != 0 {
			b.noteRefusal(n, verdict.Remaining, c)
		}
		// Units that the cluster still has but could not bring here in time are no promise to this client.
		verdict.Remaining = min(verdict.Remaining, c.Cost-1)
		at := sv.retryMillis(b, n, c.Cost*grains, t.ms)
		verdict.RetryAfter = max((at-t.ms+999)/1000, 1)
		return l.whyRefused(v, b, c, &st, t, last)
	}
	return 0
}

// peek is take without the charge, the waiting and the asking. What peers are believed to have counts as there.
func (l *ledger) peek(t instant, charge Charge) Verdict {
	var verdict Verdict
	charges := [1]Charge{charge}
	c := &charges[0]
	v := l.view.Load()
	sh := &l.shards[shardOf(&c.Bucket)]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.closed {
		return Verdict{Outcome: Undecided, Limit: c.Rule.Limit, RetryAfter: 1}
	}
	defer l.trim(sh, t.mono)
	l.advance(sh, t.ms)
	c.id = v.name(c.Bucket, c.Rule.Window, t.ms)
	verdict.Outcome = l.try(v, c, t)
	switch {
	case verdict.Outcome == Admitted:
		l.undo(c)
	case verdict.Outcome == Refused && l.hopeful(v, charges[:], 0, t):
		verdict.Outcome = Admitted
	}
	l.report(v, c, &verdict, t, 0, false)
	return verdict
}

// refund gives back what take charged, in the window that it charged.
func (l *ledger) refund(charges []Charge) {
	for i := range charges {
		c := &charges[i]
		if c.charged == 0 {
			continue
		}
		sh := &l.shards[shardOf(&c.Bucket)]
		sh.mu.Lock()
		// A bucket that moved between its own counters and an overflow cell since is left alone: units stay spent.
		if _, b := l.at(c); b != nil && !b.cell && !sh.closed { // closed: at looks into no record
			if b.alg == TokenBucket {
				if l.refundTokens(b, c) {
					sh.touchTokens(b)
					b.wake()
				}
			} else if win := b.find(c.charged - 1); win != nil && win.used >= c.Cost*grains {
				win.used -= c.Cost * grains
				win.vague = true
				sh.touch(b, c.Rule.Limit, win)
				b.wake()
			}
		}
		sh.mu.Unlock()
		c.charged = 0
	}
}

// close ends all deciding and recording: when it returns, nothing touches the records any more.
func (l *ledger) close() {
	for i := range l.shards {
		sh := &l.shards[i]
		sh.mu.Lock()
		sh.closed = true
		sh.mu.Unlock()
	}
}

// setState takes over a newer replicated state; one that is older than what is known changes nothing.
func (l *ledger) setState(s State) {
	v := newView(s, l.peers, l.self, l.list)
	v.gens = newGenerations(s.Resets, l.view.Load().gens)
	if l.unsafeNewest && len(v.rosters) > 0 {
		v.rosters = v.rosters[len(v.rosters)-1:]
		v.rosters[0].from, v.horizon = 0, 1<<60
	}
	for {
		old := l.view.Load()
		if v.older(old) {
			return
		}
		if l.view.CompareAndSwap(old, v) {
			l.announce(old, v)
			return
		}
	}
}
