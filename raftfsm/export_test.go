package raftfsm

import (
	"errors"

	"github.com/dgraph-io/badger/v4"

	"sluice/raftfsm/state"
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
	<-h.idle
	h.db.Close()
	f.retired.Wait()
}

// PutIdentity writes the records of an identity past the log, as a command that makes one does.
func (f *FSM) PutIdentity(identity state.Identity) error {
	value, err := state.Marshal(identity)
	if err != nil {
		return err
	}
	key := key2(prefixIdentity, identity.Provider, identity.Subject)
	return f.current.Load().db.Update(func(txn *badger.Txn) error {
		return errors.Join(txn.Set(key, value), txn.Set(key2(prefixUserIdentity, identity.UserID, string(key[1:])), nil))
	})
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
