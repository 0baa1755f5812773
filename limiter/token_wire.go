package limiter

import "encoding/binary"

// The packets of token buckets, in the terms of wire.go.
//
//	token     name (16) · window length in seconds · limit · burst
//
//	ask       header · nodeHash of the receiver (8) · token · sequence of the ask · wanted · what more would find room ·
//	          content of the sender
//	answer    header · nodeHash of the receiver (8) · token · the asker's incarnation · the ask's sequence · flags (1) ·
//	          what is lent · content of the sender
//	over      header · nodeHash of the receiver (8) · token · the ask's sequence · what comes back
//	levels    header · number of entries (1) · (token · content of the sender) each
//
// The ask's sequence is that of its first packet: one that is sent again is still the same.
const (
	typeLeaseAsk    = 5
	typeLeaseAnswer = 6
	typeLeaseOver   = 7
	typeLevels      = 8
)

type tokenName struct {
	id   BucketID
	rule Rule
}

type leaseAsk struct {
	receiver uint64
	tokenName
	ask        uint64
	want, more int64
	content    int64
}

type leaseAnswer struct {
	receiver uint64
	tokenName
	receiverInc uint64
	ask         uint64
	flags       uint8
	lent        int64
	content     int64
}

type leaseOver struct {
	receiver uint64
	tokenName
	ask  uint64
	back int64
}

func appendToken(b []byte, m *tokenName) []byte {
	b = append(b, m.id[:]...)
	b = binary.AppendUvarint(b, uint64(m.rule.Window))
	b = binary.AppendUvarint(b, uint64(m.rule.Limit))
	return binary.AppendUvarint(b, uint64(m.rule.Burst))
}

func appendLeaseAsk(b []byte, h header, m *leaseAsk) []byte {
	b = binary.LittleEndian.AppendUint64(appendHeader(b, h), m.receiver)
	b = appendToken(b, &m.tokenName)
	b = binary.AppendUvarint(b, m.ask)
	b = binary.AppendUvarint(b, uint64(m.want))
	b = binary.AppendUvarint(b, uint64(m.more))
	return binary.AppendUvarint(b, uint64(m.content))
}

func appendLeaseAnswer(b []byte, h header, m *leaseAnswer) []byte {
	b = binary.LittleEndian.AppendUint64(appendHeader(b, h), m.receiver)
	b = appendToken(b, &m.tokenName)
	b = binary.AppendUvarint(b, m.receiverInc)
	b = binary.AppendUvarint(b, m.ask)
	b = append(b, m.flags)
	b = binary.AppendUvarint(b, uint64(m.lent))
	return binary.AppendUvarint(b, uint64(m.content))
}

func appendLeaseOver(b []byte, h header, m *leaseOver) []byte {
	b = binary.LittleEndian.AppendUint64(appendHeader(b, h), m.receiver)
	b = appendToken(b, &m.tokenName)
	b = binary.AppendUvarint(b, m.ask)
	return binary.AppendUvarint(b, uint64(m.back))
}

func (r *reader) token() tokenName {
	m := tokenName{id: r.name()}
	m.rule = Rule{Algorithm: TokenBucket, Window: r.units(maxWindow), Limit: r.units(maxLimit), Burst: r.units(maxLimit)}
	if !validRule(&m.rule) {
		r.fail()
	}
	return m
}

// sequence is one that a packet can have: 0 stands for none.
func (r *reader) sequence() uint64 {
	v := r.uvarint()
	if v == 0 {
		r.fail()
	}
	return v
}

func (r *reader) leaseAsk() leaseAsk {
	return leaseAsk{
		receiver: r.fixed64(), tokenName: r.token(), ask: r.sequence(), want: r.units(maxWireUnit), more: r.units(maxWireUnit),
		content: r.units(maxWireUnit),
	}
}

func (r *reader) leaseAnswer() leaseAnswer {
	m := leaseAnswer{
		receiver: r.fixed64(), tokenName: r.token(), receiverInc: r.uvarint(), ask: r.sequence(), flags: r.byte(),
		lent: r.units(maxWireUnit), content: r.units(maxWireUnit),
	}
	// Denied or something lent, one of the two, and no more than there is.
	if m.flags > flagDenied || (m.flags == flagDenied) != (m.lent == 0) || m.lent > m.rule.Burst*grains {
		r.fail()
	}
	return m
}

func (r *reader) leaseOver() leaseOver {
	return leaseOver{receiver: r.fixed64(), tokenName: r.token(), ask: r.sequence(), back: r.units(maxWireUnit)}
}

// receiveTokens takes in a packet about token buckets. It reports whether it was one, and well-formed.
func (l *ledger) receiveTokens(t instant, from string, h header, r reader, out *outbox) bool {
	switch h.kind {
	case typeLeaseAsk:
		m := r.leaseAsk()
		if !r.done() {
			return false
		}
		if p, ok := l.sender(t, from, h, m.receiver); ok {
			l.onLeaseAsk(t, p, h, &m, out)
		}
	case typeLeaseAnswer:
		m := r.leaseAnswer()
		if !r.done() {
			return false
		}
		if p, ok := l.sender(t, from, h, m.receiver); ok {
			l.onLeaseAnswer(t, p, h, &m, out)
		}
	case typeLeaseOver:
		m := r.leaseOver()
		if !r.done() {
			return false
		}
		if p, ok := l.sender(t, from, h, m.receiver); ok {
			l.onLeaseOver(t, p, h, &m)
		}
	case typeLevels:
		return l.onLevels(t, from, h, r)
	default:
		return false
	}
	return true
}

// onLevels takes in what a node says of its token buckets.
func (l *ledger) onLevels(t instant, from string, h header, r reader) bool {
	count := int(r.byte())
	check := r
	for range count {
		check.token()
		check.units(maxWireUnit)
	}
	if !check.done() {
		return false
	}
	p, ok := l.sender(t, from, h, l.selfHash)
	if !ok {
		return true
	}
	for range count {
		name := r.token()
		content := r.units(maxWireUnit)
		l.hearLevel(t, p, h, &name, content)
	}
	return true
}

func (l *ledger) hearLevel(t instant, from uint16, h header, name *tokenName, content int64) {
	sh := &l.shards[shardOf(&name.id)]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	ps := l.entitled(l.view.Load(), t)
	if sh.closed || ps == nil {
		return
	}
	defer l.trim(sh, t.mono)
	b := l.obtain(sh, &name.id, name.rule, true)
	if b == nil || !b.is(&name.rule) {
		return
	}
	if b.tok == nil {
		l.reckon(b, ps, &name.rule, t.mono)
	}
	b.tok.dealings().learn(from).hear(content, h.inc, h.seq, max(t.mono, b.tok.at))
}

// newsOfTokens tells the nodes in to what the token buckets hold that changed: no new packet once budget bytes are used up.
// What does not fit waits for the next call. It returns the bytes. Levels are few beside counters, and worth little
// without their time: they are not passed on.
func (l *ledger) newsOfTokens(t instant, budget int, to []uint16, send func(peer uint16, packet []byte)) (bytes int) {
	v := l.view.Load()
	p := newsPacket{kind: typeLevels}
	out := func() {
		if p.count == 0 {
			return
		}
		bytes += len(p.buf)
		for _, peer := range to {
			send(peer, p.buf)
		}
		p.buf, p.count = p.buf[:0], 0
	}
	first := int(l.newsAt.Load())
	for i := range l.shards {
		sh := &l.shards[(first+i)%shardCount]
		for bytes < budget && l.packShard(sh, v, t, markLevel, &p) {
			out()
		}
	}
	out()
	return bytes
}

// tellLevel appends what a token bucket holds.
func (l *ledger) tellLevel(b *bucket, t instant, p *newsPacket) {
	if b.tok == nil {
		return
	}
	if p.count == 0 {
		l.begin(p, t)
	}
	name := b.tokenName()
	if ps := l.entitled(l.view.Load(), t); ps != nil {
		l.reckon(b, ps, &name.rule, t.mono) // it has gained since
	}
	p.buf = binary.AppendUvarint(appendToken(p.buf, &name), uint64(b.tok.content))
	p.count++
	p.buf[p.lead] = p.count
}

// tokenName is how packets name b.
func (b *bucket) tokenName() tokenName {
	return tokenName{b.id, Rule{Limit: b.tok.limit, Window: int64(b.span) / 1000, Algorithm: TokenBucket, Burst: b.tok.burst}}
}
