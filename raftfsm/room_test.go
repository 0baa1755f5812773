package raftfsm_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sluice/raftfsm"
	"sluice/raftfsm/state"
)

func barrierEntry(t *testing.T, index uint64) *raft.Log {
	t.Helper()
	data, err := state.Encode(state.Envelope{ProposedAt: 1_700_000_000_000, Command: state.Barrier{}})
	if err != nil {
		t.Fatal(err)
	}
	return &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: data}
}

// An entry waits for room on the disk. Where it is no longer waited for nothing is applied, and the state is left as a kill leaves it.
func TestApply_WaitsForRoom(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	asked, answers := make(chan struct{}, 8), make(chan bool)
	fsm, err := raftfsm.Open(raftfsm.Config{Dir: dir, Logger: quiet(), Fatal: func(err error) { t.Errorf("fatal: %v", err) }, Room: func() bool {
		asked <- struct{}{}
		return <-answers
	}})
	if err != nil {
		t.Fatal(err)
	}
	applied := make(chan any, 1)
	go func() { applied <- fsm.Apply(barrierEntry(t, 1)) }()
	<-asked
	select {
	case answer := <-applied:
		t.Fatalf("applied without room: %v", answer)
	case <-time.After(20 * time.Millisecond):
	}
	if got := fsm.AppliedIndex(); got != 0 {
		t.Fatalf("applied up to %d without room", got)
	}
	answers <- true
	if _, ok := (<-applied).(state.Result); !ok || fsm.AppliedIndex() != 1 {
		t.Fatalf("applied up to %d with room, want 1", fsm.AppliedIndex())
	}

	close(answers) // false from here on
	if err, _ := fsm.Apply(barrierEntry(t, 2)).(error); !errors.Is(err, raftfsm.ErrFailed) || fsm.AppliedIndex() != 1 {
		t.Fatalf("an entry given up for lack of room: %v, applied up to %d; want %v and 1", err, fsm.AppliedIndex(), raftfsm.ErrFailed)
	}
	if _, err := fsm.Snapshot(); !errors.Is(err, raftfsm.ErrFailed) {
		t.Fatalf("a snapshot of a state that lacks an entry: %v", err)
	}
	if err := fsm.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "RUNNING")); err != nil {
		t.Fatalf("a state that was not closed says that it was: %v", err)
	}
}

func TestCollectValueLog(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	if rewritten, err := f.fsm.CollectValueLog(); err != nil || rewritten {
		t.Fatalf("an empty value log: rewritten %v, %v", rewritten, err)
	}
}
