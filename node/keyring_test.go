package node_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sluice/node"
	"sluice/node/nodetest"
	"sluice/raftfsm/state"
)

func keyringOf(m *nodetest.Member) (s node.KeyringStatus, err error) {
	resp, err := http.Get("http://" + m.Node.AdminAddr().String() + "/v1/cluster/keyring")
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return s, errors.New(resp.Status)
	}
	return s, decodeJSON(resp.Body, &s)
}

// rekey does one step of a rotation at a member.
func rekey(t *testing.T, m *nodetest.Member, step string, in any) (out node.KeyringChanged) {
	t.Helper()
	if err := adminPost(m, "/v1/cluster/keyring/"+step, in, &out); err != nil {
		t.Fatalf("%s: %v", step, err)
	}
	return out
}

// everyNode says whether each of n nodes goes by these keys, the first of which seals.
func everyNode(s node.KeyringStatus, n int, keys ...string) error {
	if len(s.Nodes) != n || len(s.Keys) != len(keys) || len(s.Notes) > 0 || s.Primary != keys[0] {
		return fmt.Errorf("%+v", s)
	}
	for _, key := range s.Keys {
		used := 0
		if key.Primary {
			used = n
		}
		if !slices.Contains(keys, key.ID) || key.InstalledOn != n || key.UsedBy != used {
			return fmt.Errorf("key %+v of %+v", key, s)
		}
	}
	return nil
}

// The keys of gossip change under three nodes that share out limits all the while: nobody loses sight of anybody, no packet is
// unreadable, and exactly the limit passes.
func TestKeyring_RotatesUnderLoad(t *testing.T) {
	t.Parallel()
	const limit = 600
	c := nodetest.Start(t, 3, nodetest.WithConfig(func(i int, cfg *node.Config) {
		monthly(i, cfg)
		cfg.Limits.Anonymous.Limit = limit
	}))
	seen := func(n float64) {
		t.Helper()
		nodetest.WaitFor(t, "gossip among all", func() error {
			for i, m := range c.Members {
				if m.Node == nil {
					continue
				}
				if got := metric(t, m.Node, "sluice_gossip_members{}"); got != n {
					return fmt.Errorf("node %d sees %v", i, got)
				}
			}
			return nil
		})
	}
	seen(3)
	before := c.Log()

	var admitted, asked atomic.Int64
	ask := func(i int) {
		resp, err := http.DefaultClient.Do(verify(t, c.Members[i%3], "203.0.113.9"))
		if err != nil {
			t.Error(err)
			return
		}
		resp.Body.Close()
		asked.Add(1)
		switch resp.StatusCode {
		case http.StatusOK:
			admitted.Add(1)
		case http.StatusTooManyRequests:
		default:
			t.Errorf("a request was answered %s", resp.Status)
		}
	}
	done := make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() {
		ticker := time.NewTicker(4 * time.Millisecond)
		defer ticker.Stop()
		for i := 0; ; i++ {
			ask(i)
			select {
			case <-ticker.C:
			case <-done:
				return
			}
		}
	})
	first, err := keyringOf(c.Members[0])
	if err != nil || first.Version != 0 || everyNode(first, 3, first.Primary) != nil || first.Keys[0].InstalledAt != nil {
		t.Fatalf("at first: %+v, %v", first, err)
	}
	old := first.Primary
	for round := range 3 {
		at := c.Members[round]
		installed := rekey(t, at, "install", node.KeyringInstall{})
		if err := everyNode(installed.KeyringStatus, 3, old, installed.Key); err != nil || !installed.Changed {
			t.Fatalf("installed: %v", err)
		}
		used := rekey(t, c.Members[(round+1)%3], "use", node.KeyringChange{Key: installed.Key})
		if err := everyNode(used.KeyringStatus, 3, installed.Key, old); err != nil {
			t.Fatalf("used: %v", err)
		}
		removed := rekey(t, c.Members[(round+2)%3], "remove", node.KeyringChange{Key: old})
		if err := everyNode(removed.KeyringStatus, 3, installed.Key); err != nil {
			t.Fatalf("removed: %v", err)
		}
		old = installed.Key
	}
	close(done)
	load.Wait()
	for tries := 0; admitted.Load() < limit && tries < 4*limit; tries++ {
		ask(tries)
	}
	for i := range 30 { // nothing more passes anywhere
		ask(i)
	}
	if got := admitted.Load(); got != limit {
		t.Errorf("%d of %d requests passed, limit %d", got, asked.Load(), limit)
	}
	for i, m := range c.Members {
		if n := metric(t, m.Node, "sluice_gossip_packets_strange_total{}"); n > 0 {
			t.Errorf("node %d could not read %v packets", i, n)
		}
		if n := metric(t, m.Node, "sluice_gossip_packets_replayed_total{}"); n > 0 {
			t.Errorf("node %d took %v packets for old ones", i, n)
		}
		if v := metric(t, m.Node, "sluice_gossip_keyring_version{}"); v != 9 {
			t.Errorf("node %d goes by keyring %v, want 9", i, v)
		}
	}
	if log := strings.TrimPrefix(c.Log(), before); strings.Contains(log, "node lost") {
		t.Error("a node lost sight of another")
	}
	events, _, err := c.Members[0].Node.State().Audit(state.AuditFilter{Event: "gossip_key.*"}, "", 100)
	if err != nil || len(events) != 9 || events[0].SubjectID == "" || events[0].IP != "127.0.0.1" {
		t.Errorf("audit: %+v, %v", events, err)
	}
}

// A node that sleeps through a rotation gets the keys from the log when it comes back, as does one that joins later: neither could
// read a packet of the others before.
func TestKeyring_NodesThatWereAway(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3, nodetest.WithConfig(withAdmin))
	away := c.Followers()[0]
	here := c.Members[(away+1)%3]
	id := c.Members[away].Node.ID()

	own := node.NewSecret()
	installed := rekey(t, here, "install", node.KeyringInstall{Key: own})
	if again := rekey(t, here, "install", node.KeyringInstall{Key: own}); again.Changed || again.Key != installed.Key || again.Version != 1 {
		t.Errorf("installed twice: %+v", again)
	}
	old := installed.Primary
	refuse := func(step, key, code, text string) {
		t.Helper()
		if err := adminPost(here, "/v1/cluster/keyring/"+step, node.KeyringChange{Key: key}, new(node.KeyringChanged)); !refused(err, code, text) {
			t.Errorf("%s %q: %v, want %s: …%s…", step, key, err, code, text)
		}
	}
	refuse("remove", old, "conflict", "in use")
	refuse("use", "0123456789abcdef", "not_found", "named by their fingerprints")
	refuse("remove", "0123456789abcdef", "not_found", "named by their fingerprints")
	refuse("use", "", "invalid_input", "key is required")
	if err := adminPost(here, "/v1/cluster/keyring/install", node.KeyringInstall{Key: "short"}, new(node.KeyringChanged)); !refused(err, "invalid_input", "at least 32") {
		t.Errorf("a short key: %v", err)
	}

	c.Stop(away)
	nodetest.WaitFor(t, "the loss of a node", func() error {
		if n := metric(t, here.Node, "sluice_gossip_members{}"); n != 2 {
			return fmt.Errorf("%v members", n)
		}
		return nil
	})
	used := rekey(t, here, "use", node.KeyringChange{Key: installed.Key})
	if len(used.Notes) != 1 || !strings.HasPrefix(used.Notes[0], id+": does not answer") {
		t.Errorf("notes: %q", used.Notes)
	}
	rekey(t, here, "remove", node.KeyringChange{Key: old})
	newcomer := c.Add()
	c.Start(newcomer)
	c.Start(away)
	c.WaitReady()
	nodetest.WaitFor(t, "all in the rotated gossip", func() error {
		for i, m := range c.Members {
			if n := metric(t, m.Node, "sluice_gossip_members{}"); n != 4 {
				return fmt.Errorf("node %d sees %v", i, n)
			}
			s, err := keyringOf(m)
			if err == nil {
				err = everyNode(s, 4, installed.Key)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	for _, secret := range []string{own, strings.TrimPrefix(own, "slsec_")} {
		if strings.Contains(c.Log(), secret) {
			t.Error("a key is in the log")
		}
	}
}

func decodeJSON(r io.Reader, v any) error { return json.NewDecoder(r).Decode(v) }

// metric is one sample of a node.
func metric(t *testing.T, n *node.Node, sample string) float64 {
	t.Helper()
	value, ok := readMetrics(t, adminText(t, n, "/metrics")).samples[sample]
	if !ok {
		t.Errorf("no sample %s", sample)
	}
	return value
}

// verify is a request of a client at a member, without a credential.
func verify(t *testing.T, m *nodetest.Member, client string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+m.Node.HTTPAddr().String()+"/api/v1/auth/verify", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Forwarded-For", client)
	return req
}
