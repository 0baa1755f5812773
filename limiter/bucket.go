package limiter

// cell is the cumulative number of grains that one incarnation of a donor has given to one incarnation of a receiver, in
// one window of one bucket. Only the donor raises it; the receiver merges by maximum, so that lost, repeated and
// reordered messages do no harm. The node's own present incarnation is the other end.
type cell struct {
	value int64
	inc   uint64 // the other end's incarnation
	peer  uint16 // the other end
	out   bool   // given by this node
}

// window is what this node knows of its own part of a bucket in one window, in grains.
type window struct {
	n        int64
	used     int64 // spent here
	given    int64 // handed to others, debited before they heard of it
	received int64 // handed to this node's present incarnation, and what its record proves of earlier ones
	cells    []cell
	slot     int32 // of its record, noSlot for none
	// lost means that this node may have acted in the window and cannot prove what it did: its base share there is 0.
	lost bool
	// For the auditor (audit.go): used is no lower bound of what was spent for good; the window is done with; somebody was
	// refused, 0 for nobody, else 1 + the 254ths of the limit that were left then.
	vague   bool
	audited bool
	refused uint8
}

const noSlot int32 = -1

func (w *window) net() int64 { return w.used + w.given - w.received }

// touched says whether the node has spent or given in the window.
func (w *window) touched() bool { return w.used+w.given > 0 }

func (w *window) cell(peer uint16, inc uint64, out bool) *cell {
	for i := range w.cells {
		c := &w.cells[i]
		if c.peer == peer && c.inc == inc && c.out == out {
			return c
		}
	}
	return nil
}

// bucket is one live bucket. Its shard's mutex guards it.
type bucket struct {
	id    BucketID
	span  span
	alg   Algorithm
	cell  bool // an overflow cell, shared by buckets that found no room of their own
	live  bool
	dirty bool // has counters that no packet has carried yet
	// recent: named since trim last came by.
	recent bool
	index  int32
	kind   int   // of its list of those with news
	listAt int32 // its place there
	limit  int64 // as last asked for here
	wins   []window
	first  [3]window // wins' first backing
	rank   [2]rankMemo
	know   []counters // what peers said of themselves
	cells  []cell     // backing of windows' cells that came out of the packed form
	ask    ask
	tok    *tokens // of a token bucket, which has no windows
	spare  *tokens // memory for the next one
}

// rankMemo saves reckoning the rendezvous order for each request.
type rankMemo struct {
	roster uint64 // index + 1
	rank   int32
}

// ask is the request for shares under way, at most one for a bucket.
type ask struct {
	peer     uint16
	inFlight bool
	n        int64
	seq      uint64
	sentMono int64
	quietTo  int64 // monotonic time before which no share is asked for ahead of need
	waiting  int64 // grains that wait for it
	queued   int
	waiters  *waiter
}

// waiter is a request that waits for shares. The shell wakes it over ch.
type waiter struct {
	ch         chan struct{}
	probe      bool // it only wants to know whether there would be something to wait for
	woken      bool
	waited     bool  // it was left with a bucket
	units      int64 // grains
	on         *bucket
	next, prev *waiter
}

func (b *bucket) addWaiter(w *waiter, units int64) {
	w.on, w.units, w.woken, w.waited, w.prev, w.next = b, units, false, true, nil, b.ask.waiters
	if w.next != nil {
		w.next.prev = w
	}
	b.ask.waiters = w
	b.ask.waiting += units
	b.ask.queued++
}

func (b *bucket) dropWaiter(w *waiter) {
	if w.on != b {
		return
	}
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		b.ask.waiters = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	}
	b.ask.waiting -= w.units
	b.ask.queued--
	w.on, w.next, w.prev = nil, nil, nil
}

// wake lets every waiter look again.
func (b *bucket) wake() {
	for b.ask.waiters != nil {
		w := b.ask.waiters
		b.dropWaiter(w)
		w.woken = true
		if w.ch != nil {
			select {
			case w.ch <- struct{}{}:
			default:
			}
		}
	}
}

func (b *bucket) find(n int64) *window {
	for i := range b.wins {
		if b.wins[i].n == n {
			return &b.wins[i]
		}
	}
	return nil
}

// standing is what the rule says of one window at one instant, in grains.
type standing struct {
	base   int64 // this node's base share
	net    int64
	charge int64
	room   int64 // what may be spent or given now; may be negative
	// undecided: the node cannot tell without risking the limit. room is 0 then.
	undecided   bool
	undecidedBy Reason
	lost        bool // the base is 0 since what was done in the window cannot be proven
}

func undecided(why Reason) standing { return standing{undecided: true, undecidedBy: why} }

// stand reckons the rule for window n of b at limit: after spending or giving x ≤ room units,
//
//	net + ⌈w · charge⌉ ≤ base
//
// holds in n and, for sliding windows, in n+1 where that is open here.
func (l *ledger) stand(sh *shard, v *view, b *bucket, n, limit int64, t instant) standing {
	var s standing
	begin := b.span.begin(n)
	mark := l.markMillis()
	if sh.left {
		return undecided(ReasonLeft)
	}
	if t.ms > mark || begin > mark {
		return undecided(ReasonMark)
	}
	r := v.governing(begin)
	if r == nil {
		return undecided(ReasonRoster)
	}
	if begin >= v.horizon && !l.available {
		return undecided(ReasonHorizon)
	}
	win := b.find(n)
	if win == nil && l.gone(sh, b, n) {
		return undecided(ReasonGone)
	}
	lost := win != nil && win.lost || win == nil && l.lostWindow(sh, b, n)
	if win != nil {
		s.net = win.net()
	}
	if s.lost = lost; !lost {
		s.base = l.share(b, r, limit)
	}
	if !lost || l.unsafeHeirLost {
		// An heir without counters of its own does not know what it spent of what it inherited.
		e := l.estate(v, r, b, n, limit)
		s.base += e.base
		s.net += e.net
	}
	if b.alg != SlidingWindow {
		s.room = s.base - s.net
		return s
	}
	s.charge = l.charge(sh, v, b, n, limit, lost)
	s.room = s.base - s.net - b.span.weigh(s.charge, n, t.ms)
	l.standNext(sh, v, b, n, limit, t, &s)
	return s
}

// charge is what window n−1 weighs in window n: its net and what the base grew by since through the roster, less what it
// shrank by, and never less than nothing. So net(n) + w·net(n−1) stays at or below (1−w)·base(n) + w·base(n−1) on each
// node, and the sum of these at or below the limit. Of what there are no counters for n−1 it is the whole base.
func (l *ledger) charge(sh *shard, v *view, b *bucket, n, limit int64, lost bool) int64 {
	before := b.find(n - 1)
	r, rBefore := v.governing(b.span.begin(n)), v.governing(b.span.begin(n-1))
	base, baseBefore := l.share(b, r, limit), l.share(b, rBefore, limit)
	p := l.passage(v, rBefore, r, b, n, limit)
	if before != nil && before.lost || before == nil && l.lostWindow(sh, b, n-1) ||
		v.handedBack(&b.id, b.span.begin(n-1)) && !l.unsafeHandBack {
		if lost {
			return 0 // the base that would be charged is nothing
		}
		return max(base, baseBefore) + p.all
	}
	charge := p.net
	if before != nil {
		if charge += before.net(); l.unsafeUsedCharge {
			charge = before.used
		}
	}
	if !lost && !l.unsafeNoGrowth {
		charge += base + p.base - baseBefore - p.baseBefore
	}
	if !l.unsafeSigned {
		charge = max(0, charge)
	}
	if lost {
		return charge
	}
	return charge + p.unknown
}

// standNext lowers room so that the rule holds in window n+1 too, where a spend in n changes the charge of a window in
// which this node may have acted already: one that begins at or below the mark.
func (l *ledger) standNext(sh *shard, v *view, b *bucket, n, limit int64, t instant, s *standing) {
	begin := b.span.begin(n + 1)
	now := v.governing(b.span.begin(n))
	mark := l.markMillis()
	if now != nil && !l.unsafeHeirMark {
		mark = max(mark, now.heritageMark) // a leaver may have acted there
	}
	if begin > mark || l.unsafeOneWindow {
		return
	}
	next := b.find(n + 1)
	lost := next != nil && next.lost || next == nil && l.lostWindow(sh, b, n+1)
	r := v.governing(begin)
	if r == nil || begin >= v.horizon && !l.available {
		// There is no base in n+1 yet. Where it is known that nothing was spent or given there, nothing relied on the charge
		// either, and the rule will be reckoned when something is.
		if lost || next != nil && next.touched() || l.legacyActed(v, now, b, n+1) {
			*s = undecided(ReasonOpenNext)
		}
		return
	}
	var base, net int64
	var e estate
	if !lost {
		base = l.share(b, r, limit)
		e = l.estate(v, r, b, n+1, limit)
	}
	if next != nil {
		net = next.net()
	}
	units := base + e.base - net - e.net
	if units < 0 {
		s.room = min(s.room, 0)
		return
	}
	charge := b.span.unweigh(units, n+1, t.ms)
	if charge < 0 {
		return
	}
	p := l.passage(v, now, r, b, n+1, limit)
	if charge -= p.unknown; charge < 0 {
		s.room = min(s.room, 0)
		return
	}
	growth := base + p.base - l.share(b, now, limit) - p.baseBefore
	s.room = min(s.room, charge-growth-s.net)
}

// share is this node's base share of limit under r, in grains.
func (l *ledger) share(b *bucket, r *rosterView, limit int64) int64 {
	if r == nil || r.self < 0 || r.self >= r.size {
		return 0
	}
	n := int64(r.size)
	q, rest := limit/n, limit%n
	// An overflow cell stands for many buckets, each with an order of its own: only what is certain counts.
	if rest == 0 || b.cell {
		return q * grains
	}
	if int64(l.order(b, r)) < rest {
		q++
	}
	return q * grains
}

// order is this node's place in the bucket's rendezvous order, which must have one.
func (l *ledger) order(b *bucket, r *rosterView) int32 {
	memo := &b.rank[r.index&1]
	if memo.roster != r.index+1 {
		*memo = rankMemo{roster: r.index + 1, rank: int32(r.rank(b.id.low(), r.self))}
	}
	return memo.rank
}

// gone says whether a window ended so long ago that its counters may have been dropped: long after any clock within the
// skew bound can reach it. Nothing is done in such a window any more: a loan that was spent and forgotten would
// count anew.
func (l *ledger) gone(sh *shard, b *bucket, n int64) bool {
	return b.span.end(n)+int64(b.span)+l.slackMillis <= sh.maxMillis
}

// lostWindow says whether a window of which nothing is in memory may nevertheless have been acted in: before the
// last start without a record that would prove it, or so long ago that its counters were dropped.
func (l *ledger) lostWindow(sh *shard, b *bucket, n int64) bool {
	if l.unsafeForget {
		return false
	}
	if l.gone(sh, b, n) {
		return true
	}
	begin := b.span.begin(n)
	if begin > l.startMark {
		return false
	}
	return int64(b.span) < recordedMillis || begin <= l.lostThrough
}
