package authapi

import (
	"errors"
	"net/http"
	"strconv"

	"sluice/limiter"
)

// Names of the policies. They are part of every bucket's identity and what RateLimit-Policy shows.
const (
	policyAnonymous = "anonymous"
	policyAPIKey    = "api_key"
	policyUser      = "user"
	policyDocuments = "documents"
)

// policy is a rule under its name, with the parts of the headers that never change.
type policy struct {
	name   string
	rule   limiter.Rule
	header []byte // RateLimit-Policy: "name";q=…;w=…
	head   []byte // the start of RateLimit: "name";r=
	limit  []byte
	window []byte
}

func newPolicy(name string, rule limiter.Rule) *policy {
	p := &policy{name: name, rule: rule}
	p.limit = strconv.AppendInt(nil, rule.Limit, 10)
	p.window = strconv.AppendInt(nil, rule.Window, 10)
	p.header = append(p.header, '"')
	p.header = append(p.header, name...)
	p.header = append(p.header, `";q=`...)
	p.header = append(p.header, p.limit...)
	p.header = append(p.header, ";w="...)
	p.header = append(p.header, p.window...)
	p.head = append(p.head, '"')
	p.head = append(p.head, name...)
	p.head = append(p.head, `";r=`...)
	return p
}

// policies are those that the configuration names.
type policies struct {
	anonymous, apiKey, user, documents *policy
	keyPlans, userPlans                map[string]*policy
}

func newPolicies(cfg LimitConfig) policies {
	p := policies{
		anonymous: newPolicy(policyAnonymous, cfg.Anonymous),
		apiKey:    newPolicy(policyAPIKey, cfg.APIKey),
		user:      newPolicy(policyUser, cfg.User),
		documents: newPolicy(policyDocuments, cfg.Documents),
		keyPlans:  map[string]*policy{},
		userPlans: map[string]*policy{},
	}
	for name, rule := range cfg.Plans {
		p.keyPlans[name] = newPolicy(policyAPIKey, rule)
		p.userPlans[name] = newPolicy(policyUser, rule)
	}
	return p
}

// moreGenerous compares rules by what they let through in the long run.
func moreGenerous(a, b limiter.Rule) bool {
	// Limits reach 1e12 and windows 2,678,400: the products stay below 2^63.
	return a.Limit*b.Window > b.Limit*a.Window
}

// addressBucket is the bucket of the client's address under p.
func (c *call) addressBucket(p *policy) limiter.BucketID {
	var buf [16]byte
	return c.srv.limits.Bucket(p.name, p.rule, append(c.scratch[:0], c.client.subject(&buf)...))
}

// take spends cost from a bucket, or answers 429 or 503. From then on the response shows p.
func (c *call) take(p *policy, bucket limiter.BucketID, cost int64) error {
	c.policy = p
	c.charge[0] = limiter.Charge{Bucket: bucket, Rule: p.rule, Cost: max(cost, 1)}
	switch c.srv.limits.Take(c.charge[:], c.verdict[:]) {
	case limiter.Admitted:
		c.charged = true
		return nil
	case limiter.Refused:
		return errRefused
	default:
		return ErrUnavailable
	}
}

// peek lets the response show p without spending. refused says that nothing more would pass.
func (c *call) peek(p *policy, bucket limiter.BucketID) (refused bool) {
	c.policy = p
	c.charge[0] = limiter.Charge{Bucket: bucket, Rule: p.rule, Cost: 1}
	c.verdict[0] = c.srv.limits.Peek(c.charge[0])
	return c.verdict[0].Outcome == limiter.Refused
}

// takeAddress spends from the address under p.
func (c *call) takeAddress(p *policy, cost int64) error {
	return c.take(p, c.addressBucket(p), cost)
}

// refund gives back what the request spent, where it ends in a 503 of this node's making.
func (c *call) refund() {
	if !c.charged {
		return
	}
	c.charged = false
	c.srv.limits.Refund(c.charge[:])
	v := &c.verdict[0]
	v.Remaining = min(v.Remaining+c.charge[0].Cost, v.Limit)
}

// errRefused is the 429 for the verdict at hand. It is answered by writeRefused, without allocating: under attack this is
// the answer that counts.
var errRefused = errors.New("limit used up")

// writeRefused answers errRefused as writeProblem would.
func (c *call) writeRefused() {
	h := &c.ctx.Response.Header
	c.ctx.SetStatusCode(http.StatusTooManyRequests)
	h.SetContentTypeBytes(typeProblem)
	h.SetCanonical(headerCacheControl, valueNoStore)
	wait := max(c.verdict[0].RetryAfter, 1)
	b := strconv.AppendInt(c.scratch[:0], wait, 10)
	h.SetCanonical(headerRetryAfter, b)
	b = append(b[:0], `{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Too Many Requests","status":429,`...)
	b = append(b, `"detail":"the limit is used up; retry_after says when to come back","code":"rate_limit_exceeded","request_id":"`...)
	b = append(b, c.idBuf[:c.idLen]...)
	b = append(b, `","retry_after":`...)
	b = strconv.AppendInt(b, wait, 10)
	b = append(b, `,"violated-policies":["`...)
	b = append(b, c.policy.name...)
	b = append(b, `"]}`...)
	c.ctx.Response.SetBody(b)
	c.scratch = b[:0]
}

// The header names, in the spelling that clients see.
var (
	headerRequestID    = []byte("X-Request-Id")
	headerLimit        = []byte("X-RateLimit-Limit")
	headerRemaining    = []byte("X-RateLimit-Remaining")
	headerReset        = []byte("X-RateLimit-Reset")
	headerWindow       = []byte("X-RateLimit-Window")
	headerPolicy       = []byte("RateLimit-Policy")
	headerRateLimit    = []byte("RateLimit")
	headerRetryAfter   = []byte("Retry-After")
	headerDebug        = []byte("X-RateLimit-Debug")
	headerCacheControl = []byte("Cache-Control")
	headerChallenge    = []byte("WWW-Authenticate") // fasthttp would write Www-Authenticate
	valueNoStore       = []byte("no-store")
	valueWaited        = []byte("waited=1")
	valueNotWaited     = []byte("waited=0")
	typeJSON           = []byte("application/json")
	typeProblem        = []byte("application/problem+json")
)

// writeLimits sets the limit headers: the X-RateLimit trio and window, and the two fields of
// draft-ietf-httpapi-ratelimit-headers-10.
func (c *call) writeLimits() {
	if c.policy == nil {
		return
	}
	p, v, h := c.policy, &c.verdict[0], &c.ctx.Response.Header
	now := c.now.Unix()
	limit, remaining, reset := p.rule.Limit, max(v.Remaining, 0), v.ResetAt
	if v.Outcome == limiter.Undecided || reset <= 0 {
		reset = now - now%p.rule.Window + p.rule.Window
	}
	wait := max(reset-now, 0)
	if v.Outcome == limiter.Refused {
		// Never a reset that asks for more patience than Retry-After does.
		remaining, wait = 0, max(v.RetryAfter, 1)
	}
	b := c.scratch[:0]
	h.SetCanonical(headerLimit, p.limit)
	b = strconv.AppendInt(b[:0], min(remaining, limit), 10)
	h.SetCanonical(headerRemaining, b)
	b = strconv.AppendInt(b[:0], reset, 10)
	h.SetCanonical(headerReset, b)
	h.SetCanonical(headerWindow, p.window)
	h.SetCanonical(headerPolicy, p.header)
	b = append(b[:0], p.head...)
	b = strconv.AppendInt(b, min(remaining, limit), 10)
	b = append(b, ";t="...)
	b = strconv.AppendInt(b, wait, 10)
	h.SetCanonical(headerRateLimit, b)
	c.scratch = b[:0]
	if !c.srv.cfg.Limit.DebugHeader || v.Outcome == 0 {
		return
	}
	if v.Waited {
		h.SetCanonical(headerDebug, valueWaited)
	} else {
		h.SetCanonical(headerDebug, valueNotWaited)
	}
}
