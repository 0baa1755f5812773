package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/oklog/ulid/v2"
)

const (
	// maxPacket is the largest packet of the limiter. With the sender's name, the label, memberlist's header and the
	// seal it stays below the MTU, so that no packet depends on fragments.
	maxPacket = 1200
	// packetKind is the first byte of a user message that carries a limiter's packet; the sender's ULID follows.
	packetKind   = 1
	packetHeader = 1 + 16
	// packetQueue bounds the packets that wait for the limiter: what it cannot take, the next batch makes good.
	packetQueue = 4096
	// rejoinInterval is how often a member that gossip has lost sight of is looked up again; where nobody else is seen,
	// at every look.
	rejoinInterval = 10 * time.Second
	rejoinLook     = 500 * time.Millisecond
	leaveTimeout   = 800 * time.Millisecond
)

// gossip is this node's memberlist: liveness, clock offsets and the limiter's packets. Nothing that it says gives a
// right: who is a member says the Raft configuration, who holds a share says the roster.
type gossip struct {
	self      string
	log       *slog.Logger
	transport *gossipTransport
	keyring   *memberlist.Keyring // set by start
	address   string              // advertised
	clocks    *clocks
	discovery discovery
	events    broadcast // somebody came or went

	receive atomic.Pointer[func(from string, packet []byte)]
	inbox   chan []byte
	list    *memberlist.Memberlist // set by start, before anything else uses it
	started atomic.Bool

	mu    sync.RWMutex
	alive map[string]*memberlist.Node
	lost  map[string]time.Time // since when nodes that were seen are not
	began time.Time            // of start: what was never seen is lost since then

	dropped, badPackets, received, sent atomic.Int64
	old                                 atomic.Int64 // of the received: came before, by their number
	strange, unreadable                 atomic.Int64 // packets and streams without the cluster's keys; packets for another cluster, too

	stop    context.CancelFunc
	ctx     context.Context
	wg      sync.WaitGroup
	drain   context.CancelFunc // ends the discarding of packets before the start; drained is closed once it has
	drained chan struct{}
	once    onceIn
}

// listenGossip binds the UDP and TCP port, so that the address is known before the cluster is.
func listenGossip(self, listen, advertise string, names discovery, clocks *clocks, logger *slog.Logger) (*gossip, error) {
	host, portText, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, fmt.Errorf("gossip.listen: %w", err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("gossip.listen: port %q is no number", portText)
	}
	if host == "" {
		host = "0.0.0.0"
	}
	ip, err := names.ip(host)
	if err != nil {
		return nil, fmt.Errorf("gossip.listen: %w", err)
	}
	logger = logger.With("component", "gossip")
	transport, err := openGossipTransport(ip, int(port))
	if err != nil {
		return nil, fmt.Errorf("listen for gossip on %s: %w", listen, err)
	}
	address, err := advertised(advertise, &net.TCPAddr{IP: ip, Port: transport.port()}, "gossip")
	if err != nil {
		return nil, errors.Join(err, transport.Shutdown())
	}
	ctx, stop := context.WithCancel(context.Background())
	drainCtx, drain := context.WithCancel(ctx)
	g := &gossip{
		self: self, log: logger, transport: transport, address: address, clocks: clocks, discovery: names,
		inbox: make(chan []byte, packetQueue), alive: make(map[string]*memberlist.Node), lost: make(map[string]time.Time),
		ctx: ctx, stop: stop, drain: drain, drained: make(chan struct{}),
	}
	// What comes before there is a memberlist is dropped, not kept for it.
	g.wg.Go(func() {
		defer close(g.drained)
		for {
			select {
			case <-transport.PacketCh():
			case conn := <-transport.StreamCh():
				conn.Close()
			case <-drainCtx.Done():
				return
			}
		}
	})
	return g, nil
}

// ip turns a host into an address; memberlist knows no names.
func (d discovery) ip(host string) (net.IP, error) {
	if ip := net.ParseIP(host); ip != nil {
		return ip, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	ips, err := d.resolver.LookupIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	return ips[0], nil
}

// start joins the gossip of a cluster. members lists who should be seen, with their gossip addresses; packets that name
// another sender than a known one are dropped. keys open packets, the first one seals them; see setKeys.
func (g *gossip) start(clusterID string, keys [][]byte, members func() []nodeAddr, known func(id string) bool) error {
	host, portText, err := net.SplitHostPort(g.address)
	if err != nil {
		return fmt.Errorf("gossip.advertise: %w", err)
	}
	ip, err := g.discovery.ip(host)
	if err != nil {
		return fmt.Errorf("gossip.advertise: %w", err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return fmt.Errorf("gossip.advertise: %w", err)
	}
	if g.keyring, err = memberlist.NewKeyring(keys, keys[0]); err != nil {
		return fmt.Errorf("start gossip: %w", err)
	}
	c := memberlist.DefaultLANConfig()
	c.Name = g.self
	c.Transport = g.transport
	c.AdvertiseAddr, c.AdvertisePort = ip.String(), port
	c.BindPort = port
	// The label is authenticated with every packet: another cluster's packets are dropped even where somebody gave
	// both the same secret.
	c.Label = clusterID
	c.Keyring = g.keyring
	c.GossipVerifyIncoming, c.GossipVerifyOutgoing = true, true
	c.EnableCompression = false
	c.TCPTimeout = 3 * time.Second
	// A member that is dead at one address may live at another. Names are ids that are never given twice, so nobody else is
	// mistaken for it.
	c.DeadNodeReclaimTime = time.Second
	c.Logger = log.New(&strangeLines{
		next: newLineLogger(g.log).Writer(), packets: &g.strange, streams: &g.unreadable, refused: g.refused,
	}, "", 0)
	c.Delegate, c.Events, c.Ping, c.Conflict = (*gossipDelegate)(g), (*gossipEvents)(g), (*gossipPing)(g), (*gossipConflict)(g)
	g.transport.setLabel(clusterID)
	g.drain()
	<-g.drained // or it might take what the memberlist should get
	list, err := memberlist.Create(c)
	if err != nil {
		return fmt.Errorf("start gossip: %w", err)
	}
	g.list = list
	g.mu.Lock()
	g.began = time.Now()
	g.mu.Unlock()
	g.started.Store(true)
	g.wg.Go(func() { g.deliver(known) })
	g.wg.Go(func() { g.rejoin(members) })
	return nil
}

// setKeys makes keys what packets are opened with, and the first of them what they are sealed with, while packets come and go. It is
// not called concurrently, nor before start.
func (g *gossip) setKeys(keys [][]byte) error {
	contains := func(list [][]byte, key []byte) bool {
		return slices.ContainsFunc(list, func(other []byte) bool { return bytes.Equal(other, key) })
	}
	for _, key := range keys {
		if err := g.keyring.AddKey(key); err != nil {
			return err
		}
	}
	if err := g.keyring.UseKey(keys[0]); err != nil {
		return err
	}
	// memberlist closes the gap that a key leaves in the very list that is being read for packets, so keys go only from its end: the
	// others are moved to the front before. Where they are at the end already, as that of a rotation is, nothing moves.
	if slices.ContainsFunc(g.keyring.GetKeys()[:len(keys)], func(key []byte) bool { return !contains(keys, key) }) {
		for _, key := range slices.Backward(keys) {
			if err := g.keyring.UseKey(key); err != nil {
				return err
			}
		}
	}
	for ring := g.keyring.GetKeys(); len(ring) > len(keys); ring = g.keyring.GetKeys() {
		if err := g.keyring.RemoveKey(ring[len(ring)-1]); err != nil {
			return err
		}
	}
	return nil
}

// strangePackets counts packets that were made without the cluster's keys, or altered, or for another cluster.
func (g *gossip) strangePackets() int64 { return g.strange.Load() + g.transport.altered.Load() }

// strangeStreams counts streams that were not of the cluster, or broke off.
func (g *gossip) strangeStreams() int64 { return g.unreadable.Load() + g.transport.unanswered.Load() }

// refused tells of a packet or a stream that was dropped since who made it does not hold the cluster's keys, once in a while: a
// stranger can make any number. line is memberlist's, which quotes nothing of what was sent but its label.
func (g *gossip) refused(what, line string) {
	if !g.once.allow("refused "+what, time.Minute) {
		return
	}
	line = strings.TrimPrefix(strings.TrimSpace(line), "memberlist: ")
	why, from := line, ""
	if i := strings.LastIndex(line, " from="); i >= 0 {
		why, from = line[:i], line[i+len(" from="):]
	}
	reason := "it is sealed with a key that this node does not have: another cluster secret, or a keyring that has moved on without one of the two"
	if strings.Contains(why, "label") {
		reason = "it is of another cluster, or not of Sluice at all"
	}
	g.log.Warn("gossip "+what+" refused", "address", from, "reason", reason, "error", clipText(strings.ToValidUTF8(why, "?"), 200),
		"hint", "if a node of this cluster is at that address, compare its cluster, its secrets.cluster and `sluice cluster keyring list`; if none is, close the gossip port to it")
}

// rejoin looks up members that gossip does not see. memberlist forgets the dead, so that two halves of a cluster would
// never find each other again by themselves.
func (g *gossip) rejoin(members func() []nodeAddr) {
	tried := make(map[string]time.Time)
	for {
		for _, m := range members() {
			if m.ID == g.self || m.Gossip == "" || g.isAlive(m.ID) {
				continue
			}
			if at, ok := tried[m.ID]; ok && time.Since(at) < rejoinInterval && g.seen() > 1 {
				continue
			}
			// One at a time: each names one node and fails for itself.
			address, err := g.discovery.numeric(g.ctx, m.Gossip)
			if err == nil {
				_, err = g.list.Join([]string{address})
			}
			if err != nil {
				g.log.Debug("member not reached by gossip", "peer", m.ID, "error", err)
			}
			tried[m.ID] = time.Now()
			if g.ctx.Err() != nil {
				return
			}
		}
		select {
		case <-time.After(rejoinLook):
		case <-g.ctx.Done():
			return
		}
	}
}

// deliver hands packets to the limiter, one at a time.
func (g *gossip) deliver(known func(id string) bool) {
	senders := make(numbers)
	for {
		select {
		case msg := <-g.inbox:
			receive := g.receive.Load()
			if receive == nil {
				continue
			}
			from, packet, ok := openPacket(msg)
			if !ok || from == g.self || !known(from) {
				g.badPackets.Add(1)
				continue
			}
			g.received.Add(1)
			if senders.again(from, packet) {
				g.old.Add(1) // and passed on all the same: whether it is of use is the limiter's to say
			}
			(*receive)(from, packet)
		case <-g.ctx.Done():
			return
		}
	}
}

// sealPacket puts the sender before a limiter's packet.
func sealPacket(self string, packet []byte) ([]byte, error) {
	if len(packet) > maxPacket {
		return nil, fmt.Errorf("packet of %d bytes, at most %d", len(packet), maxPacket)
	}
	id, err := ulid.ParseStrict(strings.ToUpper(strings.TrimPrefix(self, nodeIDPrefix)))
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, packetHeader+len(packet))
	out = append(out, packetKind)
	out = append(out, id[:]...)
	return append(out, packet...), nil
}

// openPacket undoes sealPacket. packet shares msg's memory.
func openPacket(msg []byte) (from string, packet []byte, ok bool) {
	if len(msg) < packetHeader || len(msg) > packetHeader+maxPacket || msg[0] != packetKind {
		return "", nil, false
	}
	var id ulid.ULID
	copy(id[:], msg[1:packetHeader])
	return nodeIDPrefix + strings.ToLower(id.String()), msg[packetHeader:], true
}

// Send implements limiter.Transport: best effort, one packet of at most 1,200 bytes, dropped where the node is not seen.
// It keeps nothing of packet.
func (g *gossip) Send(node string, packet []byte) {
	g.mu.RLock()
	to := g.alive[node]
	g.mu.RUnlock()
	if to == nil || !g.started.Load() {
		return
	}
	msg, err := sealPacket(g.self, packet)
	if err != nil {
		if g.once.allow("packet", time.Minute) {
			g.log.Warn("packet not sent", "error", err)
		}
		return
	}
	if err := g.list.SendBestEffort(to, msg); err != nil {
		g.log.Debug("packet not sent", "peer", node, "error", err)
		return
	}
	g.sent.Add(1)
}

// isAlive reports whether gossip sees the node.
func (g *gossip) isAlive(id string) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.alive[id] != nil
}

// lostFor is for how long the node has not been seen, since this one started at the most; 0 where it is seen.
func (g *gossip) lostFor(id string) time.Duration {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.alive[id] != nil || g.began.IsZero() {
		return 0
	}
	if since, ok := g.lost[id]; ok {
		return time.Since(since)
	}
	return time.Since(g.began)
}

// seen counts the nodes that gossip sees, this one included.
func (g *gossip) seen() int {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return len(g.alive)
}

// healthScore is memberlist's own, 0 before it runs.
func (g *gossip) healthScore() int {
	if !g.started.Load() {
		return 0
	}
	return g.list.GetHealthScore()
}

// leave tells the others that this node is going.
func (g *gossip) leave() error {
	if !g.started.Load() {
		return nil
	}
	return g.list.Leave(leaveTimeout)
}

// close stops everything and waits for it.
func (g *gossip) close() error {
	g.stop()
	var err error
	if g.started.Load() {
		err = g.list.Shutdown()
	} else {
		err = g.transport.Shutdown()
	}
	g.wg.Wait()
	return err
}

// gossipDelegate is memberlist's Delegate.
type gossipDelegate gossip

// NodeMeta tells nothing: a node's name is its id, and the replicated state knows the rest.
func (*gossipDelegate) NodeMeta(int) []byte { return nil }

// NotifyMsg runs on memberlist's only handler for messages of low priority, suspicions included: it copies and goes.
func (d *gossipDelegate) NotifyMsg(msg []byte) {
	if len(msg) == 0 || len(msg) > packetHeader+maxPacket {
		d.badPackets.Add(1)
		return
	}
	select {
	case d.inbox <- slices.Clone(msg):
	default:
		d.dropped.Add(1)
	}
}

func (*gossipDelegate) GetBroadcasts(int, int) [][]byte { return nil }
func (*gossipDelegate) LocalState(bool) []byte          { return nil }
func (*gossipDelegate) MergeRemoteState([]byte, bool)   {}

// gossipEvents is memberlist's EventDelegate.
type gossipEvents gossip

func (e *gossipEvents) NotifyJoin(n *memberlist.Node) {
	node := *n
	e.mu.Lock()
	e.alive[n.Name] = &node
	delete(e.lost, n.Name)
	e.mu.Unlock()
	if n.Name != e.self {
		e.log.Info("node seen", "peer", n.Name, "address", n.Address())
	}
	e.events.signal()
}

func (e *gossipEvents) NotifyLeave(n *memberlist.Node) {
	e.mu.Lock()
	delete(e.alive, n.Name)
	e.lost[n.Name] = time.Now()
	e.mu.Unlock()
	e.clocks.forget(n.Name)
	if n.Name != e.self {
		e.log.Info("node lost", "peer", n.Name, "address", n.Address())
	}
	e.events.signal()
}

func (e *gossipEvents) NotifyUpdate(n *memberlist.Node) {
	node := *n
	e.mu.Lock()
	e.alive[n.Name] = &node
	e.mu.Unlock()
}

// gossipPing is memberlist's PingDelegate: every acknowledgement carries the clock of the node that sent it.
type gossipPing gossip

func (p *gossipPing) AckPayload() []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(p.clocks.now().UnixNano()))
}

func (p *gossipPing) NotifyPingComplete(other *memberlist.Node, rtt time.Duration, payload []byte) {
	if len(payload) != 8 {
		return
	}
	theirs := time.Unix(0, int64(binary.BigEndian.Uint64(payload)))
	p.clocks.observe(other.Name, theirs, rtt)
}

// gossipConflict is memberlist's ConflictDelegate.
type gossipConflict gossip

func (c *gossipConflict) NotifyConflict(existing, other *memberlist.Node) {
	if c.once.allow("conflict "+existing.Name, time.Minute) {
		c.log.Warn("two addresses for one node", "peer", existing.Name, "known", existing.Address(), "claimed", other.Address())
	}
}
