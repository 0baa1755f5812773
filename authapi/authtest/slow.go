package authtest

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// SlowAttack keeps connections open that send a byte now and then, half of them of a header that never ends, half of a body,
// and opens another one for each that is cut off. Safe for concurrent use.
type SlowAttack struct {
	addr string
	stop context.CancelFunc
	all  sync.WaitGroup

	enough  int64         // connections
	crowded chan struct{} // closed when so many are open at once
	once    sync.Once

	open, sent    atomic.Int64
	cut, answered atomic.Int64
	longest       atomic.Int64 // nanoseconds
}

// StartSlowAttack begins with that many connections to a server on this machine. The caller calls Stop.
func StartSlowAttack(addr string, connections int) *SlowAttack {
	ctx, cancel := context.WithCancel(context.Background())
	a := &SlowAttack{addr: addr, stop: cancel, enough: int64(connections) * 9 / 10, crowded: make(chan struct{})}
	for i := range connections {
		a.all.Go(func() { a.run(ctx, i) })
	}
	return a
}

// Stop closes all connections and waits for their end. It may be called more than once.
func (a *SlowAttack) Stop() {
	a.stop()
	a.all.Wait()
}

// Crowded is closed as soon as nine tenths of the connections are open at once.
func (a *SlowAttack) Crowded() <-chan struct{} { return a.crowded }

// Open is the number of connections that are open now.
func (a *SlowAttack) Open() int64 { return a.open.Load() }

// Sent counts the bytes sent after the first ones of each connection.
func (a *SlowAttack) Sent() int64 { return a.sent.Load() }

// Cut counts the connections that the server ended without an answer.
func (a *SlowAttack) Cut() int64 { return a.cut.Load() }

// Answered counts those that it ended after an answer.
func (a *SlowAttack) Answered() int64 { return a.answered.Load() }

// Longest is how long the server had most patience.
func (a *SlowAttack) Longest() time.Duration { return time.Duration(a.longest.Load()) }

func (a *SlowAttack) run(ctx context.Context, i int) {
	// Attackers have many addresses, or the bound of each would be what stops them.
	dialer := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i%50))}}
	start, drip := "GET /api/v1/auth/verify HTTP/1.1\r\nHost: a\r\nX-Slow: ", "a"
	if i%2 == 1 {
		start, drip = "POST /api/v1/auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n{\"", "b"
	}
	for ctx.Err() == nil {
		conn, err := dialer.DialContext(ctx, "tcp", a.addr)
		if err != nil {
			continue
		}
		a.one(ctx, conn, start, drip)
	}
}

func (a *SlowAttack) one(ctx context.Context, conn net.Conn, start, drip string) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	begun := time.Now()
	if a.open.Add(1) == a.enough {
		a.once.Do(func() { close(a.crowded) })
	}
	defer a.open.Add(-1)
	if _, err := io.WriteString(conn, start); err != nil {
		return
	}
	ended := make(chan int, 1)
	go func() { // whatever comes, an answer or the end
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			ended <- 0
			return
		}
		resp.Body.Close()
		ended <- resp.StatusCode
	}()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if _, err := io.WriteString(conn, drip); err == nil {
				a.sent.Add(1)
			}
		case status := <-ended:
			if ctx.Err() != nil {
				return
			}
			if status == 0 {
				a.cut.Add(1)
			} else {
				a.answered.Add(1)
			}
			for took := int64(time.Since(begun)); ; {
				if was := a.longest.Load(); took <= was || a.longest.CompareAndSwap(was, took) {
					break
				}
			}
			return
		}
	}
}
