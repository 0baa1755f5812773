package limiter

import "math/bits"

// arena keeps packed buckets of one shard in pages of 4 KiB, each of blocks of one size. Pages hold no pointers, so the
// garbage collector does not look into them; one whose last block is freed goes back to it.
type arena struct {
	pages []*page
	// holes are places in pages that hold none; avail heads the list of pages with room for each class.
	holes []uint16
	avail [len(blockSizes)]uint16
	// Marked blocks: buckets with news for the others, by its kind.
	marked [markKinds]int
}

// A block is named by its page<<8 | its place there. No page has the number 0.
type block = entry

const (
	pageSize = 4096
	pageData = pageSize - (1+markKinds)*32 - 8
	maxPages = 1 << 16
	maxBlock = pageData &^ 7
)

// Kinds of marks: windows near their limit, others, and token buckets.
const (
	markHot   = 0
	markCold  = 1
	markLevel = 2
	markKinds = 3
)

// blockSizes are the lengths of blocks. At most 256 fit a page.
var blockSizes = [...]uint16{
	16, 24, 32, 40, 48, 56, 64, 72, 76, 80, 84, 88, 96, 104, 112, 128, 144, 160, 192, 224, 256, 328, 392, 496, 664, 992, 1328, 1992, maxBlock,
}

// classOf is the class of a length in units of four bytes, rounded up.
var classOf = func() (table [maxBlock/4 + 1]uint8) {
	class := uint8(0)
	for i := range table {
		for int(blockSizes[class]) < 4*i {
			class++
		}
		table[i] = class
	}
	return table
}()

type page struct {
	taken      [4]uint64
	marks      [markKinds][4]uint64
	used       uint16
	next, prev uint16 // pages of the class with room, 0 for none
	class      uint8
	listed     bool
	data       [pageData]byte
}

// alloc finds room for length bytes; 0 where there is none.
func (a *arena) alloc(length int) block {
	if length > maxBlock {
		return 0
	}
	class := classOf[(length+3)/4]
	n := a.avail[class]
	if n == 0 {
		if n = a.newPage(class); n == 0 {
			return 0
		}
	}
	p := a.pages[n]
	for i, w := range p.taken {
		if w == ^uint64(0) {
			continue
		}
		at := i<<6 | bits.TrailingZeros64(^w)
		p.taken[i] |= 1 << (at & 63)
		p.used++
		if int(p.used) == pageData/int(blockSizes[class]) {
			a.unlist(n)
		}
		return block(n)<<8 | block(at)
	}
	return 0 // not reached: a listed page has room
}

func (a *arena) newPage(class uint8) uint16 {
	var n uint16
	p := &page{class: class}
	switch {
	case len(a.holes) > 0:
		n = a.holes[len(a.holes)-1]
		a.holes = a.holes[:len(a.holes)-1]
		a.pages[n] = p
	case len(a.pages) == maxPages:
		return 0
	default:
		if len(a.pages) == 0 {
			a.pages = append(a.pages, nil)
		}
		n = uint16(len(a.pages))
		a.pages = append(a.pages, p)
	}
	// Places beyond the last whole block are taken for good.
	for i := pageData / int(blockSizes[class]); i < 256; i++ {
		p.taken[i>>6] |= 1 << (i & 63)
	}
	a.list(n)
	return n
}

func (a *arena) list(n uint16) {
	p := a.pages[n]
	p.next, p.prev, p.listed = a.avail[p.class], 0, true
	if p.next != 0 {
		a.pages[p.next].prev = n
	}
	a.avail[p.class] = n
}

func (a *arena) unlist(n uint16) {
	p := a.pages[n]
	if p.prev != 0 {
		a.pages[p.prev].next = p.next
	} else {
		a.avail[p.class] = p.next
	}
	if p.next != 0 {
		a.pages[p.next].prev = p.prev
	}
	p.listed = false
}

func (a *arena) release(at block) {
	a.unmark(at)
	n := uint16(at >> 8)
	p := a.pages[n]
	p.taken[at>>6&3] &^= 1 << (at & 63)
	if p.used--; !p.listed {
		a.list(n)
	}
	// The last page of a class with room stays, or a bucket that comes and goes would allocate each time.
	if p.used == 0 && (p.next != 0 || p.prev != 0) {
		a.unlist(n)
		a.pages[n] = nil
		a.holes = append(a.holes, n)
	}
}

func (a *arena) bytes(at block) []byte {
	p := a.pages[at>>8]
	size := int(blockSizes[p.class])
	off := int(at&255) * size
	return p.data[off : off+size : off+size]
}

func (a *arena) mark(at block, kind int) {
	a.pages[at>>8].marks[kind][at>>6&3] |= 1 << (at & 63)
	a.marked[kind]++
}

// markAll marks all blocks that have no mark.
func (a *arena) markAll() {
	for at := a.next(0); at != 0; at = a.next(at + 1) {
		p := a.pages[at>>8]
		if bit := uint64(1) << (at & 63); (p.marks[markHot][at>>6&3]|p.marks[markCold][at>>6&3]|p.marks[markLevel][at>>6&3])&bit == 0 {
			a.mark(at, coldMark(Algorithm(a.bytes(at)[0]&packedAlg)))
		}
	}
}

// unmark takes the mark away that a block has, and says which it was; -1 for none.
func (a *arena) unmark(at block) (kind int) {
	p := a.pages[at>>8]
	for kind := range p.marks {
		if w := &p.marks[kind][at>>6&3]; *w&(1<<(at&63)) != 0 {
			*w &^= 1 << (at & 63)
			a.marked[kind]--
			return kind
		}
	}
	return -1
}

// next is the first block in use at or after at, in the order of places; 0 for none.
func (a *arena) next(at block) block {
	for n := at >> 8; int(n) < len(a.pages); n++ {
		if p := a.pages[n]; p != nil {
			if i := firstBit(&p.taken, int(at&255)); i < pageData/int(blockSizes[p.class]) {
				return n<<8 | block(i)
			}
		}
		at = 0
	}
	return 0
}

// nextMarked is next among those that have a mark.
func (a *arena) nextMarked(at block, kind int) block {
	for n := at >> 8; int(n) < len(a.pages); n++ {
		if p := a.pages[n]; p != nil {
			if i := firstBit(&p.marks[kind], int(at&255)); i < 256 {
				return n<<8 | block(i)
			}
		}
		at = 0
	}
	return 0
}

// firstBit is the first bit that is set at or after from, 256 for none.
func firstBit(set *[4]uint64, from int) int {
	for i := from >> 6; i < len(set); i++ {
		w := set[i]
		if i == from>>6 {
			w &= ^uint64(0) << (from & 63)
		}
		if w != 0 {
			return i<<6 | bits.TrailingZeros64(w)
		}
	}
	return 256
}
