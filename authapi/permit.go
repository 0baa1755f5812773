package authapi

import (
	"net/http"

	"sluice/raftfsm/state"
)

// permit checks what one of Sluice's own routes needs of the credential.
func (c *call) permit() error {
	method := c.principal.Method
	switch {
	case c.route.auth == authNone:
		return nil
	case method == MethodAnonymous:
		return errNoCredential()
	case c.route.auth == authJWT && method != MethodJWT:
		return problem(http.StatusForbidden, "forbidden", "this needs a signed-in user; an API key cannot do it")
	case c.route.auth == authKey && method != MethodAPIKey:
		return problem(http.StatusForbidden, "forbidden", "this needs an API key")
	case method == MethodAPIKey && c.route.scope != "" && !state.ScopeAllows(c.principal.Scopes, c.route.scope):
		return errScope(c.route.scope)
	}
	return nil
}

// permitRule checks what a configured route's rule needs. A key needs all of the rule's scopes, a user the role that
// gives them.
func (c *call) permitRule(r *rule) error {
	if c.principal.Method == MethodAnonymous {
		if r.anonymous {
			return nil
		}
		return errNoCredential()
	}
	for _, scope := range r.scopes {
		if !c.has(scope) {
			return errScope(r.text)
		}
	}
	return nil
}

// has says whether the credential gives a scope: a key by its scopes, a user by the role in the organization that the
// token speaks for.
func (c *call) has(scope string) bool {
	switch c.principal.Method {
	case MethodAPIKey:
		return state.ScopeAllows(c.principal.Scopes, scope)
	case MethodJWT:
		return c.entry != nil && roleAllows(c.entry.role, scope)
	}
	return false
}

func errNoCredential() *Problem {
	return problem(http.StatusUnauthorized, "authentication_required", "this needs a credential")
}

// errScope is the 403 for a credential without the scopes that are needed, joined by spaces.
func errScope(scopes string) *Problem {
	p := problem(http.StatusForbidden, "insufficient_scope", "the credential lacks the scope "+scopes)
	p.Challenge = `Bearer realm="sluice", error="insufficient_scope", scope="` + scopes + `"`
	return p
}
