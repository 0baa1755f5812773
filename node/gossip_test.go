package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	mathrand "math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
	g, err := listenGossip(newNodeID(), "127.0.0.1:0", "", discovery{}, newClocks(time.Now), discard())
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
		before := b.strangePackets()
		for b.strangePackets() == before {
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

// sealed is a packet as g would send it now.
func sealed(t *testing.T, g *gossip, msg []byte) []byte {
	t.Helper()
	ear, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer ear.Close()
	if err := g.list.SendToAddress(memberlist.Address{Addr: ear.LocalAddr().String()}, msg); err != nil {
		t.Fatal(err)
	}
	if err := ear.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for { // another test's node may still look for one that had this port
		n, from, err := ear.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatal(err)
		}
		if int(from.Port()) == g.transport.port() {
			return buf[:n]
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s", what)
		}
	}
}

// A genuine packet is taken once: sent again, or changed in any byte, it is dropped and counted, whoever sends it.
func TestGossip_ReplayedAndAltered(t *testing.T) {
	t.Parallel()
	nobody := func() []nodeAddr { return nil }
	// A cluster of its own: nodes of other tests may look for one that had a port of these.
	id := newNodeID()
	a, b := gossiper(t, id, 1, nobody), gossiper(t, id, 1, nobody)
	var taken atomic.Int64
	receive := func(string, []byte) { taken.Add(1) }
	b.receive.Store(&receive)
	msg, err := sealPacket(a.self, []byte("ten units of share"))
	if err != nil {
		t.Fatal(err)
	}
	genuine := sealed(t, a, msg)
	attacker, err := net.Dial("udp", b.address)
	if err != nil {
		t.Fatal(err)
	}
	defer attacker.Close()
	send := func(packet []byte) {
		t.Helper()
		if _, err := attacker.Write(packet); err != nil {
			t.Fatal(err)
		}
	}
	send(genuine)
	eventually(t, "the genuine packet", func() bool { return taken.Load() == 1 })

	// One at a time, so that none is lost on the way.
	for n := range 100 {
		send(genuine)
		eventually(t, "a replayed packet to be counted", func() bool { return b.transport.replayed.Load() == int64(n+1) })
	}
	for i := range 8 * len(genuine) {
		altered := bytes.Clone(genuine)
		altered[i/8] ^= 1 << (i % 8)
		before := b.strangePackets()
		send(altered)
		eventually(t, "an altered packet to be counted", func() bool { return b.strangePackets() == before+1 })
	}
	for _, packet := range [][]byte{{}, bytes.Repeat([]byte{7}, maxGossipDatagram+1), bytes.Repeat([]byte{7}, 9000)} {
		before := b.transport.oversized.Load()
		send(packet)
		eventually(t, "a packet of no node's length to be counted", func() bool { return b.transport.oversized.Load() == before+1 })
	}
	// What was sealed with a key that has gone is not read any more.
	old := sealed(t, a, msg)
	for _, g := range []*gossip{a, b} {
		if err := errors.Join(g.setKeys([][]byte{testGossipKey(1), testGossipKey(9)}), g.setKeys([][]byte{testGossipKey(9)})); err != nil {
			t.Fatal(err)
		}
	}
	before := b.strangePackets()
	send(old)
	eventually(t, "a packet of an old key to be counted", func() bool { return b.strangePackets() == before+1 })
	if n := taken.Load(); n != 1 || b.badPackets.Load() != 0 {
		t.Errorf("%d packets were taken, %d malformed", n, b.badPackets.Load())
	}
	send(sealed(t, a, msg))
	eventually(t, "a packet of the new key", func() bool { return taken.Load() == 2 })
	// The limiter's packets are noticed however long ago they came: sealed anew, they are nothing that the first filter knows.
	if msg, err = sealPacket(a.self, numbered(1, 7)); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		send(sealed(t, a, msg))
		eventually(t, "a numbered packet", func() bool { return taken.Load() == int64(n)+3 && b.old.Load() == int64(n) })
	}
}

// Streams of strangers are counted and come to nothing: without a label, with another's, under no key, too long, or silent. There are
// never more of them than places, and a member finds one all the same.
func TestGossip_StreamsOfStrangers(t *testing.T) {
	t.Parallel()
	nobody := func() []nodeAddr { return nil }
	id := newNodeID()
	a, b := gossiper(t, id, 1, nobody), gossiper(t, id, 1, nobody)
	stream := func(text []byte) {
		t.Helper()
		conn, err := net.Dial("tcp", b.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		conn.Write(text) // it may be cut off before the end
		if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
			t.Error("a stranger's stream stays open")
		}
	}
	label := append([]byte{244, byte(len(id))}, id...)
	sealedKind := func(size uint32) []byte { return binary.BigEndian.AppendUint32(append(bytes.Clone(label), 10), size) }
	for name, text := range map[string][]byte{
		"no label":            bytes.Repeat([]byte{7}, 100),
		"another label":       append([]byte{244, 5}, "clu_2 and more"...),
		"half a label":        {244, 200, 'x'},
		"in the clear":        append(bytes.Clone(label), 6, 1, 2, 3),
		"no key":              append(sealedKind(100), bytes.Repeat([]byte{1}, 100)...),
		"more than it brings": append(sealedKind(20<<20), 1, 2, 3),
	} {
		before := b.strangeStreams()
		conn, err := net.Dial("tcp", b.address)
		if err != nil {
			t.Fatal(err)
		}
		conn.Write(text)
		conn.(*net.TCPConn).CloseWrite()
		eventually(t, "a stream with "+name+" to be counted", func() bool { return b.strangeStreams() > before })
		conn.Close()
	}
	stream(append(sealedKind(20<<20), bytes.Repeat([]byte{1}, 2*maxGossipStream)...))
	eventually(t, "a long stream to be cut", func() bool { return b.transport.cut.Load() > 0 })

	for range maxGossipStreams + 10 {
		conn, err := net.Dial("tcp", b.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	eventually(t, "all places to be taken", func() bool { return len(b.transport.places) == maxGossipStreams })
	eventually(t, "a member among silent strangers", func() bool {
		n, err := a.list.Join([]string{b.address})
		return err == nil && n == 1
	})
}

// A genuine stream that was changed in any byte on its way comes to nothing and is counted.
func TestGossip_AlteredStreams(t *testing.T) {
	t.Parallel()
	id := newNodeID()
	nobody := func() []nodeAddr { return nil }
	a, b := gossiper(t, id, 1, nobody), gossiper(t, id, 1, nobody)
	ear, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ear.Close()
	heard := make(chan []byte, 1)
	go func() {
		defer close(heard)
		conn, err := ear.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		want := 2 + len(id) + 1 + 4
		genuine := make([]byte, want)
		if _, err := io.ReadFull(conn, genuine); err != nil {
			return
		}
		rest := make([]byte, binary.BigEndian.Uint32(genuine[want-4:]))
		if _, err := io.ReadFull(conn, rest); err == nil {
			heard <- slices.Concat(genuine, rest)
		}
	}()
	if _, err := a.list.Join([]string{ear.Addr().String()}); err == nil {
		t.Error("joined what only listens")
	}
	genuine := <-heard
	if len(genuine) == 0 {
		t.Fatal("no stream was heard")
	}
	send := func(text []byte) {
		t.Helper()
		conn, err := net.Dial("tcp", b.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.Write(text) // it may be cut off before the end
		conn.(*net.TCPConn).CloseWrite()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
			t.Error("the stream stays open")
		}
	}
	for i := range genuine {
		altered := bytes.Clone(genuine)
		altered[i] ^= 1 << (i % 8)
		before := b.strangeStreams()
		send(altered)
		eventually(t, "an altered stream to be counted", func() bool { return b.strangeStreams() > before })
	}
	if b.seen() != 1 {
		t.Errorf("%d nodes are seen", b.seen())
	}
	send(genuine) // or all of this would prove nothing
	eventually(t, "the genuine stream", func() bool { return b.isAlive(a.self) })
}

// Whatever becomes of the keys, the first one seals, all of them open, and no other does.
func TestGossip_SetKeys(t *testing.T) {
	t.Parallel()
	g := gossiper(t, newNodeID(), 1, func() []nodeAddr { return nil })
	seed := uint64(time.Now().UnixNano())
	random := mathrand.New(mathrand.NewPCG(seed, 0))
	for round := range 500 {
		var keys [][]byte
		for _, k := range random.Perm(12)[:1+random.IntN(8)] {
			keys = append(keys, testGossipKey(byte(k)))
		}
		if err := g.setKeys(keys); err != nil {
			t.Fatal(err)
		}
		got := g.keyring.GetKeys()
		ok := len(got) == len(keys) && bytes.Equal(got[0], keys[0])
		for _, key := range keys {
			ok = ok && slices.ContainsFunc(got, func(k []byte) bool { return bytes.Equal(k, key) })
		}
		if !ok {
			t.Fatalf("seed %d, round %d: %x, want %x", seed, round, got, keys)
		}
	}
}
