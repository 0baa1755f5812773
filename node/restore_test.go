package node_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sluice/node"
	"sluice/node/backup"
	"sluice/node/nodetest"
)

// sendBackup posts a backup and wants a status.
func sendBackup(t *testing.T, m *nodetest.Member, query string, data []byte, want int) (restored node.Restored, problem node.AdminProblem) {
	t.Helper()
	req, err := http.NewRequestWithContext(bounded(t), "POST", adminURL(m)+"/restore"+query, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != want {
		t.Fatalf("restore: %d %s, want %d", resp.StatusCode, text, want)
	}
	var out any = &restored
	if want != 200 {
		out = &problem
	}
	if err := json.Unmarshal(text, out); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return restored, problem
}

func contentHash(t *testing.T, m *nodetest.Member) string {
	t.Helper()
	var s backup.Summary
	exchange(t, "GET", adminURL(m)+"/contents", "", nil, &s, 200)
	return s.ContentHash
}

// sameKey gives all clusters of a test one key for secrets at rest.
func sameKey(key node.Secret) nodetest.Option {
	return nodetest.WithConfig(func(i int, cfg *node.Config) {
		generous(i, cfg)
		cfg.Secrets.Key = key
	})
}

func TestRestore_IntoAnotherCluster(t *testing.T) {
	t.Parallel()
	key := node.Secret(node.NewSecret())
	source := nodetest.Start(t, 1, sameKey(key))
	anna := signUp(t, source.Members[0], "anna")
	var apiKey struct{ Key, ID string }
	exchange(t, "POST", publicURL(source.Members[0])+"/api/v1/api-keys", anna.Token, map[string]any{
		"name": "k", "organization_id": anna.Org, "scopes": []string{"organizations:read"}}, &apiKey, 201)
	data := takeBackup(t, source.Members[0], "")
	want := contentHash(t, source.Members[0])

	target := nodetest.Start(t, 3, sameKey(key))
	// Damage, whatever kind, is found before anything happens.
	damaged := bytes.Clone(data)
	damaged[len(damaged)/2] ^= 1
	for _, bad := range [][]byte{damaged, data[:len(data)-1], nil, []byte("hello")} {
		if _, p := sendBackup(t, target.Members[0], "", bad, http.StatusUnprocessableEntity); p.Code != "invalid_backup" {
			t.Errorf("problem %+v", p)
		}
	}
	followers := target.Followers()
	before := target.Members[0].Node.Rosters()
	restored, _ := sendBackup(t, target.Members[followers[0]], "", data, 200)
	if restored.Holds.ContentHash != want || restored.From.NodeID != source.Members[0].Node.ID() {
		t.Errorf("restored %+v", restored)
	}
	for i, m := range target.Members {
		if got := contentHash(t, m); got != want {
			t.Errorf("node %d has the content hash %s, want %s", i, got, want)
		}
		// Her session and her key are good there, on every node.
		exchange(t, "GET", publicURL(m)+"/api/v1/auth/me", anna.Token, nil, nil, 200)
		exchange(t, "GET", publicURL(m)+"/api/v1/auth/me", apiKey.Key, nil, nil, 200)
	}
	after := target.Members[0].Node.Rosters()
	if after.Horizon < before.Horizon || len(after.Rosters) < len(before.Rosters) || after.Rosters[0].Index != before.Rosters[0].Index {
		t.Errorf("shares: %+v, before %+v", after, before)
	}
	// The cluster goes on, and so do its nodes after a restart, with snapshot and log as they are.
	bert := signUp(t, target.Members[1], "bert")
	for i := range target.Members {
		target.Stop(i)
	}
	for i := range target.Members {
		target.Start(i)
	}
	target.WaitReady()
	for _, m := range target.Members {
		exchange(t, "GET", publicURL(m)+"/api/v1/auth/me", anna.Token, nil, nil, 200)
		exchange(t, "GET", publicURL(m)+"/api/v1/auth/me", bert.Token, nil, nil, 200)
	}
	var login struct{ Token string }
	exchange(t, "POST", publicURL(target.Members[2])+"/api/v1/auth/login", "", map[string]string{"username": "anna", "password": "a fine long password"}, &login, 200)
	if left := namesIn(t, filepath.Join(target.Members[followers[0]].Dir, "restore")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestRestore_IntoTheSameCluster(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3, nodetest.WithConfig(func(i int, cfg *node.Config) {
		generous(i, cfg)
		cfg.Limits.Anonymous.Limit, cfg.Limits.Anonymous.Window = 30, node.Duration(31*24*time.Hour)
	}))
	anna := signUp(t, c.Members[0], "anna")
	first := takeBackup(t, c.Members[1], "")
	h, _, err := backup.Inspect(bytes.NewReader(first), nil)
	if err != nil {
		t.Fatal(err)
	}
	signUp(t, c.Members[2], "bert")

	if _, p := sendBackup(t, c.Members[0], "", first, http.StatusConflict); !strings.Contains(p.Detail, "--yes-replace "+h.ClusterID) {
		t.Errorf("without a word: %+v", p)
	}
	if _, p := sendBackup(t, c.Members[0], "?replace=clu_other", first, http.StatusConflict); !strings.Contains(p.Detail, "this is cluster "+h.ClusterID) {
		t.Errorf("for another cluster: %+v", p)
	}
	sendBackup(t, c.Members[0], "?revoke_sessions=1", first, http.StatusUnprocessableEntity)
	exchange(t, "GET", publicURL(c.Members[0])+"/api/v1/auth/me", anna.Token, nil, nil, 200)

	sendBackup(t, c.Members[0], "?revoke_sessions=true&replace="+url.QueryEscape(h.ClusterID), first, 200)
	for i, m := range c.Members {
		nodetest.WaitFor(t, fmt.Sprintf("node %d to have the backup", i), func() error {
			for name, want := range map[string]int{"anna": 200, "bert": 404} {
				if status, _, text := tell(t, "GET", adminURL(m)+"/users/"+name, "", nil); status != want {
					return fmt.Errorf("%s: %d %s", name, status, text)
				}
			}
			if status, _, text := tell(t, "GET", publicURL(m)+"/api/v1/auth/me", anna.Token, nil); status != 401 {
				return fmt.Errorf("her session: %d %s", status, text)
			}
			return nil
		})
	}
	// What was spent of a limit before the restore stays spent: two sign-ups and the rest of 30.
	passed := 2
	for range 60 {
		for _, m := range c.Members {
			if status, _, _ := tell(t, "GET", publicURL(m)+"/api/v1/auth/verify", "", nil); status == 200 {
				passed++
			}
		}
	}
	if passed > 30 || passed < 20 {
		t.Errorf("%d passed of 30", passed)
	}
	var page struct{ Data []struct{ Event string } }
	exchange(t, "GET", adminURL(c.Members[1])+"/audit?event=cluster.*", "", nil, &page, 200)
	if len(page.Data) == 0 || page.Data[0].Event != "cluster.restored" {
		t.Errorf("audit: %+v", page)
	}
}

func TestRestore_AnotherKeyForSecrets(t *testing.T) {
	t.Parallel()
	source := nodetest.Start(t, 1, nodetest.WithConfig(generous))
	target := nodetest.Start(t, 1, nodetest.WithConfig(generous))
	_, key := keyFile(t)
	before := contentHash(t, target.Members[0])
	if _, p := sendBackup(t, target.Members[0], "", takeBackup(t, source.Members[0], ""), http.StatusUnprocessableEntity); !strings.Contains(p.Detail, "secrets.key") {
		t.Errorf("problem %+v", p)
	}
	query := "?recipient=" + url.QueryEscape(key.Recipients[0].(fmt.Stringer).String())
	if _, p := sendBackup(t, target.Members[0], "", takeBackup(t, source.Members[0], query), http.StatusUnprocessableEntity); !strings.Contains(p.Detail, "--key-file") {
		t.Errorf("encrypted: %+v", p)
	}
	if got := contentHash(t, target.Members[0]); got != before {
		t.Error("something changed")
	}
}

// Writes go on while a backup comes in, again and again: each is answered for good or not at all, the horizon never falls,
// and in the end all nodes hold the same.
func TestRestore_WhileWriting(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3, nodetest.WithConfig(generous))
	signUp(t, c.Members[0], "anna")
	data := takeBackup(t, c.Members[0], "")
	h, _, err := backup.Inspect(bytes.NewReader(data), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(bounded(t))
	var wg sync.WaitGroup
	var made atomic.Int64
	for i, m := range c.Members {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				result, err := m.Node.Cluster().Propose(ctx, nodetest.RequestID(), nodetest.Register(fmt.Sprintf("w%d-%d", i, n)))
				if err == nil && result.Refused == "" {
					made.Add(1)
				}
			}
		})
		wg.Go(func() {
			var horizon int64
			for ctx.Err() == nil {
				l := m.Node.Rosters()
				if l.Horizon < horizon || len(l.Rosters) == 0 {
					t.Errorf("node %d: horizon %d after %d, %d rosters", i, l.Horizon, horizon, len(l.Rosters))
					return
				}
				horizon = l.Horizon
				select {
				case <-time.After(time.Millisecond):
				case <-ctx.Done():
				}
			}
		})
	}
	for i := range 3 {
		before := made.Load()
		sendBackup(t, c.Members[i], "?replace="+h.ClusterID, data, 200)
		nodetest.WaitFor(t, "writes after it", func() error {
			if n := made.Load(); n < before+10 {
				return fmt.Errorf("%d, %d before", n, before)
			}
			return nil
		})
	}
	cancel()
	wg.Wait()
	nodetest.WaitFor(t, "equal nodes", func() error {
		want := contentHash(t, c.Members[0])
		for _, m := range c.Members {
			if got := contentHash(t, m); got != want {
				return fmt.Errorf("%s and %s", got, want)
			}
		}
		return nil
	})
	if u, err := c.Members[2].Node.State().UserByName("anna"); err != nil || u == nil {
		t.Errorf("anna: %v, %v", u, err)
	}
}

func TestRestoreWithin(t *testing.T) {
	t.Parallel()
	for size, want := range map[int64]time.Duration{0: 2 * time.Minute, 240 << 20: 3 * time.Minute, 1 << 40: 8 * time.Minute, math.MaxInt64: 8 * time.Minute} {
		if got := node.RestoreWithin(size); got != want {
			t.Errorf("%d bytes: %v, want %v", size, got, want)
		}
	}
}
