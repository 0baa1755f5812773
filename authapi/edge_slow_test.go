package authapi_test

import (
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"sluice/authapi"
	"sluice/authapi/authtest"
)

const (
	slowConns = 2000
	// slowBound is what a good client's p99 may be on any machine that runs tests; what it is is printed.
	slowBound = 500 * time.Millisecond
)

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
	attack := authtest.StartSlowAttack(e.addr, slowConns)
	defer attack.Stop()
	select {
	case <-attack.Crowded():
	case <-time.After(30 * time.Second):
		t.Fatalf("only %d connections are open", attack.Open())
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
	open := attack.Open()
	attack.Stop()
	slices.Sort(took)
	p99 := took[len(took)*99/100]
	t.Logf("%d slow connections (%d bytes dripped, %d cut off, %d answered and closed, the longest after %v); %d good requests, p50 %v, p99 %v, at most %v",
		open, attack.Sent(), attack.Cut(), attack.Answered(), attack.Longest().Round(time.Millisecond),
		len(took), took[len(took)/2].Round(10*time.Microsecond), p99.Round(10*time.Microsecond), took[len(took)-1].Round(10*time.Microsecond))
	if p99 > slowBound {
		t.Errorf("p99 of a good client is %v, want at most %v", p99, slowBound)
	}
	if ended := attack.Cut() + attack.Answered(); ended < slowConns {
		t.Errorf("%d slow connections were ended, want each of %d at least once", ended, slowConns)
	}
	if longest := attack.Longest(); longest > 10*readTimeout {
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
