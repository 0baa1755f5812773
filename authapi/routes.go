package authapi

import "slices"

// authNeed is who may call a route at all.
type authNeed uint8

const (
	// authNone: anyone. A credential that is present must still be good.
	authNone authNeed = 0
	// authAny: a JWT or a key that has the route's scope.
	authAny authNeed = 1
	// authJWT: a signed-in user.
	authJWT authNeed = 2
	// authKey: a key that has the route's scope.
	authKey authNeed = 3
)

// layer is which limit a route's requests spend from.
type layer uint8

const (
	// layerCaller: the caller's own: the address, the key or the user.
	layerCaller layer = 0 //nolint:unused // rows leave it out
	// layerDocuments: public documents, by address under a policy of their own; credentials are not looked at.
	layerDocuments layer = 1
	// layerNone: not limited, and without limit headers.
	layerNone layer = 2
)

// route is one row of the API: what a method on a path does and needs.
//
// A pattern is a path whose segments are literals or "{name}"; a last segment "*" takes the rest of the path, which may
// be empty. Literals win over names. A route for GET answers HEAD too.
type route struct {
	method  string // "ANY" for all
	pattern string
	handle  handler
	auth    authNeed
	scope   string // what a key needs; "" for nothing. A JWT's role is looked at by the handler.
	cost    int64  // units; 0 means 1
	layer   layer
	// verify marks the forward-auth checks, whose cost and needs come from the request that they describe.
	verify dialect
	// oauth marks the endpoints of OAuth, whose errors have its `error` member beside our own.
	oauth bool
	// lean marks a handler that uses neither requestID nor clientIP nor params, which then are not made.
	lean bool
	// stats count the route's requests; nil: they are counted elsewhere.
	stats *routeStats
}

// routeTable is every route that Sluice itself answers.
func (s *Server) routeTable() []route {
	return slices.Concat(s.edgeRoutes(), checkRoutes(), gubernatorRoutes(), s.accountRoutes(), organizationRoutes(), s.oauthTokenRoutes(), oauthRoutes())
}

// edgeRoutes are the rows of this half: checks of health, documents, and the forward-auth check.
func (s *Server) edgeRoutes() []route {
	return append(verifyRoutes(), []route{
		{method: "GET", pattern: "/livez", handle: handleLivez, layer: layerNone},
		{method: "GET", pattern: "/readyz", handle: handleReadyz, layer: layerNone},
		{method: "GET", pattern: "/api/v1/health", handle: handleHealth},
		{method: "GET", pattern: "/openapi.json", handle: handleOpenAPI, layer: layerDocuments},
	}...)
}

// maxParams is how many "{name}" segments a pattern may have: len(call.params).
const maxParams = 4

// node is one segment of the tree that paths are looked up in. Building it is the only write.
type node struct {
	literal map[string]*node
	param   *node
	rest    *endpoint // "*"
	end     *endpoint
}

// endpoint is what one pattern answers, by method.
type endpoint struct {
	pattern string
	any     *route
	methods []methodRoute
	allow   string // the Allow header of a 405
}

type methodRoute struct {
	method string
	route  *route
}

// buildRouter makes the tree. It panics on a table that contradicts itself, which a test would find.
func buildRouter(routes []route) *node {
	root := &node{}
	for i := range routes {
		root.add(&routes[i])
	}
	return root
}

func (n *node) add(r *route) {
	rest, params := r.pattern, 0
	for rest != "" {
		rest = rest[1:] // the slash
		seg := rest
		for i := range len(rest) {
			if rest[i] == '/' {
				seg = rest[:i]
				break
			}
		}
		rest = rest[len(seg):]
		switch {
		case seg == "*":
			if n.rest == nil {
				n.rest = &endpoint{pattern: r.pattern}
			}
			n.rest.put(r)
			return
		case seg != "" && seg[0] == '{':
			if params++; params > maxParams {
				panic("authapi: too many parameters in " + r.pattern)
			}
			if n.param == nil {
				n.param = &node{}
			}
			n = n.param
		default:
			next := n.literal[seg]
			if next == nil {
				next = &node{}
				if n.literal == nil {
					n.literal = map[string]*node{}
				}
				n.literal[seg] = next
			}
			n = next
		}
	}
	if n.end == nil {
		n.end = &endpoint{pattern: r.pattern}
	}
	n.end.put(r)
}

func (e *endpoint) put(r *route) {
	if r.method == "ANY" {
		if e.any != nil {
			panic("authapi: two routes for " + r.pattern)
		}
		e.any = r
		return
	}
	for _, m := range e.methods {
		if m.method == r.method {
			panic("authapi: two routes for " + r.method + " " + r.pattern)
		}
	}
	e.methods = append(e.methods, methodRoute{r.method, r})
	if e.allow != "" {
		e.allow += ", "
	}
	e.allow += r.method
	if r.method == "GET" {
		e.allow += ", HEAD"
	}
}

// pick finds the route for a method, nil where the endpoint has none.
func (e *endpoint) pick(method []byte) *route {
	for i := range e.methods {
		m := e.methods[i].method
		if string(method) == m || m == "GET" && string(method) == "HEAD" {
			return e.methods[i].route
		}
	}
	return e.any
}

// find looks path up. params receives the values of the named segments, as parts of path.
func (n *node) find(path []byte, params *[maxParams][]byte) *endpoint {
	used := 0
	for len(path) > 0 {
		path = path[1:]
		end := len(path)
		for i, c := range path {
			if c == '/' {
				end = i
				break
			}
		}
		seg := path[:end]
		switch next := n.literal[string(seg)]; {
		case next != nil:
			n = next
		case n.param != nil && len(seg) > 0:
			params[used] = seg
			used++
			n = n.param
		default:
			return n.rest
		}
		path = path[end:]
	}
	if n.end == nil {
		return n.rest
	}
	return n.end
}
