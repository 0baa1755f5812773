package raftfsm

import (
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// Names for the tests in package raftfsm_test.

const AuditScan = auditScan

var Steps = []string{stepLoaded, stepSynced, stepSwitched}

// WithStep makes a restore call fn between its steps; an error is a crash there.
func WithStep(c Config, fn func(string) error) Config {
	c.step = fn
	return c
}

// WithBoot makes the machine's boot id what fn says.
func WithBoot(c Config, fn func() string) Config {
	c.boot = fn
	return c
}

// Abandon stops using the state as a killed process would, but for the locks that the tests need free: nothing is
// written that Close writes.
func (f *FSM) Abandon() {
	h := f.current.Swap(nil)
	h.release()
	h.close()
	f.retired.Wait()
}

// Identities counts the records of identities, and of users' lists of them.
func (f *FSM) Identities() (identities, listed int, err error) {
	err = f.View().read(func(txn *badger.Txn) error {
		for prefix, count := range map[byte]*int{prefixIdentity: &identities, prefixUserIdentity: &listed} {
			if err := each(txn, []byte{prefix}, []byte{prefix}, func(string) (bool, error) { *count++; return true, nil }); err != nil {
				return err
			}
		}
		return nil
	})
	return identities, listed, err
}

// HashIndex is the index of the hashes of keys.
type HashIndex struct{ x hashIndex }

// NewHashIndex is a complete one of nothing.
func NewHashIndex() *HashIndex {
	h := new(HashIndex)
	h.x.complete.Store(true)
	return h
}

func (h *HashIndex) Add(hash, id []byte)                          { h.x.add(hash, id) }
func (h *HashIndex) Remove(hash []byte)                           { h.x.remove(hash) }
func (h *HashIndex) Find(hash []byte, n int) (id string, ok bool) { return h.x.find(hash, n) }

// AtEnd is a fingerprint whose place is the n-th last, or one beside it.
func AtEnd(n uint64) uint64 {
	inverse := uint64(scatter) // by Newton's method, each step of which doubles the bits that are right
	for range 6 {
		inverse *= 2 - scatter*inverse
	}
	return (^uint64(0) - n) * inverse
}

// LongestSearch is how many slots are looked at, at most, for a hash that is there.
func (h *HashIndex) LongestSearch() (longest int) {
	for i := range h.x.shards {
		s := &h.x.shards[i]
		for at, slot := range s.slots {
			if slot.fingerprint != 0 {
				longest = max(longest, (at-s.home(slot.fingerprint)+len(s.slots))%len(s.slots)+1)
			}
		}
	}
	return longest
}

// Unindex makes the state look hashes up in their records, as before the index is complete.
func (f *FSM) Unindex() { f.current.Load().keys.complete.Store(false) }

// AwaitIndex waits for the index to be complete.
func (f *FSM) AwaitIndex(t testing.TB) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !f.current.Load().keys.complete.Load(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the hashes of keys are not indexed")
		}
	}
}

// UnclassedKinds are the kinds of records that no rule of a restore into a running cluster is about, or that no section of
// Contents holds though the backup's take the cluster's place.
func UnclassedKinds() (kinds []byte) {
	counted := kept + joined + dropped
	for _, s := range sections {
		counted += s.kinds
	}
	for kind := range 256 {
		key := append([]byte{byte(kind)}, make([]byte, 16)...)
		err := checkRecord(key, nil)
		if err != nil && strings.Contains(err.Error(), "unknown kind") && byte(kind) != prefixMeta {
			continue
		}
		if strings.IndexByte(counted, byte(kind)) < 0 {
			kinds = append(kinds, byte(kind))
		}
	}
	return kinds
}
