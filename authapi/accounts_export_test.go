package authapi

import (
	"context"
	"net/netip"
	"time"
)

// Hashes with the real costs would make the tests take minutes; TestPasswordsAtRealCost uses them.
func init() { hashFloor = hashParams{memoryKiB: 8, iterations: 1, parallelism: 1} }

// What the tests of package authapi_test need of the inside of the accounts.
var (
	ErrTokenInvalid     = errTokenInvalid
	ErrTokenExpired     = errTokenExpired
	ErrUnknownKey       = errUnknownKey
	TokenHeader         = tokenHeader
	SigningKeyPurpose   = signingKeyPurpose
	GenerateSigningKey  = generateSigningKey
	CheckPassword       = checkPassword
	NormalEmail         = normalEmail
	NormalUsername      = normalUsername
	ParseIdempotencyKey = parseIdempotencyKey
	NewID               = newID
	ParseForm           = parseForm
)

const (
	KeyLead      = keyLead
	UseEvery     = useEvery
	UseOverdue   = useOverdue
	RefreshRoot  = refreshKeyPurpose
	MaxTokenLife = MaxTokenTTL
)

// Claims is claims.
type Claims = claims

func (s *Server) VerifyToken(raw []byte, now time.Time) (Claims, error) {
	return s.tokens.verify(raw, now)
}

func (s *Server) NoteKeyUse(id string, from netip.Addr, now time.Time) { s.noteKeyUse(id, from, now) }

func (s *Server) FlushIncidents(ctx context.Context) { s.flushIncidents(ctx, false) }

func (s *Server) FlushKeyUses(ctx context.Context) { s.flushKeyUses(ctx, false) }

// HoldHashSlots takes every worker of the password queue until the function it returns is called.
func (s *Server) HoldHashSlots() (release func()) { return PasswordHasher{s.passwords}.Hold() }

// HashWaiting is how many requests wait in the password queue.
func (s *Server) HashWaiting() int64 { return s.passwords.waiting.Load() }

// PasswordHasher is the queue with costs of its own.
type PasswordHasher struct{ p *passwords }

func NewPasswordHasher(cfg Argon2Config) PasswordHasher {
	return PasswordHasher{newPasswords(&Server{cfg: Config{Auth: AuthConfig{Argon2: cfg}}})}
}

// Hold is HoldHashSlots.
func (h PasswordHasher) Hold() (release func()) {
	for range cap(h.p.slots) {
		h.p.slots <- struct{}{}
	}
	return func() {
		for range cap(h.p.slots) {
			<-h.p.slots
		}
	}
}

// Waiting is HashWaiting.
func (h PasswordHasher) Waiting() int64 { return h.p.waiting.Load() }

// Rejected is how many were turned away.
func (h PasswordHasher) Rejected() uint64 { return h.p.rejected.Load() }

func (h PasswordHasher) Hash(ctx context.Context, password string) (string, error) {
	return h.p.hash(ctx, password)
}

func (h PasswordHasher) Check(ctx context.Context, encoded, password string) (bool, error) {
	return h.p.check(ctx, encoded, password)
}

// RefreshKeys derives and reads refresh tokens.
type RefreshKeys struct{ k *refreshKeys }

func NewRefreshKeys(root []byte) RefreshKeys { return RefreshKeys{newRefreshKeys(root)} }

// First is the text of a session's first token.
func (k RefreshKeys) First(sessionID string) string {
	t, err := k.k.first(sessionID)
	if err != nil {
		panic(err)
	}
	return t.text()
}

// Next is the successor of a token, "" where it is not genuine; and the session it names.
func (k RefreshKeys) Next(text string) (successor, sessionID string) {
	t, ok := k.k.parse(text)
	if !ok {
		return "", ""
	}
	return k.k.successor(t).text(), t.sessionID()
}

// ParsePHC renders what it reads.
func ParsePHC(s string) (string, error) {
	h, err := parsePHC(s)
	if err != nil {
		return "", err
	}
	return h.String(), nil
}

// CommonPasswords counts the passwords of at least min characters that the list's rules make.
func CommonPasswords(min int) int {
	sets, n := commonPasswords(), 0
	for w := range sets.words {
		for e := range sets.endings {
			if len(w)+len(e) >= min {
				n++
			}
			if 2*len(w)+len(e) >= min {
				n++
			}
		}
	}
	return n
}

// Permission is a row of the matrix.
type Permission struct {
	Name  string
	Roles []string
	Scope string // "": no key may; of a row of Scopes: always ""
}

// Permissions is the matrix; Scopes what roles give of the scopes of configured routes.
func Permissions() (operations, scopes []Permission) {
	for _, p := range matrix {
		operations = append(operations, Permission{p.name, p.roles, p.scope})
	}
	for _, r := range roleScopes {
		scopes = append(scopes, Permission{r.name, r.roles, ""})
	}
	return operations, scopes
}

// RoleAllows is roleAllows.
var RoleAllows = roleAllows

// Exports is how many audit logs are being written.
func (s *Server) Exports() int {
	s.accounts.exports.mu.Lock()
	defer s.accounts.exports.mu.Unlock()
	return s.accounts.exports.total
}
