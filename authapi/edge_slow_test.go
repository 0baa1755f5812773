package authapi_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sluice/authapi"
)

const (
	slowConns = 2000
	// slowBound is what a good client's p99 may be on any machine that runs tests; what it is is printed.
	slowBound = 500 * time.Millisecond
)

// slowAttack keeps connections open that send a byte now and then, half of them of a header that never ends, half of a body,
// and opens another one for each that is cut off.
type slowAttack struct {
	addr          string
	open, sent    atomic.Int64
	cut, answered atomic.Int64 // ended by the server without an answer, or after one
	longest       atomic.Int64 // nanoseconds
}

func (a *slowAttack) run(ctx context.Context, i int) {
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

func (a *slowAttack) one(ctx context.Context, conn net.Conn, start, drip string) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	begun := time.Now()
	a.open.Add(1)
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

// TestSlowClients_DelayNobody attacks with slow headers and slow bodies while a good client goes about its business.
func TestSlowClients_DelayNobody(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	const readTimeout = time.Second
	e := newEdge(t, func(c *authapi.Config) {
		c.ReadTimeout = readTimeout
		c.Limit.Anonymous = rule(1e12)
	})
	attack := &slowAttack{addr: e.addr}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all sync.WaitGroup
	for i := range slowConns {
		all.Go(func() { attack.run(ctx, i) })
	}
	for deadline := time.Now().Add(30 * time.Second); attack.open.Load() < slowConns*9/10; {
		if time.Now().After(deadline) {
			t.Fatalf("only %d connections are open", attack.open.Load())
		}
		time.Sleep(5 * time.Millisecond)
	}
	var took []time.Duration
	good := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
	defer good.CloseIdleConnections()
	for begun := time.Now(); time.Since(begun) < 3*readTimeout; {
		at := time.Now()
		resp, err := good.Get("http://" + e.addr + "/api/v1/auth/verify")
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Fatalf("status %d", resp.StatusCode)
		}
		took = append(took, time.Since(at))
	}
	open := attack.open.Load()
	cancel()
	all.Wait()
	slices.Sort(took)
	p99 := took[len(took)*99/100]
	t.Logf("%d slow connections (%d bytes dripped, %d cut off, %d answered and closed, the longest after %v); %d good requests, p50 %v, p99 %v, at most %v",
		open, attack.sent.Load(), attack.cut.Load(), attack.answered.Load(), time.Duration(attack.longest.Load()).Round(time.Millisecond),
		len(took), took[len(took)/2].Round(10*time.Microsecond), p99.Round(10*time.Microsecond), took[len(took)-1].Round(10*time.Microsecond))
	if p99 > slowBound {
		t.Errorf("p99 of a good client is %v, want at most %v", p99, slowBound)
	}
	if attack.cut.Load()+attack.answered.Load() < slowConns {
		t.Errorf("%d slow connections were ended, want each of %d at least once", attack.cut.Load()+attack.answered.Load(), slowConns)
	}
	if longest := time.Duration(attack.longest.Load()); longest > 10*readTimeout {
		t.Errorf("a slow client was let go after %v, and the read timeout is %v", longest, readTimeout)
	}
	waitUntil(t, "all slow connections gone", func() bool { return e.srv.Connections().Open <= 1 })
}

// One that takes no answers is cut off too, and its place is free again.
func TestSlowClients_ThatTakeNoAnswer(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) {
		c.WriteTimeout = 200 * time.Millisecond
		c.Limit.Anonymous, c.Limit.Documents = rule(1e12), rule(1e12)
	})
	conn, err := net.Dial("tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	// More answers than the system's buffers hold. The write ends with an error once the server has closed.
	request := strings.Repeat("GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n", 1000)
	for range 100 {
		if _, err := io.WriteString(conn, request); err != nil {
			break
		}
	}
	waitUntil(t, "the connection is closed", func() bool { return e.srv.Connections().Open == 0 })
}
