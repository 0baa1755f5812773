package node_test

import (
	"bytes"
	"fmt"
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

// peerFilesOf gives a member that has not started a certificate of an authority, and returns what issues it another one.
func peerFilesOf(t *testing.T, m *nodetest.Member, authority node.PeerPair, bundle ...node.PeerPair) (issue func(authority node.PeerPair, bundle ...node.PeerPair)) {
	t.Helper()
	dir := t.TempDir()
	id, err := node.NodeID(m.Dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	m.Config.Peer.TLSCert, m.Config.Peer.TLSKey, m.Config.Peer.TLSCA = filepath.Join(dir, "peer.crt"), filepath.Join(dir, "peer.key"), filepath.Join(dir, "ca.crt")
	issue = func(authority node.PeerPair, bundle ...node.PeerPair) {
		t.Helper()
		pair, err := node.NewPeerCertificate(authority, node.PeerIdentity{NodeID: id, Cluster: m.Config.Cluster}, time.Hour, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		var authorities [][]byte
		for _, a := range append(bundle, authority) {
			authorities = append(authorities, a.Certificate)
		}
		for path, text := range map[string][]byte{
			m.Config.Peer.TLSCert: pair.Certificate, m.Config.Peer.TLSKey: pair.Key, m.Config.Peer.TLSCA: bytes.Join(authorities, nil),
		} {
			if err := os.WriteFile(path+".new", text, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		}
	}
	issue(authority, bundle...)
	return issue
}

func newAuthorityOf(t *testing.T, cluster string) node.PeerPair {
	t.Helper()
	pair, err := node.NewPeerAuthority(cluster, 24*time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// Three nodes with certificates of an operator's own get new ones, and another authority, while writes go on through each of them; a
// node with another's certificate does not start, and one of another authority is not taken in.
func TestPeerCertificates_RotateUnderLoad(t *testing.T) {
	t.Parallel()
	old, next := newAuthorityOf(t, "test"), newAuthorityOf(t, "test")
	c := nodetest.New(t, 3, nodetest.WithConfig(withAdmin))
	var issue []func(node.PeerPair, ...node.PeerPair)
	for i, m := range c.Members {
		issue = append(issue, peerFilesOf(t, m, old))
		c.Start(i)
	}
	c.WaitReady()
	for i, m := range c.Members {
		ends := metric(t, m.Node, "sluice_peer_certificate_expiry_timestamp_seconds{}")
		if left := time.Until(time.Unix(int64(ends), 0)); left < 50*time.Minute || left > time.Hour {
			t.Errorf("node %d: the metric says that %s are left", i, left)
		}
	}

	stop := make(chan struct{})
	var writers sync.WaitGroup
	written := make([]atomic.Int64, len(c.Members))
	for i, m := range c.Members {
		writers.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
				if _, err := m.Node.Cluster().Propose(t.Context(), nodetest.RequestID(), nodetest.Register(fmt.Sprintf("w%dn%d", i, n))); err != nil {
					t.Errorf("write %d through node %d: %v", n, i, err)
					return
				}
				written[i].Add(1)
			}
		})
	}
	step := func(what string, authority node.PeerPair, bundle ...node.PeerPair) {
		t.Helper()
		for i, m := range c.Members {
			issue[i](authority, bundle...)
			if err := m.Node.ReloadCertificate(); err != nil {
				t.Errorf("%s: node %d: %v", what, i, err)
			}
			if v := metric(t, m.Node, "sluice_peer_certificate_failing{}"); v != 0 {
				t.Errorf("%s: node %d is failing", what, i)
			}
		}
	}
	// more waits until each writer has written some more.
	more := func() {
		t.Helper()
		for i := range written {
			before := written[i].Load()
			nodetest.WaitFor(t, "writes", func() error {
				if n := written[i].Load(); n < before+3 && !t.Failed() {
					return fmt.Errorf("%d through node %d", n-before, i)
				}
				return nil
			})
		}
	}
	more()
	step("both authorities", old, next)
	more()
	step("certificates of the new one", next, old)
	more()
	step("the new one alone", next)
	more()

	// What follows are nodes that must stay out; the writes go on.
	stranger := c.Add()
	peerFilesOf(t, c.Members[stranger], old, next)
	c.Start(stranger)
	address := c.Members[stranger].Node.PeerAddress()
	nodetest.WaitFor(t, "both logs to tell of the stranger", func() error {
		here, there := false, false
		for line := range strings.Lines(c.Log()) {
			here = here || strings.Contains(line, "peer connection refused") && strings.Contains(line, "claims_node="+c.Members[stranger].Node.ID()) && strings.Contains(line, "reason=authority")
			there = there || strings.Contains(line, "peer not reached") && strings.Contains(line, fmt.Sprintf("member=%d", stranger)) && strings.Contains(line, "reason=refused")
		}
		if !here || !there {
			return fmt.Errorf("told here: %t, there: %t", here, there)
		}
		return nil
	})
	if s, err := clusterStatus(c.Members[0]); err != nil || len(s.Nodes) != 3 {
		t.Errorf("%d members, %v", len(s.Nodes), err)
	}
	c.Stop(stranger)
	thief := c.Add()
	c.Members[thief].Config.Peer = c.Members[0].Config.Peer
	c.Members[thief].Config.Peer.Listen = address
	if n, err := c.Open(thief); err == nil || !strings.Contains(err.Error(), "it is of node "+c.Members[0].Node.ID()) {
		t.Errorf("a node with another's certificate: %v", err)
		if n != nil {
			n.Close()
		}
	}
	close(stop)
	writers.Wait()
	nodetest.WaitFor(t, "all writes everywhere", func() error {
		for i, m := range c.Members[:3] {
			for w := range written {
				n := written[w].Load()
				if user, err := m.Node.State().User(fmt.Sprintf("usr_w%dn%d", w, n-1)); err != nil || user == nil {
					return fmt.Errorf("node %d lacks write %d of %d: %w", i, n-1, w, err)
				}
			}
		}
		return nil
	})
}
