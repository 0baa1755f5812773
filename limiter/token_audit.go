package limiter

import "math/bits"

// The auditor of token buckets. There are no windows to sum up, so each node counts what it admits from some moment on, and says
// how much and how long ago that was. Then for any moment S, and any nodes that began to count after it,
//
//	what these count ≤ burst + rate · (now − S)
//
// where now is when the last of them was heard. News that is lost, late or repeated makes the left side smaller or the right one
// greater, and so does leaving nodes out. What it takes is a moment by this node's clock before which another node did not count
// (clockBound): wall clocks may differ by anything, so that comes from asking for the reading of its monotonic clock. What was
// counted and does not count after all (a refund), or was had by another rule, makes the counts of a node *blurred*: it begins
// anew once a bucket that had spent it all would be full again. Whoever borrows from it meanwhile, or gets back what it lent to
// it, is blurred for as long.

// clockBound says that when the monotonic clock of another node's incarnation showed theirs, this node's showed mine or more: it
// answered a question that was asked at mine.
type clockBound struct {
	inc          uint64
	mine, theirs int64
}

const (
	// driftPart is the part of a time by which two clocks differ at most after it.
	driftPart = 1000
	// clockEvery is how often a node that speaks of token buckets is asked for its clock, clockAgain the same until it answers;
	// maxClockAsks bounds the questions of one interval.
	clockEvery   = int64(10e9)
	clockAgain   = int64(1e9)
	maxClockAsks = 16
	// countFills is after how many times of filling the bucket a node counts anew, countNanos the least time for that: what an
	// attack leaves unused adds up, and hides as much of an excess.
	countFills = 64
	countNanos = int64(60e9)
	// auditStarts bounds the moments S that are tried.
	auditStarts = 16
)

// at is this node's reading before which the other's did not show theirs.
func (c *clockBound) at(theirs int64) int64 {
	d := theirs - c.theirs
	return c.mine + d - max(d, -d)/driftPart
}

// bind takes over what an answer that came at now proves, if that is more than what is known. What is known cannot be where it
// puts a reading that is past behind now: then one of the clocks stood still, as those of a frozen machine do.
func (p *peer) bind(c clockBound, now int64) {
	old := p.bound.Load()
	if old != nil {
		known := old.at(c.theirs)
		if old.inc > c.inc || old.inc == c.inc && known > c.mine && known <= now {
			return
		}
	}
	p.bound.CompareAndSwap(old, &c)
}

// askClocks asks those whose levels were heard, now and then, what their clocks show.
func (l *ledger) askClocks(t instant, to []uint16, send func(peer uint16, packet []byte)) {
	asked := 0
	for _, peer := range to {
		p := l.peers.at(peer)
		if !p.wantClock.Load() {
			continue
		}
		pause := clockAgain
		if c := p.bound.Load(); c != nil && c.inc == p.inc.Load() {
			pause = clockEvery
		}
		if p.clockAskedAt != 0 && t.mono-p.clockAskedAt < pause {
			continue
		}
		p.clockAskedAt = max(t.mono, 1)
		p.wantClock.Store(false)
		send(peer, appendClock(nil, l.header(typeClock, t), &clockMessage{receiver: p.hash, mono: t.mono}))
		if asked++; asked == maxClockAsks {
			return
		}
	}
}

func (l *ledger) onClock(t instant, from uint16, h header, m *clockMessage, out *outbox) {
	if m.receiverInc == 0 {
		answer := clockMessage{receiver: h.sender, receiverInc: h.inc, echo: m.mono, mono: t.mono}
		out.add(from, func(buf []byte) []byte { return appendClock(buf, l.header(typeClock, t), &answer) })
		return
	}
	if m.receiverInc == l.inc && m.echo <= t.mono {
		l.peers.at(from).bind(clockBound{inc: h.inc, mine: m.echo, theirs: m.mono}, t.mono)
	}
}

func (l *ledger) header(kind uint8, t instant) header {
	return header{kind, l.selfHash, l.inc, l.seq.Add(1), t.ms}
}

// count notes an admission. It begins anew where nothing was missing.
func (tk *tokens) count(units, nanos int64) {
	if tk.at < tk.countFrom {
		return
	}
	if !tk.spent || tk.at-tk.countFrom > max(countNanos, tk.refill(nanos, countFills)) {
		tk.countFrom, tk.counted = tk.at/levelNanos*levelNanos, 0
	}
	tk.counted = min(tk.counted+units, maxWireUnit)
}

// uncount takes back what was counted at this very instant.
func (tk *tokens) uncount(units int64) {
	if tk.at >= tk.countFrom {
		tk.counted = max(tk.counted-units, 0)
	}
}

// refill is how long it takes to fill the bucket so many times.
func (tk *tokens) refill(nanos, times int64) int64 {
	if tk.limit == 0 {
		return maxRefill
	}
	return min(nanosUntil(max(tk.burst, tk.highest)*grains, 0, tk.limit*grains, nanos), maxRefill/times) * times
}

// blur ends the counting until a bucket that is empty now would be full, and all loans are over. least is the lowest limit
// that has to do with it.
func (tk *tokens) blur(least, nanos int64) {
	till := maxRefill
	if least > 0 {
		till = nanosUntil(max(tk.burst, tk.highest)*grains, 0, least*grains, nanos)
	}
	// Twice the lease: an answer that was lost is given again as long as its loan runs.
	till = ceilDiv(tk.at+till+2*(leaseNanos+graceNanos), levelNanos) * levelNanos
	tk.countFrom, tk.counted = max(tk.countFrom, till), 0
}

// forgetCounts drops what peers count, by the rule that was in force here before.
func (tk *tokens) forgetCounts() {
	if tk.trade != nil {
		for i := range tk.trade.levels {
			tk.trade.levels[i].counted = 0
		}
	}
}

func (tk *tokens) blurred() bool { return tk.at < tk.countFrom }

// countAge is how many milliseconds before mono the node began to count, rounded up.
func (tk *tokens) countAge(mono int64) int64 {
	return max(ceilDiv(max(mono, tk.at)-tk.countFrom, levelNanos), 0)
}

// hearCount takes over what a peer counts: age milliseconds after it began, by its clock then, which showed theirs. Counts by
// another rule are left out: which one was in force where is not known.
func (l *ledger) hearCount(b *bucket, k *level, rule *Rule, counted, age, theirs int64) {
	p := l.peers.at(k.peer)
	k.counted = 0
	if !p.wantClock.Load() {
		p.wantClock.Store(true)
	}
	c := p.bound.Load()
	if counted == 0 || rule.Limit != b.tok.limit || rule.Burst != b.tok.burst || c == nil || c.inc != k.inc {
		return
	}
	if c.at(theirs) > k.heard {
		p.bound.CompareAndSwap(c, nil) // a clock stood still (bind)
		return
	}
	k.counted, k.countFrom = counted, min(floorDiv(c.at(theirs-age*levelNanos), levelNanos)*levelNanos, k.heard)
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// auditTokens looks for an excess in b.
func (l *ledger) auditTokens(sh *shard, b *bucket) {
	tk := b.tok
	if tk == nil || tk.limit == 0 || tk.trade == nil {
		return
	}
	most := int64(0)
	tried := 0
	if tk.counted > 0 {
		most = b.excess(tk.countFrom)
		tried++
	}
	for i := range tk.trade.levels {
		if k := &tk.trade.levels[i]; k.counted > 0 && tried < auditStarts {
			most = max(most, b.excess(k.countFrom))
			tried++
		}
	}
	if most > 0 {
		sh.noteOver(auditKey{b.id, -tk.birth}, most)
	}
}

// excess is by how many grains all that began to count at start or after it is beyond what may have passed since.
func (b *bucket) excess(start int64) int64 {
	tk := b.tok
	sum, end := int64(0), start
	if tk.counted > 0 && tk.countFrom >= start {
		sum, end = tk.counted, max(end, tk.at)
	}
	for i := range tk.trade.levels {
		if k := &tk.trade.levels[i]; k.counted > 0 && k.countFrom >= start {
			sum, end = min(sum+k.counted, maxSum/grains), max(end, k.heard)
		}
	}
	t := end - start
	if t += t/driftPart + levelNanos; t < 0 || sum <= tk.burst {
		return 0
	}
	hi, lo := bits.Mul64(uint64(t), uint64(tk.limit*grains))
	nanos := uint64(b.span.nanos())
	if hi >= nanos {
		return 0
	}
	gained, _ := bits.Div64(hi, lo, nanos)
	return max((sum-tk.burst)*grains-int64(min(gained, uint64(maxSum))), 0)
}
