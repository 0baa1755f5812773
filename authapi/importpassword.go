package authapi

import (
	"context"
	"errors"
	"strings"

	"golang.org/x/crypto/bcrypt"

	"sluice/raftfsm/state"
)

// Bounds of imported hashes: each sign-in with one costs that much.
const (
	maxImportedMemoryKiB  = 1 << 18
	maxImportedIterations = 16
	maxBcryptCost         = 14
)

// isBcrypt tells the hashes that other programs left from those of this one.
func isBcrypt(encoded string) bool {
	return strings.HasPrefix(encoded, "$2a$") || strings.HasPrefix(encoded, "$2b$") || strings.HasPrefix(encoded, "$2y$")
}

// checkImportedHash says what is wrong with a password's hash, "" for nothing.
func checkImportedHash(encoded string) string {
	if isBcrypt(encoded) {
		cost, err := bcrypt.Cost([]byte(encoded))
		switch {
		case err != nil || len(encoded) != 60 || strings.Trim(encoded[7:], "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789") != "":
			return "is a malformed bcrypt hash"
		case cost > maxBcryptCost:
			return "has a bcrypt cost above 14"
		}
		return ""
	}
	h, err := parsePHC(encoded)
	switch {
	case err != nil:
		return "must be a PHC string of argon2id, or bcrypt ($2a$, $2b$, $2y$)"
	case h.params.memoryKiB > maxImportedMemoryKiB || h.params.iterations > maxImportedIterations:
		return "has argon2id parameters above m=262144,t=16"
	}
	return ""
}

// checkBcrypt compares in a time that does not depend on where the two differ. It runs in a slot of its caller's.
func (p *passwords) checkBcrypt(encoded, password string) (bool, error) {
	if p.elsewhere != nil && checkImportedHash(encoded) == "" {
		if ok, err := p.elsewhere.Bcrypt([]byte(encoded), []byte(password)); err == nil {
			return ok, nil
		}
	}
	err := bcrypt.CompareHashAndPassword([]byte(encoded), []byte(password))
	if errors.Is(err, bcrypt.ErrMismatchedHashAndPassword) {
		return false, nil
	}
	return err == nil, err
}

// weak says whether a hash is not one that this program would make, or is weaker than the least that it makes.
func (p *passwords) weak(encoded string) bool {
	h, err := parsePHC(encoded)
	return err != nil || h.params.memoryKiB < hashFloor.memoryKiB || h.params.iterations < hashFloor.iterations
}

// renewHash makes a weak hash anew, of a password that was found right, and gives what is the account's hash now. That it cannot
// be done at this moment is no reason to refuse the sign-in.
func (s *Server) renewHash(ctx context.Context, user *state.User, hash, password string) string {
	if !s.passwords.weak(hash) {
		return hash
	}
	renewed, err := s.passwords.hash(ctx, password)
	if err != nil {
		return hash
	}
	if _, err := s.propose(ctx, state.ReplacePassword{UserID: user.ID, OldHash: hash, NewHash: renewed}); err != nil {
		// It happened after all, or another sign-in with the same password came first.
		if now, err := s.state.User(user.ID); err == nil && now != nil && now.PasswordHash != hash {
			if now.PasswordHash == renewed {
				return renewed
			}
			if ok, err := s.passwords.check(ctx, now.PasswordHash, password); err == nil && ok && now.PasswordHash != "" {
				return now.PasswordHash
			}
		}
		return hash
	}
	return renewed
}
