package hashworker_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestYield_EveryThread: a hash may run on any thread, also on one that was there before main.
func TestYield_EveryThread(t *testing.T) {
	t.Parallel()
	p := start(t, "serve")
	if _, err := p.Argon2id([]byte("password"), []byte("12345678"), 1, 1<<10, 4, 32); err != nil {
		t.Fatal(err)
	}
	found := 0
	stats, err := filepath.Glob("/proc/[0-9]*/task/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		fields := strings.Fields(rest)
		command, err := os.ReadFile(filepath.Join(path, "../../../cmdline"))
		if err != nil || len(fields) < 17 || fields[1] != strconv.Itoa(os.Getpid()) || string(command) != "hashworker\x00serve\x00" {
			continue
		}
		found++
		if nice, err := strconv.Atoi(fields[16]); err != nil || nice < 10 {
			t.Errorf("%s has the priority %s, want 10 or more", path, fields[16])
		}
	}
	if found < 2 {
		t.Errorf("found %d threads of the other process", found)
	}
}
