package node_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sluice/node"
	"sluice/node/nodetest"
)

// tellOnce posts JSON with an Idempotency-Key.
func tellOnce(t *testing.T, url, credential, once string, body any) (int, string) {
	t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	req, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(text))
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+credential)
	req.Header.Set("Idempotency-Key", once)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Errorf("POST %s: %v", url, err)
		return 0, ""
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Errorf("POST %s: %v", url, err)
	}
	return resp.StatusCode, string(answer)
}

// The key for secrets at rest is rotated under sign-ins and changes with an Idempotency-Key, the leader changes in the middle, and the
// old key goes at the end. No request fails but for the change of the leader, and nothing needs the old key.
func TestSecretsKey_RotatedInARunningCluster(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	clock := func(int) func() time.Time {
		return func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	}
	dir := t.TempDir()
	first, second := node.NewSecret(), node.NewSecret()
	oldKey, newKey := filepath.Join(dir, "old.key"), filepath.Join(dir, "new.key")
	writeFiles(t, map[string][]byte{oldKey: []byte(first), newKey: []byte(second)})
	configs := make([]node.Config, 3)
	c := nodetest.Start(t, 3, nodetest.WithClock(clock), nodetest.WithConfig(func(i int, cfg *node.Config) {
		generous(i, cfg)
		cfg.Secrets.Key, cfg.Secrets.KeyFile = "", oldKey
		configs[i] = *cfg
	}))
	admin := func(i int) string { return adminURL(c.Members[i]) }
	p := signUp(t, c.Members[0], "anna")
	signUp(t, c.Members[0], "ben") // whose sessions may end since there are too many
	create := func(m *nodetest.Member, once string) (int, string) {
		req := map[string]any{"name": once, "organization_id": p.Org, "scopes": []string{"events:read"}}
		status, text := tellOnce(t, publicURL(m)+"/api/v1/api-keys", p.Token, once, req)
		return status, text
	}
	var answers []string
	for i := range 60 {
		status, text := create(c.Members[i%3], fmt.Sprint("before-", i))
		if status != 201 {
			t.Fatalf("create: %d %s", status, text)
		}
		answers = append(answers, text)
	}

	exchange(t, "POST", admin(0)+"/secrets/rotate", "", struct{}{}, nil, 409) // there is one key only
	reload := func(i int, key, previous string) error {
		cfg := configs[i]
		cfg.Secrets.KeyFile, cfg.Secrets.PreviousKeyFile = key, previous
		return c.Members[i].Node.ReloadSecretsKeys(cfg)
	}
	if err := reload(0, newKey, ""); err == nil || !strings.Contains(err.Error(), "may still be needed") && !strings.Contains(err.Error(), "is not among them") {
		t.Errorf("the key in use was taken out: %v", err)
	}
	for i := range 2 {
		if err := reload(i, newKey, oldKey); err != nil {
			t.Fatal(err)
		}
	}
	var refused node.AdminProblem
	exchange(t, "POST", admin(0)+"/secrets/rotate", "", struct{}{}, &refused, 409)
	if !strings.Contains(refused.Detail, c.Members[2].Node.ID()+" does not hold the key") {
		t.Errorf("with a node that lacks the key: %+v", refused)
	}
	if err := reload(2, newKey, oldKey); err != nil {
		t.Fatal(err)
	}

	stop := make(chan struct{})
	var load sync.WaitGroup
	var made, failed atomic.Int64
	for i, m := range c.Members {
		load.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				once := fmt.Sprintf("during-%d-%d", i, n)
				status, text := create(m, once)
				if status == 503 { // the leader changes
					failed.Add(1)
					continue
				}
				if again, same := create(m, once); status != 201 || again == 201 && same != text || again != 201 && again != 503 {
					t.Errorf("%s: %d %s, and again %d %s", once, status, text, again, same)
					return
				}
				status, _, body := tell(t, "POST", publicURL(m)+"/api/v1/auth/login", "", map[string]string{"username": "ben", "password": "a fine long password"})
				if status != 200 && status != 503 {
					t.Errorf("sign-in: %d %s", status, body)
					return
				}
				made.Add(1)
			}
		})
	}
	var rotated node.RotatedSecrets
	exchange(t, "POST", admin(c.Followers()[0])+"/secrets/rotate", "", node.RotateSecrets{}, &rotated, 200)
	var moved node.TransferredLeader
	exchange(t, "POST", admin(c.Followers()[0])+"/cluster/transfer-leader", "", node.TransferLeader{}, &moved, 200)
	status := func() node.SecretsStatus {
		t.Helper()
		var s node.SecretsStatus
		exchange(t, "GET", admin(0)+"/secrets", "", nil, &s, 200)
		return s
	}
	nodetest.WaitFor(t, "a whole look at everything by the new leader", func() error {
		if s := status(); s.Progress == nil || s.Progress.Records < 63 || s.Progress.Checked != s.Progress.Records || s.Key != rotated.Key {
			return fmt.Errorf("%+v, %+v", s, s.Progress)
		}
		return nil
	})
	close(stop)
	load.Wait()
	t.Log("looked at everything")
	if made.Load() == 0 {
		t.Errorf("no request was made meanwhile; %d were refused", failed.Load())
	}
	if s := status(); s.Progress.Done || len(s.Unused) != 0 {
		t.Errorf("said to be through too early: %+v", s)
	}
	if err := reload(1, newKey, ""); err == nil || !strings.Contains(err.Error(), "may still be needed") {
		t.Errorf("the old key was taken out too early: %v", err)
	}
	// Half a minute between two looks, of which two have to find nothing.
	for range 3 {
		before := status().Progress
		ahead.Add(int64(31 * time.Second))
		c.WaitReady()
		nodetest.WaitFor(t, "another look", func() error {
			if p := status().Progress; p == nil || !p.Done && p.CheckedAt.Before(before.CheckedAt.Add(30*time.Second)) {
				return fmt.Errorf("%+v, after %+v", p, before)
			}
			return nil
		})
	}
	nodetest.WaitFor(t, "the end", func() error {
		if s := status(); s.Progress == nil || !s.Progress.Done || len(s.Unused) != 1 || s.Unused[0] != rotated.Previous || len(s.Problems) != 0 {
			return fmt.Errorf("%+v, %+v", s, s.Progress)
		}
		return nil
	})
	if err := os.Remove(oldKey); err != nil {
		t.Fatal(err)
	}
	for i := range configs {
		if err := reload(i, newKey, ""); err != nil {
			t.Errorf("node %d without the old key: %v", i, err)
		}
	}
	for _, m := range c.Members { // the clocks have jumped: limits are decided again once the leader has set a horizon
		nodetest.WaitFor(t, "a decision", func() error {
			if status, _, text := tell(t, "GET", publicURL(m)+"/api/v1/health", "", nil); status != 200 {
				return fmt.Errorf("%d %s", status, text)
			}
			return nil
		})
	}
	for i, want := range answers {
		if status, text := create(c.Members[(i+1)%3], fmt.Sprint("before-", i)); status != 201 || text != want {
			t.Fatalf("answer %d: %d %s, want %s", i, status, text, want)
		}
	}
}

// While the key is replaced, a node with the old one alone is refused, and one with the new one alone waits until that is all it needs.
func TestSecretsKey_JoinDuringARotation(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	clock := func(int) func() time.Time {
		return func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	}
	var first string
	second := node.NewSecret()
	c := nodetest.New(t, 1, nodetest.WithClock(clock), nodetest.WithConfig(func(i int, cfg *node.Config) {
		generous(i, cfg)
		switch i {
		case 0:
			first = string(cfg.Secrets.Key)
		case 2:
			cfg.Secrets.Key = node.Secret(second)
		}
	}))
	c.Start(0)
	c.WaitReady()
	cfg := c.Members[0].Config
	cfg.Secrets.Key, cfg.Secrets.PreviousKey = node.Secret(second), node.Secret(first)
	if err := c.Members[0].Node.ReloadSecretsKeys(cfg); err != nil {
		t.Fatal(err)
	}
	exchange(t, "POST", adminURL(c.Members[0])+"/secrets/rotate", "", struct{}{}, nil, 200)
	old := c.Start(c.Add())
	nodetest.WaitFor(t, "the node with the old key to end", func() error {
		if err := old.Err(); err == nil || !strings.Contains(err.Error(), node.ErrOtherKey.Error()) {
			return fmt.Errorf("%v", err)
		}
		return nil
	})
	c.Stop(1)
	i := c.Add()
	c.Members[i].Config.Join = c.Members[i].Config.Join[:1]
	c.Start(i)
	nodetest.WaitFor(t, "the node with the new key to be asked to wait", func() error {
		for _, check := range c.Members[i].Node.Health() {
			if check.Err != nil && strings.Contains(check.Err.Error(), "waiting") {
				return nil
			}
		}
		return fmt.Errorf("%+v", c.Members[i].Node.Health())
	})
	nodetest.WaitFor(t, "the leader to be through", func() error {
		ahead.Add(int64(5 * time.Second))
		var s node.SecretsStatus
		exchange(t, "GET", adminURL(c.Members[0])+"/secrets", "", nil, &s, 200)
		if s.Progress == nil || !s.Progress.Done {
			return fmt.Errorf("%+v", s.Progress)
		}
		return nil
	})
	c.WaitReady()
}

// The cluster secret is replaced while all nodes are down; what they have stays.
func TestClusterSecret_ReplacedWhileAllAreDown(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3, nodetest.WithConfig(generous))
	p := signUp(t, c.Members[0], "anna")
	for i := range c.Members {
		c.Stop(i)
	}
	secret := node.Secret(node.NewSecret())
	for i, m := range c.Members {
		m.Config.Secrets.Cluster = secret
		c.Start(i)
	}
	c.WaitReady()
	for _, m := range c.Members {
		nodetest.WaitFor(t, "a token from before", func() error {
			if status, _, text := tell(t, "GET", publicURL(m)+"/api/v1/auth/me", p.Token, nil); status != 200 {
				return fmt.Errorf("%d %s", status, text)
			}
			return nil
		})
	}
}

// A backup that is sealed under a key of which one node alone knows leaves the others without the key that is in use then: their metrics and
// the status say so, until they are given it.
func TestSecretsKey_MissingAfterARestore(t *testing.T) {
	t.Parallel()
	former, present := node.Secret(node.NewSecret()), node.Secret(node.NewSecret())
	source := nodetest.Start(t, 1, sameKey(former))
	signUp(t, source.Members[0], "anna")
	data := takeBackup(t, source.Members[0], "")
	configs := make([]node.Config, 2)
	c := nodetest.Start(t, 2, nodetest.WithConfig(func(i int, cfg *node.Config) {
		generous(i, cfg)
		if cfg.Secrets.Key = present; i == 0 {
			cfg.Secrets.PreviousKey = former
		}
		configs[i] = *cfg
	}))
	sendBackup(t, c.Members[0], "", data, 200)
	missing := func(want ...string) {
		t.Helper()
		nodetest.WaitFor(t, "sluice_secrets_key_missing "+strings.Join(want, ", "), func() error {
			for i, value := range want {
				if text := metricsOf(t, c.Members[i]); !bytes.Contains(text, []byte("\nsluice_secrets_key_missing "+value+"\n")) {
					return fmt.Errorf("node %d has another", i)
				}
			}
			return nil
		})
	}
	missing("0", "1")
	var status node.SecretsStatus
	exchange(t, "GET", adminURL(c.Members[0])+"/secrets", "", nil, &status, 200)
	if len(status.Problems) != 1 || !strings.Contains(status.Problems[0], c.Members[1].Node.ID()+" does not hold the key") {
		t.Errorf("problems %q", status.Problems)
	}
	cfg := configs[1]
	cfg.Secrets.PreviousKey = former
	if err := c.Members[1].Node.ReloadSecretsKeys(cfg); err != nil {
		t.Fatal(err)
	}
	missing("0", "0")
}
