package limiter

import (
	"fmt"
	"math"
	"math/bits"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"unsafe"
)

// The records file: one page of header, then slots of 48 bytes, all in words of 64 bits in the machine's own order (the
// file never leaves the machine: another boot makes it worthless). A slot holds two windows of one bucket, an even and an
// odd one: mostly neighbours.
//
//	header  0 magic · 1 version · 2 number of slots · 3, 4 hash of the boot id · 5 hash of words 0–4 ·
//	        6 lostThrough: windows that begin at or below it and have no record are lost · 7 number of slots ever used
//	slot    0 shape (window length in seconds | algorithm<<22 | cell<<26) <<32 | hash of the shape and words 1, 2; 0 for an
//	        empty slot · 1, 2 bucket · 3 odd window number<<32 | even window number · 4 even window · 5 odd window
//	window  present<<63 | lost<<62 | ceiling on used + given <<31 | received; 0 for none
//
// A window is one word, so it changes as a whole: whatever moment the process dies at, its record is that of before or of
// after. It is stored before the units it covers are answered for, or counted on. Ceilings are rounded up and what was
// received is rounded down (scaleUp, scaleDown), so ceiling − received is at least the true net. Other words change only
// while the window they name is absent, and word 0 is the first to go and the last to come.
const (
	recordMagic   = 0x31434552_4c554c53
	recordVersion = 2
	headerWords   = 512
	slotWords     = 6

	wordLost = 6
	wordUsed = 7

	// recordedMillis is the shortest window that has records. After a restart shorter ones start again with the next
	// window that begins above the mark, some seconds later.
	recordedMillis = int64(60_000)

	shapeAlg  = 22
	shapeCell = 1 << 26

	winPresent = 1 << 63
	winLost    = 1 << 62
	winCeiling = 31
	winCount   = 1<<31 - 1

	recordsName = "limits.records"
	markName    = "limits.mark"

	minSlots = 1 << 10
	maxSlots = 1 << 27
)

// recordFile is the mapped file. Slots belong to the shards that claimed them; the list of free ones has its own lock.
type recordFile struct {
	words []uint64
	slots int
	unmap func() error
	// stored, if set, is called after every store: tests die there.
	stored func()

	mu sync.Mutex
	// free is 1 + the first of the slots given back, each of which names the next in its word 1; 0 for none. So
	// the list costs no memory, and slots never used are never touched.
	free  uint64
	inUse int
}

// slotCount allows for buckets that need two slots for a while: when a window opens, the one of the same parity before it
// is not gone yet.
func slotCount(maxBuckets int) int {
	return min(max(maxBuckets+maxBuckets/2, minSlots), maxSlots)
}

func recordBytes(slots int) int64 { return int64(headerWords+slots*slotWords) * 8 }

func hashWords(words ...uint64) uint64 {
	h := uint64(recordMagic)
	for _, w := range words {
		h = mix64(h ^ w + 0x9e3779b97f4a7c15)
	}
	if h == 0 {
		h = 1
	}
	return h
}

func bootWords(boot string) (uint64, uint64) {
	var zero [16]byte
	return sip128(&zero, []byte(boot))
}

// newRecords formats words, all zero, for slots slots.
func newRecords(words []uint64, slots int, boot string, lostThrough int64) *recordFile {
	r := &recordFile{words: words, slots: slots}
	b0, b1 := bootWords(boot)
	h := [5]uint64{recordMagic, recordVersion, uint64(slots), b0, b1}
	r.set(wordLost, uint64(lostThrough))
	for i, w := range h {
		r.set(i, w)
	}
	r.set(5, hashWords(h[:]...))
	return r
}

// openRecords reads words as an earlier process left them. ok is false where they prove nothing: not a records file, of
// another version or boot, or torn.
func openRecords(words []uint64, boot string) (r *recordFile, restored []restoredWindow, lostThrough int64, ok bool) {
	if len(words) < headerWords || words[0] != recordMagic || words[1] != recordVersion ||
		words[5] != hashWords(words[:5]...) || words[2] > maxSlots || uint64(len(words)) != headerWords+words[2]*slotWords ||
		words[wordUsed] > words[2] {
		return nil, nil, 0, false
	}
	if b0, b1 := bootWords(boot); words[3] != b0 || words[4] != b1 {
		return nil, nil, 0, false
	}
	r = &recordFile{words: words, slots: int(words[2])}
	for i := int32(words[wordUsed]) - 1; i >= 0; i-- {
		s := r.slot(i)
		if s[0] == 0 {
			r.giveBack(i)
			continue
		}
		shape := uint32(s[0] >> 32)
		w := restoredWindow{slot: i, span: span(shape&(1<<shapeAlg-1)) * 1000, alg: Algorithm(shape >> shapeAlg & 15), cell: shape&shapeCell != 0}
		rule := Rule{Window: int64(w.span) / 1000, Algorithm: w.alg}
		if uint32(s[0]) != slotCheck(shape, s[1], s[2]) || !validRule(&rule) {
			return nil, nil, 0, false
		}
		r.inUse++
		putWords(&w.id, s[1], s[2])
		for odd := range int64(2) {
			c := s[4+odd]
			if c&winPresent == 0 {
				continue
			}
			w.n = int64(uint32(s[3] >> (32 * odd)))
			w.ceiling, w.received, w.lost = unscale(c>>winCeiling&winCount), unscale(c&winCount), c&winLost != 0
			if w.n&1 != odd || w.ceiling > maxWireUnit || w.received > maxWireUnit {
				return nil, nil, 0, false
			}
			restored = append(restored, w)
		}
		if s[4]|s[5] == 0 { // claimed, but the process died before anything was spent
			r.set(r.at(i), 0)
			r.giveBack(i)
			r.inUse--
		}
	}
	return r, restored, int64(words[wordLost]), true
}

// A count takes 31 bits: 5 of a power of two and 26 that it multiplies. Up to 67,000 units it is exact.
const scaleBits = 26

func scaleDown(v int64) uint64 {
	e := max(bits.Len64(uint64(v))-scaleBits, 0)
	return uint64(e)<<scaleBits | uint64(v)>>e
}

func scaleUp(v int64) uint64 {
	x := scaleDown(v)
	if unscale(x) < v {
		// The sum carries into the power of two where it has to: then what it multiplies is 0, and stands for 1<<scaleBits.
		x++
	}
	return x
}

func unscale(x uint64) int64 {
	m, e := x&(1<<scaleBits-1), x>>scaleBits
	if e > 0 && m < 1<<(scaleBits-1) {
		m |= 1 << (scaleBits - 1)
	}
	return int64(m << e)
}

func slotCheck(shape uint32, id0, id1 uint64) uint32 {
	return uint32(hashWords(uint64(shape), id0, id1)) | 1
}

func putWords(id *BucketID, a, b uint64) {
	*(*[2]uint64)(unsafe.Pointer(id)) = [2]uint64{a, b}
}

func getWords(id *BucketID) (a, b uint64) {
	var w [2]uint64
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&w)), 16), id[:])
	return w[0], w[1]
}

func (r *recordFile) at(slot int32) int { return headerWords + int(slot)*slotWords }

func (r *recordFile) slot(slot int32) []uint64 { return r.words[r.at(slot):][:slotWords] }

// set stores one word as a whole and in order, as seen by whoever maps the file after this process is killed.
func (r *recordFile) set(i int, w uint64) {
	atomic.StoreUint64(&r.words[i], w)
	if r.stored != nil {
		r.stored()
	}
}

// giveBack puts an empty slot on the list of free ones.
func (r *recordFile) giveBack(slot int32) {
	r.set(r.at(slot)+1, r.free)
	r.free = uint64(slot) + 1
}

// fresh takes a slot off the list of free ones; noSlot where the table is full.
func (r *recordFile) fresh(begin int64) int32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.free != 0 {
		slot := int32(r.free - 1)
		r.free = r.words[r.at(slot)+1]
		r.inUse++
		return slot
	}
	used := r.words[wordUsed]
	if used == uint64(r.slots) {
		r.losing(begin)
		return noSlot
	}
	r.set(wordUsed, used+1)
	r.inUse++
	return int32(used)
}

// losing notes that a window beginning at begin has no record: those up to it are lost at the next start unless they
// have one. The caller holds mu.
func (r *recordFile) losing(begin int64) {
	if begin > int64(r.words[wordLost]) || r.words[wordLost] == 0 {
		r.set(wordLost, uint64(begin))
	}
}

// claim writes the first record of win, into a slot of the window beside it where there is one, else into a slot of its
// own; noSlot where the table is full: then windows up to this one are lost at the next start unless they have a record.
func (r *recordFile) claim(b *bucket, win *window) int32 {
	if win.n < 0 || win.n > math.MaxUint32 { // a clock before 1970, or far beyond any
		r.mu.Lock()
		r.losing(b.span.begin(win.n))
		r.mu.Unlock()
		return noSlot
	}
	odd := int(win.n & 1)
	count := recordWord(win, 0)
	for i := range b.wins {
		slot := b.wins[i].slot
		if slot == noSlot || r.slot(slot)[4+odd] != 0 {
			continue
		}
		at := r.at(slot)
		r.set(at+3, windowPair(r.words[at+3], win.n))
		r.set(at+4+odd, count)
		return slot
	}
	slot := r.fresh(b.span.begin(win.n))
	if slot == noSlot {
		return noSlot
	}
	shape := uint32(b.span/1000) | uint32(b.alg)<<shapeAlg
	if b.cell {
		shape |= shapeCell
	}
	id0, id1 := getWords(&b.id)
	at := r.at(slot)
	r.set(at+1, id0)
	r.set(at+2, id1)
	r.set(at+3, windowPair(0, win.n))
	r.set(at+4+odd, count)
	r.set(at+5-odd, 0)
	r.set(at, uint64(shape)<<32|uint64(slotCheck(shape, id0, id1)))
	return slot
}

func windowPair(old uint64, n int64) uint64 {
	shift := 32 * (n & 1)
	return old&^(math.MaxUint32<<shift) | uint64(n)<<shift
}

// recordWord is win's record with a ceiling of at least least.
func recordWord(win *window, least int64) uint64 {
	w := winPresent | scaleUp(max(win.used+win.given, least))<<winCeiling | scaleDown(win.received)
	if win.lost {
		w |= winLost
	}
	return w
}

// raise lifts the ceiling of win's record to at least what was spent and given, and sets what was received.
func (r *recordFile) raise(win *window) {
	at := r.at(win.slot) + 4 + int(win.n&1)
	old := r.words[at]
	if w := recordWord(win, unscale(old>>winCeiling&winCount)); w != old {
		r.set(at, w)
	}
}

// proves says whether win's record says its counters exactly.
func (r *recordFile) proves(win *window) bool {
	return recordWord(win, 0) == r.slot(win.slot)[4+win.n&1] && unscale(scaleUp(win.used+win.given)) == win.used+win.given &&
		unscale(scaleDown(win.received)) == win.received
}

// read takes win, all but its slot, from its record. What was given counts as used.
func (r *recordFile) read(win *window, odd int) {
	s := r.slot(win.slot)
	c := s[4+odd]
	win.n = int64(uint32(s[3] >> (32 * odd)))
	win.used, win.received, win.lost = unscale(c>>winCeiling&winCount), unscale(c&winCount), c&winLost != 0
}

// span is the window length of the bucket that slot is of.
func (r *recordFile) span(slot int32) span {
	return span(r.slot(slot)[0]>>32&(1<<shapeAlg-1)) * 1000
}

// release takes win's record away, and gives the slot back once it holds no other.
func (r *recordFile) release(slot int32, n int64) {
	at := r.at(slot)
	r.set(at+4+int(n&1), 0)
	if r.words[at+5-int(n&1)] != 0 {
		return
	}
	r.set(at, 0)
	r.mu.Lock()
	r.giveBack(slot)
	r.inUse--
	r.mu.Unlock()
}

// gather brings two windows of b that have a slot each together again. In between both slots say the same of one.
func (r *recordFile) gather(b *bucket) {
	for i := range b.wins {
		w := &b.wins[i]
		odd := int(w.n & 1)
		if w.slot == noSlot || r.slot(w.slot)[5-odd] != 0 {
			continue
		}
		for j := range b.wins {
			to := b.wins[j].slot
			if to == noSlot || to == w.slot || r.slot(to)[4+odd] != 0 {
				continue
			}
			at := r.at(to)
			r.set(at+3, windowPair(r.words[at+3], w.n))
			r.set(at+4+odd, r.slot(w.slot)[4+odd])
			r.release(w.slot, w.n)
			w.slot = to
			break
		}
	}
}

// takeOver writes what another file proved, and notes in restored where.
func (r *recordFile) takeOver(restored []restoredWindow) {
	var b *bucket
	for i := range restored {
		w := &restored[i]
		if b == nil || b.id != w.id || b.cell != w.cell { // windows of one slot follow each other
			b = &bucket{id: w.id, span: w.span, alg: w.alg, cell: w.cell}
		}
		win := window{n: w.n, used: w.ceiling, received: w.received, lost: w.lost, slot: noSlot}
		win.slot = r.claim(b, &win)
		w.slot = win.slot
		b.wins = append(b.wins, win)
	}
}

// usage is how many slots hold records.
func (r *recordFile) usage() (used, total int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.inUse, r.slots
}

// loadRecords opens or makes the records file in dir. proven is false where windows from before prove nothing; then
// everything that begins at or below mark is lost.
func loadRecords(dir string, maxBuckets int, boot string, mark int64) (r *recordFile, restored []restoredWindow, lostThrough int64, err error) {
	path := filepath.Join(dir, recordsName)
	slots := slotCount(maxBuckets)
	lostThrough = mark
	if words, unmap, err := mapFile(path, -1); err == nil {
		old, windows, lost, ok := openRecords(words, boot)
		switch {
		case ok && len(words) == headerWords+slots*slotWords:
			old.unmap = unmap
			return old, windows, lost, nil
		case ok:
			restored, lostThrough = windows, lost
		}
		if err := unmap(); err != nil {
			return nil, nil, 0, fmt.Errorf("unmap records: %w", err)
		}
	} else if !os.IsNotExist(err) {
		return nil, nil, 0, fmt.Errorf("open records: %w", err)
	}
	// Make a new file beside the old one, so that a crash here loses nothing.
	next := path + ".new"
	if err := os.Remove(next); err != nil && !os.IsNotExist(err) {
		return nil, nil, 0, fmt.Errorf("make records: %w", err)
	}
	words, unmap, err := mapFile(next, recordBytes(slots))
	if err != nil {
		return nil, nil, 0, fmt.Errorf("make records: %w", err)
	}
	r = newRecords(words, slots, boot, lostThrough)
	r.unmap = unmap
	r.takeOver(restored)
	if err := os.Rename(next, path); err != nil {
		return nil, nil, 0, fmt.Errorf("make records: %w", err)
	}
	return r, restored, lostThrough, nil
}
