package authapi_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"sluice/authapi"
	"sluice/raftfsm/state"
)

// newSocketRoute is an edge with a route to an upstream that says back what it hears, over WebSocket.
func newSocketRoute(t *testing.T, change func(*authapi.Config, *authapi.Route)) (*edge, chan http.Header) {
	t.Helper()
	handshakes := make(chan http.Header, 16)
	e := newGateway(t, func(w http.ResponseWriter, r *http.Request) {
		handshakes <- r.Header.Clone()
		conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"echo"}, InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer conn.CloseNow()
		conn.SetReadLimit(1 << 20)
		for {
			kind, data, err := conn.Read(r.Context())
			if err != nil || conn.Write(r.Context(), kind, data) != nil {
				return
			}
		}
	}, func(c *authapi.Config, r *authapi.Route) {
		r.WebSocket = true
		r.Rules = []authapi.RouteRule{{Methods: []string{"GET"}, Scopes: []string{"events:read"}, Cost: 5}}
		if change != nil {
			change(c, r)
		}
	})
	return e, handshakes
}

// socket opens one, or gives the answer that there was instead.
func (e *edge) socket(key string) (*websocket.Conn, *http.Response, error) {
	e.t.Helper()
	header := http.Header{"X-Auth-User": {"root"}, "X-Forwarded-For": {"6.6.6.6"}}
	if key != "" {
		header.Set("X-API-Key", key)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, resp, err := websocket.Dial(ctx, "ws://"+e.addr+"/api/v1/events/live?q=%2F", &websocket.DialOptions{
		HTTPClient: e.http, HTTPHeader: header, Subprotocols: []string{"echo"},
	})
	if conn != nil {
		conn.SetReadLimit(1 << 20)
		e.t.Cleanup(func() { conn.CloseNow() })
	}
	return conn, resp, err
}

func (e *edge) mustSocket(key string) *websocket.Conn {
	e.t.Helper()
	e.http.Timeout = 0
	conn, _, err := e.socket(key)
	if err != nil {
		e.t.Fatal(err)
	}
	return conn
}

// echo has a message go there and back.
func echo(t *testing.T, conn *websocket.Conn, message string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := conn.Write(ctx, websocket.MessageText, []byte(message)); err != nil {
		return err
	}
	_, got, err := conn.Read(ctx)
	if err == nil && string(got) != message {
		err = fmt.Errorf("%d bytes came back of %d", len(got), len(message))
	}
	return err
}

// wantEnd waits for the end of a socket.
func wantEnd(t *testing.T, conn *websocket.Conn, why string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, _, err := conn.Read(ctx); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%s: the socket is open still: %v", why, err)
	}
}

// wantSockets waits until so many are open by the count, and nothing else at the upstream.
func (e *edge) wantSockets(n int64) {
	e.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		open, flight := e.srv.GatewayRoutes()[0].WebSockets, e.upstream(0).InFlight
		if open == n && flight == n {
			return
		}
		if time.Now().After(deadline) {
			e.t.Fatalf("%d sockets and %d requests at the upstream, want %d", open, flight, n)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestWebSocket_BothWays(t *testing.T) {
	t.Parallel()
	e, handshakes := newSocketRoute(t, nil)
	e.http.Timeout = 0
	conn, resp, err := e.socket(e.key(nil, "events:read"))
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 101 || conn.Subprotocol() != "echo" || resp.Header.Get("X-RateLimit-Remaining") != "995" {
		t.Errorf("handshake %d, subprotocol %q, header %v", resp.StatusCode, conn.Subprotocol(), resp.Header)
	}
	wantHeaders(t, answer{resp.StatusCode, resp.Header, ""})
	h := <-handshakes
	for name, want := range map[string]string{
		"X-Auth-Method": "api_key", "X-Auth-User": "", "X-Auth-Organization": "org_1", "X-Forwarded-For": "127.0.0.1", "X-Api-Key": "",
		"Upgrade": "websocket", "Connection": "Upgrade", "Via": "1.1 sluice",
	} {
		if got := h.Get(name); got != want {
			t.Errorf("the upstream's %s = %q, want %q", name, got, want)
		}
	}
	for _, message := range []string{"hello", strings.Repeat("0123456789abcdef", 60000), ""} {
		if err := echo(t, conn, message); err != nil {
			t.Fatalf("message of %d bytes: %v", len(message), err)
		}
	}
	e.wantSockets(1)
	if err := conn.Close(websocket.StatusNormalClosure, "bye"); err != nil {
		t.Errorf("closing handshake: %v", err)
	}
	e.wantSockets(0)
}

// TestWebSocket_Refused: the handshake is a request like any other.
func TestWebSocket_Refused(t *testing.T) {
	t.Parallel()
	e, handshakes := newSocketRoute(t, func(c *authapi.Config, r *authapi.Route) {
		r.MaxWebSockets = 1
		c.Limit.Anonymous = rule(1e9)
	})
	e.http.Timeout = 0
	key := e.key(nil, "events:read")
	for name, tt := range map[string]struct {
		key    string
		status int
	}{"no credential": {"", 401}, "no scope": {e.key(nil, "events:write"), 403}, "no key": {"sk_live_x", 401}} {
		if _, resp, err := e.socket(tt.key); err == nil || resp == nil || resp.StatusCode != tt.status {
			t.Errorf("%s: %v, %v", name, resp, err)
		}
	}
	if len(handshakes) != 0 {
		t.Error("a refused handshake reached the upstream")
	}
	first := e.mustSocket(key)
	if _, resp, err := e.socket(key); err == nil || resp == nil || resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one too many: %v, %v", resp, err)
	}
	first.CloseNow()
	e.wantSockets(0)
	if err := echo(t, e.mustSocket(key), "again"); err != nil {
		t.Error(err)
	}
}

// TestWebSocket_Ends tells how one ends without either side's will.
func TestWebSocket_Ends(t *testing.T) {
	t.Parallel()
	t.Run("revoked", func(t *testing.T) {
		t.Parallel()
		e, _ := newSocketRoute(t, nil)
		secret, record := newKey("events:read")
		e.organization(record.OrganizationID, "")
		e.cluster.PutKey(record)
		other := e.mustSocket(e.key(nil, "events:read"))
		conn := e.mustSocket(secret)
		record.RevokedAt = 1
		e.cluster.PutKey(record)
		wantEnd(t, conn, "revoked")
		if err := echo(t, other, "another key's"); err != nil {
			t.Error(err)
		}
		e.wantSockets(1)
	})
	t.Run("fewer scopes", func(t *testing.T) {
		t.Parallel()
		e, _ := newSocketRoute(t, nil)
		secret, record := newKey("events:read", "triggers:read")
		e.organization(record.OrganizationID, "")
		e.cluster.PutKey(record)
		conn := e.mustSocket(secret)
		record.Scopes = []string{"triggers:read"}
		e.cluster.PutKey(record)
		wantEnd(t, conn, "a scope less")
	})
	t.Run("expired", func(t *testing.T) {
		t.Parallel()
		e, _ := newSocketRoute(t, nil)
		conn := e.mustSocket(e.key(func(k *state.APIKey) { k.ExpiresAt = start.Add(time.Minute).UnixMilli() }, "events:read"))
		if err := echo(t, conn, "before"); err != nil {
			t.Fatal(err)
		}
		e.clock.Advance(time.Minute)
		wantEnd(t, conn, "expired")
	})
	t.Run("session", func(t *testing.T) {
		t.Parallel()
		e, _ := newSocketRoute(t, func(_ *authapi.Config, r *authapi.Route) { r.Rules[0].Scopes = nil })
		token := signedIn(t, e.srv, e.cluster)
		e.http.Timeout = 0
		conn, _, err := websocket.Dial(t.Context(), "ws://"+e.addr+"/api/v1/events", &websocket.DialOptions{
			HTTPClient: e.http, HTTPHeader: http.Header{"Authorization": {"Bearer " + token}},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.CloseNow()
		if err := echo(t, conn, "before"); err != nil {
			t.Fatal(err)
		}
		e.cluster.PutSession(state.Session{ID: "ses_1", UserID: "usr_1", CreatedAt: 1, EndedAt: 2, ExpiresAt: start.Add(48 * time.Hour).UnixMilli()})
		wantEnd(t, conn, "its session")
	})
	t.Run("silent", func(t *testing.T) {
		t.Parallel()
		e, _ := newSocketRoute(t, func(_ *authapi.Config, r *authapi.Route) { r.WebSocketIdleTimeout = 200 * time.Millisecond })
		wantEnd(t, e.mustSocket(e.key(nil, "events:read")), "silent")
		e.wantSockets(0)
	})
	t.Run("shutdown", func(t *testing.T) {
		t.Parallel()
		e, _ := newSocketRoute(t, nil)
		conn := e.mustSocket(e.key(nil, "events:read"))
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := e.srv.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		wantEnd(t, conn, "shutdown")
		e.wantSockets(0)
	})
}

const handshake = "GET /x HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"

// TestWebSocket_OddHandshakes: nothing but a proper handshake on both sides opens a tunnel.
func TestWebSocket_OddHandshakes(t *testing.T) {
	t.Parallel()
	const switched = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
	for _, tt := range []struct {
		name, request, answer string
		off                   bool
		status                int
		upgrade               string // that the upstream sees
	}{
		{"proper", handshake + "\r\n", switched, false, 101, "websocket"},
		{"not taken", handshake + "\r\n", "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno", false, 426, "websocket"},
		{"off", handshake + "\r\n", answerOK, true, 200, ""},
		{"off, and switched", handshake + "\r\n", switched, true, 502, ""},
		{"to HTTP/2", strings.Replace(handshake, "websocket", "h2c", 1) + "\r\n", answerOK, false, 200, ""},
		{"to both", strings.Replace(handshake, "websocket", "websocket, h2c", 1) + "\r\n", answerOK, false, 200, ""},
		{"without Connection", strings.Replace(handshake, "Upgrade", "close", 1) + "\r\n", answerOK, false, 200, ""},
		{"POST", strings.Replace(handshake, "GET", "POST", 1) + "Content-Length: 0\r\n\r\n", answerOK, false, 200, ""},
		{"with a body", handshake + "Content-Length: 4\r\n\r\nbody", answerOK, false, 200, ""},
		{"two keys", handshake + "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", answerOK, false, 200, ""},
		{"HTTP/1.0", strings.Replace(handshake, "HTTP/1.1", "HTTP/1.0", 1) + "\r\n", answerOK, false, 200, ""},
		{"another accept", handshake + "\r\n", strings.Replace(switched, "s3p", "S3P", 1), false, 502, "websocket"},
		{"no accept", handshake + "\r\n", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", false, 502, "websocket"},
		{"another protocol", handshake + "\r\n", strings.Replace(switched, "Upgrade: websocket", "Upgrade: h2c", 1), false, 502, "websocket"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			upgrade := make(chan string, 1)
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			up := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				upgrade <- r.Header.Get("Upgrade")
				conn, buf, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Errorf("hijack: %v", err)
					return
				}
				defer conn.Close()
				io.WriteString(conn, tt.answer)
				io.Copy(conn, buf) // says back what it hears, until the end
			}))
			up.Listener.Close()
			up.Listener = ln
			up.Start()
			t.Cleanup(up.Close)
			e := newRoute(t, func(_ *authapi.Config, r *authapi.Route) { r.WebSocket, r.Retries = !tt.off, -1 }, up.URL)
			conn, r := e.dial(tt.request)
			resp, err := http.ReadResponse(r, nil)
			if err != nil || resp.StatusCode != tt.status {
				t.Fatalf("%v, %v, want %d", resp, err, tt.status)
			}
			if got := within(t, "handshake", upgrade); got != tt.upgrade {
				t.Errorf("the upstream saw Upgrade: %q, want %q", got, tt.upgrade)
			}
			if tt.status == 101 {
				io.WriteString(conn, "ping")
				var got [4]byte
				if _, err := io.ReadFull(r, got[:]); err != nil || string(got[:]) != "ping" {
					t.Errorf("%q, %v", got, err)
				}
				conn.Close()
			}
			e.wantSockets(0)
		})
	}
}

// TestWebSocket_OverTLS: the client's side may be TLS; what was read ahead, the end and a client that leaves are as without it.
func TestWebSocket_OverTLS(t *testing.T) {
	t.Parallel()
	gone := make(chan bool, 1)
	s := newScript(t, func(_ int64, conn net.Conn, r *bufio.Reader, req *http.Request) bool {
		if req.Header.Get("Upgrade") == "" {
			_, err := r.ReadByte()
			gone <- err != nil
			return false
		}
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
		io.CopyN(conn, r, 5)
		return false
	})
	certificate := httptest.NewUnstartedServer(nil)
	certificate.StartTLS()
	certificate.Close()
	e := newRoute(t, func(c *authapi.Config, r *authapi.Route) {
		c.TLS = &tls.Config{Certificates: certificate.TLS.Certificates}
		r.WebSocket, r.Timeout = true, time.Minute
	}, s.url)
	dial := func(request string) *tls.Conn {
		conn, err := tls.Dial("tcp", e.addr, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(conn, request)
		return conn
	}
	r := bufio.NewReader(dial(handshake + "\r\nearly"))
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("%v, %v", resp, err)
	}
	if rest, err := io.ReadAll(r); string(rest) != "early" || err != nil {
		t.Errorf("heard %q, %v", rest, err)
	}
	e.wantSockets(0)
	if runtime.GOOS == "linux" {
		conn := dial("GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
		for s.requests.Load() < 2 {
			runtime.Gosched()
		}
		conn.Close()
		if !within(t, "end at the upstream", gone) {
			t.Error("the upstream got more bytes")
		}
	}
}

// TestWebSocket_EarlyBytes: what a client sends right behind its handshake is not lost.
func TestWebSocket_EarlyBytes(t *testing.T) {
	t.Parallel()
	heard := make(chan string, 1)
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Errorf("hijack: %v", err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nfirst")
		var b [5]byte
		io.ReadFull(buf, b[:])
		heard <- string(b[:])
	}))
	t.Cleanup(up.Close)
	e := newRoute(t, func(_ *authapi.Config, r *authapi.Route) { r.WebSocket = true }, up.URL)
	_, r := e.dial(handshake + "\r\nearly")
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("%v, %v", resp, err)
	}
	rest, err := io.ReadAll(r)
	if string(rest) != "first" || err != nil {
		t.Errorf("the client heard %q, %v", rest, err)
	}
	if got := within(t, "word", heard); got != "early" {
		t.Errorf("the upstream heard %q", got)
	}
}
