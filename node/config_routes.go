package node

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"sluice/authapi"
)

// ownPaths belong to the API itself, which comes before the routes: a gateway route there would never be reached.
var ownPaths = []string{
	"/api/v1/auth", "/api/v1/organizations", "/api/v1/api-keys", "/api/v1/audit-logs", "/api/v1/limits", "/api/v1/health",
	"/oauth2", "/.well-known/jwks.json", "/.well-known/oauth-authorization-server", "/livez", "/readyz", "/openapi.json", "/console",
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
)

func (v *validator) route(i int) {
	r := v.c.Routes[i]
	key := fmt.Sprintf("routes[%d]", i)
	switch {
	case r.Path == "":
		v.fail(key+".path", "is missing")
	case !strings.HasPrefix(r.Path, "/") || path.Clean(r.Path) != r.Path || strings.ContainsAny(r.Path, "?#%;\\ *"):
		v.fail(key+".path", "want a plain path as in \"/api/v1/triggers\", without a slash at its end, not %s", quote(r.Path))
	case r.Upstream != "":
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
	if r.Upstream == "" && r.StripPrefix {
		v.fail(key+".strip_prefix", "means nothing without upstream")
	}
	if r.Upstream != "" {
		if problem := urlProblem(r.Upstream, false); problem != "" {
			v.fail(key+".upstream", "%s", problem)
		}
	}
	v.between(key+".timeout", r.Timeout, Duration(time.Millisecond), maxRouteTimeout)
	v.count(key+".max_body_bytes", r.MaxBodyBytes, 1, maxRouteBodyBytes)
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
