package authapi

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"
)

// admission bounds the connections of a Server: in all, by not accepting more, and per client address, by closing what
// is too many. Trusted proxies may have any number. fasthttp's own bounds are not used, because they answer in a form
// of their own.
type admission struct {
	srv   *Server
	perIP int
	slots chan struct{} // one element for each open connection

	mu        sync.Mutex // guards what follows
	counts    map[netip.Addr]int
	listeners []*admittedListener
	stopped   bool
}

func newAdmission(s *Server) *admission {
	return &admission{srv: s, perIP: s.cfg.MaxConnsPerIP, slots: make(chan struct{}, s.cfg.MaxConns), counts: map[netip.Addr]int{}}
}

// source is the address that connections are counted by: IPv6 by /64.
func source(addr net.Addr) netip.Addr {
	a := peerAddr(addr)
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// admit counts a connection, or says that its address has too many.
func (ad *admission) admit(conn net.Conn) bool {
	if ad.srv.isTrusted(peerAddr(conn.RemoteAddr())) {
		return true
	}
	a := source(conn.RemoteAddr())
	ad.mu.Lock()
	defer ad.mu.Unlock()
	if ad.counts[a] >= ad.perIP {
		return false
	}
	ad.counts[a]++
	return true
}

// closed is fasthttp's ConnState: it is called once for the end of each connection that Accept gave.
func (ad *admission) closed(conn net.Conn, s fasthttp.ConnState) {
	if s != fasthttp.StateClosed && s != fasthttp.StateHijacked {
		return
	}
	if !ad.srv.isTrusted(peerAddr(conn.RemoteAddr())) {
		a := source(conn.RemoteAddr())
		ad.mu.Lock()
		if ad.counts[a]--; ad.counts[a] <= 0 {
			delete(ad.counts, a)
		}
		ad.mu.Unlock()
	}
	select {
	case <-ad.slots:
	default: // a connection that did not come through admittedListener
	}
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
	select {
	case l.ad.slots <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	for {
		conn, err := l.Listener.Accept()
		switch {
		case err == nil && l.ad.admit(conn):
			return conn, nil
		case err == nil:
			conn.Close()
		case errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ECONNABORTED) || errors.Is(err, syscall.ENOBUFS):
			l.ad.srv.log.Warn("cannot accept a connection now", "error", err)
			select {
			case <-time.After(acceptPause):
			case <-l.done:
				<-l.ad.slots
				return nil, net.ErrClosed
			}
		default:
			<-l.ad.slots
			return nil, err
		}
	}
}

// Close implements net.Listener. It may be called more than once.
func (l *admittedListener) Close() error { return l.close() }
