package raftfsm

import (
	"fmt"

	"github.com/dgraph-io/badger/v4"

	"sluice/raftfsm/state"
)

// keptSettings is how many versions of the settings are kept, the one in force among them. It is part of the rules as the
// bounds in rules.go are.
const keptSettings = 20

// putSettings makes a new version the newest one.
func putSettings(b *batch, c state.PutSettings) state.Result {
	s := c.Settings
	if s.Version == 0 || len(s.Text) > state.MaxSettingsText || len(s.Address) > maxAddress || s.Restores >= s.Version {
		return refuse(state.CodeInvalid)
	}
	kept := b.scan([]byte{prefixSettings}, nil, keptSettings+1)
	var newest uint64
	if n := len(kept); n > 0 {
		last := load[state.Settings](b, kept[n-1].key)
		if last == nil {
			return state.Result{} // b.err says why
		}
		newest = last.Version
	}
	if s.Version != newest+1 {
		return refuse(state.CodeConflict)
	}
	for len(kept) >= keptSettings {
		b.delete(kept[0].key)
		kept = kept[1:]
	}
	b.store(keyIndex(prefixSettings, s.Version), s)
	b.announce, b.settle = true, true
	audit(b, c.Audit)
	return state.Result{}
}

// readSettings is all that is kept, the oldest first.
func readSettings(txn *badger.Txn) ([]state.Settings, error) {
	options := badger.DefaultIteratorOptions
	options.Prefix = []byte{prefixSettings}
	iterator := txn.NewIterator(options)
	defer iterator.Close()
	var list []state.Settings
	for iterator.Rewind(); iterator.Valid(); iterator.Next() {
		var s state.Settings
		if err := iterator.Item().Value(func(value []byte) error { return state.Unmarshal(value, &s) }); err != nil {
			return nil, fmt.Errorf("read settings: %w", err)
		}
		list = append(list, s)
	}
	return list, nil
}

// Settings lists the versions of the settings that are kept as of the last applied entry, the oldest first; the last one is in
// force. Wait-free; what is returned is shared and must not be changed. Read after Limiter, it is of the same index or a later one.
func (f *FSM) Settings() []state.Settings { return *f.settings.Load() }
