package raftfsm

import (
	"hash/maphash"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"

	"sluice/raftfsm/state"
)

// factSlots is how many organizations, and how many makers of keys, are remembered; each slot is a pointer.
const factSlots = 1 << 13

// facts remembers what many keys have in common, and what is read for each of them: the organization, and whether the
// user behind the key is disabled. Whatever changes either raises the epoch, so a fact that was read at an epoch holds as
// long as that one does. A slot is lost to whoever comes next, which costs one more read. Safe for concurrent use.
type facts struct {
	seed   maphash.Seed
	orgs   [factSlots]atomic.Pointer[orgFact]
	makers [factSlots]atomic.Pointer[makerFact]
}

type orgFact struct {
	epoch uint64
	org   state.Organization
}

type makerFact struct {
	epoch    uint64
	id       string
	disabled bool
}

func newFacts() *facts { return &facts{seed: maphash.MakeSeed()} }

func (f *facts) slot(id string) uint64 { return maphash.String(f.seed, id) % factSlots }

// organization finds one by id, without its name, which changes without raising the epoch; nil where there is no record.
func (f *facts) organization(txn *badger.Txn, epoch uint64, id string) (*state.Organization, error) {
	slot := &f.orgs[f.slot(id)]
	if fact := slot.Load(); fact != nil && fact.epoch == epoch && fact.org.ID == id {
		org := fact.org
		return &org, nil
	}
	org, err := find[state.Organization](txn, key1(prefixOrg, id))
	if err != nil || org == nil {
		return nil, err
	}
	org.Name = ""
	slot.Store(&orgFact{epoch, *org})
	return org, nil
}

// disabled reports whether the user at the beginning of a chain of makers is disabled, or the chain too long.
func (f *facts) disabled(txn *badger.Txn, epoch uint64, maker string) (bool, error) {
	slot := &f.makers[f.slot(maker)]
	if fact := slot.Load(); fact != nil && fact.epoch == epoch && fact.id == maker {
		return fact.disabled, nil
	}
	var failure error
	disabled, known := disabledBehind(maker,
		func(id string) *state.User { return loadOr[state.User](txn, key1(prefixUser, id), &failure) },
		func(id string) *state.APIKey { return loadOr[state.APIKey](txn, key1(prefixKey, id), &failure) })
	if failure != nil {
		return false, failure
	}
	slot.Store(&makerFact{epoch, maker, disabled || !known})
	return disabled || !known, nil
}
