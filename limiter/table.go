package limiter

import (
	"encoding/binary"
	"sync"
)

const (
	shardCount = 64 // a multi-charge decision locks its shards by a 64-bit mask, in rising order
	// classShare is the part of the cap that the buckets of one policy may fill, so that a flood of addresses leaves
	// room for keys.
	classShare = 4
	// cellsPerShard bounds the overflow cells; cellsPerClass is how many the buckets of one policy, window and algorithm
	// spread over in a shard.
	cellsPerShard = 64
	cellsPerClass = 16
	// maxWindows bounds the windows kept for one bucket: those in reach of clocks within the skew bound, and more after a
	// clock stepped.
	maxWindows = 12
)

// shard owns the buckets whose names fall to it.
type shard struct {
	mu sync.Mutex
	// maxMillis is the greatest clock reading acted on here: what has ended long before it may be dropped, and counts as
	// lost ever after.
	maxMillis int64
	records   *recordFile
	index     index
	slab      []*bucket // in full form, at the places that free does not name
	free      []int32
	arena     arena
	live      int
	classes   [256]int32
	cells     map[BucketID]*bucket
	// Where sweeping, packing and telling go on.
	sweepAt, trimAt int
	sweepBlock      block
	newsBlock       [markKinds]block
	// news lists buckets in full form with news for the others, by markHot and the other kinds; the arena marks packed ones.
	news [markKinds][]int32
	// borrowers are token buckets that hold what they borrowed. Some may have been forgotten since.
	borrowers []int32
	// forgotMono is up to when token buckets that were forgotten here had been reckoned.
	forgotMono int64
	buf        []byte  // for packing
	lent       *bucket // for looking at packed ones
	stats      shardStats
	refusals   [refusalSlots]refusalNote
	over       map[auditKey]int64 // grains found over so far; nil as long as nothing was
	closed     bool               // nothing may be decided or recorded any more
	left       bool               // this node leaves for good: it spends and gives nothing any more
}

type shardStats struct {
	admitted, refused, undecided uint64
	asks, asksAnswered           uint64
	given, received              uint64 // grains
	heard                        uint64 // entries of news
	overflow                     uint64 // decisions in an overflow cell
	cellsFull                    uint64 // decisions without any place to count
	asksUnanswered, answers      uint64
	audit                        auditStats
}

func shardOf(id *BucketID) int { return int(id[15] & (shardCount - 1)) }

// advance notes a clock reading that is about to be acted on. One beyond the mark is not: after a restart nobody would
// know that windows were dropped by it.
func (l *ledger) advance(sh *shard, ms int64) {
	if ms = min(ms, l.markMillis()); ms > sh.maxMillis {
		sh.maxMillis = ms
	}
}

// obtain finds the bucket, makes it, or names the overflow cell that stands for it; nil where even cells are used up.
// remote says that no decision needs it: such a bucket is not made in the last eighth of the room.
func (l *ledger) obtain(sh *shard, id *BucketID, rule Rule, remote bool) *bucket {
	if b := sh.get(id); b != nil {
		return b
	}
	room := l.maxPerShard
	if remote {
		room -= room / 8
	}
	classRoom := max(room/classShare, 1)
	class := id.class()
	if sh.live >= room || int(sh.classes[class]) >= classRoom {
		l.sweepShard(sh, 4)
		if sh.live >= room || int(sh.classes[class]) >= classRoom {
			if remote {
				return nil
			}
			return l.overflowCell(sh, id, rule)
		}
	}
	b := sh.add(id, span(rule.Window*1000), rule.Algorithm)
	if b == nil {
		if remote {
			return nil
		}
		return l.overflowCell(sh, id, rule)
	}
	l.adopt(sh, b)
	return b
}

// adopt charges a bucket with all that its overflow cell has counted, its own units among them, in windows that it has no
// counters of its own for.
func (l *ledger) adopt(sh *shard, b *bucket) {
	if len(sh.cells) == 0 || l.unsafeNoAdopt {
		return
	}
	id := overflowID(&b.id, b.span, b.alg)
	c := sh.cells[id]
	if c == nil {
		return
	}
	for i := range c.wins {
		w := &c.wins[i]
		if !w.touched() && !w.lost || b.find(w.n) != nil {
			continue
		}
		// It needs no record before its first own unit: the cell's own brings it back. Where it may have had one that found
		// no room in the file, what it spent since it left the cell is not known.
		lost := w.lost || l.lostWindow(sh, b, w.n)
		b.wins = append(b.wins, window{n: w.n, used: w.used, slot: noSlot, lost: lost, vague: true})
	}
}

func overflowID(id *BucketID, s span, alg Algorithm) BucketID {
	var c BucketID
	c[0] = id.class()
	c[1] = byte(alg)
	c[2] = id[14] % cellsPerClass
	binary.LittleEndian.PutUint64(c[4:], uint64(s))
	c[15] = id[15] & (shardCount - 1)
	return c
}

// overflowCell is where a bucket counts that found no room: shared with others of its policy, which makes its limit
// come sooner and never later.
func (l *ledger) overflowCell(sh *shard, id *BucketID, rule Rule) *bucket {
	cid := overflowID(id, span(rule.Window*1000), rule.Algorithm)
	if c := sh.cells[cid]; c != nil {
		sh.stats.overflow++
		return c
	}
	if len(sh.cells) >= cellsPerShard {
		sh.stats.cellsFull++
		return nil
	}
	sh.stats.overflow++
	return sh.addCell(cid, span(rule.Window*1000), rule.Algorithm)
}

func (sh *shard) addCell(cid BucketID, s span, alg Algorithm) *bucket {
	c := &bucket{id: cid, span: s, alg: alg, cell: true, live: true}
	c.wins = c.first[:0]
	if sh.cells == nil {
		sh.cells = make(map[BucketID]*bucket)
	}
	sh.cells[cid] = c
	return c
}

// window finds or makes the counters of window n; nil where the window is gone, or the bucket has too many open, which
// takes a clock that jumps about.
func (l *ledger) window(sh *shard, b *bucket, n int64) *window {
	if w := b.find(n); w != nil {
		return w
	}
	l.dropWindows(sh, b)
	if len(b.wins) >= maxWindows || l.gone(sh, b, n) {
		return nil
	}
	lost := l.lostWindow(sh, b, n)
	b.wins = append(b.wins, window{n: n, slot: noSlot, lost: lost})
	return &b.wins[len(b.wins)-1]
}

// dropWindows forgets windows that no clock within the skew bound can reach any more. What is forgotten counts as
// lost from then on (lostWindow), so a clock that steps back further gains nothing.
func (l *ledger) dropWindows(sh *shard, b *bucket) {
	keep := b.wins[:0]
	for i := range b.wins {
		w := b.wins[i]
		if l.gone(sh, b, w.n) {
			if w.slot != noSlot {
				l.records.release(w.slot, w.n)
			}
			continue
		}
		keep = append(keep, w)
	}
	if len(keep) == len(b.wins) {
		return
	}
	clear(b.wins[len(keep):])
	b.wins = keep
	if len(keep) > 1 && l.records != nil {
		l.records.gather(b)
	}
}

// sweepShard looks at up to n buckets of either form and frees those with nothing left to remember.
func (l *ledger) sweepShard(sh *shard, n int) {
	if sh.closed {
		return
	}
	l.sweepPacked(sh, n)
	for n = min(n, len(sh.slab)); n > 0; n-- {
		if sh.sweepAt >= len(sh.slab) {
			sh.sweepAt = 0
		}
		b := sh.slab[sh.sweepAt]
		sh.sweepAt++
		if b == nil || !b.live {
			continue
		}
		l.audit(sh, b)
		l.dropWindows(sh, b)
		if l.idle(sh, b) {
			sh.drop(b)
		}
	}
}

// sweepCells frees overflow cells whose windows are gone. They are few.
func (l *ledger) sweepCells(sh *shard) {
	if sh.closed {
		return
	}
	for id, c := range sh.cells { // the order decides nothing
		l.dropWindows(sh, c)
		if len(c.wins) == 0 && l.idleTokens(sh, c) {
			delete(sh.cells, id)
		}
	}
}

// idle says whether b has nothing left to remember. That others have not heard of it is no reason to keep it.
func (l *ledger) idle(sh *shard, b *bucket) bool {
	if len(b.wins) > 0 || b.ask.waiters != nil || !l.idleTokens(sh, b) {
		return false
	}
	for i := range b.know {
		if b.span.end(b.know[i].n)+int64(b.span) > sh.maxMillis {
			return false
		}
	}
	return true
}
