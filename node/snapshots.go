package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"sluice/node/backup"
)

// snapshotStore is Raft's own store of files, but that what is written to it goes to the disk step by step, so that the log's
// syncs never wait for a whole snapshot's.
type snapshotStore struct {
	raft.SnapshotStore
	dir string
}

// openSnapshots opens the store in a directory.
func openSnapshots(dir string, log hclog.Logger) (*snapshotStore, error) {
	files, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, log)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	return &snapshotStore{files, filepath.Join(dir, "snapshots")}, nil
}

// Create implements raft.SnapshotStore.
func (s *snapshotStore) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration, configurationIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(version, index, term, configuration, configurationIndex, trans)
	if err != nil {
		return nil, err
	}
	// Raft keeps its own handle of the file to itself; syncing any of them syncs the file.
	file, err := os.Open(filepath.Join(s.dir, sink.ID()+".tmp", "state.bin"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open snapshot: %w", err), sink.Cancel())
	}
	syncing := &syncedSink{SnapshotSink: sink, file: file}
	return &pacedSink{syncing, backup.Paced{File: syncing}}, nil
}

// pacedSink is a snapshot in the making that is synced as it grows.
type pacedSink struct {
	*syncedSink
	pace backup.Paced
}

// Write implements io.Writer.
func (s *pacedSink) Write(data []byte) (int, error) { return s.pace.Write(data) }

// syncedSink is one that can be synced. Raft ends a sink more than once where something fails.
type syncedSink struct {
	raft.SnapshotSink
	file  *os.File
	ended bool
}

// Sync makes what was written so far, but for what the sink still buffers, survive a crash of the machine.
func (s *syncedSink) Sync() error { return s.file.Sync() }

// Close implements raft.SnapshotSink.
func (s *syncedSink) Close() error { return s.end(s.SnapshotSink.Close()) }

// Cancel implements raft.SnapshotSink.
func (s *syncedSink) Cancel() error { return s.end(s.SnapshotSink.Cancel()) }

func (s *syncedSink) end(err error) error {
	if s.ended {
		return err
	}
	s.ended = true
	return errors.Join(err, s.file.Close())
}
