package raftfsm

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// Names inside Config.Dir. The database lives in a directory of its own, named by CURRENT; a restore makes another one
// and then replaces CURRENT, which is the one moment when the new state takes over.
const (
	currentFile = "CURRENT"
	runningFile = "RUNNING"
	dbPrefix    = "db-"
)

// handle is an open database with the number of its users: the FSM itself, reads at work, snapshots at work. It is
// closed when the last one lets go, so a read begun before a restore ends on the state that it began on.
type handle struct {
	db   *badger.DB
	dir  string
	refs atomic.Int64
	idle chan struct{} // closed when refs has come to 0

	readers readers
	keys    *hashIndex  // follows the commits
	touched atomic.Bool // there are, or were, records of prefixKeyUse, which only logs of before KeyUsage make
}

func newHandle(db *badger.DB, dir string) *handle {
	h := &handle{db: db, dir: dir, idle: make(chan struct{}), keys: new(hashIndex)}
	h.refs.Store(1)
	return h
}

// close closes the database; nobody retains it any more.
func (h *handle) close() error {
	<-h.idle
	h.readers.clear()
	return h.db.Close()
}

// retain reports false where the handle is past use.
func (h *handle) retain() bool {
	for {
		n := h.refs.Load()
		if n == 0 {
			return false
		}
		if h.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (h *handle) release() {
	if h.refs.Add(-1) == 0 {
		close(h.idle)
	}
}

// blockCache holds blocks of tables as they are once decompressed, in bytes: some for keys that are looked up again before
// authapi has them in its own cache, and for what rules read while a batch is applied.
const blockCache = 16 << 20

// openDB opens one database directory with settings for some million small records.
func openDB(dir string, logger *slog.Logger) (*badger.DB, error) {
	opts := badger.DefaultOptions(dir)
	opts.Logger = badgerLogger{logger}
	opts.MetricsEnabled = false
	opts.DetectConflicts = false     // one writer
	opts.MemTableSize = memtableSize // never less: a memtable that a larger setting left on the disk would not fit, and end the process
	opts.NumMemtables = 2
	opts.TableSizeMultiplier = 1 // a table in the making takes several times its size in memory, and some are at a time
	opts.NumCompactors = 2
	opts.NumGoroutines = 2
	// Tables are mapped files, and all of them are in memory after an import or a snapshot: half the size is half the memory.
	opts.Compression = options.Snappy
	opts.BlockCacheSize = blockCache
	opts.IndexCacheSize = 0
	opts.ValueLogFileSize = 32 << 20 // holds values above 1 MiB only, of which there are none
	opts.NumVersionsToKeep = 1
	// Apply's durability comes from the Raft log; see Sync before snapshots and the RUNNING file.
	opts.SyncWrites = false
	db, err := badger.Open(opts)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	return db, nil
}

// badgerLogger passes warnings and errors on; Badger's informational lines are debug lines here.
type badgerLogger struct{ logger *slog.Logger }

func (l badgerLogger) Errorf(format string, args ...any) {
	l.logger.Error("badger", "text", strings.TrimSpace(fmt.Sprintf(format, args...)))
}

// Warningf leaves what Badger says of its caches to debug: that of blocks is small on purpose, and a backup reads past it.
func (l badgerLogger) Warningf(format string, args ...any) {
	if strings.Contains(format, "might be too small") || strings.HasPrefix(format, "Cache life expectancy") {
		l.Infof(format, args...)
		return
	}
	l.logger.Warn("badger", "text", strings.TrimSpace(fmt.Sprintf(format, args...)))
}

func (l badgerLogger) Infof(format string, args ...any) {
	l.logger.Debug("badger", "text", strings.TrimSpace(fmt.Sprintf(format, args...)))
}

func (l badgerLogger) Debugf(string, ...any) {}

// syncDatabase makes everything written so far survive a power loss. db.Sync alone covers only the active memtable's
// log: one that is being flushed at this moment has neither a synced log nor a table yet.
func syncDatabase(db *badger.DB, dir string) error {
	if err := db.Sync(); err != nil {
		return fmt.Errorf("sync database: %w", err)
	}
	return syncFiles(dir)
}

// syncFiles syncs every file of a directory and the directory itself. A file that vanishes meanwhile was replaced by a
// synced one.
func syncFiles(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", filepath.Base(dir), err)
	}
	for _, entry := range entries {
		if !entry.Type().IsRegular() {
			continue
		}
		if err := syncPath(filepath.Join(dir, entry.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("sync %s: %w", entry.Name(), err)
		}
	}
	if err := syncPath(dir); err != nil {
		return fmt.Errorf("sync %s: %w", filepath.Base(dir), err)
	}
	return nil
}

func syncPath(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

// writeFile replaces a file by another content, complete or not at all, and durably.
func writeFile(path, content string) error {
	temporary := path + ".tmp"
	file, err := os.OpenFile(temporary, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteString(content)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	return syncPath(filepath.Dir(path))
}

// readCurrent returns the name of the database directory in use, "" where there is none yet.
func readCurrent(dir string) (string, error) {
	content, err := os.ReadFile(filepath.Join(dir, currentFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	name := strings.TrimSpace(string(content))
	if _, ok := dbNumber(name); !ok {
		return "", fmt.Errorf("%s names %q, which is no database directory", currentFile, name)
	}
	return name, nil
}

func dbName(number uint64) string { return fmt.Sprintf("%s%06d", dbPrefix, number) }

func dbNumber(name string) (uint64, bool) {
	digits, ok := strings.CutPrefix(name, dbPrefix)
	if !ok {
		return 0, false
	}
	number, err := strconv.ParseUint(digits, 10, 64)
	return number, err == nil
}

// removeStale deletes the database directories that a restore began and did not finish, or left behind.
func removeStale(dir, current string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if _, ok := dbNumber(entry.Name()); ok && entry.Name() != current {
			if err := os.RemoveAll(filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// nextDB is the directory for a new database: a name that no directory has.
func nextDB(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	var highest uint64
	for _, entry := range entries {
		if number, ok := dbNumber(entry.Name()); ok {
			highest = max(highest, number)
		}
	}
	return dbName(highest + 1), nil
}

// bootID tells one run of the operating system from another; "" where it can't be read.
func bootID() string {
	content, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(content))
}

// waiters lets goroutines wait for an index.
type waiters struct {
	mu      sync.Mutex
	waiting map[chan struct{}]uint64
}

func (w *waiters) add(index uint64) chan struct{} {
	done := make(chan struct{})
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting == nil {
		w.waiting = make(map[chan struct{}]uint64)
	}
	w.waiting[done] = index
	return done
}

func (w *waiters) remove(done chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.waiting, done)
}

func (w *waiters) wake(index uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for done, wanted := range w.waiting {
		if wanted <= index {
			close(done)
			delete(w.waiting, done)
		}
	}
}
