package state

import "strings"

// ScopeAllows reports whether one of the granted scopes grants need. Scopes are "<resource>:<action>",
// "<resource>:*" or "*"; a wildcard in need is granted only by one at least as wide. An empty need is never granted.
// Wait-free, allocates nothing.
func ScopeAllows(granted []string, need string) bool {
	if need == "" {
		return false
	}
	for _, scope := range granted {
		if scope == "*" || scope == need {
			return true
		}
		resource, wild := strings.CutSuffix(scope, ":*")
		if wild && resource != "" && len(need) > len(resource)+1 && need[len(resource)] == ':' && need[:len(resource)] == resource {
			return true
		}
	}
	return false
}

// ScopeCovers reports whether granted grants every one of wanted; true where nothing is wanted.
func ScopeCovers(granted, wanted []string) bool {
	for _, need := range wanted {
		if !ScopeAllows(granted, need) {
			return false
		}
	}
	return true
}
