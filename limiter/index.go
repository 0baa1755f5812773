package limiter

// index finds the buckets of one shard by name: extendible hashing (Fagin et al. 1979) over small pages of open
// addressing, so that it grows by a page at a time and no request waits for a rehash of everything. An entry takes four
// bytes and no pointer; the name itself stands with the bucket.
type index struct {
	dir   []*indexPage // by the first depth bits of the hash
	depth uint8
}

// An entry is where a bucket is, seven bits of its hash, and whether it is in full or packed form.
type entry uint32

const (
	entryFull entry = 1 << 31
	entryTag  entry = 0x7f << 24
	entryAt   entry = 1<<24 - 1
	noEntry   entry = 0
	tombstone entry = 1 // no block has this place

	indexSlots = 127
	indexMost  = 112
	// maxDepth bounds what names made up to collide can cost.
	maxDepth = 22
)

// indexPage is of 512 bytes.
type indexPage struct {
	entries [indexSlots]entry
	depth   uint8 // of the bits that its names have in common
	used    uint8 // entries and tombstones
	live    uint8
}

// hash spreads names over the index. Names are keyed hashes already, but those that peers send need not be.
func (id *BucketID) hash() uint64 {
	hi, lo := getWords(id)
	return mix64(lo ^ mix64(hi))
}

func tagOf(h uint64) entry { return entry(h>>32&0x7f) << 24 }

func (p *indexPage) place(h uint64) int { return int(uint64(uint32(h)) * indexSlots >> 32) }

func (x *index) page(h uint64) *indexPage { return x.dir[h>>(64-x.depth)] }

// lookup returns the place of id's entry, valid until the next insert; nil for none.
func (sh *shard) lookup(id *BucketID) *entry {
	if sh.index.dir == nil {
		return nil
	}
	h := id.hash()
	p, tag := sh.index.page(h), tagOf(h)
	for i := p.place(h); ; {
		e := p.entries[i]
		if e == noEntry {
			return nil
		}
		if e&entryTag == tag && e != tombstone && sh.named(e, id) {
			return &p.entries[i]
		}
		if i++; i == indexSlots {
			i = 0
		}
	}
}

// insert adds the entry of a bucket that has none. It fails only where too many names have the same hash.
func (sh *shard) insert(h uint64, e entry) bool {
	x := &sh.index
	if x.dir == nil {
		x.dir = []*indexPage{{}}
	}
	for x.page(h).used >= indexMost {
		if !sh.split(h) {
			return false
		}
	}
	x.page(h).put(h, e|tagOf(h))
	return true
}

func (p *indexPage) put(h uint64, e entry) {
	i := p.place(h)
	for p.entries[i] > tombstone {
		if i++; i == indexSlots {
			i = 0
		}
	}
	if p.entries[i] == noEntry {
		p.used++
	}
	p.entries[i] = e
	p.live++
}

// split makes room in the page of h: by leaving the tombstones out, or with a second page.
func (sh *shard) split(h uint64) bool {
	x := &sh.index
	old := x.page(h)
	if old.live <= indexMost/2 {
		entries := old.entries
		*old = indexPage{depth: old.depth}
		for _, e := range entries {
			if e > tombstone {
				old.put(sh.hashAt(e), e)
			}
		}
		return true
	}
	if old.depth == x.depth {
		if x.depth == maxDepth {
			return false
		}
		dir := make([]*indexPage, 2*len(x.dir))
		for i, p := range x.dir {
			dir[2*i], dir[2*i+1] = p, p
		}
		x.dir, x.depth = dir, x.depth+1
	}
	depth := old.depth + 1
	halves := [2]*indexPage{{depth: depth}, {depth: depth}}
	for _, e := range old.entries {
		if e > tombstone {
			eh := sh.hashAt(e)
			halves[eh>>(64-depth)&1].put(eh, e)
		}
	}
	// The directory's entries for the old page are neighbours: the first half of them now leads to one half.
	span := uint64(1) << (x.depth - old.depth)
	first := h >> (64 - x.depth) &^ (span - 1)
	for i := range span {
		x.dir[first+i] = halves[i*2/span]
	}
	return true
}

// change puts another entry in the place of one that is there.
func (x *index) change(h uint64, from, to entry) {
	tag := tagOf(h)
	p := x.page(h)
	for i := p.place(h); ; {
		if p.entries[i] == from|tag {
			if p.entries[i] = to | tag; to == tombstone {
				p.entries[i] = tombstone
				p.live--
			}
			return
		}
		if i++; i == indexSlots {
			i = 0
		}
	}
}
