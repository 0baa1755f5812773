package authapi_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"sluice/authapi"
	"sluice/limiter"
	"sluice/raftfsm/state"
)

// open makes a connection that has answered one request.
func (e *edge) open() (net.Conn, error) {
	conn, err := net.Dial("tcp", e.addr)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	io.WriteString(conn, "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		conn.Close()
		return nil, err
	}
	resp.Body.Close()
	return conn, nil
}

// waitUntil waits until ok, or reports.
func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 5 s", what)
		}
	}
}

func TestConnections_PerAddress(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) { c.MaxConnsPerIP = 3 })
	var conns []net.Conn
	for range 3 {
		conn, err := e.open()
		if err != nil {
			t.Fatalf("connection %d: %v", len(conns)+1, err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	if conn, err := e.open(); err == nil {
		conn.Close()
		t.Fatal("a fourth connection was served")
	}
	conns[0].Close()
	waitUntil(t, "another connection after one has closed", func() bool {
		conn, err := e.open()
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

func TestConnections_TrustedProxiesAreSpared(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) { c.MaxConnsPerIP = 1; trustLoopback(c) })
	for range 5 {
		conn, err := e.open()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
}

func TestConnections_InAll(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) { c.MaxConns = 2; trustLoopback(c) })
	first, err := e.open()
	if err != nil {
		t.Fatal(err)
	}
	second, err := e.open()
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	// A third waits in the kernel until a slot is free, and is served then.
	waiting, err := net.Dial("tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(waiting, "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
	waiting.SetDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := waiting.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection beyond the bound got %d bytes, error %v", n, err)
	}
	waiting.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := e.open()
		if err == nil {
			conn.Close()
		}
		served <- err
	}()
	first.Close()
	if err := <-served; err != nil {
		t.Errorf("third connection: %v", err)
	}
}

// TestPipelining sends requests back to back, bodies included: each is answered once and none is taken from a body.
func TestPipelining(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) { c.Limit.Anonymous = rule(1000) })
	conn, err := net.Dial("tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	inner := "GET /inner HTTP/1.1\r\nHost: a\r\n\r\n"
	io.WriteString(conn, "POST /api/v1/auth/verify HTTP/1.1\r\nHost: a\r\nContent-Length: "+itoa(len(inner))+"\r\n\r\n"+inner+
		"POST /nowhere HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nGET /\r\n0\r\n\r\n"+
		"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	r := bufio.NewReader(conn)
	for i, want := range []int{200, 404, 200} {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("response %d: %v", i+1, err)
		}
		io.Copy(io.Discard, resp.Body)
		if resp.StatusCode != want {
			t.Errorf("response %d: status %d, want %d", i+1, resp.StatusCode, want)
		}
	}
	if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil {
		t.Errorf("after the last response: %q, %v", rest, err)
	}
}

// TestHeaders_AreSpelledAsTheirStandardsDo looks at the bytes: Go's client would hide another spelling.
func TestHeaders_AreSpelledAsTheirStandardsDo(t *testing.T) {
	t.Parallel()
	e := newEdge(t, nil)
	conn, err := net.Dial("tcp", e.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(conn, "GET /api/v1/auth/me HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	b, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append([]string{"WWW-Authenticate", "X-Request-Id"}, limitHeaders...) {
		if strings.Count(string(b), "\r\n"+name+": ") != 1 {
			t.Errorf("not once %s in %q", name, b)
		}
	}
}

func TestBody_TooLarge(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) { c.Limit.Anonymous = rule(1000) })
	body := `{"username":"` + strings.Repeat("a", 64<<10) + `"}`
	for _, length := range []int64{int64(len(body)), -1} {
		req, err := http.NewRequest("POST", "http://"+e.addr+"/api/v1/auth/login", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = length
		req.Header.Set("Content-Type", "application/json")
		resp, err := e.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		a := answer{resp.StatusCode, resp.Header, string(b)}
		e.want(a, 413, "body_too_large")
		wantHeaders(t, a)
	}
}

// A client that sends all it has before it reads gets the answer, and no reset.
func TestRefused_InTheMiddle(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) { c.Limit.Anonymous = rule(1000) })
	long := strings.Repeat("a", 1<<20)
	for request, want := range map[string]int{
		"GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + long + "\r\n\r\n":                                                                                              431,
		"POST /api/v1/auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1048576\r\n\r\n" + long:                                413,
		"POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 1048576\r\n\r\n" + long:                                                                            404,
		"POST /api/v1/auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n100000\r\n" + long + "\r\n0\r\n\r\n": 413,
	} {
		for range 5 {
			a, err := e.raw(request)
			if err != nil || a.status != want {
				t.Errorf("%.120q: %d, %v, want %d", request, a.status, err, want)
			}
		}
	}
}

func TestBody_TooSlow(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) { c.ReadTimeout = 200 * time.Millisecond })
	for _, request := range []string{
		"GET /livez HTTP/1.1\r\nHost: a\r\n",
		"POST /api/v1/auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{",
	} {
		a, err := e.raw(request)
		if err != nil {
			t.Fatalf("no response: %v", err)
		}
		if a.status != 408 {
			t.Errorf("status %d, want 408; %s", a.status, a.body)
		}
		wantHeaders(t, a)
	}
}

func TestPanic_Is500(t *testing.T) {
	t.Parallel()
	e := newEdge(t, nil)
	e.cluster.OnCatchUp = func() { panic("boom") }
	unknown, _ := newKey()
	a := e.do("GET", "/api/v1/auth/verify", "", "X-API-Key", unknown)
	e.want(a, 500, "internal_error")
	wantHeaders(t, a)
	if strings.Contains(a.body, "boom") {
		t.Errorf("body %s tells of the panic", a.body)
	}
	e.want(e.do("GET", "/livez", ""), 200, "")
}

func TestServer_NewNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	_, err := authapi.New(authapi.Config{})
	if err == nil {
		t.Fatal("New took nothing")
	}
	for _, name := range []string{"State", "Cluster", "Limits", "Sealer"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("error %q does not name %s", err, name)
		}
	}
}

func TestServer_ShutdownFinishesWhatIsInFlight(t *testing.T) {
	t.Parallel()
	cfg, cluster, _, _ := edgeConfig(nil)
	srv, err := authapi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	inHandler, goOn := make(chan struct{}), make(chan struct{})
	cluster.OnCatchUp = func() { close(inHandler); <-goOn }
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	answered := make(chan int, 1)
	go func() {
		secret, _ := newKey()
		req, _ := http.NewRequest("GET", "http://"+ln.Addr().String()+"/api/v1/auth/verify", nil)
		req.Header.Set("X-API-Key", secret)
		transport := &http.Transport{DisableKeepAlives: true}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			answered <- 0
			return
		}
		resp.Body.Close()
		answered <- resp.StatusCode
	}()
	<-inHandler
	down := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		down <- srv.Shutdown(ctx)
	}()
	close(goOn)
	if status := <-answered; status != 401 {
		t.Errorf("the request in flight got %d, want 401", status)
	}
	if err := <-down; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if err := srv.Shutdown(context.Background()); err != nil {
		t.Errorf("second Shutdown: %v", err)
	}
}

func TestVerify_JWT(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) { trustLoopback(c); apiRoutes(c); c.Limit.User = rule(77) })
	token := signedIn(t, e.srv, e.cluster)
	verify := func(method string) answer {
		return e.do("GET", "/api/v1/auth/verify", "", "Authorization", "Bearer "+token, "X-Forwarded-Method", method, "X-Forwarded-Uri", "/api/v1/events")
	}
	a := verify("GET")
	e.want(a, 200, "")
	for name, want := range map[string]string{
		"X-Auth-Method": "jwt", "X-Auth-User": "usr_1", "X-Auth-Organization": "org_ann", "X-Auth-Key": "", "X-Auth-Scopes": "",
		"RateLimit-Policy": `"user";q=77;w=60`, "X-RateLimit-Remaining": "76",
	} {
		if got := a.header.Get(name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	role := func(r string) {
		e.cluster.PutMembership(state.Membership{OrganizationID: "org_ann", UserID: "usr_1", Role: r})
	}
	for r, want := range map[string][2]int{
		state.RoleOwner: {200, 200}, state.RoleAdmin: {200, 200}, state.RoleMember: {200, 200}, state.RoleViewer: {200, 403}, "none": {403, 403},
	} {
		role(r)
		if got := [2]int{verify("GET").status, verify("POST").status}; got != want {
			t.Errorf("%s: GET and POST give %v, want %v", r, got, want)
		}
	}
	role(state.RoleOwner)
	for name, change := range map[string]func(*state.Session, *state.User){
		"ended":    func(s *state.Session, _ *state.User) { s.EndedAt = 1 },
		"expired":  func(s *state.Session, _ *state.User) { s.ExpiresAt = start.UnixMilli() },
		"other's":  func(s *state.Session, _ *state.User) { s.UserID = "usr_2" },
		"disabled": func(_ *state.Session, u *state.User) { u.DisabledAt = 1 },
		"deleted":  func(_ *state.Session, u *state.User) { u.DeletedAt = 1 },
	} {
		s, _ := e.cluster.Session("ses_1")
		u, _ := e.cluster.User("usr_1")
		s2, u2 := *s, *u
		change(&s2, &u2)
		e.cluster.PutSession(s2)
		e.cluster.PutUser(u2)
		if a := verify("GET"); a.status != 401 {
			t.Errorf("%s: status %d, want 401", name, a.status)
		}
		e.cluster.PutSession(*s)
		e.cluster.PutUser(*u)
		e.want(verify("GET"), 200, "")
	}
	e.clock.Advance(2 * time.Hour)
	e.want(verify("GET"), 401, "invalid_credential")
}

func TestLimits_UserGetsTheMostGenerousPlan(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) {
		c.Limit.Plans = map[string]limiter.Rule{"small": rule(20), "big": rule(500)}
	})
	token := signedIn(t, e.srv, e.cluster)
	limit := func() string {
		return e.do("GET", "/api/v1/auth/verify", "", "Authorization", "Bearer "+token).header.Get("X-RateLimit-Limit")
	}
	if got := limit(); got != "100" {
		t.Errorf("limit %s without a plan, want 100", got)
	}
	for i, plan := range []string{"small", "big", "small", "unheard-of"} {
		id := "org_" + itoa(i)
		e.organization(id, plan)
		e.cluster.PutMembership(state.Membership{OrganizationID: id, UserID: "usr_1", Role: state.RoleViewer})
		if got, want := limit(), []string{"20", "500", "500", "500"}[i]; got != want {
			t.Errorf("limit %s after joining one on plan %s, want %s", got, plan, want)
		}
	}
}

// unlisted cannot list memberships.
type unlisted struct{ authapi.State }

func (unlisted) MembershipsOf(string) ([]state.Membership, error) {
	return nil, errors.New("memberships listed")
}

// TestVerify_JWTWithoutPlansListsNothing: what a token costs must not grow with the organizations that its user makes.
func TestVerify_JWTWithoutPlansListsNothing(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) { c.State = unlisted{c.State} })
	token := signedIn(t, e.srv, e.cluster)
	e.want(e.do("GET", "/api/v1/auth/verify?scope=triggers:read", "", "Authorization", "Bearer "+token), 200, "")
}

func TestServer_ServeAfterShutdownEnds(t *testing.T) {
	t.Parallel()
	cfg, _, _, _ := edgeConfig(nil)
	srv, err := authapi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Shutdown(context.Background()); err != nil {
		t.Fatalf("Shutdown: %v", err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Serve(ln); err != nil {
		t.Errorf("Serve: %v", err)
	}
}
