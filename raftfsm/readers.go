package raftfsm

import (
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
)

// idleReaders is how many read transactions wait for the next read.
const idleReaders = 16

// readers keeps read transactions for the next reads of the same moment. Beginning and ending one costs as much as a
// read: Badger does the accounts of both in a goroutine of its own, which has to be woken. A transaction has one user at
// a time, and nobody gets one that is older than the last commit, so that who reads after a change sees it. Safe for
// concurrent use.
type readers struct {
	moment atomic.Uint64 // how many commits there were
	idle   [idleReaders]atomic.Pointer[reader]
}

type reader struct {
	txn    *badger.Txn
	moment uint64 // looked at before txn began: txn is at least this new
}

// take begins a transaction, or goes on with one that sees all that was committed before the call.
func (r *readers) take(db *badger.DB) *reader {
	moment := r.moment.Load()
	for i := range r.idle {
		if r.idle[i].Load() == nil {
			continue
		}
		t := r.idle[i].Swap(nil)
		switch {
		case t == nil: // somebody else was quicker
		case t.moment == moment:
			return t
		default:
			t.txn.Discard()
		}
	}
	return &reader{txn: db.NewTransaction(false), moment: moment}
}

// put gives a transaction back. Its iterators are closed.
func (r *readers) put(t *reader) {
	if t.moment == r.moment.Load() {
		for i := range r.idle {
			if r.idle[i].CompareAndSwap(nil, t) {
				return // a commit meanwhile leaves it for take, or for the next commit, to end
			}
		}
	}
	t.txn.Discard()
}

// committed ends the waiting transactions: they are too old now, and Badger keeps what they could still see.
func (r *readers) committed() {
	r.moment.Add(1)
	r.clear()
}

func (r *readers) clear() {
	for i := range r.idle {
		if t := r.idle[i].Swap(nil); t != nil {
			t.txn.Discard()
		}
	}
}
