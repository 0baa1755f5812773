package systemtest

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDev_Life walks through what `sluice dev` promises about its directory and its processes.
func TestDev_Life(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "by dev")
	c := startCluster(t, options{dir: dir})
	if c.took > readyWithin {
		t.Errorf("ready after %v, want at most %v", c.took, readyWithin)
	}
	t.Logf("ready after %v", c.took.Round(time.Millisecond))
	for i, url := range c.urls {
		if want := "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port+i)); url != want {
			t.Errorf("node%d is at %s, want %s", i+1, url, want)
		}
		if err := syscall.Kill(c.pid(t, i+1), 0); err != nil {
			t.Errorf("node%d's pid file names no process: %v", i+1, err)
		}
		check := exec.Command(binary, "config", "check", "--config", filepath.Join(dir, fmt.Sprintf("node%d.toml", i+1)))
		check.Env = cleanEnvironment()
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("config check: %v: %s", err, out)
		}
	}
	for _, name := range []string{"cluster.secret", "key.secret"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	for _, url := range c.urls[1:] {
		register(t, url) // every node can take a write
	}
	a := register(t, c.urls[0])
	key := a.newKey(t, c.urls[1], 0, "triggers:read")

	// A second one on the same ports is refused before it starts anything.
	other := filepath.Join(t.TempDir(), "other")
	out, code := runDev(t, "--dir", other, "--port", strconv.Itoa(c.port+1))
	if code != 1 || !strings.Contains(out, strconv.Itoa(c.port+1)) || !strings.Contains(out, "in use") {
		t.Errorf("on a port in use: exit code %d, %s", code, out)
	}
	if entries, err := os.ReadDir(other); err != nil || len(entries) > 0 {
		t.Errorf("what is left of a cluster that never was: %v, %v", entries, err)
	}

	pids := []int{c.pid(t, 1), c.pid(t, 2), c.pid(t, 3)}
	c.stop()
	if code := c.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d after a stop, want 0: %s", code, c.stderr.String())
	}
	if got, want := c.stdout.String(), "ready "+strings.Join(c.urls, " ")+"\n"; got != want {
		t.Errorf("standard output %q, want %q", got, want)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); err == nil {
			t.Errorf("process %d goes on", pid)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.pid")); len(left) > 0 {
		t.Errorf("pid files left behind: %v", left)
	}
	if out, code := runDev(t, "--dir", dir, "--nodes", "4"); code != 2 || !strings.Contains(out, "--nodes 3") {
		t.Errorf("another --nodes: exit code %d, %s", code, out)
	}

	// Another port, the same data.
	moved, err := launch(options{dir: dir}, t.TempDir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(moved.stop)
	if moved.port == c.port {
		t.Log("the same port by chance: all else holds with it too")
	}
	must(t, moved.urls[2], request{path: "/api/v1/triggers", key: key.secret, address: a.address}, http.StatusOK)
	must(t, moved.urls[0], request{method: "POST", path: "/api/v1/auth/login", address: newAddress(), body: map[string]any{"username": a.username, "password": a.password}}, http.StatusOK)

	// The nodes do not outlive a dev that could not say goodbye.
	pids = []int{moved.pid(t, 1), moved.pid(t, 2), moved.pid(t, 3)}
	moved.cmd.Process.Kill()
	<-moved.exited
	eventually(t, readyWithin, "the nodes are gone", func() error {
		for _, pid := range pids {
			if err := syscall.Kill(pid, 0); err == nil && !zombie(pid) {
				return fmt.Errorf("process %d goes on", pid)
			}
		}
		return nil
	})
}

// zombie reports whether a process has ended and waits for whoever inherited it.
func zombie(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(data), ") Z ")
}

// TestDev_OneNodeInATemporaryDirectory also counts the time of the smallest cluster.
func TestDev_OneNodeInATemporaryDirectory(t *testing.T) {
	starting.Lock()
	port, err := consecutivePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	tmp := t.TempDir()
	c, err := startDev(options{port: port, variables: []string{"TMPDIR=" + tmp, "SLUICE_LIMITS__ANONYMOUS__LIMIT=3"}}, "--nodes", "1", "--port", strconv.Itoa(port))
	starting.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.stop)
	select {
	case line := <-c.ready:
		c.urls = strings.Fields(line)[1:]
	case <-time.After(readyWithin):
		t.Fatalf("not ready within %v: %s", readyWithin, c.stderr.String())
	}
	made, err := filepath.Glob(filepath.Join(tmp, "sluice-dev-*"))
	if err != nil || len(made) != 1 {
		t.Fatalf("temporary directories: %v, %v", made, err)
	}
	c.dir = made[0]
	if _, err := os.Stat(filepath.Join(c.dir, "node1.pid")); err != nil {
		t.Error(err)
	}
	// The environment reaches the nodes.
	res := must(t, c.urls[0], request{path: "/api/v1/triggers", address: newAddress()}, http.StatusOK)
	if got := res.header.Get("X-RateLimit-Limit"); got != "3" {
		t.Errorf("X-RateLimit-Limit %q, want 3 as the environment says", got)
	}
	c.stop()
	if code := c.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d: %s", code, c.stderr.String())
	}
	if left, _ := os.ReadDir(tmp); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestDev_WrongUsage pins exit code 2 for what the user has to put right.
func TestDev_WrongUsage(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args      []string
		variables []string
		want      string
	}{
		{[]string{"--nodes", "0x"}, nil, "nodes"},
		{[]string{"--nodes", "40"}, nil, "--nodes"},
		{[]string{"--port", "70000"}, nil, "--port"},
		{nil, []string{"SLUICE_HTTP__LISTEN=:1"}, "SLUICE_HTTP__LISTEN"},
		{nil, []string{"SLUICE_LIMITS__ANONYMOUS__LIMT=1"}, "did you mean SLUICE_LIMITS__ANONYMOUS__LIMIT?"},
		{nil, []string{"SLUICE_LIMITS__ON_ISOLATION=never"}, "limits.on_isolation"},
	} {
		dir := filepath.Join(t.TempDir(), "d")
		starting.Lock()
		args := test.args
		if len(args) == 0 {
			port, err := consecutivePorts(3)
			if err != nil {
				t.Error(err)
			}
			args = []string{"--port", strconv.Itoa(port)}
		}
		out, code := runDevWith(t, test.variables, append(args, "--dir", dir)...)
		starting.Unlock()
		if code != 2 || !strings.Contains(out, test.want) {
			t.Errorf("dev %v %v: exit code %d, want 2 and %q in: %s", test.args, test.variables, code, test.want, out)
		}
		if entries, _ := os.ReadDir(dir); len(entries) > 0 {
			t.Errorf("dev %v %v: left behind %v", test.args, test.variables, entries)
		}
	}
}

func runDev(t *testing.T, args ...string) (output string, code int) {
	t.Helper()
	return runDevWith(t, nil, args...)
}

// runDevWith runs a dev that is expected to end by itself.
func runDevWith(t *testing.T, variables []string, args ...string) (output string, code int) {
	t.Helper()
	c, err := startDev(options{variables: variables}, args...)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.exited:
	case <-time.After(readyWithin):
		c.stop()
		t.Errorf("dev %v did not end by itself", args)
	}
	return c.stdout.String() + c.stderr.String(), c.cmd.ProcessState.ExitCode()
}
