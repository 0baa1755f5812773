package authapi

import (
	"context"
	"errors"
	"time"
)

// claims is what a verified access token says.
type claims struct {
	UserID         string
	SessionID      string
	OrganizationID string // may be ""
	TokenID        string
	ExpiresAt      int64 // Unix milliseconds
}

var (
	errTokenInvalid = errors.New("invalid token")
	errTokenExpired = errors.New("expired token")
	// errUnknownKey: the token names a signing key that this node does not know (yet).
	errUnknownKey = errors.New("unknown signing key")
)

// tokens makes and verifies access tokens.
type tokens struct{}

func newTokens(*Server) *tokens { return &tokens{} }

func (*tokens) verify([]byte, time.Time) (claims, error) { return claims{}, errTokenInvalid }

type passwords struct{}

func newPasswords(*Server) *passwords { return &passwords{} }

func (s *Server) startAccounts() {}
func (s *Server) closeAccounts() {}

// touchKey notes that a key was used.
func (s *Server) touchKey(string, time.Time) {}

// Maintain does the leader's periodic work.
func (s *Server) Maintain(context.Context) error { return nil }
