package authapi_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sluice/authapi"
)

func malformedCount(t *testing.T, srv *authapi.Server, source string) uint64 {
	t.Helper()
	for _, m := range srv.MalformedAddresses() {
		if m.Source == source {
			return m.Count
		}
	}
	t.Fatalf("no source %q", source)
	return 0
}

func TestForwarded_NamesTheClient(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) {
		trustLoopback(c)
		c.TrustedProxies = append(c.TrustedProxies, prefix("10.0.0.0/8"), prefix("fd00::/8"))
		c.Forwarded = true
	})
	peer := netip.MustParseAddr("127.0.0.1")
	for _, tt := range []struct{ lines, want string }{
		{`for=203.0.113.1`, "203.0.113.1"},
		{`For="203.0.113.1:4711";proto=https;by=10.0.0.1;host="a,b"`, "203.0.113.1"},
		{`for=203.0.113.1:_port`, "203.0.113.1"},
		{`for="[2001:db8::17]:4711"`, "2001:db8::17"},
		{`for=[2001:db8::17]`, "2001:db8::17"},
		{`for="[::ffff:203.0.113.1]"`, "203.0.113.1"},
		{`proto=http; for=203.0.113.1 ;`, "203.0.113.1"},
		{`for=6.6.6.6, for=203.0.113.1`, "203.0.113.1"},
		{`for=203.0.113.1, for=10.1.2.3`, "203.0.113.1"},
		{`for=203.0.113.1, for="[fd00::1]:80", for=10.1.2.3`, "203.0.113.1"},
		{"for=6.6.6.6, for=203.0.113.1\nfor=10.1.2.3", "203.0.113.1"},
		{`for=10.0.0.7, for=10.1.2.3`, "10.0.0.7"},
		{`, ,for=203.0.113.1,`, "203.0.113.1"},
		{`nonsense "" ,for=203.0.113.1`, "203.0.113.1"},
		{`host="x, for=6.6.6.6", for=203.0.113.1`, "203.0.113.1"},
		{`host="open, for=203.0.113.1`, "203.0.113.1"},
		{`host="a\", for=6.6.6.6"`, ""},
		{`for=unknown`, ""}, {`for=_hidden`, ""}, {`for="_hidden:80"`, ""}, {`for=203.0.113.1, for=unknown`, ""},
		{`proto=https`, ""}, {`for=203.0.113.1;for=203.0.113.2`, ""}, {`for`, ""}, {`for=`, ""}, {`for=""`, ""}, {`for="203.0.113.1`, ""},
		{`203.0.113.1`, ""}, {`for=203.0.113.1 for=10.0.0.1`, ""}, {`for="203.0.113\.1"`, ""}, {`for=fe80::1%eth0`, ""}, {`=1`, ""}, {`for =1.2.3.4`, ""},
		{"", "127.0.0.1"}, {",", "127.0.0.1"},
	} {
		var lines [][]byte
		for line := range strings.SplitSeq(tt.lines, "\n") {
			lines = append(lines, []byte(line))
		}
		before := malformedCount(t, e.srv, "forwarded")
		got := e.srv.ClientAddress(peer, lines...)
		want, bad := peer, uint64(1)
		if tt.want != "" {
			want, bad = netip.MustParseAddr(tt.want), 0
		}
		if n := malformedCount(t, e.srv, "forwarded") - before; got != want || n != bad {
			t.Errorf("Forwarded %q: %v and %d counted, want %v and %d", tt.lines, got, n, want, bad)
		}
	}
	if n := malformedCount(t, e.srv, "x-forwarded-for"); n != 0 {
		t.Errorf("%d counted for X-Forwarded-For", n)
	}
}

// The header that is not configured means nothing, to limits and to upstreams.
func TestForwarded_ReplacesTheOther(t *testing.T) {
	t.Parallel()
	var seen http.Header
	upstream := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen = r.Header.Clone() }))
	t.Cleanup(upstream.Close)
	gateway := func(c *authapi.Config) {
		trustLoopback(c)
		c.Routes = []authapi.Route{{Name: "up", PathPrefix: "/up", Upstream: upstream.URL, Rules: []authapi.RouteRule{{Methods: []string{"*"}, Anonymous: true}}}}
		c.Limit.Anonymous = rule(1)
	}
	e := newEdge(t, func(c *authapi.Config) { gateway(c); c.Forwarded = true })
	send := func(e *edge, n string) answer {
		return e.do("GET", "/up", "", "X-Forwarded-For", "203.0.113."+n, "X-Forwarded-Proto", "https", "X-Forwarded-Host", "evil.example",
			"Forwarded", `for=198.51.100.1;proto=https;host=shop.example, for=127.0.0.9;proto=http;host=inner`)
	}
	e.want(send(e, "1"), 200, "")
	for name, want := range map[string]string{
		"X-Forwarded-For": "198.51.100.1, 127.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "shop.example", "Forwarded": "",
	} {
		if got := seen.Get(name); got != want {
			t.Errorf("the upstream saw %s %q, want %q", name, got, want)
		}
	}
	e.want(send(e, "2"), 429, "rate_limit_exceeded")
	other := newEdge(t, gateway)
	other.want(send(other, "1"), 200, "")
	other.want(send(other, "2"), 200, "")
	other.want(send(other, "2"), 429, "rate_limit_exceeded")
}

// proxyV2 is a PROXY header of version 2 for a command, family byte and hex address block.
func proxyV2(t *testing.T, command, family byte, block string) string {
	t.Helper()
	b, err := hex.DecodeString(block)
	if err != nil {
		t.Fatal(err)
	}
	return "\r\n\r\n\x00\r\nQUIT\n" + string([]byte{command, family, byte(len(b) >> 8), byte(len(b))}) + string(b)
}

func TestProxyProtocol(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) {
		trustLoopback(c)
		c.TrustedProxies = append(c.TrustedProxies, prefix("10.0.0.0/8"))
		c.ProxyProtocol = true
		c.Limit.Anonymous = rule(1)
		c.ReadTimeout = 5 * time.Second
	})
	// ask gives the status, 0 where the connection was closed without an answer.
	ask := func(header, headers string) int {
		t.Helper()
		a, err := e.raw(header + "GET /api/v1/auth/verify HTTP/1.1\r\nHost: a\r\n" + headers + "\r\n")
		if err != nil {
			return 0
		}
		return a.status
	}
	v4 := func(last string) string { return proxyV2(t, 0x21, 0x11, "cb0071"+last+"7f000001"+"10e11f90") }
	v6 := func(last string) string {
		return proxyV2(t, 0x21, 0x21, "20010db8000100020000000000000"+last+"20010db8000000000000000000000001"+"10e11f90")
	}
	for i, tt := range []struct {
		header, headers string
		want            int
	}{
		{"PROXY TCP4 203.0.113.1 127.0.0.1 4711 8080\r\n", "", 200},
		{"PROXY TCP4 203.0.113.1 127.0.0.1 4712 8080\r\n", "", 429},
		{"PROXY TCP4 203.0.113.1 127.0.0.1 4712 8080\r\n", "X-Forwarded-For: 203.0.113.9\r\n", 429}, // a client's own word
		{"PROXY TCP6 2001:db8:9::1 ::1 4711 8080\r\n", "", 200},
		{"PROXY TCP6 2001:db8:9::2 ::1 4711 8080\r\n", "", 429}, // the same /64
		{"PROXY TCP4 203.0.113.2 127.0.0.1 4711 8080\r\n", "", 200},
		{v4("02"), "", 429},
		{v4("03"), "", 200},
		{v6("001"), "", 200},
		{v6("00f"), "", 429},
		{proxyV2(t, 0x21, 0x21, "00000000000000000000ffffcb007103"+"00000000000000000000ffff7f000001"+"10e11f90"), "", 429}, // mapped
		{v4("04") + "", "", 200},
		{proxyV2(t, 0x21, 0x11, "cb00710410000001"+"10e11f90"+"030004a9b87e8f"), "", 429},        // a TLV behind the addresses
		{"PROXY TCP4 10.0.0.1 127.0.0.1 4711 8080\r\n", "X-Forwarded-For: 203.0.113.5\r\n", 200}, // a proxy behind the proxy
		{"PROXY TCP4 203.0.113.5 127.0.0.1 4711 8080\r\n", "", 429},
		{"PROXY UNKNOWN\r\n", "", 200}, // the proxy's own
		{proxyV2(t, 0x20, 0x00, ""), "", 429},
		{proxyV2(t, 0x20, 0x11, "cb00716310000001"+"10e11f90"), "", 429},
	} {
		if got := ask(tt.header, tt.headers); got != tt.want {
			t.Errorf("case %d, %q: %d, want %d", i, tt.header, got, tt.want)
		}
	}
	if n := malformedCount(t, e.srv, "proxy_protocol"); n != 0 {
		t.Errorf("%d counted", n)
	}
	bad := []string{
		"", "PROXY TCP4 999.0.113.1 127.0.0.1 4711 8080\r\n", "PROXY TCP4 203.0.113.1 127.0.0.1 4711\r\n", "PROXY TCP5 1.1.1.1 1.1.1.1 1 1\r\n",
		"PROXY TCP4 203.0.113.1 127.0.0.1 4711 8080\n", "PROXY " + strings.Repeat("x", 200) + "\r\n", proxyV2(t, 0x21, 0x11, "cb0071"), proxyV2(t, 0x31, 0x11, ""),
		proxyV2(t, 0x21, 0x13, "cb00710110000001"+"10e11f90"),
	}
	for _, header := range bad {
		if got := ask(header, ""); got != 0 {
			t.Errorf("%q: %d, want the connection closed", header, got)
		}
	}
	if n := malformedCount(t, e.srv, "proxy_protocol"); n != uint64(len(bad)) {
		t.Errorf("%d counted, want %d", n, len(bad))
	}
	// One that sends nothing, or stops in the middle, is let go of.
	conn, err := net.Dial("tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	waitUntil(t, "no connection is left", func() bool { return e.srv.Connections().Open == 0 })
}

// A stranger's PROXY header is no header.
func TestProxyProtocol_StrangersSayNothing(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) {
		c.TrustedProxies = []netip.Prefix{prefix("10.0.0.0/8")}
		c.ProxyProtocol = true
	})
	request := "GET /api/v1/auth/verify HTTP/1.1\r\nHost: a\r\n\r\n"
	if a, err := e.raw(request); err != nil || a.status != 200 {
		t.Errorf("without a header: %d, %v", a.status, err)
	}
	for _, header := range []string{"PROXY TCP4 203.0.113.1 127.0.0.1 4711 8080\r\n", proxyV2(t, 0x21, 0x11, "cb00710110000001"+"10e11f90")} {
		if a, err := e.raw(header + request); err == nil && a.status != 400 {
			t.Errorf("%q: %d, want 400", header, a.status)
		}
	}
}

// Connections through a proxy are counted by the address that it names.
func TestProxyProtocol_ConnectionsPerAddress(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) { trustLoopback(c); c.ProxyProtocol, c.MaxConnsPerIP = true, 2 })
	open := func(from string) (net.Conn, bool) {
		t.Helper()
		conn, err := net.Dial("tcp", e.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		io.WriteString(conn, "PROXY TCP4 "+from+" 127.0.0.1 1 1\r\nGET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return nil, false
		}
		resp.Body.Close()
		return conn, resp.StatusCode == 200
	}
	first, ok := open("203.0.113.1")
	if _, again := open("203.0.113.1"); !ok || !again {
		t.Fatal("two connections of one address were not served")
	}
	if _, ok := open("203.0.113.1"); ok {
		t.Error("a third was")
	}
	if _, ok := open("203.0.113.2"); !ok {
		t.Error("another address was not served")
	}
	if n := e.srv.Connections(); n.Refused != 1 {
		t.Errorf("connections %+v, want one refused", n)
	}
	first.Close()
	waitUntil(t, "another one after the first has closed", func() bool {
		_, ok := open("203.0.113.1")
		return ok
	})
}

// The PROXY header comes before TLS.
func TestProxyProtocol_OverTLS(t *testing.T) {
	t.Parallel()
	other := httptest.NewTLSServer(http.NotFoundHandler()) // for its certificate
	t.Cleanup(other.Close)
	e := newEdge(t, func(c *authapi.Config) {
		trustLoopback(c)
		c.ProxyProtocol, c.Limit.Anonymous = true, rule(1)
		c.TLS = &tls.Config{Certificates: other.TLS.Certificates}
	})
	pool := x509.NewCertPool()
	pool.AddCert(other.Certificate())
	for i, want := range []int{200, 429} {
		raw, err := net.Dial("tcp", e.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		raw.SetDeadline(time.Now().Add(5 * time.Second))
		io.WriteString(raw, "PROXY TCP4 203.0.113.1 127.0.0.1 4711 443\r\n")
		conn := tls.Client(raw, &tls.Config{RootCAs: pool, ServerName: "example.com"})
		io.WriteString(conn, "GET /api/v1/auth/verify HTTP/1.1\r\nHost: a\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("request %d: %d, want %d", i+1, resp.StatusCode, want)
		}
	}
}

// FuzzProxyHeader sends any bytes as a trusted proxy: the server answers or closes, and what it counts goes back to nothing.
func FuzzProxyHeader(f *testing.F) {
	for _, s := range []string{
		"PROXY TCP4 203.0.113.1 127.0.0.1 4711 8080\r\n", "PROXY TCP6 ::1 ::1 1 1\r\n", "PROXY UNKNOWN x\r\n", "PROXY\r\n", "\r\n\r\n\x00\r\nQUIT\n",
		"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xcb\x00\x71\x01\x7f\x00\x00\x01\x10\xe1\x1f\x90", "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00", "\r\n\r\n\x00\r\nQUIT\n\x21\x31\x00\xd8",
	} {
		f.Add([]byte(s))
	}
	cfg, _, _, _ := edgeConfig(func(c *authapi.Config) {
		trustLoopback(c)
		c.ProxyProtocol, c.ReadTimeout, c.Limit.Anonymous = true, 50*time.Millisecond, rule(1e12)
	})
	srv, err := authapi.New(cfg)
	if err != nil {
		f.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	go srv.Serve(ln)
	f.Cleanup(func() { srv.Shutdown(f.Context()) })
	f.Fuzz(func(t *testing.T, b []byte) {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		conn.Write(append(b, "GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"...))
		conn.(*net.TCPConn).CloseWrite()
		if answer, err := io.ReadAll(conn); err == nil && len(answer) > 0 && !strings.HasPrefix(string(answer), "HTTP/1.1 ") {
			t.Fatalf("%q: answered %q", b, answer)
		}
	})
}

// FuzzForwarded holds that nothing before a proxy's own element can change what it says.
func FuzzForwarded(f *testing.F) {
	for _, s := range []string{
		`for=1.2.3.4`, `for="[::1]:80";proto=https`, `for="a\"b`, `"`, `\`, `for=1.2.3.4, for="`, `;;=,`, `host="x, for=6.6.6.6"`, `for=127.0.0.1, for=unknown`,
	} {
		f.Add([]byte(s))
	}
	cfg, _, _, _ := edgeConfig(func(c *authapi.Config) { trustLoopback(c); c.Forwarded = true })
	srv, err := authapi.New(cfg)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { srv.Shutdown(f.Context()) })
	peer := netip.MustParseAddr("127.0.0.9")
	f.Fuzz(func(t *testing.T, b []byte) {
		if a := srv.ClientAddress(peer, b); !a.IsValid() || a.Is4In6() || a.Zone() != "" {
			t.Fatalf("%q comes from %v", b, a)
		}
		for own, want := range map[string]string{
			`for=203.0.113.7`: "203.0.113.7", `for="[2001:db8::7]:443";host="a\"b,c"`: "2001:db8::7", `for=203.0.113.7, for="[::ffff:127.0.0.2]"`: "203.0.113.7",
		} {
			line := append(append([]byte{}, b...), ", "+own...)
			if got := srv.ClientAddress(peer, line); got != netip.MustParseAddr(want) {
				t.Fatalf("%q comes from %v, want %s", line, got, want)
			}
			if got := srv.ClientAddress(peer, b, []byte(own)); got != netip.MustParseAddr(want) {
				t.Fatalf("%q before %q: comes from %v, want %s", b, own, got, want)
			}
		}
	})
}
