package node

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"sluice/authapi"
)

// ownPaths belong to the API itself, which comes before the routes: a gateway route there would never be reached.
var ownPaths = []string{
	"/api/v1/auth", "/api/v1/organizations", "/api/v1/api-keys", "/api/v1/audit-logs", "/api/v1/limits", "/api/v1/health",
	"/oauth2", "/.well-known/jwks.json", "/.well-known/oauth-authorization-server", "/livez", "/readyz", "/openapi.json", "/console", "/v1/GetRateLimits",
}

// below reports whether p is prefix or in it, by whole segments.
func below(p, prefix string) bool {
	rest, ok := strings.CutPrefix(p, prefix)
	return ok && (rest == "" || rest[0] == '/' || strings.HasSuffix(prefix, "/"))
}

// identityHeaders looks at the names in effect: two of them may be alike by one setting and one of the preset.
func (v *validator) identityHeaders() {
	c := v.c.IdentityHeaders
	v.oneOf("identity_headers.preset", c.Preset, "x-auth", "x-auth-request", "remote")
	if _, ok := authapi.IdentityPreset(c.Preset); !ok {
		return
	}
	h := c.names()
	seen := make(map[string]string)
	for _, name := range []struct{ key, value string }{{"method", h.Method}, {"user", h.User}, {"organization", h.Organization}, {"key", h.Key}, {"scopes", h.Scopes}} {
		key, lower := "identity_headers."+name.key, strings.ToLower(name.value)
		if problem := authapi.IdentityHeaderProblem(name.value); problem != "" {
			v.fail(key, "%s, not %s", problem, quote(name.value))
		} else if first, twice := seen[lower]; twice {
			v.fail(key, "%s is the name of %s as well", name.value, v.also(first))
		}
		seen[lower] = key
	}
}

const (
	maxRouteTimeout   = Duration(time.Hour)
	maxRouteBodyBytes = 1 << 40
	maxRouteCost      = 1_000_000
	maxRouteAtOnce    = 1 << 20
	maxRouteUpstreams = 64
	maxRouteRetries   = 5
	maxRouteFails     = 1000
)

// gateway checks what a route says of its upstreams.
func (v *validator) gateway(key string, r *RouteConfig) {
	if !r.gateway() {
		for _, said := range []struct {
			name string
			set  bool
		}{
			{"upstream_ca_file", r.UpstreamCAFile != ""}, {"strip_prefix", r.StripPrefix}, {"max_answer_bytes", r.MaxAnswerBytes > 0},
			{"websocket", r.WebSocket}, {"cors.origins", len(r.CORS.Origins) > 0},
		} {
			if said.set {
				v.fail(key+"."+said.name, "means nothing without upstream")
			}
		}
	}
	v.upstreams(key, r)
	v.between(key+".connect_timeout", r.ConnectTimeout, Duration(time.Millisecond), maxRouteTimeout)
	v.between(key+".timeout", r.Timeout, Duration(time.Millisecond), maxRouteTimeout)
	v.between(key+".idle_timeout", r.IdleTimeout, Duration(time.Millisecond), 24*maxRouteTimeout)
	v.count(key+".max_body_bytes", r.MaxBodyBytes, 1, maxRouteBodyBytes)
	v.count(key+".max_answer_bytes", r.MaxAnswerBytes, 0, maxRouteBodyBytes)
	v.count(key+".max_requests", int64(r.MaxRequests), 1, maxRouteAtOnce)
	v.count(key+".retries", int64(r.Retries), 0, maxRouteRetries)
	v.count(key+".max_fails", int64(r.MaxFails), 1, maxRouteFails)
	v.between(key+".eject_time", r.EjectTime, Duration(time.Millisecond), maxRouteTimeout)
	v.between(key+".websocket_idle_timeout", r.WebSocketIdle, Duration(time.Second), 24*maxRouteTimeout)
	v.count(key+".max_websockets", int64(r.MaxWebSockets), 1, maxRouteAtOnce)
	if len(r.CORS.Origins) == 0 && (len(r.CORS.Headers) > 0 || len(r.CORS.Expose) > 0 || r.CORS.Credentials) {
		v.fail(key+".cors.origins", "is empty, so that the rest of cors means nothing")
	}
	for i, origin := range r.CORS.Origins {
		if problem := originProblem(origin); problem != "" {
			v.fail(fmt.Sprintf("%s.cors.origins[%d]", key, i), "%s", problem)
		}
	}
	for name, list := range map[string][]string{"headers": r.CORS.Headers, "expose": r.CORS.Expose} {
		for i, header := range list {
			if !headerName.MatchString(header) {
				v.fail(fmt.Sprintf("%s.cors.%s[%d]", key, name, i), "want a header's name, not %s", quote(header))
			}
		}
	}
	v.between(key+".cors.max_age", r.CORS.MaxAge, 0, day)
}

var headerName = regexp.MustCompile(`^[A-Za-z0-9!#$%&'*+.^_|~-]{1,128}$`)

// upstreams checks where a route's requests go.
func (v *validator) upstreams(key string, r *RouteConfig) {
	if r.Upstream != "" && len(r.Upstreams) > 0 {
		v.fail(key+".upstreams", "is set, and %s as well: put them all into upstreams", v.also(key+".upstream"))
	}
	v.count(key+".upstreams", int64(len(r.Upstreams)), 0, maxRouteUpstreams)
	secure := false
	one := func(at, text string) {
		problem := urlProblem(text, false)
		if u, err := url.Parse(text); err == nil {
			secure = secure || u.Scheme == "https"
			if p := strings.TrimSuffix(u.EscapedPath(), "/"); problem == "" && p != "" && (path.Clean(p) != p || strings.ContainsAny(p, "%;\\")) {
				problem = fmt.Sprintf("want a plain path or none in %s", quote(text))
			}
		}
		if problem != "" {
			v.fail(at, "%s", problem)
		}
	}
	if r.Upstream != "" {
		one(key+".upstream", r.Upstream)
	}
	for i, text := range r.Upstreams {
		at := fmt.Sprintf("%s.upstreams[%d]", key, i)
		one(at, text)
		if slices.Index(r.Upstreams, text) < i {
			v.fail(at, "%s is in the list twice", quote(text))
		}
	}
	if r.UpstreamCAFile == "" {
		return
	}
	if _, err := loadAuthorities(r.UpstreamCAFile); err != nil {
		v.fail(key+".upstream_ca_file", "%v", err)
	} else if r.gateway() && !secure {
		v.fail(key+".upstream_ca_file", "means nothing without an https upstream")
	}
}

// loadAuthorities reads the certificates that vouch for upstreams.
func loadAuthorities(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err // says which file
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", file)
	}
	return pool, nil
}

// apiRoutes maps the routes, but for their authorities.
func (c *Config) apiRoutes() []authapi.Route {
	routes := make([]authapi.Route, 0, len(c.Routes))
	for _, r := range c.Routes {
		route := authapi.Route{
			Name: r.Name, Host: r.Host, PathPrefix: r.Path, Upstream: r.Upstream, Upstreams: slices.Clone(r.Upstreams), StripPrefix: r.StripPrefix,
			ConnectTimeout: time.Duration(r.ConnectTimeout), Timeout: time.Duration(r.Timeout), IdleTimeout: time.Duration(r.IdleTimeout),
			MaxBodyBytes: r.MaxBodyBytes, MaxAnswerBytes: r.MaxAnswerBytes, MaxRequests: r.MaxRequests, Retries: r.Retries,
			MaxFails: r.MaxFails, EjectTime: time.Duration(r.EjectTime),
			WebSocket: r.WebSocket, WebSocketIdleTimeout: time.Duration(r.WebSocketIdle), MaxWebSockets: r.MaxWebSockets,
		}
		if r.Retries == 0 {
			route.Retries = -1
		}
		if len(r.CORS.Origins) > 0 {
			route.CORS = &authapi.RouteCORS{
				CORSConfig: authapi.CORSConfig{Origins: slices.Clone(r.CORS.Origins), MaxAge: time.Duration(r.CORS.MaxAge)},
				Headers:    slices.Clone(r.CORS.Headers), Expose: slices.Clone(r.CORS.Expose), Credentials: r.CORS.Credentials,
			}
		}
		for _, rule := range r.Rules {
			route.Rules = append(route.Rules, authapi.RouteRule{
				Methods: slices.Clone(rule.Methods), Scopes: slices.Clone(rule.Scopes), Anonymous: rule.Anonymous, Cost: rule.Cost,
			})
		}
		routes = append(routes, route)
	}
	return routes
}

// trustedRoutes are apiRoutes with the authorities that their files name.
func (c *Config) trustedRoutes() ([]authapi.Route, error) {
	routes := c.apiRoutes()
	for i, r := range c.Routes {
		if r.UpstreamCAFile == "" {
			continue
		}
		pool, err := loadAuthorities(r.UpstreamCAFile)
		if err != nil {
			return nil, fmt.Errorf("routes[%d].upstream_ca_file: %w", i, err)
		}
		routes[i].UpstreamCA = pool
	}
	return routes, nil
}

func (v *validator) route(i int) {
	r := v.c.Routes[i]
	key := fmt.Sprintf("routes[%d]", i)
	switch {
	case r.Path == "":
		v.fail(key+".path", "is missing")
	case !strings.HasPrefix(r.Path, "/") || path.Clean(r.Path) != r.Path || strings.ContainsAny(r.Path, "?#%;\\ *"):
		v.fail(key+".path", "want a plain path as in \"/api/v1/triggers\", without a slash at its end, not %s", quote(r.Path))
	case r.gateway():
		for _, own := range ownPaths {
			if below(r.Path, own) {
				v.fail(key+".path", "%s belongs to the API itself (%s): the route would never be reached", r.Path, own)
				break
			}
		}
	}
	if r.Host != "" && !hostName.MatchString(r.Host) {
		v.fail(key+".host", "want a host name in lower case without a port, not %s", quote(r.Host))
	}
	for j, other := range v.c.Routes[:i] {
		if other.Path == r.Path && other.Host == r.Host {
			v.fail(key+".path", "%s is the path of %s as well, for the same host", r.Path, v.also(fmt.Sprintf("routes[%d].path", j)))
		}
		if other.Name == r.Name && r.Name != "" && v.c.origins != nil && v.c.origins.named(key+".name") {
			v.fail(key+".name", "%s is the name of %s as well", quote(r.Name), v.also(fmt.Sprintf("routes[%d].name", j)))
		}
	}
	v.gateway(key, &r)
	if len(r.Rules) == 0 {
		v.fail(key+".rules", "is empty: no method could pass")
	}
	taken := make(map[string]string) // method -> key of its rule
	for j, rule := range r.Rules {
		v.routeRule(fmt.Sprintf("%s.rules[%d]", key, j), rule, taken)
	}
}

func (v *validator) routeRule(key string, rule RouteRuleConfig, taken map[string]string) {
	if len(rule.Methods) == 0 {
		v.fail(key+".methods", `is empty: name the methods, or "*" for all`)
	}
	if first, ok := taken["*"]; ok {
		v.fail(key+".methods", `is never reached: %s has "*"`, v.also(first))
	}
	for n, method := range rule.Methods {
		at := fmt.Sprintf("%s.methods[%d]", key, n)
		if method != "*" && !methodName.MatchString(method) {
			v.fail(at, `want a method in capitals or "*", not %s`, quote(method))
			continue
		}
		if first, ok := taken[method]; ok {
			v.fail(at, "%s is in %s already", method, v.also(first))
			continue
		}
		taken[method] = key + ".methods"
	}
	for n, scope := range rule.Scopes {
		at := fmt.Sprintf("%s.scopes[%d]", key, n)
		if scope == "*" {
			continue
		}
		resource, action, ok := strings.Cut(scope, ":")
		switch {
		case !ok || action != "*" && !actionName.MatchString(action):
			v.fail(at, `want a scope as in "triggers:read", not %s`, quote(scope))
		case !slices.Contains(v.c.Scopes.Resources, resource):
			v.fail(at, "%s is not in scopes.resources%s", quote(resource), suggest(resource, v.c.Scopes.Resources))
		}
	}
	v.count(key+".cost", rule.Cost, 1, maxRouteCost)
}
