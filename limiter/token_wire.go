package limiter

import (
	"encoding/binary"
	"math"
)

// The packets of token buckets, in the terms of wire.go.
//
//	token     name (16) · window length in seconds · limit · burst
//
//	ask       header · nodeHash of the receiver (8) · token · sequence of the ask · wanted · what more would find room ·
//	          content of the sender
//	answer    header · nodeHash of the receiver (8) · token · the asker's incarnation · the ask's sequence · flags (1) ·
//	          what is lent · content of the sender
//	over      header · nodeHash of the receiver (8) · token · the ask's sequence · what comes back · flags (1)
//	levels    header · 1 to be passed on, else 0 (1) · number of groups (1) · groups
//	group     as of a relay packet, with the origin's monotonic clock (8) before the number of entries, and of entries
//	          (token · content · units counted · milliseconds since counting began) each
//	clock     header · nodeHash of the receiver (8) · 0 in a question, else the asker's incarnation · 0, or the asker's
//	          monotonic clock when it asked (8) · the sender's monotonic clock (8)
//
// The ask's sequence is that of its first packet: one that is sent again is still the same.
const (
	typeLeaseAsk    = 5
	typeLeaseAnswer = 6
	typeLeaseOver   = 7
	typeLevels      = 8
	typeClock       = 9

	// flagBlurred, of an answer and of an over: what is lent, or comes back, may have been counted twice (token_audit.go).
	flagBlurred = 2
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
	ask   uint64
	back  int64
	flags uint8
}

type clockMessage struct {
	receiver    uint64
	receiverInc uint64 // 0: a question
	echo, mono  int64
}

// levelEntry is what a node says of a token bucket: what it holds, and how many units it counted since age milliseconds ago.
type levelEntry struct {
	tokenName
	content, counted, age int64
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
	return append(binary.AppendUvarint(b, uint64(m.back)), m.flags)
}

func appendClock(b []byte, h header, m *clockMessage) []byte {
	b = binary.LittleEndian.AppendUint64(appendHeader(b, h), m.receiver)
	b = binary.AppendUvarint(b, m.receiverInc)
	b = binary.LittleEndian.AppendUint64(b, uint64(m.echo))
	return binary.LittleEndian.AppendUint64(b, uint64(m.mono))
}

func appendLevelEntry(b []byte, e *levelEntry) []byte {
	b = binary.AppendUvarint(appendToken(b, &e.tokenName), uint64(e.content))
	b = binary.AppendUvarint(b, uint64(e.counted))
	return binary.AppendUvarint(b, uint64(e.age))
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
	if m.flags > flagBlurred || (m.flags == flagDenied) != (m.lent == 0) || m.lent > m.rule.Burst*grains {
		r.fail()
	}
	return m
}

func (r *reader) leaseOver() leaseOver {
	m := leaseOver{receiver: r.fixed64(), tokenName: r.token(), ask: r.sequence(), back: r.units(maxWireUnit), flags: r.byte()}
	if m.flags&^flagBlurred != 0 {
		r.fail()
	}
	return m
}

// clock is a question or an answer. Readings of monotonic clocks are sums and differences of each other: none is so great
// that these overflow.
func (r *reader) clock() clockMessage {
	m := clockMessage{receiver: r.fixed64(), receiverInc: r.uvarint(), echo: r.reading(), mono: r.reading()}
	if m.receiverInc == 0 && m.echo != 0 {
		r.fail()
	}
	return m
}

func (r *reader) reading() int64 {
	v := int64(r.fixed64())
	if v < 0 || v > maxReading {
		r.fail()
		return 0
	}
	return v
}

// levelGroup reads a group of levels and hands its entries to visit.
func (r *reader) levelGroup(visit func(g header, mono int64, e levelEntry)) header {
	g := header{kind: typeLevels, sender: r.fixed64(), inc: r.uvarint(), seq: r.uvarint(), clock: r.signed(math.MaxInt64)}
	if g.inc == 0 {
		r.fail()
	}
	mono := r.reading()
	for range r.byte() {
		e := levelEntry{tokenName: r.token(), content: r.units(maxWireUnit), counted: r.units(maxWireUnit), age: r.units(maxReading / levelNanos)}
		if r.bad {
			break
		}
		visit(g, mono, e)
	}
	return g
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
	case typeClock:
		m := r.clock()
		if !r.done() {
			return false
		}
		if p, ok := l.sender(t, from, h, m.receiver); ok {
			l.onClock(t, p, h, &m, out)
		}
	case typeLevels:
		return l.onLevels(t, from, h, r)
	default:
		return false
	}
	return true
}

// onLevels takes in what nodes say of their token buckets.
func (l *ledger) onLevels(t instant, from string, h header, r reader) bool {
	pass := r.byte()
	count := int(r.byte())
	check := r
	for range count {
		check.levelGroup(func(header, int64, levelEntry) {})
	}
	if !check.done() || pass > 1 {
		return false
	}
	if _, ok := l.sender(t, from, h, l.selfHash); !ok {
		return true
	}
	v := l.view.Load()
	for range count {
		rest := r.b
		var peer uint16
		known := false
		g := r.levelGroup(func(g header, mono int64, e levelEntry) {
			if peer, known = v.find(g.sender); known && g.sender != l.selfHash {
				l.hearLevel(t, peer, g, mono, &e)
			}
		})
		if pass == 1 && known && g.sender != l.selfHash {
			l.relay.levels.give(rest[:len(rest)-len(r.b)])
		}
	}
	return true
}

func (l *ledger) hearLevel(t instant, from uint16, g header, mono int64, e *levelEntry) {
	sh := &l.shards[shardOf(&e.id)]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	ps := l.entitled(l.view.Load(), t)
	if sh.closed || ps == nil {
		return
	}
	defer l.trim(sh, t.mono)
	b := l.obtain(sh, &e.id, e.rule, true)
	if b == nil || !b.is(&e.rule) {
		return
	}
	if b.tok == nil {
		l.reckon(b, ps, &e.rule, t.mono)
	}
	k := b.tok.dealings().learn(from)
	if k.hear(e.content, g.inc, g.seq, max(t.mono, b.tok.at)) {
		l.hearCount(b, k, &e.rule, e.counted, e.age, mono)
	}
}

// newsOfTokens writes packets with what the token buckets hold that changed: no new one once budget bytes are used up. What
// does not fit waits for the next call. pass is 1 where it is to be passed on. It returns the bytes.
func (l *ledger) newsOfTokens(t instant, budget int, pass uint8, emit func(packet []byte)) (bytes int) {
	v := l.view.Load()
	p := newsPacket{kind: typeLevels, pass: pass}
	out := func() {
		if p.count == 0 {
			return
		}
		bytes += len(p.buf)
		emit(p.buf)
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
	e := levelEntry{tokenName: name, content: b.tok.content}
	if tk := b.tok; !tk.blurred() && tk.counted > 0 {
		e.counted, e.age = tk.counted, tk.countAge(t.mono)
	}
	p.buf = appendLevelEntry(p.buf, &e)
	p.count++
	p.buf[p.lead] = p.count
}

// tokenName is how packets name b.
func (b *bucket) tokenName() tokenName {
	return tokenName{b.id, Rule{Limit: b.tok.limit, Window: int64(b.span) / 1000, Algorithm: TokenBucket, Burst: b.tok.burst}}
}
