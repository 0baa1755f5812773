package authapi_test

import (
	"bufio"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sluice/authapi"
)

// script is an upstream over raw TCP: answer has each request and the connection to do with as it likes, and says whether to
// read another one from it.
type script struct {
	url      string
	conns    atomic.Int64
	requests atomic.Int64
	ln       net.Listener
	mu       sync.Mutex
	open     map[net.Conn]bool
}

func newScript(t *testing.T, answer func(n int64, conn net.Conn, r *bufio.Reader, req *http.Request) bool) *script {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &script{url: "http://" + ln.Addr().String(), ln: ln, open: map[net.Conn]bool{}}
	t.Cleanup(s.close)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			s.conns.Add(1)
			s.mu.Lock()
			s.open[conn] = true
			s.mu.Unlock()
			go func() {
				defer conn.Close()
				r := bufio.NewReader(conn)
				for {
					req, err := http.ReadRequest(r)
					if err != nil || !answer(s.requests.Add(1), conn, r, req) {
						return
					}
				}
			}()
		}
	}()
	return s
}

// close ends it as a killed process would.
func (s *script) close() {
	s.ln.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn := range s.open {
		conn.Close()
	}
}

const answerOK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// good answers every request.
func good(_ int64, conn net.Conn, _ *bufio.Reader, req *http.Request) bool {
	io.Copy(io.Discard, req.Body)
	_, err := io.WriteString(conn, answerOK)
	return err == nil
}

// bad closes the connection on every request.
func bad(_ int64, _ net.Conn, _ *bufio.Reader, req *http.Request) bool {
	io.Copy(io.Discard, req.Body)
	return false
}

// newRoute is an edge with one open route, /x, to these upstreams.
func newRoute(t *testing.T, change func(*authapi.Config, *authapi.Route), upstreams ...string) *edge {
	t.Helper()
	return newEdge(t, func(c *authapi.Config) {
		c.Limit.Anonymous = rule(1e9)
		r := authapi.Route{
			Name: "x", PathPrefix: "/x", Upstreams: upstreams, Timeout: 5 * time.Second, MaxBodyBytes: 64 << 20,
			Rules: []authapi.RouteRule{{Methods: []string{"*"}, Anonymous: true}},
		}
		if change != nil {
			change(c, &r)
		}
		c.Routes = append(c.Routes, r)
	})
}

func (e *edge) upstream(i int) authapi.UpstreamCount { return e.srv.Upstreams()[i] }

func TestUpstreams_InTurn(t *testing.T) {
	t.Parallel()
	a, b, c := newScript(t, good), newScript(t, good), newScript(t, good)
	e := newRoute(t, nil, a.url, b.url, c.url)
	for range 9 {
		e.want(e.do("GET", "/x", ""), 200, "")
	}
	for i, s := range []*script{a, b, c} {
		if n := s.requests.Load(); n != 3 {
			t.Errorf("upstream %d had %d requests of 9, want 3", i, n)
		}
		if n := s.conns.Load(); n != 1 {
			t.Errorf("upstream %d had %d connections, want its one kept", i, n)
		}
		if got := e.upstream(i); got.Answered != 3 || got.URL != s.url || got.Route != "x" || !got.Up || got.InFlight != 0 {
			t.Errorf("counts of upstream %d: %+v", i, got)
		}
	}
}

// TestUpstreams_DeadOneIsLeftOut: no client sees a dead upstream, GET or POST, and it is back once its time is over.
func TestUpstreams_DeadOneIsLeftOut(t *testing.T) {
	t.Parallel()
	alive := newScript(t, good)
	dead := deadAddress(t)
	e := newRoute(t, func(_ *authapi.Config, r *authapi.Route) { r.MaxFails, r.EjectTime = 2, 10*time.Second }, "http://"+dead, alive.url)
	for i := range 20 {
		method := []string{"GET", "POST"}[i%2]
		e.want(e.do(method, "/x", "body"[:4*(i%2)]), 200, "")
	}
	got := e.upstream(0)
	if got.Failed != 2 || got.Ejections != 1 || got.Up {
		t.Errorf("the dead one: %+v, want it left out after 2 failures", got)
	}
	if n := e.srv.GatewayRoutes()[0].Retries; n != 2 {
		t.Errorf("%d retries, want 2", n)
	}
	// Its time is over, and it is dead still: one attempt, and left out for twice as long.
	e.clock.Advance(11 * time.Second)
	for range 4 {
		e.want(e.do("GET", "/x", ""), 200, "")
	}
	if got := e.upstream(0); got.Failed != 3 || got.Ejections != 2 {
		t.Errorf("after its time: %+v, want one more failure and ejection", got)
	}
	e.clock.Advance(11 * time.Second)
	for range 4 {
		e.want(e.do("GET", "/x", ""), 200, "")
	}
	if got := e.upstream(0); got.Failed != 3 {
		t.Errorf("asked again after 11 s of 20: %+v", got)
	}
	// It comes back.
	ln, err := net.Listen("tcp", dead)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv.Listener.Close()
	srv.Listener = ln
	srv.Start()
	t.Cleanup(srv.Close)
	e.clock.Advance(10 * time.Second)
	for range 4 {
		e.want(e.do("GET", "/x", ""), 200, "")
	}
	if got := e.upstream(0); !got.Up || got.Answered != 2 {
		t.Errorf("back: %+v, want it in use with 2 of 4 requests", got)
	}
}

// TestUpstreams_LastOneStays: one upstream, or the last of several, is asked however it fails.
func TestUpstreams_LastOneStays(t *testing.T) {
	t.Parallel()
	a, b := newScript(t, bad), newScript(t, bad)
	for _, urls := range [][]string{{a.url}, {a.url, b.url}} {
		e := newRoute(t, func(_ *authapi.Config, r *authapi.Route) { r.MaxFails, r.Retries = 1, -1 }, urls...)
		for range 10 {
			e.want(e.do("GET", "/x", ""), 502, "bad_gateway")
		}
		up := 0
		var attempts uint64
		for i := range urls {
			attempts += e.upstream(i).Failed
			if e.upstream(i).Up {
				up++
			}
		}
		if up != 1 || attempts != 10 {
			t.Errorf("%d upstreams: %d in use after %d attempts, want 1 after 10", len(urls), up, attempts)
		}
	}
}

// TestUpstreams_LeftOutOnesAreTheLastResort: what is left out is asked where the request has failed at all others.
func TestUpstreams_LeftOutOnesAreTheLastResort(t *testing.T) {
	t.Parallel()
	var broken atomic.Bool
	broken.Store(true)
	a := newScript(t, func(n int64, conn net.Conn, r *bufio.Reader, req *http.Request) bool {
		return !broken.Load() && good(n, conn, r, req)
	})
	b := newScript(t, func(n int64, conn net.Conn, r *bufio.Reader, req *http.Request) bool {
		return broken.Load() && good(n, conn, r, req)
	})
	e := newRoute(t, func(_ *authapi.Config, r *authapi.Route) { r.MaxFails, r.EjectTime = 1, time.Hour }, a.url, b.url)
	e.want(e.do("GET", "/x", ""), 200, "")
	if e.upstream(0).Up {
		t.Fatal("the broken one is in use")
	}
	broken.Store(false)
	e.want(e.do("GET", "/x", ""), 200, "")
	if !e.upstream(0).Up {
		t.Error("the one that answers again is left out still")
	}
}

func TestUpstreams_TooManyAtOnce(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	entered := make(chan struct{}, 2)
	slow := func(n int64, conn net.Conn, r *bufio.Reader, req *http.Request) bool {
		entered <- struct{}{}
		<-release
		return good(n, conn, r, req)
	}
	a, b := newScript(t, slow), newScript(t, slow)
	e := newRoute(t, func(_ *authapi.Config, r *authapi.Route) { r.MaxRequests = 1 }, a.url, b.url)
	done := make(chan answer, 2)
	for range 2 {
		go func() { done <- e.do("GET", "/x", "") }()
		<-entered
	}
	refused := e.do("GET", "/x", "")
	e.want(refused, 503, "overloaded")
	if refused.header.Get("Retry-After") == "" || refused.header.Get("X-RateLimit-Remaining") != "999999998" {
		t.Errorf("refused with %v, want a Retry-After and what was spent back", refused.header)
	}
	close(release)
	for range 2 {
		e.want(<-done, 200, "")
	}
	e.want(e.do("GET", "/x", ""), 200, "")
}

// TestUpstreams_NothingHappensTwice counts what reaches upstreams of requests whose connection breaks after they were sent.
func TestUpstreams_NothingHappensTwice(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		method, body string
		headers      []string
		requests     int64 // that upstreams see in all
	}{
		{"GET", "", nil, 3}, {"HEAD", "", nil, 3}, {"OPTIONS", "", nil, 3}, {"PUT", "", nil, 3}, {"DELETE", "", nil, 3},
		{"PUT", "body", nil, 1}, {"GET", "body", nil, 1}, {"POST", "", nil, 1}, {"POST", "body", nil, 1}, {"PATCH", "", nil, 1},
		{"POST", "", []string{"Idempotency-Key", `"k"`}, 1}, {"POST", "body", []string{"X-Idempotency-Key", "k"}, 1},
		{"BREW", "", nil, 1},
	} {
		t.Run(tt.method+tt.body+fmt.Sprint(len(tt.headers)), func(t *testing.T) {
			t.Parallel()
			a, b, c, d := newScript(t, bad), newScript(t, bad), newScript(t, bad), newScript(t, bad)
			e := newRoute(t, nil, a.url, b.url, c.url, d.url)
			if got := e.do(tt.method, "/x", tt.body, tt.headers...); got.status != 502 {
				t.Errorf("status %d, want 502", got.status)
			}
			if n := a.requests.Load() + b.requests.Load() + c.requests.Load() + d.requests.Load(); n != tt.requests {
				t.Errorf("upstreams saw %d requests, want %d", n, tt.requests)
			}
		})
	}
}

// TestUpstreams_KeptConnections has an upstream that closes each kept connection on its second request, unanswered.
func TestUpstreams_KeptConnections(t *testing.T) {
	t.Parallel()
	var perConn sync.Map
	s := newScript(t, func(n int64, conn net.Conn, r *bufio.Reader, req *http.Request) bool {
		_, again := perConn.LoadOrStore(conn, true)
		return !again && good(n, conn, r, req)
	})
	e := newRoute(t, func(_ *authapi.Config, r *authapi.Route) { r.MaxFails = 1 }, s.url)
	for _, method := range []string{"GET", "PUT", "DELETE", "HEAD", "GET"} {
		e.want(e.do(method, "/x", ""), 200, "")
	}
	before := s.requests.Load()
	e.want(e.do("POST", "/x", "", "Idempotency-Key", "k"), 502, "bad_gateway")
	if n := s.requests.Load() - before; n != 1 {
		t.Errorf("the POST was sent %d times", n)
	}
	if got := e.upstream(0); !got.Up || got.Ejections != 0 {
		t.Errorf("kept connections count against the upstream: %+v", got)
	}
}

// TestUpstreams_KeptConnectionsAreBounded: a GET does not go through all that were kept, one after the other.
func TestUpstreams_KeptConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	const kept = 20
	var wait sync.WaitGroup
	wait.Add(kept)
	var perConn sync.Map
	var again atomic.Int64
	s := newScript(t, func(n int64, conn net.Conn, r *bufio.Reader, req *http.Request) bool {
		if _, second := perConn.LoadOrStore(conn, true); second {
			again.Add(1)
			return false
		}
		if n <= kept {
			wait.Done()
			wait.Wait() // all at once, so that each has a connection of its own
		}
		return good(n, conn, r, req)
	})
	e := newRoute(t, func(_ *authapi.Config, r *authapi.Route) { r.Retries = -1 }, s.url)
	var clients sync.WaitGroup
	for range kept {
		clients.Go(func() { e.want(e.do("GET", "/x", ""), 200, "") })
	}
	clients.Wait()
	e.want(e.do("GET", "/x", ""), 502, "bad_gateway")
	if n := again.Load(); n < 2 || n > 5 {
		t.Errorf("it was sent on %d kept connections of %d", n, kept)
	}
}

// TestUpstreams_TimeIsNotWaitedTwice: a GET that was not answered in time is not sent to the next.
func TestUpstreams_TimeIsNotWaitedTwice(t *testing.T) {
	t.Parallel()
	hang := func(_ int64, conn net.Conn, r *bufio.Reader, _ *http.Request) bool {
		io.Copy(io.Discard, r) // until it is closed
		return false
	}
	a, b := newScript(t, hang), newScript(t, hang)
	e := newRoute(t, func(_ *authapi.Config, r *authapi.Route) { r.Timeout = 100 * time.Millisecond }, a.url, b.url)
	e.want(e.do("GET", "/x", ""), 504, "gateway_timeout")
	if n := a.requests.Load() + b.requests.Load(); n != 1 {
		t.Errorf("upstreams saw %d requests, want 1", n)
	}
	if got := e.upstream(0); got.TimedOut != 1 {
		t.Errorf("counts %+v", got)
	}
}

func TestUpstreams_ConnectTimeout(t *testing.T) {
	t.Parallel()
	// A listener whose queue is full takes no connection: the kernel drops what comes.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	tlsOnly := "https://" + ln.Addr().String() // takes connections and never says a word
	e := newRoute(t, func(_ *authapi.Config, r *authapi.Route) { r.ConnectTimeout, r.Retries = 100*time.Millisecond, -1 }, tlsOnly)
	e.want(e.do("POST", "/x", "body"), 504, "gateway_timeout")
}

func TestUpstreams_BadBehaviour(t *testing.T) {
	t.Parallel()
	drip := func(header string, then func(conn net.Conn, r *bufio.Reader)) func(int64, net.Conn, *bufio.Reader, *http.Request) bool {
		return func(_ int64, conn net.Conn, r *bufio.Reader, _ *http.Request) bool {
			io.WriteString(conn, header)
			if then != nil {
				then(conn, r)
			}
			return false
		}
	}
	hang := func(_ net.Conn, r *bufio.Reader) { io.Copy(io.Discard, r) }
	for _, tt := range []struct {
		name   string
		answer func(int64, net.Conn, *bufio.Reader, *http.Request) bool
		status int
		code   string
		broken bool
	}{
		{"half a header", drip("HTTP/1.1 200 OK\r\nX-A: b", nil), 502, "bad_gateway", false},
		{"a header that never ends", drip("HTTP/1.1 200 OK\r\nX-A: b", hang), 504, "gateway_timeout", false},
		{"a hundred early hints", drip(strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 100)+answerOK, nil), 200, "", false},
		{"early hints without end", drip("", func(conn net.Conn, _ *bufio.Reader) {
			for {
				if _, err := io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"); err != nil {
					return
				}
			}
		}), 502, "bad_gateway", false},
		{"two lengths", drip("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk", nil), 502, "bad_gateway", false},
		{"a length that is none", drip("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nok", nil), 502, "bad_gateway", false},
		{"a coding of its own", drip("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok", nil), 502, "bad_gateway", false},
		{"a name that is none", drip("HTTP/1.1 200 OK\r\nX A: b\r\nContent-Length: 2\r\n\r\nok", nil), 502, "bad_gateway", false},
		{"a split header", drip("HTTP/1.1 200 OK\r\nX-A: b\rSet-Cookie: c=1\r\nContent-Length: 2\r\n\r\nok", nil), 502, "bad_gateway", false},
		{"a NUL", drip("HTTP/1.1 200 OK\r\nX-A: b\x00c\r\nContent-Length: 2\r\n\r\nok", nil), 502, "bad_gateway", false},
		{"switched unasked", drip("HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", nil), 502, "bad_gateway", false},
		{"TLS", drip("\x15\x03\x01\x00\x02\x02\x46", nil), 502, "bad_gateway", false},
		{"a status of its own", drip("HTTP/1.1 2000 OK\r\n\r\n", nil), 502, "bad_gateway", false},
		{"a body that stands still", drip("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"+strings.Repeat("x", 50000), hang), 200, "", true},
		{"chunks that stand still", drip("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", hang), 200, "", true},
		{"a chunk that is none", drip("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n", hang), 200, "", true},
		{"more than it said", drip("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\npoison!", nil), 200, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newScript(t, tt.answer)
			e := newRoute(t, func(_ *authapi.Config, r *authapi.Route) {
				r.Timeout, r.IdleTimeout, r.Retries = 300*time.Millisecond, 300*time.Millisecond, -1
			}, s.url)
			resp, err := e.http.Get("http://" + e.addr + "/x")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if (err != nil) != tt.broken {
				t.Errorf("read %d bytes with %v, want broken %v", len(body), err, tt.broken)
			}
			got := answer{resp.StatusCode, resp.Header, string(body)}
			e.want(got, tt.status, tt.code)
			wantHeaders(t, got)
			if tt.status == 200 && !tt.broken && got.body != "ok" {
				t.Errorf("body %q", got.body)
			}
			if tt.name == "more than it said" {
				if again := e.do("GET", "/x", ""); again.body != "ok" {
					t.Errorf("the next client got %q", again.body)
				}
			}
			counts := e.upstream(0)
			if counts.InFlight != 0 {
				t.Errorf("%d requests in flight at the end", counts.InFlight)
			}
			if tt.broken && counts.Broken != 1 {
				t.Errorf("counts %+v, want one broken answer", counts)
			}
		})
	}
}

// TestUpstreams_NoTunnels: CONNECT is nothing that a gateway of this kind does, whatever a rule says.
func TestUpstreams_NoTunnels(t *testing.T) {
	t.Parallel()
	s := newScript(t, good)
	e := newRoute(t, nil, s.url)
	a, err := e.raw("CONNECT /x HTTP/1.1\r\nHost: a\r\n\r\n")
	if err != nil || a.status != 405 || s.requests.Load() != 0 {
		t.Errorf("%d, %v, %d requests at the upstream", a.status, err, s.requests.Load())
	}
}

func TestUpstreams_Authorities(t *testing.T) {
	t.Parallel()
	up := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) }))
	defer up.Close()
	pool := x509.NewCertPool()
	pool.AddCert(up.Certificate())
	e := newRoute(t, func(_ *authapi.Config, r *authapi.Route) { r.UpstreamCA = pool }, up.URL)
	if a := e.do("GET", "/x", ""); a.status != 200 || a.body != "HTTP/1.1" {
		t.Errorf("answer %d %q", a.status, a.body)
	}
	// The certificate is for 127.0.0.1, not for this name.
	other := newRoute(t, func(_ *authapi.Config, r *authapi.Route) { r.UpstreamCA = pool }, strings.Replace(up.URL, "127.0.0.1", "localhost", 1))
	other.want(other.do("GET", "/x", ""), 502, "bad_gateway")
	if got := other.upstream(0); got.Failed != 1 {
		t.Errorf("counts %+v", got)
	}
}
