package systemtest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const releases = "testdata/releases"

// previousBinary is the program of the version before this one, built from the repository's history.
func previousBinary(t *testing.T) string {
	t.Helper()
	commit, err := os.ReadFile(filepath.Join(releases, "previous"))
	if err != nil {
		t.Fatal(err)
	}
	root, err := exec.Command("git", "rev-parse", "--show-toplevel").Output()
	if err == nil {
		err = exec.Command("git", "cat-file", "-e", strings.TrimSpace(string(commit))+"^{commit}").Run()
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no history to build %s from: %v", commit, err)
		}
		t.Skipf("no history to build %s from: %v", commit, err)
	}
	archive := exec.CommandContext(t.Context(), "git", "archive", strings.TrimSpace(string(commit)), "--", "go.mod", "go.sum", "cmd", "node", "raftfsm", "limiter", "authapi", "bench")
	archive.Dir = strings.TrimSpace(string(root))
	sources, err := archive.Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	unpack(t, bytes.NewReader(sources), dir)
	path := filepath.Join(dir, "sluice-before")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", path, "./cmd/sluice")
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", commit, err, out)
	}
	return path
}

// unpack writes a tar archive's files and directories into dir.
func unpack(t *testing.T, r io.Reader, dir string) {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for files := tar.NewReader(r); ; {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(filepath.Clean(h.Name), 0o700)
		case tar.TypeReg:
			var content []byte
			if content, err = io.ReadAll(files); err == nil {
				err = root.WriteFile(filepath.Clean(h.Name), content, h.FileInfo().Mode().Perm())
			}
		}
		if err != nil {
			t.Fatalf("unpack %s: %v", h.Name, err)
		}
	}
}

// TestUpgrade_DataOfReleases opens what each release left behind.
func TestUpgrade_DataOfReleases(t *testing.T) {
	t.Parallel()
	archives, err := filepath.Glob(filepath.Join(releases, "*.tar.gz"))
	if err != nil || len(archives) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	for _, path := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".tar.gz"), func(t *testing.T) {
			t.Parallel()
			file, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			unzipped, err := gzip.NewReader(file)
			if err != nil {
				t.Fatal(err)
			}
			c := &cluster{dir: t.TempDir(), cmd: new(exec.Cmd)}
			unpack(t, unzipped, c.dir)
			var keys struct {
				Live    string `json:"live_key"`
				Revoked string `json:"revoked_key"`
			}
			text, err := os.ReadFile(strings.TrimSuffix(path, ".tar.gz") + ".json")
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(text, &keys); err != nil {
				t.Fatal(err)
			}
			c.startElsewhere(t)
			c.waitReadyz(t, 1, readyWithin)
			login := request{method: "POST", path: "/api/v1/auth/login", address: newAddress(), body: map[string]any{"username": "ada", "password": "seven lamps by the tide"}}
			token := must(t, c.urls[0], login, http.StatusOK).field(t, "token")
			res := must(t, c.urls[0], request{path: "/api/v1/auth/me", token: token, address: newAddress()}, http.StatusOK)
			if got := res.header.Get("X-RateLimit-Limit"); got != "77" {
				t.Errorf("limit %q, want the 77 of the live settings", got)
			}
			must(t, c.urls[0], request{path: "/api/v1/auth/verify", key: keys.Live, address: newAddress()}, http.StatusOK)
			must(t, c.urls[0], request{path: "/api/v1/auth/verify", key: keys.Revoked, address: newAddress()}, http.StatusUnauthorized)
			register(t, c.urls[0])
		})
	}
}

// startElsewhere starts the one node of a directory that was made with ports which others may have by now.
func (c *cluster) startElsewhere(t *testing.T) {
	t.Helper()
	starting.Lock()
	defer starting.Unlock()
	port, err := consecutivePorts(4)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(c.dir, "node1.toml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var replacements []string
	for i, table := range []string{"http", "peer", "gossip", "admin"} {
		replacements = append(replacements, "\""+nodeSetting(t, c, 1, table)+"\"", fmt.Sprintf("\"127.0.0.1:%d\"", port+i))
	}
	if err := os.WriteFile(path, []byte(strings.NewReplacer(replacements...).Replace(string(text))), 0o600); err != nil {
		t.Fatal(err)
	}
	c.urls = []string{fmt.Sprintf("http://127.0.0.1:%d", port)}
	c.cmd.Env = cleanEnvironment()
	c.startNode(t, 1)
}

// TestUpgrade_Rolling replaces the program of three nodes under load, one after another, from the version before to this one, and
// the first one back in between.
func TestUpgrade_Rolling(t *testing.T) {
	t.Parallel()
	before := previousBinary(t)
	dir := t.TempDir()
	c := startCluster(t, options{binary: before, dir: dir, variables: append([]string{"SLUICE_LIMITS__ANONYMOUS__WINDOW=" + longWindow()}, wide...)})
	a := register(t, c.urls[0])
	key := a.newKey(t, c.urls[0], 0, "triggers:read")
	everywhere(t, c, request{path: "/api/v1/triggers", key: key.secret, address: a.address}, http.StatusOK)
	var made []string
	spent := request{path: "/api/v1/auth/verify", address: newAddress()} // over the whole upgrade
	admitted := 0
	check := func(when string) {
		t.Helper()
		for _, url := range c.urls {
			res := must(t, url, request{method: "POST", path: "/api/v1/organizations", token: a.token, address: a.address, body: map[string]any{"name": unique("org")}}, http.StatusCreated)
			made = append(made, res.field(t, "id"))
			fresh := a.newKey(t, url, 0, "triggers:read")
			everywhere(t, c, request{path: "/api/v1/triggers", key: fresh.secret, address: a.address}, http.StatusOK)
			must(t, url, request{method: "DELETE", path: "/api/v1/api-keys/" + fresh.id, token: a.token, address: a.address}, http.StatusNoContent)
			everywhere(t, c, request{path: "/api/v1/triggers", key: fresh.secret, address: newAddress()}, http.StatusUnauthorized)
		}
		if passes(t, c.urls[len(made)%3], spent) {
			admitted++
		}
		t.Logf("%s: %d of 10 spent", when, admitted)
	}
	roll := func(node int, program string) {
		t.Helper()
		reading, stop := context.WithCancel(t.Context())
		var readers sync.WaitGroup
		for i, url := range c.urls {
			if i+1 != node {
				readers.Go(func() {
					keepReading(reading, t, url, request{path: "/api/v1/triggers", key: key.secret, address: a.address})
				})
			}
		}
		c.end(t, node)
		c.startProgram(t, program, node)
		c.waitReadyz(t, node, readyWithin)
		stop()
		readers.Wait()
	}
	check("before")
	roll(1, binary)
	check("node1 is new")
	if status := c.status(t, 1); status.Level != 1 {
		t.Errorf("the cluster is of level %d while two nodes know only 1", status.Level)
	}
	roll(1, before)
	check("node1 is back")
	roll(1, binary)
	roll(2, binary)
	check("two are new")
	roll(3, binary)
	check("all are new")
	for _, id := range made {
		must(t, c.urls[len(id)%3], request{path: "/api/v1/organizations/" + id, token: a.token, address: a.address}, http.StatusOK)
	}
	for i := range 30 {
		if passes(t, c.urls[i%3], spent) {
			admitted++
		}
	}
	if admitted != 10 {
		t.Errorf("%d passed over the whole upgrade, want 10", admitted)
	}
}

// end stops one node as an operator would, and waits until it has ended.
func (c *cluster) end(t *testing.T, node int) {
	t.Helper()
	c.mu.Lock()
	byHand, ok := c.byHand[node]
	c.mu.Unlock()
	if ok {
		byHand.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-byHand.done:
		case <-time.After(stopWithin):
			t.Fatalf("node%d did not stop within %v", node, stopWithin)
		}
		return
	}
	pid := c.pid(t, node)
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, stopWithin, "the node has ended", func() error {
		want := fmt.Sprintf("node%d (pid %d) ended", node, pid)
		if !strings.Contains(c.stderr.String(), want) {
			return fmt.Errorf("no %q in %q", want, c.stderr.String())
		}
		return nil
	})
}

// status is `sluice cluster status` of a node, as far as tests go by it.
type clusterStatus struct {
	Level uint64
	Nodes []struct {
		ID, Name string
		Level    *uint64
	}
}

func (c *cluster) status(t *testing.T, node int) (s clusterStatus) {
	t.Helper()
	stdout, stderr, err := c.command(t, node, "cluster", "status", "--output", "json")
	if err != nil {
		t.Fatalf("%v\n%s%s", err, stdout, stderr)
	}
	if err := json.Unmarshal([]byte(stdout), &s); err != nil {
		t.Fatalf("%v in %s", err, stdout)
	}
	return s
}
