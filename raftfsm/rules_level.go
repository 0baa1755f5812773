package raftfsm

import (
	"fmt"

	"github.com/dgraph-io/badger/v4"

	"sluice/raftfsm/state"
)

// raiseLevel makes commands of a level part of what the log may hold.
func raiseLevel(b *batch, c state.RaiseLevel) state.Result {
	if c.Level > state.Level {
		return refuse(state.CodeInvalid)
	}
	level := uint64(1)
	if old := load[state.ClusterLevel](b, keyLevel); old != nil {
		level = old.Level
	}
	if c.Level > level {
		b.store(keyLevel, state.ClusterLevel(c))
		b.announce, b.settle = true, true
	}
	return state.Result{}
}

func readLevel(txn *badger.Txn) (uint64, error) {
	value, err := read(txn, keyLevel)
	if err != nil || value == nil {
		return 1, err
	}
	var l state.ClusterLevel
	if err := state.Unmarshal(value, &l); err != nil {
		return 0, fmt.Errorf("decode level: %w", err)
	}
	if l.Level > state.Level {
		return 0, fmt.Errorf("%w: the cluster is of level %d, this version knows levels up to %d: it takes a newer one", ErrSchema, l.Level, state.Level)
	}
	return l.Level, nil
}

// Level is the cluster's level (state.Level) as of the last applied entry. Wait-free.
func (f *FSM) Level() uint64 { return f.level.Load() }
