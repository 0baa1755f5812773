package authapi_test

import (
	"net/http"
	"strings"
	"testing"

	"sluice/authapi"
)

// Applications that know other names get those, from the check and through the gateway, and a client's own copies of these and of ours stay out.
func TestIdentityHeaders_Named(t *testing.T) {
	t.Parallel()
	remote, ok := authapi.IdentityPreset("remote")
	if !ok {
		t.Fatal("no such preset")
	}
	custom := authapi.IdentityHeaders{Method: "x-how", User: "X-Who", Organization: "x-tenant-id", Key: "X-With", Scopes: "Remote-Rights"}
	for _, names := range []authapi.IdentityHeaders{remote, custom} {
		seen := make(chan http.Header, 1)
		e := newGateway(t, func(_ http.ResponseWriter, r *http.Request) { seen <- r.Header.Clone() }, func(c *authapi.Config, _ *authapi.Route) { c.Identity = names })
		key := e.key(nil, "events:*")
		var spoofed []string
		for _, name := range []string{names.Method, names.User, names.Organization, names.Key, names.Scopes, "X-Auth-User", "X-Auth-Request-User", "Remote-User"} {
			spoofed = append(spoofed, strings.ToUpper(name), "spoofed", strings.ReplaceAll(name, "-", "_"), "spoofed")
		}
		want := map[string]string{names.Method: "api_key", names.User: "", names.Organization: "org_1", names.Scopes: "events:*"}
		check := func(where string, got http.Header) {
			t.Helper()
			for name, value := range want {
				if lines := got.Values(name); len(lines) != 1 || lines[0] != value {
					t.Errorf("%s: %s is %q, want %q", where, name, lines, value)
				}
			}
			if !strings.HasPrefix(got.Get(names.Key), "key_") {
				t.Errorf("%s: %s is %q", where, names.Key, got.Get(names.Key))
			}
			for name, lines := range got {
				if strings.Contains(strings.Join(lines, " "), "spoofed") || strings.HasPrefix(name, "X-Auth-") {
					t.Errorf("%s: %s: %q", where, name, lines)
				}
			}
		}
		a := e.do("GET", "/api/v1/auth/verify", "", append(spoofed, "X-API-Key", key)...)
		e.want(a, 200, "")
		check("the check", a.header)
		e.want(e.do("GET", "/api/v1/events", "", append(spoofed, "X-API-Key", key)...), 200, "")
		check("the gateway", <-seen)
		e.want(e.do("GET", "/api/v1/events", "", spoofed...), 200, "")
		if got := <-seen; got.Get(names.Method) != "anonymous" || got.Get(names.Key) != "" {
			t.Errorf("anonymous: %v", got)
		}
	}
}

func TestIdentityHeaderProblem(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"X-Auth-User", "x-consumer-id", "Remote-User", "X-A"} {
		if problem := authapi.IdentityHeaderProblem(name); problem != "" {
			t.Errorf("%s: %s", name, problem)
		}
	}
	for _, name := range []string{"", "X-", "Remote-", "Authorization", "Host", "User", "X_User", "X-User:", "X-Us er", "X-Usér", "X-Forwarded-For", "x-request-ID", "X-API-Key",
		"X-RateLimit-Limit", "X-Original-URL", "Remote-Addr", "X-" + strings.Repeat("a", 63)} {
		if authapi.IdentityHeaderProblem(name) == "" {
			t.Errorf("%q may be a name", name)
		}
	}
}
