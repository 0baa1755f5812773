package raftfsm_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"testing"

	"sluice/raftfsm"
	"sluice/raftfsm/state"
)

// A level only rises, is told to subscribers, and survives a start and a snapshot.
func TestRaiseLevel(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := open(t, dir)
	f.must(initCluster("cluster_golden"))
	calls := 0
	f.fsm.Subscribe(func() { calls++ })
	if got := f.fsm.Level(); got != 1 {
		t.Fatalf("a new state is of level %d", got)
	}
	f.refused(state.CodeInvalid, state.RaiseLevel{Level: state.Level + 1})
	for _, level := range []uint64{state.Level, 1, state.Level} {
		f.must(state.RaiseLevel{Level: level})
		if got := f.fsm.Level(); got != state.Level || calls != 1 {
			t.Errorf("raised to %d: of level %d after %d calls", level, got, calls)
		}
	}
	snapshot := golden(t, f, "v1-level.snap")
	other := fresh(t)
	if err := other.fsm.Restore(reader(snapshot)); err != nil || other.fsm.Level() != state.Level {
		t.Errorf("restored: level %d, %v", other.fsm.Level(), err)
	}
	contents, err := raftfsm.InspectSnapshot(bytes.NewReader(snapshot))
	if err != nil || contents.Level != state.Level {
		t.Errorf("inspected: level %d, %v", contents.Level, err)
	}
	if err := f.fsm.Close(); err != nil {
		t.Fatal(err)
	}
	if f = open(t, dir); f.fsm.Level() != state.Level {
		t.Errorf("opened again: level %d", f.fsm.Level())
	}
}

// What a newer version wrote is refused whole, and says which level it needs.
func TestSnapshot_OfANewerLevel(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.must(initCluster("cluster_golden"))
	f.must(state.RaiseLevel{Level: state.Level})
	snapshot := takeSnapshot(t, f.fsm)
	record := func(level uint64) []byte {
		value, err := state.Marshal(state.ClusterLevel{Level: level})
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
	newer := bytes.Replace(snapshot[:len(snapshot)-sha256.Size], record(state.Level), record(state.Level+1), 1)
	sum := sha256.Sum256(newer)
	newer = append(newer, sum[:]...)
	if err := raftfsm.CheckSnapshot(bytes.NewReader(newer)); !errors.Is(err, raftfsm.ErrSnapshot) || !strings.Contains(err.Error(), "level 3") {
		t.Errorf("got %v, want ErrSnapshot that names the level", err)
	}
}

// Versions of level 1 are out there: what they know never changes. A new command is of the level of the release that brings it.
func TestLevelOf(t *testing.T) {
	t.Parallel()
	first := []uint16{
		1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38,
		39, 40, 41, 44, 45, 46,
	}
	for _, number := range append(state.CommandTypes(), 65535) {
		want := state.Level
		if slices.Contains(first, number) {
			want = 1
		}
		if got := state.LevelOf(number); got != want {
			t.Errorf("command %d is of level %d, want %d", number, got, want)
		}
	}
}
