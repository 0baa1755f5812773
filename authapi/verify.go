package authapi

import (
	"bytes"
	"net/http"

	"github.com/valyala/fasthttp"
)

// dialect is where a forward-auth check finds the description of the request that it is about. Each has an endpoint of
// its own, so that no client can choose.
type dialect uint8

const (
	dialectForwarded dialect = 1 // X-Forwarded-Method, -Uri, -Host
	dialectNginx     dialect = 2 // X-Original-Method, X-Original-URL
	dialectEnvoy     dialect = 3 // the check's own method, host and path
	dialectDescribed dialect = 4 // call.asked, which came over another protocol
)

const (
	verifyPath      = "/api/v1/auth/verify"
	verifyNginxPath = verifyPath + "/nginx"
	verifyEnvoyPath = verifyPath + "/envoy"
)

// verifyRoutes are the rows of the forward-auth check.
func verifyRoutes() []route {
	return []route{
		{method: "ANY", pattern: verifyPath, handle: handleVerify, verify: dialectForwarded},
		{method: "ANY", pattern: verifyNginxPath, handle: handleVerify, verify: dialectNginx},
		{method: "ANY", pattern: verifyEnvoyPath + "/*", handle: handleVerify, verify: dialectEnvoy},
	}
}

// envoyRest is the described path of a check in Envoy's dialect, ok where path is one.
func envoyRest(path []byte) (rest []byte, ok bool) {
	n := len(verifyEnvoyPath)
	if len(path) < n || string(path[:n]) != verifyEnvoyPath || len(path) > n && path[n] != '/' {
		return nil, false
	}
	return path[n:], true
}

// described is what a proxy says of the request that it asks about. Its bytes are the check's own.
type described struct {
	given             bool
	ambiguous         bool // a header line that should be one is several
	method, host, uri []byte
}

// describe reads the description in the route's dialect. From anybody but a trusted proxy there is none.
func (c *call) describe() (d described) {
	if c.route.verify == dialectDescribed {
		return described{given: true, method: []byte(c.asked.Method), host: []byte(c.asked.Host), uri: []byte(c.asked.Path)}
	}
	if !c.client.trusted {
		return d
	}
	h := &c.ctx.Request.Header
	switch c.route.verify {
	case dialectForwarded:
		d.method = c.one(h.PeekAll("X-Forwarded-Method"), &d)
		d.uri = c.one(h.PeekAll("X-Forwarded-Uri"), &d)
		d.given = len(d.method) > 0 || len(d.uri) > 0
		if d.given {
			d.host = c.one(h.PeekAll("X-Forwarded-Host"), &d)
		}
	case dialectNginx:
		d.method = c.one(h.PeekAll("X-Original-Method"), &d)
		d.uri = c.one(h.PeekAll("X-Original-Url"), &d)
		d.given = len(d.method) > 0 || len(d.uri) > 0
		if i := bytes.Index(d.uri, []byte("://")); i > 0 && d.uri[0] != '/' {
			d.host = d.uri[i+3:]
			d.uri = nil
			if j := bytes.IndexByte(d.host, '/'); j >= 0 {
				d.host, d.uri = d.host[:j], d.host[j:]
			}
		}
	case dialectEnvoy:
		d.given = true
		d.method, d.host = c.ctx.Method(), c.ctx.Request.Header.Host()
		d.uri, _ = envoyRest(c.ctx.Request.URI().PathOriginal())
		if len(d.uri) == 0 {
			d.uri = []byte("/")
		}
	}
	return d
}

// one takes the only line of a header. Several are a client's own beside the proxy's, and nobody can say which is which.
func (c *call) one(lines [][]byte, d *described) []byte {
	switch len(lines) {
	case 0:
		return nil
	case 1:
		return lines[0]
	}
	d.ambiguous, d.given = true, true
	return nil
}

// need is what a check asks of the credential.
type need struct {
	rule            *rule // nil: nothing
	denied          bool  // no route covers the described request
	refuseAnonymous bool
	cost            int64
}

// needOf finds what the described request needs; the query can only tighten it, since a client's own query may leak
// into the check.
func (c *call) needOf(d described) need {
	n := need{cost: 1}
	if d.given || d.ambiguous {
		path := d.uri
		if i := bytes.IndexByte(path, '?'); i >= 0 {
			path = path[:i]
		}
		switch {
		case d.ambiguous || !canonicalPath(path):
			n.denied = true
		default:
			if r := c.live.matcher.match(d.host, path); r != nil {
				n.rule = r.rule(d.method)
				n.denied = n.rule == nil
				c.target, c.open = r, n.rule != nil && n.rule.anonymous
			} else {
				n.denied = !c.srv.cfg.RoutesDefaultAllow
			}
		}
		if n.rule != nil {
			n.cost = n.rule.cost
		}
	}
	args := c.ctx.QueryArgs()
	n.refuseAnonymous = string(args.Peek("anonymous")) == "deny" || args.Has("scope")
	c.open = c.open && !n.refuseAnonymous
	if cost, err := fasthttp.ParseUint(args.Peek("cost")); err == nil && int64(cost) > n.cost {
		n.cost = min(int64(cost), maxCost)
	}
	return n
}

// verify is the whole of a check behind its route.
func (c *call) verify() error {
	n := c.needOf(c.describe())
	if err := c.authenticate(n.cost); err != nil {
		return err
	}
	if n.denied {
		return problem(http.StatusForbidden, "no_route", "no route covers this request")
	}
	if n.refuseAnonymous && c.principal.Method == MethodAnonymous {
		return errNoCredential()
	}
	if n.rule != nil {
		if err := c.permitRule(n.rule); err != nil {
			return err
		}
	}
	if args := c.ctx.QueryArgs(); args.Has("scope") {
		for key, scope := range args.All() {
			if string(key) == "scope" && !c.hasBytes(scope) {
				return problemScope(scope)
			}
		}
	}
	return c.route.handle(c)
}

// hasBytes is has for a scope out of a query.
func (c *call) hasBytes(scope []byte) bool { return len(scope) > 0 && c.has(string(scope)) }

// problemScope is errScope for a scope out of a query, which is shown only where it can stand in a header.
func problemScope(scope []byte) *Problem {
	if s := string(scope); scopeText(s) {
		return errScope(s)
	}
	return errScope("*")
}

// handleVerify answers a check that passed.
func handleVerify(c *call) error {
	h := &c.ctx.Response.Header
	c.ctx.SetStatusCode(http.StatusOK)
	h.SetContentLength(0) // for HEAD too, which fasthttp would leave without
	h.SetCanonical(headerCacheControl, valueNoStore)
	c.setIdentity(h)
	return nil
}
