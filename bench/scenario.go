package bench

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync/atomic"
)

// Scenario is a kind of requests.
type Scenario struct {
	Name     string
	Describe string
	needs    needs
	// make gives what one worker sends. m is what preparing has made.
	make func(l *Load, m *material, random *rand.Rand) operation
}

// needs are what a scenario has to have prepared.
type needs struct {
	tokens, accounts, keys bool
	manyKeys               bool // as many API keys as there are keys; else a few
	organization           bool // that of the keys
	addresses              bool // by default from many
	scope                  string
}

// operation renders the requests of one worker and judges their answers.
type operation struct {
	// render appends a request; host is the target's.
	render func(b []byte, host string) []byte
	// judge says what an answer means; nil: by its status, any of 2xx being admitted.
	judge func(a answer) outcome
	// keep looks at an admitted answer's body, for what has to be taken away again.
	keep func(body []byte)
}

// outcome is what became of one request: admitted, refused by a limit, or a failure with its kind.
type outcome struct {
	refused bool
	kind    string
	err     error // of a failure without an answer
	status  int
}

func (o outcome) example() string {
	if o.err != nil {
		return o.err.Error()
	}
	return ""
}

// Mixed is the name of the scenario that is several others by weight.
const Mixed = "mixed"

// Scenarios are all there are but Mixed.
func Scenarios() []Scenario {
	return []Scenario{
		{Name: "verify-jwt", Describe: "the forward-auth check with access tokens", needs: needs{tokens: true}, make: verifyJWT},
		{Name: "verify-key", Describe: "the forward-auth check with API keys", needs: needs{keys: true, manyKeys: true, scope: "events:read"}, make: verifyKey},
		{Name: "verify-anonymous", Describe: "the forward-auth check without a credential", needs: needs{addresses: true}, make: verifyAnonymous},
		{Name: "limits-check", Describe: "the check API, one check a request", needs: needs{keys: true, scope: "limits:check"}, make: limitsCheck},
		{Name: "login", Describe: "sign-in with a password", needs: needs{accounts: true, addresses: true}, make: login},
		{Name: "register", Describe: "new accounts", needs: needs{addresses: true}, make: register},
		{Name: "create-key", Describe: "new API keys", needs: needs{keys: true, organization: true, scope: "events:read"}, make: createKey},
		{Name: "gateway", Describe: "a route to an upstream, with API keys", needs: needs{keys: true, manyKeys: true, scope: "triggers:read"}, make: gateway},
	}
}

func scenarioNames() []string {
	var names []string
	for _, s := range Scenarios() {
		names = append(names, s.Name)
	}
	return names
}

func findScenario(name string) (Scenario, bool) {
	all := Scenarios()
	i := slices.IndexFunc(all, func(s Scenario) bool { return s.Name == name })
	if i < 0 {
		return Scenario{}, false
	}
	return all[i], true
}

// writer renders requests into a buffer from prepared parts.
type writer struct {
	first       string // request line, up to the Host header's value
	addresses   func(b []byte) []byte
	choose      chooser
	header      string   // line that the credential ends
	credentials []string // shared by all workers
}

func (l *Load) writer(method, path string, credentials []string, name string, random *rand.Rand) *writer {
	return &writer{
		first: method + " " + path + " HTTP/1.1\r\nHost: ", addresses: l.addresses(random), header: "\r\n" + name, credentials: credentials,
		choose: newChooser(len(credentials), l.Distribution, l.ZipfExponent, random),
	}
}

// head appends everything up to the last header, without its end.
func (w *writer) head(b []byte, host string) []byte {
	b = append(append(b, w.first...), host...)
	if len(w.credentials) > 0 {
		b = append(append(b, w.header...), w.credentials[w.choose()]...)
	}
	return w.addresses(b)
}

func (w *writer) bodyless(b []byte, host string) []byte {
	return append(w.head(b, host), "\r\n\r\n"...)
}

// withBody appends the rest of a request whose body is made by what it gets.
func (w *writer) withBody(b []byte, host string, body []byte) []byte {
	b = append(w.head(b, host), "\r\nContent-Type: application/json\r\nContent-Length: "...)
	b = append(strconv.AppendInt(b, int64(len(body)), 10), "\r\n\r\n"...)
	return append(b, body...)
}

// Addresses are of 240.0.0.0/4, which no client has (RFC 1112, section 4), and begin at a place of the run's own, so that
// the next run finds limits untouched.
const addressSpace = 1 << 28

// addresses appends X-Forwarded-For with one of the run's addresses, or nothing where there are none.
func (l *Load) addresses(random *rand.Rand) func(b []byte) []byte {
	if l.Addresses == 0 {
		return func(b []byte) []byte { return b }
	}
	choose := newChooser(l.Addresses, l.Distribution, l.ZipfExponent, random)
	return func(b []byte) []byte {
		return appendAddress(append(b, "\r\nX-Forwarded-For: "...), l.address(choose()))
	}
}

// address is the i-th of the run.
func (l *Load) address(i int) uint32 {
	return 240<<24 + uint32((l.Seed%addressSpace+uint64(i))%(addressSpace-1))
}

func appendAddress(b []byte, a uint32) []byte {
	for shift := 24; shift >= 0; shift -= 8 {
		b = strconv.AppendUint(b, uint64(a>>shift&0xff), 10)
		if shift > 0 {
			b = append(b, '.')
		}
	}
	return b
}

func verifyJWT(l *Load, m *material, random *rand.Rand) operation {
	w := l.writer("GET", verifyPath, m.tokens, "Authorization: Bearer ", random)
	return operation{render: w.bodyless}
}

func verifyKey(l *Load, m *material, random *rand.Rand) operation {
	w := l.writer("GET", verifyPath, m.keys, "X-API-Key: ", random)
	return operation{render: w.bodyless}
}

func verifyAnonymous(l *Load, _ *material, random *rand.Rand) operation {
	w := l.writer("GET", verifyPath, nil, "", random)
	return operation{render: w.bodyless}
}

func gateway(l *Load, m *material, random *rand.Rand) operation {
	w := l.writer("GET", l.Path, m.keys, "X-API-Key: ", random)
	return operation{render: w.bodyless}
}

// limitsCheck asks about as many keys of the caller's own as there are API keys, chosen apart from these.
func limitsCheck(l *Load, m *material, random *rand.Rand) operation {
	check := l.Check
	if check == nil {
		check = &CheckRequest{
			Path: "/api/v1/limits/check", Head: fmt.Sprintf(`{"key":"%s-`, m.prefix), Tail: fmt.Sprintf(`","limit":%d,"window_seconds":%d}`, l.Limit, l.Window),
			Refused: `"allowed":false`,
		}
	}
	w := l.writer("POST", check.Path, m.keys, "X-API-Key: ", random)
	choose := newChooser(l.Keys, l.Distribution, l.ZipfExponent, random)
	refused := []byte(check.Refused)
	var body []byte
	return operation{
		render: func(b []byte, host string) []byte {
			body = strconv.AppendInt(append(body[:0], check.Head...), int64(choose()), 10)
			body = append(body, check.Tail...)
			return w.withBody(b, host, body)
		},
		judge: func(a answer) outcome {
			o := byStatus(a)
			o.refused = o.refused || bytes.Contains(a.body, refused)
			return o
		},
	}
}

func login(l *Load, m *material, random *rand.Rand) operation {
	w := l.writer("POST", "/api/v1/auth/login", nil, "", random)
	choose := newChooser(len(m.signIns), l.Distribution, l.ZipfExponent, random)
	return operation{render: func(b []byte, host string) []byte { return w.withBody(b, host, m.signIns[choose()].credentials) }}
}

func register(l *Load, m *material, random *rand.Rand) operation {
	w := l.writer("POST", "/api/v1/auth/register", nil, "", random)
	var body []byte
	return operation{
		render: func(b []byte, host string) []byte {
			n := m.registered.Add(1)
			body = append(append(body[:0], `{"username":"`...), m.prefix...)
			body = append(strconv.AppendInt(body, n, 10), `","email":"`...)
			body = append(append(body, m.prefix...), '.')
			body = append(strconv.AppendInt(body, n, 10), `@bench.example","password":"`...)
			body = append(append(body, m.password...), `"}`...)
			return w.withBody(b, host, body)
		},
		keep: func(body []byte) { m.newAccounts.keep(body, `"token":"`) },
	}
}

// createKey makes keys that end within a day, should nobody take them away.
func createKey(l *Load, m *material, random *rand.Rand) operation {
	w := l.writer("POST", "/api/v1/api-keys", m.managers, "X-API-Key: ", random)
	body := fmt.Appendf(nil, `{"name":"bench run","organization_id":%q,"scopes":["events:read"],"environment":"test","expires_at":%q}`, m.organization, m.expires)
	return operation{
		render: func(b []byte, host string) []byte { return w.withBody(b, host, body) },
		keep:   func(body []byte) { m.newKeys.keep(body, `"id":"`) },
	}
}

// byStatus is what an answer means whose body tells nothing.
func byStatus(a answer) outcome {
	switch {
	case a.status >= 200 && a.status < 300:
		return outcome{status: a.status}
	case a.status == 429:
		return outcome{status: a.status, refused: true}
	}
	return outcome{status: a.status, kind: "status " + strconv.Itoa(a.status)}
}

// harvest is what the measured requests have made, for cleaning up. It is safe for concurrent use.
type harvest struct {
	list    chan string
	dropped atomic.Int64
}

// harvestSize is how much of what a run makes can be taken away one by one.
const harvestSize = 50_000

func newHarvest() *harvest { return &harvest{list: make(chan string, harvestSize)} }

// keep notes the text behind mark.
func (h *harvest) keep(body []byte, mark string) {
	_, rest, found := bytes.Cut(body, []byte(mark))
	text, _, ended := bytes.Cut(rest, []byte(`"`))
	if !found || !ended {
		h.dropped.Add(1)
		return
	}
	select {
	case h.list <- string(text):
	default:
		h.dropped.Add(1)
	}
}
