package raftfsm

import (
	"github.com/dgraph-io/badger/v4"

	"sluice/raftfsm/state"
)

// MembersOf lists an organization's memberships, by user id, after the user id `after` ("" for the first page).
func (v *View) MembersOf(organizationID, after string, limit int) (list []state.Membership, err error) {
	if limit <= 0 {
		return nil, nil
	}
	prefix := key2(prefixMember, organizationID, "")
	err = v.read(func(txn *badger.Txn) error {
		return each(txn, prefix, key2(prefixMember, organizationID, after), func(user string) (bool, error) {
			m, err := find[state.Membership](txn, key2(prefixMember, organizationID, user))
			if err == nil && m != nil {
				list = append(list, *m)
			}
			return len(list) < limit, err
		})
	})
	return list, err
}

// KeyAuth finds what deciding about a key takes by the SHA-256 of its present or previous secret, revoked and expired
// keys too; nil for an unknown one.
func (v *View) KeyAuth(hash [32]byte) (auth *state.KeyAuth, err error) {
	epoch := v.fsm.Epoch() // before the read: what is read is at least this new
	err = v.readMoment(func(h *handle, txn *badger.Txn) error {
		var found struct { // in one allocation
			auth state.KeyAuth
			org  state.Organization
		}
		key := &found.auth.Key
		if ok, err := keyByHash(h, txn, &hash, key); err != nil || !ok {
			return err
		}
		ok, err := v.fsm.facts.organization(txn, epoch, key.OrganizationID, &found.org)
		if err != nil {
			return err
		}
		if ok {
			found.auth.Organization = &found.org
		}
		if found.auth.Disabled, err = v.fsm.facts.disabled(txn, epoch, key.CreatedBy); err != nil {
			return err
		}
		auth = &found.auth
		return nil
	})
	return auth, err
}

// TokenAuth finds what deciding about an access token takes, all of one moment; nil where there is no such session. With no organization
// it is the user's own.
func (v *View) TokenAuth(sessionID, userID, organizationID string) (auth *state.TokenAuth, err error) {
	epoch := v.fsm.Epoch() // before the read: what is read is at least this new
	err = v.readMoment(func(_ *handle, txn *badger.Txn) error {
		found := &state.TokenAuth{OrganizationID: organizationID}
		if ok, err := findInto(txn, key1(prefixSession, sessionID), &found.Session); err != nil || !ok {
			return err
		}
		user, err := v.fsm.facts.user(txn, epoch, userID)
		if err != nil {
			return err
		}
		if found.UserActive = user.active; organizationID == "" {
			found.OrganizationID = user.personalOrg
		}
		if found.Role, err = v.fsm.facts.role(txn, epoch, found.OrganizationID, userID); err != nil {
			return err
		}
		auth = found
		return nil
	})
	return auth, err
}

// loadOr is find whose error goes to failure, the first one.
func loadOr[T any](txn *badger.Txn, key []byte, failure *error) *T {
	entity, err := find[T](txn, key)
	if err != nil && *failure == nil {
		*failure = err
	}
	return entity
}
