package raftfsm

import (
	"encoding/binary"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
)

// hashIndex finds the ids of keys by the hashes of their secrets, in memory: a key that a node has not seen costs one read
// of the database instead of two, and one that nobody made none. It holds what the records of prefixKeyHash hold, in 30
// to 38 bytes a hash and without pointers for the collector to follow, by the hash's first 8 bytes. So it says where to
// look, and the key's own record whether it has that hash. Safe for concurrent use.
//
// It is filled beside the first reads of a database, some microseconds a key; until it is complete the records themselves
// are looked up. An entry that nobody needs any more, because the filling came late with it or because others begin alike,
// is one more place to look in vain.
type hashIndex struct {
	complete atomic.Bool
	shards   [hashShards]hashShard
}

const hashShards = 64

// hashShard is an open-addressed table with linear probing. A fingerprint's place is, once scattered, its share of the whole
// range, so that a table may have any size and grow by a quarter.
type hashShard struct {
	mu    sync.RWMutex
	slots []hashSlot
	used  int
	// Ids that are no ULIDs, which no node makes, and yet the state takes.
	others map[uint64][]string
}

type hashSlot struct {
	fingerprint uint64 // 0: free
	id          [16]byte
}

const keyIDHead = "key_"

// fill adds what a transaction sees that is no newer than the first commit that the index follows. It stops early where
// going says so.
func (x *hashIndex) fill(txn *badger.Txn, going func() bool) (n int, err error) {
	options := badger.DefaultIteratorOptions
	options.PrefetchValues = false // they are beside their keys
	options.Prefix = []byte{prefixKeyHash}
	iterator := txn.NewIterator(options)
	defer iterator.Close()
	for iterator.Rewind(); iterator.Valid(); iterator.Next() {
		if n++; n%1024 == 0 && !going() {
			return n, nil
		}
		item := iterator.Item()
		err := item.Value(func(id []byte) error {
			x.add(item.Key()[1:], id)
			return nil
		})
		if err != nil {
			return n, err
		}
	}
	x.complete.Store(true)
	return n, nil
}

// place is where a hash belongs; ok is false for what is no hash, and never looked for.
func (x *hashIndex) place(hash []byte) (shard *hashShard, fingerprint uint64, ok bool) {
	if len(hash) != hashSize {
		return nil, 0, false
	}
	return &x.shards[hash[8]%hashShards], max(binary.BigEndian.Uint64(hash), 1), true
}

// scatter is 2^64 by the golden ratio, and odd, so that nothing is lost.
const scatter = 0x9E3779B97F4A7C15

// home is where a search begins. Fingerprints come in ascending order when the index is filled: if their places did too, all
// of them so far would crowd at the beginning, and each would be put behind all others.
func (s *hashShard) home(fingerprint uint64) int {
	high, _ := bits.Mul64(fingerprint*scatter, uint64(len(s.slots)))
	return int(high)
}

func (s *hashShard) next(i int) int {
	if i++; i < len(s.slots) {
		return i
	}
	return 0
}

// find is the n-th of the ids that a hash may belong to; ok is false after the last one.
func (x *hashIndex) find(hash []byte, n int) (id string, ok bool) {
	s, fingerprint, ok := x.place(hash)
	if !ok {
		return "", false
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(s.slots) > 0 {
		for i := s.home(fingerprint); s.slots[i].fingerprint != 0; i = s.next(i) {
			if s.slots[i].fingerprint != fingerprint {
				continue
			}
			if n == 0 {
				return unpackKeyID(s.slots[i].id), true
			}
			n--
		}
	}
	if others := s.others[fingerprint]; n < len(others) {
		return others[n], true
	}
	return "", false
}

// add notes that a hash is of the key with that id; both are copied.
func (x *hashIndex) add(hash, id []byte) {
	s, fingerprint, ok := x.place(hash)
	if !ok {
		return
	}
	packed, ok := packKeyID(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !ok {
		if s.others == nil {
			s.others = make(map[uint64][]string)
		}
		s.others[fingerprint] = append(s.others[fingerprint], string(id))
		return
	}
	if (s.used+1)*5 > len(s.slots)*4 {
		old := s.slots
		s.slots = make([]hashSlot, len(old)+len(old)/4+16)
		for _, slot := range old {
			if slot.fingerprint != 0 {
				s.insert(slot)
			}
		}
	}
	s.insert(hashSlot{fingerprint, packed})
	s.used++
}

func (s *hashShard) insert(slot hashSlot) {
	i := s.home(slot.fingerprint)
	for s.slots[i].fingerprint != 0 {
		i = s.next(i)
	}
	s.slots[i] = slot
}

// remove forgets a hash that has its entry, where no other one begins like it: which of two it is cannot be told.
func (x *hashIndex) remove(hash []byte) {
	s, fingerprint, ok := x.place(hash)
	if !ok || !x.complete.Load() { // its own entry may be yet to come, and what is found another's
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	found, at := len(s.others[fingerprint]), -1
	if len(s.slots) > 0 {
		for i := s.home(fingerprint); s.slots[i].fingerprint != 0; i = s.next(i) {
			if s.slots[i].fingerprint == fingerprint {
				found, at = found+1, i
			}
		}
	}
	switch {
	case found != 1:
	case at < 0:
		delete(s.others, fingerprint)
	default:
		s.vacate(at)
	}
}

// vacate frees slot i and moves back what was put behind it for want of that place, so that no search stops short.
func (s *hashShard) vacate(i int) {
	s.used--
	gap := i
	for j := s.next(i); s.slots[j].fingerprint != 0; j = s.next(j) {
		// j may stay where its home is between the gap and j, going round.
		home := s.home(s.slots[j].fingerprint)
		if gap <= j && gap < home && home <= j || gap > j && (gap < home || home <= j) {
			continue
		}
		s.slots[gap] = s.slots[j]
		gap = j
	}
	s.slots[gap] = hashSlot{}
}

const crockford = "0123456789abcdefghjkmnpqrstvwxyz"

var crockfordValue = func() (values [256]byte) {
	for i := range values {
		values[i] = 0xFF
	}
	for i, c := range []byte(crockford) {
		values[c] = byte(i)
	}
	return values
}()

// packKeyID gives the 16 bytes of the ULID in a key's id; ok is false for one of another form.
func packKeyID(id []byte) (packed [16]byte, ok bool) {
	const digits = 26 // of 5 bits, the first of 3
	if len(id) != len(keyIDHead)+digits || string(id[:len(keyIDHead)]) != keyIDHead || id[len(keyIDHead)] > '7' {
		return packed, false
	}
	var high, low uint64
	for _, c := range id[len(keyIDHead):] {
		value := crockfordValue[c]
		if value == 0xFF {
			return packed, false
		}
		high = high<<5 | low>>59
		low = low<<5 | uint64(value)
	}
	binary.BigEndian.PutUint64(packed[:8], high)
	binary.BigEndian.PutUint64(packed[8:], low)
	return packed, true
}

func unpackKeyID(packed [16]byte) string {
	high, low := binary.BigEndian.Uint64(packed[:8]), binary.BigEndian.Uint64(packed[8:])
	var id [len(keyIDHead) + 26]byte
	copy(id[:], keyIDHead)
	for i := len(id) - 1; i >= len(keyIDHead); i-- {
		id[i] = crockford[low&31]
		low = low>>5 | high<<59
		high >>= 5
	}
	return string(id[:])
}
