package limiter

import "math/bits"

// Times of a token bucket's loans, all on clocks that count suspend.
const (
	// leaseNanos is how long after its own ask a receiver holds what it was lent.
	leaseNanos = int64(1e9)
	// graceNanos is how much later the donor takes it back: for readings of the clock that are acted on late, and clocks
	// that do not run equally fast.
	graceNanos = int64(250e6)
)

// tokens is what this node holds of a token bucket, in grains. Together the nodes' caps are at most the burst and
// their rates at most the limit in a window, so what passes in any time t is at most burst + rate · t.
type tokens struct {
	content int64
	frac    int64 // what has accrued of the next grain, in parts of one: there are as many as the window has nanoseconds
	at      int64 // monotonic nanoseconds up to which all is reckoned
	// The rule that it was last reckoned by.
	limit, burst int64
	// spent says that content may be missing because it was spent or lent, at spentAt or before, by spentLimit; and highest is the
	// greatest burst since it was full. Without it the bucket is as good as new.
	spent               bool
	spentAt, spentLimit int64
	highest             int64
	// due is when all that was spent here would be back in the buckets that an overflow cell stands for, by each one's rule.
	due int64
	// room is cap − content. filled is by how much it ever fell, in all: what a refund may give back is what the bucket would
	// hold now had the units never been spent, and that is no more than had room all the time.
	room, filled int64
	birth        int64  // of no other bucket in this process, 0 in none
	generation   uint64 // of the newest reset of the bucket that it was emptied after (ledger.inName)
	// For the auditor (token_audit.go): the units admitted since countFrom, in whole levelNanos. In the future: none are counted yet.
	counted, countFrom int64
	trade              *tokenTrade
}

// tokenTrade is the part of a token bucket that only buckets with a life on other nodes need.
type tokenTrade struct {
	in, out []lease
	levels  []level // what peers said of themselves
	listed  bool    // among the shard's borrowers
	lost    uint8   // times in a row that what was gathered did not do (token_contest.go)
	yieldTo int64   // monotonic time up to which tokens are left to others for it
}

// lease is a loan of content together with the cap to hold it: the receiver has both until end, by its own clock, and the
// donor neither, until a later end, by its own. One ask, named by the asker's incarnation and a sequence, takes
// at most one.
type lease struct {
	units int64 // grains
	end   int64 // monotonic nanoseconds here
	inc   uint64
	seq   uint64
	peer  uint16
}

func (tk *tokens) dealings() *tokenTrade {
	if tk.trade == nil {
		tk.trade = &tokenTrade{}
	}
	return tk.trade
}

// trading says whether a loan runs.
func (tk *tokens) trading() bool {
	return tk.trade != nil && len(tk.trade.in)+len(tk.trade.out) > 0
}

// lent and borrowed are the sums of the loans that run.
func (tk *tokens) lent() (sum int64) {
	if tk.trade != nil {
		for i := range tk.trade.out {
			sum += tk.trade.out[i].units
		}
	}
	return sum
}

func (tk *tokens) borrowed() (sum int64) {
	if tk.trade != nil {
		for i := range tk.trade.in {
			sum += tk.trade.in[i].units
		}
	}
	return sum
}

// note takes account of a cap, which may have changed, after a change of the content.
func (tk *tokens) note(most int64) {
	if tk.content >= most {
		tk.content, tk.frac = most, 0
	}
	room := most - tk.content
	if room < tk.room {
		tk.filled += tk.room - room
	}
	tk.room = room
}

// accrue adds what rate grains in a window of nanos bring in elapsed nanoseconds, rounded down; what was rounded off
// counts the next time.
func (tk *tokens) accrue(elapsed, rate, nanos, most int64) {
	if elapsed > 0 && rate > 0 {
		hi, lo := bits.Mul64(uint64(elapsed), uint64(rate))
		lo, carry := bits.Add64(lo, uint64(tk.frac), 0)
		if hi += carry; hi >= uint64(nanos) {
			tk.content = most
		} else {
			q, rest := bits.Div64(hi, lo, uint64(nanos))
			tk.content += int64(min(q, uint64(max(most-tk.content, 0))))
			tk.frac = int64(rest)
		}
	}
	tk.note(most)
}

func (w span) nanos() int64 { return int64(w) * 1e6 }

// portion is this node's part of units under r, in grains: a whole number of them, so that a bucket smaller than the
// roster is held in parts that loans put together. An overflow cell gets what is certain whatever the order, and inherits
// nothing.
func (l *ledger) portion(b *bucket, r *rosterView, units int64, heir bool) (part int64) {
	if r.self < 0 {
		return 0
	}
	if r.holds == nil || !heir || b.cell {
		if r.self >= r.size {
			return 0
		}
		return l.slotPortion(b, r, r.self, units)
	}
	for _, slot := range r.holds[r.self] {
		part += l.slotPortion(b, r, slot, units)
	}
	return part
}

func (l *ledger) slotPortion(b *bucket, r *rosterView, slot int, units int64) int64 {
	n := int64(r.size)
	q, rest := units*grains/n, units*grains%n
	if rest == 0 || b.cell {
		return q
	}
	var place int
	if slot == r.self {
		place = int(l.order(b, r))
	} else {
		place = r.rank(b.id.low(), slot)
	}
	if int64(place) < rest {
		q++
	}
	return q
}

// least is the smallest part of units that any of the phase's rosters gives this node: 0 where there is none.
func (l *ledger) least(b *bucket, p *phase, units int64) int64 {
	if len(p.rosters) == 0 {
		return 0
	}
	part := l.portion(b, &p.rosters[0], units, p.heir)
	for i := 1; i < len(p.rosters); i++ {
		part = min(part, l.portion(b, &p.rosters[i], units, p.heir))
	}
	return part
}

// most is what this node may hold in a phase, but for what it borrowed: its part of the burst less what it lent.
func (l *ledger) most(b *bucket, p *phase, limit, burst int64) int64 {
	if limit == 0 {
		return 0
	}
	return max(l.least(b, p, burst)-b.tok.lent(), 0)
}

// reckon brings b up to the instant by rule, and gives the cap that it holds of its own. A reading of the clock
// that is older than what was acted on counts as that: no time is lived through twice.
func (l *ledger) reckon(b *bucket, ps *phases, rule *Rule, mono int64) (own int64) {
	if b.tok == nil {
		tk := b.makeTokens()
		tk.birth, tk.limit, tk.burst, tk.highest = l.births.Add(1), rule.Limit, rule.Burst, rule.Burst
		// It may have been here before: a reading of the clock from then must not find it full.
		mono = max(mono, l.shards[shardOf(&b.id)].forgotMono)
		l.fillUntouched(b, ps, mono)
		l.adoptTokens(b, ps)
		tk.countFrom = tk.at / levelNanos * levelNanos
	}
	tk := b.tok
	now := max(mono, tk.at)
	limit, burst := rule.Limit, rule.Burst
	if b.cell {
		// Its buckets' rules may differ. By the lowest it holds no more than each of them alone would.
		limit, burst = min(limit, tk.limit), min(burst, tk.burst)
	}
	// Where the rule changed, which one was in force since then nobody knows: the content does not jump.
	l.run(b, ps, now, min(limit, tk.limit), min(burst, tk.burst))
	if limit != tk.limit || burst != tk.burst {
		if burst >= tk.burst {
			tk.settle()
		}
		if tk.overdue(b.span.nanos()) {
			tk.spent = false
		}
		least := min(limit, tk.limit)
		tk.limit, tk.burst = limit, burst
		tk.highest = max(tk.highest, burst)
		tk.blur(least, b.span.nanos())
		tk.forgetCounts()
		if !tk.spent && !tk.trading() {
			tk.highest = burst
			l.fillUntouched(b, ps, now)
		}
		tk.note(l.most(b, ps.at(now), limit, burst) + tk.borrowed())
	}
	tk.settle()
	return l.most(b, ps.at(now), limit, burst)
}

// inName says whether b, just reckoned, counts under its name at t: not where it was reset, and has another. Where it has
// its first name back it is empty: what was spent meanwhile stands under the other.
func (l *ledger) inName(v *view, b *bucket, t instant) bool {
	if v.gens == nil {
		return true
	}
	g, ok := v.gens.names[b.id]
	if !ok {
		return true
	}
	if v.name(b.id, int64(b.span)/1000, t.ms) != b.id {
		return false
	}
	if tk := b.tok; tk.generation < g.number {
		tk.generation = g.number
		tk.room += tk.content
		tk.content, tk.frac = 0, 0
		tk.missing()
	}
	return true
}

// settle forgets that something was spent once it has all come back, by the greatest burst that there was.
func (tk *tokens) settle() {
	if tk.spent && tk.room == 0 && tk.limit > 0 && tk.burst == tk.highest && !tk.trading() {
		tk.spent = false
	}
}

// spend takes grains out.
func (tk *tokens) spend(grains int64) {
	tk.content -= grains
	tk.missing()
}

// missing notes that something is missing now, since it was spent, or since a cap came back without what it had held.
func (tk *tokens) missing() { tk.spent, tk.spentAt, tk.spentLimit = true, tk.at, max(tk.limit, 1) }

// run lets b live from its last instant to now by limit and burst: through the ends of its loans, and through the phases
// of the rosters.
func (l *ledger) run(b *bucket, ps *phases, now, limit, burst int64) {
	tk := b.tok
	if tk.at < ps.list[0].mono {
		// What held then is forgotten: it may have been nothing.
		tk.content, tk.frac, tk.at = 0, 0, min(ps.list[0].mono, now)
	}
	i := ps.index(tk.at)
	for {
		to, next := now, (*phase)(nil)
		if i+1 < len(ps.list) && ps.list[i+1].mono <= now {
			next = &ps.list[i+1]
			to = next.mono
		}
		if tk.trade != nil {
			to = tk.trade.nextEnd(tk.at, to)
		}
		p := &ps.list[i]
		own, rate := l.most(b, p, limit, burst), l.least(b, p, limit)
		if next != nil {
			// When between the two the rosters changed is not known.
			own, rate = min(own, l.most(b, next, limit, burst)), min(rate, l.least(b, next, limit))
		}
		tk.accrue(to-tk.at, rate, b.span.nanos(), own+tk.borrowed())
		tk.at = to
		if tk.trade != nil && tk.trade.end(to, l.unsafeNoClip) {
			tk.missing()
		}
		if next != nil && to == next.mono {
			i++
			continue
		}
		if to == now {
			break
		}
	}
	tk.note(l.most(b, &ps.list[i], limit, burst) + tk.borrowed())
}

// nextEnd is the first end of a loan between at and to.
func (tr *tokenTrade) nextEnd(at, to int64) int64 {
	for _, list := range [2][]lease{tr.in, tr.out} {
		for i := range list {
			if e := list[i].end; e > at && e < to {
				to = e
			}
		}
	}
	return to
}

// end drops the loans that are over at now, and says whether one of them was this node's.
func (tr *tokenTrade) end(now int64, noClip bool) (back bool) {
	if !noClip {
		tr.in = dropEnded(tr.in, now)
	}
	out := len(tr.out)
	tr.out = dropEnded(tr.out, now)
	return len(tr.out) < out
}

func dropEnded(list []lease, now int64) []lease {
	keep := list[:0]
	for i := range list {
		if list[i].end > now {
			keep = append(keep, list[i])
		}
	}
	return keep
}

// fillUntouched sets what b holds if nothing was spent of it since this node's start: it is full where the node has held
// its part since the cluster began, and else as full as it has become since the node has held one.
func (l *ledger) fillUntouched(b *bucket, ps *phases, mono int64) {
	tk := b.tok
	first := &ps.list[0]
	tk.content, tk.frac, tk.at = 0, 0, first.mono
	own := l.most(b, first, tk.limit, tk.burst)
	if first.full {
		tk.content = own
	}
	tk.room = own - tk.content
	l.run(b, ps, max(mono, first.mono), tk.limit, tk.burst)
}

// overdue says whether so long nothing was spent that the greatest burst there was since would have come back. What accrued in
// fact may be less: lower rules were in force for a while.
func (tk *tokens) overdue(nanos int64) bool {
	if tk.due != 0 {
		return tk.spent && tk.at >= tk.due
	}
	return tk.spent && !tk.trading() && tk.at-tk.spentAt >= nanosUntil(tk.highest*grains, 0, tk.spentLimit*grains, nanos)
}

// adoptTokens charges a new bucket with what its overflow cell has spent.
func (l *ledger) adoptTokens(b *bucket, ps *phases) {
	c := l.shards[shardOf(&b.id)].cells[overflowID(&b.id, b.span, b.alg)]
	if b.cell || c == nil || c.tok == nil || l.unsafeNoAdopt {
		return
	}
	l.run(c, ps, max(b.tok.at, c.tok.at), c.tok.limit, c.tok.burst)
	if tk := b.tok; c.tok.spent && !c.tok.overdue(b.span.nanos()) {
		tk.spent, tk.spentAt, tk.spentLimit = true, c.tok.spentAt, c.tok.spentLimit
		tk.highest = max(tk.highest, c.tok.highest)
		if gone := tk.content - c.tok.content; gone > 0 {
			tk.content -= gone
			tk.room += gone
		}
	}
}

// tryTokens is try for a token bucket.
func (l *ledger) tryTokens(v *view, b *bucket, c *Charge, t instant) Outcome {
	ps := l.entitled(v, t)
	if ps == nil || l.shards[shardOf(&b.id)].left {
		return Undecided
	}
	if c.Rule.Limit == 0 {
		return Refused
	}
	l.reckon(b, ps, &c.Rule, t.mono)
	tk := b.tok
	if !b.cell && !l.inName(v, b, t) || c.Cost*grains > tk.content {
		return Refused
	}
	tk.count(c.Cost, b.span.nanos())
	tk.spend(c.Cost * grains)
	tk.room += c.Cost * grains
	if b.cell {
		tk.due = max(tk.due, tk.at+nanosUntil(c.Rule.Burst*grains, 0, c.Rule.Limit*grains, b.span.nanos()))
	}
	c.charged, c.roomUntil = tk.birth, tk.filled+tk.room
	return Admitted
}

// settleTokens makes what tryTokens spent known, and sees that more comes before it is needed.
func (l *ledger) settleTokens(sh *shard, v *view, b *bucket, c *Charge, t instant, out *outbox) {
	sh.touchTokens(b)
	ps := l.phases.Load()
	if tk := b.tok; tk.trade != nil && len(tk.trade.in) > 0 {
		if own := l.most(b, ps.at(tk.at), tk.limit, tk.burst); tk.content <= own {
			l.giveBack(sh, b, own, t, out)
		}
	}
	l.borrowAhead(sh, v, b, c, t, out)
}

// undoTokens takes back what tryTokens spent at this very instant.
func (b *bucket) undoTokens(c *Charge) {
	if tk := b.tok; tk != nil && tk.birth == c.charged {
		tk.content += c.Cost * grains
		tk.room -= c.Cost * grains
		tk.uncount(c.Cost)
		tk.settle()
	}
}

// refundTokens gives back what c took, as far as the bucket had room for it all the time: it must not hold more than if
// nothing had been spent.
func (l *ledger) refundTokens(b *bucket, c *Charge) bool {
	tk := b.tok
	if tk == nil || tk.birth != c.charged {
		return false
	}
	x := min(c.Cost*grains, c.roomUntil-tk.filled)
	if l.unsafeRefund {
		x = c.Cost * grains
	}
	if x = min(x, tk.room); x <= 0 {
		return false
	}
	tk.content += x
	tk.note(tk.content - x + tk.room)
	tk.blur(tk.limit, b.span.nanos())
	tk.settle()
	return true
}

// reportTokens is report for a token bucket, but for what report counts.
func (l *ledger) reportTokens(v *view, c *Charge, verdict *Verdict, t instant, last bool) (why Reason) {
	verdict.ResetAt = ceilDiv(t.ms, 1000) + c.Rule.Window
	if verdict.Outcome == Undecided {
		verdict.RetryAfter = 1
		return l.whyNoTokens(&l.shards[shardOf(&c.Bucket)], v, t)
	}
	if verdict.Outcome == Refused {
		verdict.RetryAfter = c.Rule.Window
	}
	ps := l.entitled(v, t)
	_, b := l.at(c)
	if ps == nil || b == nil || c.Rule.Limit == 0 {
		if verdict.Outcome == Refused {
			return ReasonCost
		}
		return 0
	}
	own := l.reckon(b, ps, &c.Rule, t.mono)
	held := min(b.tok.content+l.heldElsewhere(b, ps, &c.Rule, b.tok.at), c.Rule.Burst*grains)
	verdict.Remaining = held / grains
	after := func(units int64) int64 {
		return nanosUntil(units*grains-held, b.tok.frac, c.Rule.Limit*grains, b.span.nanos())
	}
	verdict.ResetAt = ceilDiv(t.ms+ceilDiv(after(c.Rule.Burst), 1e6), 1000)
	if verdict.Outcome != Refused {
		return 0
	}
	verdict.Remaining = min(verdict.Remaining, c.Cost-1)
	// What costs more than the burst never passes: it may at least be told when the bucket is full.
	verdict.RetryAfter = max(ceilDiv(after(min(c.Cost, c.Rule.Burst)), 1e9), 1)
	return l.whyRefused(v, b, c, &standing{lost: own == 0 && t.mono < l.heldUntil}, t, last)
}

// whyNoTokens says why nothing could be decided about a token bucket.
func (l *ledger) whyNoTokens(sh *shard, v *view, t instant) Reason {
	switch {
	case sh.left:
		return ReasonLeft
	case v.governing(t.ms) == nil:
		return ReasonRoster
	case t.ms >= v.horizon && !l.available:
		return ReasonHorizon
	}
	return ReasonRoom
}

// maxRefill bounds the time that a verdict names: some 31 years.
const maxRefill = int64(1e18)

// nanosUntil is how long rate grains in a window of nanos take to bring want grains, of the first of which frac parts are
// there already.
func nanosUntil(want, frac, rate, nanos int64) int64 {
	if want <= 0 {
		return 0
	}
	hi, lo := bits.Mul64(uint64(want), uint64(nanos))
	lo, borrow := bits.Sub64(lo, uint64(frac), 0)
	hi -= borrow
	lo, carry := bits.Add64(lo, uint64(rate-1), 0)
	if hi += carry; hi >= uint64(rate) {
		return maxRefill
	}
	q, _ := bits.Div64(hi, lo, uint64(rate))
	return int64(min(q, uint64(maxRefill)))
}

func ceilDiv(a, b int64) int64 { return (a + b - 1) / b }

// idleTokens says whether a token bucket may be forgotten: nothing is missing here, no loan runs, and what is missing
// elsewhere has come back by what was heard.
func (l *ledger) idleTokens(sh *shard, b *bucket) bool {
	tk := b.tok
	if tk == nil {
		return true
	}
	now, ps := l.ticked.Load(), l.phases.Load()
	if now > tk.at {
		l.run(b, ps, now, tk.limit, tk.burst)
		tk.settle()
	}
	if tk.trading() || tk.spent && !tk.overdue(b.span.nanos()) {
		return false
	}
	if tk.trade != nil && !l.forgettable(b, ps) {
		return false
	}
	sh.forgotMono = max(sh.forgotMono, tk.at)
	return true
}

// explainTokens is explainWindow and explainPeers for a token bucket. Base is this node's part of the burst; what is missing of it
// counts as used.
func (l *ledger) explainTokens(sh *shard, v *view, b *bucket, t instant, e *Explanation) {
	n := b.span.at(t.ms)
	e.Window, e.BeginMillis, e.EndMillis = n, b.span.begin(n), b.span.end(n)
	if r := v.governing(t.ms); r != nil {
		e.RosterIndex = r.index
	}
	ps := l.entitled(v, t)
	switch {
	case sh.closed:
		e.Undecided = ReasonClosed
	case ps == nil || sh.left:
		e.Undecided = l.whyNoTokens(sh, v, t)
	}
	if e.Undecided != 0 || e.Rule.Limit == 0 {
		return
	}
	own := l.reckon(b, ps, &e.Rule, t.mono)
	tk := b.tok
	lent, borrowed := tk.lent(), tk.borrowed()
	e.Base, e.Given, e.Received, e.Room = Milli(own+lent), Milli(lent), Milli(borrowed), Milli(tk.content)
	e.Used = Milli(max(own+borrowed-tk.content, 0))
	e.Lost = own == 0 && t.mono < l.heldUntil
	held := tk.content + l.heldElsewhere(b, ps, &e.Rule, tk.at)
	e.NextMillis = t.ms + ceilDiv(nanosUntil(grains-held, tk.frac, e.Rule.Limit*grains, b.span.nanos()), 1e6)
	if b.ask.queued > 0 {
		e.Ask = &AskView{Waiting: b.ask.queued, Units: Milli(b.ask.waiting)}
	}
	if tk.trade != nil {
		l.explainTrade(b, ps, t, e)
	}
}

func (l *ledger) explainTrade(b *bucket, ps *phases, t instant, e *Explanation) {
	tr, r := b.tok.trade, ps.roster()
	for _, lent := range tr.out {
		e.Cells = append(e.Cells, CellView{l.peers.at(lent.peer).id, lent.inc, true, Milli(lent.units)})
	}
	for _, in := range tr.in {
		e.Cells = append(e.Cells, CellView{l.peers.at(in.peer).id, l.peers.at(in.peer).inc.Load(), false, Milli(in.units)})
	}
	for i := range tr.levels {
		k := &tr.levels[i]
		p := l.peers.at(k.peer)
		view := PeerView{Peer: p.id, Window: e.Window, Owing: k.askSeq != 0, Silent: p.suspect(t.mono), QuietMillis: max(k.quietTo-t.mono, 0) / 1e6}
		if r != nil && r.position(k.peer) >= 0 {
			view.Base = Milli(r.portionOf(r.position(k.peer), e.Rule.Burst))
			view.Used = view.Base - Milli(expected(b, r, r.position(k.peer), k, &e.Rule, b.tok.at))
			view.Net = view.Used
		}
		if e.Ask != nil && k.runs(t.mono) {
			e.Ask.Peer, e.Ask.AgeMillis = p.id, max(t.mono-k.askSent, 0)/1e6
		}
		e.Peers = append(e.Peers, view)
	}
}
