package systemtest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// backend is an upstream that can be killed and started again at the same address. What it is asked as a WebSocket handshake it
// takes, and says back what it hears.
type backend struct {
	address  string
	requests atomic.Int64

	mu    sync.Mutex // guards ln and conns
	ln    net.Listener
	conns map[net.Conn]bool
}

func startBackend(t *testing.T) *backend {
	t.Helper()
	b := &backend{address: "127.0.0.1:0"}
	if err := b.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.kill)
	return b
}

func (b *backend) start() error {
	ln, err := net.Listen("tcp", b.address)
	if err != nil {
		return fmt.Errorf("start upstream: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.address, b.ln, b.conns = ln.Addr().String(), ln, map[net.Conn]bool{}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			b.mu.Lock()
			if b.ln != ln {
				conn.Close()
			}
			b.conns[conn] = true
			b.mu.Unlock()
			go b.serve(conn)
		}
	}()
	return nil
}

func (b *backend) serve(conn net.Conn) {
	defer conn.Close()
	for r := bufio.NewReader(conn); ; {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if req.Header.Get("Upgrade") == "websocket" {
			// The accept is that of the key that openSocket sends.
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
			io.Copy(conn, r)
			return
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return
		}
		b.requests.Add(1)
		if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); err != nil {
			return
		}
	}
}

// kill ends it as kill -9 does: nothing is finished, and open connections are reset.
func (b *backend) kill() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ln == nil {
		return
	}
	b.ln.Close()
	b.ln = nil
	for conn := range b.conns {
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}
}

// gatewayRoutes are the variables of a cluster with one route, /orders, to the backends.
func gatewayRoutes(backends ...*backend) []string {
	var urls []string
	for _, b := range backends {
		urls = append(urls, `"http://`+b.address+`"`)
	}
	return append([]string{
		`SLUICE_ROUTES=[{ name = "orders", path = "/orders", upstreams = [` + strings.Join(urls, ", ") + `], eject_time = "500ms", websocket = true,` +
			` rules = [{ methods = ["*"], scopes = ["triggers:read"] }] }]`,
	}, wide...)
}

// TestGateway_UpstreamKilled kills one of three upstreams under load and starts it again: no client of any node sees an error, of a GET
// that was on its way neither, and the upstream is used again.
func TestGateway_UpstreamKilled(t *testing.T) {
	backends := []*backend{startBackend(t), startBackend(t), startBackend(t)}
	c := startCluster(t, options{variables: gatewayRoutes(backends...)})
	a := register(t, c.urls[0])
	key := a.newKey(t, c.urls[0], 0, "triggers:read")
	get := request{path: "/orders/1", key: key.secret, address: a.address}
	everywhere(t, c, get, http.StatusOK)

	var done atomic.Int64
	stop := make(chan struct{})
	failures := make(chan error, 1)
	var clients sync.WaitGroup
	for i := range 9 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				res, err := send(c.urls[i%3], get)
				if err == nil && res.status != http.StatusOK {
					err = errors.New(res.String())
				}
				if err != nil {
					select {
					case failures <- err:
					default:
					}
					return
				}
				done.Add(1)
			}
		})
	}
	more := func(what string, n int64) {
		t.Helper()
		from := done.Load()
		eventually(t, 30*time.Second, what, func() error {
			select {
			case err := <-failures:
				t.Fatalf("a client saw %v", err)
			default:
			}
			if now := done.Load(); now < from+n {
				return fmt.Errorf("%d of %d requests", now-from, n)
			}
			return nil
		})
	}
	victim := backends[1]
	up := func(want string) func() error {
		return func() error {
			for node := 1; node <= 3; node++ {
				sample := `sluice_gateway_upstream_up{route="orders",upstream="http://` + victim.address + `"} ` + want + "\n"
				if !strings.Contains(string(scrape(t, c, node)), sample) {
					return fmt.Errorf("node%d does not say %s", node, sample)
				}
			}
			return nil
		}
	}
	more("requests before", 300)
	for range 2 {
		victim.kill()
		eventually(t, 30*time.Second, "each node leaves the dead one out", up("0"))
		more("requests without it", 300)
		if err := victim.start(); err != nil {
			t.Fatal(err)
		}
		before := victim.requests.Load()
		eventually(t, 30*time.Second, "each node uses it again", up("1"))
		more("requests with it", 300)
		if n := victim.requests.Load() - before; n < 50 {
			t.Errorf("%d requests reached the upstream that is back", n)
		}
	}
	close(stop)
	clients.Wait()
	select {
	case err := <-failures:
		t.Errorf("a client saw %v", err)
	default:
	}
	t.Logf("%d requests", done.Load())
}

// TestGateway_WebSocketRevoked opens WebSockets on every node by one key and revokes it on one of them: all end.
func TestGateway_WebSocketRevoked(t *testing.T) {
	c := startCluster(t, options{variables: gatewayRoutes(startBackend(t))})
	a := register(t, c.urls[0])
	key := a.newKey(t, c.urls[0], 0, "triggers:read")
	everywhere(t, c, request{path: "/orders", key: key.secret, address: a.address}, http.StatusOK)
	var sockets []net.Conn
	for _, url := range c.urls {
		conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		fmt.Fprintf(conn, "GET /orders/live HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-API-Key: %s\r\nX-Forwarded-For: %s\r\n"+
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nping", key.secret, a.address)
		r := bufio.NewReader(conn)
		res, err := http.ReadResponse(r, nil)
		if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("handshake: %v, %v", res, err)
		}
		var heard [4]byte
		if _, err := io.ReadFull(r, heard[:]); err != nil || string(heard[:]) != "ping" {
			t.Fatalf("heard %q, %v", heard, err)
		}
		sockets = append(sockets, conn)
	}
	must(t, c.urls[0], request{method: "DELETE", path: "/api/v1/api-keys/" + key.id, token: a.token, address: a.address}, http.StatusNoContent)
	revoked := time.Now()
	for i, conn := range sockets {
		var timeout net.Error
		if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil || errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("node%d: read %d, %v, want the end", i+1, n, err)
		}
	}
	t.Logf("all ended within %v", time.Since(revoked).Round(time.Millisecond))
}
