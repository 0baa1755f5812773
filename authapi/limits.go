package authapi

import (
	"errors"
	"math/bits"
	"net/http"
	"strconv"

	"sluice/limiter"
)

// decision is what the policies that count a request say of it: first the layer's own, then the configured ones in
// their order. Behind those that are enforced come the shadow policies that were charged.
type decision struct {
	n        int // enforced
	shadows  int
	policies [MaxCharges]*policy
	charges  [MaxCharges]limiter.Charge
	verdicts [MaxCharges]limiter.Verdict
	charged  bool
	set      *policySet // nil: the layer's policy is alone
	// Room for a bucket's subject; on the stack it would not stay.
	subject []byte
	address [16]byte
}

// reset makes d the decision of a request that no policy counts yet.
func (d *decision) reset() {
	d.n, d.shadows, d.charged, d.set = 0, 0, false, nil
}

// add appends an enforced policy. New sees to it that there is room.
func (d *decision) add(p *policy, bucket limiter.BucketID, cost int64) {
	d.policies[d.n] = p
	d.charges[d.n] = limiter.Charge{Bucket: bucket, Rule: p.rule, Cost: cost}
	d.verdicts[d.n] = limiter.Verdict{}
	d.n++
}

// subject is what the buckets of a request are told apart by. cred is nil without a good credential.
func (c *call) subject(cred *credential) subjectOf {
	s := subjectOf{address: c.client.subject(&c.decision.address), buf: c.decision.subject}
	if c.target != nil {
		s.route = c.target.name
	}
	if cred != nil {
		s.key, s.user, s.organization = cred.principal.KeyID, cred.principal.UserID, cred.organization
	}
	return s
}

// gather names what the request is to spend from: p's bucket and those of the policies that group has for its route.
// cred is nil without a good credential.
func (c *call) gather(p *policy, bucket limiter.BucketID, group *policyGroup, cred *credential, cost int64) {
	d := c.decision
	d.reset()
	d.add(p, bucket, max(cost, 1))
	set := group.routes[c.target.at()]
	if len(set.enforced) == 0 && len(set.shadow) == 0 {
		return
	}
	d.set = set
	s := c.subject(cred)
	for i := range set.enforced {
		m := &set.enforced[i]
		d.add(m.policy, m.bucketOf(c.srv.limits, cred, &s), max(cost, 1))
	}
	d.subject = s.buf[:0]
}

// bucketOf is the member's bucket for a request.
func (m *member) bucketOf(limits Limits, cred *credential, s *subjectOf) limiter.BucketID {
	if m.fixed >= 0 && cred != nil {
		return cred.buckets[m.fixed]
	}
	return m.bucket(limits, s)
}

// gatherAddress is gather for a request without a good credential.
func (c *call) gatherAddress(group *policyGroup, cost int64) {
	p := c.live.policies.anonymous
	c.gather(p, c.addressBucket(p), group, nil, cost)
}

// addressBucket is the bucket of the client's address under p, which is a layer's.
func (c *call) addressBucket(p *policy) limiter.BucketID {
	var buf [16]byte
	return c.srv.limits.Bucket(p.space, p.rule, append(c.scratch[:0], c.client.subject(&buf)...))
}

// takeDocument spends from the address's limit for documents, which no other policy comes on top of.
func (c *call) takeDocument() error {
	p := c.live.policies.documents
	c.decision.reset()
	c.decision.add(p, c.addressBucket(p), 1)
	return c.take(nil)
}

// take spends from all that was gathered, or from none and answers 429 or 503.
func (c *call) take(cred *credential) error {
	d := c.decision
	outcome := c.srv.limits.Take(d.charges[:d.n], d.verdicts[:d.n])
	if outcome == limiter.Admitted && c.moved() {
		c.srv.limits.Refund(d.charges[:d.n])
		return errLiveMoved
	}
	for i := range d.n {
		c.live.decisions.note(d.policies[i].index, &d.charges[i].Bucket, &d.verdicts[i], outcome)
	}
	switch outcome {
	case limiter.Admitted:
		d.charged = true
		if d.set != nil && len(d.set.shadow) > 0 {
			c.takeShadow(cred)
		}
		return nil
	case limiter.Refused:
		return errRefused
	default:
		return ErrUnavailable
	}
}

// peek lets the response show what was gathered, without spending. refused says that nothing more would pass.
func (c *call) peek() (refused bool) {
	d := c.decision
	for i := range d.n {
		d.verdicts[i] = c.srv.limits.Peek(d.charges[i])
		refused = refused || d.verdicts[i].Outcome == limiter.Refused
	}
	return refused
}

// refund gives back all that the request spent, where it ends in a 503 of this node's making.
func (c *call) refund() {
	d := c.decision
	if !d.charged {
		return
	}
	d.charged = false
	c.srv.limits.Refund(d.charges[:d.n+d.shadows])
	d.shadows = 0
	for i := range d.n {
		v := &d.verdicts[i]
		v.Remaining = min(v.Remaining+d.charges[i].Cost, d.policies[i].most())
	}
}

// tightest is the policy that the X-RateLimit headers show: of those that refuse the one to wait for longest, or else the
// one with the smallest part of its limit left. Of equals it is the one with the longest window.
func (d *decision) tightest() int {
	best := 0
	for i := 1; i < d.n; i++ {
		if d.tighter(i, best) {
			best = i
		}
	}
	return best
}

func (d *decision) tighter(i, j int) bool {
	return tighter(d.policies[i], &d.verdicts[i], d.policies[j], &d.verdicts[j])
}

// tighter compares what two policies say: pa is the one that headers show rather than pb.
func tighter(pa *policy, a *limiter.Verdict, pb *policy, b *limiter.Verdict) bool {
	longer := pa.rule.Window > pb.rule.Window
	switch refusedA, refusedB := a.Outcome == limiter.Refused, b.Outcome == limiter.Refused; {
	case refusedA != refusedB:
		return refusedA
	case refusedA && a.RetryAfter != b.RetryAfter:
		return a.RetryAfter > b.RetryAfter
	case refusedA:
		return longer
	}
	// What is left of a to what can be, against b's, in 128 bits; a limit of 0 is used up.
	ah, al := bits.Mul64(uint64(max(a.Remaining, 0)), uint64(max(pb.most(), 1)))
	bh, bl := bits.Mul64(uint64(max(b.Remaining, 0)), uint64(max(pa.most(), 1)))
	if ah != bh || al != bl {
		return ah < bh || ah == bh && al < bl
	}
	return longer
}

// retryAfter is how long the policies that refuse ask to wait, in seconds.
func (d *decision) retryAfter() int64 {
	wait := int64(1)
	for i := range d.n {
		if v := &d.verdicts[i]; v.Outcome == limiter.Refused {
			wait = max(wait, v.RetryAfter)
		}
	}
	return wait
}

// errRefused is the 429 for the decision at hand. It is answered by writeRefused, without allocating: under attack this is
// the answer that counts.
var errRefused = errors.New("limit used up")

// writeRefused answers errRefused as writeProblem would.
func (c *call) writeRefused() {
	d, h := c.decision, &c.ctx.Response.Header
	c.ctx.SetStatusCode(http.StatusTooManyRequests)
	h.SetContentTypeBytes(typeProblem)
	h.SetCanonical(headerCacheControl, valueNoStore)
	wait := d.retryAfter()
	b := strconv.AppendInt(c.scratch[:0], wait, 10)
	h.SetCanonical(headerRetryAfter, b)
	b = append(b[:0], `{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Too Many Requests","status":429,`...)
	b = append(b, `"detail":"the limit is used up; retry_after says when to come back","code":"rate_limit_exceeded","request_id":"`...)
	b = append(b, c.idBuf[:c.idLen]...)
	b = append(b, `","retry_after":`...)
	b = strconv.AppendInt(b, wait, 10)
	b = append(b, `,"violated-policies":[`...)
	sep := `"`
	for i := range d.n {
		if d.verdicts[i].Outcome == limiter.Refused {
			b = append(b, sep...)
			b = append(b, d.policies[i].name...)
			b = append(b, '"')
			sep = `,"`
		}
	}
	b = append(b, ']')
	if c.route != nil && c.route.oauth {
		b = append(b, `,"error":"`+oauthUnavailable+`"`...)
	}
	b = append(b, '}')
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

// writeLimits sets the limit headers: the X-RateLimit trio and window of the tightest policy, and the two fields of
// draft-ietf-httpapi-ratelimit-headers-10, which list all that are enforced.
func (c *call) writeLimits() {
	d, h := c.decision, &c.ctx.Response.Header
	if d.n == 0 {
		return
	}
	now := c.now.Unix()
	tightest := d.tightest()
	p := d.policies[tightest]
	remaining, reset, _ := d.shown(tightest, now)
	b := c.scratch[:0]
	h.SetCanonical(headerLimit, p.limit)
	b = strconv.AppendInt(b[:0], remaining, 10)
	h.SetCanonical(headerRemaining, b)
	b = strconv.AppendInt(b[:0], reset, 10)
	h.SetCanonical(headerReset, b)
	h.SetCanonical(headerWindow, p.window)
	if d.n == 1 {
		h.SetCanonical(headerPolicy, p.header)
	} else {
		b = append(b[:0], d.policies[0].header...)
		b = append(b, d.set.header...)
		h.SetCanonical(headerPolicy, b)
	}
	b = b[:0]
	for i := range d.n {
		if i > 0 {
			b = append(b, ", "...)
		}
		remaining, _, wait := d.shown(i, now)
		b = append(b, d.policies[i].head...)
		b = strconv.AppendInt(b, remaining, 10)
		b = append(b, ";t="...)
		b = strconv.AppendInt(b, wait, 10)
	}
	h.SetCanonical(headerRateLimit, b)
	c.scratch = b[:0]
	if !c.srv.cfg.Limit.DebugHeader || d.verdicts[0].Outcome == 0 {
		return
	}
	if d.verdicts[0].Waited {
		h.SetCanonical(headerDebug, valueWaited)
	} else {
		h.SetCanonical(headerDebug, valueNotWaited)
	}
}

// shown is what headers say of the i-th policy: units left, the end of its window in Unix seconds, and the seconds until
// there may be more. A token bucket has no window: it is when it will be full.
func (d *decision) shown(i int, now int64) (remaining, reset, wait int64) {
	return d.policies[i].shown(&d.verdicts[i], now)
}

// shown is what headers say of a policy's verdict.
func (p *policy) shown(v *limiter.Verdict, now int64) (remaining, reset, wait int64) {
	remaining, reset = min(max(v.Remaining, 0), p.most()), v.ResetAt
	if v.Outcome == limiter.Undecided || reset <= 0 {
		reset = now - now%p.rule.Window + p.rule.Window
	}
	wait = max(reset-now, 0)
	if v.Outcome == limiter.Refused {
		// Never a reset that asks for more patience than Retry-After does.
		remaining, wait = 0, max(v.RetryAfter, 1)
	}
	return remaining, reset, wait
}
