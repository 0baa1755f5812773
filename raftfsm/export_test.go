package raftfsm

import (
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
	<-h.idle
	h.db.Close()
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
