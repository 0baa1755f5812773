package node_test

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"testing"

	"sluice/node"
	"sluice/node/nodetest"
)

// srvOf is the targets that lead to members, under a name for each.
func srvOf(t *testing.T, dns *nodetest.DNS, members ...*nodetest.Member) (targets []nodetest.SRV) {
	t.Helper()
	for _, m := range members {
		host, portText, err := net.SplitHostPort(m.Config.Peer.Listen)
		if err != nil {
			t.Fatal(err)
		}
		port, err := strconv.ParseUint(portText, 10, 16)
		if err != nil {
			t.Fatal(err)
		}
		name := m.Config.Name + ".peers.test"
		dns.SetIPs(name, host)
		targets = append(targets, nodetest.SRV{Target: name, Port: uint16(port)})
	}
	return targets
}

// move gives a stopped member other ports.
func move(t *testing.T, c *nodetest.Cluster, i int) {
	t.Helper()
	m := c.Members[i]
	host, _, err := net.SplitHostPort(m.Config.Peer.Listen)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	m.Config.Peer.Listen = ln.Addr().String()
	ln.Close()
	m.Config.Gossip.Listen = net.JoinHostPort(host, "0")
}

// A cluster forms by an SRV record, all its nodes come back at other addresses at once, and one more joins by the record.
func TestDiscovery_AllAddressesChangeAtOnce(t *testing.T) {
	t.Parallel()
	const record = "_peer._tcp.sluice.test"
	dns := nodetest.NewDNS(t)
	c := nodetest.New(t, 3, nodetest.WithResolver(dns.Resolver()))
	for _, m := range c.Members {
		m.Config.InitialMembers, m.Config.InitialCount = []string{"srv:" + record}, 3
	}
	// The record is there before one of the nodes is: the others wait.
	targets := srvOf(t, dns, c.Members...)
	dns.SetSRV(record, targets[:2]...)
	for i := range c.Members {
		c.Start(i)
	}
	nodetest.WaitFor(t, "the others to be waited for", func() error {
		if err := c.Members[0].Node.Health()[0].Err; err == nil || err.Error() != "waiting for 1 of 3 initial members" {
			return fmt.Errorf("cluster check: %w", err)
		}
		return nil
	})
	dns.SetSRV(record, targets...)
	c.WaitReady()
	register(t, c.Members[1].Node, "anna")

	var ids []string
	for i := range c.Members {
		ids = append(ids, c.Members[i].Node.ID())
		c.Stop(i)
	}
	for i := range c.Members {
		move(t, c, i)
	}
	dns.SetSRV(record, srvOf(t, dns, c.Members...)...)
	for i := range c.Members {
		c.Start(i)
	}
	c.WaitReady()
	for i, m := range c.Members {
		if m.Node.ID() != ids[i] {
			t.Errorf("node %d is %s now", i, m.Node.ID())
		}
		knows(t, m.Node, "anna")
	}
	register(t, c.Members[2].Node, "bert")

	joined := c.Add()
	c.Members[joined].Config.Join = []string{"srv:" + record}
	c.Start(joined)
	c.WaitReady()
	knows(t, c.Members[joined].Node, "bert")
}

// One name leads to all nodes, as that of a headless service does; one configuration serves those that form the cluster and the
// one that comes later, and the node that lost its volume.
func TestDiscovery_OneNameForAll(t *testing.T) {
	t.Parallel()
	const name = "peers.sluice.test"
	dns := nodetest.NewDNS(t)
	c := nodetest.New(t, 3, nodetest.WithResolver(dns.Resolver()), nodetest.WithConfig(monthly))
	joined := c.Add()
	// All have one port, so each needs an address of its own.
	first, port, err := net.SplitHostPort(c.Members[0].Config.Peer.Listen)
	if err != nil {
		t.Fatal(err)
	}
	base := net.ParseIP(first).To4()
	var hosts []string
	for i, m := range c.Members {
		host := net.IPv4(base[0], base[1], base[2], byte(1+(int(base[3])+i)%250)).String()
		if i == 0 {
			host = first
		}
		hosts = append(hosts, host)
		if i > 0 {
			c.Absent(i)
		}
		m.Config.Peer.Listen, m.Config.Gossip.Listen = net.JoinHostPort(host, port), net.JoinHostPort(host, "0")
		m.Config.InitialMembers, m.Config.InitialCount = []string{net.JoinHostPort(name, port)}, 3
		m.Config.Join = m.Config.InitialMembers
	}
	dns.SetIPs(name, hosts[:3]...)
	for i := range 3 {
		c.Start(i)
	}
	c.WaitReady()
	register(t, c.Members[0].Node, "anna")
	dns.SetIPs(name, hosts...)
	c.Start(joined)
	c.WaitReady()
	knows(t, c.Members[joined].Node, "anna")
	if a, b := c.Members[0].Node.Health()[0].Detail, c.Members[joined].Node.Health()[0].Detail; a != b {
		t.Errorf("two clusters: %s and %s", a, b)
	}

	// Its volume is lost: under its address the old one is still a member, so an operator has to say that it is gone.
	lost := c.Followers()[0]
	m := c.Members[lost]
	old := m.Node.ID()
	c.Stop(lost)
	m.Dir = t.TempDir()
	m.Config.DataDir = m.Dir
	err = ended(t, c.Start(lost))
	c.Stop(lost)
	if err == nil {
		t.Fatal("a second node at a member's address")
	}
	var removed node.RemovedNode
	if err := adminPost(c.Members[c.Leader()], "/v1/cluster/remove", node.RemoveNode{Node: old}, &removed); err != nil {
		t.Fatal(err)
	}
	c.Start(lost)
	c.WaitReady()
	if m.Node.ID() == old {
		t.Error("the id of a lost volume is used again")
	}
	knows(t, m.Node, "anna")
}

// A record that cannot be is told, and looked up again.
func TestDiscovery_SaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	dns := nodetest.NewDNS(t)
	c := nodetest.New(t, 1, nodetest.WithResolver(dns.Resolver()))
	m := c.Members[0]
	m.Config.InitialMembers, m.Config.Join = nil, []string{"srv:_peer._tcp.nowhere.test"}
	c.Start(0)
	nodetest.WaitFor(t, "the name to be looked up again", func() error {
		err := m.Node.Health()[0].Err
		if err == nil || dns.Asked("_peer._tcp.nowhere.test") < 3 {
			return errors.New("not yet")
		}
		if want := "waiting for srv:_peer._tcp.nowhere.test to be looked up (no such host)"; err.Error() != want {
			return fmt.Errorf("says %w, want %s", err, want)
		}
		return nil
	})
}
