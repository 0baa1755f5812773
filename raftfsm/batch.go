package raftfsm

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/dgraph-io/badger/v4"

	"sluice/raftfsm/state"
)

// batch collects the changes of consecutive log entries over one read transaction. The entry at work writes to cmd; done
// holds the finished entries' changes. So a refused command leaves nothing, and a batch that grows too large for one
// Badger transaction is cut between entries, never inside one.
//
// A storage error sticks in err and makes everything after it a no-op, so that the rules read without error handling;
// whoever drives the batch looks at err before anything is kept.
type batch struct {
	txn *badger.Txn // read only
	// seen are records that txn was asked for: entries of one batch ask for the same organization, caller and chain of
	// the audit again and again. What was not there is not kept.
	seen map[string][]byte
	done map[string][]byte
	cmd  map[string][]byte // nil value: deleted
	size int               // estimate of done, as Badger counts
	err  error

	at        applied // of the entry at work
	raise     bool    // the entry at work may narrow what a credential can do
	announce  bool    // the entry at work changed horizon, rosters, resets, nodes, settings, level or the keyring of gossip
	rename    bool    // the entry at work changed resets
	settle    bool    // the entry at work changed the settings or the level
	rekey     bool    // the entry at work changed the keyring of gossip
	raised    bool    // the same of finished entries
	announced bool
	renamed   bool
	settled   bool
	rekeyed   bool
}

// maxSeen bounds batch.seen; commands that read many records read each once.
const maxSeen = 256

func newBatch(db *badger.DB, at applied) *batch {
	return &batch{
		txn:  db.NewTransaction(false),
		seen: make(map[string][]byte),
		done: make(map[string][]byte),
		cmd:  make(map[string][]byte),
		at:   at,
	}
}

// newBatchFrom takes over the changes of the entry at work; the caller gives it a transaction.
func newBatchFrom(b *batch) *batch {
	next := &batch{
		seen: make(map[string][]byte), done: make(map[string][]byte), cmd: b.cmd, at: b.at,
		raise: b.raise, announce: b.announce, rename: b.rename, settle: b.settle, rekey: b.rekey,
	}
	b.cmd = nil
	return next
}

func (b *batch) discard() {
	if b.txn != nil {
		b.txn.Discard()
	}
}

func (b *batch) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

// get returns nil where the key is missing. The value must not be changed.
func (b *batch) get(key []byte) []byte {
	if b.err != nil {
		return nil
	}
	if value, ok := b.cmd[string(key)]; ok {
		return value
	}
	if value, ok := b.done[string(key)]; ok {
		return value
	}
	if value, ok := b.seen[string(key)]; ok {
		return value
	}
	value, err := read(b.txn, key)
	if err != nil {
		b.fail(err)
	}
	if value != nil && len(b.seen) < maxSeen {
		b.seen[string(key)] = value
	}
	return value
}

// read returns a copy of the value, or nil where the key is missing. Values are never empty but for index entries,
// which are read as a non-nil empty slice.
func read(txn *badger.Txn, key []byte) ([]byte, error) {
	item, err := txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	value, err := item.ValueCopy(nil)
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	if value == nil {
		value = []byte{}
	}
	return value, nil
}

func (b *batch) has(key []byte) bool { return b.get(key) != nil }

// put takes ownership of value.
func (b *batch) put(key, value []byte) {
	if value == nil {
		value = []byte{}
	}
	b.cmd[string(key)] = value
}

func (b *batch) delete(key []byte) { b.cmd[string(key)] = nil }

// store writes an entity.
func (b *batch) store(key []byte, entity any) {
	value, err := state.Marshal(entity)
	if err != nil {
		b.fail(fmt.Errorf("encode state: %w", err))
		return
	}
	b.put(key, value)
}

// load reads an entity; nil where it is missing.
func load[T any](b *batch, key []byte) *T {
	value := b.get(key)
	if value == nil {
		return nil
	}
	entity := new(T)
	if err := state.Unmarshal(value, entity); err != nil {
		b.fail(fmt.Errorf("decode state: record %q: %w", key, err))
		return nil
	}
	return entity
}

type record struct{ key, value []byte }

// scan returns up to limit records that begin with prefix and are at or after from, in key order.
func (b *batch) scan(prefix, from []byte, limit int) []record {
	if b.err != nil || limit <= 0 {
		return nil
	}
	overlay := make(map[string][]byte)
	for _, layer := range []map[string][]byte{b.done, b.cmd} {
		for key, value := range layer {
			if len(key) >= len(prefix) && key[:len(prefix)] == string(prefix) && key >= string(from) {
				overlay[key] = value
			}
		}
	}
	changed := slices.Sorted(maps.Keys(overlay))

	options := badger.DefaultIteratorOptions
	options.Prefix = prefix
	options.PrefetchSize = min(limit, 100)
	iterator := b.txn.NewIterator(options)
	defer iterator.Close()
	if bytes.Compare(from, prefix) < 0 {
		from = prefix
	}
	iterator.Seek(from)
	var records []record
	for len(records) < limit {
		switch {
		case iterator.Valid() && (len(changed) == 0 || string(iterator.Item().Key()) < changed[0]):
			value, err := iterator.Item().ValueCopy(nil)
			if err != nil {
				b.fail(fmt.Errorf("read state: %w", err))
				return nil
			}
			records = append(records, record{iterator.Item().KeyCopy(nil), value})
			iterator.Next()
		case len(changed) > 0:
			key := changed[0]
			changed = changed[1:]
			if iterator.Valid() && string(iterator.Item().Key()) == key {
				iterator.Next()
			}
			if value := overlay[key]; value != nil {
				records = append(records, record{[]byte(key), value})
			}
		default:
			return records
		}
	}
	return records
}

// entrySize is what Badger counts for one change: key, value, two meta bytes, the key's timestamp, and slack.
func entrySize(key string, value []byte) int { return len(key) + len(value) + 24 }

// cmdSize is the size and number of the changes of the entry at work.
func (b *batch) cmdSize() (size, count int) {
	for key, value := range b.cmd {
		size += entrySize(key, value)
	}
	return size, len(b.cmd)
}

// keep makes the changes of the entry at work part of the batch.
func (b *batch) keep() {
	for key, value := range b.cmd {
		if old, ok := b.done[key]; ok {
			b.size -= entrySize(key, old)
		}
		b.size += entrySize(key, value)
		b.done[key] = value
	}
	clear(b.cmd)
	b.raised = b.raised || b.raise
	b.announced = b.announced || b.announce
	b.renamed = b.renamed || b.rename
	b.settled = b.settled || b.settle
	b.rekeyed = b.rekeyed || b.rekey
	b.raise, b.announce, b.rename, b.settle, b.rekey = false, false, false, false, false
}

// drop forgets the changes of the entry at work.
func (b *batch) drop() {
	clear(b.cmd)
	b.raise, b.announce, b.rename, b.settle, b.rekey = false, false, false, false, false
}

// commit writes the finished entries' changes and the applied record in one transaction.
func (b *batch) commit(db *badger.DB, at applied) error {
	txn := db.NewTransaction(true)
	defer txn.Discard()
	// In key order: Badger does not care, but the same bytes in the same order make runs comparable.
	for _, key := range slices.Sorted(maps.Keys(b.done)) {
		var err error
		if value := b.done[key]; value != nil {
			err = txn.Set([]byte(key), value)
		} else {
			err = txn.Delete([]byte(key))
		}
		if err != nil {
			return fmt.Errorf("write state: %w", err)
		}
	}
	if err := txn.Set(keyApplied, at.encode()); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	if err := txn.Commit(); err != nil {
		return fmt.Errorf("commit state: %w", err)
	}
	return nil
}
