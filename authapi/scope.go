package authapi

import "strings"

// joinScopes renders scopes as X-Auth-Scopes shows them.
func joinScopes(scopes []string) []byte { return []byte(strings.Join(scopes, " ")) }

// grants says whether a list of scopes covers a wanted one: "*" covers all, "<resource>:*" all of its resource.
func grants(scopes []string, want string) bool {
	resource, _, _ := strings.Cut(want, ":")
	for _, s := range scopes {
		if s == "*" || s == want {
			return true
		}
		if n := len(s) - 2; n > 0 && s[n:] == ":*" && s[:n] == resource {
			return true
		}
	}
	return false
}
