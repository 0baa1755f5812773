// Package logstore keeps Raft's log and its stable values (term, vote) durably in one bbolt file.
//
// Start with [Open]; the [Store] is a raft.LogStore, raft.StableStore and raft.MonotonicLogStore. What it guarantees: an
// append or a Set that returned nil survives a crash of the process and of the machine; every value read back is the
// one that was written, since each carries a checksum; and after the first write that failed, no other is tried,
// because a sync that fails once may "succeed" the next time without having written anything. Such a failure ends the
// process through Config.Fatal; the next start reads what is really there.
//
// DESIGN.md says why bbolt.
package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

var (
	_ raft.LogStore          = (*Store)(nil)
	_ raft.StableStore       = (*Store)(nil)
	_ raft.MonotonicLogStore = (*Store)(nil)
)

var (
	// ErrCorrupt: the file is not what was written to it. The node's log is lost: it must be removed from the cluster
	// and join again with a new id.
	ErrCorrupt = errors.New("raft log is corrupt")
	// ErrPoisoned: an earlier write failed, so this one was not tried. Not retryable without a restart.
	ErrPoisoned = errors.New("raft log store has failed")
	// ErrNoSpace: an append was refused before anything was written, since the disk has no room for it. Retryable.
	ErrNoSpace = errors.New("no space for the raft log")
	// ErrLocked: another process has the file open.
	ErrLocked = errors.New("raft log is in use by another process")
	// ErrNotFound is Get's answer for a missing key. Raft compares the text.
	ErrNotFound = errors.New("not found")
)

const (
	lockTimeout = 2 * time.Second
	// A file is rewritten at Open when it is this large and more than half of it is free: bbolt's files never shrink.
	compactSize = 16 << 20
	compactTx   = 1 << 20
	// letGoAfter is how many bytes of entries, appended or read, may stay in memory as pages of the mapping.
	letGoAfter = 64 << 20
)

var (
	bucketLog    = []byte("log")
	bucketStable = []byte("stable")
)

// Config is what Open needs.
type Config struct {
	// Path of the file; it is made where it does not exist, its directory is not.
	Path string
	// Logger; nil: slog.Default().
	Logger *slog.Logger
	// Fatal ends the process after the first failed write. It is called once. nil: log the error and os.Exit(3). If it
	// returns (in a test), the store refuses everything with ErrPoisoned.
	Fatal func(error)
	// Room is asked before each append; its error refuses the append with ErrNoSpace. nil: the disk's own limit alone.
	Room func() error

	reserve  func(*os.File, int64) error                      // reserveBlocks, but for tests
	openFile func(string, int, os.FileMode) (*os.File, error) // os.OpenFile, but for tests
	commit   func(*bbolt.Tx) error                            // Tx.Commit, but for tests
}

// Store is an open log. Safe for concurrent use.
type Store struct {
	db       *bbolt.DB
	config   Config
	pageSize int64 // of the file: bbolt's own say of it is not safe beside a writer

	touched  atomic.Int64 // bytes of entries, since the mapping's pages were let go of
	reserved reservation  // bbolt lets one writer in at a time; it guards this

	poison   atomic.Pointer[error]
	failOnce sync.Once
	closing  sync.Once
	ended    error
}

// Open opens the log, or makes an empty one, and reads all of it: an entry that is missing in the middle or does not
// match its checksum is found now, not when Raft needs it. Errors: ErrCorrupt, ErrLocked, the file system's.
func Open(config Config) (*Store, error) {
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	if config.Fatal == nil {
		logger := config.Logger
		config.Fatal = func(err error) {
			logger.Error("raft log store failed, ending the process", "error", err)
			os.Exit(3)
		}
	}
	if config.commit == nil {
		config.commit = (*bbolt.Tx).Commit
	}
	if config.reserve == nil {
		config.reserve = reserveBlocks
	}
	s := &Store{config: config}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("open raft log %s: %w", filepath.Base(config.Path), err)
	}
	return s, nil
}

func (s *Store) open() error {
	// What a crash left of a file that was being made.
	if err := os.Remove(s.temporary()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	info, err := os.Stat(s.config.Path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if err := s.create(); err != nil {
			return fmt.Errorf("create: %w", err)
		}
	case err != nil:
		return err
	case info.Size() == 0: // bbolt would begin a new log in it
		return fmt.Errorf("%w: the file is empty", ErrCorrupt)
	}
	db, err := s.openOwn()
	if err != nil {
		return err
	}
	if err := checkMeta(s.config.Path); err != nil {
		return errors.Join(err, db.Close())
	}
	if db, err = s.compact(db); err != nil {
		return err
	}
	s.db, s.pageSize = db, int64(db.Info().PageSize)
	if err := s.verify(); err != nil {
		return errors.Join(err, db.Close())
	}
	s.letGo()
	return nil
}

// create makes an empty log under another name first: a file under its own name is complete from the beginning.
func (s *Store) create() error {
	db, err := openFile(s.temporary(), nil)
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketLog, bucketStable} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, db.Sync(), db.Close()); err != nil {
		return err
	}
	return s.install()
}

// install gives the file under the temporary name, complete and synced, its own.
func (s *Store) install() error {
	if err := os.Rename(s.temporary(), s.config.Path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(s.config.Path))
}

func (s *Store) temporary() string { return s.config.Path + ".new" }

// openFile opens bbolt. Where the file is garbled, bbolt panics or reads outside of its mapping; both become ErrCorrupt.
func openFile(path string, open func(string, int, os.FileMode) (*os.File, error)) (db *bbolt.DB, err error) {
	defer corruptOnPanic(&err)()
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:        lockTimeout,
		NoFreelistSync: true, // else every commit writes the whole list of free pages
		FreelistType:   bbolt.FreelistMapType,
		OpenFile:       open,
	})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, ErrLocked
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrVersionMismatch), errors.Is(err, bolterrors.ErrChecksum):
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return db, err
}

// corruptOnPanic turns a panic, a fault in the file's mapping included, into ErrCorrupt. Call it and defer what it returns.
func corruptOnPanic(err *error) func() {
	before := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(before)
		if r := recover(); r != nil {
			*err = fmt.Errorf("%w: %v", ErrCorrupt, r)
		}
	}
}

// compact rewrites a file that is mostly free space. The old one is replaced when the new one is complete and synced.
func (s *Store) compact(db *bbolt.DB) (*bbolt.DB, error) {
	info, err := os.Stat(s.config.Path)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	free := int64(db.Stats().FreePageN) * int64(db.Info().PageSize)
	if info.Size() < compactSize || free*2 < info.Size() {
		return db, nil
	}
	if err := s.copyTo(s.temporary(), db); errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		s.config.Logger.Warn("no space to compact the raft log", "file_bytes", info.Size(), "free_bytes", free)
		return db, os.Remove(s.temporary())
	} else if err != nil {
		return nil, errors.Join(fmt.Errorf("compact: %w", err), db.Close())
	}
	if err := db.Close(); err != nil {
		return nil, err
	}
	if err := s.install(); err != nil {
		return nil, err
	}
	s.config.Logger.Info("raft log compacted", "before_bytes", info.Size(), "free_bytes", free)
	return s.openOwn()
}

// openOwn opens the log's file and keeps hold of what bbolt has open, to reserve space in.
func (s *Store) openOwn() (*bbolt.DB, error) {
	open := s.config.openFile
	if open == nil {
		open = os.OpenFile
	}
	return openFile(s.config.Path, func(path string, flag int, mode os.FileMode) (*os.File, error) {
		f, err := open(path, flag, mode)
		s.reserved = reservation{file: f}
		return f, err
	})
}

func (s *Store) copyTo(path string, db *bbolt.DB) (err error) {
	defer corruptOnPanic(&err)()
	target, err := openFile(path, s.config.openFile)
	if err != nil {
		return err
	}
	return errors.Join(bbolt.Compact(target, db, compactTx), target.Sync(), target.Close())
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// verify reads everything once.
func (s *Store) verify() (err error) {
	defer corruptOnPanic(&err)()
	return s.db.View(func(tx *bbolt.Tx) error {
		if tx.Bucket(bucketLog) == nil || tx.Bucket(bucketStable) == nil {
			return fmt.Errorf("%w: a bucket is missing", ErrCorrupt)
		}
		var next uint64
		err := tx.Bucket(bucketLog).ForEach(func(key, value []byte) error {
			if len(key) != 8 {
				return fmt.Errorf("%w: key of %d bytes", ErrCorrupt, len(key))
			}
			index := binary.BigEndian.Uint64(key)
			if next != 0 && index != next {
				return fmt.Errorf("%w: entry %d after %d", ErrCorrupt, index, next-1)
			}
			next = index + 1
			return decodeEntry(index, value, nil)
		})
		if err != nil {
			return err
		}
		return tx.Bucket(bucketStable).ForEach(func(key, value []byte) error {
			_, err := decodeStable(key, value)
			return err
		})
	})
}

// IsMonotonic tells Raft to drop the old log when a snapshot supersedes it, so that the log never has a gap.
func (s *Store) IsMonotonic() bool { return true }

// Close waits for the transaction at work and closes the file. Idempotent.
func (s *Store) Close() error {
	s.closing.Do(func() {
		if err := s.db.Close(); err != nil {
			s.ended = fmt.Errorf("close raft log: %w", err)
		}
	})
	return s.ended
}

// Size is the file's size and how much of it is free, in bytes.
func (s *Store) Size() (file, free int64) {
	if info, err := os.Stat(s.config.Path); err == nil {
		file = info.Size()
	}
	stats := s.db.Stats()
	return file, int64(stats.FreePageN+stats.PendingPageN) * s.pageSize
}

// write runs fn in one durable transaction. The first failure poisons the store, but for ErrNoSpace, of which fn knows
// before it writes.
func (s *Store) write(operation string, fn func(*bbolt.Tx) error) error {
	if cause := s.poison.Load(); cause != nil {
		return fmt.Errorf("%s: %w: %w", operation, ErrPoisoned, *cause)
	}
	err := s.update(fn)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s: %w", operation, err)
	if errors.Is(err, ErrNoSpace) {
		return err
	}
	s.poison.CompareAndSwap(nil, &err)
	s.failOnce.Do(func() { s.config.Fatal(err) })
	return err
}

func (s *Store) update(fn func(*bbolt.Tx) error) (err error) {
	defer corruptOnPanic(&err)()
	tx, err := s.db.Begin(true)
	if err != nil {
		return err
	}
	done := false
	defer func() {
		if !done {
			// After a commit that failed there is nothing to roll back; bbolt says so, and nobody needs to know.
			_ = tx.Rollback()
		}
	}()
	if cause := s.poison.Load(); cause != nil {
		return *cause // it failed while this one waited for its turn
	}
	if err := fn(tx); err != nil {
		return err
	}
	if err := s.config.commit(tx); err != nil {
		return err
	}
	done = true
	return nil
}

// view runs fn on one moment of the file.
func (s *Store) view(fn func(*bbolt.Tx) error) (err error) {
	defer corruptOnPanic(&err)()
	return s.db.View(fn)
}

// FirstIndex is the index of the oldest entry, 0 where there is none.
func (s *Store) FirstIndex() (index uint64, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		if key, _ := tx.Bucket(bucketLog).Cursor().First(); key != nil {
			index = binary.BigEndian.Uint64(key)
		}
		return nil
	})
	return index, err
}

// LastIndex is the index of the newest entry, 0 where there is none.
func (s *Store) LastIndex() (index uint64, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		index = lastIndex(tx)
		return nil
	})
	return index, err
}

func lastIndex(tx *bbolt.Tx) uint64 {
	key, _ := tx.Bucket(bucketLog).Cursor().Last()
	if key == nil {
		return 0
	}
	return binary.BigEndian.Uint64(key)
}

// GetLog fills log with the entry at index. Errors: raft.ErrLogNotFound, ErrCorrupt.
func (s *Store) GetLog(index uint64, log *raft.Log) error {
	size := 0
	err := s.view(func(tx *bbolt.Tx) error {
		value := tx.Bucket(bucketLog).Get(logKey(index))
		if value == nil {
			return raft.ErrLogNotFound
		}
		size = len(value)
		return decodeEntry(index, value, log)
	})
	s.touch(size)
	return err
}

// touch counts bytes of entries that were in the mapping, and lets go of its pages now and then.
func (s *Store) touch(size int) {
	if s.touched.Add(int64(size)) >= letGoAfter {
		s.touched.Store(0)
		s.letGo()
	}
}

// StoreLog is StoreLogs of one entry.
func (s *Store) StoreLog(log *raft.Log) error { return s.StoreLogs([]*raft.Log{log}) }

// StoreLogs appends consecutive entries; when it returns nil they are on disk. Entries that begin above the log's end
// replace it: that happens where the process died after a snapshot was taken over and before Raft dropped the log
// that it superseded. Errors: ErrNoSpace, with which nothing has happened; ErrPoisoned; after any other the store is poisoned.
func (s *Store) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	size := 0
	err := s.write("append to raft log", func(tx *bbolt.Tx) error {
		if err := s.makeRoom(tx.Size(), logs); err != nil {
			return err
		}
		last := lastIndex(tx)
		if last != 0 && logs[0].Index > last+1 {
			s.config.Logger.Warn("raft log superseded by a snapshot", "last_index", last, "next_index", logs[0].Index)
			if _, err := deleteRange(tx, 0, last, math.MaxInt); err != nil {
				return err
			}
		}
		bucket := tx.Bucket(bucketLog)
		bucket.FillPercent = 0.95 // entries only come at the end, so pages are not split again
		for i, log := range logs {
			if log.Index == 0 || log.Index != logs[0].Index+uint64(i) {
				return fmt.Errorf("entry %d is out of order after %d", log.Index, logs[0].Index)
			}
			value := encodeEntry(log)
			size += len(value)
			if err := bucket.Put(logKey(log.Index), value); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.touch(size) // the next append looks at the end of this one
	return nil
}

// Set stores a value; when it returns nil it is on disk.
func (s *Store) Set(key, value []byte) error {
	return s.write("write raft state", func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketStable).Put(key, encodeStable(key, value))
	})
}

// Get returns a copy of a value. Errors: ErrNotFound, ErrCorrupt.
func (s *Store) Get(key []byte) (value []byte, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		stored := tx.Bucket(bucketStable).Get(key)
		if stored == nil {
			return ErrNotFound
		}
		value, err = decodeStable(key, stored)
		return err
	})
	return value, err
}

// SetUint64 is Set of a number.
func (s *Store) SetUint64(key []byte, value uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

// GetUint64 is Get of a number. Errors: ErrNotFound, ErrCorrupt.
func (s *Store) GetUint64(key []byte) (uint64, error) {
	value, err := s.Get(key)
	if err != nil {
		return 0, err
	}
	if len(value) != 8 {
		return 0, fmt.Errorf("%w: %q is not a number", ErrCorrupt, key)
	}
	return binary.BigEndian.Uint64(value), nil
}
