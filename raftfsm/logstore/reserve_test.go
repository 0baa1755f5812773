package logstore_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"

	"sluice/raftfsm/logstore"
)

// An append that the disk has no room for changes nothing and ends nothing, term and vote are written all the same, and the log goes
// on once there is room.
func TestStoreLogs_NoSpace(t *testing.T) {
	t.Parallel()
	full := errors.New("the volume is full")
	for _, test := range []struct {
		name  string
		store func(c logstore.Config, refuse *atomic.Bool) logstore.Config
		cause error
	}{
		{"the node says so", func(c logstore.Config, refuse *atomic.Bool) logstore.Config {
			c.Room = func() error {
				if refuse.Load() {
					return full
				}
				return nil
			}
			return c
		}, full},
		{"the disk says so", func(c logstore.Config, refuse *atomic.Bool) logstore.Config {
			return logstore.WithReserve(c, func(f *os.File, to int64) error {
				if refuse.Load() {
					return syscall.ENOSPC
				}
				return logstore.ReserveBlocks(f, to)
			})
		}, syscall.ENOSPC},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var refuse atomic.Bool
			config := logstore.Config{Path: filepath.Join(t.TempDir(), "log.db"), Logger: quiet(), Fatal: func(err error) { t.Errorf("fatal: %v", err) }}
			s, err := logstore.Open(test.store(config, &refuse))
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}()
			if err := s.StoreLogs(entries(1, 10)); err != nil {
				t.Fatal(err)
			}
			refuse.Store(true)
			// More than has been reserved ahead.
			large := &raft.Log{Index: 11, Data: bytes.Repeat([]byte{1}, 8<<20)}
			if err := s.StoreLog(large); !errors.Is(err, logstore.ErrNoSpace) || !errors.Is(err, test.cause) {
				t.Fatalf("append without room: %v, want %v for %v", err, logstore.ErrNoSpace, test.cause)
			}
			if last, err := s.LastIndex(); err != nil || last != 10 {
				t.Fatalf("the log ends at %d, %v, want 10", last, err)
			}
			if err := s.SetUint64([]byte("CurrentTerm"), 7); err != nil {
				t.Fatalf("term without room: %v", err)
			}
			refuse.Store(false)
			if err := s.StoreLog(large); err != nil {
				t.Fatalf("append with room again: %v", err)
			}
		})
	}
}

// Every block that an append may need is allocated before it begins.
func TestStoreLogs_Reserves(t *testing.T) {
	t.Parallel()
	var reserved int64
	config := logstore.Config{Path: filepath.Join(t.TempDir(), "log.db"), Logger: quiet(), Fatal: func(err error) { t.Errorf("fatal: %v", err) }}
	s, err := logstore.Open(logstore.WithReserve(config, func(f *os.File, to int64) error {
		reserved = to
		return logstore.ReserveBlocks(f, to)
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	for i := uint64(1); i <= 40; i++ {
		data := bytes.Repeat([]byte{byte(i)}, 300<<10)
		before, free := s.Size()
		if err := s.StoreLog(&raft.Log{Index: i, Data: data}); err != nil {
			t.Fatal(err)
		}
		after, _ := s.Size()
		if grown := after > before; grown && reserved < before-free+int64(len(data)) {
			t.Fatalf("entry %d: %d bytes reserved, the file was of %d bytes, %d of them free, and has %d now", i, reserved, before, free, after)
		}
	}
	if reserved < 12<<20 {
		t.Fatalf("%d bytes reserved for 12 MiB of entries", reserved)
	}
}

// A log that is cut as Raft cuts it after each snapshot keeps its size: it is bounded by the entries kept, not by those that were.
func TestStore_SizeBounded(t *testing.T) {
	t.Parallel()
	const threshold, trailing, rounds = 512, 1024, 12
	s := open(t, filepath.Join(t.TempDir(), "log.db"))
	var index uint64
	var settled int64
	for round := range rounds {
		logs := make([]*raft.Log, threshold)
		for i := range logs {
			index++
			logs[i] = &raft.Log{Index: index, Data: bytes.Repeat([]byte{byte(index)}, 400)}
		}
		if err := s.StoreLogs(logs); err != nil {
			t.Fatal(err)
		}
		if index > trailing {
			if err := s.DeleteRange(1, index-trailing); err != nil {
				t.Fatal(err)
			}
		}
		size, _ := s.Size()
		if round == rounds/2 {
			settled = size
		}
		if round > rounds/2 && size > settled {
			t.Fatalf("after %d entries the file has %d bytes, %d before, though %d entries are kept", index, size, settled, trailing)
		}
	}
}
