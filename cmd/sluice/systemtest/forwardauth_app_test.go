package systemtest

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// app is an application behind a proxy: it answers everything, remembers what it got, and finds what it never may get.
type app struct {
	address string

	mu      sync.Mutex // guards what follows
	got     map[string]seen
	reached map[string]int // requests by their X-Test-Id, where that has a slash: its part before it
	wrong   []string
}

// seen is one request as the application got it.
type seen struct {
	method, host, uri string
	header            http.Header
	body              int64
}

// identityHeaders are those that only Sluice may set.
var identityHeaders = []string{"X-Auth-Method", "X-Auth-User", "X-Auth-Organization", "X-Auth-Key", "X-Auth-Scopes"}

func startApp(t *testing.T) *app {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &app{address: listener.Addr().String(), got: make(map[string]seen), reached: make(map[string]int)}
	server := &http.Server{Handler: a, ReadHeaderTimeout: 10 * time.Second}
	go server.Serve(listener) // ends with Close
	t.Cleanup(func() { server.Close() })
	return a
}

func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		http.Error(w, "the body broke off", http.StatusBadRequest)
		return
	}
	id := r.Header.Get("X-Test-Id")
	kind, _, many := strings.Cut(id, "/")
	a.mu.Lock()
	if many {
		a.reached[kind]++
	} else {
		a.got[id] = seen{r.Method, r.Host, r.RequestURI, r.Header.Clone(), n}
	}
	if problem := misuse(r); problem != "" && len(a.wrong) < 20 {
		a.wrong = append(a.wrong, fmt.Sprintf("%s %s %s: %s", id, r.Method, r.RequestURI, problem))
	}
	a.mu.Unlock()
	status := http.StatusOK
	if rest, ok := strings.CutPrefix(r.URL.Path, "/open/status/"); ok {
		if n, err := strconv.Atoi(rest); err == nil {
			status = n
		}
	}
	w.Header().Set("X-App", "yes")
	w.WriteHeader(status)
	fmt.Fprintf(w, "the application: %s", r.URL.Path)
}

// misuse says what no request that reaches the application may be, "" for nothing.
func misuse(r *http.Request) string {
	for name, lines := range r.Header {
		plain := strings.ReplaceAll(http.CanonicalHeaderKey(name), "_", "-")
		switch {
		case strings.HasPrefix(strings.ToLower(plain), "x-auth") && strings.Contains(strings.Join(lines, " "), "spoofed"):
			return fmt.Sprintf("%s: %s", name, lines)
		case name == "Authorization" || name == "X-Api-Key":
			return "a credential: " + name
		}
	}
	for _, name := range identityHeaders {
		if n := len(r.Header.Values(name)); n > 1 {
			return fmt.Sprintf("%d lines of %s", n, name)
		}
	}
	path, err := url.PathUnescape(r.URL.EscapedPath())
	if err != nil {
		return "a path that cannot be read"
	}
	if strings.Contains(path, "/../") || strings.Contains(path, "//") {
		return "a path that others read in another way"
	}
	method := r.Header.Get("X-Auth-Method")
	switch {
	case path == "/app" || strings.HasPrefix(path, "/app/"):
		if method != "jwt" && method != "api_key" {
			return fmt.Sprintf("X-Auth-Method is %q on a route that needs a credential", method)
		}
		if method == "api_key" && r.Method != "GET" && r.Method != "HEAD" && !strings.Contains(r.Header.Get("X-Auth-Scopes"), "triggers:*") {
			return fmt.Sprintf("a %s by a key with %q", r.Method, r.Header.Get("X-Auth-Scopes"))
		}
	case strings.HasPrefix(path, "/open") || strings.HasPrefix(path, "/tight") || strings.HasPrefix(path, "/api/v1/auth"):
		if method == "" {
			return "no X-Auth-Method"
		}
	default:
		return "no route has this path"
	}
	if host, _, _ := strings.Cut(strings.ToLower(r.Host), ":"); strings.TrimSuffix(host, ".") == "private.example" && !strings.Contains(" "+r.Header.Get("X-Auth-Scopes")+" ", " events:read ") {
		return "the host needs events:read"
	}
	return ""
}

// of is what arrived with that X-Test-Id.
func (a *app) of(id string) (seen, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, ok := a.got[id]
	return s, ok
}

// many are the numbers of requests by kind, counted anew.
func (a *app) many() map[string]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := maps.Clone(a.reached)
	clear(a.reached)
	return out
}

// complaints tells what arrived that never may, and forgets it.
func (a *app) complaints() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := slices.Clone(a.wrong)
	a.wrong = nil
	return out
}

// clients are HTTP clients by the address that they connect from.
var clients sync.Map

// clientAt connects from one address of this machine. Those of 127.0.0.0/8 are all its own.
func clientAt(address string) *http.Client {
	if c, ok := clients.Load(address); ok {
		return c.(*http.Client)
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	c, _ := clients.LoadOrStore(address, &http.Client{
		Timeout:       15 * time.Second,
		Transport:     &http.Transport{DialContext: dialer.DialContext, MaxIdleConns: 500, MaxIdleConnsPerHost: 100, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	})
	return c.(*http.Client)
}

// sendRaw writes a request as it is from an address, and gives the status of the answer, 0 for none.
func sendRaw(address, from, raw string) (int, error) {
	dialer := &net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := dialer.Dial("tcp", address)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return 0, err
	}
	go io.WriteString(conn, raw) // the other end may close before it has all
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, nil
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return res.StatusCode, err
}
