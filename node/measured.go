package node

import (
	"io"
	"time"

	"github.com/hashicorp/raft"

	"sluice/authapi/histogram"
)

// raftTimes is how long Raft's work on this node's disk takes. The state reads no clock, and Raft tells of its times only to a sink that
// all nodes of a process share; so they are taken where Raft calls.
type raftTimes struct {
	appends, applies, snapshots, restores *histogram.Histogram
}

func newRaftTimes() *raftTimes {
	return &raftTimes{
		appends: histogram.New(histogram.SlowBounds), applies: histogram.New(histogram.SlowBounds),
		snapshots: histogram.New(histogram.SlowBounds), restores: histogram.New(histogram.SlowBounds),
	}
}

// since counts what began at began and ends now.
func since(h *histogram.Histogram, began time.Time) { h.Observe(0, time.Since(began)) }

// measuredFSM is the state, timed.
type measuredFSM struct {
	watchedState
	times *raftTimes
}

var (
	_ raft.BatchingFSM        = measuredFSM{}
	_ raft.ConfigurationStore = measuredFSM{}
)

// Apply implements raft.FSM.
func (f measuredFSM) Apply(entry *raft.Log) any {
	defer since(f.times.applies, time.Now())
	return f.watchedState.Apply(entry)
}

// ApplyBatch implements raft.BatchingFSM.
func (f measuredFSM) ApplyBatch(entries []*raft.Log) []any {
	defer since(f.times.applies, time.Now())
	return f.watchedState.ApplyBatch(entries)
}

// Snapshot implements raft.FSM. What takes long is to write it.
func (f measuredFSM) Snapshot() (raft.FSMSnapshot, error) {
	s, err := f.watchedState.Snapshot()
	if err != nil {
		return nil, err
	}
	return measuredSnapshot{s, f.times}, nil
}

// Restore implements raft.FSM.
func (f measuredFSM) Restore(source io.ReadCloser) error {
	defer since(f.times.restores, time.Now())
	return f.watchedState.Restore(source)
}

type measuredSnapshot struct {
	raft.FSMSnapshot
	times *raftTimes
}

// Persist implements raft.FSMSnapshot.
func (s measuredSnapshot) Persist(sink raft.SnapshotSink) error {
	defer since(s.times.snapshots, time.Now())
	return s.FSMSnapshot.Persist(sink)
}

// measuredLog is the log store, timed where it writes entries: each such write ends with an fsync.
type measuredLog struct {
	watchedLog
	times *raftTimes
}

var _ raft.MonotonicLogStore = measuredLog{}

// StoreLog implements raft.LogStore.
func (l measuredLog) StoreLog(entry *raft.Log) error {
	defer since(l.times.appends, time.Now())
	return l.watchedLog.StoreLog(entry)
}

// StoreLogs implements raft.LogStore.
func (l measuredLog) StoreLogs(entries []*raft.Log) error {
	defer since(l.times.appends, time.Now())
	return l.watchedLog.StoreLogs(entries)
}
