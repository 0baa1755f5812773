package node

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"sluice/raftfsm"
	"sluice/raftfsm/logstore"
)

// applyPatience is how many times as long as an append a batch of entries may take to apply: it waits for Badger, whose writes are held
// up while tables are written, on every node alike.
const applyPatience = 5

// operations are the writes of one kind that are under way, and how long those took that ended. Safe for concurrent use.
type operations struct {
	mu      sync.Mutex
	next    uint64
	began   map[uint64]time.Time
	suspect uint64 // the operation that was too old at the last look, plus one

	buckets [len(appendBounds) + 1]atomic.Uint64
	nanos   atomic.Int64
}

// appendBounds are the histogram's, in seconds.
var appendBounds = [...]float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}

// begin notes that one begins; what it returns, that it has ended.
func (o *operations) begin() (end func()) {
	now := time.Now()
	o.mu.Lock()
	id := o.next
	o.next++
	if o.began == nil {
		o.began = make(map[uint64]time.Time)
	}
	o.began[id] = now
	o.mu.Unlock()
	return func() {
		took := time.Since(now)
		o.mu.Lock()
		delete(o.began, id)
		o.mu.Unlock()
		o.nanos.Add(int64(took))
		at := 0
		for at < len(appendBounds) && took.Seconds() > appendBounds[at] {
			at++
		}
		o.buckets[at].Add(1)
	}
}

// longest is the age of the oldest under way, 0 for none.
func (o *operations) longest(now time.Time) (age time.Duration, id uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, began := range o.began {
		if a := now.Sub(began); a > age {
			age, id = a, i
		}
	}
	return age, id
}

// stalled is the age of one that has taken longer than bound at two looks in a row, 0 for none: after a pause of the whole process
// every one looks old once.
func (o *operations) stalled(now time.Time, bound time.Duration) time.Duration {
	age, id := o.longest(now)
	if age <= bound {
		o.suspect = 0
		return 0
	}
	if o.suspect != id+1 {
		o.suspect = id + 1
		return 0
	}
	return age
}

// noteStalls looks for operations that have taken too long. One goroutine calls it.
func (s *storage) noteStalls(now time.Time) {
	bound := time.Duration(s.config.AppendTimeout)
	appending, applying := s.appends.stalled(now, bound), s.applies.stalled(now, applyPatience*bound)
	if _, level := s.worst(); level == spaceCritical {
		applying = 0 // it waits for room, which is told as that
	}
	before := s.stall.Load()
	var text string
	switch {
	case appending > 0:
		text = fmt.Sprintf("the raft log's disk has not answered for %s", appending.Round(100*time.Millisecond))
	case applying > 0:
		text = fmt.Sprintf("the state's disk has not answered for %s", applying.Round(100*time.Millisecond))
	default:
		if before != nil {
			s.stall.Store(nil)
			s.log.Info("the disk answers again")
		}
		return
	}
	if s.stall.Store(&text); before == nil {
		s.stalls.Add(1)
	}
}

// fail notes that a store has failed for good; the first error counts.
func (s *storage) fail(err error) {
	if s.failed.CompareAndSwap(nil, &err) {
		s.log.Error("a store has failed: this node stands back until it is started again", "error", err)
	}
}

// LogStore is what Raft keeps its log and its vote in.
type LogStore interface {
	raft.LogStore
	raft.StableStore
}

// watchedLog tells how long its writes take, and of those that fail.
type watchedLog struct {
	LogStore
	storage *storage
}

var _ raft.MonotonicLogStore = watchedLog{}

// IsMonotonic implements raft.MonotonicLogStore.
func (l watchedLog) IsMonotonic() bool {
	m, ok := l.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

// StoreLog implements raft.LogStore.
func (l watchedLog) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

// write runs one, by the clock. An append that was refused for lack of space has touched nothing; after any other error what is on the disk is not known,
// and this node neither leads nor counts as ready before it has read it again, at its next start.
func (l watchedLog) write(fn func() error) error {
	defer l.storage.appends.begin()()
	return l.noted(fn())
}

// noted takes note of a write's error.
func (l watchedLog) noted(err error) error {
	if err != nil && !errors.Is(err, logstore.ErrNoSpace) {
		l.storage.fail(fmt.Errorf("the raft log cannot be written: %w", err))
	}
	return err
}

// StoreLogs implements raft.LogStore.
func (l watchedLog) StoreLogs(logs []*raft.Log) error {
	return l.write(func() error { return l.LogStore.StoreLogs(logs) })
}

// DeleteRange implements raft.LogStore.
func (l watchedLog) DeleteRange(min, max uint64) error {
	// How long it takes says nothing: the log's beginning is dropped in steps, and appends get their turn between them.
	return l.noted(l.LogStore.DeleteRange(min, max))
}

// Set implements raft.StableStore.
func (l watchedLog) Set(key, value []byte) error {
	return l.write(func() error { return l.LogStore.Set(key, value) })
}

// SetUint64 implements raft.StableStore.
func (l watchedLog) SetUint64(key []byte, value uint64) error {
	return l.write(func() error { return l.LogStore.SetUint64(key, value) })
}

// watchedState is the state machine as Raft calls it: it tells how long its writes take, and refuses a snapshot that there is no room for.
type watchedState struct {
	*raftfsm.FSM
	storage *storage
}

var (
	_ raft.BatchingFSM        = watchedState{}
	_ raft.ConfigurationStore = watchedState{}
)

// Apply implements raft.FSM.
func (f watchedState) Apply(entry *raft.Log) any { return f.ApplyBatch([]*raft.Log{entry})[0] }

// ApplyBatch implements raft.BatchingFSM.
func (f watchedState) ApplyBatch(entries []*raft.Log) []any {
	defer f.storage.applies.begin()()
	answers := f.FSM.ApplyBatch(entries)
	for _, answer := range answers {
		if err, ok := answer.(error); ok && errors.Is(err, raftfsm.ErrFailed) {
			f.storage.fail(fmt.Errorf("the state cannot be written: %w", err))
			break
		}
	}
	return answers
}

// Snapshot implements raft.FSM.
func (f watchedState) Snapshot() (raft.FSMSnapshot, error) {
	tables, values := f.Size()
	if err := f.storage.snapshotRoom(tables + values); err != nil {
		return nil, err
	}
	return f.FSM.Snapshot()
}

// watchedSnapshots writes nothing where there is no room: neither the node's own nor a leader's.
type watchedSnapshots struct {
	raft.SnapshotStore
	storage *storage
}

// Create implements raft.SnapshotStore.
func (s watchedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration, configurationIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	if err := s.storage.snapshotRoom(0); err != nil {
		return nil, err
	}
	sink, err := s.SnapshotStore.Create(version, index, term, configuration, configurationIndex, trans)
	if err != nil {
		return nil, err
	}
	return watchedSink{sink, s.storage}, nil
}

type watchedSink struct {
	raft.SnapshotSink
	storage *storage
}

// Write implements io.Writer.
func (s watchedSink) Write(p []byte) (int, error) {
	if err := s.storage.snapshotRoom(int64(len(p))); err != nil {
		return 0, err
	}
	return s.SnapshotSink.Write(p)
}
