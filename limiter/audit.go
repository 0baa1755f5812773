package limiter

// The auditor sums up, beside the ledger and by none of its rules, what all nodes say they have spent, and holds it against
// the limit:
//
//	used(n) + w · used(n−1) ≤ limit
//
// summed over this node and its peers, w as a clock further ahead than any that decided would have it (0 for fixed windows, and
// for any window that has ended). Every node audits the buckets that it knows of, so the same excess may be found by several.
//
// What a node says of itself is old, and news is lost; so each term must be such that more news only raises it. Then the
// sum is never above the true one, and what is over is over. Terms that could fall are marked *vague* by the node that
// says them, and a window with a vague term is left out:
//
//   - a request was refunded (used fell);
//   - the limit changed while the window was open (used was spent under one that is not named any more);
//   - used comes from a record or an overflow cell (it counts more than this node spent on this bucket);
//   - the node's clock went back, or is beyond the skew bound (w would be too great).
//
// A refunded unit may be given away and spent elsewhere while the news of the refund is lost. So units carry the mark: a
// window that is given something out of a vague one is vague from then on (taint).

// auditStats is what one shard's audits found.
type auditStats struct {
	over      uint64 // grains spent beyond limits
	windows   uint64 // windows that ended and were summed up
	vague     uint64 // windows that ended and could not be
	contested uint64 // of those summed up, windows in which this node refused somebody
	unused    uint64 // millionths of the limit that these left unused, summed up
}

// auditKey names a window, or a token bucket from its first request to when all is back, by −birth.
type auditKey struct {
	id BucketID
	n  int64
}

const (
	// maxOver bounds the windows that are remembered as exceeded, in each shard: a found excess is counted once.
	maxOver = 1024
	maxSum  = int64(1) << 61
	million = 1_000_000
)

// tally is what is known of two windows.
type tally struct {
	used, prevUsed, limit int64
	vague                 bool
	late                  bool // a peer has moved on so far that what it used is not known any more
}

// add takes in what one node says of windows n and n−1.
func (a *tally) add(b *bucket, used, prevUsed, limit int64, vague, prevVague bool) {
	if b.alg != SlidingWindow {
		prevUsed, prevVague = 0, false
	}
	if used == 0 && prevUsed == 0 && !vague && !prevVague {
		return
	}
	// Whatever a member claims, sums stay far from overflowing.
	a.used = min(a.used+used, maxSum)
	a.prevUsed = min(a.prevUsed+prevUsed, maxSum)
	a.limit = max(a.limit, limit)
	a.vague = a.vague || vague || prevVague
}

// sum is what is known of windows n and n−1 of b.
func (b *bucket) sum(n int64) (a tally) {
	var used, prevUsed int64
	var vague, prevVague bool
	if w := b.find(n); w != nil {
		used, vague = w.used, w.vague
	}
	if w := b.find(n - 1); w != nil {
		prevUsed, prevVague = w.used, w.vague
	}
	a.add(b, used, prevUsed, b.limit, vague, prevVague)
	for i := range b.know {
		k := &b.know[i]
		vague, prevVague := k.flags&flagVague != 0, k.flags&flagPrevVague != 0
		switch k.n {
		case n:
			a.add(b, k.used, k.prevUsed, k.limit, vague, prevVague)
		case n + 1:
			a.add(b, k.prevUsed, 0, k.limit, prevVague, false)
		case n - 1:
			a.add(b, 0, k.used, k.limit, false, vague)
		default:
			a.late = a.late || k.n > n
		}
	}
	return a
}

// audit looks at one bucket, by the greatest clock reading acted on in its shard.
func (l *ledger) audit(sh *shard, b *bucket) {
	if b.alg == TokenBucket && !b.cell {
		l.auditTokens(sh, b)
		return
	}
	if b.cell || b.alg != FixedWindow && b.alg != SlidingWindow || len(b.wins) == 0 && len(b.know) == 0 {
		return
	}
	now := b.span.at(sh.maxMillis)
	for n := now - 1; n <= now+1; n++ {
		l.auditWindow(sh, b, n)
	}
	for i := range b.wins {
		if w := &b.wins[i]; !w.audited && sh.maxMillis >= b.span.end(w.n)+l.settled(b.span) {
			w.audited = true
			l.closeWindow(sh, b, w)
		}
	}
}

// auditWindow looks for an excess in window n, open or not.
func (l *ledger) auditWindow(sh *shard, b *bucket, n int64) {
	a := b.sum(n)
	if a.vague || a.used == 0 {
		return
	}
	// A decision that counts here was made by a clock at most one skew ahead of what its node said since (else that was vague),
	// which was at most one ahead of this node's (doubt); and units came on the way from clocks one ahead of that at most
	// (taint).
	weighed := mulFloor(a.prevUsed, b.span.inView(n, sh.maxMillis+3*l.skewMillis), int64(b.span))
	over := a.used + weighed - a.limit*grains
	if over <= 0 {
		return
	}
	sh.noteOver(auditKey{b.id, n}, over)
}

// noteOver counts an excess, as far as it was not found before.
func (sh *shard) noteOver(key auditKey, over int64) {
	before, known := sh.over[key]
	if over <= before {
		return
	}
	if sh.over == nil {
		sh.over = make(map[auditKey]int64)
	}
	if !known && len(sh.over) >= maxOver {
		return // the alarm rings already
	}
	sh.over[key] = over
	sh.stats.audit.over += uint64(over - before)
}

// settled is how long after a window's end its news is in, and yet what was used in it is still known.
func (l *ledger) settled(s span) int64 { return min(int64(s)/2, 2*l.skewMillis+1000) }

// closeWindow takes stock of a window of this node's that has ended.
func (l *ledger) closeWindow(sh *shard, b *bucket, w *window) {
	st := &sh.stats.audit
	a := b.sum(w.n)
	if a.vague || a.late || a.limit == 0 {
		st.vague++
		return
	}
	st.windows++
	if w.refused == 0 {
		return
	}
	st.contested++
	// What slid out later was not there to be had when somebody was refused.
	left := min(int64(w.refused-1)*million/refusedParts, mulFloor(max(a.limit*grains-a.used, 0), million, a.limit*grains))
	st.unused += uint64(left)
}

const refusedParts = 254

// noteRefusal notes that c was refused in window n while left units were left in the cluster, as far as this node knows. Units
// that are fewer than c asked for are not wasted.
func (b *bucket) noteRefusal(n, left int64, c *Charge) {
	w := b.find(n)
	if w == nil || b.cell {
		return
	}
	w.refused = 1
	if left >= c.Cost {
		w.refused += uint8(mulFloor(left, refusedParts, max(c.Rule.Limit, left)))
	}
}

// goBy notes the limit that the rule is reckoned with from now on.
func (b *bucket) goBy(limit int64) {
	if b.limit == limit {
		return
	}
	if b.limit != 0 {
		for i := range b.wins {
			b.wins[i].vague = true
		}
	}
	b.limit = limit
}

// doubt marks what a node with a clock beyond the skew bound says.
func (l *ledger) doubt(sh *shard, h header, c *counters) {
	if h.clock > sh.maxMillis+l.skewMillis {
		c.flags |= flagVague | flagPrevVague
	}
}

// taint marks a window that was given something out of a vague one, or by a clock that is ahead of this node's: by so little
// that all nodes one after another, each ahead of the next, stay within the skew bound.
func (l *ledger) taint(sh *shard, b *bucket, w *window, h header, m *answerMessage) {
	vague := m.counters.flags&flagVague != 0 || b.alg == SlidingWindow && m.counters.flags&flagPrevVague != 0
	ahead := l.skewMillis / int64(max(l.rosterSize(l.view.Load(), b, w.n), 1))
	// Units that were given under another limit may come in after the change, into a window that had none of them.
	w.vague = w.vague || vague || h.clock > sh.maxMillis+ahead || m.counters.limit != b.limit
}
