package node_test

import (
	"bytes"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"sluice/node"
	"sluice/node/backup"
	"sluice/node/nodetest"
)

// keyFile writes a new backup key.
func keyFile(t *testing.T) (path string, key backup.Key) {
	t.Helper()
	text, _, err := backup.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "backup.key")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if key, err = backup.ReadKeyFile(path); err != nil {
		t.Fatal(err)
	}
	return path, key
}

// takeBackup streams a backup from a member.
func takeBackup(t *testing.T, m *nodetest.Member, query string) []byte {
	t.Helper()
	status, header, data := tell(t, "GET", adminURL(m)+"/backup"+query, "", nil)
	if status != 200 || header.Get("Content-Type") != "application/octet-stream" {
		t.Fatalf("backup: %d %s", status, data)
	}
	return data
}

func TestAdminBackup_FromAnyNode(t *testing.T) {
	t.Parallel()
	path, configured := keyFile(t)
	_, asked := keyFile(t)
	c := nodetest.Start(t, 3, nodetest.WithConfig(func(i int, cfg *node.Config) {
		generous(i, cfg)
		if i == 2 {
			cfg.Backup.KeyFile = path
		}
	}))
	signUp(t, c.Members[0], "anna")
	var hashes []string
	for i, m := range c.Members {
		var summary backup.Summary
		exchange(t, "GET", adminURL(m)+"/contents", "", nil, &summary, 200)
		h, contents, err := backup.Inspect(bytes.NewReader(takeBackup(t, m, "")), configured.Identities)
		if err != nil || h.Encrypted() != (i == 2) || h.NodeID != m.Node.ID() || h.Version != "test" || h.Cluster != "test" || h.CreatedAt.IsZero() {
			t.Fatalf("node %d: %+v, %v", i, h, err)
		}
		if got := backup.Summarize(contents); got.ContentHash != summary.ContentHash || got.Sections[0].Records != 1 {
			t.Errorf("node %d: the backup holds %+v, the node %+v", i, got, summary)
		}
		hashes = append(hashes, summary.ContentHash)
	}
	if hashes[0] != hashes[1] || hashes[1] != hashes[2] {
		t.Errorf("content hashes differ: %v", hashes)
	}
	query := "?recipient=" + url.QueryEscape(asked.Recipients[0].(interface{ String() string }).String())
	if _, _, err := backup.Inspect(bytes.NewReader(takeBackup(t, c.Members[2], query)), asked.Identities); err != nil {
		t.Errorf("for another key: %v", err)
	}
	if h, _, err := backup.Inspect(bytes.NewReader(takeBackup(t, c.Members[2], "?unencrypted=true")), nil); err != nil || h.Encrypted() {
		t.Errorf("unencrypted: %+v, %v", h, err)
	}
	for _, query := range []string{"?recipient=age1x", "?stale=1", "?stale=", "?other=true", "?unencrypted=true&recipient=" + url.QueryEscape("age1x")} {
		exchange(t, "GET", adminURL(c.Members[0])+"/backup"+query, "", nil, nil, http.StatusUnprocessableEntity)
	}

	// Without a majority a node gives what it has only where that is asked for.
	c.Stop(0)
	c.Stop(1)
	var problem node.AdminProblem
	exchange(t, "GET", adminURL(c.Members[2])+"/backup", "", nil, &problem, http.StatusServiceUnavailable)
	if problem.Code != "cluster_unavailable" {
		t.Errorf("problem %+v", problem)
	}
	if _, contents, err := backup.Inspect(bytes.NewReader(takeBackup(t, c.Members[2], "?stale=true")), configured.Identities); err != nil || contents.Sections[0].Records != 1 {
		t.Errorf("stale: %+v, %v", contents, err)
	}
}
