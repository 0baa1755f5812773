package systemtest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sluice/authapi/authtest/idp"
)

// refusalWalk walks what the operations answer when a limit is used up, and when the node cannot decide.
type refusalWalk struct {
	*providerWalk
	operations map[string]operation
	user       account
	key        apiKey
	refused    map[string]map[int]map[int]bool // nodes by operation and status
}

// refuses is do, and notes where it was refused.
func (w *refusalWalk) refuses(k call, status int) response {
	w.t.Helper()
	node := w.n % len(w.c.urls)
	if w.only > 0 {
		node = w.only - 1
	}
	res := w.do(k, status)
	if w.refused[k.op] == nil {
		w.refused[k.op] = map[int]map[int]bool{429: {}, 503: {}}
	}
	if res.status == status {
		w.refused[k.op][status][node] = true
	}
	return res
}

const (
	opRegister = "POST /api/v1/auth/register"
	opLogin    = "POST /api/v1/auth/login"
	opPassword = "POST /api/v1/auth/password"
)

// documents have a policy by address of their own.
var documents = []string{"GET /.well-known/jwks.json", "GET /.well-known/oauth-authorization-server", "GET /openapi.json"}

// TestContract_Refusals uses limits up at one node and finds them used up at the next one, for every operation, and then
// takes a node's cluster away: each 429 and 503 that the document knows, at two nodes at least, and what a gateway answers
// for its upstream.
func TestContract_Refusals(t *testing.T) {
	t.Parallel()
	dead, hanging := upstreams(t)
	provider := idp.Start(t, time.Now)
	// Short windows, because a node that is cut off decides to the end of those that it was in; and none of the others is
	// taken for dead meanwhile.
	c := startCluster(t, options{variables: []string{
		"SLUICE_LIMITS__ANONYMOUS__WINDOW=5s", "SLUICE_LIMITS__USER__LIMIT=40", "SLUICE_LIMITS__USER__WINDOW=5s", "SLUICE_LIMITS__DOCUMENTS__LIMIT=60",
		"SLUICE_LIMITS__DOCUMENTS__WINDOW=5s",
		"SLUICE_LIMITS__DEAD_AFTER=60s", "SLUICE_PUBLIC_URL=http://sluice.example",
		"SLUICE_OAUTH__GOOGLE__CLIENT_ID=" + idp.ClientID, "SLUICE_OAUTH__GOOGLE__CLIENT_SECRET=" + idp.ClientSecret, "SLUICE_OAUTH__GOOGLE__ISSUER=" + provider.URL,
		"SLUICE_OAUTH__GITHUB__CLIENT_ID=" + idp.ClientID, "SLUICE_OAUTH__GITHUB__CLIENT_SECRET=" + idp.ClientSecret,
		fmt.Sprintf(`SLUICE_ROUTES=[
			{ name = "dead", path = "/dead", upstream = "http://%s", rules = [{ methods = ["*"], anonymous = true }] },
			{ name = "hanging", path = "/hanging", upstream = "http://%s", timeout = "300ms", rules = [{ methods = ["*"], anonymous = true }] }]`, dead, hanging),
	}})
	w := &refusalWalk{providerWalk: &providerWalk{walk: &walk{t: t, c: c, seen: map[string]map[int]bool{}, nodes: map[string]map[int]bool{}}, google: provider, github: provider},
		refused: map[string]map[int]map[int]bool{}}
	w.operations = w.document()
	w.user = register(t, c.urls[0])
	w.key = w.user.newKey(t, c.urls[1], 0, "*")
	for _, base := range c.urls {
		eventually(t, readyWithin, "the provider is known", func() error {
			if res, err := send(base, request{path: "/api/v1/auth/google", address: newAddress()}); err != nil || res.status != http.StatusFound {
				return fmt.Errorf("%v, %v", res, err)
			}
			return nil
		})
	}

	w.gateway()
	w.addressUsedUp()
	w.keyUsedUp()
	w.userUsedUp()
	w.signInGuard()
	for _, survivor := range []int{1, 3} {
		w.cutOff(survivor)
	}
	for _, op := range slices.Sorted(maps.Keys(w.operations)) {
		for _, status := range []int{429, 503} {
			if n := len(w.refused[op][status]); w.operations[op].Responses[fmt.Sprint(status)] != nil && n < 2 {
				t.Errorf("%s answered %d at %d nodes, want 2", op, status, n)
			}
		}
	}
	t.Logf("%d requests", w.n)
}

// upstreams are the addresses of one where nobody listens and of one that never answers.
func upstreams(t *testing.T) (dead, hanging string) {
	t.Helper()
	// Bound and not listening: connections are refused, and nobody else gets the port.
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	bound, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel takes connections, nobody reads them
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	return fmt.Sprintf("127.0.0.1:%d", bound.(*syscall.SockaddrInet4).Port), silent.Addr().String()
}

func (w *refusalWalk) gateway() {
	for range w.c.urls {
		w.do(call{op: "GET /dead", code: "bad_gateway"}, 502)
		w.do(call{op: "GET /hanging", code: "gateway_timeout"}, 504)
		w.do(call{op: "GET /dead", key: w.key.secret, code: "bad_gateway"}, 502)
	}
}

// call is a request of an operation that is refused before its body is looked at.
func (w *refusalWalk) call(op string) call {
	return w.operations[op].call(op, w.user.organization, w.user.userID, w.key.id)
}

// usedUp makes a call whose limit is used up, at another node than where it is.
func (w *refusalWalk) usedUp(k, spend call, policy string) {
	w.t.Helper()
	method, path := spend.path(w.t)
	for range 200 {
		res, err := send(w.c.urls[w.n%len(w.c.urls)], request{method: method, path: path, token: spend.token, key: spend.key, address: spend.from})
		w.n++
		if err != nil {
			w.t.Fatal(err)
		}
		if res.status == http.StatusTooManyRequests {
			break
		}
	}
	k.code, k.token, k.key, k.from = "rate_limit_exceeded", spend.token, spend.key, spend.from
	var p struct {
		RetryAfter int64    `json:"retry_after"`
		Violated   []string `json:"violated-policies"`
	}
	res := w.refuses(k, 429)
	if err := json.Unmarshal(res.body, &p); err != nil || res.status == 429 && (p.RetryAfter < 1 || fmt.Sprint(p.RetryAfter) != res.header.Get("Retry-After") || !slices.Contains(p.Violated, policy)) {
		w.t.Errorf("%s: %v with Retry-After %q, want one of %s", k.op, res, res.header.Get("Retry-After"), policy)
	}
}

// limited are the operations that have a limit.
func (w *refusalWalk) limited() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(w.operations)), func(op string) bool { return w.operations[op].Responses["429"] == nil })
}

// addressUsedUp: an address that is used up gets nothing more without a credential, or with one that nobody knows; one that
// is known is never refused for its address.
func (w *refusalWalk) addressUsedUp() {
	from := newAddress()
	spend := call{op: opMe, from: from}
	for _, op := range w.limited() {
		for tries := 0; tries < 6 && len(w.refused[op][429]) < 2; tries++ {
			if slices.Contains(documents, op) {
				w.usedUp(w.call(op), call{op: documents[0], from: from}, "documents")
			} else {
				w.usedUp(w.call(op), spend, "anonymous")
			}
		}
	}
	for _, bad := range []call{{op: opMe, key: "sk_live_0000000000000000000000000000000000000000"}, {op: opMe, token: "a.b.c"}} {
		w.usedUp(spend, spend, "anonymous")
		bad.from = from
		w.do(bad, 429)
	}
	w.usedUp(spend, spend, "anonymous")
	w.do(call{op: opMe, token: w.user.token, from: from}, 200)
	w.do(call{op: opMe, key: w.key.secret, from: from}, 200)
}

func (w *refusalWalk) keyUsedUp() {
	key := w.user.newKey(w.t, w.c.urls[2], 3, "*").secret
	for _, op := range w.limited() {
		if w.operations[op].takes("apiKey") {
			w.usedUp(w.call(op), call{op: opMe, key: key}, "api_key")
		}
	}
	w.do(call{op: opMe, key: w.key.secret}, 200) // another of the same organization
}

func (w *refusalWalk) userUsedUp() {
	for _, op := range w.limited() {
		if w.operations[op].takes("bearer") {
			w.usedUp(w.call(op), call{op: opMe, token: w.user.token}, "user")
		}
	}
	w.do(call{op: opMe, key: w.key.secret}, 200) // which has a limit of its own
}

// signInGuard: who guesses a password is slowed down wherever the guesses are made, and nobody else is.
func (w *refusalWalk) signInGuard() {
	a := register(w.t, w.c.urls[0])
	from := newAddress()
	change := func(password string, status int, code string) response {
		w.t.Helper()
		return w.do(call{op: opPassword, token: a.token, from: from, code: code, body: object{"current_password": password, "new_password": "nine lamps by the tide"}}, status)
	}
	for i := range 10 {
		change(fmt.Sprint("not the password ", i), 401, "invalid_credentials")
	}
	for range w.c.urls {
		res := change(a.password, 429, "rate_limit_exceeded")
		if !strings.Contains(string(res.body), `"sign_in"`) || res.header.Get("X-RateLimit-Remaining") == "0" || strings.Contains(res.header.Get("RateLimit"), "sign_in") {
			w.t.Errorf("the guard: %v, %q left of %q", res, res.header.Get("X-RateLimit-Remaining"), res.header.Get("RateLimit"))
		}
	}
	w.do(call{op: opLogin, body: object{"username": a.username, "password": a.password}}, 200) // the owner, from elsewhere
}

// signal sends a signal to a node's process.
func (c *cluster) signal(t *testing.T, node int, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(c.pid(t, node), s); err != nil {
		t.Fatalf("signal node%d: %v", node, err)
	}
}

// cutOff pauses all nodes but one: reads go on while its state is young enough, nothing is written, and then it vouches for
// nobody any more. What was refused has not happened, and happens once when the others are back.
func (w *refusalWalk) cutOff(survivor int) {
	w.t.Helper()
	w.only = survivor
	defer func() { w.only = 0 }()
	base := w.c.urls[survivor-1]
	a := register(w.t, base)
	key := a.newKey(w.t, base, 1_000_000, "*")
	byKey := request{path: "/api/v1/auth/me", key: key.secret, address: newAddress()}
	must(w.t, base, byKey, http.StatusOK)
	w.somebody()
	b := w.browser()
	query := b.begin("google", "")
	cookies := maps.Clone(b.cookies)

	resume := func() {
		for node := range w.c.urls {
			if node+1 != survivor {
				w.c.signal(w.t, node+1, syscall.SIGCONT)
			}
		}
	}
	w.t.Cleanup(resume) // also where the test ends early
	for node := range w.c.urls {
		if node+1 != survivor {
			w.c.signal(w.t, node+1, syscall.SIGSTOP)
		}
	}
	paused := time.Now()
	write := request{method: "POST", path: "/api/v1/organizations", token: a.token, address: newAddress(), body: object{"name": "Once"},
		header: map[string]string{"Idempotency-Key": unique("once")}}
	written := make(chan response, 1)
	go func() {
		res, err := send(base, write)
		if err != nil {
			w.t.Errorf("a write without a cluster: %v", err)
		}
		written <- res
	}()
	// Unknown here, and nobody there to ask: that is no 401.
	w.do(call{op: opMe, key: knownToNobody, code: "cluster_unavailable"}, 503)
	// Less than auth.max_staleness: the last probe may be half a second old, and a slow machine be late itself.
	reading, stop := context.WithDeadline(w.t.Context(), paused.Add(3*time.Second))
	defer stop()
	keepReading(reading, w.t, base, byKey)
	eventually(w.t, 8*time.Second, "the node vouches for nobody any more", func() error {
		res, err := send(base, byKey)
		if err == nil && res.status != http.StatusServiceUnavailable {
			err = fmt.Errorf("got %v", res)
		}
		return err
	})
	stale := time.Since(paused)
	if res := <-written; res.status != http.StatusServiceUnavailable || res.field(w.t, "code") != "cluster_unavailable" || res.header.Get("Retry-After") == "" {
		w.t.Errorf("a write without a cluster: %v", res)
	}
	w.do(call{op: "GET /livez"}, 200)
	if must(w.t, base, request{path: "/readyz"}, http.StatusServiceUnavailable); w.refused["GET /readyz"] == nil {
		w.refused["GET /readyz"] = map[int]map[int]bool{503: {}}
	}
	w.refused["GET /readyz"][503][survivor] = true
	retry := func(res response) {
		w.t.Helper()
		if res.header.Get("Retry-After") == "" {
			w.t.Errorf("a 503 without Retry-After: %v", res)
		}
	}
	for _, op := range slices.Sorted(maps.Keys(w.operations)) {
		k := w.call(op)
		k.code = "cluster_unavailable"
		if w.operations[op].takes("bearer") {
			k.token = a.token
			retry(w.refuses(k, 503))
		}
		if w.operations[op].takes("apiKey") {
			k.token, k.key = "", key.secret
			retry(w.refuses(k, 503))
		}
	}
	// What needs no credential goes on to the end of the window, and no further than that.
	eventually(w.t, 30*time.Second, "the node admits nobody any more", func() error {
		for _, path := range []string{"/api/v1/health", "/openapi.json"} {
			res, err := send(base, request{path: path, address: newAddress()})
			if err != nil {
				return err
			}
			if res.status != http.StatusServiceUnavailable {
				return fmt.Errorf("%s answers %d", path, res.status)
			}
		}
		return nil
	})
	shut := time.Since(paused)
	for _, op := range w.limited() {
		if !w.operations[op].needsCredential() {
			k := w.call(op)
			k.code = "cluster_unavailable"
			retry(w.refuses(k, 503))
		}
	}
	b.finish("google", query, 503, "cluster_unavailable")

	resume()
	resumed := time.Now()
	for node := range w.c.urls {
		w.c.waitReadyz(w.t, node+1, readyWithin)
	}
	w.t.Logf("node%d alone: shut for credentials after %v, for all after %v; back %v after the others",
		survivor, stale.Round(time.Millisecond), shut.Round(time.Millisecond), time.Since(resumed).Round(time.Millisecond))
	w.only = 0
	first := must(w.t, base, write, http.StatusCreated)
	again := must(w.t, w.c.urls[survivor%len(w.c.urls)], write, http.StatusCreated)
	if string(first.body) != string(again.body) {
		w.t.Errorf("repeated: %v and %v", first, again)
	}
	if list := w.do(call{op: "GET /api/v1/organizations", token: a.token}, 200); strings.Count(string(list.body), `"Once"`) != 1 {
		w.t.Errorf("it happened not once: %v", list)
	}
	// The sign-in that could not be finished was not spent either.
	b.cookies = cookies
	b.finish("google", query, 200, "")
}

// knownToNobody is a key of the right form with the right checksum.
const knownToNobody = "sk_live_000000000000000000000000000000002UYg5A"
