package limiter

import "encoding/binary"

// onNews takes in what a node says of its buckets. It reports whether the packet was well-formed; entries before a
// fault are not taken in either.
func (l *ledger) onNews(t instant, from string, h header, r reader) bool {
	count := int(r.byte())
	check := r
	for range count {
		check.bucket()
		check.counters()
	}
	if !check.done() {
		return false
	}
	p, ok := l.sender(t, from, h, l.selfHash)
	if !ok {
		return true
	}
	for range count {
		name := r.bucket()
		c := r.counters()
		c.n, c.inc, c.seq = name.n, h.inc, h.seq
		l.hear(t, p, h, &name, c)
	}
	return true
}

// hear merges one bucket's counters, if its window is near enough to matter.
func (l *ledger) hear(t instant, from uint16, h header, name *bucketName, c counters) {
	s := span(name.rule.Window * 1000)
	if now := s.at(t.ms); name.n < now-1 || s.begin(name.n) > t.ms+l.skewMillis {
		return
	}
	sh := &l.shards[shardOf(&name.id)]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.closed {
		return
	}
	defer l.trim(sh, t.mono)
	rule := name.rule
	rule.Limit = c.limit
	b := l.obtain(sh, &name.id, rule, true)
	if b == nil || b.span != s || b.alg != rule.Algorithm {
		return
	}
	if b.limit == 0 {
		b.limit = c.limit
	}
	l.advance(sh, t.ms)
	l.doubt(sh, h, &c)
	b.learn(from).merge(c)
	sh.stats.heard++
}

// news writes packets of a type with the counters that changed since they were last sent, buckets near their limit first:
// no new one once budget bytes are used up. What does not fit waits for the next call. It returns the bytes. emit gets each
// packet, with no lock held, and must not keep it.
func (l *ledger) news(t instant, budget int, kind uint8, emit func(packet []byte)) (bytes int) {
	v := l.view.Load()
	p := newsPacket{kind: kind, buf: make([]byte, 0, MaxPacket)}
	out := func() {
		bytes += len(p.buf)
		emit(p.buf)
		p.buf, p.count = p.buf[:0], 0
	}
	// Begin elsewhere each time, so that a budget that does not reach around starves no shard.
	first := int(l.newsAt.Add(1))
	for pass := range 2 {
		for i := range l.shards {
			sh := &l.shards[(first+i)%shardCount]
			for bytes < budget && l.packShard(sh, v, t, pass, &p) {
				out()
			}
		}
	}
	if p.count > 0 {
		out()
	}
	return bytes
}

// noNews is a packet that only says that this node lives.
func (l *ledger) noNews(t instant) []byte {
	return append(appendHeader(nil, header{typeNews, l.selfHash, l.inc, l.seq.Add(1), t.ms}), 0)
}

type newsPacket struct {
	kind  uint8
	pass  uint8 // of levels
	buf   []byte
	lead  int // of the byte that counts entries
	count uint8
}

// begin starts the packet: of news, or of one group to be passed on.
func (l *ledger) begin(p *newsPacket, t instant) {
	seq := l.seq.Add(1)
	h := header{p.kind, l.selfHash, l.inc, seq, t.ms}
	p.buf = appendHeader(p.buf, h)
	switch p.kind {
	case typeRelay:
		p.buf = appendGroup(append(p.buf, 1, 1), h)
	case typeLevels:
		p.buf = appendGroup(append(p.buf, p.pass, 1), h)
		p.buf = binary.LittleEndian.AppendUint64(p.buf, uint64(t.mono))
	}
	p.lead = len(p.buf)
	p.buf = append(p.buf, 0)
}

// packShard appends entries of one shard until it has no more of that kind of news, or reports that the packet is full.
func (l *ledger) packShard(sh *shard, v *view, t instant, kind int, p *newsPacket) bool {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.closed {
		return false
	}
	list := sh.news[kind]
	told := 0
	for ; told < len(list) && p.room(); told++ {
		b := sh.slab[list[told]]
		b.dirty = false
		l.tell(sh, v, b, t, p)
	}
	list = append(list[:0], list[told:]...)
	for i, index := range list {
		sh.slab[index].listAt = int32(i)
	}
	sh.news[kind] = list
	for sh.arena.marked[kind] > 0 && p.room() {
		at := sh.arena.nextMarked(sh.newsBlock[kind], kind)
		if at == 0 { // begin again where the last packets left off, so that none waits for ever
			sh.newsBlock[kind] = 0
			continue
		}
		sh.newsBlock[kind] = at + 1
		sh.arena.unmark(at)
		l.tell(sh, v, sh.open(at), t, p)
	}
	return len(list) > 0 || sh.arena.marked[kind] > 0
}

func (p *newsPacket) room() bool { return len(p.buf)+maxEntry <= MaxPacket && p.count < maxEntries }

// tell appends what b has to say of the window at hand. Of one long over nobody needs to know, unless a leaver's counters
// are told with it. Of a bucket that nobody asked for since the start no limit is known: what would be said of its share is
// wrong.
func (l *ledger) tell(sh *shard, v *view, b *bucket, t instant, p *newsPacket) {
	if b.alg == TokenBucket {
		l.tellLevel(b, t, p)
		return
	}
	n := b.span.at(t.ms)
	if b.limit == 0 || b.find(n) == nil && (b.alg != SlidingWindow || b.find(n-1) == nil) && len(v.legacies) == 0 {
		return
	}
	if p.count == 0 {
		l.begin(p, t)
	}
	name := b.name(n)
	c := l.ownCounters(sh, v, b, n, b.limit, t)
	p.buf = appendCounters(appendBucket(p.buf, &name), &c)
	p.count++
	p.buf[p.lead] = p.count
}

// audience is whom news goes to: every node that holds shares by the newest rosters.
func (l *ledger) audience() []uint16 {
	v := l.view.Load()
	var to []uint16
	for i := max(len(v.rosters)-2, 0); i < len(v.rosters); i++ {
		r := &v.rosters[i]
	next:
		for pos, p := range r.peers {
			if pos == r.self {
				continue
			}
			for _, q := range to {
				if p == q {
					continue next
				}
			}
			to = append(to, p)
		}
	}
	return to
}
