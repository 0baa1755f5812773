package systemtest

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// walk calls the operations of the OpenAPI document, each request at another node and from another address, and notes
// what was answered where.
type walk struct {
	t     *testing.T
	c     *cluster
	n     int
	only  int                     // the one node to ask, from 1; 0: each in turn
	seen  map[string]map[int]bool // statuses by operation
	nodes map[string]map[int]bool // nodes by operation
}

// call is one request of an operation: "GET /api/v1/organizations/{id}", whose names args stand for in order.
type call struct {
	op     string
	args   []string
	query  string
	body   any
	raw    string // a body as it is, with the type of content in header
	token  string
	key    string
	from   string // the client's address; "" for a new one
	header map[string]string
	code   string // of the problem; "" where there is none
}

func (k call) path(t *testing.T) (method, path string) {
	t.Helper()
	method, path, _ = strings.Cut(k.op, " ")
	args := k.args
	for strings.Contains(path, "{") {
		from, to := strings.IndexByte(path, '{'), strings.IndexByte(path, '}')
		if len(args) == 0 {
			t.Fatalf("%s: not enough arguments", k.op)
		}
		path, args = path[:from]+args[0]+path[to+1:], args[1:]
	}
	return method, path + k.query
}

// do makes a call at the next node, which has to be answered so.
func (w *walk) do(k call, status int) response {
	w.t.Helper()
	method, path := k.path(w.t)
	node := w.n % len(w.c.urls)
	if w.only > 0 {
		node = w.only - 1
	}
	w.n++
	r := request{method: method, path: path, body: k.body, raw: k.raw, token: k.token, key: k.key, address: k.from, header: k.header}
	if r.address == "" {
		r.address = newAddress()
	}
	res, err := send(w.c.urls[node], r)
	if err != nil {
		w.t.Fatalf("%s: %v", k.op, err)
	}
	if w.seen[k.op] == nil {
		w.seen[k.op], w.nodes[k.op] = map[int]bool{}, map[int]bool{}
	}
	w.seen[k.op][res.status], w.nodes[k.op][node] = true, true
	if res.status != status {
		w.t.Errorf("%s %s at node %d: %v, want %d %s", method, path, node+1, res, status, k.code)
		return res
	}
	w.checkAnswer(k, res)
	return res
}

// checkAnswer finds what every answer has.
func (w *walk) checkAnswer(k call, res response) {
	w.t.Helper()
	if !strings.HasSuffix(k.op, "z") { // /livez and /readyz are not limited
		if err := checkLimitHeaders(res); err != nil {
			w.t.Errorf("%s: %d: %v", k.op, res.status, err)
		}
		for _, name := range []string{"RateLimit", "RateLimit-Policy", "X-Content-Type-Options"} {
			if res.header.Get(name) == "" {
				w.t.Errorf("%s: %d has no %s", k.op, res.status, name)
			}
		}
	}
	if res.status < 400 {
		return
	}
	var p map[string]any
	if err := json.Unmarshal(res.body, &p); err != nil || res.header.Get("Content-Type") != "application/problem+json" {
		w.t.Errorf("%s: %v is no problem", k.op, res)
		return
	}
	for _, name := range []string{"type", "title", "detail", "code", "request_id"} {
		if text, ok := p[name].(string); !ok || text == "" {
			w.t.Errorf("%s: no %s in %v", k.op, name, res)
		}
	}
	if k.code != "" && p["code"] != k.code {
		w.t.Errorf("%s: %v, want the code %s", k.op, res, k.code)
	}
	if p["status"] != float64(res.status) || p["request_id"] != res.header.Get("X-Request-Id") {
		w.t.Errorf("%s: %v does not say its status and its request", k.op, res)
	}
	if res.status == http.StatusUnauthorized && res.header.Get("WWW-Authenticate") == "" {
		w.t.Errorf("%s: a 401 without a challenge", k.op)
	}
	if res.status == http.StatusUnprocessableEntity && p["code"] == "invalid_input" && p["errors"] == nil {
		w.t.Errorf("%s: %v names no field", k.op, res)
	}
}

// document is what the cluster serves of its operations.
func (w *walk) document() (operations map[string]operation) {
	w.t.Helper()
	var doc struct {
		Paths map[string]map[string]operation
	}
	if err := json.Unmarshal(w.do(call{op: "GET /openapi.json"}, 200).body, &doc); err != nil {
		w.t.Fatal(err)
	}
	operations = map[string]operation{}
	for path, item := range doc.Paths {
		for method, op := range item {
			operations[strings.ToUpper(method)+" "+path] = op
		}
	}
	return operations
}

type operation struct {
	Responses   map[string]json.RawMessage
	Security    []map[string]any
	RequestBody *struct {
		Required bool
		Content  map[string]json.RawMessage
	}
}

// call is a request of the operation op, with an empty body where it takes one.
func (o operation) call(op, organization, user, key string) call {
	k := call{op: op, args: []string{organization, user}}
	switch {
	case strings.Contains(op, "{provider}"):
		k.args = []string{"github"}
	case strings.Contains(op, "sessions/"):
		k.args = []string{"ses_none"}
	case strings.Contains(op, "/api-keys/{id}"):
		k.args = []string{key}
	case strings.Contains(op, "{path}"):
		k.args = []string{"api/v1/events/1"}
	}
	if o.RequestBody != nil {
		for content := range o.RequestBody.Content {
			k.raw, k.header = "{}", map[string]string{"Content-Type": content}
		}
	}
	return k
}

// takes says whether it knows a kind of credential: "bearer", "apiKey", "session".
func (o operation) takes(kind string) bool {
	return slices.ContainsFunc(o.Security, func(s map[string]any) bool { return s[kind] != nil })
}

// needsCredential says whether nobody may call it without one.
func (o operation) needsCredential() bool {
	return len(o.Security) > 0 && !slices.ContainsFunc(o.Security, func(s map[string]any) bool { return len(s) == 0 })
}

// place is an organization with a member of each role, one more to do things to, and keys.
type place struct {
	id, key string
	extra   account
	keys    map[string]string // secrets by scope
}

// people are the callers.
type people struct {
	byRole         map[string]account
	stranger, free account
	foreign        string // a stranger's key with every scope
	narrow         string // one with none that matters here
}

var roles = []string{"owner", "admin", "member", "viewer"}

func (w *walk) people() people {
	w.t.Helper()
	who := people{byRole: map[string]account{}, stranger: register(w.t, w.c.urls[0]), free: register(w.t, w.c.urls[1])}
	for i, role := range roles {
		who.byRole[role] = register(w.t, w.c.urls[i%len(w.c.urls)])
	}
	who.foreign = who.stranger.newKey(w.t, w.c.urls[1], 0, "*").secret
	who.narrow = who.stranger.newKey(w.t, w.c.urls[2], 0, "limits:check").secret
	return who
}

func (w *walk) place(who people) *place {
	w.t.Helper()
	owner := who.byRole["owner"].token
	p := &place{extra: who.free, keys: map[string]string{}}
	p.id = w.do(call{op: "POST /api/v1/organizations", token: owner, body: object{"name": "Team"}}, 201).field(w.t, "id")
	members := object{who.free.username: "viewer"}
	for _, role := range roles[1:] {
		members[who.byRole[role].username] = role
	}
	for name, role := range members {
		w.do(call{op: "POST /api/v1/organizations/{id}/members", args: []string{p.id}, token: owner, body: object{"username": name, "role": role}}, 201)
	}
	for _, scope := range []string{"api-keys:manage", "organizations:read", "organizations:manage", "audit-logs:read", "*", "events:read"} {
		res := w.do(call{op: "POST /api/v1/api-keys", token: owner, body: object{"name": scope, "organization_id": p.id, "scopes": []string{scope}}}, 201)
		p.keys[scope] = res.field(w.t, "key")
		if scope == "events:read" {
			p.key = res.field(w.t, "id")
		}
	}
	return p
}

type object = map[string]any

// organizationRow is an operation on an organization, and who may call it.
type organizationRow struct {
	op     string
	roles  string // first letters
	scope  string // of a key; "" for none
	good   int
	spends bool // a place is used up by it
	query  bool // the id stands in the query
	body   func(p *place) any
}

var organizationRows = []organizationRow{
	{op: "GET /api/v1/organizations/{id}", roles: "oamv", scope: "organizations:read", good: 200},
	{op: "PATCH /api/v1/organizations/{id}", roles: "oa", scope: "organizations:manage", good: 200, body: func(*place) any { return object{"name": "New"} }},
	{op: "DELETE /api/v1/organizations/{id}", roles: "o", good: 204, spends: true},
	{op: "POST /api/v1/organizations/{id}/transfer", roles: "o", good: 200, spends: true,
		body: func(p *place) any { return object{"user_id": p.extra.userID} }},
	{op: "GET /api/v1/organizations/{id}/members", roles: "oamv", scope: "organizations:read", good: 200},
	{op: "POST /api/v1/organizations/{id}/members", roles: "oa", scope: "organizations:manage", good: 409, // a member already
		body: func(p *place) any { return object{"user_id": p.extra.userID, "role": "viewer"} }},
	{op: "GET /api/v1/organizations/{id}/members/{user_id}", roles: "oamv", scope: "organizations:read", good: 200},
	{op: "PATCH /api/v1/organizations/{id}/members/{user_id}", roles: "oa", scope: "organizations:manage", good: 200,
		body: func(*place) any { return object{"role": "member"} }},
	{op: "DELETE /api/v1/organizations/{id}/members/{user_id}", roles: "oa", scope: "organizations:manage", good: 204, spends: true},
	{op: "GET /api/v1/organizations/{id}/api-keys/stats", roles: "oa", scope: "api-keys:manage", good: 200},
	{op: "POST /api/v1/api-keys", roles: "oa", scope: "api-keys:manage", good: 201,
		body: func(p *place) any {
			return object{"name": "k", "organization_id": p.id, "scopes": []string{"api-keys:manage"}}
		}},
	{op: "GET /api/v1/api-keys", roles: "oa", scope: "api-keys:manage", good: 200, query: true},
	{op: "GET /api/v1/api-keys/{id}", roles: "oa", scope: "api-keys:manage", good: 200},
	{op: "DELETE /api/v1/api-keys/{id}", roles: "oa", scope: "api-keys:manage", good: 204, spends: true},
	{op: "GET /api/v1/audit-logs", roles: "oa", scope: "audit-logs:read", good: 200, query: true},
}

// call is the row's request at a place.
func (r organizationRow) call(p *place) call {
	k := call{op: r.op, args: []string{p.id, p.extra.userID}}
	if strings.Contains(r.op, "/api-keys/{id}") {
		k.args = []string{p.key}
	}
	if r.query {
		k.query = "?organization_id=" + p.id
	}
	if r.body != nil {
		k.body = r.body(p)
	}
	return k
}

// TestContract calls every operation of the document: the good path, each answer that the document knows, and each role,
// with every request at another node than the one before.
func TestContract(t *testing.T) {
	c := startCluster(t, options{variables: []string{
		"SLUICE_LIMITS__USER__LIMIT=100000", "SLUICE_LIMITS__API_KEY__LIMIT=100000",
		"SLUICE_AUTH__COOKIE_SESSIONS=true", "SLUICE_CORS__ORIGINS=[\"" + webPage + "\"]",
		"SLUICE_PUBLIC_URL=http://sluice.example", "SLUICE_OAUTH__GITHUB__CLIENT_ID=client", "SLUICE_OAUTH__GITHUB__CLIENT_SECRET=secret",
	}})
	w := &walk{t: t, c: c, seen: map[string]map[int]bool{}, nodes: map[string]map[int]bool{}}
	operations := w.document()
	who := w.people()
	at := w.place(who)

	w.roles(who, at)
	w.accounts(who)
	w.organizations(who, at)
	w.keys(who, at)
	w.tokens(who, at)
	w.checks(who, at)
	w.providers(who)
	w.cookies(operations, at)
	w.documents()
	w.everywhere(operations, who, at)

	// What takes a provider is walked where there is one (TestContract_Providers). Whether a request meets its twin in flight is chance.
	elsewhere := map[string][]int{"GET /api/v1/auth/{provider}/callback": {200, 302, 403, 409}, "GET /readyz": {503},
		"DELETE /api/v1/auth/identities/{provider}": {204, 409}, "POST /api/v1/auth/exchange": {200, 403},
		"POST /api/v1/api-keys": {409}, "POST /api/v1/organizations": {409},
	}
	for _, op := range slices.Sorted(maps.Keys(operations)) {
		for status := range operations[op].Responses {
			n, err := strconv.Atoi(status)
			if err != nil {
				t.Errorf("%s answers %q", op, status)
			}
			// TestContract_Refusals has the limits and what takes a cluster that cannot decide.
			if !w.seen[op][n] && n != 429 && n < 500 && !slices.Contains(elsewhere[op], n) {
				t.Errorf("%s never answered %d", op, n)
			}
		}
		if len(w.nodes[op]) < 2 {
			t.Errorf("%s was called at %d nodes", op, len(w.nodes[op]))
		}
	}
	for op, statuses := range w.seen {
		for status := range statuses {
			if operations[op].Responses[strconv.Itoa(status)] == nil {
				t.Errorf("%s answered %d, which the document does not know", op, status)
			}
		}
	}
	t.Logf("%d requests", w.n)
}

// roles tries every row for every role, for keys, for strangers and for nobody.
func (w *walk) roles(who people, shared *place) {
	for _, row := range organizationRows {
		try := func(status int, caller func(p *place) (token, key string)) {
			w.t.Helper()
			p := shared
			if row.spends && status < 400 {
				p = w.place(who)
			}
			k := row.call(p)
			k.token, k.key = caller(p)
			w.do(k, status)
		}
		for _, role := range roles {
			status := 403
			if strings.Contains(row.roles, role[:1]) {
				status = row.good
			}
			try(status, func(*place) (string, string) { return who.byRole[role].token, "" })
		}
		for _, scope := range []string{"api-keys:manage", "organizations:read", "organizations:manage", "audit-logs:read", "*", "events:read"} {
			status := 403
			if row.scope != "" && (scope == "*" || scope == row.scope) {
				status = row.good
			}
			try(status, func(p *place) (string, string) { return "", p.keys[scope] })
		}
		try(404, func(*place) (string, string) { return who.stranger.token, "" })
		try(404, func(*place) (string, string) { return "", who.foreign })
		try(404, func(*place) (string, string) { return "", who.narrow })
		try(401, func(*place) (string, string) { return "", "" })
	}
}

// once repeats a call with an Idempotency-Key at other nodes: the same answer, and a 422 for another body.
func (w *walk) once(k call, status int, other any) response {
	w.t.Helper()
	k.header, k.from = map[string]string{"Idempotency-Key": unique("once")}, newAddress() // which is who nobody is
	first, second := w.do(k, status), w.do(k, status)
	if string(first.body) != string(second.body) || second.header.Get("Idempotency-Replayed") != "true" {
		w.t.Errorf("%s: %v, and repeated %v", k.op, first, second)
	}
	k.body, k.code = other, "idempotency_key_reused"
	w.do(k, 422)
	return first
}

// has finds the members of an answer.
func (w *walk) has(res response, names ...string) {
	w.t.Helper()
	var v object
	if err := json.Unmarshal(res.body, &v); err != nil {
		w.t.Errorf("%v: %v", res, err)
	}
	for _, name := range names {
		if _, ok := v[name]; !ok {
			w.t.Errorf("no %s in %v", name, res)
		}
	}
}

// everywhere tries every operation with what is wrong whatever the operation is.
func (w *walk) everywhere(operations map[string]operation, who people, at *place) {
	const wrongKey = "sk_live_0000000000000000000000000000000000000000"
	owner := who.byRole["owner"].token
	for _, op := range slices.Sorted(maps.Keys(operations)) {
		o := operations[op]
		if o.Responses["401"] == nil {
			continue // a document
		}
		k := o.call(op, at.id, at.extra.userID, at.key)
		with := func(change func(k *call)) call {
			k := k
			k.header = maps.Clone(k.header)
			if k.header == nil {
				k.header = map[string]string{}
			}
			change(&k)
			return k
		}
		w.do(with(func(k *call) { k.key, k.code = wrongKey, "invalid_credential" }), 401)
		w.do(with(func(k *call) { k.token, k.code = "a.b.c", "invalid_credential" }), 401)
		w.do(with(func(k *call) { k.token, k.key, k.code = owner, at.keys["*"], "invalid_request" }), 400)
		if o.needsCredential() {
			w.do(with(func(k *call) { k.code = "authentication_required" }), 401)
		}
		if o.takes("session") && !o.takes("apiKey") {
			w.do(with(func(k *call) { k.key, k.code = at.keys["*"], "forbidden" }), 403)
		}
		if o.RequestBody == nil {
			continue
		}
		caller := func(k *call) {
			switch {
			case op == "POST /oauth2/introspect", op == "POST /api/v1/limits/check", op == "POST /v1/GetRateLimits":
				k.key = at.keys["*"]
			case o.needsCredential():
				k.token = owner
			}
		}
		w.do(with(func(k *call) { caller(k); k.header["Content-Type"], k.code = "text/plain", "unsupported_media_type" }), 415)
		w.do(with(func(k *call) { caller(k); k.raw, k.code = `{"a":"`+strings.Repeat("x", 65<<10)+`"}`, "body_too_large" }), 413)
		if op != "POST /oauth2/introspect" && op != "POST /oauth2/revoke" {
			w.do(with(func(k *call) { caller(k); k.raw, k.code = `{"is_admin":true}`, "invalid_json" }), 400)
			w.do(with(func(k *call) { caller(k); k.raw, k.code = `{`, "invalid_json" }), 400)
		}
	}
	// The forward-auth check, whose requests say what they are about.
	for _, op := range []string{"GET /api/v1/auth/verify", "GET /api/v1/auth/verify/nginx", "GET /api/v1/auth/verify/envoy/{path}"} {
		described := map[string]string{"X-Forwarded-Method": "POST", "X-Forwarded-Uri": "/api/v1/events/1", "X-Original-Method": "GET", "X-Original-URL": "/api/v1/events/1"}
		for range w.c.urls {
			w.do(call{op: op, args: []string{"api/v1/events/1"}, header: described, token: owner}, 200)
			w.do(call{op: op, args: []string{"api/v1/events/1"}, header: described, key: who.narrow, code: "insufficient_scope"}, 403)
		}
	}
}
