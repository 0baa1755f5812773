package raftfsm_test

import (
	"fmt"
	"strings"
	"testing"

	"sluice/raftfsm/state"
)

func settings(version uint64, text string) state.PutSettings {
	return state.PutSettings{Settings: state.Settings{Version: version, Text: text, AppliedAt: 1_700_000_000_000 + int64(version), Address: "127.0.0.1"}}
}

// A version follows the one before or is refused, its audit event goes with it, and the oldest go.
func TestPutSettings(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	calls := 0
	f.fsm.Subscribe(func() { calls++ })
	if got := f.fsm.Settings(); len(got) != 0 {
		t.Fatalf("before any: %+v", got)
	}
	first := settings(1, "[limits.user]\nlimit = 5\n")
	first.Audit = []state.AuditEvent{event("applied", "", "policy.applied", f.now)}
	f.raises(false, func() { f.must(first) })
	if got := f.fsm.Settings(); fmt.Sprint(got) != fmt.Sprint([]state.Settings{first.Settings}) || calls != 1 {
		t.Fatalf("got %+v after %d calls", got, calls)
	}
	lost := settings(1, "")
	lost.Audit = []state.AuditEvent{event("lost", "", "policy.applied", f.now)}
	f.refused(state.CodeConflict, lost)
	f.refused(state.CodeConflict, settings(3, ""))
	f.refused(state.CodeInvalid, settings(0, ""))
	f.refused(state.CodeInvalid, settings(2, strings.Repeat("#", state.MaxSettingsText+1)))
	own := settings(2, "")
	own.Settings.Restores = 2
	f.refused(state.CodeInvalid, own)
	if events, _ := f.audit(state.AuditFilter{Event: "policy.*"}, "", 10); len(events) != 1 || events[0].ID != first.Audit[0].ID {
		t.Errorf("audit: %+v", events)
	}
	if calls != 1 || len(f.fsm.Settings()) != 1 {
		t.Errorf("a refusal changed something: %d calls, %d versions", calls, len(f.fsm.Settings()))
	}
	for version := uint64(2); version <= 25; version++ {
		f.must(settings(version, strings.Repeat("#", state.MaxSettingsText)))
	}
	got := f.fsm.Settings()
	if len(got) != 20 || got[0].Version != 6 || got[19].Version != 25 {
		t.Errorf("%d versions are kept, from %d on", len(got), got[0].Version)
	}
}

// Versions survive a snapshot and a start, and the bytes stay readable.
func TestSnapshot_Settings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := open(t, dir)
	f.must(initCluster("cluster_golden"))
	f.must(settings(1, "[limits.user]\nlimit = 5\n"))
	again := settings(2, "")
	again.Settings.Rollback = true
	f.must(again)
	want := fmt.Sprint(f.fsm.Settings())
	file := golden(t, f, "v1-settings.snap")
	other := fresh(t)
	if err := other.fsm.Restore(reader(file)); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(other.fsm.Settings()); got != want {
		t.Errorf("after a restore: %s, want %s", got, want)
	}
	if err := f.fsm.Close(); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(open(t, dir).fsm.Settings()); got != want {
		t.Errorf("after a start: %s, want %s", got, want)
	}
}
