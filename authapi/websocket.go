package authapi

import (
	"bytes"
	"context"
	"crypto/sha1" // RFC 6455 asks for it; nothing is kept safe by it
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults of a Route's WebSockets.
const (
	DefaultRouteWebSocketIdle = 5 * time.Minute
	DefaultRouteMaxWebSockets = 1000
)

// tunnelCheck is how long it may take until a tunnel is ended whose credential is no longer good.
const tunnelCheck = 100 * time.Millisecond

// tunnelBuffer is the room for what is on its way in one direction.
const tunnelBuffer = 4 << 10

// tunnels are the connections that were upgraded to WebSocket, whose bytes go both ways unread. The request that began one was
// authenticated and counted like any other; what follows is not counted. A tunnel ends with either side, after idle time without
// a byte in either direction, when its credential ends, and when the server shuts down: then clients come back, to another node.
type tunnels struct {
	srv  *Server
	mu   sync.Mutex
	all  map[*tunnel]struct{}
	wait sync.WaitGroup // the tunnels, and the goroutine that checks them
	// closed: none may begin any more. checking: the goroutine runs.
	closed, checking bool
}

// tunnel is one of them, from the handshake on.
type tunnel struct {
	in   *tunnels
	x    *exchange
	rule *rule
	// secret is the credential as sent, nil for none: what it is worth is asked again when that may have changed.
	secret  []byte
	validTo int64 // Unix milliseconds
	epoch   uint64
	client  net.Conn
	last    atomic.Int64 // when a byte came, in nanoseconds since begun; 0 during the handshake
	begun   time.Time
	once    sync.Once

	mu   sync.Mutex         // guards what follows
	peer io.ReadWriteCloser // the upstream's side, once there is one
	over bool
}

// asksForWebSocket says whether the request is a handshake that the route takes. What is none, or an upgrade to something else, goes
// on as the plain request that it also is.
func (c *call) asksForWebSocket(r *configured) bool {
	h := &c.ctx.Request.Header
	if r.maxWebSockets == 0 || !h.IsGet() || !h.IsHTTP11() || h.ContentLength() > 0 || h.ContentLength() == -1 {
		return false
	}
	upgrade := h.PeekAll("Upgrade")
	if len(upgrade) != 1 || !equalFold(trimSpace(upgrade[0]), "websocket") || len(h.PeekAll("Sec-Websocket-Key")) != 1 {
		return false
	}
	for _, name := range connectionNames(texts(h.PeekAll("Connection"))) {
		if bytes.EqualFold(name, []byte("upgrade")) {
			return true
		}
	}
	return false
}

// newTunnel takes a place for a tunnel, or says that there are too many.
func (c *call) newTunnel(x *exchange, need *rule) (*tunnel, error) {
	t := &tunnel{in: &c.srv.tunnels, x: x, rule: need, client: x.conn, begun: time.Now(), validTo: never}
	if c.entry != nil {
		secret, bad := c.sentCredential()
		if bad != nil {
			return nil, bad
		}
		t.secret, t.epoch, t.validTo = bytes.Clone(secret), c.entry.epoch, c.entry.validTo
	}
	if x.route.webSockets.Add(1) > int64(x.route.maxWebSockets) {
		x.route.webSockets.Add(-1)
		x.srv.webSocketsBusy.Add(1)
		return nil, ErrOverloaded
	}
	if !t.in.add(t) {
		x.route.webSockets.Add(-1)
		return nil, ErrOverloaded
	}
	return t, nil
}

// add takes a tunnel in, unless the server shuts down.
func (ts *tunnels) add(t *tunnel) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.closed {
		return false
	}
	if ts.all == nil {
		ts.all = map[*tunnel]struct{}{}
	}
	ts.all[t] = struct{}{}
	ts.wait.Add(1)
	if !ts.checking {
		ts.checking = true
		ts.wait.Add(1)
		go ts.check()
	}
	return true
}

// remove gives a tunnel's place back.
func (t *tunnel) remove() {
	t.in.mu.Lock()
	defer t.in.mu.Unlock()
	if _, in := t.in.all[t]; in {
		delete(t.in.all, t)
		t.x.route.webSockets.Add(-1)
		t.in.wait.Done()
	}
}

// unneeded is for a handshake that the upstream did not take.
func (t *tunnel) unneeded() { t.once.Do(t.remove) }

// end closes both sides and gives the place back. It may be called more than once, from anywhere.
func (t *tunnel) end() {
	t.once.Do(func() {
		t.mu.Lock()
		t.over = true
		peer := t.peer
		t.mu.Unlock()
		if peer != nil {
			_ = peer.Close()
			_ = t.client.Close() // fasthttp closes it again
			t.x.end()
		} else {
			t.x.cancel(errEnded) // the handshake is under way, and whoever sees to it ends the exchange
		}
		t.remove()
	})
}

// attach gives the tunnel its other side, unless it is over already.
func (t *tunnel) attach(peer io.ReadWriteCloser) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.over {
		t.peer = peer
	}
	return !t.over
}

// switchProtocols makes a tunnel of an upstream's 101, and the answer to the client's handshake.
func (c *call) switchProtocols(x *exchange, t *tunnel, out *outgoing, resp *http.Response) error {
	peer, ok := resp.Body.(io.ReadWriteCloser)
	upgrade := resp.Header["Upgrade"]
	if t == nil || !ok || len(upgrade) != 1 || !equalFold([]byte(upgrade[0]), "websocket") ||
		resp.Header.Get("Sec-Websocket-Accept") != webSocketAccept(out.header.Get("Sec-Websocket-Key")) || !plainHeader(resp.Header) {
		resp.Body.Close()
		c.srv.log.Warn("upstream failed", "route", x.route.name, "upstream", x.up.url, "error", "it switched protocols in a way that was not asked for")
		return errBadGateway()
	}
	if !t.attach(peer) {
		resp.Body.Close()
		return ErrOverloaded // the server shuts down, or the credential ended meanwhile
	}
	c.proxied = true
	h := &c.ctx.Response.Header
	c.ctx.SetStatusCode(http.StatusSwitchingProtocols)
	c.copyAnswerHeader(resp)
	h.Set("Connection", "Upgrade")
	h.Set("Upgrade", "websocket")
	c.takeOver(x, t.end, t.run)
	return nil
}

// webSocketAccept is what a server that understood the handshake answers to its key (RFC 6455, section 4.2.2).
func webSocketAccept(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// run passes bytes until either side ends. client reads what fasthttp has read already first.
func (t *tunnel) run(client net.Conn) {
	defer t.end()
	t.x.watch.stop() // reading tells from here on
	t.touch()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer t.x.srv.recovered("tunnel")
		defer t.end()
		t.pass(t.peer, client)
	}()
	t.pass(client, t.peer)
	t.end()
	<-done // client is fasthttp's again after this
}

// touch notes that the tunnel is in use.
func (t *tunnel) touch() { t.last.Store(int64(time.Since(t.begun))) }

// pass copies from one side to the other.
func (t *tunnel) pass(to io.Writer, from io.Reader) {
	buf := make([]byte, tunnelBuffer)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			t.touch()
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// check ends tunnels whose credential is no longer good or that were silent for too long. It ends when there are none.
func (ts *tunnels) check() {
	defer ts.wait.Done()
	ticker := time.NewTicker(tunnelCheck)
	defer ticker.Stop()
	var list []*tunnel
	for {
		<-ticker.C
		list = list[:0]
		ts.mu.Lock()
		for t := range ts.all {
			list = append(list, t)
		}
		if len(list) == 0 {
			ts.checking = false
			ts.mu.Unlock()
			return
		}
		ts.mu.Unlock()
		now, epoch := ts.srv.clock(), ts.srv.state.Epoch()
		for _, t := range list {
			if t.silent() || !t.entitled(now, epoch) {
				go t.end() // saying goodbye over TLS may take a client's time
			}
		}
		clear(list)
	}
}

// silent says whether no byte came for too long. A handshake that is under way has the timeouts of any request.
func (t *tunnel) silent() bool {
	last := t.last.Load()
	return last > 0 && time.Since(t.begun)-time.Duration(last) > t.x.route.webSocketIdle
}

// entitled says whether the tunnel's credential would still open it. Only what may have changed is asked again. Where this node
// cannot tell, the tunnel stays, as a request under way does.
func (t *tunnel) entitled(now time.Time, epoch uint64) bool {
	if t.secret == nil || epoch == t.epoch && now.UnixMilli() < t.validTo {
		return true
	}
	s := t.in.srv
	lv := s.live.Load()
	hash := sha256.Sum256(t.secret)
	cred := s.credentials.get(&hash, lv.seq, epoch, now.UnixMilli())
	if cred == nil {
		var err error
		cred, err = s.lookup(lv, t.secret, hash, s.meantAsKey(t.secret), now)
		var bad *Problem
		switch {
		case errors.As(err, &bad), errors.Is(err, errUnknownCredential):
			return false
		case err != nil:
			return true
		}
	}
	c := call{srv: s, live: lv, principal: cred.principal, entry: cred}
	if c.permitRule(t.rule) != nil {
		return false
	}
	t.epoch, t.validTo = cred.epoch, cred.validTo
	return true
}

// close ends all tunnels, and lets none begin. It waits until they are over, or ctx is.
func (ts *tunnels) close(ctx context.Context) error {
	ts.mu.Lock()
	ts.closed = true
	var list []*tunnel
	for t := range ts.all {
		list = append(list, t)
	}
	ts.mu.Unlock()
	for _, t := range list {
		go t.end()
	}
	over := make(chan struct{})
	go func() {
		ts.wait.Wait()
		close(over)
	}()
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
