package raftfsm_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"sluice/raftfsm"
	"sluice/raftfsm/state"
)

// randomLog makes a log that exercises every command, most of them with chances to be refused.
func randomLog(t testing.TB, seed uint64, size int) []*raft.Log {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 1))
	now := int64(1_700_000_000_000)
	pick := func(prefix string, n int) string { return prefix + string(rune('a'+random.IntN(n))) }
	actor := func() state.Actor {
		if random.IntN(2) == 0 {
			return owner(pick("", 6))
		}
		return keyActor(pick("key_", 20))
	}
	scopes := func() []string {
		all := []string{"*", "events:*", "events:read", "api-keys:manage"}
		return all[random.IntN(len(all)):][:1]
	}
	secret := func() []byte { return hash(pick("secret ", 26)) }
	var answered *state.Idempotency
	var roster uint64
	var logs []*raft.Log
	for i := 1; i <= size; i++ {
		if random.IntN(20) == 0 {
			logs = append(logs, &raft.Log{Index: uint64(i), Term: 1, Type: raft.LogConfiguration})
			continue
		}
		now += int64(random.IntN(2000)) - 200
		if random.IntN(200) == 0 {
			now += 20 * 60 * 1000
		}
		events := []state.AuditEvent{event(string(rune('a'+i%26))+string(rune('a'+i/26%26))+string(rune('a'+i/676)), pick("org_", 6), pick("kind.", 3), now)}
		var c state.Command
		switch random.IntN(28) {
		case 0:
			c = registration(pick("", 6), now)
		case 1:
			c = state.CreateSession{Session: session(pick("ses_", 26)+pick("", 26), pick("usr_", 6), now), MaxSessions: 3, Audit: events}
		case 2:
			c = state.RefreshSession{SessionID: pick("ses_", 6), PresentedHash: hash(pick("refresh ses_", 6)), SuccessorHash: hash(pick("refresh ses_", 6)), At: now, GraceMillis: 1000, ExpiresAt: now + 100_000, ReuseAudit: events}
		case 3:
			c = state.EndSession{SessionID: pick("ses_", 6), UserID: pick("usr_", 6), At: now, Reason: "logout", Audit: events}
		case 4:
			c = state.EndSessions{UserID: pick("usr_", 6), At: now, Reason: "logout_all"}
		case 5:
			c = state.SetPassword{UserID: pick("usr_", 6), OldHash: pick("hash of ", 6), NewHash: pick("hash of ", 6), At: now}
		case 6:
			c = state.CreateOrg{Organization: state.Organization{ID: pick("org_", 26), Name: "x"}, OwnerID: pick("usr_", 6)}
		case 7, 8, 9:
			answered = idempotency(pick("", 20), pick("", 2), now)
			c = state.CreateKey{Key: state.APIKey{ID: pick("key_", 20), OrganizationID: pick("org_", 6), Hash: secret(), Scopes: scopes()}, Actor: actor(), Audit: events, Idempotency: answered}
		case 10:
			s := scopes()
			c = state.UpdateKey{KeyID: pick("key_", 20), Actor: actor(), Scopes: &s}
		case 11:
			c = state.RotateKey{KeyID: pick("key_", 20), Actor: actor(), OldHash: secret(), NewHash: secret(), At: now, PreviousUntil: now + 1000}
		case 12:
			c = state.RevokeKey{KeyID: pick("key_", 20), Actor: actor(), At: now, Audit: events}
		case 13:
			c = state.TouchKeys{Keys: []state.KeyUse{{KeyID: pick("key_", 20), At: now}}}
		case 14:
			c = state.AppendAudit{Events: events}
		case 15:
			c = state.PutSigningKey{Key: state.SigningKey{ID: pick("kid_", 26), CreatedAt: now}, PreviousID: pick("kid_", 2), PreviousVerifiesTo: now}
		case 16:
			c = state.Prune{IdempotencyBefore: now - 50_000, SessionsBefore: now - 50_000, AuditBefore: now - 100_000, RequestsBefore: now - 50_000, Max: 5}
		case 17:
			c = state.Horizon{Until: now + 5000}
		case 18:
			c = state.PutNode{Node: state.NodeInfo{ID: pick("node_", 3), Version: pick("v", 5)}}
		case 19:
			c = initCluster(pick("cluster_", 3))
		case 20:
			c = state.SetRoster{Nodes: []string{"node_kept", pick("node_", 8)}, PreviousIndex: roster, KeepFrom: now - 20_000}
			if random.IntN(3) > 0 { // whether it was refused is not known here
				roster = uint64(i)
			}
		case 21:
			c = state.Leave{Leaver: pick("node_", 8), Heir: pick("node_", 8), List: hash("list"), Mark: now, Applied: uint64(random.IntN(i))}
		case 22:
			c = state.RecordKeyUse{Keys: []state.KeyUses{{KeyID: pick("key_", 20), At: now, IP: pick("192.0.2.", 3), Count: int64(random.IntN(3))}, {KeyID: pick("key_", 20), At: now}}}
		case 23:
			c = state.RevokeKeyBySecret{Hash: secret(), At: now, Previous: random.IntN(2) == 0, Audit: events}
		default:
			c = randomOrgChange(random, now, events)
		}
		if random.IntN(6) == 0 {
			c = randomSignIn(random, now, events)
		}
		e := state.Envelope{ProposedAt: now, Command: c}
		e.RequestID[0], e.RequestID[1] = 1, byte(random.IntN(200))
		logs = append(logs, logOf(t, uint64(i), e))
	}
	return logs
}

func applyAll(t testing.TB, f *raftfsm.FSM, logs []*raft.Log, size func() int) (answers []any) {
	t.Helper()
	for len(logs) > 0 {
		n := min(size(), len(logs))
		for _, answer := range f.ApplyBatch(logs[:n]) {
			if err, failed := answer.(error); failed {
				t.Fatal(err)
			}
			answers = append(answers, answer)
		}
		logs = logs[n:]
	}
	return answers
}

// The same log gives the same bytes: one by one, in batches of any size, with restarts, and across a snapshot.
func TestApply_IsDeterministic(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		logs := randomLog(t, seed, 1500)
		single, batched, restarted, restored := fresh(t), fresh(t), t.TempDir(), fresh(t)
		random := rand.New(rand.NewPCG(seed, 2))
		one := applyAll(t, single.fsm, logs, func() int { return 1 })
		many := applyAll(t, batched.fsm, logs, func() int { return 1 + random.IntN(90) })
		done := 0
		for i := range one {
			a, b := one[i].(state.Result), many[i].(state.Result)
			a.Replay, b.Replay = nil, nil
			if a != b {
				t.Fatalf("seed %d, entry %d: %+v alone, %+v in a batch", seed, i+1, a, b)
			}
			if a.Refused == "" {
				done++
			}
		}
		if done < len(one)/4 {
			t.Errorf("seed %d: only %d of %d done: the log tests refusals only", seed, done, len(one))
		}
		want := digest(t, single.fsm)
		if got := digest(t, batched.fsm); got != want {
			t.Errorf("seed %d: batches give another state", seed)
		}
		// After each restart the log is replayed from further back, as Raft does.
		for from := 0; from < len(logs); from += 400 {
			f := open(t, restarted)
			begin := max(0, from-150)
			applyAll(t, f.fsm, logs[begin:min(from+400, len(logs))], func() int { return 33 })
			if err := f.fsm.Close(); err != nil {
				t.Fatal(err)
			}
		}
		f := open(t, restarted)
		if got := digest(t, f.fsm); got != want {
			t.Errorf("seed %d: restarts give another state", seed)
		}
		half := fresh(t)
		applyAll(t, half.fsm, logs[:700], func() int { return 64 })
		if err := restored.fsm.Restore(reader(takeSnapshot(t, half.fsm))); err != nil {
			t.Fatal(err)
		}
		if restored.fsm.AppliedIndex() != 700 {
			t.Errorf("applied index after restore: %d", restored.fsm.AppliedIndex())
		}
		applyAll(t, restored.fsm, logs[650:], func() int { return 7 })
		if got := digest(t, restored.fsm); got != want {
			t.Errorf("seed %d: a snapshot between gives another state", seed)
		}
	}
}

// A batch too large for one Badger transaction is cut between commands.
func TestApplyBatch_LargerThanATransaction(t *testing.T) {
	t.Parallel()
	f, single := fresh(t), fresh(t)
	var logs []*raft.Log
	for i := range 120 {
		e := event(string(rune('a'+i/26))+string(rune('a'+i%26)), "org_a", "x", int64(i))
		e.Detail = []state.Pair{{Name: "large", Value: strings.Repeat("x", 60_000)}}
		logs = append(logs, logOf(t, uint64(i+1), state.Envelope{RequestID: [16]byte{1, byte(i)}, ProposedAt: int64(i), Command: state.AppendAudit{Events: []state.AuditEvent{e}}}))
	}
	for i, answer := range f.fsm.ApplyBatch(logs) {
		if r, ok := answer.(state.Result); !ok || r.Index != uint64(i+1) {
			t.Fatalf("entry %d: %v", i+1, answer)
		}
	}
	applyAll(t, single.fsm, logs, func() int { return 1 })
	if digest(t, f.fsm) != digest(t, single.fsm) {
		t.Error("a batch that was cut gives another state")
	}
	if f.fsm.AppliedIndex() != 120 || f.fatal() != nil {
		t.Errorf("applied %d, fatal %v", f.fsm.AppliedIndex(), f.fatal())
	}
}

// The largest things that the bounds allow fit in one transaction: what does not would stop every node.
func TestApply_LargestChangeFits(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	var logs []*raft.Log
	for i := range 1100 {
		s := session(strings.Repeat("s", 56)+string(rune('a'+i/676))+string(rune('a'+i/26%26))+string(rune('a'+i%26)), "usr_ada", f.now)
		s.UserAgent, s.Address, s.PreviousHash = strings.Repeat("u", 5000), strings.Repeat("1", 500), hash("x")
		f.index++
		logs = append(logs, logOf(t, f.index, state.Envelope{ProposedAt: f.now, Command: state.CreateSession{Session: s}}))
	}
	applyAll(t, f.fsm, logs, func() int { return 64 })
	if live := get[[]state.Session](t)(f.view.SessionsOf("usr_ada")); len(live) != 1000 {
		t.Fatalf("%d live sessions, want 1000", len(live))
	}
	before := takeSnapshot(t, f.fsm)
	if result := f.must(state.EndSessions{UserID: "usr_ada", At: f.now, Reason: strings.Repeat("r", 500)}); result.Count != 1000 {
		t.Errorf("ended %d", result.Count)
	}
	// The same sessions, and as many memberships and organizations as can go with an account.
	if err := f.fsm.Restore(reader(before)); err != nil {
		t.Fatal(err)
	}
	logs = logs[:0]
	f.index = f.fsm.AppliedIndex()
	f.register("bob")
	for i := range 999 {
		org := state.Organization{ID: strings.Repeat("o", 60) + fmt.Sprintf("%04d", i), Name: strings.Repeat("n", 512), Plan: strings.Repeat("p", 512)}
		owner := "usr_ada"
		if i >= 299 {
			owner = "usr_bob"
		}
		f.index++
		logs = append(logs, logOf(t, f.index, state.Envelope{ProposedAt: f.now, Command: state.CreateOrg{Organization: org, OwnerID: owner}}))
		if owner == "usr_ada" {
			continue
		}
		f.index++
		logs = append(logs, logOf(t, f.index, state.Envelope{ProposedAt: f.now, Command: state.AddMember{
			Membership: state.Membership{OrganizationID: org.ID, UserID: "usr_ada", Role: state.RoleOwner}, Actor: state.Actor{UserID: owner, Roles: []string{state.RoleOwner}},
		}}))
	}
	applyAll(t, f.fsm, logs, func() int { return 64 })
	if result := f.must(state.DeleteUser{UserID: "usr_ada", PasswordHash: "hash of ada", At: f.now}); result.Count != 300 {
		t.Errorf("%d organizations went with the account, want 300", result.Count)
	}
	if members := get[[]state.Membership](t)(f.view.MembershipsOf("usr_ada")); len(members) != 0 {
		t.Errorf("%d memberships are left", len(members))
	}
	if err := f.fatal(); err != nil {
		t.Error(err)
	}
}

func TestApply_UnknownCommandIsFatal(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func([]byte){
		"version": func(data []byte) { data[0] = 99 },
		"type":    func(data []byte) { data[1] = 99 },
		"payload": func(data []byte) { data[len(data)-1] ^= 0xFF },
	} {
		f := fresh(t)
		good := logOf(t, 1, state.Envelope{Command: state.Horizon{Until: 5}})
		bad := logOf(t, 2, state.Envelope{Command: state.Horizon{Until: 9, Leader: "\x7f"}})
		change(bad.Data)
		answers := f.fsm.ApplyBatch([]*raft.Log{good, bad})
		for _, answer := range answers {
			if err, ok := answer.(error); !ok || !errors.Is(err, raftfsm.ErrFailed) {
				t.Errorf("%s: answer %v", name, answer)
			}
		}
		want := state.ErrUnknownCommand
		if name == "payload" {
			want = state.ErrMalformed
		}
		if err := f.fatal(); !errors.Is(err, want) {
			t.Errorf("%s: fatal %v, want %v", name, err, want)
		}
		// What came before it is kept, nothing after it is applied.
		if f.fsm.AppliedIndex() != 1 {
			t.Errorf("%s: applied %d", name, f.fsm.AppliedIndex())
		}
		if answer := f.fsm.Apply(logOf(t, 3, state.Envelope{Command: state.Barrier{}})); !errors.Is(answer.(error), raftfsm.ErrFailed) {
			t.Errorf("%s: applied on: %v", name, answer)
		}
		if _, err := f.fsm.Snapshot(); !errors.Is(err, raftfsm.ErrFailed) {
			t.Errorf("%s: snapshot of a failed state: %v", name, err)
		}
	}
}

func TestApply_EntryIsAppliedOnce(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	entry := logOf(t, 2, state.Envelope{ProposedAt: f.now, Command: state.CreateOrg{Organization: state.Organization{ID: "org_x", Name: "x"}, OwnerID: "usr_ada"}})
	if r := f.fsm.Apply(entry).(state.Result); r.Refused != "" {
		t.Fatal(r)
	}
	before := digest(t, f.fsm)
	for range 3 {
		if r := f.fsm.Apply(entry).(state.Result); r.Refused != "" || r.Index != 2 {
			t.Errorf("again: %+v", r)
		}
	}
	if digest(t, f.fsm) != before {
		t.Error("an entry was applied twice")
	}
}

func TestStoreConfiguration_RaisesTheIndex(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.fsm.StoreConfiguration(7, raft.Configuration{})
	if f.fsm.AppliedIndex() != 7 {
		t.Errorf("applied %d, want 7", f.fsm.AppliedIndex())
	}
}

func TestWaitApplied(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	done := make(chan error, 3)
	for index := range uint64(3) {
		go func() { done <- f.fsm.WaitApplied(ctx, index+1) }()
	}
	for range 3 {
		f.must(state.Barrier{})
	}
	for range 3 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	ended, end := context.WithCancelCause(ctx)
	cause := errors.New("enough")
	end(cause)
	if err := f.fsm.WaitApplied(ended, 100); !errors.Is(err, cause) {
		t.Errorf("got %v, want the cause", err)
	}
	go func() { done <- f.fsm.WaitApplied(ctx, 100) }()
	if err := f.fsm.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, raftfsm.ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
	if _, err := f.view.User("x"); !errors.Is(err, raftfsm.ErrClosed) {
		t.Errorf("view of a closed state: %v", err)
	}
	if answer := f.fsm.Apply(logOf(t, 4, state.Envelope{Command: state.Barrier{}})); !errors.Is(answer.(error), raftfsm.ErrClosed) {
		t.Errorf("apply to a closed state: %v", answer)
	}
}

func TestOpen_SecondOneIsRefused(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	f := open(t, dir)
	f.register("ada")
	if _, err := raftfsm.Open(raftfsm.Config{Dir: dir, Logger: quiet()}); err == nil {
		t.Error("opened twice")
	}
	if user := get[*state.User](t)(f.view.User("usr_ada")); user == nil {
		t.Error("the second open did harm")
	}
}

// After the machine went down, writes that were never synced may be missing, and nothing shows which.
func TestOpen_AfterAReboot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	boot := "one"
	withBoot := func(c raftfsm.Config) raftfsm.Config { return raftfsm.WithBoot(c, func() string { return boot }) }
	start := func() *raftfsm.FSM {
		t.Helper()
		f, err := raftfsm.Open(withBoot(raftfsm.Config{Dir: dir, Logger: quiet()}))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	f := start()
	f.Apply(logOf(t, 1, state.Envelope{Command: registration("ada", 5)}))
	f.Abandon()
	f = start()
	if f.AppliedIndex() != 1 {
		t.Error("a crash of the process lost the state")
	}
	f.Abandon()
	boot = "two"
	f = start()
	if f.AppliedIndex() != 0 {
		t.Error("unsynced state was trusted after a reboot")
	}
	f.Apply(logOf(t, 1, state.Envelope{Command: registration("ada", 5)}))
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	boot = "three"
	f = start()
	if f.AppliedIndex() != 1 {
		t.Error("a state that was closed was lost by a reboot")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
