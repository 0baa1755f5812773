package authapi

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Defaults of a Route.
const (
	DefaultRouteTimeout = 30 * time.Second
	DefaultRouteMaxBody = 1 << 20
)

// maxCost bounds what one request may spend, in units.
const maxCost = int64(1e12)

// matcher finds what a request to a configured route needs. It is immutable.
type matcher struct {
	// routes are in the order of trying: those of a host before those of any, and longer prefixes first.
	routes []*configured
}

// configured is a Route, checked and prepared.
type configured struct {
	name   string
	host   string // lower case; "" for any
	prefix string // without a trailing slash; "" for "/"
	strip  bool
	rules  []rule
	row    *route // how the log names it
	slot   int    // from 1, in the order of trying
	// The rest is of gateway routes alone.
	upstreams     *upstreams // nil: a rule of verify only
	idleTimeout   time.Duration
	maxBody       int64
	maxAnswer     int64 // 0: any
	webSocketIdle time.Duration
	maxWebSockets int // 0: none
	webSockets    *atomic.Int64
	cors          *cors // nil: the upstream answers for itself
}

// at is the slot of the route, 0 for no route.
func (r *configured) at() int {
	if r == nil {
		return 0
	}
	return r.slot
}

// rule is a RouteRule, prepared.
type rule struct {
	methods   []string
	all       bool
	scopes    []string
	text      string // scopes, joined
	anonymous bool
	cost      int64
}

// newMatcher checks and prepares routes.
func newMatcher(routes []Route) (*matcher, error) {
	m := &matcher{}
	var problems []error
	for i, r := range routes {
		c, err := prepareRoute(r)
		if err != nil {
			name := r.Name
			if name == "" {
				name = fmt.Sprintf("%d", i+1)
			}
			problems = append(problems, fmt.Errorf("route %s: %w", name, err))
			continue
		}
		m.routes = append(m.routes, c)
	}
	slices.SortStableFunc(m.routes, func(a, b *configured) int {
		if (a.host == "") != (b.host == "") {
			return cmp.Compare(len(b.host), len(a.host))
		}
		return cmp.Compare(len(b.prefix), len(a.prefix))
	})
	for i := range m.routes {
		m.routes[i].slot = i + 1
		for _, earlier := range m.routes[:i] {
			if earlier.host == m.routes[i].host && earlier.prefix == m.routes[i].prefix {
				problems = append(problems, fmt.Errorf("routes %s and %s have the same host and path", earlier.name, m.routes[i].name))
			}
		}
	}
	return m, errors.Join(problems...)
}

// close lets go of the idle connections to upstreams.
func (m *matcher) close() { m.closeBut(&matcher{}) }

// closeBut is close, without the upstreams that next goes on with. Requests under way may still end by m.
func (m *matcher) closeBut(next *matcher) {
	for _, r := range m.routes {
		if r.upstreams != nil && !slices.ContainsFunc(next.routes, func(n *configured) bool { return n.upstreams == r.upstreams }) {
			r.upstreams.close()
		}
	}
}

// takeUpstreams goes on with the connections, the health and the counts of upstreams of a route of last for the same host and path that
// has the same ones, and with the count of its WebSockets in any case.
func (m *matcher) takeUpstreams(last *matcher) {
	for _, r := range m.routes {
		for _, old := range last.routes {
			if r.upstreams == nil || old.upstreams == nil || old.host != r.host || old.prefix != r.prefix {
				continue
			}
			r.webSockets = old.webSockets
			if old.upstreams.same(r.upstreams) {
				r.upstreams = old.upstreams
			}
		}
	}
}

func prepareRoute(r Route) (*configured, error) {
	c := &configured{
		name: cmp.Or(r.Name, r.PathPrefix), host: strings.ToLower(r.Host), prefix: strings.TrimSuffix(r.PathPrefix, "/"),
		strip: r.StripPrefix,
	}
	if !canonicalPath([]byte(r.PathPrefix)) {
		return nil, fmt.Errorf("path %q is not an absolute path in canonical form", r.PathPrefix)
	}
	for _, n := range []int64{
		int64(r.ConnectTimeout), int64(r.Timeout), int64(r.IdleTimeout), r.MaxBodyBytes, r.MaxAnswerBytes, int64(r.MaxRequests),
		int64(r.MaxFails), int64(r.EjectTime), int64(r.WebSocketIdleTimeout), int64(r.MaxWebSockets),
	} {
		if n < 0 {
			return nil, errors.New("timeouts and limits must not be negative")
		}
	}
	rules := r.Rules
	if len(rules) == 0 {
		rules = []RouteRule{{Methods: []string{"*"}}}
	}
	for _, rr := range rules {
		p := rule{scopes: rr.Scopes, text: strings.Join(rr.Scopes, " "), anonymous: rr.Anonymous, cost: max(rr.Cost, 1)}
		if rr.Cost < 0 || rr.Cost > maxCost {
			return nil, fmt.Errorf("cost %d is not between 1 and %d", rr.Cost, maxCost)
		}
		if len(rr.Methods) == 0 {
			return nil, errors.New("a rule names no methods")
		}
		for _, s := range rr.Scopes {
			if !scopeText(s) {
				return nil, fmt.Errorf("scope %q is not <resource>:<action>", s)
			}
		}
		for _, name := range rr.Methods {
			if name == "*" {
				p.all = true
			} else {
				p.methods = append(p.methods, strings.ToUpper(name))
			}
		}
		c.rules = append(c.rules, p)
	}
	c.row = &route{method: "ANY", pattern: "route " + c.name, handle: handleGateway}
	if r.Upstream != "" || len(r.Upstreams) > 0 {
		if err := c.prepareGateway(&r); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// prepareGateway checks and prepares what only a route with upstreams has.
func (r *configured) prepareGateway(from *Route) error {
	timeout := from.Timeout
	setDefault(&timeout, DefaultRouteTimeout)
	r.idleTimeout, r.maxBody, r.maxAnswer = from.IdleTimeout, from.MaxBodyBytes, from.MaxAnswerBytes
	setDefault(&r.idleTimeout, timeout)
	setDefault(&r.maxBody, DefaultRouteMaxBody)
	r.webSockets = new(atomic.Int64)
	if from.WebSocket {
		r.webSocketIdle, r.maxWebSockets = from.WebSocketIdleTimeout, from.MaxWebSockets
		setDefault(&r.webSocketIdle, DefaultRouteWebSocketIdle)
		setDefault(&r.maxWebSockets, DefaultRouteMaxWebSockets)
	}
	if from.CORS != nil {
		r.cors = newRouteCORS(*from.CORS, r)
	}
	var err error
	r.upstreams, err = newUpstreams(from)
	return err
}

// scopeText says whether s can be a scope at all: printable ASCII that needs no quoting in a header, with a colon.
func scopeText(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f || s[i] == '"' || s[i] == '\\' {
			return false
		}
	}
	return s == "*" || strings.IndexByte(s, ':') > 0
}

// match finds the route of a canonical path, nil where there is none. host may have a port.
func (m *matcher) match(host, path []byte) *configured {
	host = hostOnly(host)
	for _, r := range m.routes {
		if r.host != "" && !equalFold(host, r.host) {
			continue
		}
		n := len(r.prefix)
		if len(path) >= n && string(path[:n]) == r.prefix && (len(path) == n || path[n] == '/') {
			return r
		}
	}
	return nil
}

// rule finds what a method needs, nil where no rule covers it. HEAD is GET unless a rule names it.
func (r *configured) rule(method []byte) *rule {
	head := string(method) == http.MethodHead
	for i := range r.rules {
		p := &r.rules[i]
		if p.all {
			return p
		}
		for _, name := range p.methods {
			if name == string(method) || head && name == http.MethodGet {
				return p
			}
		}
	}
	return nil
}

// allow lists the methods that the rules name, for a 405.
func (r *configured) allow() string {
	var names []string
	for _, p := range r.rules {
		for _, name := range p.methods {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
			if name == http.MethodGet && !slices.Contains(names, http.MethodHead) {
				names = append(names, http.MethodHead)
			}
		}
	}
	return strings.Join(names, ", ")
}

// hostOnly drops a port and a trailing dot.
func hostOnly(host []byte) []byte {
	if i := bytes.LastIndexByte(host, ':'); i >= 0 && bytes.IndexByte(host[i:], ']') < 0 {
		if bytes.IndexByte(host[:i], ':') < 0 || host[i-1] == ']' {
			host = host[:i]
		}
	}
	if n := len(host); n > 0 && host[n-1] == '.' {
		host = host[:n-1]
	}
	return host
}

// equalFold compares with lower, which is in lower case.
func equalFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}
