package authapi

import (
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"sluice/limiter"
)

const (
	scopeCheck = "limits:check"
	// policyCheck counts the checks whose limit comes with them.
	policyCheck = "check"
	// maxChecks bounds a batch.
	maxChecks = 100
	// maxCheckKey bounds a check's key, in bytes.
	maxCheckKey = 256
)

// checkRoutes are the rows of limits that callers keep for keys of their own.
func checkRoutes() []route {
	return []route{
		{method: "POST", pattern: "/api/v1/limits/check", handle: handleCheck, auth: authKey, scope: scopeCheck, lean: true},
	}
}

// checkRoom is what a batch needs while it is decided.
type checkRoom struct {
	reader  checkReader
	body    []byte
	out     []byte
	subject []byte
	outer   check
	checks  [maxChecks]check
	slots   [maxChecks]checkSlot
	// Those that spend, in the order of the checks: places are their indexes.
	n        int
	places   [maxChecks]int
	charges  [maxChecks]limiter.Charge
	verdicts [maxChecks]limiter.Verdict
}

// checkSlot is a check whose limit is known, and what became of it.
type checkSlot struct {
	policy  *policy
	bucket  limiter.BucketID
	rule    limiter.Rule
	cost    int64 // 0: only looked at
	verdict limiter.Verdict
}

// keptRoom bounds the buffers that stay with a room once a large body has come by; most are far smaller.
const keptRoom = 16 << 10

var checkRooms = sync.Pool{New: func() any { return new(checkRoom) }}

func (r *checkRoom) release() {
	for _, b := range []*[]byte{&r.body, &r.out, &r.subject, &r.reader.text} {
		if *b = (*b)[:0]; cap(*b) > keptRoom {
			*b = nil
		}
	}
	r.reader.body = nil
	clear(r.checks[:r.reader.n]) // they lead to bodies
	r.outer = check{}
	checkRooms.Put(r)
}

// handleCheck decides one check or a batch.
func handleCheck(c *call) error {
	room := checkRooms.Get().(*checkRoom)
	defer room.release()
	body, err := c.readBody(room.body[:0])
	if err != nil {
		return err
	}
	if c.ctx.Request.BodyStream() != nil {
		room.body = body // which may have grown
	}
	if err := c.checkBodyHeaders(); err != nil {
		return err
	}
	room.reader.list = room.checks[:]
	if bad := room.reader.read(body, &room.outer); bad != nil {
		return bad
	}
	list, single, err := room.asked()
	if err != nil {
		return err
	}
	slots := room.slots[:len(list)]
	lv := c.live
	allowed, err := c.decideChecks(lv, room, list, slots, single)
	for err == nil && c.srv.live.Load() != lv { // as call.moved
		room.giveBack(c.srv.limits, allowed)
		lv = c.srv.live.Load()
		allowed, err = c.decideChecks(lv, room, list, slots, single)
	}
	if err != nil {
		return err
	}
	now := c.now.Unix()
	out := room.out[:0]
	if single {
		out = slots[0].append(out, now)
	} else {
		out = append(out, `{"allowed":`...)
		out = strconv.AppendBool(out, allowed)
		out = append(out, `,"checks":[`...)
		for i := range slots {
			if i > 0 {
				out = append(out, ',')
			}
			out = slots[i].append(out, now)
		}
		out = append(out, "]}"...)
	}
	room.out = out
	c.writeBody(http.StatusOK, out)
	return nil
}

// decideChecks decides all checks by what is live in lv, together or each by itself. On an error nothing stays spent.
func (c *call) decideChecks(lv *live, room *checkRoom, list []check, slots []checkSlot, single bool) (allowed bool, err error) {
	var fields []FieldError
	for i := range list {
		at := i
		if single {
			at = -1
		}
		fields = lv.resolveCheck(&list[i], &slots[i], at, fields)
	}
	if err := invalidFields(fields); err != nil {
		return false, err
	}
	organization := c.principal.OrganizationID
	for i := range slots {
		s := &slots[i]
		// No id has a NUL in it: no two pairs of organization and key meet in one subject.
		room.subject = append(append(append(room.subject[:0], organization...), 0), list[i].key...)
		s.bucket = c.srv.limits.Bucket(s.policy.space, s.rule, room.subject)
	}
	if room.reader.atomic {
		return c.srv.decideTogether(lv.decisions, room, slots)
	}
	return c.srv.decideEach(lv.decisions, room, slots)
}

// giveBack gives back what the checks that were just decided have spent.
func (r *checkRoom) giveBack(limits Limits, allowed bool) {
	for at := range r.n {
		// Together they spend all, or nothing whatever each would have got.
		if r.reader.atomic && allowed || !r.reader.atomic && r.verdicts[at].Outcome == limiter.Admitted {
			limits.Refund(r.charges[at : at+1])
		}
	}
}

// asked are the checks of a request: the object itself, or those of "checks".
func (r *checkRoom) asked() (list []check, single bool, err error) {
	given := r.outer.given
	if given&fieldChecks == 0 {
		if given&fieldAtomic != 0 {
			return nil, false, invalid("atomic", "is for a batch")
		}
		r.checks[0] = r.outer
		r.reader.n = 1
		return r.checks[:1], true, nil
	}
	if given&^(fieldChecks|fieldAtomic) != 0 {
		return nil, false, invalid("checks", "stands for itself: a limit beside it belongs into an entry of its own")
	}
	if r.reader.n == 0 {
		return nil, false, invalid("checks", "must have at least one entry")
	}
	return r.checks[:r.reader.n], false, nil
}

// resolveCheck finds a check's limit, and adds what is wrong with it to fields. at is its index in the batch, or -1.
func (lv *live) resolveCheck(ch *check, slot *checkSlot, at int, fields []FieldError) []FieldError {
	wrong := func(f checkField, detail string) {
		fields = append(fields, FieldError{Field: checkPath(at, f.name()), Detail: detail})
	}
	switch n := len(ch.key); {
	case ch.given&fieldKey == 0:
		wrong(fieldKey, "is missing")
	case n == 0 || n > maxCheckKey:
		wrong(fieldKey, "must have 1 to 256 bytes")
	}
	before := len(fields)
	if ch.given&fieldPolicy != 0 {
		slot.policy = lv.policies.checks[string(ch.policy)]
		if slot.policy == nil {
			wrong(fieldPolicy, "is not the name of a policy for checks")
		} else {
			slot.rule = slot.policy.rule
		}
		for f := fieldLimit; f <= fieldBurst; f <<= 1 {
			if ch.given&f != 0 {
				wrong(f, "is the policy's to say")
			}
		}
	} else {
		slot.policy = lv.policies.check
		slot.rule = ch.rule(wrong)
	}
	slot.cost = 1
	if ch.given&fieldCost != 0 {
		slot.cost = ch.cost
	}
	switch most := ceiling(slot.rule); {
	case slot.cost < 0 || slot.cost > maxCost:
		wrong(fieldCost, "must be 0 to 1000000000000")
	case len(fields) == before && most > 0 && slot.cost > most:
		// It could never pass: a mistake, and no client should wait for it. Of a limit of 0 that is so of any cost, and meant.
		wrong(fieldCost, "must not be above what the limit can ever let through at once, which is "+strconv.FormatInt(most, 10))
	}
	return fields
}

// ceiling is the most that may pass at once.
func ceiling(r limiter.Rule) int64 {
	if r.Algorithm == limiter.TokenBucket {
		return r.Burst
	}
	return r.Limit
}

// checkAlgorithms are the algorithms by the names that clients use.
var checkAlgorithms = map[string]limiter.Algorithm{
	"sliding_window": limiter.SlidingWindow,
	"fixed_window":   limiter.FixedWindow,
	"token_bucket":   limiter.TokenBucket,
}

// rule is the limit that a check brings along; what is wrong with it goes to wrong.
func (ch *check) rule(wrong func(checkField, string)) limiter.Rule {
	r := limiter.Rule{Limit: ch.limit, Window: ch.window, Algorithm: limiter.SlidingWindow}
	switch {
	case ch.given&fieldLimit == 0:
		wrong(fieldLimit, "is missing, and so is a policy")
	case r.Limit < 0 || r.Limit > maxLimit:
		wrong(fieldLimit, "must be 0 to 1000000000000")
	}
	switch {
	case ch.given&fieldWindow == 0:
		wrong(fieldWindow, "is missing, and so is a policy")
	case r.Window < 1 || r.Window > maxWindow:
		wrong(fieldWindow, "must be 1 to 2678400")
	}
	if ch.given&fieldAlgorithm != 0 {
		algorithm, known := checkAlgorithms[string(ch.algorithm)]
		if r.Algorithm = algorithm; !known {
			wrong(fieldAlgorithm, "must be sliding_window, fixed_window or token_bucket")
		}
	}
	switch {
	case r.Algorithm == limiter.TokenBucket && ch.given&fieldBurst == 0 && r.Limit == 0:
		wrong(fieldLimit, "must be at least 1 for a token bucket without a burst")
	case r.Algorithm == limiter.TokenBucket && ch.given&fieldBurst == 0:
		r.Burst = r.Limit
	case r.Algorithm == limiter.TokenBucket && (ch.burst < 1 || ch.burst > maxLimit):
		wrong(fieldBurst, "must be 1 to 1000000000000")
	case r.Algorithm == limiter.TokenBucket:
		r.Burst = ch.burst
	case ch.given&fieldBurst != 0:
		wrong(fieldBurst, "means nothing to this algorithm")
	}
	return r
}

// decideEach decides each check by itself. allowed says that all may pass. On an error nothing stays spent.
func (s *Server) decideEach(d *decisions, room *checkRoom, slots []checkSlot) (allowed bool, err error) {
	var waiting []int // in charges; only what needs another node allocates
	room.n = 0
	for i := range slots {
		slot := &slots[i]
		if slot.cost == 0 {
			slot.peek(s.limits)
			continue
		}
		at := room.charge(i, slot)
		outcome, wait := s.limits.TryTake(room.charges[at:at+1], room.verdicts[at:at+1])
		if wait {
			waiting = append(waiting, at)
		} else {
			room.verdicts[at].Outcome = outcome
		}
	}
	if len(waiting) > 0 {
		s.takeWaiting(room.charges[:], room.verdicts[:], waiting)
	}
	outcome := limiter.Admitted
	for at := range room.n {
		slot, v := &slots[room.places[at]], &room.verdicts[at]
		slot.verdict = *v
		d.note(slot.policy.index, &slot.bucket, v, v.Outcome)
		outcome = max(outcome, v.Outcome)
	}
	for i := range slots {
		outcome = max(outcome, slots[i].verdict.Outcome)
	}
	if outcome == limiter.Undecided {
		for at := range room.n {
			if room.verdicts[at].Outcome == limiter.Admitted {
				s.limits.Refund(room.charges[at : at+1])
			}
		}
		return false, ErrUnavailable
	}
	return outcome == limiter.Admitted, nil
}

// maxWaiting bounds how many charges of one request wait at once.
const maxWaiting = 100

// takeWaiting, which allocates, takes those charges that wait for other nodes: side by side, or a batch could wait a hundred times.
func (s *Server) takeWaiting(charges []limiter.Charge, verdicts []limiter.Verdict, waiting []int) {
	sideBySide(waiting, func(at int) {
		verdicts[at].Outcome = s.limits.Take(charges[at:at+1], verdicts[at:at+1])
	})
}

// sideBySide does something for each index, up to maxWaiting at once.
func sideBySide(indexes []int, do func(int)) {
	if len(indexes) == 1 {
		do(indexes[0])
		return
	}
	for some := range slices.Chunk(indexes, maxWaiting) {
		var all sync.WaitGroup
		for _, at := range some {
			all.Go(func() { do(at) })
		}
		all.Wait()
	}
}

// decideTogether lets all checks pass, or spends from none. Each verdict says what its check alone would get. Checks that
// only look come first: they must let one unit pass.
func (s *Server) decideTogether(d *decisions, room *checkRoom, slots []checkSlot) (allowed bool, err error) {
	room.n = 0
	whole := limiter.Admitted
	for i := range slots {
		if slot := &slots[i]; slot.cost == 0 {
			slot.peek(s.limits)
			whole = max(whole, slot.verdict.Outcome)
		} else {
			room.charge(i, slot)
		}
	}
	charges, verdicts := room.charges[:room.n], room.verdicts[:room.n]
	if whole == limiter.Admitted && room.n > 0 {
		whole = s.limits.Take(charges, verdicts)
		for at := range charges {
			slot := &slots[room.places[at]]
			slot.verdict = verdicts[at]
			d.note(slot.policy.index, &slot.bucket, &slot.verdict, whole)
		}
	} else {
		for at := range charges {
			slot := &slots[room.places[at]]
			slot.verdict = s.limits.Peek(charges[at])
			whole = max(whole, slot.verdict.Outcome)
		}
	}
	if whole == limiter.Undecided {
		return false, ErrUnavailable
	}
	return whole == limiter.Admitted, nil
}

// charge adds the charge of the i-th check, and says where.
func (r *checkRoom) charge(i int, slot *checkSlot) int {
	at := r.n
	r.n++
	r.places[at] = i
	r.charges[at] = limiter.Charge{Bucket: slot.bucket, Rule: slot.rule, Cost: slot.cost}
	r.verdicts[at] = limiter.Verdict{}
	return at
}

// peek looks whether one unit would pass, and spends nothing.
func (s *checkSlot) peek(limits Limits) {
	s.verdict = limits.Peek(limiter.Charge{Bucket: s.bucket, Rule: s.rule, Cost: 1})
}

// append writes the answer to one check.
func (s *checkSlot) append(b []byte, now int64) []byte {
	v := &s.verdict
	reset, retry := v.ResetAt, int64(0)
	if reset <= 0 {
		reset = now - now%s.rule.Window + s.rule.Window
	}
	if v.Outcome == limiter.Refused {
		retry = max(v.RetryAfter, 1)
	}
	b = append(b, `{"allowed":`...)
	b = strconv.AppendBool(b, v.Outcome == limiter.Admitted)
	b = append(b, `,"limit":`...)
	b = strconv.AppendInt(b, s.rule.Limit, 10)
	b = append(b, `,"remaining":`...)
	b = strconv.AppendInt(b, min(max(v.Remaining, 0), ceiling(s.rule)), 10)
	b = append(b, `,"reset_at":"`...)
	b = time.Unix(reset, 0).UTC().AppendFormat(b, time.RFC3339)
	b = append(b, `","retry_after":`...)
	b = strconv.AppendInt(b, retry, 10)
	return append(b, '}')
}
