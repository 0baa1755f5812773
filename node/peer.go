package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// Bounds of the peer listener. A stranger who reaches it can cost this node at most maxPendingHandshakes handshakes at
// a time, each for handshakeTimeout; a peer at most maxConnsPerPeer connections.
const (
	handshakeTimeout     = 3 * time.Second
	maxPendingHandshakes = 64
	maxConnsPerPeer      = 24
	refusedLogInterval   = 10 * time.Second
)

// peerListener accepts the peers' connections, authenticates them and hands them to Raft or to the RPC server by the
// application protocol they chose. It owns the TCP listener, one accepting goroutine and one goroutine per handshake.
type peerListener struct {
	inner net.Listener
	creds PeerCredentials
	log   *slog.Logger
	raft  chan net.Conn // to Accept of the stream layer
	rpc   chan net.Conn // to Accept of the HTTP server

	raftProto atomic.Pointer[string] // nil before the cluster is known: nobody speaks Raft here then

	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	refused *refusals

	mu     sync.Mutex
	conns  map[*countedConn]struct{}
	byPeer map[string]int
	closed bool
}

// newPeerListener accepts from the start on. clusterID is the cluster that this node is a member of, "" where it is of none yet:
// nobody of before a recovery is let in, not even while Raft does not run.
func newPeerListener(inner net.Listener, creds PeerCredentials, clusterID string, logger *slog.Logger) *peerListener {
	ctx, cancel := context.WithCancel(context.Background())
	p := &peerListener{
		inner: inner, creds: creds, log: logger,
		raft: make(chan net.Conn), rpc: make(chan net.Conn),
		ctx: ctx, cancel: cancel, refused: newRefusals(),
		conns: make(map[*countedConn]struct{}), byPeer: make(map[string]int),
	}
	if clusterID != "" {
		p.setCluster(clusterID)
	}
	p.wg.Go(p.accept)
	return p
}

// setCluster says of which cluster Raft's connections have to be.
func (p *peerListener) setCluster(id string) {
	proto := raftProto(id)
	p.raftProto.Store(&proto)
}

// countedConn is a raw connection that leaves the listener's books when it is closed.
type countedConn struct {
	net.Conn
	owner *peerListener
	peer  string    // guarded by owner.mu; "" before the handshake
	tls   *tls.Conn // likewise nil
	once  sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.owner.forget(c) })
	return c.Conn.Close()
}

func (p *peerListener) forget(c *countedConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	if c.peer != "" {
		if p.byPeer[c.peer]--; p.byPeer[c.peer] == 0 {
			delete(p.byPeer, c.peer)
		}
	}
}

func (p *peerListener) accept() {
	pending := make(chan struct{}, maxPendingHandshakes)
	for {
		// The place is taken before the connection is accepted: beyond the bound, strangers wait in the kernel's queue.
		select {
		case pending <- struct{}{}:
		case <-p.ctx.Done():
			return
		}
		conn, err := p.inner.Accept()
		if err != nil {
			<-pending
			if p.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of file descriptors, mostly: wait rather than spin.
			p.log.Warn("peer connection not accepted", "error", err)
			select {
			case <-time.After(50 * time.Millisecond):
			case <-p.ctx.Done():
				return
			}
			continue
		}
		counted := &countedConn{Conn: conn, owner: p}
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			conn.Close()
			<-pending
			return
		}
		p.conns[counted] = struct{}{}
		p.mu.Unlock()
		p.wg.Go(func() {
			tlsConn, err := p.handshake(counted)
			<-pending
			if err != nil {
				counted.Close()
				if p.ctx.Err() == nil {
					p.refused.note(p.log, "peer connection refused", conn.RemoteAddr().String(), whoClaims(err), err)
				}
				return
			}
			p.deliver(tlsConn)
		})
	}
}

// handshake authenticates the other end within the deadline and enters the connection under its name.
func (p *peerListener) handshake(conn *countedConn) (*tls.Conn, error) {
	config := withClaims(p.creds.ServerConfig())
	config.NextProtos = []string{protoRaft, protoRPC}
	own := protoRaft
	if p := p.raftProto.Load(); p != nil && *p != protoRaft {
		// The plain one is offered all the same, so that a node of before the recovery can be told apart from a stranger.
		own = *p
		config.NextProtos = []string{own, protoRaft, protoRPC}
	}
	tlsConn := tls.Server(conn, config)
	ctx, cancel := context.WithTimeout(p.ctx, handshakeTimeout)
	defer cancel()
	if err := tlsConn.HandshakeContext(ctx); err != nil {
		return nil, peerHandshakeError(err)
	}
	state := tlsConn.ConnectionState()
	if state.NegotiatedProtocol == "" {
		return nil, errNoProtocol
	}
	if err := prove(tlsConn, p.creds, true, handshakeTimeout); err != nil {
		return nil, &claimError{who: claimed(state), err: err}
	}
	id, err := p.creds.Identity(state)
	if err != nil {
		return nil, err
	}
	if state.NegotiatedProtocol == protoRaft && own != protoRaft {
		return nil, fmt.Errorf("%s: %w", id.NodeID, errOlderCluster)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byPeer[id.NodeID] >= maxConnsPerPeer {
		return nil, &claimError{who: id, err: fmt.Errorf("%w: more than %d", errCrowded, maxConnsPerPeer)}
	}
	p.byPeer[id.NodeID]++
	conn.peer, conn.tls = id.NodeID, tlsConn
	return tlsConn, nil
}

// deliver hands a connection to its protocol's server, or closes it where that one is not there.
func (p *peerListener) deliver(conn *tls.Conn) {
	to := p.rpc
	if conn.ConnectionState().NegotiatedProtocol != protoRPC {
		to = p.raft
	}
	timer := time.NewTimer(handshakeTimeout)
	defer timer.Stop()
	select {
	case to <- conn:
	case <-timer.C: // Raft does not run yet: the peer's Raft will dial again
		conn.Close()
	case <-p.ctx.Done():
		conn.Close()
	}
}

// close stops accepting and cuts every connection, then waits for the goroutines.
func (p *peerListener) close() error {
	p.cancel()
	err := p.inner.Close()
	p.mu.Lock()
	p.closed = true
	conns := make([]*countedConn, 0, len(p.conns))
	for c := range p.conns {
		conns = append(conns, c)
	}
	p.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
	p.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return err
}

// prove lets both ends show what their certificates do not, within the time.
func prove(conn *tls.Conn, creds PeerCredentials, accepted bool, within time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	if err := creds.Prove(conn, accepted); err != nil {
		return peerHandshakeError(err)
	}
	return conn.SetDeadline(time.Time{})
}

// recheck cuts the connections that would not be let in any more.
func (p *peerListener) recheck() {
	p.mu.Lock()
	conns := make(map[*countedConn]*tls.Conn)
	for c := range p.conns {
		if c.tls != nil {
			conns[c] = c.tls
		}
	}
	p.mu.Unlock()
	for c, conn := range conns {
		if err := p.creds.Recheck(conn.ConnectionState(), true); err != nil {
			p.log.Info("peer connection ended", "address", c.RemoteAddr().String(), "peer", claimed(conn.ConnectionState()).NodeID, "reason", err.Error())
			c.Close()
		}
	}
}

// protoListener is the net.Listener of one protocol. Closing it stops its Accept only, and nothing else does.
type protoListener struct {
	conns chan net.Conn
	addr  net.Addr
	done  chan struct{}
	once  sync.Once
}

func (p *peerListener) listener(conns chan net.Conn, addr net.Addr) *protoListener {
	return &protoListener{conns: conns, addr: addr, done: make(chan struct{})}
}

func (l *protoListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *protoListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *protoListener) Addr() net.Addr { return l.addr }

// advertisedAddr is a host:port that is told to peers; it may be a name.
type advertisedAddr string

func (advertisedAddr) Network() string  { return "tcp" }
func (a advertisedAddr) String() string { return string(a) }

// dialer opens authenticated connections to peers, by node id or by address.
type dialer struct {
	creds   PeerCredentials
	resolve func(nodeID string) (string, error) // to a host:port
	net     net.Dialer
	log     *slog.Logger
	refused *refusals

	mu     sync.Mutex
	open   map[*dialedConn]struct{}
	closed bool
}

func newDialer(creds PeerCredentials, resolve func(string) (string, error), names *net.Resolver, logger *slog.Logger) *dialer {
	return &dialer{creds: creds, resolve: resolve, net: net.Dialer{Resolver: names}, log: logger, refused: newRefusals(), open: make(map[*dialedConn]struct{})}
}

// dialedConn is a raw connection that leaves the dialer's books when it is closed.
type dialedConn struct {
	net.Conn
	owner *dialer
	tls   *tls.Conn // guarded by owner.mu; nil before the handshake
	proto string
}

func (c *dialedConn) Close() error {
	c.owner.mu.Lock()
	delete(c.owner.open, c)
	c.owner.mu.Unlock()
	return c.Conn.Close()
}

// track enters a connection, or refuses it after close.
func (d *dialer) track(conn net.Conn, proto string) (*dialedConn, error) {
	c := &dialedConn{Conn: conn, owner: d, proto: proto}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		conn.Close()
		return nil, net.ErrClosed
	}
	d.open[c] = struct{}{}
	return c, nil
}

// close cuts every connection: Raft waits for its exchanges when it stops, and a peer that does not answer would hold
// it up for as long as an exchange may take.
func (d *dialer) close() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.cut("")
}

// cut ends the connections of a protocol, "" for all.
func (d *dialer) cut(proto string) {
	d.mu.Lock()
	open := make([]*dialedConn, 0, len(d.open))
	for c := range d.open {
		if proto == "" || c.proto == proto {
			open = append(open, c)
		}
	}
	d.mu.Unlock()
	for _, c := range open {
		c.Close()
	}
}

// recheck cuts the connections to peers that would not be trusted any more.
func (d *dialer) recheck() {
	d.mu.Lock()
	conns := make(map[*dialedConn]*tls.Conn)
	for c := range d.open {
		if c.tls != nil {
			conns[c] = c.tls
		}
	}
	d.mu.Unlock()
	for c, conn := range conns {
		if err := d.creds.Recheck(conn.ConnectionState(), false); err != nil {
			d.log.Info("peer connection ended", "address", c.RemoteAddr().String(), "peer", claimed(conn.ConnectionState()).NodeID, "reason", err.Error())
			c.Close()
		}
	}
}

// dial connects to target, a node id (then that node has to answer) or a host:port (then any node of the cluster may).
func (d *dialer) dial(ctx context.Context, target, proto string) (*tls.Conn, error) {
	address, nodeID := target, ""
	if validNodeID(target) {
		nodeID = target
		var err error
		if address, err = d.resolve(target); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	tcp, err := d.net.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("dial peer: %w", err)
	}
	raw, err := d.track(tcp, proto)
	if err != nil {
		return nil, fmt.Errorf("dial peer: %w", err)
	}
	config := withClaims(d.creds.ClientConfig(nodeID))
	config.NextProtos = []string{proto}
	conn := tls.Client(raw, config)
	err = conn.HandshakeContext(ctx)
	if err == nil {
		if err = prove(conn, d.creds, false, handshakeTimeout); err != nil {
			err = &claimError{who: claimed(conn.ConnectionState()), err: err}
		}
	} else {
		err = peerHandshakeError(err)
	}
	if err != nil {
		raw.Close()
		if !errors.Is(err, context.Canceled) {
			d.refused.note(d.log, "peer not reached", address, whoClaims(err), err)
		}
		return nil, err
	}
	d.mu.Lock()
	raw.tls = conn
	d.mu.Unlock()
	if conn.ConnectionState().NegotiatedProtocol != proto {
		conn.Close()
		return nil, fmt.Errorf("peer at %s does not speak %s", address, proto)
	}
	return conn, nil
}

// streamLayer is Raft's transport over the peer listener. It implements raft.StreamLayer; an address that it dials is a
// node id, so that a node is reached wherever it is known to be now, and nobody else is mistaken for it.
type streamLayer struct {
	*protoListener
	dialer *dialer
	// standBack: this node stands back from leading; see consensus.retire.
	standBack *atomic.Bool
	proto     string // of the cluster
}

var _ raft.StreamLayer = (*streamLayer)(nil)

// Dial implements raft.StreamLayer.
func (s *streamLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if s.standBack.Load() {
		return nil, errStandsBack
	}
	conn, err := s.dialer.dial(ctx, string(address), s.proto)
	if err != nil {
		return nil, err
	}
	if s.standBack.Load() { // since then: cut may not have seen it
		conn.Close()
		return nil, errStandsBack
	}
	return conn, nil
}

// idAddresses makes Raft dial node ids. It implements raft.ServerAddressProvider.
type idAddresses struct{}

// ServerAddr implements raft.ServerAddressProvider.
func (idAddresses) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	return raft.ServerAddress(id), nil
}

// newRPCClient returns an HTTP/2 client for URLs whose host is a node id or a host:port.
func newRPCClient(d *dialer) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	return &http.Client{
		// Deadlines come from each call's context.
		Transport: &http.Transport{
			Protocols:         protocols,
			ForceAttemptHTTP2: true,
			HTTP2: &http.HTTP2Config{
				// A peer whose machine is gone sends nothing, not even a reset.
				SendPingTimeout: time.Second,
				PingTimeout:     time.Second,
			},
			IdleConnTimeout: 2 * time.Minute,
			DialTLSContext: func(ctx context.Context, _, address string) (net.Conn, error) {
				if host, _, err := net.SplitHostPort(address); err == nil && strings.HasPrefix(host, nodeIDPrefix) {
					address = host
				}
				return d.dial(ctx, address, protoRPC)
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
