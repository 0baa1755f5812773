package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sluice/node"
	"sluice/node/nodetest"
)

func TestCluster_Recover(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 1)
	m := c.Members[0]
	config := filepath.Join(t.TempDir(), "node.toml")
	text := fmt.Sprintf("data_dir = %q\ninitial_members = [\"127.0.0.1:7100\"]\npeer.listen = \"127.0.0.1:7100\"\nsecrets.cluster = %q\nsecrets.key = %q\n",
		m.Dir, node.NewSecret(), node.NewSecret())
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(want int, args ...string) (stdout, stderr string) {
		t.Helper()
		stdout, stderr, code := program(t, nil, append([]string{"cluster", "recover", "--config", config}, args...)...)
		if code != want {
			t.Errorf("%v: code %d, want %d: %s%s", args, code, want, stdout, stderr)
		}
		return stdout, stderr
	}
	if _, stderr := run(exitFailed, "--yes"); !strings.Contains(stderr, "in use by another process") {
		t.Errorf("while it runs: %s", stderr)
	}
	id := m.Node.ID()
	c.Stop(0)
	if _, stderr := run(exitUsage, "--dead-since", "yesterday"); !strings.Contains(stderr, "--dead-since: want a time") {
		t.Errorf("a time that is none: %s", stderr)
	}
	if stdout, _ := run(exitDone); !strings.Contains(stdout, "node "+id) || !strings.Contains(stdout, "repeat the command with --yes") {
		t.Errorf("what would be done: %s", stdout)
	}
	stdout, _ := run(exitDone, "--yes", "--output", "json")
	var r node.Recovery
	if err := json.Unmarshal([]byte(stdout), &r); err != nil || !r.Done || r.Node != id {
		t.Errorf("done: %+v, %v", r, err)
	}
	if stdout, _ := run(exitDone, "--yes"); !strings.Contains(stdout, "What was there before is in "+m.Dir) {
		t.Errorf("done once more: %s", stdout)
	}
}
