package systemtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// TestBackup_UnderLoadAndElsewhere takes a backup of a cluster that is written to, restores it into another one, and holds
// the two against each other by their content hashes.
func TestBackup_UnderLoadAndElsewhere(t *testing.T) {
	secret, _, err := offline(t, "secret", "new")
	if err != nil {
		t.Fatal(err)
	}
	generous := []string{"SLUICE_SECRETS__KEY=" + strings.TrimSpace(secret), "SLUICE_LIMITS__ANONYMOUS__LIMIT=1000000"}
	from := startCluster(t, options{variables: generous})
	into := startCluster(t, options{variables: generous})
	dir := t.TempDir()
	keyText, _, err := offline(t, "backup", "key")
	if err != nil {
		t.Fatal(err)
	}
	key, file := filepath.Join(dir, "key"), filepath.Join(dir, "b")
	if err := os.WriteFile(key, []byte(keyText), 0o600); err != nil {
		t.Fatal(err)
	}

	// Accounts come into being on all nodes all the time.
	var stop atomic.Bool
	var made atomic.Int64
	var writers sync.WaitGroup
	for w, url := range from.urls {
		writers.Go(func() {
			for i := 0; !stop.Load(); i++ {
				name := fmt.Sprintf("user%d-%d", w, i)
				body := fmt.Sprintf(`{"username":%q,"email":"%s@example.com","password":"a fine long password"}`, name, name)
				res, err := send(url, request{method: "POST", path: "/api/v1/auth/register", raw: body})
				if err == nil && res.status == http.StatusCreated {
					made.Add(1)
				}
			}
		})
	}
	defer func() { stop.Store(true); writers.Wait() }()
	eventually(t, readyWithin, "some accounts", func() error {
		if n := made.Load(); n < 20 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	atLeast := made.Load()
	if stdout, stderr, err := from.command(t, 2, "backup", file, "--key-file", key); err != nil {
		t.Fatalf("backup: %v\n%s%s", err, stdout, stderr)
	}
	if more := made.Load(); more == atLeast {
		t.Log("no account came into being while the backup was made")
	}
	stdout, stderr, err := offline(t, "backup", "verify", file, "--key-file", key, "--output", "json")
	if err != nil {
		t.Fatalf("verify: %v\n%s%s", err, stdout, stderr)
	}
	var verified struct{ Contents contents }
	if err := json.Unmarshal([]byte(stdout), &verified); err != nil {
		t.Fatal(err)
	}
	want := verified.Contents
	if users := want.Sections[0].Records; int64(users) < atLeast || len(want.ContentHash) != 64 {
		t.Errorf("%d users in the backup, %d were acknowledged before it", users, atLeast)
	}

	// One flipped byte, anywhere, and nothing happens.
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before := into.contents(t, 1)
	for _, at := range []int{10, 40, len(data) / 3, len(data) - 40, len(data) - 1} {
		damaged := append([]byte(nil), data...)
		damaged[at] ^= 4
		broken := filepath.Join(dir, "broken")
		if err := os.WriteFile(broken, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, stderr, err := into.command(t, 1, "restore", broken, "--key-file", key); err == nil || !strings.Contains(stderr, "nothing was changed") {
			t.Errorf("byte %d flipped: %v, %s", at, err, stderr)
		}
	}
	if after := into.contents(t, 1); after.ContentHash != before.ContentHash {
		t.Error("a damaged backup changed something")
	}

	if stdout, stderr, err := into.command(t, 3, "restore", file, "--key-file", key); err != nil {
		t.Fatalf("restore: %v\n%s%s", err, stdout, stderr)
	}
	for i := range 3 {
		eventually(t, readyWithin, fmt.Sprintf("node %d to hold the backup", i+1), func() error {
			if got := into.contents(t, i+1); got.ContentHash != want.ContentHash {
				return errors.New(got.ContentHash)
			}
			return nil
		})
	}
	res, err := send(into.urls[0], request{method: "POST", path: "/api/v1/auth/login", raw: `{"username":"user0-0","password":"a fine long password"}`})
	if err != nil || res.status != http.StatusOK {
		t.Errorf("sign-in at the other cluster: %v, %v", res, err)
	}
	// It has users now, and is not replaced by mistake.
	if _, stderr, err := into.command(t, 1, "restore", file, "--key-file", key); err == nil || !strings.Contains(stderr, "--yes-replace") {
		t.Errorf("restored again without a word: %v, %s", err, stderr)
	}
}

// offline runs a command that asks no node.
func offline(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Env = cleanEnvironment()
	var out, errs lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

type contents struct {
	ContentHash string `json:"content_hash"`
	Sections    []struct {
		Name    string
		Records uint64
	}
}

func (c *cluster) contents(t *testing.T, node int) (out contents) {
	t.Helper()
	stdout, stderr, err := c.command(t, node, "cluster", "contents", "--output", "json")
	if err == nil {
		err = json.Unmarshal([]byte(stdout), &out)
	}
	if err != nil {
		t.Fatalf("contents: %v\n%s%s", err, stdout, stderr)
	}
	return out
}
