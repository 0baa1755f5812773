package authapi

import (
	"net"
	"sync"
	"time"
)

// hangupEvery is how long it may take until a client that went away is noticed while its request waits for an upstream.
const hangupEvery = 250 * time.Millisecond

// hangups notices clients that close their connection while nothing is read from it or written to it: while an upstream is asked,
// and between the pieces of its answer. fasthttp does not. One goroutine looks at all of them, and there is none while there is
// nothing to look at.
//
// A client that closes its sending side alone counts as gone, as it does for most servers: it cannot be told from one that is.
type hangups struct {
	mu      sync.Mutex
	all     map[*watched]struct{}
	running bool
}

// watched is one connection under watch. The nil pointer is one of nothing.
type watched struct {
	in   *hangups
	tcp  *net.TCPConn
	gone func() // called at most once, from the watching goroutine
}

// watch has gone called once the other end of conn is closed, until stop. gone must not block. nil where it cannot be noticed.
func (h *hangups) watch(conn net.Conn, gone func()) *watched {
	tcp := tcpOf(conn)
	if tcp == nil || !hangupNoticed {
		return nil
	}
	w := &watched{in: h, tcp: tcp, gone: gone}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all == nil {
		h.all = map[*watched]struct{}{}
	}
	h.all[w] = struct{}{}
	if !h.running {
		h.running = true
		go h.run()
	}
	return w
}

// stop ends the watch. gone may be running still.
func (w *watched) stop() {
	if w == nil {
		return
	}
	w.in.mu.Lock()
	defer w.in.mu.Unlock()
	delete(w.in.all, w)
}

// run looks at all that is watched, and ends when nothing is.
func (h *hangups) run() {
	ticker := time.NewTicker(hangupEvery)
	defer ticker.Stop()
	var list []*watched
	for {
		<-ticker.C
		list = list[:0]
		h.mu.Lock()
		for w := range h.all {
			list = append(list, w)
		}
		h.running = len(list) > 0
		h.mu.Unlock()
		if len(list) == 0 {
			return
		}
		for _, w := range list {
			if hungUp(w.tcp) {
				w.stop()
				w.gone()
			}
		}
		clear(list)
	}
}
