package authapi

import (
	"strings"
	"time"
)

func (t *tokens) keyNamed(kid string) *signingKey {
	ring, err := t.current()
	if err != nil {
		panic(err)
	}
	for _, k := range ring.keys {
		if k.record.ID == kid {
			return k
		}
	}
	panic("no signing key " + kid)
}

// SignPayload makes a token of the key with claims as they are.
func (s *Server) SignPayload(kid, payload string) string {
	k := s.tokens.keyNamed(kid)
	text := k.header + "." + strictBase64.EncodeToString([]byte(payload))
	signature, err := k.method.Sign(text, k.sign)
	if err != nil {
		panic(err)
	}
	return text + "." + strictBase64.EncodeToString(signature)
}

// VerifyOwn is the reader of this node's own tokens, VerifyOther that of all, neither with the memory.
func (s *Server) VerifyOwn(kid string, token []byte, now time.Time) (Claims, bool, error) {
	return s.tokens.verifyOwn(s.tokens.keyNamed(kid), token, now)
}

func (s *Server) VerifyOther(kid, token string, now time.Time) (Claims, error) {
	return s.tokens.verifyOther(s.tokens.keyNamed(kid), token, now)
}

// BareSignature checks a token's signature and nothing else.
func (s *Server) BareSignature(kid, token string) error {
	k := s.tokens.keyNamed(kid)
	last := strings.LastIndexByte(token, '.')
	signature, err := strictBase64.DecodeString(token[last+1:])
	if err != nil {
		return err
	}
	return k.method.Verify(token[:last], signature, k.verify)
}
