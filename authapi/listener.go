package authapi

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pires/go-proxyproto"
)

// admission bounds the connections of a Server: in all, by not accepting more, and per client address, by closing what
// is too many. Trusted proxies may have any number. fasthttp's own bounds are not used, because they answer in a form
// of their own.
type admission struct {
	srv   *Server
	perIP int
	slots chan struct{} // one element for each open connection

	open    atomic.Int64
	refused atomic.Uint64 // connections closed since their address had too many

	mu        sync.Mutex // guards what follows, and conn.counted and conn.closed
	counts    map[netip.Addr]int
	listeners []*admittedListener
	stopped   bool
}

func newAdmission(s *Server) *admission {
	return &admission{srv: s, perIP: s.cfg.MaxConnsPerIP, slots: make(chan struct{}, s.cfg.MaxConns), counts: map[netip.Addr]int{}}
}

// ConnectionCount is what became of connections to the public listener.
type ConnectionCount struct {
	Open    int64  // now
	Refused uint64 // closed since their address had too many, since the server was made
}

// Connections counts those of all listeners. Safe for concurrent use.
func (s *Server) Connections() ConnectionCount {
	return ConnectionCount{Open: s.admission.open.Load(), Refused: s.admission.refused.Load()}
}

// source is what connections of an address are counted by: IPv6 by /64.
func source(a netip.Addr) netip.Addr {
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

var errTooManyConns = errors.New("too many connections of one address")

// count adds a connection to those of addr, or says that it has too many.
func (ad *admission) count(c *conn, addr netip.Addr) error {
	if ad.srv.isTrusted(addr) {
		return nil
	}
	a := source(addr)
	ad.mu.Lock()
	defer ad.mu.Unlock()
	if ad.counts[a] >= ad.perIP {
		ad.refused.Add(1)
		return errTooManyConns
	}
	if !c.closed {
		ad.counts[a]++
		c.counted = a
	}
	return nil
}

// conn is an accepted connection. It gives its place back when it is closed.
type conn struct {
	net.Conn
	ad      *admission
	counted netip.Addr // what it is counted under; zero for nothing
	closed  bool

	// behind holds what the peer, a trusted proxy that has to begin with a PROXY header, sent at first; nil once it is used
	// up, or where there is nothing of the kind. Only Read uses it and what follows.
	behind     *bufio.Reader
	identified bool
	failed     error
	// linger: what the client still sends is taken before the end, or the system would reset the connection and the answer
	// with it.
	linger atomic.Bool
	// refused: it gets no answer, whatever Read's error is made into.
	refused atomic.Bool
	// client is the address that the PROXY header names; nil for the peer's.
	client atomic.Pointer[net.TCPAddr]

	reading, writing deadline
}

// proxyHeaderRoom is enough for any header of version 1; version 2 is read in pieces.
const proxyHeaderRoom = 256

// admit makes a connection of what was accepted, or says why it may not stay. It never waits for the peer.
func (ad *admission) admit(raw net.Conn) (*conn, error) {
	c := &conn{Conn: raw, ad: ad}
	peer := peerAddr(raw.RemoteAddr())
	if err := ad.count(c, peer); err != nil {
		return nil, err
	}
	if ad.srv.cfg.ProxyProtocol && ad.srv.isTrusted(peer) {
		c.behind = bufio.NewReaderSize(peerReader{c}, proxyHeaderRoom)
	}
	if tcp, ok := raw.(*net.TCPConn); ok {
		if err := tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: keepAlive, Interval: keepAlive}); err != nil {
			return c, err
		}
	}
	return c, nil
}

// keepAlive is how long a connection is silent before the system asks whether the other end is still there.
const keepAlive = 30 * time.Second

// Read implements net.Conn. Under PROXY protocol the first one reads the header, within the deadline that is set.
func (c *conn) Read(p []byte) (int, error) {
	if c.behind == nil {
		return c.read(p)
	}
	if !c.identified {
		c.identified = true
		c.failed = c.identify()
		c.refused.Store(c.failed != nil)
	}
	if c.failed != nil {
		return 0, c.failed
	}
	if c.behind.Buffered() > 0 {
		return c.behind.Read(p)
	}
	c.behind = nil
	return c.read(p)
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	if c.refused.Load() {
		return 0, net.ErrClosed
	}
	n, err := c.Conn.Write(p)
	for err != nil && c.writing.extended(err, c.Conn.SetWriteDeadline) {
		var more int
		more, err = c.Conn.Write(p[n:])
		n += more
	}
	return n, err
}

// read reads what the peer sent.
func (c *conn) read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	for err != nil && n == 0 && c.reading.extended(err, c.Conn.SetReadDeadline) {
		n, err = c.Conn.Read(p)
	}
	return n, err
}

// peerReader is a connection without its PROXY header's reader.
type peerReader struct{ *conn }

func (r peerReader) Read(p []byte) (int, error) { return r.read(p) }

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error { return c.reading.change(t, c.Conn.SetReadDeadline) }

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	return c.writing.change(t, c.Conn.SetWriteDeadline)
}

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// identify reads the PROXY header. Where there is none, or one that makes no sense, nothing behind it can be told from a
// client's own words, so the connection is of no use. A header that names no address of a client leaves the peer's.
func (c *conn) identify() error {
	if _, err := c.behind.Peek(1); err != nil {
		return err // a health check that only connects
	}
	h, err := proxyproto.Read(c.behind)
	if err != nil {
		var netErr net.Error
		if !errors.As(err, &netErr) || !netErr.Timeout() {
			c.ad.srv.malformed.proxyProtocol.Add(1)
		}
		return fmt.Errorf("PROXY header: %w", err)
	}
	if h.Command.IsLocal() {
		return nil // the proxy's own, as for a health check
	}
	addr, ok := h.SourceAddr.(*net.TCPAddr)
	if !ok {
		if h.TransportProtocol != proxyproto.UNSPEC {
			c.ad.srv.malformed.proxyProtocol.Add(1)
		}
		return nil
	}
	c.client.Store(addr)
	return c.ad.count(c, peerAddr(addr))
}

// RemoteAddr implements net.Conn: the client's address as the PROXY header names it, once that is read.
func (c *conn) RemoteAddr() net.Addr {
	if addr := c.client.Load(); addr != nil {
		return addr
	}
	return c.Conn.RemoteAddr()
}

// Close implements net.Conn.
func (c *conn) Close() error {
	ad := c.ad
	ad.mu.Lock()
	first := !c.closed
	c.closed = true
	if a := c.counted; first && a.IsValid() {
		if ad.counts[a]--; ad.counts[a] <= 0 {
			delete(ad.counts, a)
		}
	}
	ad.mu.Unlock()
	if first && c.linger.Load() {
		drain(c.Conn)
	}
	err := c.Conn.Close()
	if first {
		ad.open.Add(-1)
		<-ad.slots
	}
	return err
}

const (
	// lingerTime and lingerBytes bound what is taken of a client that was refused in the middle of what it sent.
	lingerTime  = time.Second
	lingerBytes = 2 << 20
	// lingerBody is the length from which fasthttp leaves a body that nobody wants unread, and closes.
	lingerBody = 256 << 10
)

// drain ends the answer and takes what still comes, for a while. Without it a proxy in front sees a reset in the place of a 413 or
// 431, and takes the node for a dead one.
func drain(raw net.Conn) {
	tcp, ok := raw.(*net.TCPConn)
	if !ok || tcp.CloseWrite() != nil || tcp.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, tcp, lingerBytes) // however it ends
}

// lingers lets the connection of a call take what the client still sends before it is closed.
func (c *call) lingers() {
	raw := c.ctx.Conn()
	if own := acceptedOf(raw); own != nil {
		own.linger.Store(true)
	} else if plain, ok := raw.(*plainConn); ok {
		plain.linger.Store(true)
	}
}

// resets has a connection end with a reset.
func resets(raw net.Conn) {
	own := acceptedOf(raw)
	if own == nil {
		return
	}
	own.linger.Store(false)
	if tcp, ok := own.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // where it cannot be set it is closed already
	}
}

// acceptedOf is what the listener made of a connection, below TLS; nil for one of another listener.
func acceptedOf(raw net.Conn) *conn {
	if secure, ok := raw.(*tls.Conn); ok {
		raw = secure.NetConn()
	}
	own, _ := raw.(*conn)
	return own
}

// tcpOf is the TCP connection below, nil where there is none.
func tcpOf(raw net.Conn) *net.TCPConn {
	if own := acceptedOf(raw); own != nil {
		raw = own.Conn
	}
	tcp, _ := raw.(*net.TCPConn)
	return tcp
}

// admittedListener accepts within the bounds of an admission.
type admittedListener struct {
	net.Listener
	ad    *admission
	close func() error
	done  chan struct{}
}

// listen wraps ln. Once stop has been called, what it gives is closed already: a Serve that starts late must end too.
func (ad *admission) listen(ln net.Listener) *admittedListener {
	l := &admittedListener{Listener: ln, ad: ad, done: make(chan struct{})}
	l.close = sync.OnceValue(func() error {
		close(l.done)
		return ln.Close()
	})
	ad.mu.Lock()
	defer ad.mu.Unlock()
	ad.listeners = append(ad.listeners, l)
	if ad.stopped {
		l.Close()
	}
	return l
}

// stop closes all listeners, and those to come.
func (ad *admission) stop() error {
	ad.mu.Lock()
	defer ad.mu.Unlock()
	ad.stopped = true
	var problems []error
	for _, l := range ad.listeners {
		problems = append(problems, l.Close())
	}
	return errors.Join(problems...)
}

// acceptPause is how long Accept waits where the process has no file descriptor left, which passes.
const acceptPause = 50 * time.Millisecond

// Accept implements net.Listener. It waits for a free slot, and goes on where the system's own bounds are reached.
func (l *admittedListener) Accept() (net.Conn, error) {
	for {
		select {
		case l.ad.slots <- struct{}{}:
		case <-l.done:
			return nil, net.ErrClosed
		}
		raw, err := l.Listener.Accept()
		if err == nil {
			c, err := l.ad.admit(raw)
			if c == nil {
				raw.Close()
				<-l.ad.slots
				continue
			}
			l.ad.open.Add(1)
			if err == nil {
				return c, nil
			}
			c.Close() // it gave up meanwhile
			continue
		}
		<-l.ad.slots
		if !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) && !errors.Is(err, syscall.ECONNABORTED) && !errors.Is(err, syscall.ENOBUFS) {
			return nil, err
		}
		l.ad.srv.log.Warn("cannot accept a connection now", "error", err)
		select {
		case <-time.After(acceptPause):
		case <-l.done:
			return nil, net.ErrClosed
		}
	}
}

// Close implements net.Listener. It may be called more than once.
func (l *admittedListener) Close() error { return l.close() }
