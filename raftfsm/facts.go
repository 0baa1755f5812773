package raftfsm

import (
	"hash/maphash"
	"strings"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"

	"sluice/raftfsm/state"
)

// factSlots is how many organizations, and how many makers of keys, are remembered; each slot is a pointer. A fact has
// factWays slots to be in, so that two that are used all the time do not drive each other out.
const (
	factSlots = 1 << 13
	factWays  = 4
)

// facts remembers what many keys have in common, and what is read for each of them: the organization, and whether the
// user behind the key is disabled. Whatever changes either raises the epoch, so a fact that was read at an epoch holds as
// long as that one does. A slot is lost to whoever comes next, which costs one more read. Safe for concurrent use.
type facts struct {
	seed   maphash.Seed
	orgs   factTable[state.Organization]
	makers factTable[bool] // disabled
}

type factTable[T any] [factSlots / factWays][factWays]atomic.Pointer[fact[T]]

type fact[T any] struct {
	epoch uint64
	id    string
	value T
}

func newFacts() *facts { return &facts{seed: maphash.MakeSeed()} }

// get finds what is known of id at an epoch; the value is shared.
func (t *factTable[T]) get(hash, epoch uint64, id string) (value *T, ok bool) {
	set := &t[hash%uint64(len(t))]
	for i := range set {
		if fact := set[i].Load(); fact != nil && fact.epoch == epoch && fact.id == id {
			return &fact.value, true
		}
	}
	return nil, false
}

// put remembers a value, in the place of what no longer holds if there is such a place.
func (t *factTable[T]) put(hash, epoch uint64, id string, value T) {
	set := &t[hash%uint64(len(t))]
	victim := int(hash>>32) % factWays
	for i := range set {
		if old := set[i].Load(); old == nil || old.epoch != epoch || old.id == id {
			victim = i
			break
		}
	}
	set[victim].Store(&fact[T]{epoch, id, value})
}

// organization finds one by id, without its name, which changes without raising the epoch; ok is false where there is no
// record.
func (f *facts) organization(txn *badger.Txn, epoch uint64, id string, org *state.Organization) (ok bool, err error) {
	hash := maphash.String(f.seed, id)
	if known, ok := f.orgs.get(hash, epoch, id); ok {
		*org = *known
		return true, nil
	}
	if ok, err := findInto(txn, key1(prefixOrg, id), org); err != nil || !ok {
		return false, err
	}
	org.Name = ""
	f.orgs.put(hash, epoch, org.ID, *org)
	return true, nil
}

// disabled reports whether the user at the beginning of a chain of makers is disabled, or the chain too long.
func (f *facts) disabled(txn *badger.Txn, epoch uint64, maker string) (bool, error) {
	hash := maphash.String(f.seed, maker)
	if disabled, ok := f.makers.get(hash, epoch, maker); ok {
		return *disabled, nil
	}
	var failure error
	disabled, known := disabledBehind(maker,
		func(id string) *state.User { return loadOr[state.User](txn, key1(prefixUser, id), &failure) },
		func(id string) *state.APIKey { return loadOr[state.APIKey](txn, key1(prefixKey, id), &failure) })
	if failure != nil {
		return false, failure
	}
	f.makers.put(hash, epoch, strings.Clone(maker), disabled || !known) // maker is a part of a whole record's text
	return disabled || !known, nil
}
