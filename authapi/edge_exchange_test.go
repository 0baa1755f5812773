package authapi_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sluice/authapi"
)

// within fails the test where a channel says nothing in time.
func within[T any](t *testing.T, what string, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(10 * time.Second):
		t.Fatalf("no %s in time", what)
		panic("unreachable")
	}
}

// dial connects to an edge and sends.
func (e *edge) dial(request string) (net.Conn, *bufio.Reader) {
	e.t.Helper()
	conn, err := net.Dial("tcp", e.addr)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(15 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		e.t.Fatal(err)
	}
	return conn, bufio.NewReader(conn)
}

// TestExchange_ClientLeaves: an upstream is let go of when the client closes, while it is waited for and while it says nothing in
// the middle of its answer, over HTTP and with more of the client's bytes unread.
func TestExchange_ClientLeaves(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere it shows at the next write")
	}
	for name, tt := range map[string]struct{ answer, request string }{
		"before the header":  {"", ""},
		"pipelined":          {"", "GET /x/2 HTTP/1.1\r\nHost: a\r\n\r\n"},
		"between two events": {"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na\n\n\r\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			entered, gone := make(chan bool, 2), make(chan bool, 2)
			s := newScript(t, func(_ int64, conn net.Conn, r *bufio.Reader, _ *http.Request) bool {
				io.WriteString(conn, tt.answer)
				entered <- true
				_, err := r.ReadByte()
				gone <- err != nil
				return false
			})
			e := newRoute(t, func(_ *authapi.Config, r *authapi.Route) { r.Timeout = time.Minute }, s.url)
			conn, r := e.dial("GET /x HTTP/1.1\r\nHost: a\r\n\r\n" + tt.request)
			within(t, "request", entered)
			if tt.answer != "" {
				if line, err := r.ReadString('\n'); err != nil || !strings.Contains(line, "200") {
					t.Fatalf("%q, %v", line, err)
				}
			}
			conn.Close()
			if !within(t, "end at the upstream", gone) {
				t.Error("the upstream got more bytes")
			}
			if got := e.upstream(0); got.Failed+got.TimedOut != 0 || got.Ejections != 0 {
				t.Errorf("it counts against the upstream: %+v", got)
			}
		})
	}
}

// TestExchange_EventStream: events come one by one, the header before the first of them.
func TestExchange_EventStream(t *testing.T) {
	t.Parallel()
	next := make(chan string)
	e := newGateway(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		for event := range next {
			io.WriteString(w, "data: "+event+"\n\n")
			w.(http.Flusher).Flush()
		}
	}, func(_ *authapi.Config, r *authapi.Route) { r.MaxAnswerBytes = 1000 }) // which holds other answers back
	resp, err := e.http.Get("http://" + e.addr + "/api/v1/events") // returns with the header
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r := bufio.NewReader(resp.Body)
	for i := range 5 {
		next <- strconv.Itoa(i)
		line, err := r.ReadString('\n')
		if _, empty := r.ReadString('\n'); err != nil || empty != nil || line != "data: "+strconv.Itoa(i)+"\n" {
			t.Fatalf("event %d: %q, %v", i, line, err)
		}
	}
	close(next)
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("the end: %v", err)
	}
}

// TestExchange_BothWaysAtOnce: an upstream may answer while it still reads, piece by piece.
func TestExchange_BothWaysAtOnce(t *testing.T) {
	t.Parallel()
	s := newScript(t, func(_ int64, conn net.Conn, _ *bufio.Reader, req *http.Request) bool {
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		for r := bufio.NewReader(req.Body); ; {
			line, err := r.ReadString('\n')
			if err != nil {
				io.WriteString(conn, "0\r\n\r\n")
				return false
			}
			io.WriteString(conn, strconv.FormatInt(int64(len(line)), 16)+"\r\n"+line+"\r\n")
		}
	})
	e := newRoute(t, nil, s.url)
	body, in := io.Pipe()
	req, err := http.NewRequest("POST", "http://"+e.addr+"/x", body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := e.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r := bufio.NewReader(resp.Body)
	for i := range 20 {
		said := "line " + strconv.Itoa(i) + "\n"
		io.WriteString(in, said)
		if heard, err := r.ReadString('\n'); err != nil || heard != said {
			t.Fatalf("heard %q, %v; said %q", heard, err, said)
		}
	}
	in.Close()
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("the end: %v", err)
	}
}

// TestExchange_EarlyAnswer: an upstream that refuses an upload before it has read it is heard, and the connection is not used for
// another request.
func TestExchange_EarlyAnswer(t *testing.T) {
	t.Parallel()
	s := newScript(t, func(_ int64, conn net.Conn, _ *bufio.Reader, _ *http.Request) bool {
		io.WriteString(conn, "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
		// One that closed with a body unread would reset the connection, and take its answer back with that.
		conn.(*net.TCPConn).CloseWrite() // the test may be over by now
		io.Copy(io.Discard, conn)
		return false
	})
	e := newRoute(t, nil, s.url)
	conn, r := e.dial("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + strings.Repeat("x", 100_000))
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); resp.StatusCode != 403 || string(b) != "no" || err != nil || !resp.Close {
		t.Errorf("%d %q, %v, closing %v", resp.StatusCode, b, err, resp.Close)
	}
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Errorf("the end: %v", err)
	}
}

// TestExchange_SlowUpstreamIsNotTheClientsFault: what the client waits for the upstream to take does not count against it.
func TestExchange_SlowUpstreamIsNotTheClientsFault(t *testing.T) {
	t.Parallel()
	s := newScript(t, func(_ int64, conn net.Conn, r *bufio.Reader, req *http.Request) bool {
		time.Sleep(700 * time.Millisecond) // longer than the client's grace: this is what is under test
		n, err := io.Copy(io.Discard, req.Body)
		if err != nil {
			return false
		}
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nX-Read: "+strconv.FormatInt(n, 10)+"\r\nContent-Length: 0\r\n\r\n")
		return true
	})
	const size = 16 << 20 // more than the sockets in between hold
	e := newRoute(t, func(c *authapi.Config, _ *authapi.Route) { c.ReadTimeout = 500 * time.Millisecond }, s.url)
	resp, err := e.http.Post("http://"+e.addr+"/x", "text/plain", io.LimitReader(repeat("0123456789abcdef"), size))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("X-Read") != strconv.Itoa(size) {
		t.Errorf("%d, %s bytes read", resp.StatusCode, resp.Header.Get("X-Read"))
	}
}

// TestExchange_NobodyReads: an upstream that takes the connection and not the body is given up, in the middle of the body and at
// its end.
func TestExchange_NobodyReads(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{32 << 20, 16 << 10} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() }) // whose queue takes connections that nobody accepts
		e := newRoute(t, func(_ *authapi.Config, r *authapi.Route) {
			r.Timeout, r.IdleTimeout, r.Retries = 300*time.Millisecond, 300*time.Millisecond, -1
		}, "http://"+ln.Addr().String())
		conn, r := e.dial("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: " + strconv.FormatInt(size, 10) + "\r\n\r\n")
		go io.Copy(conn, io.LimitReader(repeat("0123456789abcdef"), size)) // until the other end has enough
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		e.want(answer{resp.StatusCode, resp.Header, string(b)}, 504, "gateway_timeout")
		if got := e.upstream(0); got.TimedOut != 1 || got.InFlight != 0 {
			t.Errorf("%d bytes: counts %+v", size, got)
		}
	}
}

// TestExchange_LongSilence: an answer that was silent for longer than a client may take to read it still has its end.
func TestExchange_LongSilence(t *testing.T) {
	t.Parallel()
	e := newGateway(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "a")
		w.(http.Flusher).Flush()
		time.Sleep(400 * time.Millisecond) // is what is under test
	}, func(c *authapi.Config, _ *authapi.Route) { c.WriteTimeout = 100 * time.Millisecond })
	if a := e.do("GET", "/api/v1/events", ""); a.status != 200 || a.body != "a" {
		t.Errorf("%d %q", a.status, a.body)
	}
}

func TestExchange_AnswerLimit(t *testing.T) {
	t.Parallel()
	chunked := func(n int) string {
		return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("10\r\n0123456789abcdef\r\n", n/16) + "0\r\n\r\n"
	}
	sized := func(n int) string {
		return "HTTP/1.1 200 OK\r\nContent-Length: " + strconv.Itoa(n) + "\r\n\r\n" + strings.Repeat("x", n)
	}
	for name, tt := range map[string]struct {
		answer string
		limit  int64
		status int
		length int
		cut    bool
	}{
		"as long as may be":            {sized(1600), 1600, 200, 1600, false},
		"longer":                       {sized(1601), 1600, 502, 0, false},
		"chunks, as long as may be":    {chunked(1600), 1600, 200, 1600, false},
		"chunks, longer":               {chunked(1616), 1600, 502, 0, false},
		"many chunks, as long":         {chunked(1 << 20), 1 << 20, 200, 1 << 20, false},
		"many chunks, longer":          {chunked(1<<20 + 16), 1 << 20, 200, 0, true},
		"until close, longer":          {"HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat("x", 1601), 1600, 502, 0, false},
		"any length without the limit": {chunked(4 << 20), 0, 200, 4 << 20, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScript(t, func(_ int64, conn net.Conn, _ *bufio.Reader, _ *http.Request) bool {
				io.WriteString(conn, tt.answer)
				return false
			})
			e := newRoute(t, func(_ *authapi.Config, r *authapi.Route) { r.MaxAnswerBytes = tt.limit }, s.url)
			resp, err := e.http.Get("http://" + e.addr + "/x")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if (err != nil) != tt.cut || int64(len(body)) > max(tt.limit, 4<<20) {
				t.Errorf("%d bytes, %v, want cut off %v", len(body), err, tt.cut)
			}
			if tt.cut {
				return
			}
			got := answer{resp.StatusCode, resp.Header, string(body)}
			wantHeaders(t, got)
			if tt.status == 502 {
				e.want(got, 502, "answer_too_large")
				if n := e.upstream(0); n.Broken != 1 || n.Answered != 1 {
					t.Errorf("counts %+v", n)
				}
			} else if got.status != 200 || len(body) != tt.length {
				t.Errorf("%d, %d bytes, want %d", got.status, len(body), tt.length)
			}
			if resp.StatusCode == 200 && tt.limit > 0 {
				// A HEAD's length is of what is not sent.
				if head := e.do("HEAD", "/x", ""); head.status != 200 {
					t.Errorf("HEAD: %d", head.status)
				}
			}
		})
	}
}

// TestExchange_HTTP10 has clients that know no chunks, as a proxy in front may be.
func TestExchange_HTTP10(t *testing.T) {
	t.Parallel()
	e := newGateway(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/long") {
			w.(http.Flusher).Flush()
		}
		io.WriteString(w, strings.Repeat("0123456789", 1000))
	}, nil)
	for _, path := range []string{"/long", ""} {
		_, r := e.dial("GET /api/v1/events" + path + " HTTP/1.0\r\nHost: a\r\n\r\n")
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil || len(b) != 10000 || len(resp.TransferEncoding) > 0 || resp.Header.Get("Via") != "1.1 sluice" {
			t.Errorf("%q: %d bytes, %v, coding %v, header %v", path, len(b), err, resp.TransferEncoding, resp.Header)
		}
		wantHeaders(t, answer{resp.StatusCode, resp.Header, ""})
	}
	if got := e.upstream(0); got.InFlight != 0 {
		t.Errorf("%d in flight at the end", got.InFlight)
	}
}

// TestExchange_HTTP10CutShort: without a length or chunks the end of the connection is all that there is, so it must not look like one.
func TestExchange_HTTP10CutShort(t *testing.T) {
	t.Parallel()
	s := newScript(t, func(_ int64, conn net.Conn, _ *bufio.Reader, _ *http.Request) bool {
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
		return false
	})
	e := newRoute(t, nil, s.url)
	_, r := e.dial("GET /x HTTP/1.0\r\nHost: a\r\n\r\n")
	resp, err := http.ReadResponse(r, nil)
	if err == nil {
		_, err = io.ReadAll(resp.Body)
	}
	if err == nil {
		t.Error("half an answer looks like a whole one")
	}
}

func TestExchange_Via(t *testing.T) {
	t.Parallel()
	seen := make(chan http.Header, 1)
	e := newGateway(t, func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header
		w.Header().Set("Via", "1.0 cache")
		w.Header().Set("Trailer", "X-Sum")
		w.Header().Set("Connection", "X-Private")
		w.Header().Set("X-Private", "1")
		io.WriteString(w, "ok")
		w.Header().Set("X-Sum", "1")
	}, nil)
	a := e.do("GET", "/api/v1/events", "", "Via", "1.1 front", "Te", "trailers", "Upgrade", "h2c", "Connection", "Upgrade, HTTP2-Settings", "Http2-Settings", "AAMA")
	if got := strings.Join(a.header.Values("Via"), ", "); a.status != 200 || got != "1.0 cache, 1.1 sluice" {
		t.Errorf("%d, Via %q", a.status, got)
	}
	for _, name := range []string{"X-Private", "Trailer", "X-Sum"} {
		if a.header.Get(name) != "" {
			t.Errorf("%s = %q", name, a.header.Get(name))
		}
	}
	h := <-seen
	if got := strings.Join(h.Values("Via"), ", "); got != "1.1 front, 1.1 sluice" {
		t.Errorf("the upstream's Via %q", got)
	}
	for _, name := range []string{"Upgrade", "Connection", "Http2-Settings", "Te", "User-Agent"} {
		if name != "User-Agent" && h.Get(name) != "" {
			t.Errorf("the upstream's %s %q", name, h.Get(name))
		}
	}
}

// TestExchange_Continue: a client that asks first sends its body only where the request passes otherwise.
func TestExchange_Continue(t *testing.T) {
	t.Parallel()
	bodies := make(chan string, 1)
	e := newGateway(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		bodies <- string(b) + r.Header.Get("Expect")
	}, func(_ *authapi.Config, r *authapi.Route) { r.MaxBodyBytes = 1000 })
	writer, reader := e.key(nil, "events:write"), e.key(nil, "events:read")
	for _, tt := range []struct {
		name, key, framing string
		status             int
	}{
		{"passes", writer, "Content-Length: 4", 100}, {"passes in chunks", writer, "Transfer-Encoding: chunked", 100},
		{"no credential", "", "Content-Length: 4", 401}, {"no scope", reader, "Content-Length: 4", 403},
		{"too long", writer, "Content-Length: 1001", 413}, {"a wrong key", "sk_live_x", "Transfer-Encoding: chunked", 401},
	} {
		key := ""
		if tt.key != "" {
			key = "X-API-Key: " + tt.key + "\r\n"
		}
		conn, r := e.dial("POST /api/v1/events HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n" + key + tt.framing + "\r\n\r\n")
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != tt.status {
			t.Errorf("%s: %v, %v, want %d", tt.name, resp, err, tt.status)
			continue
		}
		if tt.status != 100 {
			b, _ := io.ReadAll(resp.Body)
			wantHeaders(t, answer{resp.StatusCode, resp.Header, string(b)})
			continue
		}
		body := "body"
		if strings.Contains(tt.framing, "chunked") {
			body = "4\r\nbody\r\n0\r\n\r\n"
		}
		for range 2 { // the connection goes on
			io.WriteString(conn, body)
			resp, err = http.ReadResponse(r, nil)
			if err != nil || resp.StatusCode != 200 || resp.Header.Get("X-RateLimit-Limit") != "1000" {
				t.Fatalf("%s: %v, %v", tt.name, resp, err)
			}
			if got := within(t, "body", bodies); got != "body" {
				t.Errorf("%s: the upstream got %q", tt.name, got)
			}
			body = "POST /api/v1/events HTTP/1.1\r\nHost: a\r\n" + key + "Content-Length: 4\r\n\r\nbody"
		}
	}
	// Each costs once: 5 for each that had the scope, and those that were refused for their length were counted as well.
	if a := e.do("POST", "/api/v1/events", "body", "X-API-Key", writer); a.header.Get("X-RateLimit-Remaining") != strconv.Itoa(1000-5*6) {
		t.Errorf("%s left of 1000 after 6 requests at 5 each", a.header.Get("X-RateLimit-Remaining"))
	}
}

// TestExchange_ManyDownloads holds a thousand downloads open at once, each in the middle of a body that is far larger than what
// memory there is for it, and reads them all to the end.
func TestExchange_ManyDownloads(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	const downloads, size = 1000, 1 << 20
	block := strings.Repeat("x", 32<<10)
	goOn := make(chan struct{})
	e := newGateway(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery == "sized" {
			w.Header().Set("Content-Length", strconv.Itoa(size))
		}
		for n := 0; n < size; n += len(block) {
			if n == size/2 {
				<-goOn
			}
			if _, err := io.WriteString(w, block); err != nil {
				return
			}
		}
	}, func(c *authapi.Config, r *authapi.Route) {
		c.Limit.Anonymous = rule(1e9)
		c.MaxConnsPerIP = downloads + 100
		c.ReadTimeout, c.WriteTimeout = 2*time.Minute, 2*time.Minute // the machine may be slow, and this is not about that
		r.Timeout, r.IdleTimeout, r.MaxRequests = time.Minute, 2*time.Minute, downloads
	})
	e.http.Timeout = 3 * time.Minute
	before := inUse()
	begun, ended := make(chan error, downloads), make(chan error, downloads)
	var wait sync.WaitGroup
	for i := range downloads {
		wait.Go(func() {
			conn, err := net.Dial("tcp", e.addr)
			if err != nil {
				begun <- err
				ended <- err
				return
			}
			defer conn.Close()
			io.WriteString(conn, "GET /api/v1/events"+[]string{"", "?sized"}[i%2]+" HTTP/1.1\r\nHost: a\r\n\r\n")
			r := bufio.NewReaderSize(conn, 4<<10)
			resp, err := http.ReadResponse(r, nil)
			if err == nil && resp.StatusCode != 200 {
				err = errors.New(resp.Status)
			}
			begun <- err
			if err != nil {
				ended <- err
				return
			}
			<-goOn
			n, err := io.Copy(io.Discard, resp.Body)
			if err == nil && n != size {
				err = errors.New("read " + strconv.FormatInt(n, 10) + " bytes")
			}
			ended <- err
		})
	}
	for range downloads {
		if err := <-begun; err != nil {
			t.Fatal(err)
		}
	}
	if got := e.upstream(0).InFlight; got != downloads {
		t.Errorf("%d in flight, want %d", got, downloads)
	}
	// What the test's own ends take is in it: buffers and stacks of the clients and of the upstream.
	const most = 160 << 10
	if each := (inUse() - before) / downloads; each > most {
		t.Errorf("%d bytes of memory a download, want at most %d of %d", each, most, size)
	} else {
		t.Logf("%d bytes of memory a download of %d", each, size)
	}
	close(goOn)
	for range downloads {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	wait.Wait()
}

// inUse is the memory that the process has in use, heap and stacks.
func inUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
