package systemtest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sluice/authapi/authtest"
)

// protected is a cluster whose routes are rules for checks alone, and the application that a proxy guards with them.
type protected struct {
	cluster *cluster
	app     *app
	owner   account
	reader  apiKey // triggers:read
	writer  apiKey // triggers:*
	revoked apiKey
}

// protectedRoutes are the rules of the checks. The limit of "tight" is of an address, in a policy of its own.
var protectedRoutes = []string{
	`SLUICE_ROUTES=[
	  { name = "open", path = "/open", rules = [{ methods = ["*"], anonymous = true }] },
	  { name = "tight", path = "/tight", rules = [{ methods = ["*"], anonymous = true }] },
	  { name = "corpus", path = "/api/v1/auth", rules = [{ methods = ["*"], anonymous = true }] },
	  { name = "app", path = "/app", rules = [{ methods = ["GET"], scopes = ["triggers:read"] }, { methods = ["*"], scopes = ["triggers:write"] }] },
	  { name = "private", host = "private.example", path = "/", rules = [{ methods = ["*"], scopes = ["events:read"] }] },
	]`,
	`SLUICE_LIMITS__POLICIES=[{ name = "tight", by = ["address"], routes = ["tight"], limit = 3, window = "24h", algorithm = "token_bucket", burst = 3 }]`,
	"SLUICE_LIMITS__ANONYMOUS__LIMIT=10000000", "SLUICE_LIMITS__API_KEY__LIMIT=10000000", "SLUICE_LIMITS__USER__LIMIT=10000000",
	"SLUICE_TRUSTED_PROXIES=127.0.0.1",
}

// proxyAddress is where the proxies connect from; trusted. Clients connect from others of 127.0.0.0/8.
const proxyAddress = "127.0.0.1"

func startProtected(t *testing.T) *protected {
	t.Helper()
	p := &protected{cluster: startCluster(t, options{variables: protectedRoutes}), app: startApp(t)}
	base := p.cluster.urls[0]
	p.owner = register(t, base)
	p.reader = p.owner.newKey(t, base, 0, "triggers:read")
	p.writer = p.owner.newKey(t, base, 0, "triggers:*")
	p.revoked = p.owner.newKey(t, base, 0, "*")
	must(t, base, request{method: "DELETE", path: "/api/v1/api-keys/" + p.revoked.id, token: p.owner.token, address: p.owner.address}, http.StatusNoContent)
	return p
}

// limitedKey may be used that often in a day.
func (p *protected) limitedKey(t *testing.T, limit int) apiKey {
	t.Helper()
	res := must(t, p.cluster.urls[1], request{method: "POST", path: "/api/v1/api-keys", token: p.owner.token, address: p.owner.address, body: map[string]any{
		"name": unique("key"), "organization_id": p.owner.organization, "scopes": []string{"triggers:*"},
		"rate_limit": map[string]any{"limit": limit, "window_seconds": 86400},
	}}, http.StatusCreated)
	return apiKey{id: res.field(t, "id"), secret: res.field(t, "key")}
}

// proxyKind is one kind of proxy in front of the application.
type proxyKind struct {
	name string
	// start runs it and gives its URL. hop is whether it stands behind another load balancer at proxyAddress.
	start   func(t *testing.T, p *protected, hop bool) string
	program string // that has to be installed; "" for none
	// silent: it has no way to give clients the headers of a check that passed.
	silent bool
}

var proxyKinds = []proxyKind{
	{name: "nginx", start: startAuthNginx, program: "nginx"},
	{name: "HAProxy", start: startAuthHAProxy, program: "haproxy"},
	{name: "Caddy", start: startAuthCaddy, program: "caddy", silent: true},
	{name: "Traefik", start: startAuthTraefik, silent: true},
	{name: "Envoy", start: startAuthEnvoy},
}

// TestForwardAuth puts each kind of proxy between clients and an application, with the configuration in deploy/forward-auth.
func TestForwardAuth(t *testing.T) {
	p := startProtected(t)
	for i, kind := range proxyKinds {
		t.Run(kind.name, func(t *testing.T) {
			f := &front{protected: p, kind: kind, url: kind.start(t, p, false), client: fmt.Sprintf("127.0.1.%d", 10*(i+1))}
			t.Run("decisions", f.decisions)
			t.Run("limits", f.limits)
			t.Run("spoofing", f.spoofing)
			t.Run("addresses", f.addresses)
			t.Run("dodges", f.dodges)
			if kind.program != "" { // a stand-in has another's HTTP
				t.Run("smuggling", f.smuggling)
			}
			t.Run("ten thousand", f.tenThousand)
			for _, problem := range p.app.complaints() {
				t.Errorf("the application got what it never may: %s", problem)
			}
		})
	}
	t.Run("lost nodes", func(t *testing.T) { lostNodes(t, p) })
}

// front is a proxy under test.
type front struct {
	*protected
	kind   proxyKind
	url    string
	client string // address of most requests
}

// get sends a request that the application can tell from others, and says whether it got there and as what.
func (f *front) get(t *testing.T, from string, r request) (response, seen, bool) {
	t.Helper()
	id := unique("request-")
	req, err := http.NewRequest(r.method, f.url+r.path, strings.NewReader(r.raw))
	if err != nil {
		t.Fatal(err)
	}
	if r.raw == "" {
		req.Body = http.NoBody
	}
	for name, value := range r.header {
		if name == "Host" {
			req.Host = value
			continue
		}
		req.Header[name] = []string{value} // in this very spelling
	}
	req.Header.Set("X-Test-Id", id)
	if r.key != "" {
		req.Header.Set("X-API-Key", r.key)
	}
	if r.token != "" {
		req.Header.Set("Authorization", "Bearer "+r.token)
	}
	res, err := clientAt(from).Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", r.method, r.path, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", r.method, r.path, err)
	}
	s, reached := f.app.of(id)
	return response{res.StatusCode, res.Header, body}, s, reached
}

// want sends a request and checks the status, and that exactly those that pass reach the application.
func (f *front) want(t *testing.T, r request, status int) (response, seen) {
	t.Helper()
	res, s, reached := f.get(t, f.client, r)
	if res.status != status {
		t.Errorf("%s %s: got %v, want %d", r.method, r.path, res, status)
	}
	if ours := res.header.Get("X-App") == "" && status >= 400; reached == ours {
		t.Errorf("%s %s: %v, and whether it reached the application is %v", r.method, r.path, res, reached)
	}
	return res, s
}

// problem checks what a client gets in the application's place.
func (f *front) problem(t *testing.T, res response, code string) {
	t.Helper()
	var body struct {
		Status int
		Code   string
		ID     string `json:"request_id"`
		Retry  int    `json:"retry_after"`
	}
	if err := json.Unmarshal(res.body, &body); err != nil {
		t.Errorf("the body of a %v: %v", res, err)
		return
	}
	if body.Status != res.status || body.Code != code || body.ID == "" || body.ID != res.header.Get("X-Request-Id") {
		t.Errorf("%v, want the code %s; X-Request-Id is %q", res, code, res.header.Get("X-Request-Id"))
	}
	if ct := res.header.Get("Content-Type"); ct != "application/problem+json" {
		t.Errorf("the Content-Type of a %d is %q", res.status, ct)
	}
	if err := checkLimitHeaders(res); err != nil {
		t.Errorf("%v: %v", res, err)
	}
	for _, name := range identityHeaders {
		if res.header.Get(name) != "" {
			t.Errorf("a %d tells clients %s: %s", res.status, name, res.header.Get(name))
		}
	}
}

// decisions are those about credentials and scopes.
func (f *front) decisions(t *testing.T) {
	res, s := f.want(t, request{method: "GET", path: "/open/x?q=1&q=%20"}, 200)
	if s.uri != "/open/x?q=1&q=%20" || s.header.Get("X-Auth-Method") != "anonymous" || s.header.Get("X-Auth-User") != "" {
		t.Errorf("the application got %+v", s)
	}
	if !f.kind.silent {
		if err := checkLimitHeaders(res); err != nil {
			t.Errorf("%v: %v", res, err)
		}
		for _, name := range []string{"RateLimit", "RateLimit-Policy"} {
			if res.header.Get(name) == "" {
				t.Errorf("no %s where the request passed", name)
			}
		}
	}

	res, _ = f.want(t, request{method: "GET", path: "/app"}, 401)
	f.problem(t, res, "authentication_required")
	if c := res.header.Values("WWW-Authenticate"); len(c) != 1 || !strings.HasPrefix(c[0], "Bearer ") {
		t.Errorf("WWW-Authenticate: %q", c)
	}

	for _, method := range []string{"GET", "HEAD", "POST", "DELETE", "OPTIONS"} {
		_, s = f.want(t, request{method: method, path: "/app/1", token: f.owner.token}, 200)
		if s.method != method || s.header.Get("X-Auth-Method") != "jwt" || s.header.Get("X-Auth-User") != f.owner.userID || s.header.Get("X-Auth-Key") != "" {
			t.Errorf("%s with a token: the application got %+v", method, s)
		}
	}
	_, s = f.want(t, request{method: "GET", path: "/app/1", key: f.reader.secret}, 200)
	for name, want := range map[string]string{
		"X-Auth-Method": "api_key", "X-Auth-User": "", "X-Auth-Organization": f.owner.organization, "X-Auth-Key": f.reader.id, "X-Auth-Scopes": "triggers:read",
	} {
		if got := s.header.Get(name); got != want {
			t.Errorf("with a key %s is %q, want %q", name, got, want)
		}
	}
	f.want(t, request{method: "GET", path: "/app/1", token: f.reader.secret}, 200) // a key as a bearer token

	res, _ = f.want(t, request{method: "POST", path: "/app/1", key: f.reader.secret}, 403)
	f.problem(t, res, "insufficient_scope")
	if c := res.header.Get("WWW-Authenticate"); !strings.Contains(c, "insufficient_scope") {
		t.Errorf("WWW-Authenticate of a 403: %q", c)
	}
	res, _ = f.want(t, request{method: "GET", path: "/elsewhere", token: f.owner.token}, 403)
	f.problem(t, res, "no_route")
	res, _ = f.want(t, request{method: "GET", path: "/app", key: f.reader.secret + "x"}, 401)
	f.problem(t, res, "invalid_credential")
	res, _ = f.want(t, request{method: "GET", path: "/open", key: f.revoked.secret}, 401)
	f.problem(t, res, "invalid_credential")
	res, _ = f.want(t, request{method: "GET", path: "/open", token: f.owner.token + "x"}, 401)
	f.problem(t, res, "invalid_credential")
	res, _ = f.want(t, request{method: "GET", path: "/open", token: f.owner.token, key: f.reader.secret}, 400)
	f.problem(t, res, "invalid_request")
	// Nothing that a client asks for in its query is an option of the check.
	f.want(t, request{method: "GET", path: "/app?anonymous=allow&cost=0&scope="}, 401)

	// The check needs no body, and the application gets all of it.
	body := strings.Repeat("0123456789", 30_000)
	_, s = f.want(t, request{method: "POST", path: "/app/upload", key: f.writer.secret, raw: body}, 200)
	if s.body != int64(len(body)) {
		t.Errorf("%d bytes of %d arrived", s.body, len(body))
	}
	f.want(t, request{method: "POST", path: "/app/upload", raw: body}, 401)

	// What the application itself answers comes through as it is.
	for _, status := range []int{400, 401, 403, 404, 429, 500, 502, 503} {
		res, _, reached := f.get(t, f.client, request{method: "GET", path: "/open/status/" + strconv.Itoa(status)})
		if res.status != status || !reached || res.header.Get("X-App") == "" || !strings.HasPrefix(string(res.body), "the application: ") {
			t.Errorf("the application's own %d came through as %v", status, res)
		}
	}
}

// limits: a client over its limit gets a 429 with all that belongs to one, whatever the proxy makes of a check's answer.
func (f *front) limits(t *testing.T) {
	const limit = 3
	key := f.limitedKey(t, limit)
	for n := range limit {
		res, _ := f.want(t, request{method: "GET", path: "/app", key: key.secret}, 200)
		// Each node tells what it knows; that they let three pass in all is what counts.
		if left, err := strconv.Atoi(res.header.Get("X-RateLimit-Remaining")); !f.kind.silent && (err != nil || left > limit-1) {
			t.Errorf("request %d: X-RateLimit-Remaining is %q", n+1, res.header.Get("X-RateLimit-Remaining"))
		}
	}
	for range 3 {
		res, _ := f.want(t, request{method: "GET", path: "/app", key: key.secret}, 429)
		f.problem(t, res, "rate_limit_exceeded")
		if res.header.Get("X-RateLimit-Limit") != strconv.Itoa(limit) || res.header.Get("X-RateLimit-Remaining") != "0" ||
			!strings.Contains(res.header.Get("RateLimit-Policy"), "q=3;w=86400") || !strings.Contains(res.header.Get("RateLimit"), "r=0") {
			t.Errorf("a 429 with %v", res.header)
		}
		var body struct {
			Retry int `json:"retry_after"`
		}
		if err := json.Unmarshal(res.body, &body); err != nil || strconv.Itoa(body.Retry) != res.header.Get("Retry-After") {
			t.Errorf("retry_after is %d, Retry-After %q (%v)", body.Retry, res.header.Get("Retry-After"), err)
		}
	}
	res, _ := f.want(t, request{method: "HEAD", path: "/app", key: key.secret}, 429)
	if res.header.Get("Retry-After") == "" || len(res.body) > 0 {
		t.Errorf("a HEAD over the limit: %v, %v", res, res.header)
	}
}

// spoofing: nothing that a client says of itself or of its request counts.
func (f *front) spoofing(t *testing.T) {
	identities := map[string]string{}
	for _, name := range identityHeaders {
		identities[name] = "spoofed"
		identities[strings.ToLower(name)] = "spoofed"
		identities[strings.ReplaceAll(name, "-", "_")] = "spoofed"
	}
	_, s := f.want(t, request{method: "GET", path: "/open", header: identities}, 200)
	if s.header.Get("X-Auth-Method") != "anonymous" {
		t.Errorf("X-Auth-Method is %q", s.header.Get("X-Auth-Method"))
	}
	f.want(t, request{method: "GET", path: "/app", key: f.reader.secret, header: identities}, 200)
	f.want(t, request{method: "GET", path: "/app", header: identities}, 401)
	for _, claims := range []map[string]string{
		{"X-Forwarded-Uri": "/open", "X-Forwarded-Method": "GET", "X-Forwarded-Host": "x"},
		{"x-forwarded-uri": "/open", "X_Forwarded_Uri": "/open"},
		{"X-Original-Url": "http://x/open", "X-Original-Method": "GET"},
		{"Forwarded": "for=127.0.0.1;host=x", "X-Real-Ip": "127.0.0.1", "X-Envoy-Original-Path": "/open"},
		{"X-Rewrite-Url": "/open", "X-Forwarded-Prefix": "/open"},
	} {
		f.want(t, request{method: "GET", path: "/app", header: claims}, 401)
		f.want(t, request{method: "GET", path: "/app", key: f.reader.secret, header: claims}, 200)
		f.want(t, request{method: "POST", path: "/app", key: f.reader.secret, header: claims}, 403)
		f.want(t, request{method: "GET", path: "/open", key: f.reader.secret, header: mapWith(claims, "Host", "private.example")}, 403)
	}
	// What a Connection header names is of one hop only, and must not be what the proxy itself sets. It may refuse that.
	for _, names := range []string{"X-Forwarded-Uri, X-Forwarded-Method", "keep-alive,x-auth-method, X-Auth-User", "X-Auth-Scopes", "X-Api-Key"} {
		header := map[string]string{"Connection": names}
		for _, r := range []request{{method: "GET", path: "/app", header: header}, {method: "GET", path: "/app", key: f.reader.secret, header: header}} {
			res, _, reached := f.get(t, f.client, r)
			if reached != (res.status == 200) || r.key == "" && reached {
				t.Errorf("with Connection: %s got %v", names, res)
			}
		}
	}
	for name, method := range map[string]string{"X-Forwarded-Method": "GET", "X-Original-Method": "GET", "X-HTTP-Method-Override": "GET"} {
		f.want(t, request{method: "DELETE", path: "/app", key: f.reader.secret, header: map[string]string{name: method}}, 403)
	}
	// A target that names a host itself.
	address := strings.TrimPrefix(f.url, "http://")
	for _, raw := range []string{
		"GET http://private.example/open HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"GET http://x/open HTTP/1.1\r\nHost: private.example\r\nX-Forwarded-Host: x\r\nConnection: close\r\n\r\n",
		"GET /open HTTP/1.1\r\nHost: x\r\nHost: private.example\r\nConnection: close\r\n\r\n",
		"GET /open HTTP/1.1\r\nHost: PRIVATE.example.:80\r\nConnection: close\r\n\r\n",
		"GET /open HTTP/1.1\r\nHost: x, private.example\r\nX-Forwarded-Host: x\r\nConnection: close\r\n\r\n",
	} {
		status, err := sendRaw(address, f.client, raw)
		// Whether it passes is a question of the host that the application gets with it; the application complains.
		if err != nil || status >= 500 {
			t.Errorf("%d, %v to %q", status, err, raw)
		}
	}
}

func mapWith(m map[string]string, key, value string) map[string]string {
	out := map[string]string{key: value}
	for k, v := range m {
		out[k] = v
	}
	return out
}

// addresses: a client is who connects to the first proxy of one's own, whatever it claims.
func (f *front) addresses(t *testing.T) {
	prefix, _, _ := strings.Cut(f.client[len("127.0.1."):], ".")
	hop := &front{protected: f.protected, kind: f.kind, url: startEdge(t, f.kind.start(t, f.protected, true))}
	for i, way := range []*front{f, hop} {
		one, other := fmt.Sprintf("127.0.%d.%s", 2+i, prefix), fmt.Sprintf("127.0.%d.%s", 4+i, prefix)
		claim := func(n int) map[string]string {
			name := []string{"X-Forwarded-For", "x-forwarded-for", "Forwarded", "X-Real-Ip", "X-Forwarded-For"}[n%5]
			return map[string]string{name: []string{"192.0.2.7", "192.0.2.7, 127.0.0.1", `for="192.0.2.8"`, "192.0.2.9", "unknown, 192.0.2.10:80, [2001:db8::1]"}[n%5]}
		}
		for n := range 6 {
			res, _, _ := way.get(t, one, request{method: "GET", path: "/tight", header: claim(n)})
			if want := map[bool]int{true: 200, false: 429}[n < 3]; res.status != want {
				t.Errorf("hops: %d. Request %d of one address: %v, want %d", i+1, n+1, res, want)
			}
		}
		if res, _, _ := way.get(t, other, request{method: "GET", path: "/tight"}); res.status != 200 {
			t.Errorf("hops: %d. Another address, with a limit of its own: %v", i+1, res)
		}
	}
}

// spellings are other ways to write paths below /app, and ways out of /open.
var spellings = []string{
	"//app/x", "/./app/x", "/open/../app/x", "/open/%2e%2e/app/x", "/open/%2E%2E/app/x", "/open/.%2e/app/x", "/open/..%2fapp/x", "/open%2f..%2fapp/x",
	"/open/..%5capp/x", `/open/..\app/x`, "/open/..;/app/x", "/open/..;a=b/app/x", "/open/%252e%252e/app/x", "/open/..%252fapp/x",
	"/%61pp/x", "/a%70p/x", "/app%2fx", "/app;v=1/x", "/app%3bv/x", `/app\x`, "/app/./x", "/app//x", "/app/y/../x", "/app%00/x", "/app%0a/x",
	"/open#/../app/x", "/app/x#", "/app/x\xff", "/open/x/../../app/x", "/%2e/app/x", "/%2fapp/x", "/open/%e0%80%ae%e0%80%ae/app/x", "/open/%c0%ae%c0%ae/app/x",
	"/%u0061pp/x", "/open/../../app/x", "/app/x/..", "/app/%2e", "/open/\x00/../app/x", "/open/?/../app/x", "/open\t/app", "/app /x", "*", "app/x", "http:/app/x",
	"http://x/app/x", "http://x//app/x", "http://x/open/../app/x", "http://user@x/app/x", "?/app", "/APP/x", "/app.", "/app%20", "/open/..%00/app/x",
}

// dodges: in whatever way the target is written, what needs a credential does not pass without. What did pass is the application's to
// judge, by the path that it got.
func (f *front) dodges(t *testing.T) {
	address := strings.TrimPrefix(f.url, "http://")
	for _, target := range spellings {
		for _, method := range []string{"GET", "POST"} {
			credential := ""
			if method == "POST" { // needs triggers:write
				credential = "X-API-Key: " + f.reader.secret + "\r\nContent-Length: 0\r\n"
			}
			status, err := sendRaw(address, f.client, method+" "+target+" HTTP/1.1\r\nHost: x\r\nX-Test-Id: dodge/"+method+"\r\n"+credential+"Connection: close\r\n\r\n")
			if err != nil {
				t.Errorf("%s %q: %v", method, target, err)
			}
			if status == 200 && !strings.HasPrefix(target, "/open/?/") {
				t.Errorf("%s %q passed", method, target)
			}
		}
	}
	f.app.many()
}

// smuggling sends the corpus of requests that servers read in different ways: none of them gets a request to the application that the check
// has not seen, nor another client's answer, and none harms others' requests over the same connections.
func (f *front) smuggling(t *testing.T) {
	corpus, err := authtest.ReadSmuggling(filepath.Join("..", "..", "..", "authapi", "testdata", "smuggling", "corpus.txt"))
	if err != nil {
		t.Fatal(err)
	}
	stop, done, canaries := make(chan struct{}), make(chan struct{}), 0
	go func() {
		defer close(done)
		for {
			canaries++
			path := fmt.Sprintf("/open/canary-%d", canaries)
			if res, s, reached := f.get(t, f.client, request{method: "GET", path: path}); !reached || s.uri != path || string(res.body) != "the application: "+path {
				t.Errorf("a canary at %s got %v, and the application %+v", path, res, s)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	address := strings.TrimPrefix(f.url, "http://")
	var all sync.WaitGroup
	slots := make(chan struct{}, 52)
	var passed atomic.Int64
	for _, smuggled := range corpus {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			got, err := rawStatuses(address, smuggled.Raw)
			if err != nil {
				t.Errorf("%s: %v", smuggled.Name, err)
			}
			if !authtest.Refused(got) {
				passed.Add(1)
			}
			// What stands behind a request or inside its body is for nobody, or for a client with a credential.
			if n := len(strings.Fields(smuggled.Want)); len(strings.Fields(got)) > max(n, 2) {
				t.Errorf("%s: %s, and %s alone", smuggled.Name, got, smuggled.Want)
			}
		})
	}
	all.Wait()
	close(stop)
	<-done
	t.Logf("%d cases, of which %d passed; %d canaries meanwhile", len(corpus), passed.Load(), canaries)
}

// tenThousand sends that many, of which few may pass, and lets the application count them.
func (f *front) tenThousand(t *testing.T) {
	const all, workers = 10_000, 24
	type kind struct {
		name, method, path string
		header             map[string]string
		status             int
	}
	flipped := []byte(f.owner.token)
	flipped[len(flipped)-5] ^= 1
	kinds := []kind{
		{"anonymous", "GET", "/app", nil, 401},
		{"mistyped", "GET", "/app", map[string]string{"X-API-Key": f.reader.secret[:len(f.reader.secret)-1]}, 401},
		{"revoked", "GET", "/app", map[string]string{"X-API-Key": f.revoked.secret}, 401},
		{"forged", "GET", "/app", map[string]string{"Authorization": "Bearer " + string(flipped)}, 401},
		{"key", "GET", "/app/k", map[string]string{"X-API-Key": f.reader.secret}, 200},
		{"token", "POST", "/app/t", map[string]string{"Authorization": "Bearer " + f.owner.token}, 200},
		{"scope", "PUT", "/app", map[string]string{"X-API-Key": f.reader.secret}, 403},
		{"spoofed", "GET", "/app", map[string]string{"X-Auth-Method": "jwt", "X-Auth-User": "spoofed", "X-Forwarded-Uri": "/open", "X-Original-Url": "http://x/open", "X-Forwarded-For": "127.0.0.1"}, 401},
		{"query", "GET", "/app?api_key=" + f.reader.secret + "&anonymous=allow", nil, 401},
		{"no route", "GET", "/", map[string]string{"X-API-Key": f.writer.secret}, 403},
	}
	f.app.many()
	var next, strange atomic.Int64
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for n := next.Add(1); n <= all; n = next.Add(1) {
				k := kinds[n%int64(len(kinds))]
				req, err := http.NewRequest(k.method, f.url+k.path, http.NoBody)
				if err != nil {
					t.Error(err)
					return
				}
				for name, value := range k.header {
					req.Header.Set(name, value)
				}
				req.Header.Set("X-Test-Id", k.name+"/"+strconv.FormatInt(n, 10))
				res, err := clientAt(f.client).Do(req)
				if err == nil {
					_, err = io.Copy(io.Discard, res.Body)
					res.Body.Close()
				}
				if (err != nil || res.StatusCode != k.status) && strange.Add(1) <= 5 {
					t.Errorf("%s: %v, %v; want %d", k.name, res, err, k.status)
				}
			}
		})
	}
	begun := time.Now()
	group.Wait()
	reached := f.app.many()
	for _, k := range kinds {
		want := 0
		if k.status == 200 {
			want = all / len(kinds)
		}
		if reached[k.name] != want {
			t.Errorf("%d requests of the kind %q reached the application, want %d", reached[k.name], k.name, want)
		}
	}
	t.Logf("%d requests in %v, %v reached the application; %d had another status than expected", all, time.Since(begun).Round(time.Millisecond), reached, strange.Load())
}
