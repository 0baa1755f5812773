package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sluice/bench"
)

// TestTable_RefusesAtItsLimit has keys of one unit each.
func TestTable_RefusesAtItsLimit(t *testing.T) {
	var stdout, stderr bytes.Buffer
	file := filepath.Join(t.TempDir(), "table.json")
	args := []string{"-table", "-only", "refusals", "-rounds", "1", "-duration", "1s", "-warmup", "0s", "-concurrency", "4", "-keys", "3", "-output", file}
	if err := run(t.Context(), args, &stdout, &stderr); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var report struct{ Rows []row }
	if err := json.Unmarshal(data, &report); err != nil || len(report.Rows) != 1 {
		t.Fatalf("%v, %s", err, data)
	}
	for _, peer := range []bench.Peer{report.Rows[0].Reference, report.Rows[0].Subject} {
		if len(peer.Rounds) != 1 || peer.Rounds[0].Throughput <= 0 || peer.Rounds[0].ServerMicros <= 0 || peer.Rounds[0].ClientMicros <= 0 {
			t.Errorf("%s: %+v", peer.Name, peer.Rounds)
		}
	}
	if !strings.Contains(stdout.String(), ">=0.75") {
		t.Errorf("the table:\n%s", stdout.String())
	}
	// A window may end meanwhile, and each key has one unit in it.
	if got := report.Rows[0].Subject.Rounds[0]; got.Admitted > 6 || got.Refused == 0 {
		t.Errorf("%+v", got)
	}
}

func TestTable_Mistakes(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		"its rows say what -nodes": {"-table", "-nodes", "3"}, "are for -table": {"-only", "x"}, "-addresses: want": {"-table", "-addresses", "0"},
	} {
		err := run(t.Context(), args, &bytes.Buffer{}, &bytes.Buffer{})
		var usage *usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: got %v, want %q", args, err, want)
		}
	}
}
