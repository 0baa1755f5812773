package limiter

import "encoding/binary"

// The packed form of token buckets, in the terms of packed.go. Nothing of them is recorded, so the name is always there.
//
//	bucket    algorithm | tokensLost | tokensHeld | tokensSpent | tokensLent (1 byte) · name (16) · window length in seconds; without
//	          tokensHeld that is all · flags | number of peers known<<5 (1), the latter in full if 7 or more · limit · burst ·
//	          content · frac · at · room (appendRoom) · filled · birth · highest, spentAt, spentLimit, generation, what is counted and
//	          since when, losses and yieldTo after at as far as the flags want them · loans to others · peers
//	loan      units · end after at · incarnation · sequence · peer
//	peer      flags | its number<<5 (1), the latter in full if 7 or more · content, milliseconds from the one before, incarnation, sequence if it was heard ·
//	          sequence and incarnation of its ask that was served last, if any · denials · what it counts, and since when
//
// Loans that this node took are not packed: they are returned in the next interval.
const (
	tokensLost  = 0x08
	tokensHeld  = 0x20
	tokensSpent = 0x40
	tokensLent  = 0x80

	tokBurst      = 1 << 0 // the burst is the limit
	tokHighest    = 1 << 1 // the highest burst is the present one
	tokSpentNow   = 1 << 2 // spentAt is at, spentLimit is the limit
	tokGeneration = 1 << 3
	tokCounted    = 1 << 4 // something is counted, or not before countFrom
	tokPeers      = 5
	manyPeers     = 7

	levelHeard     = 1 << 0
	levelServed    = 1 << 1
	levelServedInc = 1 << 2 // the incarnation that was served is the one that was heard
	levelDenied    = 1 << 3
	levelCounted   = 1 << 4
	levelPeer      = 5
)

// makeTokens gives b an empty token bucket, in memory that it used before where there is some.
func (b *bucket) makeTokens() *tokens {
	tk := b.spare
	if tk == nil {
		tk = &tokens{}
	}
	tr := tk.trade
	if tr != nil {
		*tr = tokenTrade{in: tr.in[:0], out: tr.out[:0], levels: tr.levels[:0]}
	}
	*tk = tokens{trade: tr}
	b.tok, b.spare = tk, nil
	return tk
}

// tokenMemory is what b has to make a token bucket of.
func (b *bucket) tokenMemory() *tokens {
	if b.tok != nil {
		return b.tok
	}
	return b.spare
}

// tokensPackable is packable for a token bucket. An ask too old for its answer to count is dropped.
func (b *bucket) tokensPackable(mono int64) bool {
	tk := b.tok
	if tk == nil {
		return true
	}
	if !fits60(tk.content, tk.room, tk.filled, tk.frac) || tk.due != 0 {
		return false
	}
	if tk.trade == nil {
		return true
	}
	if len(tk.trade.in) > 0 || tk.trade.listed {
		return false
	}
	now := max(mono, tk.at)
	for i := range tk.trade.levels {
		k := &tk.trade.levels[i]
		if k.quietTo > mono || k.askSeq != 0 && now < k.askMono+leaseNanos || k.content >= maxPacked {
			return false
		}
	}
	return true
}

func (b *bucket) appendPackedTokens(p []byte) []byte {
	first := len(p)
	p = append(append(p, byte(b.alg)), b.id[:]...)
	p = binary.AppendUvarint(p, uint64(b.span)/1000)
	tk := b.tok
	if tk == nil {
		return p
	}
	p[first] |= tokensHeld
	var levels []level
	var out []lease
	if tk.trade != nil {
		levels, out = tk.trade.levels, tk.trade.out
	}
	flags := byte(min(len(levels), manyPeers)) << tokPeers
	if tk.burst == tk.limit {
		flags |= tokBurst
	}
	if tk.highest == tk.burst {
		flags |= tokHighest
	}
	if tk.spent {
		p[first] |= tokensSpent
		if tk.spentAt == tk.at && tk.spentLimit == tk.limit {
			flags |= tokSpentNow
		}
	}
	if tk.generation != 0 {
		flags |= tokGeneration
	}
	if tk.counted > 0 || tk.blurred() {
		flags |= tokCounted
	}
	p = append(p, flags)
	if len(levels) >= manyPeers {
		p = binary.AppendUvarint(p, uint64(len(levels)))
	}
	p = binary.AppendUvarint(p, uint64(tk.limit))
	if flags&tokBurst == 0 {
		p = binary.AppendUvarint(p, uint64(tk.burst))
	}
	p = appendGrains(p, tk.content)
	p = binary.AppendUvarint(p, uint64(tk.frac))
	p = binary.AppendUvarint(p, uint64(tk.at))
	p = appendRoom(p, tk)
	p = appendGrains(p, tk.filled)
	p = binary.AppendUvarint(p, uint64(tk.birth))
	if flags&tokHighest == 0 {
		p = binary.AppendUvarint(p, uint64(tk.highest))
	}
	if tk.spent && flags&tokSpentNow == 0 {
		p = binary.AppendVarint(p, tk.at-tk.spentAt)
		p = binary.AppendUvarint(p, uint64(tk.spentLimit))
	}
	if flags&tokGeneration != 0 {
		p = binary.AppendUvarint(p, tk.generation)
	}
	if flags&tokCounted != 0 {
		p = binary.AppendUvarint(p, uint64(tk.counted))
		p = binary.AppendVarint(p, tk.at/levelNanos-tk.countFrom/levelNanos)
	}
	if tk.trade != nil && tk.trade.lost > 0 {
		p[first] |= tokensLost
		p = binary.AppendVarint(append(p, tk.trade.lost), tk.trade.yieldTo-tk.at)
	}
	if len(out) > 0 {
		p[first] |= tokensLent
		p = binary.AppendUvarint(p, uint64(len(out)))
		for i := range out {
			p = appendLoan(p, &out[i], tk.at)
		}
	}
	before := ceilDiv(tk.at, levelNanos)
	for i := range levels {
		p = appendLevel(p, &levels[i], before)
		before = levels[i].heard / levelNanos
	}
	return p
}

// appendRoom names what part of the burst content and room are together, where that is what one of up to 127 nodes has.
func appendRoom(p []byte, tk *tokens) []byte {
	if n := tk.nodes(); n != 0 {
		more := tk.content + tk.room - tk.burst*grains/n
		return append(p, byte(n<<1|more))
	}
	return appendGrains(append(p, 0), tk.room)
}

// nodes is among how many the burst is split, going by content and room; 0 if these are no such part.
func (tk *tokens) nodes() int64 {
	full := tk.burst * grains
	if most := tk.content + tk.room; most > 0 {
		if n := (full + most/2) / most; n > 0 && n <= 127 && uint64(most-full/n) <= 1 {
			return n
		}
	}
	return 0
}

func (u *unpacker) room(tk *tokens) int64 {
	part := int64(u.byte())
	if part == 0 {
		return u.grains()
	}
	return tk.burst*grains/(part>>1) + part&1 - tk.content
}

func appendLoan(p []byte, o *lease, at int64) []byte {
	p = appendGrains(p, o.units)
	p = binary.AppendVarint(p, o.end-at)
	p = binary.AppendUvarint(p, o.inc)
	p = binary.AppendUvarint(p, o.seq)
	return binary.AppendUvarint(p, uint64(o.peer))
}

func appendLevel(p []byte, k *level, before int64) []byte {
	var flags byte
	if k.seq != 0 || k.inc != 0 {
		flags |= levelHeard
	}
	if k.servedSeq != 0 || k.servedInc != 0 {
		flags |= levelServed
		if k.servedInc == k.inc {
			flags |= levelServedInc
		}
	}
	if k.denied != 0 {
		flags |= levelDenied
	}
	if k.counted != 0 {
		flags |= levelCounted
	}
	p = append(p, flags|byte(min(k.peer, manyPeers))<<levelPeer)
	if k.peer >= manyPeers {
		p = binary.AppendUvarint(p, uint64(k.peer))
	}
	if flags&levelHeard != 0 {
		p = appendGrains(p, k.content)
		p = binary.AppendVarint(p, k.heard/levelNanos-before)
		p = binary.AppendUvarint(p, k.inc)
		p = binary.AppendUvarint(p, k.seq)
	}
	if flags&levelServed != 0 {
		p = binary.AppendVarint(p, int64(k.seq-k.servedSeq))
		if flags&levelServedInc == 0 {
			p = binary.AppendUvarint(p, k.servedInc)
		}
	}
	if flags&levelDenied != 0 {
		p = append(p, k.denied)
	}
	if flags&levelCounted != 0 {
		p = binary.AppendUvarint(p, uint64(k.counted))
		p = binary.AppendUvarint(p, uint64(k.heard-k.countFrom)/uint64(levelNanos))
	}
	return p
}

// unpackTokens reads what follows the name and the window's length.
func (b *bucket) unpackTokens(u *unpacker, kind byte) {
	if kind&tokensHeld == 0 {
		return
	}
	tk := b.makeTokens()
	flags := u.byte()
	peers := int(flags >> tokPeers)
	if peers == manyPeers {
		peers = int(u.uvarint())
	}
	tk.limit = int64(u.uvarint())
	if tk.burst = tk.limit; flags&tokBurst == 0 {
		tk.burst = int64(u.uvarint())
	}
	tk.content = u.grains()
	tk.frac, tk.at = int64(u.uvarint()), int64(u.uvarint())
	tk.room = u.room(tk)
	tk.filled = u.grains()
	tk.birth = int64(u.uvarint())
	if tk.highest = tk.burst; flags&tokHighest == 0 {
		tk.highest = int64(u.uvarint())
	}
	if tk.spent = kind&tokensSpent != 0; tk.spent {
		if tk.spentAt, tk.spentLimit = tk.at, tk.limit; flags&tokSpentNow == 0 {
			tk.spentAt -= u.varint()
			tk.spentLimit = int64(u.uvarint())
		}
	}
	if flags&tokGeneration != 0 {
		tk.generation = u.uvarint()
	}
	if tk.countFrom = tk.at / levelNanos * levelNanos; flags&tokCounted != 0 {
		tk.counted = int64(u.uvarint())
		tk.countFrom -= u.varint() * levelNanos
	}
	if kind&tokensLost != 0 {
		tr := tk.dealings()
		tr.lost, tr.yieldTo = u.byte(), tk.at+u.varint()
	}
	if kind&tokensLent != 0 {
		tr := tk.dealings()
		for range u.uvarint() {
			tr.out = append(tr.out, lease{units: u.grains(), end: tk.at + u.varint(), inc: u.uvarint(), seq: u.uvarint(), peer: uint16(u.uvarint())})
		}
	}
	before := ceilDiv(tk.at, levelNanos)
	for range peers {
		tr := tk.dealings()
		tr.levels = append(tr.levels, level{})
		k := &tr.levels[len(tr.levels)-1]
		unpackLevel(u, k, before)
		before = k.heard / levelNanos
	}
}

func unpackLevel(u *unpacker, k *level, before int64) {
	flags := u.byte()
	if k.peer = uint16(flags >> levelPeer); k.peer == manyPeers {
		k.peer = uint16(u.uvarint())
	}
	if flags&levelHeard != 0 {
		k.content = u.grains()
		k.heard = (before + u.varint()) * levelNanos
		k.inc, k.seq = u.uvarint(), u.uvarint()
	}
	if flags&levelServed != 0 {
		k.servedSeq = k.seq - uint64(u.varint())
		if k.servedInc = k.inc; flags&levelServedInc == 0 {
			k.servedInc = u.uvarint()
		}
	}
	if flags&levelDenied != 0 {
		k.denied = u.byte()
	}
	if flags&levelCounted != 0 {
		k.counted = int64(u.uvarint())
		k.countFrom = k.heard - int64(u.uvarint())*levelNanos
	}
}
