package node_test

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"sluice/node"
	"sluice/node/nodetest"
)

// The keys of gossip follow the key for secrets at rest: nothing is heard of it in gossip, and a node that starts with the new key alone
// takes part.
func TestSecretsKey_KeyringIsSealedAnew(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	clock := func(int) func() time.Time {
		return func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	}
	c := nodetest.Start(t, 3, nodetest.WithClock(clock), nodetest.WithConfig(generous))
	installed := rekey(t, c.Members[0], "install", node.KeyringInstall{})
	old := installed.Primary
	rekey(t, c.Members[1], "use", node.KeyringChange{Key: installed.Key})
	before, err := c.Members[0].Node.State().GossipKeyring()
	if err != nil || before == nil || len(before.Keys) != 2 {
		t.Fatalf("keyring: %+v, %v", before, err)
	}

	first, second := c.Members[0].Config.Secrets.Key, node.Secret(node.NewSecret())
	reload := func(previous node.Secret) {
		t.Helper()
		for i, m := range c.Members {
			m.Config.Secrets.Key, m.Config.Secrets.PreviousKey = second, previous
			if err := m.Node.ReloadSecretsKeys(m.Config); err != nil {
				t.Fatalf("node %d: %v", i, err)
			}
		}
	}
	reload(first)
	exchange(t, "POST", adminURL(c.Members[0])+"/secrets/rotate", "", struct{}{}, nil, 200)
	nodetest.WaitFor(t, "the leader to be through", func() error {
		ahead.Add(int64(5 * time.Second))
		var s node.SecretsStatus
		exchange(t, "GET", adminURL(c.Members[0])+"/secrets", "", nil, &s, 200)
		if s.Progress == nil || !s.Progress.Done {
			return fmt.Errorf("%+v", s.Progress)
		}
		if s.Progress.Records < 4 || s.Progress.Resealed < 4 {
			t.Errorf("through with the refresh key, a signing key and two keys of gossip: %+v", s.Progress)
		}
		return nil
	})
	reload("")
	for i, m := range c.Members {
		after, err := m.Node.State().GossipKeyring()
		if err != nil || after.Version != before.Version || after.Primary != before.Primary || len(after.Keys) != 2 {
			t.Fatalf("node %d: %+v, %v, was %+v", i, after, err, before)
		}
		for j, key := range after.Keys {
			if key.ID != before.Keys[j].ID || bytes.Equal(key.Sealed, before.Keys[j].Sealed) {
				t.Errorf("node %d: key %s is as it was", i, key.ID)
			}
		}
	}
	all := func(keys ...string) {
		t.Helper()
		nodetest.WaitFor(t, "all in the rotated gossip", func() error {
			for i, m := range c.Members {
				if n := metric(t, m.Node, "sluice_gossip_members{}"); n != 3 {
					return fmt.Errorf("node %d sees %v", i, n)
				}
				s, err := keyringOf(m)
				if err == nil {
					err = everyNode(s, 3, keys...)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	all(installed.Key, old)
	for i := range c.Members { // each opens the keyring with the new key alone
		c.Stop(i)
		c.Start(i)
		c.WaitReady()
	}
	all(installed.Key, old)
	rekey(t, c.Members[2], "remove", node.KeyringChange{Key: old})
	all(installed.Key)
	for i, m := range c.Members {
		if n := metric(t, m.Node, "sluice_gossip_packets_strange_total{}"); n > 0 {
			t.Errorf("node %d could not read %v packets", i, n)
		}
	}
}
