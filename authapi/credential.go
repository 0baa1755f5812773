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

	"sluice/authapi/histogram"
	"sluice/limiter"
	"sluice/raftfsm/state"
)

// credential is what is known of one good credential: an entry of the cache. It is immutable.
type credential struct {
	hash      [32]byte // SHA-256 of the credential as sent
	live      uint64   // live.seq of what policy and group are of
	epoch     uint64   // State.Epoch() from before anything was read for it
	validTo   int64    // Unix milliseconds, exclusive; math.MaxInt64 for never
	principal *Principal
	role      string // JWT: in the organization of the principal
	scopes    string // joined by spaces, as X-Auth-Scopes shows them
	policy    *policy
	bucket    limiter.BucketID
	// What counts its requests beside policy: the policies of its layer and plan, and their buckets by policyGroup.fixed.
	// organization is the one that they count for.
	group        *policyGroup
	buckets      []limiter.BucketID
	organization string
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

// failedKey is failed for a key that is known; why is for the audit log of its organization.
func failedKey(k *state.APIKey, detail, why string) *Problem {
	return failed(detail).concerning(k.OrganizationID, kindKey, k.ID, why)
}

// failedSession is failed for a genuine token of a session that has ended.
func failedSession(cl *claims) *Problem {
	return failed("the session has ended").concerning(cl.OrganizationID, kindSession, cl.SessionID, whySessionEnded)
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
		if !c.srv.meantAsKey(key) {
			return nil, failed("X-API-Key does not hold an API key").because(whyMalformed)
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
			return nil, failed("Authorization does not hold a bearer token").because(whyMalformed)
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
// A credential that the cache or this node's state knows is never refused for its address, unless a configured policy by
// address counts its layer. One that fails spends from the address. One that is well-formed but unknown makes the node
// catch up once, unless its address is exhausted.
func (c *call) authenticate(cost int64) error {
	s := c.srv
	raw, bad := c.sentCredential()
	switch {
	case bad != nil:
		return c.reject(bad)
	case raw == nil:
		group := c.live.policies.failed
		if c.target == nil || c.open {
			group = c.live.policies.open
		}
		c.gatherAddress(group, cost)
		return c.take(nil)
	}
	hash := sha256.Sum256(raw)
	cred := s.remembered(&hash, c.live.seq, c.now)
	looks := &s.requests.looks[c.stripe%histogram.Stripes]
	if cred == nil {
		looks.misses.Add(1)
		var err error
		if cred, err = c.resolve(raw, hash); err != nil {
			return err
		}
	} else {
		looks.hits.Add(1)
		if !s.cfg.Auth.ServeStale && !s.cluster.Fresh() {
			c.gather(cred.policy, cred.bucket, cred.group, cred, 1)
			c.peek()
			return ErrUnavailable
		}
	}
	c.entry, c.principal = cred, cred.principal
	c.gather(cred.policy, cred.bucket, cred.group, cred, cost)
	if err := c.take(cred); err != nil {
		return err
	}
	if cred.principal.Method == MethodAPIKey {
		s.noteKeyUse(cred.principal.KeyID, c.client.addr, c.now)
	}
	return nil
}

// remembered is what the cache knows of a credential, nil where it has to be looked up.
func (s *Server) remembered(hash *[32]byte, live uint64, now time.Time) *credential {
	if s.cfg.Auth.NoCredentialCache {
		return nil
	}
	return s.credentials.get(hash, live, s.state.Epoch(), now.UnixMilli())
}

// reject spends from the address for a credential that failed, and gives the answer: p, or the 429 or 503 of the address.
func (c *call) reject(p *Problem) error {
	c.gatherAddress(c.live.policies.failed, 1)
	if err := c.take(nil); err != nil {
		return err
	}
	return p
}

// peekAddress lets the response show the address's policies. refused says that one of them is used up.
func (c *call) peekAddress() (refused bool) {
	c.gatherAddress(c.live.policies.failed, 1)
	return c.peek()
}

// resolve looks a credential up in the state.
func (c *call) resolve(raw []byte, hash [32]byte) (*credential, error) {
	s := c.srv
	key := s.meantAsKey(raw)
	if key && !s.wellFormedKey(raw) {
		return nil, c.reject(failed("the API key is mistyped").because(whyMistyped))
	}
	stale := !s.cfg.Auth.ServeStale && !s.cluster.Fresh()
	cred, err := s.lookup(c.live, raw, hash, key, c.now)
	if errors.Is(err, errUnknownCredential) && !stale {
		if c.peekAddress() {
			return nil, errRefused
		}
		if err := s.catchUp(); err != nil {
			return nil, err
		}
		cred, err = s.lookup(c.live, raw, hash, key, c.now)
	}
	var bad *Problem
	switch {
	case errors.As(err, &bad):
		return nil, c.reject(bad)
	case stale:
		c.peekAddress()
		return nil, ErrUnavailable
	case errors.Is(err, errUnknownCredential):
		if key {
			return nil, c.reject(failed("the API key is not valid").because(whyUnknown))
		}
		return nil, c.reject(failed("the token is not valid").because(whyUnknown))
	case err != nil:
		c.peekAddress()
		return nil, err
	}
	if !s.cfg.Auth.NoCredentialCache && cred.bucket != (limiter.BucketID{}) { // else the limiter is not there yet, and its buckets have no names
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
		s.catchUpsRejected.Add(1)
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
func (s *Server) lookup(lv *live, raw []byte, hash [32]byte, key bool, now time.Time) (*credential, error) {
	epoch := s.state.Epoch()
	var cred *credential
	var err error
	if key {
		cred, err = s.lookupKey(lv, hash, now.UnixMilli())
	} else {
		cred, err = s.lookupToken(lv, raw, now)
	}
	if err != nil {
		return nil, err
	}
	cred.hash, cred.live, cred.epoch = hash, lv.seq, epoch
	return cred, nil
}

const never = int64(1<<63 - 1)

func (s *Server) lookupKey(lv *live, hash [32]byte, nowMillis int64) (*credential, error) {
	auth, err := s.state.KeyAuth(hash)
	if err != nil {
		return nil, err
	}
	if auth == nil {
		return nil, errUnknownCredential
	}
	k, org := &auth.Key, auth.Organization
	validTo := never
	switch {
	case k.RevokedAt != 0:
		return nil, failedKey(k, "the API key has been revoked", whyRevoked)
	case k.ExpiresAt != 0 && k.ExpiresAt <= nowMillis:
		return nil, failedKey(k, "the API key has expired", whyExpired)
	case subtle.ConstantTimeCompare(hash[:], k.Hash) == 1:
	case subtle.ConstantTimeCompare(hash[:], k.PreviousHash) == 1:
		if k.PreviousUntil <= nowMillis {
			return nil, failedKey(k, "the API key has been replaced", whyReplaced)
		}
		validTo = k.PreviousUntil
	default:
		return nil, errUnknownCredential
	}
	if k.ExpiresAt != 0 {
		validTo = min(validTo, k.ExpiresAt)
	}
	switch {
	case org == nil || org.DeletedAt != 0:
		return nil, failedKey(k, "the API key has been revoked", whyRevoked)
	case auth.Disabled:
		return nil, failedKey(k, "the API key is disabled", whyDisabled)
	}
	cred := keyCredential(k)
	cred.validTo = validTo
	var group *policyGroup
	cred.policy, group = lv.keyPolicy(k, org)
	cred.bucket = s.limits.Bucket(cred.policy.space, cred.policy.rule, []byte(k.ID))
	s.count(cred, group, k.OrganizationID)
	return cred, nil
}

// keyCredential is what a key's record says. All its text is in one piece, and the record, of which the rest is not needed,
// is not kept by it.
func keyCredential(k *state.APIKey) *credential {
	size := len(k.ID) + len(k.OrganizationID)
	for _, scope := range k.Scopes {
		size += len(scope) + 1
	}
	var text strings.Builder
	text.Grow(size)
	text.WriteString(k.ID)
	text.WriteString(k.OrganizationID)
	for i, scope := range k.Scopes {
		if i > 0 {
			text.WriteByte(' ')
		}
		text.WriteString(scope)
	}
	rest := text.String()
	next := func(n int) (part string) {
		part, rest = rest[:n], rest[n:]
		return part
	}
	made := &struct { // in one allocation
		credential credential
		principal  Principal
	}{}
	made.principal = Principal{Method: MethodAPIKey, KeyID: next(len(k.ID)), OrganizationID: next(len(k.OrganizationID)), ExpiresAt: k.ExpiresAt}
	made.credential.principal, made.credential.scopes = &made.principal, rest
	scopes := make([]string, len(k.Scopes))
	for i, scope := range k.Scopes {
		if i > 0 {
			next(1)
		}
		scopes[i] = next(len(scope))
	}
	made.principal.Scopes = scopes
	return &made.credential
}

// keyPolicy is what limits a key: its own limit, its organization's plan, or the layer's policy; and what else counts its
// requests.
func (lv *live) keyPolicy(k *state.APIKey, org *state.Organization) (*policy, *policyGroup) {
	p, group := lv.policies.apiKey, lv.policies.keys[""]
	if plan := lv.policies.keyPlans[org.Plan]; plan != nil {
		p, group = plan, lv.policies.keys[org.Plan]
	}
	if k.RateLimit > 0 && k.RateWindow > 0 {
		rule := limiter.Rule{Limit: k.RateLimit, Window: k.RateWindow, Algorithm: lv.policies.apiKey.rule.Algorithm}
		if rule.Algorithm == limiter.TokenBucket {
			rule.Burst = rule.Limit
		}
		p = newPolicy(policyAPIKey, lv.policies.apiKey.index, rule)
	}
	return p, group
}

func (s *Server) lookupToken(lv *live, raw []byte, now time.Time) (*credential, error) {
	cl, err := s.tokens.verify(raw, now)
	switch {
	case err == nil:
	case errors.Is(err, errUnknownKey):
		return nil, errUnknownCredential
	case errors.Is(err, errTokenExpired):
		return nil, failed("the token has expired").because(whyExpired)
	case errors.Is(err, errTokenInvalid):
		return nil, failed("the token is not valid").because(whyInvalid)
	default:
		return nil, err
	}
	auth, err := s.state.TokenAuth(cl.SessionID, cl.UserID, cl.OrganizationID)
	if err != nil {
		return nil, err
	}
	if auth == nil {
		return nil, errUnknownCredential
	}
	session, org := &auth.Session, auth.OrganizationID
	if session.EndedAt != 0 || session.UserID != cl.UserID || session.ExpiresAt <= now.UnixMilli() || !auth.UserActive {
		return nil, failedSession(&cl)
	}
	// What is kept are the claims' strings: the session's would keep all of its record.
	cred := &credential{
		validTo: min(cl.ExpiresAt, session.ExpiresAt),
		role:    auth.Role,
		principal: &Principal{
			Method: MethodJWT, UserID: cl.UserID, SessionID: cl.SessionID, OrganizationID: org, ExpiresAt: cl.ExpiresAt, TokenID: cl.TokenID,
		},
	}
	p, group, counted, err := s.userPolicy(lv, cl.UserID, org)
	if err != nil {
		return nil, err
	}
	cred.policy = p
	cred.bucket = s.limits.Bucket(cred.policy.space, cred.policy.rule, []byte(cl.UserID))
	s.count(cred, group, counted)
	return cred, nil
}

// userPolicy is what limits a user whose token is of the organization own: a plan's policy or the layer's; what else counts
// the requests, and for which organization.
func (s *Server) userPolicy(lv *live, userID, own string) (p *policy, group *policyGroup, organization string, err error) {
	plan, organization, err := s.userPlan(lv, userID, own)
	if err != nil {
		return nil, nil, "", err
	}
	p = lv.policies.user
	if plan != "" {
		p = lv.policies.userPlans[plan]
	}
	return p, lv.policies.users[plan], organization, nil
}

// count notes what else counts a credential's requests. cred.bucket is named already: where the limiter is not there yet
// it has no name, and cred is not kept.
func (s *Server) count(cred *credential, group *policyGroup, organization string) {
	cred.group, cred.organization = group, organization
	cred.buckets = group.fixedBuckets(s.limits, subjectOf{
		key: cred.principal.KeyID, user: cred.principal.UserID, organization: organization,
	})
}

// userPlan is the most generous plan of the user's organizations, and the organization that has it: that one's policies
// count the user's requests, or a member of several could spend one's plan on another's account. Of equal ones it is own,
// the token's organization, or else the first. Without a plan it is "" and own. Where the configuration has no plans that
// costs nothing, however many organizations there are.
func (s *Server) userPlan(lv *live, userID, own string) (plan, organization string, err error) {
	if len(lv.policies.userPlans) == 0 {
		return "", own, nil
	}
	memberships, err := s.state.MembershipsOf(userID)
	if err != nil {
		return "", "", err
	}
	organization = own
	var best *policy
	for _, m := range memberships {
		org, err := s.state.Organization(m.OrganizationID)
		if err != nil {
			return "", "", err
		}
		if org == nil || org.DeletedAt != 0 {
			continue
		}
		p := lv.policies.userPlans[org.Plan]
		if p == nil {
			continue
		}
		if best == nil || moreGenerous(p.rule, best.rule) || m.OrganizationID == own && !moreGenerous(best.rule, p.rule) {
			best, plan, organization = p, org.Plan, m.OrganizationID
		}
	}
	return plan, organization, nil
}
