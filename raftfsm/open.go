package raftfsm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"

	"sluice/raftfsm/state"
)

// Config is what Open needs. It is taken by value and not changed afterwards.
type Config struct {
	// Dir holds the database. It is made if it does not exist; nothing else may write into it.
	Dir string
	// ClusterID, where not "", is the only cluster whose snapshots Restore accepts. Where it is "", a state that knows
	// its cluster (after InitCluster) accepts no other one's.
	ClusterID string
	// Logger is for what nobody asked for; nil: slog.Default().
	Logger *slog.Logger
	// Fatal ends the process: the state can't go on without differing from the other replicas'. nil: log the error and
	// os.Exit(3). If it returns (in a test), the FSM applies nothing any more and answers ErrFailed.
	Fatal func(error)
	// Room returns once the disk has room for what an entry or a snapshot may make Badger write, or false where it is no longer
	// waited for: the state then applies nothing any more, and answers ErrFailed. nil: there always is.
	Room func() bool

	boot func() string           // bootID, but for tests
	step func(name string) error // called between the steps of a restore; an error is a crash there
}

// FSM is the replicated state. It implements raft.FSM, raft.BatchingFSM and raft.ConfigurationStore; Raft calls these
// methods from one goroutine. All others are safe for concurrent use.
type FSM struct {
	config Config
	logger *slog.Logger

	current atomic.Pointer[handle] // nil once closed
	retired sync.WaitGroup         // closing of databases that were replaced

	epoch    atomic.Uint64
	index    atomic.Uint64
	limiter  atomic.Pointer[state.LimiterState]
	resets   atomic.Pointer[[]state.Reset]
	settings atomic.Pointer[[]state.Settings]
	level    atomic.Uint64
	keyring  atomic.Pointer[state.GossipKeyring]
	facts    *facts
	waiting  waiters
	closed   chan struct{}
	closing  sync.Once
	ended    error // Close's result; read after closing

	failOnce sync.Once
	failed   atomic.Bool

	subscribersMu  sync.Mutex
	subscribers    map[uint64]func()
	nextSubscriber uint64

	// Only Raft's goroutine looks at these.
	at       applied
	unlooked int // bytes written since memtables were last looked for
	requests requestQueue
}

// Open opens the state in config.Dir, or begins an empty one.
//
// What a crash left of an unfinished restore is removed. After a crash of the machine (not of the process) the database
// is thrown away: its last writes were never synced, and a hole in them could not be seen. AppliedIndex is then 0 and
// Raft's snapshot and log, which are synced, build it again.
//
// Errors: ErrSchema; anything the file system or Badger says, a second Open of the same directory included.
func Open(config Config) (*FSM, error) {
	if config.Dir == "" {
		return nil, errors.New("open state: no directory")
	}
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	if config.boot == nil {
		config.boot = bootID
	}
	if config.step == nil {
		config.step = func(string) error { return nil }
	}
	f := &FSM{config: config, logger: config.Logger, closed: make(chan struct{}), subscribers: make(map[uint64]func()), facts: newFacts()}
	if f.config.Fatal == nil {
		f.config.Fatal = func(err error) {
			f.logger.Error("replicated state failed, ending the process", "error", err)
			os.Exit(3)
		}
	}
	if err := f.open(); err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	return f, nil
}

func (f *FSM) open() error {
	dir := f.config.Dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	name, err := readCurrent(dir)
	if err != nil {
		return err
	}
	boot := f.config.boot()
	running, err := os.ReadFile(filepath.Join(dir, runningFile))
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return err
	case name != "" && boot != "" && len(running) > 0 && string(running) != boot:
		f.logger.Warn("the machine stopped while the state was open: building it again from the raft snapshot and log")
		if err := os.Remove(filepath.Join(dir, currentFile)); err != nil {
			return err
		}
		if err := syncPath(dir); err != nil {
			return err
		}
		name = ""
	}
	// A database directory without CURRENT never came to hold an applied entry, or was just thrown away.
	if err := removeStale(dir, name); err != nil {
		return err
	}
	fresh := name == ""
	if fresh {
		if name, err = nextDB(dir); err != nil {
			return err
		}
	}
	if err := writeFile(filepath.Join(dir, runningFile), boot); err != nil {
		return err
	}
	path := filepath.Join(dir, name)
	db, err := openDB(path, f.logger)
	if err != nil {
		return err
	}
	f.reserveMemtables(path)
	if fresh {
		err = f.begin(db, path, name)
	}
	if err == nil {
		err = f.adopt(newHandle(db, path))
	}
	if err != nil {
		return errors.Join(err, db.Close())
	}
	return nil
}

// begin makes an empty database the current one.
func (f *FSM) begin(db *badger.DB, path, name string) error {
	err := db.Update(func(txn *badger.Txn) error {
		return txn.Set(keySchema, binary.BigEndian.AppendUint16(nil, schemaVersion))
	})
	if err != nil {
		return err
	}
	if err := syncDatabase(db, path); err != nil {
		return err
	}
	return writeFile(filepath.Join(f.config.Dir, currentFile), name)
}

// adopt reads what is kept in memory beside the database and makes it the one in use. It returns without a change where
// the database is not fit.
func (f *FSM) adopt(h *handle) error {
	var at applied
	limiter := new(state.LimiterState)
	var resets []state.Reset
	var settings []state.Settings
	var level uint64
	var keyring *state.GossipKeyring
	err := h.db.View(func(txn *badger.Txn) error {
		schema, err := read(txn, keySchema)
		if err != nil {
			return err
		}
		if len(schema) != 2 || binary.BigEndian.Uint16(schema) != schemaVersion {
			return fmt.Errorf("%w: %x, this one reads %d", ErrSchema, schema, schemaVersion)
		}
		value, err := read(txn, keyApplied)
		if err != nil {
			return err
		}
		if value != nil {
			var ok bool
			if at, ok = decodeApplied(value); !ok {
				return fmt.Errorf("applied index is garbled: %x", value)
			}
		}
		if value, err = read(txn, keyLimiter); err != nil {
			return err
		}
		if value != nil {
			if err := state.Unmarshal(value, limiter); err != nil {
				return err
			}
		}
		if resets, err = readResets(txn); err != nil {
			return err
		}
		if settings, err = readSettings(txn); err != nil {
			return err
		}
		if level, err = readLevel(txn); err != nil {
			return err
		}
		if keyring, err = readGossipKeyring(txn); err != nil {
			return err
		}
		prefix := []byte{prefixKeyUse}
		err = each(txn, prefix, prefix, func(string) (bool, error) {
			h.touched.Store(true)
			return false, nil
		})
		return err
	})
	if err != nil {
		return err
	}
	filling := h.db.NewTransaction(false) // before anything is committed that the index has to follow
	f.at = at
	f.requests = requestQueue{}
	f.resets.Store(&resets)
	f.settings.Store(&settings)
	f.level.Store(level)
	f.keyring.Store(keyring)
	f.limiter.Store(limiter)
	if old := f.current.Swap(h); old != nil {
		f.retire(old)
	}
	// After the swap: who reads the new epoch reads the new state.
	f.epoch.Add(1)
	f.index.Store(at.index)
	f.waiting.wake(at.index)
	if !h.retain() {
		filling.Discard() // closed meanwhile
		return nil
	}
	go f.indexHashes(h, filling)
	return nil
}

// indexHashes fills the index of a database, as long as that is the one in use. It releases h, for which whoever closes the
// database waits.
func (f *FSM) indexHashes(h *handle, txn *badger.Txn) {
	defer h.release()
	defer txn.Discard()
	n, err := h.keys.fill(txn, func() bool { return f.current.Load() == h })
	switch {
	case err != nil:
		f.logger.Warn("hashes of keys not indexed, each is looked up in the database", "error", err)
	case h.keys.complete.Load():
		f.logger.Debug("hashes of keys indexed", "hashes", n)
	}
}

// retire closes a replaced database and removes its directory once the last reader is done.
func (f *FSM) retire(old *handle) {
	old.release()
	f.retired.Go(func() {
		if err := old.close(); err != nil {
			f.logger.Warn("close replaced database", "error", err)
		}
		if err := os.RemoveAll(old.dir); err != nil {
			f.logger.Warn("remove replaced database", "error", err)
		}
	})
}

// acquire returns the database in use, retained. The caller releases it.
func (f *FSM) acquire() (*handle, error) {
	for {
		h := f.current.Load()
		if h == nil {
			return nil, ErrClosed
		}
		if h.retain() {
			return h, nil
		}
	}
}

// Close waits for reads and snapshots at work, then closes the database. Raft must have been shut down. Idempotent.
func (f *FSM) Close() error {
	f.closing.Do(func() {
		close(f.closed)
		h := f.current.Swap(nil)
		h.release()
		if !f.room() {
			// Badger would write what it has in memory into a new table, and die of the first page without a block. The process ends here
			// as a kill would end it: all that was committed is in the memtable's log.
			f.logger.Warn("no room to close the state: the next start finds it as after a kill")
			return
		}
		err := h.close()
		f.retired.Wait()
		if err == nil {
			err = syncFiles(h.dir)
		}
		// Only a database that is closed and on disk may be trusted after a reboot.
		if err == nil {
			if err = os.Remove(filepath.Join(f.config.Dir, runningFile)); err == nil {
				err = syncPath(f.config.Dir)
			}
		}
		if err != nil {
			f.ended = fmt.Errorf("close state: %w", err)
		}
	})
	return f.ended
}

// fail ends the process; see Config.Fatal.
func (f *FSM) fail(err error) {
	f.failed.Store(true)
	f.failOnce.Do(func() { f.config.Fatal(err) })
}

// AppliedIndex is the index of the last log entry in the state: the newest command or configuration applied. Raft's own
// entries (no-ops, barriers) do not reach the state and do not raise it.
func (f *FSM) AppliedIndex() uint64 { return f.index.Load() }

// Epoch rises after an entry that may end or narrow what a credential can do can be read here, and before its proposer
// gets an answer; after a restore too. What was read after Epoch returned e holds for credentials as long as Epoch is e.
func (f *FSM) Epoch() uint64 { return f.epoch.Load() }

// WaitApplied returns once the entry at index is applied here. index is a command's or a configuration's; see
// AppliedIndex. Errors: the context's cause, ErrClosed, ErrFailed.
func (f *FSM) WaitApplied(ctx context.Context, index uint64) error {
	if f.index.Load() >= index {
		return nil
	}
	done := f.waiting.add(index)
	defer f.waiting.remove(done)
	// It may have been applied between the look and the entry in the list.
	if f.index.Load() >= index {
		return nil
	}
	if f.failed.Load() {
		return ErrFailed
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-f.closed:
		return ErrClosed
	}
}

// Limiter is the horizon and the rosters as of the last applied entry. Wait-free; the slices belong to the caller.
func (f *FSM) Limiter() state.LimiterState {
	l := *f.limiter.Load()
	l.Rosters = slices.Clone(l.Rosters)
	for i := range l.Rosters {
		l.Rosters[i].Nodes = slices.Clone(l.Rosters[i].Nodes)
	}
	l.Leaves = slices.Clone(l.Leaves)
	for i := range l.Leaves {
		l.Leaves[i].List = slices.Clone(l.Leaves[i].List)
	}
	return l
}

// Resets lists the generations of buckets as of the last applied entry, by the buckets' names. Wait-free; what is
// returned is shared and must not be changed. Read after Limiter, it is of the same index or a later one: a node that goes by
// a horizon must know every handing back before it in the log.
func (f *FSM) Resets() []state.Reset { return *f.resets.Load() }

// Subscribe has fn called after an applied entry, or a restore, changed the horizon, the rosters, the resets, the nodes,
// the settings or the keyring of gossip; look at Limiter, Resets, Nodes, Settings and GossipKeyring for what is so now. fn is called from Raft's goroutine and must not block. cancel ends
// it; a call at work may still end after cancel has returned.
func (f *FSM) Subscribe(fn func()) (cancel func()) {
	f.subscribersMu.Lock()
	defer f.subscribersMu.Unlock()
	id := f.nextSubscriber
	f.nextSubscriber++
	f.subscribers[id] = fn
	return func() {
		f.subscribersMu.Lock()
		defer f.subscribersMu.Unlock()
		delete(f.subscribers, id)
	}
}

func (f *FSM) announce() {
	f.subscribersMu.Lock()
	ids := make([]uint64, 0, len(f.subscribers))
	for id := range f.subscribers {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	calls := make([]func(), 0, len(ids))
	for _, id := range ids {
		calls = append(calls, f.subscribers[id])
	}
	f.subscribersMu.Unlock()
	for _, call := range calls {
		call()
	}
}
