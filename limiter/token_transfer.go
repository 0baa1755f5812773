package limiter

import "slices"

// Loans of tokens. An asker says what it lacks and what more it could hold; the donor debits itself and answers with a lease. The
// receiver spends it, or keeps it in what room it has of its own, and then says that the lease is over, so that the donor can
// fill up again; where that word is lost, the lease ends by itself.

const (
	// maxAsks bounds the peers that are asked at once; the parts of a token may lie on many.
	maxAsks   = 16
	maxLeases = 1024
	// denyTokensNanos is how long a peer that had nothing is left alone, doubled by each further time up to the second.
	denyTokensNanos, denyTokensMaxNanos = int64(10e6), int64(80e6)
)

// level is what is known of a peer's part of a token bucket: knowledge, never a right.
type level struct {
	content int64 // grains that it held at heard, on this node's monotonic clock, in whole levelNanos
	heard   int64
	inc     uint64 // its incarnation and the sequence of the packet
	seq     uint64
	// The ask that it has not answered: its sequence (0: none), since when it runs, when it was last sent, and for how much.
	askSeq           uint64
	askMono, askSent int64
	askWant          int64
	askSilent        bool // held against it already
	// The newest ask of its that was answered here: an older one is a replay.
	servedInc, servedSeq uint64
	quietTo              int64 // monotonic time before which it is not asked
	// What it counts (token_audit.go), since countFrom or later by this node's monotonic clock; 0 for nothing known.
	counted, countFrom int64
	denied             uint8
	peer               uint16
}

// level is what is known of peer; nil for nothing. levels is in the order of peers, since in large clusters one decision looks
// at all of them.
func (tr *tokenTrade) level(peer uint16) *level {
	if i := tr.levelAt(peer); i < len(tr.levels) && tr.levels[i].peer == peer {
		return &tr.levels[i]
	}
	return nil
}

func (tr *tokenTrade) levelAt(peer uint16) int {
	lo, hi := 0, len(tr.levels)
	for lo < hi {
		if mid := (lo + hi) / 2; tr.levels[mid].peer < peer {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

func (tr *tokenTrade) learn(peer uint16) *level {
	if k := tr.level(peer); k != nil {
		return k
	}
	i := tr.levelAt(peer)
	tr.levels = slices.Insert(tr.levels, i, level{peer: peer})
	return &tr.levels[i]
}

// levelNanos is how exactly it is noted when a level was heard: the finer, the longer its packed form.
const levelNanos = int64(1e6)

// hear takes over what a peer said of itself, if it is news.
func (k *level) hear(content int64, inc, seq uint64, mono int64) bool {
	if inc < k.inc || inc == k.inc && seq <= k.seq {
		return false
	}
	k.content, k.heard, k.inc, k.seq = content, ceilDiv(mono, levelNanos)*levelNanos, inc, seq
	return true
}

// portionOf is the part of units of the node at pos, rounded up: good enough for what others are believed to hold.
func (r *rosterView) portionOf(pos int, units int64) int64 {
	n, slots := int64(r.size), int64(1)
	if r.holds != nil {
		slots = int64(len(r.holds[pos]))
	}
	return (units*grains + n - 1) / n * slots
}

// expected is what the peer at pos holds by now, by what k says of it: nil for one that never spoke of the bucket, which has
// spent nothing as far as anyone knows.
func expected(b *bucket, r *rosterView, pos int, k *level, rule *Rule, mono int64) int64 {
	if rule.Limit == 0 {
		return 0
	}
	most := r.portionOf(pos, rule.Burst)
	if k == nil || k.seq == 0 {
		return most
	}
	tk := tokens{content: min(k.content, most)}
	tk.accrue(mono-k.heard, r.portionOf(pos, rule.Limit), b.span.nanos(), most)
	return tk.content
}

// heldElsewhere is what all peers together are believed to hold.
func (l *ledger) heldElsewhere(b *bucket, ps *phases, rule *Rule, mono int64) (sum int64) {
	r := ps.roster()
	if r == nil || b.cell {
		return 0
	}
	for pos, peer := range r.peers {
		if pos != r.self && !r.left(pos) {
			sum += expected(b, r, pos, b.tok.levelOf(peer), rule, mono)
		}
	}
	return sum
}

func (tk *tokens) levelOf(peer uint16) *level {
	if tk.trade == nil {
		return nil
	}
	return tk.trade.level(peer)
}

// forgettable says whether all peers are believed to be full, so that nothing known of them is worth keeping.
func (l *ledger) forgettable(b *bucket, ps *phases) bool {
	tk := b.tok
	r := ps.roster()
	if tk.trade.listed {
		return false
	}
	for i := range tk.trade.levels {
		k := &tk.trade.levels[i]
		if k.askSeq != 0 && tk.at < k.askMono+leaseNanos {
			return false
		}
		pos := r.position(k.peer)
		if k.seq == 0 || tk.limit == 0 || pos < 0 {
			continue
		}
		rule := Rule{Limit: tk.limit, Burst: tk.burst}
		if expected(b, r, pos, k, &rule, tk.at) < r.portionOf(pos, tk.burst) {
			return false
		}
	}
	return true
}

// lender is a peer that may be asked.
type lender struct {
	pos   int
	spare int64
	tie   uint64
}

// lenders lists those that are believed to spare most, at most maxAsks of them, and what all together spare. Asks that
// run count as what they are for.
func (l *ledger) lenders(b *bucket, r *rosterView, rule *Rule, t instant, best []lender) (_ []lender, sum int64) {
	for pos, peer := range r.peers {
		if pos == r.self || r.left(pos) {
			continue
		}
		k := b.tok.levelOf(peer)
		if k != nil && k.runs(t.mono) {
			sum += k.askWant
			continue
		}
		if k != nil && t.mono < k.quietTo || l.peers.at(peer).suspect(t.mono) {
			continue
		}
		spare := expected(b, r, pos, k, rule, max(t.mono, b.tok.at))
		if k != nil && k.askSeq != 0 && t.mono < k.askMono+leaseNanos/2 {
			spare = max(spare, k.askWant) // the answer may have been lost: it is given again
		}
		if spare == 0 {
			continue
		}
		sum += spare
		c := lender{pos, spare, mix64(b.id.low() ^ r.hashes[pos] ^ l.selfHash)}
		if len(best) < cap(best) {
			best = append(best, c)
		} else if last := &best[len(best)-1]; c.before(last) {
			*last = c
		} else {
			continue
		}
		for i := len(best) - 1; i > 0 && best[i].before(&best[i-1]); i-- {
			best[i], best[i-1] = best[i-1], best[i]
		}
	}
	return best, sum
}

func (c *lender) before(d *lender) bool {
	return c.spare > d.spare || c.spare == d.spare && c.tie < d.tie
}

// runs says whether an ask was sent so lately that the answer may be on its way.
func (k *level) runs(mono int64) bool {
	return k.askSeq != 0 && mono-k.askSent < askAgainNanos
}

// tokensElsewhere says whether the peers are believed to have what b lacks of units, and of what waits for it already.
func (l *ledger) tokensElsewhere(v *view, b *bucket, rule *Rule, units int64, t instant) bool {
	ps := l.entitled(v, t)
	if ps == nil || ps.roster() == nil || b.tok == nil {
		return false
	}
	need := units + b.ask.waiting - b.tok.content
	var room [maxAsks]lender
	_, sum := l.lenders(b, ps.roster(), rule, t, room[:0])
	return sum >= need && (need <= 0 || !b.tok.yields(rule, units, need, sum, b.span.nanos(), t.mono))
}

// borrow asks for what is lacking beyond what asks that run are for.
func (l *ledger) borrow(sh *shard, v *view, b *bucket, rule *Rule, need int64, t instant, out *outbox) {
	ps := l.entitled(v, t)
	if ps == nil || ps.roster() == nil {
		return
	}
	r, tr := ps.roster(), b.tok.dealings()
	for i := range tr.levels {
		k := &tr.levels[i]
		switch {
		case k.runs(t.mono):
			need -= k.askWant
		case t.mono >= k.askMono+leaseNanos:
			k.askSeq = 0 // nothing that comes of it would count any more, and it says nothing of the peer now
		case k.askSeq != 0 && !k.askSilent:
			k.askSilent = true
			l.peers.at(k.peer).silent(t.mono)
		}
	}
	if need <= 0 || len(tr.in) >= maxLeases {
		return
	}
	var buf [maxAsks]lender
	best, _ := l.lenders(b, r, rule, t, buf[:0])
	// Half of what a donor has may come along, as far as it finds room here.
	more := max(b.tok.room, 0)
	for i := range best {
		want := min(best[i].spare, need)
		l.askTokens(sh, b, r, best[i].pos, rule, want, more, t, out)
		if need -= want; need <= 0 {
			return
		}
		more = 0
	}
}

func (l *ledger) askTokens(sh *shard, b *bucket, r *rosterView, pos int, rule *Rule, want, more int64, t instant, out *outbox) {
	peer := r.peers[pos]
	k := b.tok.dealings().learn(peer)
	now := max(t.mono, b.tok.at)
	if k.askSeq == 0 || now >= k.askMono+leaseNanos/2 {
		k.askSeq, k.askMono = l.seq.Add(1), now
	}
	k.askSent, k.askWant, k.askSilent = t.mono, want, false
	sh.stats.asks++
	m := leaseAsk{
		receiver: r.hashes[pos], tokenName: tokenName{b.id, *rule}, ask: k.askSeq, want: want, more: more, content: b.tok.content,
	}
	h := header{typeLeaseAsk, l.selfHash, l.inc, l.seq.Add(1), t.ms}
	out.add(peer, func(buf []byte) []byte { return appendLeaseAsk(buf, h, &m) })
}

// borrowAhead asks before a large part is gone, so that no request has to wait.
func (l *ledger) borrowAhead(sh *shard, v *view, b *bucket, c *Charge, t instant, out *outbox) {
	tk := b.tok
	if b.cell || c.Rule.Limit == 0 || t.mono < b.ask.quietTo {
		return
	}
	ps := l.entitled(v, t)
	if ps == nil || ps.roster() == nil {
		return
	}
	full := tk.content + tk.room
	if full < aheadShare*grains || tk.content >= full/8 {
		return
	}
	b.ask.quietTo = t.mono + aheadNanos
	want := full / 8
	var room [maxAsks]lender
	if _, sum := l.lenders(b, ps.roster(), &c.Rule, t, room[:0]); sum >= want {
		l.borrow(sh, v, b, &c.Rule, want, t, out)
	}
}

// onLeaseAsk lends what it can spare, debiting itself before it answers. It always answers, so that the asker need not wait;
// but not an ask that it has answered, or one from too long ago.
func (l *ledger) onLeaseAsk(t instant, from uint16, h header, m *leaseAsk, out *outbox) {
	if age := t.ms - h.clock; age > l.pauseMillis() || age < -l.pauseMillis() {
		return
	}
	answer := leaseAnswer{receiver: h.sender, tokenName: m.tokenName, receiverInc: h.inc, ask: m.ask, flags: flagDenied}
	sh := &l.shards[shardOf(&m.id)]
	sh.mu.Lock()
	if sh.closed {
		sh.mu.Unlock()
		return
	}
	l.advance(sh, t.ms)
	b := l.obtain(sh, &m.id, m.rule, true)
	v := l.view.Load()
	if ps := l.entitled(v, t); ps != nil && b != nil && b.is(&m.rule) {
		own := l.reckon(b, ps, &m.rule, t.mono)
		named := l.inName(v, b, t)
		k := b.tok.dealings().learn(from)
		if h.inc < k.servedInc || h.inc == k.servedInc && m.ask < k.servedSeq {
			sh.mu.Unlock()
			return
		}
		if h.inc == k.servedInc && m.ask == k.servedSeq {
			// The answer was lost, or this is a copy of the ask. A lease that is over is not given again.
			if i := b.tok.trade.findOut(from, h.inc, m.ask); i >= 0 {
				answer.lent = b.tok.trade.out[i].units
			}
		} else {
			k.servedInc, k.servedSeq = h.inc, m.ask
			k.hear(m.content, h.inc, h.seq, t.mono)
			if named {
				answer.lent = l.lend(sh, b, own, from, h, m)
			}
			if answer.lent > 0 && b.tok.content > 0 {
				// It yields to the asker, who may need what others lent to this node: they must have it to lend it.
				l.giveBack(sh, b, l.most(b, ps.at(b.tok.at), b.tok.limit, b.tok.burst), t, out)
			}
		}
		if answer.lent > 0 {
			answer.flags = btou(b.tok.blurred()) * flagBlurred
		}
		answer.content = b.tok.content
	}
	sh.stats.asksAnswered++
	l.trim(sh, t.mono)
	seq := l.seq.Add(1)
	sh.mu.Unlock()
	out.add(from, func(buf []byte) []byte {
		return appendLeaseAnswer(buf, header{typeLeaseAnswer, l.selfHash, l.inc, seq, t.ms}, &answer)
	})
}

func (tr *tokenTrade) findOut(peer uint16, inc, seq uint64) int {
	for i := range tr.out {
		if o := &tr.out[i]; o.peer == peer && o.inc == inc && o.seq == seq {
			return i
		}
	}
	return -1
}

// lend takes content out of what this node holds of its own: what it borrowed goes back to others sooner than it would come
// back from the asker.
func (l *ledger) lend(sh *shard, b *bucket, own int64, from uint16, h header, m *leaseAsk) int64 {
	tk := b.tok
	have := min(tk.content, own)
	if l.unsafeLendOn {
		have = tk.content
	}
	if have <= 0 || sh.left || l.keeps(b, h.sender) || len(tk.trade.out) >= maxLeases {
		return 0
	}
	x := min(have, max(m.want, min(tk.content/2, m.more)))
	end := tk.at + leaseNanos + graceNanos
	if l.unsafeTakeBack {
		end = tk.at + 1
	}
	tk.trade.out = append(tk.trade.out, lease{units: x, end: end, inc: h.inc, seq: m.ask, peer: from})
	tk.spend(x) // and the cap with it: the room stays
	sh.stats.given += uint64(x)
	sh.touchTokens(b)
	return x
}

// onLeaseAnswer takes what a donor lent, once.
func (l *ledger) onLeaseAnswer(t instant, from uint16, h header, m *leaseAnswer, out *outbox) {
	if m.receiverInc != l.inc {
		return // lent to an incarnation that is no more
	}
	sh := &l.shards[shardOf(&m.id)]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	defer l.trim(sh, t.mono)
	b, own := l.dealt(sh, &m.tokenName, t)
	if b == nil {
		return
	}
	tk := b.tok
	k := tk.dealings().learn(from)
	k.hear(m.content, h.inc, h.seq, tk.at)
	if k.askSeq != m.ask && (!l.unsafeTwice || m.ask == 0) {
		return
	}
	end := k.askMono + leaseNanos
	k.askSeq = 0
	switch {
	case m.flags&flagDenied != 0:
		k.quietTo = t.mono + min(denyTokensNanos<<k.denied, denyTokensMaxNanos)
		k.denied = min(k.denied+1, 8)
	case tk.at >= end || len(tk.trade.in) >= maxLeases:
		l.over(&lease{seq: m.ask, peer: from}, m.lent, b, t, out)
	default:
		k.denied = 0
		tk.trade.in = append(tk.trade.in, lease{units: m.lent, end: end, seq: m.ask, peer: from})
		tk.content += m.lent
		if m.flags&flagBlurred != 0 {
			tk.blur(min(tk.limit, m.rule.Limit), b.span.nanos())
		}
		sh.stats.received += uint64(m.lent)
		if tk.content <= own {
			l.giveBack(sh, b, own, t, out)
		} else if !tk.trade.listed {
			tk.trade.listed = true
			sh.borrowers = append(sh.borrowers, b.index)
		}
		sh.touchTokens(b)
	}
	b.wake()
}

// giveBack ends all loans to this node, and returns what it cannot keep in room of its own.
func (l *ledger) giveBack(sh *shard, b *bucket, own int64, t instant, out *outbox) {
	tk := b.tok
	if tk.trade == nil || len(tk.trade.in) == 0 || l.unsafeNoClip {
		return
	}
	for i := range tk.trade.in {
		in := &tk.trade.in[i]
		back := min(in.units, max(tk.content-own, 0))
		tk.content -= back
		l.over(in, back, b, t, out)
	}
	tk.trade.in = tk.trade.in[:0]
	tk.note(own)
	sh.touchTokens(b)
}

// returnUnused gives back what was borrowed for a request that was refused in the end.
func (l *ledger) returnUnused(c *Charge, t instant, out *outbox) {
	sh, b := l.at(c)
	if b == nil || b.tok == nil || b.ask.queued > 0 || b.tok.trade == nil || len(b.tok.trade.in) == 0 {
		return
	}
	l.giveBack(sh, b, l.most(b, l.phases.Load().at(b.tok.at), b.tok.limit, b.tok.burst), t, out)
}

// over tells a donor that a lease is over, and how much of it comes back.
func (l *ledger) over(in *lease, back int64, b *bucket, t instant, out *outbox) {
	m := leaseOver{receiver: l.peers.at(in.peer).hash, tokenName: b.tokenName(), ask: in.seq, back: back, flags: btou(b.tok.blurred()) * flagBlurred}
	h := header{typeLeaseOver, l.selfHash, l.inc, l.seq.Add(1), t.ms}
	out.add(in.peer, func(buf []byte) []byte { return appendLeaseOver(buf, h, &m) })
}

// onLeaseOver takes back what was lent, sooner than the lease would end.
func (l *ledger) onLeaseOver(t instant, from uint16, h header, m *leaseOver) {
	sh := &l.shards[shardOf(&m.id)]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	defer l.trim(sh, t.mono)
	b, _ := l.dealt(sh, &m.tokenName, t)
	if b == nil || b.tok.trade == nil {
		return
	}
	tk := b.tok
	i := tk.trade.findOut(from, h.inc, m.ask)
	if i < 0 {
		return
	}
	back := min(m.back, tk.trade.out[i].units)
	tk.trade.out = append(tk.trade.out[:i], tk.trade.out[i+1:]...)
	tk.content += back
	tk.missing()
	if back > 0 && m.flags&flagBlurred != 0 {
		tk.blur(min(tk.limit, m.rule.Limit), b.span.nanos())
	}
	tk.note(l.most(b, l.phases.Load().at(tk.at), tk.limit, tk.burst) + tk.borrowed())
	if back > 0 {
		sh.touchTokens(b)
		b.wake()
	}
}

// dealt finds a bucket that a packet about a loan names, brought up to t by its own rule, and the cap that it holds of its
// own; nil where there is none, or nothing may be done with it.
func (l *ledger) dealt(sh *shard, name *tokenName, t instant) (b *bucket, own int64) {
	l.advance(sh, t.ms)
	b = sh.get(&name.id)
	ps := l.entitled(l.view.Load(), t)
	if sh.closed || b == nil || !b.is(&name.rule) || b.tok == nil || ps == nil {
		return nil, 0
	}
	rule := Rule{Limit: b.tok.limit, Burst: b.tok.burst}
	return b, l.reckon(b, ps, &rule, t.mono)
}

// is says whether b is the bucket of a rule: names come from packets.
func (b *bucket) is(rule *Rule) bool {
	return b.span == span(rule.Window*1000) && b.alg == rule.Algorithm
}

// touchTokens notes that the others do not know what b holds.
func (sh *shard) touchTokens(b *bucket) {
	if !b.dirty && !b.cell {
		sh.list(b, markLevel)
	}
}

// tick is what a node does by itself, some times a second: it notices a change of rosters, and returns loans that no request
// waits for any more.
func (l *ledger) tick(t instant, out *outbox) {
	v := l.view.Load()
	if ps := l.entitled(v, t); ps == nil {
		return
	}
	l.ticked.Store(t.mono)
	for i := range l.shards {
		sh := &l.shards[i]
		sh.mu.Lock()
		if len(sh.borrowers) > 0 && !sh.closed {
			l.returnLoans(sh, v, t, out)
		}
		sh.mu.Unlock()
	}
}

func (l *ledger) returnLoans(sh *shard, v *view, t instant, out *outbox) {
	keep := sh.borrowers[:0]
	for _, index := range sh.borrowers {
		b := sh.slab[index]
		if b == nil || b.tok == nil || b.tok.trade == nil || !b.tok.trade.listed {
			continue
		}
		ps := l.entitled(v, t)
		if ps == nil || b.ask.queued > 0 {
			keep = append(keep, index)
			continue
		}
		rule := Rule{Limit: b.tok.limit, Burst: b.tok.burst}
		l.giveBack(sh, b, l.reckon(b, ps, &rule, t.mono), t, out)
		b.tok.trade.listed = false
	}
	sh.borrowers = keep
}
