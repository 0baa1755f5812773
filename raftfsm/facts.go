package raftfsm

import (
	"hash/maphash"
	"math/bits"
	"strings"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"

	"sluice/raftfsm/state"
)

// factSlots is how many organizations are remembered, makers of keys, users, and members; each slot is a pointer. A fact has
// factWays slots to be in, so that two that are used all the time do not drive each other out.
const (
	factSlots = 1 << 13
	factWays  = 4
)

// facts remembers what many keys or tokens have in common, and what is read for each of them: of keys the organization, and whether
// the user behind the key is disabled; of tokens the user, and the role in an organization. Whatever changes one of these raises the
// epoch, so a fact that was read at an epoch holds as long as that one does. That there is none of it is not remembered: what is made
// need not raise the epoch. A slot is lost to whoever comes next, which costs one more read. Safe for concurrent use.
type facts struct {
	seed   maphash.Seed
	orgs   factTable[state.Organization]
	makers factTable[bool] // disabled
	users  factTable[userFact]
	roles  factTable[string] // by user and organization
}

type userFact struct {
	active      bool // neither disabled nor deleted
	personalOrg string
}

// factID is whose a fact is.
type factID [2]string

type factTable[T any] [factSlots / factWays][factWays]atomic.Pointer[fact[T]]

type fact[T any] struct {
	epoch uint64
	id    factID
	value T
}

func newFacts() *facts { return &facts{seed: maphash.MakeSeed()} }

// hash is 64 bits of an id. It costs a third of what maphash.Comparable does.
func (f *facts) hash(id factID) uint64 {
	return maphash.String(f.seed, id[0]) ^ bits.RotateLeft64(maphash.String(f.seed, id[1]), 1)
}

// get finds what is known of id at an epoch; the value is shared.
func (t *factTable[T]) get(hash, epoch uint64, id factID) (value *T, ok bool) {
	set := &t[hash%uint64(len(t))]
	for i := range set {
		if fact := set[i].Load(); fact != nil && fact.epoch == epoch && fact.id == id {
			return &fact.value, true
		}
	}
	return nil, false
}

// put remembers a value, in the place of what no longer holds if there is such a place.
func (t *factTable[T]) put(hash, epoch uint64, id factID, value T) {
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
	hash := f.hash(factID{id})
	if known, ok := f.orgs.get(hash, epoch, factID{id}); ok {
		*org = *known
		return true, nil
	}
	if ok, err := findInto(txn, key1(prefixOrg, id), org); err != nil || !ok {
		return false, err
	}
	org.Name = ""
	f.orgs.put(hash, epoch, factID{org.ID}, *org)
	return true, nil
}

// disabled reports whether the user at the beginning of a chain of makers is disabled, or the chain too long.
func (f *facts) disabled(txn *badger.Txn, epoch uint64, maker string) (bool, error) {
	hash := f.hash(factID{maker})
	if disabled, ok := f.makers.get(hash, epoch, factID{maker}); ok {
		return *disabled, nil
	}
	var failure error
	disabled, known := disabledBehind(maker,
		func(id string) *state.User { return loadOr[state.User](txn, key1(prefixUser, id), &failure) },
		func(id string) *state.APIKey { return loadOr[state.APIKey](txn, key1(prefixKey, id), &failure) })
	if failure != nil {
		return false, failure
	}
	f.makers.put(hash, epoch, factID{strings.Clone(maker)}, disabled || !known) // maker is a part of a whole record's text
	return disabled || !known, nil
}

// user says whether a user is there and neither disabled nor deleted, and which organization is the user's own.
func (f *facts) user(txn *badger.Txn, epoch uint64, id string) (userFact, error) {
	hash := f.hash(factID{id})
	if known, ok := f.users.get(hash, epoch, factID{id}); ok {
		return *known, nil
	}
	var u state.User
	if ok, err := findInto(txn, key1(prefixUser, id), &u); err != nil || !ok {
		return userFact{}, err
	}
	known := userFact{u.DisabledAt == 0 && u.DeletedAt == 0, strings.Clone(u.PersonalOrg)}
	f.users.put(hash, epoch, factID{strings.Clone(id)}, known)
	return known, nil
}

// role is a user's role in an organization, "" where the user is no member.
func (f *facts) role(txn *badger.Txn, epoch uint64, organizationID, userID string) (string, error) {
	id := factID{userID, organizationID}
	hash := f.hash(id)
	if known, ok := f.roles.get(hash, epoch, id); ok {
		return *known, nil
	}
	var m state.Membership
	if ok, err := findInto(txn, key2(prefixMember, organizationID, userID), &m); err != nil || !ok {
		return "", err
	}
	f.roles.put(hash, epoch, factID{m.UserID, m.OrganizationID}, m.Role) // all of it is one text
	return m.Role, nil
}
