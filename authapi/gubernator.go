package authapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"sluice/authapi/gubernatorpb"
	"sluice/limiter"
	"sluice/raftfsm/state"
)

const (
	// policyGubernator counts what is asked by Gubernator's API.
	policyGubernator = "gubernator"
	gubernatorPath   = "/v1/GetRateLimits"
	gubernatorHealth = "/v1/HealthCheck"
	// MaxGubernatorRequests bounds a call, as Gubernator itself does.
	MaxGubernatorRequests = 1000
	// maxGubernatorName bounds a name and a unique key, in bytes.
	maxGubernatorName = 1024
	// resetsEach is how many buckets a node resets in a second for clients: each reset is an entry of the log.
	resetsEach = 10
)

// gubernatorRoutes are the rows of Gubernator's API for callers with a key. Those without are served by ServeGubernator.
func gubernatorRoutes() []route {
	return []route{
		{method: "POST", pattern: gubernatorPath, handle: handleGubernator, auth: authKey, scope: scopeCheck, lean: true},
	}
}

// handleGubernator decides for the caller's organization.
func handleGubernator(c *call) error {
	body, err := c.readBody(nil)
	if err != nil {
		return err
	}
	if err := c.checkBodyHeaders(); err != nil {
		return err
	}
	return c.answerGubernator(body, c.principal.OrganizationID)
}

// answerGubernator decides what a body asks.
func (c *call) answerGubernator(body []byte, organization string) error {
	if err := checkDepth(body); err != nil {
		return err
	}
	var req gubernatorpb.GetRateLimitsReq
	if err := protojson.Unmarshal(body, &req); err != nil {
		return invalidJSON(protoDetail(err))
	}
	ctx, cancel := c.context()
	defer cancel()
	resp, err := c.srv.GetRateLimits(ctx, organization, &req)
	if errors.Is(err, ErrGubernator) {
		return invalid("requests", "must have 1 to 1000 elements")
	}
	if err != nil {
		return err
	}
	return c.writeProto(resp)
}

// writeProto answers with a message as Gubernator's gateway spells it: names as in the .proto file, every field there.
func (c *call) writeProto(m proto.Message) error {
	out, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	var compact bytes.Buffer // protojson puts spaces here and there, so that nobody relies on its bytes
	if err := json.Compact(&compact, out); err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	c.writeBody(http.StatusOK, compact.Bytes())
	return nil
}

// protoDetail is what is wrong with JSON, for people, without the library's own beginning and of no more than some length.
func protoDetail(err error) string {
	text := strings.ToValidUTF8(strings.TrimLeft(strings.TrimPrefix(err.Error(), "proto:"), "\u00a0 "), "")
	const most = 200
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

// ErrGubernator says that a call has no requests, or too many.
var ErrGubernator = errors.New("a call must have 1 to 1000 requests")

// errTooManyResets: clients have reset what they may for now.
var errTooManyResets = errors.New("too many resets")

// rateLimit is a request of Gubernator's API on its way.
type rateLimit struct {
	req    *gubernatorpb.RateLimitReq
	resp   *gubernatorpb.RateLimitResp
	rule   limiter.Rule
	bucket limiter.BucketID
}

// GetRateLimits answers Gubernator's call: each request by itself, one that makes no sense with an error of its own.
// organization keeps callers apart, "" is that of callers without a key. Errors: ErrGubernator; ErrUnavailable, and then
// nothing is spent. Safe for concurrent use.
func (s *Server) GetRateLimits(ctx context.Context, organization string, req *gubernatorpb.GetRateLimitsReq) (*gubernatorpb.GetRateLimitsResp, error) {
	n := len(req.GetRequests())
	if n == 0 || n > MaxGubernatorRequests {
		return nil, ErrGubernator
	}
	out := &gubernatorpb.GetRateLimitsResp{Responses: make([]*gubernatorpb.RateLimitResp, n)}
	list := make([]rateLimit, n)
	var subject []byte
	var resets []*rateLimit
	for i, r := range req.GetRequests() {
		l := &list[i]
		l.req, l.resp = r, &gubernatorpb.RateLimitResp{Limit: r.GetLimit()}
		out.Responses[i] = l.resp
		rule, detail := gubernatorRule(r)
		if detail != "" {
			l.resp = nil
			out.Responses[i] = &gubernatorpb.RateLimitResp{Error: detail}
			continue
		}
		l.rule = rule
		subject = appendGubernator(subject[:0], organization, r.GetName(), r.GetUniqueKey())
		l.bucket = s.limits.Bucket(policyGubernator, rule, subject)
		if has(r, gubernatorpb.Behavior_RESET_REMAINING) {
			resets = append(resets, l)
		}
	}
	// Nobody can take a reset back, so what may fail comes first.
	if err := s.takeRateLimits(list); err != nil {
		return nil, err
	}
	s.resetRateLimits(ctx, resets)
	return out, nil
}

func has(r *gubernatorpb.RateLimitReq, flag gubernatorpb.Behavior) bool {
	return r.GetBehavior()&flag != 0
}

// appendGubernator writes a bucket's subject: no two names and keys meet in one. An organization's id has no NUL in it.
func appendGubernator(b []byte, organization, name, key string) []byte {
	b = append(append(b, organization...), 0, byte(len(name)>>8), byte(len(name)))
	return append(append(b, name...), key...)
}

// takeRateLimits decides all but resets. On an error nothing stays spent.
func (s *Server) takeRateLimits(list []rateLimit) error {
	charges, verdicts := make([]limiter.Charge, len(list)), make([]limiter.Verdict, len(list))
	var waiting []int
	for i := range list {
		l := &list[i]
		if l.resp == nil || has(l.req, gubernatorpb.Behavior_RESET_REMAINING) {
			continue
		}
		charges[i] = limiter.Charge{Bucket: l.bucket, Rule: l.rule, Cost: max(l.req.GetHits(), 1)}
		if l.req.GetHits() == 0 {
			verdicts[i] = s.limits.Peek(charges[i])
			continue
		}
		outcome, wait := s.limits.TryTake(charges[i:i+1], verdicts[i:i+1])
		if wait {
			waiting = append(waiting, i)
		} else {
			verdicts[i].Outcome = outcome
		}
	}
	s.takeWaiting(charges, verdicts, waiting)
	lv := s.live.Load()
	undecided := false
	for i := range list {
		if charges[i].Cost == 0 {
			continue
		}
		if list[i].req.GetHits() > 0 {
			lv.decisions.note(lv.policies.gubernator.index, &list[i].bucket, &verdicts[i], verdicts[i].Outcome)
		}
		undecided = undecided || verdicts[i].Outcome == limiter.Undecided
	}
	if undecided {
		for i := range list {
			if charges[i].Cost > 0 && list[i].req.GetHits() > 0 && verdicts[i].Outcome == limiter.Admitted {
				s.limits.Refund(charges[i : i+1])
			}
		}
		return ErrUnavailable
	}
	var drains []int
	for i := range list {
		if charges[i].Cost > 0 && verdicts[i].Outcome == limiter.Refused && list[i].req.GetHits() > 0 && has(list[i].req, gubernatorpb.Behavior_DRAIN_OVER_LIMIT) {
			drains = append(drains, i)
		}
	}
	sideBySide(drains, func(i int) { s.drain(charges[i], &verdicts[i]) })
	now := s.clock()
	for i := range list {
		l, v := &list[i], &verdicts[i]
		if charges[i].Cost == 0 {
			continue
		}
		if v.Outcome == limiter.Refused {
			l.resp.Status = gubernatorpb.Status_OVER_LIMIT
		}
		l.resp.Remaining = min(max(v.Remaining, 0), ceiling(l.rule))
		l.resp.ResetTime = gubernatorReset(l.rule, v.ResetAt, now)
	}
	return nil
}

// gubernatorReset is the end of the present window in Unix milliseconds; of a leaky bucket, when it will be full.
func gubernatorReset(rule limiter.Rule, resetAt int64, now time.Time) int64 {
	if resetAt <= 0 {
		resetAt = now.Unix() - now.Unix()%rule.Window + rule.Window
	}
	return resetAt * 1000
}

// drain spends what is left of a bucket that refused, as far as this node knows and can reach it.
func (s *Server) drain(charge limiter.Charge, v *limiter.Verdict) {
	var last [1]limiter.Verdict
	for range 3 { // what is left may go to somebody else at the same time
		if v.Remaining <= 0 {
			return
		}
		charge.Cost = v.Remaining
		outcome := s.limits.Take([]limiter.Charge{charge}, last[:])
		v.Remaining = last[0].Remaining
		if outcome != limiter.Refused {
			return
		}
	}
}

// resetRateLimits lets buckets count from nothing, by one entry of the log for each 64 of them.
func (s *Server) resetRateLimits(ctx context.Context, list []*rateLimit) {
	failed := func(l *rateLimit, err error) {
		text := "the bucket could not be reset: "
		if errors.Is(err, errTooManyResets) {
			text += "as many as clients may reset are remembered, or were reset in this second"
		} else {
			text += "the cluster cannot decide now"
		}
		l.resp.Reset()
		l.resp.Error = text
	}
	now := s.clock()
	var targets []state.ResetTarget
	var of []*rateLimit
	flush := func() {
		if len(targets) == 0 {
			return
		}
		_, err := s.propose(ctx, state.ResetBucket{At: now.UnixMilli(), Buckets: targets})
		var refusal *state.Refusal
		if errors.As(err, &refusal) && refusal.Code == state.CodeTooManyResets {
			err = errTooManyResets
		}
		for _, l := range of {
			if err != nil {
				failed(l, err)
				continue
			}
			l.resp.Remaining = ceiling(l.rule)
			l.resp.ResetTime = gubernatorReset(l.rule, 0, now)
		}
		targets, of = nil, nil
	}
	for _, l := range list {
		if slices.ContainsFunc(targets, func(t state.ResetTarget) bool { return limiter.BucketID(t.Bucket) == l.bucket }) {
			of = append(of, l)
			continue
		}
		if l.bucket == (limiter.BucketID{}) { // the limiter is not there yet
			failed(l, ErrUnavailable)
			continue
		}
		if s.cfg.MayReset != nil && !s.cfg.MayReset(l.bucket) || !s.resets.take(now) {
			failed(l, errTooManyResets)
			continue
		}
		targets = append(targets, state.ResetTarget{
			Bucket: slices.Clone(l.bucket[:]), Policy: policyGubernator, Algorithm: uint8(l.rule.Algorithm), Window: l.rule.Window,
		})
		of = append(of, l)
		if len(targets) == maxResets {
			flush()
		}
	}
	flush()
}

// resetBudget bounds the resets of a second.
type resetBudget struct {
	mu     sync.Mutex
	second int64
	used   int
}

func (b *resetBudget) take(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if second := now.Unix(); second != b.second {
		b.second, b.used = second, 0
	}
	b.used++
	return b.used <= resetsEach
}

// Kinds of intervals, with DURATION_IS_GREGORIAN, and how many seconds those have that can be kept.
var gregorian = map[int64]int64{0: 60, 1: 3600, 2: 86400}

// gubernatorRule is the limit that a request brings along, or what is wrong with it.
func gubernatorRule(r *gubernatorpb.RateLimitReq) (rule limiter.Rule, detail string) {
	switch {
	case r == nil:
		return rule, "a request must not be null"
	case r.GetUniqueKey() == "":
		return rule, "field 'unique_key' cannot be empty"
	case r.GetName() == "":
		return rule, "field 'name' cannot be empty"
	case len(r.GetUniqueKey()) > maxGubernatorName || len(r.GetName()) > maxGubernatorName:
		return rule, "fields 'name' and 'unique_key' have at most 1024 bytes"
	case r.GetHits() < 0 || r.GetHits() > maxCost:
		return rule, "field 'hits' must be 0 to 1000000000000: nothing can be given back"
	case r.GetLimit() < 0 || r.GetLimit() > maxLimit:
		return rule, "field 'limit' must be 0 to 1000000000000"
	case r.GetBurst() < 0 || r.GetBurst() > maxLimit:
		return rule, "field 'burst' must be 0 to 1000000000000"
	}
	millis := r.GetDuration()
	if has(r, gubernatorpb.Behavior_DURATION_IS_GREGORIAN) {
		seconds := gregorian[millis]
		if seconds == 0 {
			return rule, "with DURATION_IS_GREGORIAN field 'duration' must be 0 (minutes), 1 (hours) or 2 (days, of UTC)"
		}
		millis = seconds * 1000
	}
	if millis < 1 || millis > maxWindow*1000 {
		return rule, "field 'duration' must be 1 to 2678400000 milliseconds"
	}
	whole := millis%1000 == 0
	switch r.GetAlgorithm() {
	case gubernatorpb.Algorithm_TOKEN_BUCKET:
		if whole {
			return limiter.Rule{Limit: r.GetLimit(), Window: millis / 1000, Algorithm: limiter.FixedWindow}, ""
		}
		// Windows are of whole seconds. An even flow with the limit at once lets through no more in any time than windows
		// from any moment on might.
		return evenRule(r.GetLimit(), millis, r.GetLimit())
	case gubernatorpb.Algorithm_LEAKY_BUCKET:
		burst := r.GetBurst()
		if burst == 0 {
			burst = r.GetLimit()
		}
		return evenRule(r.GetLimit(), millis, burst)
	}
	return rule, "field 'algorithm' must be TOKEN_BUCKET or LEAKY_BUCKET"
}

// evenRule is a token bucket that gains limit units in millis milliseconds. Where that takes too long a window to say, millis
// is rounded up to a whole second, of 2,678 at least.
func evenRule(limit, millis, burst int64) (rule limiter.Rule, detail string) {
	if limit == 0 {
		return limiter.Rule{Window: (millis + 999) / 1000, Algorithm: limiter.FixedWindow}, "" // nothing ever passes
	}
	shared := gcd(millis, 1000)
	if millis/shared > maxWindow {
		millis = (millis + 999) / 1000 * 1000
		shared = 1000
	}
	if limit > math.MaxInt64/1000 || limit*(1000/shared) > maxLimit {
		return rule, "field 'limit' is too high for a 'duration' that is no multiple of a second"
	}
	return limiter.Rule{Limit: limit * (1000 / shared), Window: millis / shared, Algorithm: limiter.TokenBucket, Burst: burst}, ""
}

func gcd(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// GubernatorHealth answers Gubernator's HealthCheck: healthy where /readyz says that the node is fit for traffic.
func (s *Server) GubernatorHealth() *gubernatorpb.HealthCheckResp {
	out := &gubernatorpb.HealthCheckResp{Status: "healthy", AdvertiseAddress: s.cfg.NodeID, PeerCount: 1}
	if s.cfg.Members != nil {
		out.PeerCount = int32(s.cfg.Members())
	}
	list, ready := s.checks()
	if ready {
		return out
	}
	out.Status = "unhealthy"
	var failing []string
	for _, check := range list {
		if check.Err != nil {
			failing = append(failing, check.Name)
		}
	}
	out.Message = "failing: " + strings.Join(failing, ", ")
	return out
}
