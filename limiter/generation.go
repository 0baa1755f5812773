package limiter

import (
	"encoding/binary"
	"slices"
)

// generations are the names of the buckets that were reset, immutable.
type generations struct {
	list   []Reset
	newest uint64
	names  map[BucketID]generation
}

type generation struct {
	id     BucketID
	number uint64
	until  int64
	ended  int64 // the last end of a generation, of this one or an earlier
}

// newGenerations translates the resets of a State; nil for none. before is what was known so far: it is used again where
// nothing changed, since a State comes with every horizon.
func newGenerations(resets []Reset, before *generations) *generations {
	if len(resets) == 0 {
		return nil
	}
	if before != nil && slices.Equal(before.list, resets) {
		return before
	}
	g := &generations{list: slices.Clone(resets), names: make(map[BucketID]generation, len(resets))}
	for _, r := range resets {
		g.newest = max(g.newest, r.Generation)
		g.names[r.Bucket] = generation{id: generationID(r.Bucket, r.Generation), number: r.Generation, until: r.UntilMillis, ended: max(r.UntilMillis, r.EarlierMillis)}
	}
	return g
}

// generationID is the name of a bucket in a generation. It keeps the policy's byte, by which room is shared out, and the
// half that shards, overflow cells and shares go by: when a bucket is handed back, each node holds in the window after
// what it held in the one before.
func generationID(id BucketID, number uint64) BucketID {
	var zero [16]byte
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], number)
	h, _ := sip128(&zero, id[:], n[:])
	binary.LittleEndian.PutUint64(n[:], h)
	copy(id[1:8], n[:])
	return id
}

// name is what the bucket with the first name id is called in the window of length seconds that holds ms.
func (v *view) name(id BucketID, seconds, ms int64) BucketID {
	if v.gens == nil {
		return id
	}
	g, ok := v.gens.names[id]
	if !ok || seconds < 1 || seconds > maxWindow {
		return id
	}
	if s := span(seconds * 1000); g.until != 0 && s.begin(s.at(ms)) >= g.until {
		return id
	}
	return g.id
}

// handedBack says whether id, a first name, counts again after a generation that counted in the window that begins at begin:
// what was spent there stands under another name. That stays so where it was reset once more: nodes that do not know that
// yet spend and ask under the first name.
func (v *view) handedBack(id *BucketID, begin int64) bool {
	if v.gens == nil {
		return false
	}
	g, ok := v.gens.names[*id]
	return ok && begin < g.ended
}
