package systemtest

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// refused runs a command of an operator that is to fail, and gives its exit code and standard error.
func (c *cluster) refused(t *testing.T, node int, args ...string) (code int, stderr string) {
	t.Helper()
	cmd := exec.Command(binary, append(args, "--config", filepath.Join(c.dir, fmt.Sprintf("node%d.toml", node)))...)
	cmd.Env = cleanEnvironment()
	var out bytes.Buffer
	cmd.Stderr = &out
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("sluice %s: %v, want a refusal", strings.Join(args, " "), err)
	}
	return exit.ExitCode(), out.String()
}

// TestSettings_ApplyHoldsEverywhere applies settings at one node and sees that all nodes go by them at once, in everything that
// changes live; that wrong ones are refused with their lines and change nothing; that they outlive a kill and can be rolled back;
// and that the audit log has it all.
func TestSettings_ApplyHoldsEverywhere(t *testing.T) {
	t.Parallel()
	c := startCluster(t, options{})
	a := register(t, c.urls[0])
	key := a.newKey(t, c.urls[1], 0, "events:read")
	file := func(name, text string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// holds asks every node about a request and wants a status and a limit, at the latest a second after now.
	holds := func(since time.Time, r request, status int, limit string) {
		t.Helper()
		for i, url := range c.urls {
			eventually(t, max(time.Second-time.Since(since), 50*time.Millisecond), "the settings hold", func() error {
				if r.key == "" {
					r.address = newAddress()
				}
				res, err := send(url, r)
				if got := res.header.Get("X-RateLimit-Limit"); err == nil && (res.status != status || got != limit) {
					err = fmt.Errorf("node %d, %s: got limit %s, %v; want %d and limit %s", i+1, r.header["X-Forwarded-Uri"], got, res, status, limit)
				}
				return err
			})
		}
	}
	described := func(uri string, r request) request {
		r.path = "/api/v1/auth/verify"
		r.header = map[string]string{"X-Forwarded-Method": "GET", "X-Forwarded-Uri": uri}
		return r
	}
	byKey := request{key: key.secret, address: a.address}
	holds(time.Now(), described("/api/v1/events", byKey), http.StatusOK, "100")
	holds(time.Now(), described("/invoices", byKey), http.StatusForbidden, "100")

	first := `# settings of a test
[limits.anonymous]
limit = 7

[limits.api_key]
limit = 90

[plans.gold]
limit = 5000

[[routes]]
path = "/invoices"
rules = [{ methods = ["GET"], anonymous = true, scopes = ["invoices:read"] }]

[scopes]
resources = ["invoices", "events"]

[oauth]
redirect_uris = ["https://app.example.com/in"]
`
	good := file("good.toml", first)
	out := c.operate(t, 1, "policy", "diff", good)
	if !strings.Contains(out, "~ limits.api_key.limit = 100 → 90\n") || !strings.Contains(out, "- routes.triggers.path") || !strings.Contains(out, `+ routes.invoices.path = "/invoices"`) {
		t.Errorf("diff:\n%s", out)
	}
	holds(time.Now(), described("/api/v1/events", byKey), http.StatusOK, "100")
	if out := c.operate(t, 1, "policy", "apply", good, "--yes"); !strings.Contains(out, "version 1 is in force\n") {
		t.Errorf("apply:\n%s", out)
	}
	applied := time.Now()
	holds(applied, described("/api/v1/events", byKey), http.StatusForbidden, "90")
	holds(applied, described("/invoices", request{}), http.StatusOK, "7")
	holds(applied, described("/invoices", byKey), http.StatusForbidden, "90") // the key has another scope
	other := a.newKey(t, c.urls[2], 0, "invoices:read")
	holds(time.Now(), described("/invoices", request{key: other.secret, address: a.address}), http.StatusOK, "90")
	c.operate(t, 2, "org", "set-plan", a.organization, "gold")
	holds(time.Now(), described("/invoices", byKey), http.StatusForbidden, "5000")

	// Wrong settings: every mistake with its line, and nothing changes.
	bad := file("bad.toml", strings.Replace(first, "limit = 7", "limit = -7", 1)+"\n[http]\nlisten = \":1\"\n")
	code, text := c.refused(t, 2, "policy", "apply", bad, "--yes")
	if code != 2 || !strings.Contains(text, bad+":3:1: limits.anonymous.limit: ") || !strings.Contains(text, bad+":21:2: http: does not change live") {
		t.Errorf("code %d: %s", code, text)
	}
	if code, text := c.refused(t, 2, "policy", "apply", good); code != 2 || !strings.Contains(text, "--yes") {
		t.Errorf("without a terminal: code %d: %s", code, text)
	}
	holds(time.Now(), described("/invoices", request{}), http.StatusOK, "7")
	if got := c.operate(t, 3, "policy", "show"); got != first {
		t.Errorf("node 3 shows\n%s", got)
	}

	second := file("second.toml", strings.Replace(first, "limit = 7", "limit = 8", 1))
	if out := c.operate(t, 3, "policy", "apply", "--yes", second); out != "against version 1:\n~ limits.anonymous.limit = 7 → 8\nversion 2 is in force\n" {
		t.Errorf("apply:\n%s", out)
	}
	// A node that is killed goes by them again as soon as it answers.
	c.kill(t, 2)
	c.startNode(t, 2)
	c.waitReadyz(t, 2, readyWithin)
	holds(time.Now(), described("/invoices", request{}), http.StatusOK, "8")
	if out := c.operate(t, 2, "policy", "rollback", "1", "--yes"); !strings.Contains(out, "version 3 is in force\n") {
		t.Errorf("rollback:\n%s", out)
	}
	holds(time.Now(), described("/invoices", request{}), http.StatusOK, "7")
	history := c.operate(t, 1, "policy", "history")
	if lines := strings.Split(strings.TrimSpace(history), "\n"); len(lines) != 4 || !strings.HasPrefix(lines[1], "3 ") {
		t.Errorf("history:\n%s", history)
	}
	log := c.operate(t, 1, "audit", "--event", "policy.*")
	if strings.Count(log, "policy.applied operator:") != 2 || strings.Count(log, "policy.rolled_back operator:") != 1 {
		t.Errorf("audit log:\n%s", log)
	}
	status := c.operate(t, 1, "cluster", "status")
	for line := range strings.Lines(status) {
		if strings.HasPrefix(line, "nod_") && !strings.Contains(line, "  3  ") {
			t.Errorf("status:\n%s", status)
		}
	}
	// To none at all: each node's own configuration again.
	c.operate(t, 1, "policy", "rollback", "0", "--yes")
	holds(time.Now(), described("/api/v1/events", byKey), http.StatusOK, "100")
}
