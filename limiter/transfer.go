package limiter

import "math/bits"

const (
	// askAgainNanos is how long an answer is awaited before the ask is repeated, to another peer where there is one.
	askAgainNanos = int64(5e6)
	// A share of at least aheadShare is asked for ahead of need once less than an eighth of it is left; with smaller
	// shares that does more harm than good. aheadNanos is the pause between two such asks.
	aheadShare = 64
	aheadNanos = int64(10e6)
	maxCells   = 1024
	// maxWaiters bounds the requests that wait for one bucket; further ones are refused at once.
	maxWaiters = 4096
)

// seek asks for what the refused charges lack. It gives up, so that the request is refused at once, where the peers are
// not believed to have enough for it and for those that wait already; then only the charges that this is true of stay
// refused, since the others' policies have nothing against the request.
func (l *ledger) seek(v *view, charges []Charge, verdicts []Verdict, t instant, w *waiter, out *outbox) bool {
	var hopeful uint64 // by index; a request of more charges than bits is refused by all of those beyond
	hopeless := false
	for i := range charges {
		if verdicts[i].Outcome != Refused {
			continue
		}
		if l.hopeful(v, charges, i, t) {
			hopeful |= 1 << i
		} else {
			hopeless = true
		}
	}
	if hopeless {
		for i := range charges {
			if hopeful&(1<<i) != 0 {
				verdicts[i].Outcome = Admitted
			}
		}
		return false
	}
	if w.probe {
		return true
	}
	var on *bucket
	var units int64
	for i := range charges {
		c := &charges[i]
		if verdicts[i].Outcome != Refused {
			continue
		}
		sh, b := l.at(c)
		if b.alg == TokenBucket {
			l.borrow(sh, v, b, &c.Rule, asked(charges, i)*grains-b.tok.content+b.ask.waiting, t, out)
		} else {
			n := b.span.at(t.ms)
			s := l.stand(sh, v, b, n, c.Rule.Limit, t)
			l.send(sh, v, b, n, c.Rule.Limit, asked(charges, i)*grains-s.room+b.ask.waiting, t, out)
		}
		if on == nil {
			on, units = b, asked(charges, i)*grains
		}
	}
	if on == nil {
		return false
	}
	on.addWaiter(w, units)
	return true
}

// hopeful says whether peers are believed to have what the i-th charge lacks here.
func (l *ledger) hopeful(v *view, charges []Charge, i int, t instant) bool {
	c := &charges[i]
	if !validCharge(c) || asked(charges, i) > c.Rule.most() {
		return false
	}
	sh, b := l.at(c)
	if b == nil || b.cell || b.ask.queued >= maxWaiters {
		return false
	}
	if b.alg == TokenBucket {
		return l.tokensElsewhere(v, b, &c.Rule, asked(charges, i)*grains, t)
	}
	n := b.span.at(t.ms)
	r := v.governing(b.span.begin(n))
	if r == nil {
		return false
	}
	s := l.stand(sh, v, b, n, c.Rule.Limit, t)
	need := asked(charges, i)*grains - s.room + b.ask.waiting
	return !s.undecided && l.elsewhere(v, b, r, n, c.Rule.Limit, t, need) >= need
}

// most is how many units may pass at once.
func (r *Rule) most() int64 {
	switch {
	case r.Algorithm != TokenBucket:
		return r.Limit
	case r.Limit == 0:
		return 0
	}
	return r.Burst
}

// asked is what all charges together take from the i-th one's bucket, which may be named more than once.
func asked(charges []Charge, i int) int64 {
	units := charges[i].Cost
	for j := range charges {
		if j != i && charges[j].Bucket == charges[i].Bucket {
			units += min(max(charges[j].Cost, 0), maxCost)
		}
	}
	return units
}

// leave takes w off the bucket it waits on. charges are those it was left with.
func (l *ledger) leave(w *waiter, charges []Charge) {
	var mask uint64
	for i := range charges {
		mask |= 1 << shardOf(&charges[i].Bucket)
	}
	for m := mask; m != 0; m &= m - 1 {
		l.shards[bits.TrailingZeros64(m)].mu.Lock()
	}
	if w.on != nil {
		w.on.dropWaiter(w)
	}
	l.unlock(mask)
}

// send asks the most promising peer for want grains, unless an ask is under way that may still be answered.
func (l *ledger) send(sh *shard, v *view, b *bucket, n, limit, want int64, t instant, out *outbox) {
	r := v.governing(b.span.begin(n))
	if r == nil || want < 1 {
		return
	}
	avoid := -1
	if b.ask.inFlight && b.ask.n == n {
		age := t.mono - b.ask.sentMono
		if age >= 0 && age < askAgainNanos {
			return
		}
		sh.stats.asksUnanswered++
		l.peers.at(b.ask.peer).silent(t.mono)
		avoid = r.position(b.ask.peer)
	}
	b.ask.inFlight = false
	pos := l.choose(v, b, r, n, limit, t, avoid)
	if pos < 0 {
		return
	}
	peer := r.peers[pos]
	seq := l.seq.Add(1)
	b.ask.peer, b.ask.inFlight, b.ask.n, b.ask.seq, b.ask.sentMono = peer, true, n, seq, t.mono
	k := b.learn(peer)
	k.owing = true
	m := askMessage{
		receiver:   r.hashes[pos],
		bucketName: b.name(n),
		limit:      limit,
		want:       want,
		counters:   l.ownCounters(sh, v, b, n, limit, t),
	}
	// The donor gives up to what is known here plus what is wanted, so a repeated or replayed ask gives nothing more.
	if inc := l.peers.at(peer).inc.Load(); inc != 0 {
		if w := b.find(n); w != nil {
			if c := w.cell(peer, inc, false); c != nil {
				m.knownInc, m.known = inc, c.value
			}
		}
	}
	sh.stats.asks++
	out.add(peer, func(buf []byte) []byte {
		return appendAsk(buf, header{typeAsk, l.selfHash, l.inc, seq, t.ms}, &m)
	})
}

// askAhead asks before a large share is gone, so that no request has to wait.
func (l *ledger) askAhead(sh *shard, v *view, b *bucket, c *Charge, t instant, out *outbox) {
	if b.cell || b.ask.inFlight && t.mono-b.ask.sentMono < askAgainNanos || t.mono < b.ask.quietTo || c.Rule.Limit < aheadShare {
		return
	}
	n := c.charged - 1
	s := l.stand(sh, v, b, n, c.Rule.Limit, t)
	if s.undecided || s.base < aheadShare*grains || s.room >= s.base/8 {
		return
	}
	b.ask.quietTo = t.mono + aheadNanos
	r := v.governing(b.span.begin(n))
	want := whole(s.base / 8)
	if l.elsewhere(v, b, r, n, c.Rule.Limit, t, want) < want {
		return
	}
	l.send(sh, v, b, n, c.Rule.Limit, want, t, out)
}

func (b *bucket) name(n int64) bucketName {
	return bucketName{id: b.id, rule: Rule{Window: int64(b.span) / 1000, Algorithm: b.alg}, n: n}
}

// ownCounters is what this node says of itself.
func (l *ledger) ownCounters(sh *shard, v *view, b *bucket, n, limit int64, t instant) counters {
	s := l.stand(sh, v, b, n, limit, t)
	c := counters{n: n, limit: limit, base: s.base, net: s.net, charge: s.charge}
	e, before := l.estates(v, b, n)
	c.used, c.prevUsed = e.used, before.used
	// What is inherited others may know of the leaver, and count twice.
	if e.used > 0 {
		c.flags |= flagVague
	}
	if before.used > 0 {
		c.flags |= flagPrevVague
	}
	// A clock that went back says less than this node has decided by.
	back := sh.maxMillis > t.ms+l.skewMillis
	if w := b.find(n); w != nil {
		c.used += w.used
		if w.vague || back {
			c.flags |= flagVague
		}
	}
	if w := b.find(n - 1); w != nil {
		c.prevUsed += w.used
		if w.vague || back {
			c.flags |= flagPrevVague
		}
	}
	return c
}

// estates is what this node inherited in window n and in the one before.
func (l *ledger) estates(v *view, b *bucket, n int64) (in, before estate) {
	return l.estate(v, v.governing(b.span.begin(n)), b, n, b.limit), l.estate(v, v.governing(b.span.begin(n-1)), b, n-1, b.limit)
}

// ownUsed is what this node and those whose shares it inherited used in window n and in the one before.
func (l *ledger) ownUsed(v *view, b *bucket, n int64) (used, before int64) {
	e, eBefore := l.estates(v, b, n)
	used, before = e.used, eBefore.used
	if w := b.find(n); w != nil {
		used += w.used
	}
	if w := b.find(n - 1); w != nil {
		before += w.used
	}
	return used, before
}

// receive takes in one packet of the node named from.
func (l *ledger) receive(t instant, from string, packet []byte, out *outbox) {
	if len(packet) > MaxPacket {
		l.refused.Add(1)
		return
	}
	r := reader{b: packet}
	h := r.header()
	if r.bad || h.inc == 0 {
		l.refused.Add(1)
		return
	}
	switch h.kind {
	case typeAsk:
		m := r.ask()
		if !r.done() {
			break
		}
		if p, ok := l.sender(t, from, h, m.receiver); ok {
			l.onAsk(t, p, h, &m, out)
		}
		return
	case typeAnswer:
		m := r.answer()
		if !r.done() {
			break
		}
		if p, ok := l.sender(t, from, h, m.receiver); ok {
			l.onAnswer(t, p, h, &m)
		}
		return
	case typeNews:
		if l.onNews(t, from, h, r) {
			return
		}
	case typeRelay:
		if l.onRelay(t, from, h, r) {
			return
		}
	default:
		if l.receiveTokens(t, from, h, r, out) {
			return
		}
	}
	l.refused.Add(1)
}

// sender finds who sent a packet and checks that it is who it says, and that the packet is meant for this node: an
// address may have changed hands.
func (l *ledger) sender(t instant, from string, h header, receiver uint64) (uint16, bool) {
	p, ok := l.peers.add(from)
	if !ok || from == l.self || l.peers.at(p).hash != h.sender || receiver != l.selfHash {
		l.foreign.Add(1)
		return 0, false
	}
	l.peers.at(p).heard(h.inc, h.clock-t.ms, t.mono)
	return p, true
}

// onAsk gives what it can spare, debiting itself before it answers. It always answers, so that the asker need not wait.
func (l *ledger) onAsk(t instant, from uint16, h header, m *askMessage, out *outbox) {
	answer := answerMessage{
		receiver: h.sender, bucketName: m.bucketName, receiverInc: h.inc, askSeq: h.seq, flags: flagDenied,
	}
	answer.counters.n = m.n
	sh := &l.shards[shardOf(&m.id)]
	sh.mu.Lock()
	if sh.closed {
		sh.mu.Unlock()
		return
	}
	l.advance(sh, t.ms)
	v := l.view.Load()
	rule := m.rule
	rule.Limit = m.limit
	if b := l.obtain(sh, &m.id, rule, true); b != nil && b.span == span(rule.Window*1000) && b.alg == rule.Algorithm {
		m.counters.n, m.counters.inc, m.counters.seq = m.n, h.inc, h.seq
		l.doubt(sh, h, &m.counters)
		b.learn(from).merge(m.counters)
		b.goBy(m.limit)
		l.give(sh, v, b, t, from, h, m, &answer)
		answer.counters = l.ownCounters(sh, v, b, m.n, m.limit, t)
	}
	sh.stats.asksAnswered++
	seq := l.seq.Add(1)
	l.trim(sh, t.mono)
	sh.mu.Unlock()
	out.add(from, func(buf []byte) []byte {
		return appendAnswer(buf, header{typeAnswer, l.selfHash, l.inc, seq, t.ms}, &answer)
	})
}

// give is the gift itself.
func (l *ledger) give(sh *shard, v *view, b *bucket, t instant, from uint16, h header, m *askMessage, answer *answerMessage) {
	if t.ms < b.span.begin(m.n)-l.skewMillis || t.ms > b.span.end(m.n)+l.skewMillis {
		return
	}
	s := l.stand(sh, v, b, m.n, m.limit, t)
	if s.undecided {
		return
	}
	win := l.window(sh, b, m.n)
	if win == nil {
		return
	}
	c := win.cell(from, h.inc, true)
	var have int64
	if c != nil {
		have = c.value
	}
	known := int64(0)
	if m.knownInc == l.inc {
		known = min(m.known, have)
	}
	// What is on its way, or was lost on it, counts towards what is wanted.
	need := m.want - (have - known)
	if need > 0 && s.room > 0 && !l.keeps(b, h.sender) && (c != nil || len(win.cells) < maxCells) {
		x := min(s.room, max(need, whole(s.room/2)))
		if coarse(m.limit, l.rosterSize(v, b, m.n)) {
			if x = min(whole(x+grains-1), whole(s.room)); x == 0 {
				return
			}
		}
		if c == nil {
			win.cells = append(win.cells, cell{peer: from, inc: h.inc, out: true})
			c = &win.cells[len(win.cells)-1]
		}
		win.given += x
		if !l.unsafeLateDebit {
			l.record(b, win)
		}
		c.value += x
		have = c.value
		sh.stats.given += uint64(x)
		sh.touch(b, m.limit, win)
	}
	answer.cell = have
	if need <= 0 || have-known > 0 {
		answer.flags &^= flagDenied
	}
}

func (l *ledger) rosterSize(v *view, b *bucket, n int64) int {
	if r := v.governing(b.span.begin(n)); r != nil {
		return r.size
	}
	return 1
}

// keeps says whether this node holds on to a rest that its own waiting requests need more of: of two nodes that would
// each have to gather both rests, one must win.
func (l *ledger) keeps(b *bucket, asker uint64) bool {
	low := b.id.low()
	return b.ask.waiting > 0 && mix64(low^l.selfHash) < mix64(low^asker)
}

// onAnswer takes in what a donor gave.
func (l *ledger) onAnswer(t instant, from uint16, h header, m *answerMessage) {
	if m.receiverInc != l.inc && !l.unsafeAnyInc {
		return // given to an incarnation that is no more
	}
	sh := &l.shards[shardOf(&m.id)]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	defer l.trim(sh, t.mono)
	l.advance(sh, t.ms)
	sh.stats.answers++
	b := sh.get(&m.id)
	if sh.closed || b == nil || b.span != span(m.rule.Window*1000) || b.alg != m.rule.Algorithm {
		return
	}
	if m.cell > 0 {
		l.credit(sh, b, from, h, m)
	}
	k := b.learn(from)
	m.counters.n, m.counters.inc, m.counters.seq = m.n, h.inc, h.seq
	l.doubt(sh, h, &m.counters)
	k.merge(m.counters)
	if b.ask.peer != from || b.ask.seq != m.askSeq {
		return
	}
	b.ask.inFlight = false
	k.owing = false
	if m.flags&flagDenied != 0 {
		k.quietTo = t.mono + min(denyNanos<<k.denied, denyMaxNanos)
		k.denied = min(k.denied+1, 8)
	} else {
		k.denied = 0
	}
	b.wake()
}

// credit merges the cell by maximum.
func (l *ledger) credit(sh *shard, b *bucket, from uint16, h header, m *answerMessage) {
	win := l.window(sh, b, m.n)
	if win == nil {
		return
	}
	c := win.cell(from, h.inc, false)
	if c == nil {
		if len(win.cells) >= maxCells {
			return
		}
		win.cells = append(win.cells, cell{peer: from, inc: h.inc})
		c = &win.cells[len(win.cells)-1]
	}
	if l.unsafeSum {
		c.value = 0
	}
	if m.cell <= c.value {
		return
	}
	x := m.cell - c.value
	c.value = m.cell
	win.received += x
	l.taint(sh, b, win, h, m)
	sh.stats.received += uint64(x)
	if win.slot != noSlot {
		l.record(b, win)
	}
	sh.touch(b, b.limit, win)
	if b.ask.peer != from || !b.ask.inFlight {
		b.wake()
	}
}
