package limiter

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"unsafe"
)

// The records file: one page of header, then slots of one cache line each, all in words of 64 bits in the machine's own
// order (the file never leaves the machine: another boot makes it worthless).
//
//	header  0 magic · 1 version · 2 number of slots · 3, 4 hash of the boot id · 5 hash of words 0–4 ·
//	        6 lostThrough: windows that begin at or below it and have no record are lost
//	slot    0 hash of words 1–4, 0 for an empty slot · 1, 2 bucket · 3 window number ·
//	        4 window length in seconds | algorithm<<32 | flags<<40 · 5 ceiling on used + given · 6 received
//
// The ceiling is stored before the units it covers are answered for, and received only after the units came; so
// whatever moment the process dies at, ceiling − received is at least the true net.
const (
	recordMagic   = 0x31434552_4c554c53
	recordVersion = 1
	headerWords   = 512
	slotWords     = 8

	// recordedMillis is the shortest window that has records. After a restart shorter ones start again with the next
	// window that begins above the mark, some seconds later.
	recordedMillis = int64(60_000)

	flagCell = 1 << 40
	flagLost = 1 << 41

	recordsName = "limits.records"
	markName    = "limits.mark"

	minSlots = 1 << 10
	maxSlots = 1 << 21
)

// recordFile is the mapped file. Slots belong to the shards that claimed them; the list of free ones has its own lock.
type recordFile struct {
	words []uint64
	slots int
	unmap func() error

	mu   sync.Mutex
	free []int32
}

func slotCount(maxBuckets int) int {
	n := minSlots
	for n < 2*maxBuckets && n < maxSlots {
		n <<= 1
	}
	return n
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
	r.set(6, uint64(lostThrough))
	for i, w := range h {
		r.set(i, w)
	}
	r.set(5, hashWords(h[:]...))
	for i := slots - 1; i >= 0; i-- {
		r.free = append(r.free, int32(i))
	}
	return r
}

// openRecords reads words as an earlier process left them. ok is false where they prove nothing: not a records file, of
// another boot, or torn.
func openRecords(words []uint64, boot string) (r *recordFile, restored []restoredWindow, lostThrough int64, ok bool) {
	if len(words) < headerWords || words[0] != recordMagic || words[1] != recordVersion ||
		words[5] != hashWords(words[:5]...) || uint64(len(words)) != headerWords+words[2]*slotWords {
		return nil, nil, 0, false
	}
	if b0, b1 := bootWords(boot); words[3] != b0 || words[4] != b1 {
		return nil, nil, 0, false
	}
	r = &recordFile{words: words, slots: int(words[2])}
	lostThrough = int64(words[6])
	for i := int32(words[2]) - 1; i >= 0; i-- {
		s := words[headerWords+int(i)*slotWords:][:slotWords]
		if s[0] == 0 {
			r.free = append(r.free, i)
			continue
		}
		w := restoredWindow{
			n: int64(s[3]), span: span(s[4]&0xffffffff) * 1000, alg: Algorithm(s[4] >> 32),
			cell: s[4]&flagCell != 0, lost: s[4]&flagLost != 0, ceiling: int64(s[5]), received: int64(s[6]), slot: i,
		}
		rule := Rule{Window: int64(w.span) / 1000, Algorithm: w.alg}
		if s[0] != hashWords(s[1:5]...) || !validRule(&rule) || w.ceiling < 0 || w.ceiling > maxWireUnit || w.received < 0 || w.received > maxWireUnit {
			return nil, nil, 0, false
		}
		putWords(&w.id, s[1], s[2])
		restored = append(restored, w)
	}
	return r, restored, lostThrough, true
}

func putWords(id *BucketID, a, b uint64) {
	*(*[2]uint64)(unsafe.Pointer(id)) = [2]uint64{a, b}
}

func getWords(id *BucketID) (a, b uint64) {
	var w [2]uint64
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&w)), 16), id[:])
	return w[0], w[1]
}

// set stores one word as a whole and in order, as seen by whoever maps the file after this process is killed.
func (r *recordFile) set(i int, w uint64) { atomic.StoreUint64(&r.words[i], w) }

// claim takes a slot for win and writes it; noSlot where the table is full: then windows up to this one are lost at the
// next start unless they have a record.
func (r *recordFile) claim(b *bucket, win *window) int32 {
	r.mu.Lock()
	if len(r.free) == 0 {
		if begin := b.span.begin(win.n); begin > int64(r.words[6]) || r.words[6] == 0 {
			r.set(6, uint64(begin))
		}
		r.mu.Unlock()
		return noSlot
	}
	slot := r.free[len(r.free)-1]
	r.free = r.free[:len(r.free)-1]
	r.mu.Unlock()
	var s [slotWords]uint64
	s[1], s[2] = getWords(&b.id)
	s[3] = uint64(win.n)
	s[4] = uint64(b.span)/1000 | uint64(b.alg)<<32
	if b.cell {
		s[4] |= flagCell
	}
	if win.lost {
		s[4] |= flagLost
	}
	s[5], s[6] = uint64(win.used+win.given), uint64(win.received)
	at := headerWords + int(slot)*slotWords
	for i := 1; i < 7; i++ {
		r.set(at+i, s[i])
	}
	r.set(at, hashWords(s[1:5]...))
	return slot
}

// raise lifts a slot's ceiling to at least spent, and sets what was received.
func (r *recordFile) raise(slot int32, spent, received int64) {
	at := headerWords + int(slot)*slotWords
	if r.words[at+6] != uint64(received) {
		r.set(at+6, uint64(received))
	}
	if spent > int64(r.words[at+5]) {
		r.set(at+5, uint64(spent))
	}
}

// release gives a slot back.
func (r *recordFile) release(slot int32) {
	r.set(headerWords+int(slot)*slotWords, 0)
	r.mu.Lock()
	r.free = append(r.free, slot)
	r.mu.Unlock()
}

// inUse is how many slots hold records.
func (r *recordFile) inUse() (used, total int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.slots - len(r.free), r.slots
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
	for i := range restored {
		w := &restored[i]
		b := &bucket{id: w.id, span: w.span, alg: w.alg, cell: w.cell}
		w.slot = r.claim(b, &window{n: w.n, used: w.ceiling, received: w.received, lost: w.lost})
	}
	if err := os.Rename(next, path); err != nil {
		return nil, nil, 0, fmt.Errorf("make records: %w", err)
	}
	return r, restored, lostThrough, nil
}
