package node

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

func TestPacket_RoundTrip(t *testing.T) {
	t.Parallel()
	id := newNodeID()
	for _, size := range []int{0, 1, maxPacket} {
		msg, err := sealPacket(id, bytes.Repeat([]byte{7}, size))
		if err != nil {
			t.Fatal(err)
		}
		from, packet, ok := openPacket(msg)
		if !ok || from != id || len(packet) != size {
			t.Errorf("%d bytes: from %s, %d bytes, %t", size, from, len(packet), ok)
		}
	}
	if _, err := sealPacket(id, make([]byte, maxPacket+1)); err == nil {
		t.Error("a packet beyond the limit was sealed")
	}
}

func FuzzOpenPacket(f *testing.F) {
	msg, err := sealPacket(newNodeID(), []byte("packet"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(msg)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, msg []byte) {
		from, packet, ok := openPacket(msg)
		if !ok {
			return
		}
		if !validNodeID(from) || len(packet) > maxPacket {
			t.Fatalf("from %q, %d bytes", from, len(packet))
		}
		again, err := sealPacket(from, packet)
		if err != nil || !bytes.Equal(again, msg) {
			t.Fatalf("comes back as %x, %v, want %x", again, err, msg)
		}
	})
}

func testGossipKey(b byte) []byte { return append(bytes.Repeat([]byte{0}, 31), b) }

// member of a gossip on loopback.
func gossiper(t *testing.T, clusterID string, key byte, members func() []nodeAddr) *gossip {
	t.Helper()
	g, err := listenGossip(newNodeID(), "127.0.0.1:0", "", newClocks(time.Now), discard())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.close(); err != nil {
			t.Errorf("close gossip: %v", err)
		}
	})
	if clusterID != "" {
		if err := g.start(clusterID, [][]byte{testGossipKey(key)}, members, validNodeID); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

func TestGossip_PacketsAndStrangers(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var all []nodeAddr
	members := func() []nodeAddr {
		mu.Lock()
		defer mu.Unlock()
		return all
	}
	enter := func(g *gossip) {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, nodeAddr{ID: g.self, Gossip: g.address})
	}
	a, b := gossiper(t, "clu_1", 1, members), gossiper(t, "clu_1", 1, members)
	otherKey, otherLabel := gossiper(t, "clu_1", 2, members), gossiper(t, "clu_2", 1, members)
	for _, g := range []*gossip{a, b, otherKey, otherLabel} {
		enter(g)
	}
	got := make(chan string, 1)
	receive := func(from string, packet []byte) {
		select {
		case got <- from + " " + string(packet):
		default:
		}
	}
	b.receive.Store(&receive)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	want := a.self + " hello"
	for received := ""; received != want; {
		a.Send(b.self, []byte("hello"))
		select {
		case received = <-got:
			if received != want {
				t.Fatalf("received %q, want %q", received, want)
			}
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("no packet arrived")
		}
	}
	// Neither a key nor a label gets a packet in, and each is counted.
	for _, strange := range []struct {
		what string
		key  byte
		id   string
	}{{"another secret", 2, "clu_1"}, {"another cluster", 1, "clu_2"}} {
		g := gossiper(t, strange.id, strange.key, func() []nodeAddr { return nil })
		before := b.strange.Load()
		for b.strange.Load() == before {
			if err := g.list.SendToAddress(memberlist.Address{Addr: b.address}, []byte("hello")); err != nil {
				t.Fatal(err)
			}
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				t.Fatalf("packets with %s are not counted", strange.what)
			}
		}
	}
	for _, g := range []*gossip{a, b} {
		if g.isAlive(otherKey.self) || g.isAlive(otherLabel.self) || g.seen() != 2 {
			t.Errorf("%s sees %d nodes", g.self, g.seen())
		}
	}
	if err := a.leave(); err != nil {
		t.Errorf("leave: %v", err)
	}
	for b.isAlive(a.self) {
		changed := b.events.wait()
		if !b.isAlive(a.self) {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatal("b did not notice that a left")
		}
	}
}

// A listener that was never started has to close, whatever came in meanwhile.
func TestGossip_CloseWithoutStart(t *testing.T) {
	t.Parallel()
	silent := gossiper(t, "", 0, nil)
	loud := gossiper(t, "clu_1", 1, func() []nodeAddr { return []nodeAddr{{ID: newNodeID(), Gossip: silent.address}} })
	if _, err := loud.list.Join([]string{silent.address}); err == nil {
		t.Error("joined a gossip that has not started")
	}
}

func TestAdvertised(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ configured, listener, want string }{
		{"", "127.0.0.1:7100", "127.0.0.1:7100"},
		{"node1.example:7200", "0.0.0.0:7100", "node1.example:7200"},
		{"node1.example:0", "0.0.0.0:7100", "node1.example:7100"},
		{"", "0.0.0.0:7100", ""},
		{"", "[::]:7100", ""},
		{"node1.example", "0.0.0.0:7100", ""},
	} {
		got, err := advertised(tt.configured, advertisedAddr(tt.listener), "peer")
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("advertised(%q, %q) = %q, %v, want %q", tt.configured, tt.listener, got, err, tt.want)
		}
	}
}

func TestAddressBook_WhoIsBelieved(t *testing.T) {
	t.Parallel()
	b, id := newAddressBook(), newNodeID()
	if _, err := b.peer(id); !errors.Is(err, errNoAddress) {
		t.Errorf("unknown: %v", err)
	}
	want := func(address string) {
		t.Helper()
		if got, err := b.peer(id); err != nil || got != address {
			t.Errorf("%q, %v, want %q", got, err, address)
		}
	}
	b.setServers([]member{{ID: id, Address: "raft:1"}})
	want("raft:1")
	b.setState([]nodeAddr{{ID: id, Peer: "state:1"}})
	want("state:1")
	b.hear(nodeAddr{ID: id, Peer: "heard:1"})
	want("heard:1")
	b.setState([]nodeAddr{{ID: id, Peer: "state:1"}}) // nothing new
	want("heard:1")
	b.setState([]nodeAddr{{ID: id, Peer: "state:2"}})
	want("state:2")
	b.hear(nodeAddr{ID: "node1", Peer: "x"})
	if _, err := b.peer("node1"); err == nil || strings.Contains(err.Error(), "x ") {
		t.Error("a malformed id was believed")
	}
}
