package authapi

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// MaxTokenTTL is the longest exp-iat that verifies, whatever a key has signed, and so the greatest AuthConfig.TokenTTL.
// It is not the configured lifetime, so that a change of that one, node by node, ends no token.
const MaxTokenTTL = 24 * time.Hour

const (
	// maxTokenLen bounds a token before anything in it is looked at, in bytes.
	maxTokenLen = 2048
	// maxIssuedAhead is how far in the future iat may be: clocks of nodes differ. exp has no leeway.
	maxIssuedAhead = 30 * time.Second
	// defaultIssuer is iss and aud where no public URL is configured.
	defaultIssuer = "sluice"
)

// claims is what a verified access token says.
type claims struct {
	UserID         string
	SessionID      string
	OrganizationID string // the user's personal organization
	TokenID        string
	IssuedAt       int64 // Unix milliseconds
	ExpiresAt      int64 // Unix milliseconds
}

var (
	// errTokenInvalid: malformed, forged, or not one of ours.
	errTokenInvalid = errors.New("invalid token")
	// errTokenExpired: genuine, and over.
	errTokenExpired = errors.New("expired token")
	// errUnknownKey: the token names a signing key that this node does not know (yet).
	errUnknownKey = errors.New("unknown signing key")
)

// accessClaims are an access token's claims on the wire. Times are whole seconds: the JWT library's own claims would take
// fractions, and numbers in quotes.
type accessClaims struct {
	Issuer         string           `json:"iss"`
	Subject        string           `json:"sub"`
	Audience       jwt.ClaimStrings `json:"aud"`
	Expires        *int64           `json:"exp"`
	Issued         *int64           `json:"iat"`
	NotBefore      *int64           `json:"nbf,omitempty"`
	ID             string           `json:"jti"`
	SessionID      string           `json:"sid"`
	OrganizationID string           `json:"org,omitempty"`
}

// The methods are jwt.Claims.

func (c *accessClaims) GetExpirationTime() (*jwt.NumericDate, error) {
	return numericDate(c.Expires), nil
}
func (c *accessClaims) GetIssuedAt() (*jwt.NumericDate, error)  { return numericDate(c.Issued), nil }
func (c *accessClaims) GetNotBefore() (*jwt.NumericDate, error) { return numericDate(c.NotBefore), nil }
func (c *accessClaims) GetIssuer() (string, error)              { return c.Issuer, nil }
func (c *accessClaims) GetSubject() (string, error)             { return c.Subject, nil }
func (c *accessClaims) GetAudience() (jwt.ClaimStrings, error)  { return c.Audience, nil }

func numericDate(seconds *int64) *jwt.NumericDate {
	if seconds == nil {
		return nil
	}
	return &jwt.NumericDate{Time: time.Unix(*seconds, 0)}
}

// verifiedSlots is how many good tokens are remembered: 128 KiB of pointers, and some 300 bytes for each token in use.
const verifiedSlots = 1 << 14

// verified is a token whose form, signature and claims were good. That holds as long as its key and its time do.
type verified struct {
	hash   [sha256.Size]byte // of the token as sent
	header string            // which key
	claims claims
}

// tokens makes and verifies access tokens. Safe for concurrent use.
type tokens struct {
	ringHolder
	issuer string
	shape  tokenShape
	ttl    time.Duration
	// seen spares the signature (some 90 µs for an asymmetric one) when the caller's own cache was emptied by a change
	// that has nothing to do with the token. Each hash has one slot; losing it costs one verification.
	seen [verifiedSlots]atomic.Pointer[verified]
}

func newTokens(s *Server) (*tokens, error) {
	issuer := strings.TrimSuffix(s.cfg.PublicURL, "/")
	if issuer == "" {
		issuer = defaultIssuer
	}
	shape, err := newTokenShape(issuer)
	if err != nil {
		return nil, fmt.Errorf("issuer: %w", err)
	}
	return &tokens{ringHolder: ringHolder{srv: s}, issuer: issuer, shape: shape, ttl: max(min(s.cfg.Auth.TokenTTL, MaxTokenTTL), time.Second)}, nil
}

// issue makes an access token. expiresAt is in Unix milliseconds, of whole seconds. ErrUnavailable where the cluster has
// no signing key yet.
func (t *tokens) issue(userID, sessionID, organizationID string, now time.Time) (token string, expiresAt int64, err error) {
	ring, err := t.current()
	if err != nil {
		return "", 0, err
	}
	key := ring.signer(now.UnixMilli())
	if key == nil {
		return "", 0, ErrUnavailable
	}
	issued, expires := now.Unix(), now.Unix()+int64(t.ttl/time.Second)
	tok := jwt.NewWithClaims(key.method, &accessClaims{
		Issuer: t.issuer, Subject: userID, Audience: jwt.ClaimStrings{t.issuer}, Expires: &expires, Issued: &issued,
		ID: newID(idToken, now), SessionID: sessionID, OrganizationID: organizationID,
	})
	tok.Header["kid"] = key.record.ID
	tok.Header["typ"] = tokenType
	token, err = tok.SignedString(key.sign)
	if err != nil {
		return "", 0, fmt.Errorf("sign token: %w", err)
	}
	return token, expires * 1000, nil
}

// verify checks a token completely: form, key, signature, and every claim. It does not look at the session. Errors:
// errTokenInvalid, errTokenExpired, errUnknownKey, or the store's.
func (t *tokens) verify(raw []byte, now time.Time) (claims, error) {
	if len(raw) > maxTokenLen {
		return claims{}, errTokenInvalid
	}
	ring, err := t.current()
	if err != nil {
		return claims{}, err
	}
	if t.srv.cfg.Auth.NoCredentialCache {
		cl, _, err := t.verifyFully(ring, raw, now)
		return cl, err
	}
	hash := sha256.Sum256(raw)
	slot := &t.seen[binary.LittleEndian.Uint64(hash[:])%verifiedSlots]
	if v := slot.Load(); v != nil && v.hash == hash && v.claims.ExpiresAt > now.UnixMilli() {
		if key := ring.byHeader[v.header]; key != nil && key.verifiesAt(now.UnixMilli()) {
			return v.claims, nil
		}
	}
	cl, key, err := t.verifyFully(ring, raw, now)
	if err == nil {
		slot.Store(&verified{hash: hash, header: key.header, claims: cl})
	}
	return cl, err
}

// verifyFully is verify without the memory. It says by which key, where the token is good.
func (t *tokens) verifyFully(ring *keyring, raw []byte, now time.Time) (claims, *signingKey, error) {
	header, _, _ := bytes.Cut(raw, []byte("."))
	key := ring.byHeader[string(header)]
	verifies := key != nil && key.verifiesAt(now.UnixMilli())
	if verifies {
		if cl, ours, err := t.verifyOwn(key, raw, now); ours {
			return cl, key, err
		}
	}
	switch {
	case !tokenForm(raw):
		return claims{}, nil, errTokenInvalid
	case key == nil && couldBeOurs(string(header), ring):
		return claims{}, nil, errUnknownKey
	case !verifies:
		return claims{}, nil, errTokenInvalid
	}
	cl, err := t.verifyOther(key, string(raw), now)
	return cl, key, err
}

// verifyOther is verifyFully for a token of the key that may look in any way.
func (t *tokens) verifyOther(key *signingKey, token string, now time.Time) (claims, error) {
	var ac accessClaims
	_, err := jwt.NewParser(
		jwt.WithValidMethods([]string{key.record.Algorithm}),
		jwt.WithStrictDecoding(),
		jwt.WithExpirationRequired(),
		jwt.WithIssuer(t.issuer),
		jwt.WithAudience(t.issuer),
		jwt.WithTimeFunc(func() time.Time { return now }),
	).ParseWithClaims(token, &ac, func(*jwt.Token) (any, error) { return key.verify, nil })
	if err != nil {
		// The library checks claims after the signature only.
		if errors.Is(err, jwt.ErrTokenExpired) && !errors.Is(err, jwt.ErrTokenInvalidIssuer) && !errors.Is(err, jwt.ErrTokenInvalidAudience) {
			return claims{}, errTokenExpired
		}
		return claims{}, errTokenInvalid
	}
	if ac.Issued == nil || len(ac.Audience) != 1 {
		return claims{}, errTokenInvalid
	}
	cl := claims{UserID: ac.Subject, SessionID: ac.SessionID, OrganizationID: ac.OrganizationID, TokenID: ac.ID}
	return cl.plausible(*ac.Issued, *ac.Expires, now)
}

// plausible completes claims that were signed, or says errTokenInvalid: this program never signed any like them. Times are in seconds.
func (cl claims) plausible(issued, expires int64, now time.Time) (claims, error) {
	const maxUnix = 1 << 40 // keeps the sums below from running over
	switch {
	case issued < 0 || issued > now.Unix()+int64(maxIssuedAhead/time.Second),
		expires > maxUnix,
		expires-issued > int64(MaxTokenTTL/time.Second),
		expires <= issued,
		!strings.HasPrefix(cl.UserID, idUser+"_"),
		!strings.HasPrefix(cl.SessionID, idSession+"_"),
		cl.TokenID == "":
		return claims{}, errTokenInvalid
	}
	cl.IssuedAt, cl.ExpiresAt = issued*1000, expires*1000
	return cl, nil
}

// base64URL are the characters of base64url: a token has hundreds of them, and each is looked at.
var base64URL = func() (is [256]bool) {
	for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" {
		is[c] = true
	}
	return is
}()

// tokenForm says whether b is three parts of unpadded base64url. Go's decoder alone would skip line breaks.
func tokenForm(b []byte) bool {
	dots, part := 0, 0
	for _, c := range b {
		switch {
		case c == '.':
			if part == 0 {
				return false
			}
			dots++
			part = 0
		case base64URL[c]:
			part++
		default:
			return false
		}
	}
	return dots == 2 && part > 0
}

// couldBeOurs says whether a header that no key of ring has is the header of a key that this node may yet learn of.
func couldBeOurs(header string, ring *keyring) bool {
	b, err := base64.RawURLEncoding.Strict().DecodeString(header)
	if err != nil {
		return false
	}
	var h struct {
		Algorithm string `json:"alg"`
		KeyID     string `json:"kid"`
	}
	if json.Unmarshal(b, &h) != nil || len(h.KeyID) != keyIDLen || !slices.Contains([]string{algHS256, algEdDSA, algES256}, h.Algorithm) {
		return false
	}
	for _, k := range ring.keys {
		if k.record.ID == h.KeyID {
			return false // known, with another algorithm
		}
	}
	for _, c := range []byte(h.KeyID) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return header == tokenHeader(h.Algorithm, h.KeyID)
}
