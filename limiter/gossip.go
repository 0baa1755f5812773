package limiter

// onNews takes in what a node says of its buckets. It reports whether the packet was well-formed; entries before a
// fault are not taken in either.
func (l *ledger) onNews(t instant, from string, h header, r reader) bool {
	check := r
	for len(check.b) > 0 {
		check.bucket()
		check.counters()
	}
	if !check.done() {
		return false
	}
	p, ok := l.sender(from, h, l.selfHash)
	if !ok {
		return true
	}
	for len(r.b) > 0 {
		name := r.bucket()
		c := r.counters()
		c.n, c.inc, c.seq = name.n, h.inc, h.seq
		l.hear(t, p, &name, c)
	}
	return true
}

// hear merges one bucket's counters, if its window is near enough to matter.
func (l *ledger) hear(t instant, from uint16, name *bucketName, c counters) {
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
	rule := name.rule
	rule.Limit = c.limit
	b := l.obtain(sh, &name.id, rule, true)
	if b == nil || b.span != s || b.alg != rule.Algorithm {
		return
	}
	b.learn(from).merge(c)
}

// news writes packets with the counters that changed since they were last sent, at most budget bytes of them, buckets
// near their limit first; what does not fit waits for the next call. emit gets each packet, with no lock held,
// and must not keep it.
func (l *ledger) news(t instant, budget int, emit func(packet []byte)) {
	v := l.view.Load()
	buf := make([]byte, 0, MaxPacket)
	flush := func() {
		if len(buf) > headerLen {
			budget -= len(buf)
			emit(buf)
		}
		buf = buf[:0]
	}
	for pass := range 2 {
		for i := range l.shards {
			sh := &l.shards[i]
			for budget > 0 {
				if len(buf) == 0 {
					buf = appendHeader(buf, header{typeNews, l.selfHash, l.inc, l.seq.Add(1)})
				}
				var more bool
				if buf, more = l.packShard(sh, v, t, pass == 0, buf); !more {
					break
				}
				flush()
			}
		}
	}
	if budget > 0 {
		flush()
	}
}

// packShard appends entries of one shard until its list is empty or the packet is full (more).
func (l *ledger) packShard(sh *shard, v *view, t instant, hot bool, buf []byte) ([]byte, bool) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.closed {
		return buf, false
	}
	list := &sh.cold
	if hot {
		list = &sh.hot
	}
	for i, index := range *list {
		if len(buf)+maxEntry > MaxPacket {
			*list = append((*list)[:0], (*list)[i:]...)
			return buf, true
		}
		b := sh.slab[index]
		b.dirty = false
		n := b.span.at(t.ms)
		name := b.name(n)
		c := l.ownCounters(sh, v, b, n, b.limit, t)
		buf = appendCounters(appendBucket(buf, &name), &c)
	}
	*list = (*list)[:0]
	return buf, false
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
