package raftfsm_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sluice/raftfsm"
)

// The child of TestKill: it applies the random log and says on its output how far it is, until it is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("RAFTFSM_TEST_CHILD"); dir != "" {
		if err := child(dir); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

const crashSeed, crashSize = 77, 20_000

// panicker is what randomLog needs of a test.
type panicker struct{ testing.TB }

func (panicker) Helper()                           {}
func (panicker) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

func child(dir string) error {
	f, err := raftfsm.Open(raftfsm.Config{Dir: dir, Logger: quiet()})
	if err != nil {
		return err
	}
	fmt.Println("open", f.AppliedIndex())
	logs := randomLog(panicker{}, crashSeed, crashSize)
	logs = logs[f.AppliedIndex():]
	for len(logs) > 0 {
		n := min(len(logs), 1+len(logs)%7)
		for _, answer := range f.ApplyBatch(logs[:n]) {
			if err, failed := answer.(error); failed {
				return err
			}
		}
		fmt.Println("applied", logs[n-1].Index)
		logs = logs[n:]
	}
	return nil // without Close, as if killed
}

// A killed process loses nothing that it applied, and the index that it finds says exactly what is in the state.
func TestKill_IndexAndStateStayTogether(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts and kills processes")
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	logs := randomLog(t, crashSeed, crashSize)
	reference := fresh(t)
	for round := range 6 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "RAFTFSM_TEST_CHILD="+dir)
		cmd.Stderr = os.Stderr
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := 20 + random.IntN(200) // batches seen before the kill
		acked := uint64(0)
		lines := bufio.NewScanner(stdout)
		for n := 0; lines.Scan(); n++ {
			word, number, _ := strings.Cut(lines.Text(), " ")
			index, err := strconv.ParseUint(number, 10, 64)
			if err != nil {
				t.Fatalf("child says %q", lines.Text())
			}
			if word == "open" && index < reference.fsm.AppliedIndex() {
				t.Fatalf("round %d: opened at %d, had %d", round, index, reference.fsm.AppliedIndex())
			}
			if acked = index; n == after {
				if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
					t.Fatal(err)
				}
			}
		}
		// It ends by the kill, or with the log where it was faster; nothing else is to be learned from how.
		_ = cmd.Wait()

		f, err := raftfsm.Open(raftfsm.Config{Dir: dir, Logger: quiet()})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		index := f.AppliedIndex()
		if index < acked {
			t.Fatalf("round %d: applied %d, but %d is in the state", round, acked, index)
		}
		applyAll(t, reference.fsm, logs[reference.fsm.AppliedIndex():index], func() int { return 64 })
		if digest(t, f) != digest(t, reference.fsm) {
			t.Fatalf("round %d: the state at %d is not what %d entries make", round, index, index)
		}
		f.Abandon()
	}
}

// With Raft itself: a quiet cluster takes a snapshot and drops its log, and starts again without applying twice.
func TestWithRaft_SnapshotAndRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	logs, snapshots := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
	start := func(f *fixture, bootstrap bool) *raft.Raft {
		t.Helper()
		address, transport := raft.NewInmemTransport("")
		config := raft.DefaultConfig()
		config.LocalID = "node"
		config.LogOutput = io.Discard
		config.NoLegacyTelemetry = true
		config.NoSnapshotRestoreOnStart = true
		config.TrailingLogs = 1
		config.HeartbeatTimeout, config.ElectionTimeout, config.LeaderLeaseTimeout = 50e6, 50e6, 50e6
		configuration := raft.Configuration{Servers: []raft.Server{{ID: "node", Address: address}}}
		if bootstrap {
			if err := raft.BootstrapCluster(config, logs, logs, snapshots, transport, configuration); err != nil {
				t.Fatal(err)
			}
		}
		r, err := raft.NewRaft(config, f.fsm, logs, logs, snapshots, transport)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	leads := func(r *raft.Raft) {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for r.State() != raft.Leader {
			select {
			case <-r.LeaderCh():
			case <-deadline:
				t.Fatalf("no leader: %s", r.State())
			}
		}
	}
	f := open(t, dir)
	r := start(f, true)
	leads(r)
	var entries [][]byte
	for _, entry := range randomLog(t, 5, 300) {
		if entry.Type == raft.LogCommand {
			entries = append(entries, entry.Data)
		}
	}
	apply := func(data []byte) {
		t.Helper()
		future := r.Apply(data, 0)
		if err := future.Error(); err != nil {
			t.Fatal(err)
		}
		if err, failed := future.Response().(error); failed {
			t.Fatal(err)
		}
	}
	for _, data := range entries[:100] {
		apply(data)
	}
	if err := r.Snapshot().Error(); err != nil {
		t.Fatalf("snapshot: %v", err)
	}
	for _, data := range entries[100:] {
		apply(data)
	}
	want := digest(t, f.fsm)
	index := f.fsm.AppliedIndex()
	if err := r.Shutdown().Error(); err != nil {
		t.Fatal(err)
	}
	if err := f.fsm.Close(); err != nil {
		t.Fatal(err)
	}
	if first, _ := logs.FirstIndex(); first < 50 {
		t.Errorf("the log still begins at %d", first)
	}

	again := open(t, dir)
	list, err := snapshots.List()
	if err != nil || len(list) == 0 {
		t.Fatal(err)
	}
	_, source, err := snapshots.Open(list[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	header, err := raftfsm.ReadSnapshotHeader(source)
	if err != nil || header.Index > again.fsm.AppliedIndex() {
		t.Errorf("snapshot at %d, state at %d, %v", header.Index, again.fsm.AppliedIndex(), err)
	}
	r = start(again, false)
	leads(r)
	if err := r.Barrier(0).Error(); err != nil {
		t.Fatal(err)
	}
	if again.fsm.AppliedIndex() != index || digest(t, again.fsm) != want {
		t.Errorf("after the restart: index %d, want %d, same state %v", again.fsm.AppliedIndex(), index, digest(t, again.fsm) == want)
	}
	if err := r.Shutdown().Error(); err != nil {
		t.Fatal(err)
	}
}
