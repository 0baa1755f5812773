package authapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net/http"
	"strings"
	"time"

	"sluice/limiter"
)

// credential is what is known of one good credential: an entry of the cache. It is immutable.
type credential struct {
	hash      [32]byte // SHA-256 of the credential as sent
	epoch     uint64   // State.Epoch() from before anything was read for it
	validTo   int64    // Unix milliseconds, exclusive; math.MaxInt64 for never
	principal *Principal
	role      string // JWT: in the organization of the principal
	scopes    []byte // joined by spaces, as X-Auth-Scopes shows them
	policy    *policy
	bucket    limiter.BucketID
}

// errUnknownCredential: well-formed, but this node's state does not know it.
var errUnknownCredential = errors.New("unknown credential")

// Challenges of a 401 and 403 (RFC 6750, section 3).
const (
	challengeNone    = `Bearer realm="sluice"`
	challengeInvalid = `Bearer realm="sluice", error="invalid_token"`
)

// failed is the 401 for a credential that is present and not good.
func failed(detail string) *Problem {
	p := problem(http.StatusUnauthorized, "invalid_credential", detail)
	p.Challenge = challengeInvalid
	return p
}

var (
	headerXAPIKey       = "X-Api-Key"
	headerAuthorization = "Authorization"
)

// sentCredential finds the request's credential, nil where there is none. Two that differ are a 400, and so are two
// header lines; one that no scheme explains is a 401.
func (c *call) sentCredential() ([]byte, *Problem) {
	h := &c.ctx.Request.Header
	var found []byte
	if lines := h.PeekAll(headerXAPIKey); len(lines) > 0 {
		if len(lines) > 1 {
			return nil, duplicateHeader("X-API-Key")
		}
		key := trimSpace(lines[0])
		if !looksLikeKey(key) {
			return nil, failed("X-API-Key does not hold an API key")
		}
		found = key
	}
	if lines := h.PeekAll(headerAuthorization); len(lines) > 0 {
		if len(lines) > 1 {
			return nil, duplicateHeader("Authorization")
		}
		token, ok := bearer(trimSpace(lines[0]))
		switch {
		case found != nil && !bytes.Equal(found, token):
			return nil, problem(http.StatusBadRequest, "invalid_request", "the request carries two different credentials")
		case !ok:
			return nil, failed("Authorization does not hold a bearer token")
		}
		found = token
	}
	if found == nil {
		found = c.sentCookie()
	}
	return found, nil
}

func duplicateHeader(name string) *Problem {
	return problem(http.StatusBadRequest, "invalid_request", "the header "+name+" occurs twice")
}

// bearer takes the token out of "Bearer <token>"; the scheme's case does not matter.
func bearer(b []byte) (token []byte, ok bool) {
	const scheme = "bearer"
	if len(b) <= len(scheme) || b[len(scheme)] != ' ' {
		return nil, false
	}
	for i := range len(scheme) {
		if b[i]|0x20 != scheme[i] {
			return nil, false
		}
	}
	token = trimSpace(b[len(scheme):])
	if len(token) == 0 || bytes.IndexByte(token, ' ') >= 0 {
		return nil, false
	}
	return token, true
}

// authenticate finds out who calls and whose limit the request spends from, and spends. cost is what the route takes.
//
// A credential that the cache or this node's state knows is never refused for its address. One that fails spends from
// the address. One that is well-formed but unknown makes the node catch up once, unless its address is exhausted.
func (c *call) authenticate(cost int64) error {
	s := c.srv
	raw, bad := c.sentCredential()
	switch {
	case bad != nil:
		return c.reject(bad)
	case raw == nil:
		return c.takeAddress(s.policies.anonymous, cost)
	}
	hash := sha256.Sum256(raw)
	cred := s.credentials.get(&hash, s.state.Epoch(), c.now.UnixMilli())
	if cred == nil {
		var err error
		if cred, err = c.resolve(raw, hash); err != nil {
			return err
		}
	} else if !s.cfg.Auth.ServeStale && !s.cluster.Fresh() {
		c.peek(cred.policy, cred.bucket)
		return ErrUnavailable
	}
	c.entry, c.principal = cred, cred.principal
	if err := c.take(cred.policy, cred.bucket, cost); err != nil {
		return err
	}
	if cred.principal.Method == MethodAPIKey {
		s.touchKey(cred.principal.KeyID, c.now)
	}
	return nil
}

// reject spends from the address for a credential that failed, and gives the answer: p, or the 429 or 503 of the address.
func (c *call) reject(p *Problem) error {
	if err := c.takeAddress(c.srv.policies.anonymous, 1); err != nil {
		return err
	}
	return p
}

// resolve looks a credential up in the state.
func (c *call) resolve(raw []byte, hash [32]byte) (*credential, error) {
	s := c.srv
	key := looksLikeKey(raw)
	if key && !validAPIKey(raw) {
		return nil, c.reject(failed("the API key is mistyped"))
	}
	stale := !s.cfg.Auth.ServeStale && !s.cluster.Fresh()
	cred, err := s.lookup(raw, hash, key, c.now)
	if errors.Is(err, errUnknownCredential) && !stale {
		if c.peek(s.policies.anonymous, c.addressBucket(s.policies.anonymous)) {
			return nil, errRefused
		}
		if err := s.catchUp(); err != nil {
			return nil, err
		}
		cred, err = s.lookup(raw, hash, key, c.now)
	}
	var bad *Problem
	switch {
	case errors.As(err, &bad):
		return nil, c.reject(bad)
	case stale:
		c.peek(s.policies.anonymous, c.addressBucket(s.policies.anonymous))
		return nil, ErrUnavailable
	case errors.Is(err, errUnknownCredential):
		if key {
			return nil, c.reject(failed("the API key is not valid"))
		}
		return nil, c.reject(failed("the token is not valid"))
	case err != nil:
		c.peek(s.policies.anonymous, c.addressBucket(s.policies.anonymous))
		return nil, err
	}
	if cred.bucket != (limiter.BucketID{}) { // else the limiter is not there yet, and its buckets have no names
		s.credentials.put(cred)
	}
	return cred, nil
}

const (
	// catchUpTimeout bounds how long a request with an unknown credential waits for this node to catch up.
	catchUpTimeout = time.Second
	// maxCatchUps bounds how many requests wait so at once; they share the probe, not the memory.
	maxCatchUps = 2048
)

// catchUp brings this node's state up to what was acknowledged before the call.
func (s *Server) catchUp() error {
	if s.catchUps.Add(1) > maxCatchUps {
		s.catchUps.Add(-1)
		return ErrOverloaded
	}
	defer s.catchUps.Add(-1)
	ctx, cancel := context.WithTimeout(context.Background(), catchUpTimeout)
	defer cancel()
	err := s.cluster.CatchUp(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return ErrUnavailable
	}
	return err
}

// lookup checks a credential against this node's state as it is. Errors: a *Problem where it is known and not good,
// errUnknownCredential, or the store's.
func (s *Server) lookup(raw []byte, hash [32]byte, key bool, now time.Time) (*credential, error) {
	epoch := s.state.Epoch()
	var cred *credential
	var err error
	if key {
		cred, err = s.lookupKey(hash, now.UnixMilli())
	} else {
		cred, err = s.lookupToken(raw, now)
	}
	if err != nil {
		return nil, err
	}
	cred.hash, cred.epoch = hash, epoch
	return cred, nil
}

const never = int64(1<<63 - 1)

func (s *Server) lookupKey(hash [32]byte, nowMillis int64) (*credential, error) {
	k, err := s.state.KeyByHash(hash)
	if err != nil {
		return nil, err
	}
	if k == nil {
		return nil, errUnknownCredential
	}
	validTo := never
	switch {
	case k.RevokedAt != 0:
		return nil, failed("the API key has been revoked")
	case k.ExpiresAt != 0 && k.ExpiresAt <= nowMillis:
		return nil, failed("the API key has expired")
	case subtle.ConstantTimeCompare(hash[:], k.Hash) == 1:
	case subtle.ConstantTimeCompare(hash[:], k.PreviousHash) == 1:
		if k.PreviousUntil <= nowMillis {
			return nil, failed("the API key has been replaced")
		}
		validTo = k.PreviousUntil
	default:
		return nil, errUnknownCredential
	}
	if k.ExpiresAt != 0 {
		validTo = min(validTo, k.ExpiresAt)
	}
	org, err := s.state.Organization(k.OrganizationID)
	if err != nil {
		return nil, err
	}
	if org == nil || org.DeletedAt != 0 {
		return nil, failed("the API key has been revoked")
	}
	cred := &credential{
		validTo: validTo,
		principal: &Principal{
			Method: MethodAPIKey, KeyID: k.ID, OrganizationID: k.OrganizationID, Scopes: k.Scopes, ExpiresAt: k.ExpiresAt,
		},
		scopes: []byte(strings.Join(k.Scopes, " ")),
		policy: s.policies.apiKey,
	}
	if plan := s.policies.keyPlans[org.Plan]; plan != nil {
		cred.policy = plan
	}
	if k.RateLimit > 0 && k.RateWindow > 0 {
		cred.policy = newPolicy(policyAPIKey, limiter.Rule{
			Limit: k.RateLimit, Window: k.RateWindow, Algorithm: s.policies.apiKey.rule.Algorithm,
		})
	}
	cred.bucket = s.limits.Bucket(cred.policy.name, cred.policy.rule, []byte(k.ID))
	return cred, nil
}

func (s *Server) lookupToken(raw []byte, now time.Time) (*credential, error) {
	cl, err := s.tokens.verify(raw, now)
	switch {
	case err == nil:
	case errors.Is(err, errUnknownKey):
		return nil, errUnknownCredential
	case errors.Is(err, errTokenExpired):
		return nil, failed("the token has expired")
	case errors.Is(err, errTokenInvalid):
		return nil, failed("the token is not valid")
	default:
		return nil, err
	}
	session, err := s.state.Session(cl.SessionID)
	if err != nil {
		return nil, err
	}
	if session == nil {
		return nil, errUnknownCredential
	}
	if session.EndedAt != 0 || session.UserID != cl.UserID || session.ExpiresAt <= now.UnixMilli() {
		return nil, failed("the session has ended")
	}
	user, err := s.state.User(cl.UserID)
	if err != nil {
		return nil, err
	}
	if user == nil || user.DeletedAt != 0 || user.DisabledAt != 0 {
		return nil, failed("the session has ended")
	}
	org := cl.OrganizationID
	if org == "" {
		org = user.PersonalOrg
	}
	cred := &credential{
		validTo: min(cl.ExpiresAt, session.ExpiresAt),
		principal: &Principal{
			Method: MethodJWT, UserID: user.ID, SessionID: session.ID, OrganizationID: org, ExpiresAt: cl.ExpiresAt, TokenID: cl.TokenID,
		},
	}
	member, err := s.state.Membership(org, user.ID)
	if err != nil {
		return nil, err
	}
	if member != nil {
		cred.role = member.Role
	}
	if cred.policy, err = s.userPolicy(user.ID); err != nil {
		return nil, err
	}
	cred.bucket = s.limits.Bucket(cred.policy.name, cred.policy.rule, []byte(user.ID))
	return cred, nil
}

// userPolicy is the policy of a user: the most generous plan of the user's organizations, or else the layer's. Without
// plans in the configuration it costs nothing, however many organizations there are.
func (s *Server) userPolicy(userID string) (*policy, error) {
	if len(s.policies.userPlans) == 0 {
		return s.policies.user, nil
	}
	memberships, err := s.state.MembershipsOf(userID)
	if err != nil {
		return nil, err
	}
	var best *policy
	for _, m := range memberships {
		org, err := s.state.Organization(m.OrganizationID)
		if err != nil {
			return nil, err
		}
		if org == nil || org.DeletedAt != 0 {
			continue
		}
		if plan := s.policies.userPlans[org.Plan]; plan != nil && (best == nil || moreGenerous(plan.rule, best.rule)) {
			best = plan
		}
	}
	if best == nil {
		return s.policies.user, nil
	}
	return best, nil
}
