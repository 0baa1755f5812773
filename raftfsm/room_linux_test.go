package raftfsm_test

import (
	"path/filepath"
	"syscall"
	"testing"
)

// The logs of memtables have their blocks on the disk before they are needed.
func TestOpen_ReservesMemtables(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	open(t, dir)
	logs, err := filepath.Glob(filepath.Join(dir, "db-*", "*.mem"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("no memtable: %v", err)
	}
	for _, path := range logs {
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		if got := st.Blocks * 512; got < 16<<20 {
			t.Errorf("%s has %d bytes on the disk", filepath.Base(path), got)
		}
	}
}
