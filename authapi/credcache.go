package authapi

import (
	"encoding/binary"
	"sync/atomic"
)

// credentialCache remembers good credentials. It never holds one that failed. It is a fixed number of slots without a
// lock: a reader loads pointers, a writer replaces one, and losing an entry costs one look-up.
type credentialCache struct {
	sets []cacheSet
	mask uint64
}

const (
	cacheWays = 4
	// cacheSets times cacheWays credentials are remembered; an entry is some 450 bytes, and 16 for each configured policy
	// whose bucket the credential alone decides.
	cacheSets = 1 << 14
)

type cacheSet [cacheWays]atomic.Pointer[credential]

func newCredentialCache(sets int) *credentialCache {
	return &credentialCache{sets: make([]cacheSet, sets), mask: uint64(sets - 1)}
}

func (cc *credentialCache) set(hash *[32]byte) *cacheSet {
	return &cc.sets[binary.LittleEndian.Uint64(hash[:8])&cc.mask]
}

// get finds a credential that holds for this live, by its number, at this epoch and time, nil where it has to be looked up.
func (cc *credentialCache) get(hash *[32]byte, live, epoch uint64, nowMillis int64) *credential {
	set := cc.set(hash)
	for i := range set {
		if e := set[i].Load(); e != nil && e.hash == *hash {
			if e.live == live && e.epoch == epoch && nowMillis < e.validTo {
				return e
			}
			return nil
		}
	}
	return nil
}

// put remembers e: in the place of its older self, of an empty slot, of one from another epoch or of other settings, or of any.
func (cc *credentialCache) put(e *credential) {
	set := cc.set(&e.hash)
	victim := int(e.hash[8]) % cacheWays
	best := 0
	for i := range set {
		old := set[i].Load()
		switch {
		case old != nil && old.hash == e.hash:
			set[i].Store(e)
			return
		case old == nil && best < 2:
			victim, best = i, 2
		case old != nil && (old.epoch != e.epoch || old.live != e.live) && best < 1:
			victim, best = i, 1
		}
	}
	set[victim].Store(e)
}
