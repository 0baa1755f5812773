package authapi

import (
	"errors"
	"fmt"
	"net/textproto"
	"strings"
)

// IdentityHeaders are the names of the headers in which applications learn who asks: as answers of the forward-auth check, and on requests
// that the gateway passes on. Each begins with X- or Remote-, and none is another's. The zero value means those of the preset "x-auth".
type IdentityHeaders struct {
	Method       string // "anonymous", "api_key" or "jwt"
	User         string // id of a token's user
	Organization string // id of the key's organization, or of the one that a token is for
	Key          string // id of the key
	Scopes       string // of the key, with spaces between them
}

// identityPresets are names that applications may know already, by the name of the preset.
var identityPresets = map[string]IdentityHeaders{
	"x-auth":         {"X-Auth-Method", "X-Auth-User", "X-Auth-Organization", "X-Auth-Key", "X-Auth-Scopes"},
	"x-auth-request": {"X-Auth-Request-Method", "X-Auth-Request-User", "X-Auth-Request-Groups", "X-Auth-Request-Key", "X-Auth-Request-Scopes"},
	"remote":         {"Remote-Method", "Remote-User", "Remote-Groups", "Remote-Key", "Remote-Scopes"},
}

// IdentityPreset gives the names of a preset: "x-auth", "x-auth-request" (as oauth2-proxy spells them, the organization as groups) or
// "remote" (as CGI programs know them); false for another name.
func IdentityPreset(name string) (IdentityHeaders, bool) {
	h, ok := identityPresets[name]
	return h, ok
}

// IdentityHeaderProblem says why name cannot be that of an identity header, "" where it can.
func IdentityHeaderProblem(name string) string {
	lower := strings.ToLower(name)
	if len(name) > 64 || strings.Trim(lower, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || strings.HasSuffix(name, "-") ||
		!strings.HasPrefix(lower, "x-") && !strings.HasPrefix(lower, "remote-") {
		return "want a header of up to 64 letters, digits and dashes that begins with X- or Remote-"
	}
	switch lower {
	case "x-request-id", "x-api-key", "x-real-ip", "x-csrf-token", "x-session-mode", "x-served-by", "remote-addr":
		return "this header means something else already"
	}
	for _, prefix := range []string{"x-forwarded-", "x-original-", "x-ratelimit-"} {
		if strings.HasPrefix(lower, prefix) {
			return "headers that begin with " + prefix + " mean something else already"
		}
	}
	return ""
}

// identityNames are IdentityHeaders, checked and as they are sent.
type identityNames struct {
	method, user, organization, key, scopes []byte
	lower                                   [5]string
}

func newIdentityNames(h IdentityHeaders) (identityNames, error) {
	if h == (IdentityHeaders{}) {
		h = identityPresets["x-auth"]
	}
	var n identityNames
	var problems []error
	for i, field := range []struct {
		name string
		to   *[]byte
	}{{h.Method, &n.method}, {h.User, &n.user}, {h.Organization, &n.organization}, {h.Key, &n.key}, {h.Scopes, &n.scopes}} {
		if problem := IdentityHeaderProblem(field.name); problem != "" {
			problems = append(problems, fmt.Errorf("identity header %q: %s", field.name, problem))
		}
		*field.to = []byte(textproto.CanonicalMIMEHeaderKey(field.name))
		n.lower[i] = strings.ToLower(field.name)
		for _, other := range n.lower[:i] {
			if other == n.lower[i] {
				problems = append(problems, fmt.Errorf("identity header %q: is there twice", field.name))
			}
		}
	}
	return n, errors.Join(problems...)
}

// claims says whether a client that sends this header would speak in the place of the node, or shows a credential of ours.
func (s *Server) claims(key []byte) bool {
	if ownHeader(key) {
		return true
	}
	for _, name := range s.identity.lower {
		if len(key) == len(name) && prefixFold(key, name) {
			return true
		}
	}
	return false
}

// headerSetter is what request and response headers have in common here.
type headerSetter interface{ SetCanonical(key, value []byte) }

// setIdentity sets the identity headers, each always, empty where there is nothing to say.
func (c *call) setIdentity(h headerSetter) {
	p, names := c.principal, &c.srv.identity
	b := append(c.scratch[:0], p.Method...)
	h.SetCanonical(names.method, b)
	b = append(b[:0], p.UserID...)
	h.SetCanonical(names.user, b)
	b = append(b[:0], p.OrganizationID...)
	h.SetCanonical(names.organization, b)
	b = append(b[:0], p.KeyID...)
	h.SetCanonical(names.key, b)
	b = b[:0]
	if c.entry != nil {
		b = append(b, c.entry.scopes...)
	}
	h.SetCanonical(names.scopes, b)
	c.scratch = b[:0]
}
