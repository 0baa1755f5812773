package limiter

import "encoding/binary"

// A bucket in use is a struct of pointers and room to grow; a million of them would take half a gigabyte. So one that is
// left alone is packed: a few bytes in the shard's arena, which its record completes where it has one. It is unpacked
// when it is next named. Packing keeps all that a decision goes by; a bucket that waits for an answer is not packed. Token
// buckets have a form of their own (token_packed.go).
//
// Integers are varints; grains are written as units where they are whole (the lowest bit tells).
//
//	bucket    algorithm | packedSlot (1 byte) · its slot (4), or its name (16) and window length in seconds · limit ·
//	          number of windows | number of peers known<<4 (1), the latter repeated in full if 15 or more · windows · peers
//	window    flags (1) · slot if it is another · window number, used, given, received as far as the flags want
//	          them · what the auditor notes (1), and whom was refused (1) if somebody was · number of cells · cells
//	cell      peer<<1 | out · incarnation · value
//	peer      flags (1) · its number · window number, used, used in the window before, base, net, charge, limit,
//	          incarnation, sequence, denials, as far as the flags want them
const (
	packedAlg  = 0x07
	packedSlot = 0x10 // the bucket's first record names it

	winSlotNone  = 0
	winSlotMain  = 1
	winSlotOther = 2
	winSlot      = 3
	winExact     = 1 << 2 // the record says the counters exactly
	winOdd       = 1 << 3 // then: of the record's two windows the odd one
	winIsLost    = 1 << 3 // else
	winAudit     = 1 << 4
	winGiven     = 1 << 5
	winReceived  = 1 << 6
	winCells     = 1 << 7

	knowOwing    = 1 << 0
	knowSame     = 1 << 1 // of the window named before
	knowNet      = 1 << 2 // the net is what was used
	knowCharge   = 1 << 3 // the charge is what was used in the window before
	knowLimit    = 1 << 4 // the limit is the bucket's
	knowPrevUsed = 1 << 5 // used in the window before is not 0
	knowDenied   = 1 << 6
	knowFlags    = 1 << 7

	auditVague   = 1 << 0
	auditDone    = 1 << 1
	auditRefused = 1 << 2

	// maxPacked bounds counts, so that every one has a bit to spare.
	maxPacked = int64(1) << 60
	// forgetAsk is the age at which an ask counts as lost when its bucket is packed.
	forgetAsk = int64(1e9)
)

// packable says whether nothing hangs on b that its packed form does not keep.
func (b *bucket) packable(mono int64) bool {
	if b.ask.waiters != nil || b.ask.quietTo > mono || b.ask.inFlight && mono-b.ask.sentMono < forgetAsk {
		return false
	}
	if b.alg == TokenBucket {
		return b.tokensPackable(mono)
	}
	for i := range b.know {
		k := &b.know[i]
		if k.quietTo > mono || !fits60(k.used, k.prevUsed, k.base, k.charge, k.limit) || k.net >= maxPacked || k.net <= -maxPacked {
			return false
		}
	}
	for i := range b.wins {
		if w := &b.wins[i]; !fits60(w.used, w.given, w.received) {
			return false
		}
	}
	return true
}

func fits60(counts ...int64) bool {
	for _, c := range counts {
		if c < 0 || c >= maxPacked {
			return false
		}
	}
	return true
}

func appendGrains(p []byte, g int64) []byte {
	if g%grains == 0 {
		return binary.AppendUvarint(p, uint64(g/grains)<<1)
	}
	return binary.AppendUvarint(p, uint64(g)<<1|1)
}

func appendSigned(p []byte, g int64) []byte {
	if g%grains == 0 {
		return binary.AppendVarint(p, g/grains<<1)
	}
	return binary.AppendVarint(p, g<<1|1)
}

// appendPacked writes b, which must be packable.
func (r *recordFile) appendPacked(p []byte, b *bucket) []byte {
	if b.alg == TokenBucket {
		return b.appendPackedTokens(p)
	}
	main := noSlot
	for i := range b.wins {
		if main = b.wins[i].slot; main != noSlot {
			break
		}
	}
	if main != noSlot {
		p = binary.LittleEndian.AppendUint32(append(p, byte(b.alg)|packedSlot), uint32(main))
	} else {
		p = append(append(p, byte(b.alg)), b.id[:]...)
		p = binary.AppendUvarint(p, uint64(b.span)/1000)
	}
	p = binary.AppendUvarint(p, uint64(b.limit))
	p = append(p, byte(len(b.wins)|min(len(b.know), 15)<<4))
	if len(b.know) >= 15 {
		p = binary.AppendUvarint(p, uint64(len(b.know)))
	}
	n := int64(0)
	for i := range b.wins {
		w := &b.wins[i]
		p = r.appendWindow(p, w, main, n)
		n = w.n
	}
	for i := range b.know {
		k := &b.know[i]
		p = appendKnown(p, k, b.limit, n)
		n = k.n
	}
	return p
}

func (r *recordFile) appendWindow(p []byte, w *window, main int32, before int64) []byte {
	var flags byte
	switch w.slot {
	case noSlot:
	case main:
		flags = winSlotMain
	default:
		flags = winSlotOther
	}
	if w.slot != noSlot && r.proves(w) {
		flags |= winExact | byte(w.n&1)*winOdd
	} else {
		if w.lost {
			flags |= winIsLost
		}
		if w.received != 0 {
			flags |= winReceived
		}
	}
	if w.given != 0 {
		flags |= winGiven
	}
	if w.vague || w.audited || w.refused != 0 {
		flags |= winAudit
	}
	if len(w.cells) > 0 {
		flags |= winCells
	}
	p = append(p, flags)
	if flags&winSlot == winSlotOther {
		p = binary.AppendUvarint(p, uint64(w.slot))
	}
	if flags&winExact == 0 {
		p = binary.AppendVarint(p, w.n-before)
		p = appendGrains(p, w.used)
	}
	if flags&winGiven != 0 {
		p = appendGrains(p, w.given)
	}
	if flags&winReceived != 0 {
		p = appendGrains(p, w.received)
	}
	if flags&winAudit != 0 {
		p = append(p, btou(w.vague)*auditVague|btou(w.audited)*auditDone|btou(w.refused != 0)*auditRefused)
		if w.refused != 0 {
			p = append(p, w.refused)
		}
	}
	if flags&winCells != 0 {
		p = binary.AppendUvarint(p, uint64(len(w.cells)))
		for i := range w.cells {
			c := &w.cells[i]
			p = binary.AppendUvarint(p, uint64(c.peer)<<1|uint64(btou(c.out)))
			p = binary.AppendUvarint(p, c.inc)
			p = binary.AppendUvarint(p, uint64(c.value))
		}
	}
	return p
}

func btou(b bool) byte {
	if b {
		return 1
	}
	return 0
}

func appendKnown(p []byte, k *counters, limit, before int64) []byte {
	var flags byte
	if k.owing {
		flags |= knowOwing
	}
	if k.n == before {
		flags |= knowSame
	}
	if k.net == k.used {
		flags |= knowNet
	}
	if k.charge == k.prevUsed {
		flags |= knowCharge
	}
	if k.limit == limit {
		flags |= knowLimit
	}
	if k.prevUsed != 0 {
		flags |= knowPrevUsed
	}
	if k.denied != 0 {
		flags |= knowDenied
	}
	if k.flags != 0 {
		flags |= knowFlags
	}
	p = binary.AppendUvarint(append(p, flags), uint64(k.peer))
	if flags&knowSame == 0 {
		p = binary.AppendVarint(p, k.n-before)
	}
	p = appendGrains(p, k.used)
	if flags&knowPrevUsed != 0 {
		p = appendGrains(p, k.prevUsed)
	}
	p = appendGrains(p, k.base)
	if flags&knowNet == 0 {
		p = appendSigned(p, k.net)
	}
	if flags&knowCharge == 0 {
		p = appendGrains(p, k.charge)
	}
	if flags&knowLimit == 0 {
		p = binary.AppendUvarint(p, uint64(k.limit))
	}
	p = binary.AppendUvarint(p, k.inc)
	p = binary.AppendUvarint(p, k.seq)
	if flags&knowDenied != 0 {
		p = append(p, k.denied)
	}
	if flags&knowFlags != 0 {
		p = append(p, k.flags)
	}
	return p
}

// unpacker reads what appendPacked wrote.
type unpacker struct{ p []byte }

func (u *unpacker) byte() byte {
	b := u.p[0]
	u.p = u.p[1:]
	return b
}

func (u *unpacker) uvarint() uint64 {
	if b := u.p[0]; b < 0x80 {
		u.p = u.p[1:]
		return uint64(b)
	}
	v, n := binary.Uvarint(u.p)
	u.p = u.p[n:]
	return v
}

func (u *unpacker) varint() int64 {
	v, n := binary.Varint(u.p)
	u.p = u.p[n:]
	return v
}

func (u *unpacker) grains() int64 {
	v := u.uvarint()
	if v&1 == 0 {
		return int64(v>>1) * grains
	}
	return int64(v >> 1)
}

func (u *unpacker) signed() int64 {
	v := u.varint()
	if v&1 == 0 {
		return (v >> 1) * grains
	}
	return v >> 1
}

// packedName is the name of the bucket packed in p.
func (r *recordFile) packedName(p []byte) (id BucketID) {
	if p[0]&packedSlot != 0 {
		s := r.slot(int32(binary.LittleEndian.Uint32(p[1:])))
		putWords(&id, s[1], s[2])
		return id
	}
	copy(id[:], p[1:])
	return id
}

// unpack fills b, which must be empty but for what it keeps to reuse.
func (r *recordFile) unpack(p []byte, b *bucket) {
	b.id = r.packedName(p)
	b.alg = Algorithm(p[0] & packedAlg)
	u := unpacker{p[1:]}
	main := noSlot
	if p[0]&packedSlot != 0 {
		main = int32(binary.LittleEndian.Uint32(u.p))
		u.p = u.p[4:]
		b.span = r.span(main)
	} else {
		u.p = u.p[len(b.id):]
		b.span = span(u.uvarint()) * 1000
	}
	if b.alg == TokenBucket {
		b.unpackTokens(&u, p[0])
		return
	}
	b.limit = int64(u.uvarint())
	counts := u.byte()
	know := int(counts >> 4)
	if know == 15 {
		know = int(u.uvarint())
	}
	n := int64(0)
	for range counts & 15 {
		b.wins = append(b.wins, window{})
		w := &b.wins[len(b.wins)-1]
		r.unpackWindow(&u, b, w, main, n)
		n = w.n
	}
	for range know {
		b.know = append(b.know, counters{})
		k := &b.know[len(b.know)-1]
		unpackKnown(&u, k, b.limit, n)
		n = k.n
	}
}

func (r *recordFile) unpackWindow(u *unpacker, b *bucket, w *window, main int32, before int64) {
	flags := u.byte()
	w.slot = noSlot
	switch flags & winSlot {
	case winSlotMain:
		w.slot = main
	case winSlotOther:
		w.slot = int32(u.uvarint())
	}
	if flags&winExact != 0 {
		r.read(w, int(flags&winOdd/winOdd)) // used is what was given, too
	} else {
		w.n = before + u.varint()
		w.used = u.grains()
		w.lost = flags&winIsLost != 0
	}
	if flags&winGiven != 0 {
		w.given = u.grains()
		if flags&winExact != 0 {
			w.used -= w.given
		}
	}
	if flags&winReceived != 0 {
		w.received = u.grains()
	}
	if flags&winAudit != 0 {
		a := u.byte()
		w.vague, w.audited = a&auditVague != 0, a&auditDone != 0
		if a&auditRefused != 0 {
			w.refused = u.byte()
		}
	}
	if flags&winCells == 0 {
		return
	}
	from := len(b.cells)
	for range u.uvarint() {
		peer := u.uvarint()
		b.cells = append(b.cells, cell{peer: uint16(peer >> 1), out: peer&1 != 0, inc: u.uvarint(), value: int64(u.uvarint())})
	}
	w.cells = b.cells[from:len(b.cells):len(b.cells)]
}

func unpackKnown(u *unpacker, k *counters, limit, before int64) {
	flags := u.byte()
	k.owing = flags&knowOwing != 0
	k.peer = uint16(u.uvarint())
	if k.n = before; flags&knowSame == 0 {
		k.n += u.varint()
	}
	k.used = u.grains()
	if flags&knowPrevUsed != 0 {
		k.prevUsed = u.grains()
	}
	k.base = u.grains()
	if k.net = k.used; flags&knowNet == 0 {
		k.net = u.signed()
	}
	if k.charge = k.prevUsed; flags&knowCharge == 0 {
		k.charge = u.grains()
	}
	if k.limit = limit; flags&knowLimit == 0 {
		k.limit = int64(u.uvarint())
	}
	k.inc, k.seq = u.uvarint(), u.uvarint()
	if flags&knowDenied != 0 {
		k.denied = u.byte()
	}
	if flags&knowFlags != 0 {
		k.flags = u.byte()
	}
}
