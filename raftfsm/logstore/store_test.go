package logstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"

	"sluice/raftfsm/logstore"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func open(t testing.TB, path string) *logstore.Store {
	t.Helper()
	s, err := logstore.Open(logstore.Config{Path: path, Logger: quiet(), Fatal: func(err error) { t.Errorf("fatal: %v", err) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// entry is a log entry whose content follows from its index.
func entry(index uint64) *raft.Log {
	return &raft.Log{
		Index:      index,
		Term:       1 + index/100,
		Type:       raft.LogType(index % 3),
		Data:       bytes.Repeat([]byte{byte(index)}, int(index*37%2000)+1),
		Extensions: bytes.Repeat([]byte{byte(index), 7}, int(index%3)),
		AppendedAt: time.Unix(1_700_000_000, int64(index)),
	}
}

func entries(from, to uint64) (logs []*raft.Log) {
	for index := from; index <= to; index++ {
		logs = append(logs, entry(index))
	}
	return logs
}

func same(got, want *raft.Log) bool {
	a, b := *got, *want
	sameTime := a.AppendedAt.Equal(b.AppendedAt)
	a.AppendedAt, b.AppendedAt = time.Time{}, time.Time{}
	if len(b.Extensions) == 0 {
		b.Extensions = nil
	}
	return sameTime && reflect.DeepEqual(a, b)
}

func check(t testing.TB, s *logstore.Store, first, last uint64) {
	t.Helper()
	gotFirst, err := s.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	gotLast, err := s.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	if gotFirst != first || gotLast != last {
		t.Fatalf("log from %d to %d, want %d to %d", gotFirst, gotLast, first, last)
	}
	for index := first; index <= last && index != 0; index++ {
		var log raft.Log
		if err := s.GetLog(index, &log); err != nil {
			t.Fatalf("entry %d: %v", index, err)
		}
		if !same(&log, entry(index)) {
			t.Fatalf("entry %d: got %+v, want %+v", index, log, entry(index))
		}
	}
}

func TestStore_Log(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "raft.db")
	s := open(t, path)
	check(t, s, 0, 0)
	if err := s.GetLog(1, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("missing entry: %v", err)
	}
	steps := []struct {
		name        string
		do          func() error
		first, last uint64
	}{
		{"append", func() error { return s.StoreLogs(entries(1, 50)) }, 1, 50},
		{"append one", func() error { return s.StoreLog(entry(51)) }, 1, 51},
		{"append none", func() error { return s.StoreLogs(nil) }, 1, 51},
		{"drop the beginning", func() error { return s.DeleteRange(1, 20) }, 21, 51},
		{"drop the end", func() error { return s.DeleteRange(41, 51) }, 21, 40},
		{"append again", func() error { return s.StoreLogs(entries(41, 300)) }, 21, 300},
		{"after a snapshot", func() error { return s.StoreLogs(entries(1000, 1010)) }, 1000, 1010},
		{"drop all", func() error { return s.DeleteRange(1000, 1010) }, 0, 0},
		{"begin anywhere", func() error { return s.StoreLogs(entries(5000, 5100)) }, 5000, 5100},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		check(t, s, step.first, step.last)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	check(t, open(t, path), 5000, 5100)
}

func TestStore_Stable(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "raft.db")
	s := open(t, path)
	if _, err := s.Get([]byte("none")); err == nil || err.Error() != "not found" {
		t.Errorf("raft looks for the text %q: got %v", "not found", err)
	}
	if _, err := s.GetUint64([]byte("none")); err == nil || err.Error() != "not found" {
		t.Errorf("raft looks for the text %q: got %v", "not found", err)
	}
	if err := s.Set([]byte("vote"), []byte("node")); err != nil {
		t.Fatal(err)
	}
	if err := s.Set([]byte("empty"), nil); err != nil {
		t.Fatal(err)
	}
	if err := s.SetUint64([]byte("term"), 7); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	if value, err := s.Get([]byte("vote")); err != nil || string(value) != "node" {
		t.Errorf("vote %q, %v", value, err)
	}
	if value, err := s.Get([]byte("empty")); err != nil || len(value) != 0 {
		t.Errorf("empty %q, %v", value, err)
	}
	if value, err := s.GetUint64([]byte("term")); err != nil || value != 7 {
		t.Errorf("term %d, %v", value, err)
	}
	if _, err := s.GetUint64([]byte("vote")); !errors.Is(err, logstore.ErrCorrupt) {
		t.Errorf("a number that is none: %v", err)
	}
}

// A damaged meta page must not bring back the file as it was one commit ago.
func TestOpen_DamagedMeta(t *testing.T) {
	t.Parallel()
	for page := range 2 {
		path := filepath.Join(t.TempDir(), "raft.db")
		s := open(t, path)
		for index := uint64(1); index <= 4; index++ {
			if err := s.StoreLog(entry(index)); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data[page*os.Getpagesize()+16+48] ^= 1
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := logstore.Open(logstore.Config{Path: path, Logger: quiet()}); !errors.Is(err, logstore.ErrCorrupt) {
			t.Errorf("meta page %d: got %v, want ErrCorrupt", page, err)
		}
	}
	empty := filepath.Join(t.TempDir(), "raft.db")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := logstore.Open(logstore.Config{Path: empty, Logger: quiet()}); !errors.Is(err, logstore.ErrCorrupt) {
		t.Errorf("an emptied file: got %v, want ErrCorrupt", err)
	}
}

func TestOpen_Locked(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "raft.db")
	open(t, path)
	if _, err := logstore.Open(logstore.Config{Path: path, Logger: quiet()}); !errors.Is(err, logstore.ErrLocked) {
		t.Errorf("got %v, want ErrLocked", err)
	}
}

// After one failed write nothing is tried again, and the process ends once.
func TestWrite_FirstFailurePoisons(t *testing.T) {
	t.Parallel()
	for name, write := range map[string]func(*logstore.Store) error{
		"append": func(s *logstore.Store) error { return s.StoreLogs(entries(4, 6)) },
		"delete": func(s *logstore.Store) error { return s.DeleteRange(1, 2) },
		"set":    func(s *logstore.Store) error { return s.SetUint64([]byte("term"), 2) },
		"panic":  func(s *logstore.Store) error { return s.Set([]byte("panic"), nil) },
		"gap":    func(s *logstore.Store) error { return s.StoreLogs([]*raft.Log{entry(4), entry(6)}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "raft.db")
			var broken atomic.Bool
			var commits, fatals atomic.Int64
			failure := errors.New("input/output error")
			s, err := logstore.Open(logstore.WithCommit(logstore.Config{Path: path, Logger: quiet(), Fatal: func(error) { fatals.Add(1) }}, func(tx *bbolt.Tx) error {
				commits.Add(1)
				switch {
				case !broken.Load() || name == "gap":
					return tx.Commit()
				case name == "panic":
					panic("mapping failed")
				}
				return failure
			}))
			if err != nil {
				t.Fatal(err)
			}
			if err := s.StoreLogs(entries(1, 3)); err != nil {
				t.Fatal(err)
			}
			broken.Store(true)
			if err := write(s); err == nil {
				t.Fatal("a failed write was reported as done")
			}
			broken.Store(false)
			before := commits.Load()
			var callers sync.WaitGroup
			for range 8 {
				callers.Go(func() {
					if err := s.StoreLog(entry(4)); !errors.Is(err, logstore.ErrPoisoned) {
						t.Errorf("after a failed write: %v", err)
					}
					if err := s.Set([]byte("k"), nil); !errors.Is(err, logstore.ErrPoisoned) {
						t.Errorf("after a failed write: %v", err)
					}
				})
			}
			callers.Wait()
			if commits.Load() != before || fatals.Load() != 1 {
				t.Errorf("%d commits after the failure, %d fatal calls, want 0 and 1", commits.Load()-before, fatals.Load())
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			check(t, open(t, path), 1, 3)
		})
	}
}

// A file that can't be written any more: bbolt's own error path, not a replaced commit.
func TestWrite_ReadOnlyFileIsFatal(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "raft.db")
	open(t, path).Close()
	var descriptor *os.File
	var fatals atomic.Int64
	s, err := logstore.Open(logstore.WithOpenFile(logstore.Config{Path: path, Logger: quiet(), Fatal: func(error) { fatals.Add(1) }}, func(name string, flag int, mode os.FileMode) (*os.File, error) {
		file, err := os.OpenFile(name, flag, mode)
		descriptor = file
		return file, err
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	readOnly, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer readOnly.Close()
	// From now on every write to the store's descriptor fails with EBADF.
	if err := syscall.Dup3(int(readOnly.Fd()), int(descriptor.Fd()), syscall.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if err := s.StoreLogs(entries(1, 3)); err == nil || fatals.Load() != 1 {
		t.Errorf("append: %v, %d fatal calls", err, fatals.Load())
	}
}

// The file is rewritten at a start when most of it is free, and holds the same.
func TestOpen_Compacts(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "raft.db")
	s := open(t, path)
	big := make([]byte, 60_000)
	for index := uint64(1); index <= 500; index += 50 {
		var logs []*raft.Log
		for i := index; i < index+50; i++ {
			logs = append(logs, &raft.Log{Index: i, Term: 1, Data: big})
		}
		if err := s.StoreLogs(logs); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.DeleteRange(1, 500); err != nil {
		t.Fatal(err)
	}
	if err := s.StoreLogs(entries(501, 520)); err != nil {
		t.Fatal(err)
	}
	if err := s.SetUint64([]byte("term"), 9); err != nil {
		t.Fatal(err)
	}
	before, free := s.Size()
	if before < 16<<20 || free*2 < before {
		t.Fatalf("%d bytes, %d free: nothing to compact", before, free)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", []byte("left behind by a crash"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	check(t, s, 501, 520)
	if term, err := s.GetUint64([]byte("term")); err != nil || term != 9 {
		t.Errorf("term %d, %v", term, err)
	}
	if after, _ := s.Size(); after > 1<<20 {
		t.Errorf("%d bytes after compaction of %d", after, before)
	}
}

// hashicorp/raft runs on it.
func TestStore_WithRaft(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "raft.db")
	snapshots := raft.NewInmemSnapshotStore()
	for round := range 3 {
		s := open(t, path)
		address, transport := raft.NewInmemTransport("")
		config := raft.DefaultConfig()
		config.LocalID, config.LogOutput, config.NoLegacyTelemetry = "node", discard{}, true
		config.HeartbeatTimeout, config.ElectionTimeout, config.LeaderLeaseTimeout = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
		if round == 0 {
			if err := raft.BootstrapCluster(config, s, s, snapshots, transport, raft.Configuration{Servers: []raft.Server{{ID: "node", Address: address}}}); err != nil {
				t.Fatal(err)
			}
		}
		fsm := &raft.MockFSM{}
		r, err := raft.NewRaft(config, fsm, s, s, snapshots, transport)
		if err != nil {
			t.Fatal(err)
		}
		deadline := time.After(20 * time.Second)
		for r.State() != raft.Leader {
			select {
			case <-r.LeaderCh():
			case <-deadline:
				t.Fatalf("no leader: %s", r.State())
			}
		}
		for i := range 20 {
			if err := r.Apply([]byte(fmt.Sprint(round, i)), 0).Error(); err != nil {
				t.Fatal(err)
			}
		}
		if got := len(fsm.Logs()); got != 20*(round+1) {
			t.Errorf("round %d: %d entries applied, want %d", round, got, 20*(round+1))
		}
		if err := r.Shutdown().Error(); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func BenchmarkStoreLogs(b *testing.B) {
	for _, size := range []int{1, 64} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			s := open(b, filepath.Join(b.TempDir(), "raft.db"))
			b.ReportAllocs()
			index := uint64(0)
			for b.Loop() {
				logs := make([]*raft.Log, size)
				for i := range logs {
					index++
					logs[i] = &raft.Log{Index: index, Term: 1, Data: make([]byte, 256)}
				}
				if err := s.StoreLogs(logs); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Much is dropped from the beginning in many transactions, between which others get their turn; a crash between two leaves
// a log that goes on. The end goes in one.
func TestDeleteRange_Steps(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "raft.db")
	var commits, crashAt atomic.Int64
	failure := errors.New("power cut")
	config := logstore.WithCommit(logstore.Config{Path: path, Logger: quiet(), Fatal: func(error) {}}, func(tx *bbolt.Tx) error {
		if commits.Add(1) == crashAt.Load() {
			return errors.Join(failure, tx.Rollback())
		}
		return tx.Commit()
	})
	s, err := logstore.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 60_000)
	var logs []*raft.Log
	for i := uint64(1); i <= 300; i++ {
		logs = append(logs, &raft.Log{Index: i, Term: 1, Data: big})
	}
	if err := s.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
	bounds := func() (first, last uint64) {
		t.Helper()
		first, err := s.FirstIndex()
		if err != nil {
			t.Fatal(err)
		}
		if last, err = s.LastIndex(); err != nil {
			t.Fatal(err)
		}
		return first, last
	}
	commits.Store(0)
	if err := s.DeleteRange(280, 300); err != nil || commits.Load() != 1 {
		t.Errorf("the end: %v in %d transactions, want one", err, commits.Load())
	}
	commits.Store(0)
	crashAt.Store(3)
	if err := s.DeleteRange(1, 270); !errors.Is(err, failure) {
		t.Fatalf("got %v, want %v", err, failure)
	}
	first, last := bounds()
	if first < 100 || first > 200 || last != 279 {
		t.Errorf("from %d to %d after two of some steps", first, last)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	crashAt.Store(0)
	if s, err = logstore.Open(config); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	commits.Store(0)
	if err := s.DeleteRange(first, 270); err != nil || commits.Load() < 2 {
		t.Errorf("the beginning: %v in %d transactions, want some", err, commits.Load())
	}
	if first, last = bounds(); first != 271 || last != 279 {
		t.Errorf("from %d to %d, want 271 to 279", first, last)
	}
}

// TestStore_SizeBesideAWriter is for the race detector: metrics are read while the file grows and is mapped anew.
func TestStore_SizeBesideAWriter(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "log.db"))
	written := make(chan error, 1)
	go func() {
		for i := range uint64(64) {
			log := &raft.Log{Index: i + 1, Term: 1, Data: make([]byte, 64<<10)}
			if err := s.StoreLog(log); err != nil {
				written <- err
				return
			}
		}
		written <- nil
	}()
	for {
		select {
		case err := <-written:
			if err != nil {
				t.Fatal(err)
			}
			if size, _ := s.Size(); size < 64*64<<10 {
				t.Errorf("%d bytes", size)
			}
			return
		default:
			s.Size()
		}
	}
}
