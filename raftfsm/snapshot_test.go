package raftfsm_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"sluice/raftfsm"
	"sluice/raftfsm/state"
)

var update = flag.Bool("update", false, "write the golden files anew")

// goldenState fills a state with one of everything that a snapshot can hold, from commands with golden bytes.
func goldenState(t testing.TB) *fixture {
	t.Helper()
	f := fresh(t)
	f.must(initCluster("cluster_golden"))
	f.register("ada")
	f.must(state.CreateSession{Session: session("ses_2", "usr_ada", f.now), MaxSessions: 1})
	f.must(state.CreateKey{Key: newKey("key_1", "org_ada", f.now, "events:*"), Actor: owner("ada"), Idempotency: idempotency("one", "body", f.now)})
	f.must(state.RotateKey{KeyID: "key_1", Actor: owner("ada"), OldHash: hash("secret key_1"), NewHash: hash("two"), At: f.now, PreviousUntil: f.now + 5})
	f.must(state.TouchKeys{Keys: []state.KeyUse{{KeyID: "key_1", At: f.now}}})
	f.key("key_2", "ada", "*")
	f.must(state.RevokeKey{KeyID: "key_2", Actor: owner("ada"), At: f.now})
	f.must(state.Horizon{Until: f.now + 5000})
	f.must(state.SetRoster{Nodes: []string{"node_a", "node_b"}})
	f.must(state.PutNode{Node: state.NodeInfo{ID: "node_a", PeerAddress: "127.0.0.1:1", JoinedAt: f.now}})
	return f
}

// golden takes a snapshot, holds it against the file in testdata, and gives the file's bytes; -update writes it first.
func golden(t *testing.T, f *fixture, name string) []byte {
	t.Helper()
	got := takeSnapshot(t, f.fsm)
	path := filepath.Join("testdata", "snapshots", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the snapshot's bytes changed:\n got %s\nwant %s", hex.Dump(got), hex.Dump(want))
	}
	return want
}

// Snapshots are on disks and cross between versions: their bytes must not change, and the old ones must read.
func TestSnapshot_GoldenBytes(t *testing.T) {
	t.Parallel()
	f := goldenState(t)
	want := golden(t, f, "v1.snap")
	other := fresh(t)
	if err := other.fsm.Restore(reader(want)); err != nil {
		t.Fatalf("restore golden snapshot: %v", err)
	}
	if digest(t, other.fsm) != digest(t, f.fsm) {
		t.Error("the golden snapshot restores to another state")
	}
	header, err := raftfsm.ReadSnapshotHeader(bytes.NewReader(want))
	if err != nil || header.Index != f.fsm.AppliedIndex() || header.ClusterID != "cluster_golden" || header.Term == 0 {
		t.Errorf("header %+v, %v", header, err)
	}
	if l := other.fsm.Limiter(); len(l.Rosters) != 1 || l.Horizon == 0 {
		t.Errorf("limiter after restore: %+v", l)
	}
}

// A snapshot is of the moment of Snapshot, whatever is applied while it is written.
func TestSnapshot_IsOneMoment(t *testing.T) {
	t.Parallel()
	f := goldenState(t)
	want := takeSnapshot(t, f.fsm)
	s, err := f.fsm.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Release()
	f.register("bob")
	f.must(state.RevokeKey{KeyID: "key_1", Actor: owner("ada"), At: f.now})
	// The database is replaced as well, and the snapshot still has its own.
	if err := f.fsm.Restore(reader(want)); err != nil {
		t.Fatal(err)
	}
	var late sink
	if err := s.Persist(&late); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(late.Bytes(), want) {
		t.Error("the snapshot changed after it was taken")
	}
}

type brokenSink struct {
	sink
	left int
}

func (s *brokenSink) Write(p []byte) (int, error) {
	if s.left -= len(p); s.left < 0 {
		return 0, errors.New("disk full")
	}
	return len(p), nil
}

func TestSnapshot_PersistFailureCancels(t *testing.T) {
	t.Parallel()
	f := goldenState(t)
	s, err := f.fsm.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Release()
	broken := &brokenSink{left: 100}
	if err := s.Persist(broken); err == nil || !broken.cancelled || broken.closed {
		t.Errorf("persist: %v, cancelled %v, closed %v", err, broken.cancelled, broken.closed)
	}
}

// Whatever is wrong with a snapshot, the restore ends the process, and the old state is there after the next start.
func TestRestore_BadSnapshotLeavesTheOldState(t *testing.T) {
	t.Parallel()
	good := takeSnapshot(t, goldenState(t).fsm)
	other := fresh(t)
	other.must(initCluster("cluster_other"))
	foreign := takeSnapshot(t, other.fsm)
	bad := map[string][]byte{
		"foreign":  foreign,
		"trailing": append(bytes.Clone(good), 'x'),
		"not one":  []byte(strings.Repeat("nothing like it ", 10)),
	}
	for _, at := range []int{0, 1, 9, 20, 30, 60, len(good) / 2, len(good) - 33, len(good) - 1} {
		bad["cut at "+string(rune('0'+len(bad)))] = good[:at]
		flipped := bytes.Clone(good)
		flipped[at] ^= 0x40
		bad["flipped at "+string(rune('0'+len(bad)))] = flipped
	}
	for name, data := range bad {
		dir := filepath.Join(t.TempDir(), "state")
		f := open(t, dir)
		f.must(initCluster("cluster_golden"))
		f.register("eve")
		before := digest(t, f.fsm)
		if err := f.fsm.Restore(reader(data)); err == nil {
			t.Fatalf("%s: restored", name)
		}
		if f.fatal() == nil {
			t.Errorf("%s: the process goes on", name)
		}
		if digest(t, f.fsm) != before {
			t.Errorf("%s: the state changed", name)
		}
		f.fsm.Close()
		again := open(t, dir)
		if digest(t, again.fsm) != before {
			t.Errorf("%s: the state changed by the next start", name)
		}
	}
}

func TestRestore_ClusterFromConfig(t *testing.T) {
	t.Parallel()
	data := takeSnapshot(t, goldenState(t).fsm)
	f := open(t, t.TempDir(), func(c raftfsm.Config) raftfsm.Config {
		c.ClusterID = "cluster_mine"
		return c
	})
	if err := f.fsm.Restore(reader(data)); !errors.Is(err, raftfsm.ErrSnapshot) {
		t.Errorf("got %v, want ErrSnapshot", err)
	}
}

// A crash between any two steps leaves the old state or the new one, complete, and nothing else.
func TestRestore_CrashAtEveryStep(t *testing.T) {
	t.Parallel()
	source := goldenState(t)
	snapshot := takeSnapshot(t, source.fsm)
	renewed := digest(t, source.fsm)
	crash := errors.New("crash")
	for i, step := range raftfsm.Steps {
		dir := filepath.Join(t.TempDir(), "state")
		f := open(t, dir, func(c raftfsm.Config) raftfsm.Config {
			return raftfsm.WithStep(c, func(at string) error {
				if at == step {
					return crash
				}
				return nil
			})
		})
		f.register("eve")
		old := digest(t, f.fsm)
		if err := f.fsm.Restore(reader(snapshot)); !errors.Is(err, crash) {
			t.Fatalf("%s: %v", step, err)
		}
		if !errors.Is(f.fatal(), crash) {
			t.Errorf("%s: fatal %v", step, f.fatal())
		}
		f.fsm.Close()
		again := open(t, dir)
		want := old
		if i == len(raftfsm.Steps)-1 {
			want = renewed
		}
		if digest(t, again.fsm) != want {
			t.Errorf("%s: neither the old nor the new state", step)
		}
		directories, err := filepath.Glob(filepath.Join(dir, "db-*"))
		if err != nil || len(directories) != 1 {
			t.Errorf("%s: left behind %v, %v", step, directories, err)
		}
		// And the restore succeeds when it is tried again.
		if err := again.fsm.Restore(reader(snapshot)); err != nil {
			t.Errorf("%s: second try: %v", step, err)
		}
	}
}

// Reads beside restores see one of the two states, whole.
func TestRestore_ReadersNeverSeeHalf(t *testing.T) {
	t.Parallel()
	with := func(secret string) []byte {
		f := fresh(t)
		f.register("ada")
		f.must(state.CreateKey{Key: state.APIKey{ID: "key_1", OrganizationID: "org_ada", Name: secret, Hash: hash(secret)}, Actor: owner("ada")})
		return takeSnapshot(t, f.fsm)
	}
	snapshots := [][]byte{with("one"), with("two")}
	f := fresh(t)
	if err := f.fsm.Restore(reader(snapshots[0])); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				key, err := f.view.Key("key_1")
				if err != nil || key == nil || !bytes.Equal(key.Hash, hash(key.Name)) {
					t.Errorf("read %+v, %v", key, err)
					return
				}
				keys, err := f.view.Keys("org_ada", "", 5)
				if err != nil || len(keys) != 1 {
					t.Errorf("listed %+v, %v", keys, err)
					return
				}
			}
		})
	}
	for i := range 12 {
		before := f.fsm.Epoch()
		if err := f.fsm.Restore(reader(snapshots[(i+1)%2])); err != nil {
			t.Fatal(err)
		}
		if f.fsm.Epoch() == before {
			t.Error("a restore left the epoch")
		}
		want := []string{"two", "one"}[i%2]
		if key := get[*state.APIKey](t)(f.view.Key("key_1")); key.Name != want {
			t.Errorf("after the restore: %q, want %q", key.Name, want)
		}
	}
	close(stop)
	readers.Wait()
}

// A snapshot reader meets any bytes: it says no or gives the whole state, and never ends the process by itself.
func FuzzRestore(f *testing.F) {
	good, err := os.ReadFile(filepath.Join("testdata", "snapshots", "v1.snap"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:40])
	f.Add(good[:len(good)-sha256.Size])
	f.Fuzz(func(t *testing.T, data []byte) {
		// With the right checksum at its end too, or hardly anything would get past it.
		sum := sha256.Sum256(data)
		for _, data := range [][]byte{data, append(bytes.Clone(data), sum[:]...)} {
			if err := raftfsm.CheckSnapshot(bytes.NewReader(data)); err != nil && !errors.Is(err, raftfsm.ErrSnapshot) {
				t.Errorf("got %v, want ErrSnapshot", err)
			}
		}
		if _, err := raftfsm.ReadSnapshotHeader(bytes.NewReader(data)); err != nil && !errors.Is(err, raftfsm.ErrSnapshot) {
			t.Errorf("header: got %v, want ErrSnapshot", err)
		}
	})
}
