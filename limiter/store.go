package limiter

// Where a shard keeps its buckets: those in use as structs in slab, the others packed in arena, all named by index. A
// *bucket is good until its shard's lock is given back: then trim may pack it.

const (
	// fullPerShard is how many buckets a shard keeps in full form; those used again soon need no unpacking.
	fullPerShard = 160
	// trimTries bounds what one call looks at to find one to pack.
	trimTries = 8
)

// named says whether e is the entry of id.
func (sh *shard) named(e entry, id *BucketID) bool {
	if e&entryFull != 0 {
		return sh.slab[e&entryAt].id == *id
	}
	return sh.records.packedName(sh.arena.bytes(e&entryAt)) == *id
}

// hashAt is the hash of the name of e's bucket.
func (sh *shard) hashAt(e entry) uint64 {
	if e&entryFull != 0 {
		return sh.slab[e&entryAt].id.hash()
	}
	id := sh.records.packedName(sh.arena.bytes(e & entryAt))
	return id.hash()
}

// get finds a bucket and unpacks it if need be; nil for none.
func (sh *shard) get(id *BucketID) *bucket {
	if sh.closed { // the records, which complete what is packed, are no longer mapped
		return nil
	}
	e := sh.lookup(id)
	if e == nil {
		return nil
	}
	if *e&entryFull != 0 {
		b := sh.slab[*e&entryAt]
		b.recent = true
		return b
	}
	at := *e & entryAt
	b := sh.alloc()
	sh.records.unpack(sh.arena.bytes(at), b)
	if kind := sh.arena.unmark(at); kind >= 0 {
		sh.list(b, kind)
	}
	sh.arena.release(at)
	*e = entryFull | *e&entryTag | entry(b.index)
	return b
}

// add makes a bucket; nil where too many names have the same hash.
func (sh *shard) add(id *BucketID, s span, alg Algorithm) *bucket {
	b := sh.alloc()
	b.id, b.span, b.alg = *id, s, alg
	if !sh.insert(id.hash(), entryFull|entry(b.index)) {
		sh.recycle(b)
		return nil
	}
	sh.live++
	sh.classes[id.class()]++
	return b
}

// alloc takes an empty bucket in full form.
func (sh *shard) alloc() *bucket {
	if len(sh.free) == 0 {
		sh.free = append(sh.free, int32(len(sh.slab)))
		sh.slab = append(sh.slab, nil)
	}
	i := sh.free[len(sh.free)-1]
	sh.free = sh.free[:len(sh.free)-1]
	b := sh.slab[i]
	if b == nil {
		b = &bucket{index: i}
		b.wins = b.first[:0]
		sh.slab[i] = b
	}
	b.live, b.recent = true, true
	return b
}

// recycle empties a bucket that nothing names any more. What it allocated is kept to reuse.
func (sh *shard) recycle(b *bucket) {
	i, know, cells := b.index, b.know[:0], b.cells[:0]
	*b = bucket{index: i, know: know, cells: cells, spare: b.tokenMemory()}
	b.wins = b.first[:0]
	if len(sh.free) >= fullPerShard { // left over from a rush of asks
		sh.slab[i] = nil
	}
	sh.free = append(sh.free, i)
}

// drop forgets a bucket.
func (sh *shard) drop(b *bucket) {
	sh.unlist(b)
	sh.index.change(b.id.hash(), entryFull|entry(b.index), tombstone)
	sh.forget(b)
	sh.recycle(b)
}

func (sh *shard) forget(b *bucket) {
	sh.live--
	sh.classes[b.id.class()]--
	if sh.live == 0 {
		sh.index = index{}
	}
}

// pack moves a bucket into the arena, if nothing hangs on it that its packed form does not keep.
func (l *ledger) pack(sh *shard, b *bucket, mono int64) bool {
	if !b.packable(mono) {
		return false
	}
	if l.unsafePacked {
		for i := range b.wins {
			b.wins[i].given = 0
		}
		if b.tok != nil && b.tok.trade != nil {
			b.tok.trade.out = b.tok.trade.out[:0]
		}
	}
	sh.buf = l.records.appendPacked(sh.buf[:0], b)
	at := sh.arena.alloc(len(sh.buf))
	if at == 0 {
		return false
	}
	copy(sh.arena.bytes(at), sh.buf)
	if b.dirty {
		kind := b.kind
		sh.unlist(b)
		sh.arena.mark(at, kind)
	}
	sh.index.change(b.id.hash(), entryFull|entry(b.index), at)
	sh.recycle(b)
	return true
}

// trim packs buckets while more than fullPerShard are in full form: such as were not used since it last came by.
func (l *ledger) trim(sh *shard, mono int64) {
	for tries := trimTries; tries > 0 && len(sh.slab)-len(sh.free) > l.fullPerShard && !sh.closed; tries-- {
		l.packNext(sh, mono)
	}
}

// rest packs those of up to n buckets that were not used since it last came by.
func (l *ledger) rest(sh *shard, mono int64, n int) {
	for n = min(n, len(sh.slab)); n > 0 && !sh.closed; n-- {
		l.packNext(sh, mono)
	}
}

func (l *ledger) packNext(sh *shard, mono int64) {
	if sh.trimAt++; sh.trimAt >= len(sh.slab) {
		sh.trimAt = 0
	}
	b := sh.slab[sh.trimAt]
	switch {
	case b == nil || !b.live:
	case b.recent:
		b.recent = false
	default:
		l.pack(sh, b, mono)
	}
}

// list notes a bucket in full form among those with news.
func (sh *shard) list(b *bucket, kind int) {
	b.dirty, b.kind, b.listAt = true, kind, int32(len(sh.news[kind]))
	sh.news[kind] = append(sh.news[kind], b.index)
}

func (sh *shard) unlist(b *bucket) {
	if !b.dirty {
		return
	}
	b.dirty = false
	list := sh.news[b.kind]
	last := list[len(list)-1]
	list[b.listAt] = last
	sh.slab[last].listAt = b.listAt
	sh.news[b.kind] = list[:len(list)-1]
}

// open unpacks the bucket at at into a struct that the shard lends until the next call. It stays packed.
func (sh *shard) open(at block) *bucket {
	b := sh.lent
	if b == nil {
		b = &bucket{index: -1}
		sh.lent = b
	}
	know, cells := b.know[:0], b.cells[:0]
	*b = bucket{index: -1, live: true, know: know, cells: cells, spare: b.tokenMemory()}
	b.wins = b.first[:0]
	sh.records.unpack(sh.arena.bytes(at), b)
	return b
}

// loans is how many loans to others run.
func (b *bucket) loans() int {
	if b.tok == nil || b.tok.trade == nil {
		return 0
	}
	return len(b.tok.trade.out)
}

// audited is how many of its windows the auditor is done with.
func (b *bucket) audited() (count int) {
	for i := range b.wins {
		if b.wins[i].audited {
			count++
		}
	}
	return count
}

// sweepPacked looks at up to n packed buckets, drops windows that are gone and forgets buckets with nothing left to
// remember.
func (l *ledger) sweepPacked(sh *shard, n int) {
	for ; n > 0; n-- {
		at := sh.arena.next(sh.sweepBlock)
		if at == 0 {
			sh.sweepBlock = 0
			return
		}
		sh.sweepBlock = at + 1
		b := sh.open(at)
		had, audited, lent := len(b.wins), b.audited(), b.loans()
		l.audit(sh, b)
		l.dropWindows(sh, b)
		idle := l.idle(sh, b)
		if !idle && len(b.wins) == had && b.audited() == audited && b.loans() == lent {
			continue
		}
		// Its record may be another's from here on: nothing may read the old block.
		h := b.id.hash()
		if idle {
			sh.arena.release(at)
			sh.index.change(h, at, tombstone)
			sh.forget(b)
			continue
		}
		kind := sh.arena.unmark(at)
		sh.arena.release(at)
		sh.buf = l.records.appendPacked(sh.buf[:0], b)
		to := sh.arena.alloc(len(sh.buf))
		if to == 0 { // it got its name back from the record, and the arena is full
			full := sh.alloc()
			i := full.index
			*full = *b
			full.index = i
			full.wins = append(full.first[:0], b.wins...)
			sh.lent = nil
			if kind >= 0 {
				sh.list(full, kind)
			}
			sh.index.change(h, at, entryFull|entry(i))
			continue
		}
		copy(sh.arena.bytes(to), sh.buf)
		if kind >= 0 {
			sh.arena.mark(to, kind)
		}
		sh.index.change(h, at, to)
	}
}
