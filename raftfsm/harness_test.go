package raftfsm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sluice/raftfsm"
	"sluice/raftfsm/state"
)

// fixture is a state with a log of its own: do appends a command and applies it.
type fixture struct {
	t     testing.TB
	fsm   *raftfsm.FSM
	view  *raftfsm.View
	index uint64
	now   int64
	seq   uint64

	mu     sync.Mutex
	fatals []error
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func open(t testing.TB, dir string, change ...func(raftfsm.Config) raftfsm.Config) *fixture {
	t.Helper()
	f := &fixture{t: t, now: 1_700_000_000_000}
	config := raftfsm.Config{Dir: dir, Logger: quiet(), Fatal: func(err error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.fatals = append(f.fatals, err)
	}}
	for _, fn := range change {
		config = fn(config)
	}
	fsm, err := raftfsm.Open(config)
	// A program that another test starts has this process's files until it begins to run, the lock of a database that is closed here among
	// them.
	for end := time.Now().Add(10 * time.Second); err != nil && strings.Contains(err.Error(), "directory lock") && time.Now().Before(end); runtime.Gosched() {
		fsm, err = raftfsm.Open(config)
	}
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	f.fsm, f.view, f.index = fsm, fsm.View(), fsm.AppliedIndex()
	t.Cleanup(func() {
		if err := fsm.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return f
}

func fresh(t testing.TB) *fixture { return open(t, filepath.Join(t.TempDir(), "state")) }

func (f *fixture) fatal() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(f.fatals...)
}

func (f *fixture) requestID() (id [16]byte) {
	f.seq++
	binary.BigEndian.PutUint64(id[8:], f.seq)
	id[0] = 1
	return id
}

func logOf(t testing.TB, index uint64, e state.Envelope) *raft.Log {
	t.Helper()
	data, err := state.Encode(e)
	if err != nil {
		t.Fatalf("encode %T: %v", e.Command, err)
	}
	return &raft.Log{Index: index, Term: 1 + index/1000, Type: raft.LogCommand, Data: data}
}

func (f *fixture) send(e state.Envelope) state.Result {
	f.t.Helper()
	f.index++
	answer := f.fsm.Apply(logOf(f.t, f.index, e))
	result, ok := answer.(state.Result)
	if !ok {
		f.t.Fatalf("apply %T: %v", e.Command, answer)
	}
	return result
}

func (f *fixture) do(c state.Command) state.Result {
	f.t.Helper()
	f.now++
	return f.send(state.Envelope{RequestID: f.requestID(), ProposedAt: f.now, Command: c})
}

// must is do for a command that is to be done.
func (f *fixture) must(c state.Command) state.Result {
	f.t.Helper()
	result := f.do(c)
	if result.Refused != "" {
		f.t.Fatalf("%T was refused: %s", c, result.Refused)
	}
	return result
}

// refused wants a command to be refused with code and to leave the epoch as it is.
func (f *fixture) refused(code string, c state.Command) {
	f.t.Helper()
	epoch := f.fsm.Epoch()
	if result := f.do(c); result.Refused != code {
		f.t.Errorf("%T: got refusal %q, want %q", c, result.Refused, code)
	}
	if f.fsm.Epoch() != epoch {
		f.t.Errorf("refused %T raised the epoch", c)
	}
}

// raises wants fn to raise the epoch, or not to.
func (f *fixture) raises(want bool, fn func()) {
	f.t.Helper()
	before := f.fsm.Epoch()
	fn()
	if got := f.fsm.Epoch() > before; got != want {
		f.t.Errorf("epoch raised: %v, want %v", got, want)
	}
}

func digest(t testing.TB, f *raftfsm.FSM) [32]byte {
	t.Helper()
	sum, err := f.Digest()
	if err != nil {
		t.Fatalf("digest: %v", err)
	}
	return sum
}

// get unwraps a view's answer.
func get[T any](t testing.TB) func(value T, err error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatalf("view: %v", err)
		}
		return value
	}
}

// audit is one page of the audit log.
func (f *fixture) audit(filter state.AuditFilter, before string, limit int) (events []state.AuditEvent, next string) {
	f.t.Helper()
	events, next, err := f.view.Audit(filter, before, limit)
	if err != nil {
		f.t.Fatalf("view: %v", err)
	}
	return events, next
}

// sink is a raft.SnapshotSink in memory.
type sink struct {
	bytes.Buffer
	closed, cancelled bool
}

func (s *sink) ID() string    { return "memory" }
func (s *sink) Close() error  { s.closed = true; return nil }
func (s *sink) Cancel() error { s.cancelled = true; return nil }

func takeSnapshot(t testing.TB, f *raftfsm.FSM) []byte {
	t.Helper()
	snapshot, err := f.Snapshot()
	if err != nil {
		t.Fatalf("snapshot: %v", err)
	}
	defer snapshot.Release()
	var s sink
	if err := snapshot.Persist(&s); err != nil || !s.closed || s.cancelled {
		t.Fatalf("persist: %v, closed %v, cancelled %v", err, s.closed, s.cancelled)
	}
	return s.Bytes()
}

func reader(data []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(data)) }

func hash(text string) []byte {
	h := make([]byte, 32)
	copy(h, text)
	return h
}

func hash32(text string) (h [32]byte) { return [32]byte(hash(text)) }

func event(id, org, name string, at int64) state.AuditEvent {
	return state.AuditEvent{ID: "evt_" + id, OrganizationID: org, Event: name, ActorType: "user", ActorID: "usr_1", At: at, Result: "success"}
}

// register makes user usr_<name> with organization org_<name> and session ses_<name>.
func (f *fixture) register(name string) {
	f.t.Helper()
	f.must(registration(name, f.now))
}

func registration(name string, now int64) state.RegisterUser {
	return state.RegisterUser{
		User:         state.User{ID: "usr_" + name, Username: name, Email: name + "@example.org", PasswordHash: "hash of " + name, CreatedAt: now, PersonalOrg: "org_" + name},
		Organization: state.Organization{ID: "org_" + name, Name: name, Personal: true, CreatedAt: now, CreatedBy: "usr_" + name},
		Session:      session("ses_"+name, "usr_"+name, now),
		Audit:        []state.AuditEvent{event("reg_"+name, "org_"+name, "user.registered", now)},
	}
}

func session(id, user string, now int64) state.Session {
	return state.Session{ID: id, UserID: user, CreatedAt: now, RefreshedAt: now, ExpiresAt: now + 1_000_000, RefreshHash: hash("refresh " + id), UserAgent: "test"}
}

func owner(name string) state.Actor {
	return state.Actor{UserID: "usr_" + name, Roles: []string{state.RoleOwner, state.RoleAdmin}}
}

func keyActor(id string) state.Actor {
	return state.Actor{KeyID: id, Scopes: []string{"api-keys:manage"}}
}

func newKey(id, org string, now int64, scopes ...string) state.APIKey {
	return state.APIKey{ID: id, OrganizationID: org, Name: id, Hash: hash("secret " + id), Prefix: "sk_live_", Scopes: scopes, Environment: "live", CreatedAt: now}
}

// key makes a key of the organization of the user called name.
func (f *fixture) key(id, name string, scopes ...string) {
	f.t.Helper()
	f.must(state.CreateKey{Key: newKey(id, "org_"+name, f.now, scopes...), Actor: owner(name)})
}

func idempotency(scope, fingerprint string, at int64) *state.Idempotency {
	return &state.Idempotency{Scope: hash(scope), Fingerprint: hash(fingerprint), Status: 201, SealedBody: []byte(fmt.Sprintf("answer to %s", fingerprint)), CreatedAt: at}
}
