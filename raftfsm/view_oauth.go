package raftfsm

import (
	"github.com/dgraph-io/badger/v4"

	"sluice/raftfsm/state"
)

// Identity finds an identity by provider and subject.
func (v *View) Identity(provider, subject string) (*state.Identity, error) {
	return one[state.Identity](v, identityKey(provider, subject))
}

// IdentitiesOf lists a user's identities, by provider.
func (v *View) IdentitiesOf(userID string) (list []state.Identity, err error) {
	prefix := key2(prefixUserIdentity, userID, "")
	err = v.read(func(txn *badger.Txn) error {
		return each(txn, prefix, prefix, func(rest string) (bool, error) {
			i, err := find[state.Identity](txn, key1(prefixIdentity, rest))
			if err == nil && i != nil {
				list = append(list, *i)
			}
			return true, err
		})
	})
	return list, err
}
