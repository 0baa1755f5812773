package bench

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

func TestLink_ReadsAnswers(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, raw, body string
		status          int
		keep            bool
	}{
		{"length", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-RateLimit-Limit: 7\r\nX-RateLimit-Window: 60\r\n\r\nabc", "abc", 200, true},
		{"lower case", "HTTP/1.1 429 Too Many\r\ncontent-length:0\r\nx-ratelimit-limit: 7\r\nx-ratelimit-window: 60\r\n\r\n", "", 429, true},
		{"chunks", "HTTP/1.1 200 OK\r\nX-RateLimit-Limit: 7\r\nX-RateLimit-Window: 60\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\nA\r\n0123456789\r\n0\r\nT: 1\r\n\r\n", "ab0123456789", 200, true},
		{"close", "HTTP/1.1 200 OK\r\nX-RateLimit-Limit: 7\r\nX-RateLimit-Window: 60\r\nConnection: close\r\nContent-Length: 1\r\n\r\na", "a", 200, false},
		{"no content", "HTTP/1.1 204 No Content\r\nX-RateLimit-Limit: 7\r\nX-RateLimit-Window: 60\r\n\r\n", "", 204, true},
		{"old", "HTTP/1.0 200 OK\r\nX-RateLimit-Limit: 7\r\nX-RateLimit-Window: 60\r\nContent-Length: 1\r\n\r\na", "a", 200, false},
	} {
		l := newLink(&endpoint{}, time.Second)
		l.reader = bufio.NewReader(strings.NewReader(test.raw))
		a, keep, err := l.read()
		if err != nil || a.status != test.status || string(a.body) != test.body || keep != test.keep || a.limit != 7 || a.window != 60 {
			t.Errorf("%s: got %+v with body %q, keep %v, %v", test.name, a, a.body, keep, err)
		}
		if n := l.reader.Buffered(); n != 0 {
			t.Errorf("%s: %d bytes left over", test.name, n)
		}
	}
}

func TestLink_TellsWhatIsWrong(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ raw, kind string }{
		"nothing":       {"", kindClosed},
		"half":          {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", kindClosed},
		"other":         {"SSH-2.0-OpenSSH_9.2 and more\r\n", kindProtocol},
		"status":        {"HTTP/1.1 abc OK\r\n\r\n", kindProtocol},
		"interim":       {"HTTP/1.1 100 Continue\r\n\r\n", kindProtocol},
		"large":         {"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", kindProtocol},
		"large chunk":   {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n", kindProtocol},
		"chunk":         {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", kindProtocol},
		"endless line":  {"HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", 9000), kindProtocol},
		"endless chunk": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", kindClosed},
	} {
		l := newLink(&endpoint{}, time.Second)
		l.reader = bufio.NewReaderSize(strings.NewReader(test.raw), 8<<10)
		_, _, err := l.read()
		var wrong *wireError
		if err == nil || !errors.As(kindOf(err), &wrong) || wrong.kind != test.kind {
			t.Errorf("%s: got %v, want kind %s", name, err, test.kind)
		}
	}
}

// TestLink_Failures sees a target that is not there, one that says nothing, and one that hangs up.
func TestLink_Failures(t *testing.T) {
	t.Parallel()
	listen := func(serve func(net.Conn)) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go serve(c)
			}
		}()
		return l.Addr().String()
	}
	gone := listen(func(net.Conn) {})
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		gone = l.Addr().String()
		l.Close()
	}
	silent := listen(func(c net.Conn) { io.Copy(io.Discard, c); c.Close() })
	rude := listen(func(c net.Conn) { c.Read(make([]byte, 1)); c.Close() })
	for address, kind := range map[string]string{gone: kindConnect, silent: kindTimeout, rude: kindClosed} {
		e, err := newEndpoint("http://" + address)
		if err != nil {
			t.Fatal(err)
		}
		l := newLink(e, 50*time.Millisecond)
		_, err = l.exchange([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
		var wrong *wireError
		if !errors.As(err, &wrong) || wrong.kind != kind {
			t.Errorf("got %v, want kind %s", err, kind)
		}
		if l.conn != nil {
			t.Errorf("%s: the connection is kept", kind)
		}
	}
}
