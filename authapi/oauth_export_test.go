package authapi

import "time"

// OAuthSeal seals states and opens them.
type OAuthSeal struct{ keys *refreshKeys }

// NewOAuthSeal makes one of a cluster's root key.
func NewOAuthSeal(root []byte) OAuthSeal { return OAuthSeal{newRefreshKeys(root)} }

// Seal makes a state's cookie.
func (s OAuthSeal) Seal(provider string) (string, error) {
	st, _ := newSignIn(time.Unix(1_700_000_000, 0))
	return s.keys.sealOAuth(purposeState+provider, st)
}

// Open says whether a cookie is a state of a provider.
func (s OAuthSeal) Open(provider, text string) bool {
	_, ok := s.keys.openOAuth(purposeState+provider, text, new(signIn))
	return ok
}
