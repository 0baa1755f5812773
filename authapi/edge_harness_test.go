package authapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sluice/authapi"
	"sluice/authapi/authtest"
	"sluice/limiter"
	"sluice/raftfsm/state"
)

// edge is a Server over a real listener, with fakes behind it.
type edge struct {
	t       *testing.T
	srv     *authapi.Server
	cluster *authtest.Cluster
	limits  *authtest.Limits
	clock   *authtest.Clock
	addr    string
	http    *http.Client
}

// start is a moment well inside a minute.
var start = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func edgeConfig(change func(*authapi.Config)) (authapi.Config, *authtest.Cluster, *authtest.Limits, *authtest.Clock) {
	clock := authtest.NewClock(start)
	cluster, limits := authtest.NewCluster(), authtest.NewLimits(clock)
	cluster.Clock = clock
	cfg := authapi.Config{
		State: cluster, Cluster: cluster, Limits: limits, Sealer: authtest.NewSealer(), Clock: clock.Now,
		Version: "1.2.3", NodeID: "node-a", Limit: authapi.DefaultLimits(),
	}
	if change != nil {
		change(&cfg)
	}
	return cfg, cluster, limits, clock
}

// trustLoopback makes the tests' own address a trusted proxy.
func trustLoopback(cfg *authapi.Config) {
	cfg.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
}

func newEdge(t *testing.T, change func(*authapi.Config)) *edge {
	t.Helper()
	cfg, cluster, limits, clock := edgeConfig(change)
	srv, err := authapi.New(cfg)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	transport := &http.Transport{DisableCompression: true}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return &edge{t: t, srv: srv, cluster: cluster, limits: limits, clock: clock, addr: ln.Addr().String(),
		http: &http.Client{Transport: transport, Timeout: 20 * time.Second,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// answer is a response, read.
type answer struct {
	status int
	header http.Header
	body   string
}

// problem decodes the body as a problem.
func (a answer) problem(t *testing.T) (p struct {
	Status     int
	Code       string
	Detail     string
	RequestID  string `json:"request_id"`
	RetryAfter int64  `json:"retry_after"`
	Violated   []string
	Errors     []authapi.FieldError
}) {
	t.Helper()
	if ct := a.header.Get("Content-Type"); ct != "application/problem+json" {
		t.Errorf("Content-Type = %q, want a problem; body %q", ct, a.body)
	}
	if err := json.Unmarshal([]byte(a.body), &p); err != nil {
		t.Fatalf("decode problem %q: %v", a.body, err)
	}
	return p
}

// do sends a request; headers are pairs of name and value.
func (e *edge) do(method, path, body string, headers ...string) answer {
	e.t.Helper()
	req, err := http.NewRequest(method, "http://"+e.addr+path, strings.NewReader(body))
	if err != nil {
		e.t.Fatalf("request: %v", err)
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
			continue
		}
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := e.http.Do(req)
	if err != nil {
		e.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		e.t.Fatalf("%s %s: read body: %v", method, path, err)
	}
	a := answer{resp.StatusCode, resp.Header, string(b)}
	theContract().check(e.t, req, body, a)
	return a
}

// raw sends bytes as they are and reads one response.
func (e *edge) raw(request string) (answer, error) {
	e.t.Helper()
	conn, err := net.Dial("tcp", e.addr)
	if err != nil {
		e.t.Fatalf("dial: %v", err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		return answer{}, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b)}, nil
}

// organization puts one in.
func (e *edge) organization(id, plan string) {
	e.cluster.PutOrganization(state.Organization{ID: id, Name: id, Plan: plan, CreatedAt: 1})
}

// key puts a key of organization org_1 in and gives its secret.
func (e *edge) key(change func(*state.APIKey), scopes ...string) string {
	secret, record := newKey(scopes...)
	if o, _ := e.cluster.Organization(record.OrganizationID); o == nil {
		e.organization(record.OrganizationID, "")
	}
	if change != nil {
		change(&record)
	}
	e.cluster.PutKey(record)
	return secret
}

func newKey(scopes ...string) (string, state.APIKey) {
	secret, hash, prefix := authapi.NewAPIKey("live")
	return secret, state.APIKey{
		ID: "key_" + strings.ToLower(secret[8:34]), OrganizationID: "org_1", Name: "k", Hash: hash[:], Prefix: prefix,
		Scopes: scopes, Environment: "live", CreatedAt: 1,
	}
}

func (e *edge) want(a answer, status int, code string) {
	e.t.Helper()
	if a.status != status {
		e.t.Fatalf("status = %d, want %d; body %s", a.status, status, a.body)
	}
	if code != "" {
		if p := a.problem(e.t); p.Code != code || p.Status != status || p.RequestID != a.header.Get("X-Request-Id") {
			e.t.Fatalf("problem = %+v, want code %s, status %d and the response's request id", p, code, status)
		}
	}
}

var limitHeaders = []string{"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "X-RateLimit-Window", "RateLimit-Policy", "RateLimit"}

// wantHeaders checks what every limited response carries.
func wantHeaders(t *testing.T, a answer) {
	t.Helper()
	if a.header.Get("X-Request-Id") == "" {
		t.Errorf("no X-Request-Id on a %d", a.status)
	}
	for _, name := range limitHeaders {
		if len(a.header.Values(name)) != 1 {
			t.Errorf("%s = %q on a %d, want one", name, a.header.Values(name), a.status)
		}
	}
}

func rule(limit int64) limiter.Rule {
	return limiter.Rule{Limit: limit, Window: 60, Algorithm: limiter.SlidingWindow}
}

// signedIn makes a user with a session and gives an access token.
func signedIn(tb testing.TB, srv *authapi.Server, cluster *authtest.Cluster) string {
	tb.Helper()
	if err := srv.Maintain(context.Background()); err != nil {
		tb.Fatalf("Maintain: %v", err)
	}
	cluster.PutUser(state.User{ID: "usr_1", Username: "ann", PersonalOrg: "org_ann", CreatedAt: 1})
	cluster.PutOrganization(state.Organization{ID: "org_ann", Personal: true, CreatedAt: 1})
	cluster.PutMembership(state.Membership{OrganizationID: "org_ann", UserID: "usr_1", Role: state.RoleOwner})
	cluster.PutSession(state.Session{ID: "ses_1", UserID: "usr_1", CreatedAt: 1, ExpiresAt: start.Add(48 * time.Hour).UnixMilli()})
	token, err := srv.IssueToken("usr_1", "ses_1", "org_ann")
	if err != nil {
		tb.Fatalf("issue token: %v", err)
	}
	return token
}
