package authapi

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"sluice/limiter"
)

// policyDescriptor counts descriptors whose limit comes with them.
const policyDescriptor = "descriptor"

const (
	// MaxDescriptors bounds a request's descriptors, MaxEntries the entries of each.
	MaxDescriptors = 100
	MaxEntries     = 32
	// MaxEntryText bounds a domain, and an entry's key and value, in bytes.
	MaxEntryText = 1024
)

// DescriptorEntry is a part of a descriptor: a key and its value. In a DescriptorRule "" stands for any value, each of which
// has a bucket of its own, and one with a star at its end for those that begin so.
type DescriptorEntry struct{ Key, Value string }

// DescriptorRule says which policy counts the descriptors of a domain that have these entries, in this order and no others.
// Where several rules fit, they are told apart entry by entry from the first: the value itself comes before the longest
// beginning of it, and that before any value. What was left behind at an entry is not looked at again.
type DescriptorRule struct {
	Domain  string
	Entries []DescriptorEntry
	Policy  string // the name of one with By = ByDescriptor
	// Unlimited lets them pass uncounted, in place of a policy: an exception from a wider rule.
	Unlimited bool
}

// domains are the trees that descriptors are looked up in.
type domains map[string]*descriptorNode

// descriptorNode is an entry of a tree.
type descriptorNode struct {
	rule     *descriptorLimit // of descriptors that end here; nil for none
	exact    map[DescriptorEntry]*descriptorNode
	prefixes []descriptorPrefix // the longest first
	any      map[string]*descriptorNode
}

type descriptorPrefix struct {
	key, prefix string
	node        *descriptorNode
}

// descriptorLimit is a rule: its policy, nil for unlimited.
type descriptorLimit struct{ policy *policy }

// newDomains builds the trees of rules, whose policies are among configured.
func newDomains(rules []DescriptorRule, configured []*policy) (domains, error) {
	d := domains{}
	var problems []error
	for i, r := range rules {
		if err := d.add(r, configured); err != nil {
			problems = append(problems, fmt.Errorf("descriptor %d: %w", i+1, err))
		}
	}
	return d, errors.Join(problems...)
}

func (d domains) add(r DescriptorRule, configured []*policy) error {
	switch {
	case r.Domain == "" || len(r.Domain) > MaxEntryText:
		return fmt.Errorf("the domain must have 1 to %d bytes", MaxEntryText)
	case len(r.Entries) == 0 || len(r.Entries) > MaxEntries:
		return fmt.Errorf("it must have 1 to %d entries", MaxEntries)
	case r.Unlimited == (r.Policy != ""):
		return errors.New("it must have a policy, or be unlimited")
	}
	limit := &descriptorLimit{}
	if !r.Unlimited {
		at := slices.IndexFunc(configured, func(p *policy) bool { return p.name == r.Policy })
		if at < 0 || !slices.Contains(configured[at].by, ByDescriptor) {
			return fmt.Errorf("%q is not the name of a policy for descriptors", r.Policy)
		}
		limit.policy = configured[at]
	}
	n := d[r.Domain]
	if n == nil {
		n = &descriptorNode{}
		d[r.Domain] = n
	}
	for _, e := range r.Entries {
		if e.Key == "" || len(e.Key) > MaxEntryText || len(e.Value) > MaxEntryText {
			return fmt.Errorf("an entry must have a key of 1 to %d bytes, and a value of no more", MaxEntryText)
		}
		n = n.child(e)
	}
	if n.rule != nil {
		return errors.New("another one has the same domain and entries")
	}
	n.rule = limit
	return nil
}

// child is the node of an entry of a rule, made where there is none yet.
func (n *descriptorNode) child(e DescriptorEntry) *descriptorNode {
	if e.Value == "" {
		if n.any == nil {
			n.any = map[string]*descriptorNode{}
		}
		if n.any[e.Key] == nil {
			n.any[e.Key] = &descriptorNode{}
		}
		return n.any[e.Key]
	}
	if prefix, ok := strings.CutSuffix(e.Value, "*"); ok {
		for _, p := range n.prefixes {
			if p.key == e.Key && p.prefix == prefix {
				return p.node
			}
		}
		made := &descriptorNode{}
		n.prefixes = append(n.prefixes, descriptorPrefix{e.Key, prefix, made})
		slices.SortStableFunc(n.prefixes, func(a, b descriptorPrefix) int { return len(b.prefix) - len(a.prefix) })
		return made
	}
	if n.exact == nil {
		n.exact = map[DescriptorEntry]*descriptorNode{}
	}
	if n.exact[e] == nil {
		n.exact[e] = &descriptorNode{}
	}
	return n.exact[e]
}

// next is the node of an entry of a descriptor, nil for none.
func (n *descriptorNode) next(e DescriptorEntry) *descriptorNode {
	if found := n.exact[e]; found != nil {
		return found
	}
	for i := range n.prefixes {
		if p := &n.prefixes[i]; p.key == e.Key && strings.HasPrefix(e.Value, p.prefix) {
			return p.node
		}
	}
	return n.any[e.Key]
}

// find is the rule of a descriptor, nil where none counts it.
func (n *descriptorNode) find(entries []DescriptorEntry) *descriptorLimit {
	for _, e := range entries {
		if n = n.next(e); n == nil {
			return nil
		}
	}
	return n.rule
}

// Descriptor is what Envoy's rate-limit service is asked about.
type Descriptor struct {
	Entries []DescriptorEntry
	// Limit is the descriptor's own, in place of its policy's; nil for none.
	Limit *limiter.Rule
	Cost  int64 // 0 only looks whether one unit would pass
}

// DescriptorStatus is what became of a descriptor.
type DescriptorStatus struct {
	// Policy is the name of what counts it, "" where nothing does: then it passes, and the rest means nothing.
	Policy string
	Rule   limiter.Rule
	// Shadow: it passes whatever the verdict says.
	Shadow bool
	// Verdict is that of the descriptor alone.
	Verdict limiter.Verdict
	// Remaining are the units left, ResetAt is the end of the window in Unix seconds, as headers say them; ResetIn are the seconds
	// until then.
	Remaining, ResetAt, ResetIn int64

	policy *policy
	bucket limiter.BucketID
	cost   int64
}

// Over says that the descriptor is over its limit, and that this counts.
func (d *DescriptorStatus) Over() bool {
	return d.Policy != "" && !d.Shadow && d.Verdict.Outcome == limiter.Refused
}

// ErrDescriptor is in the tree of what LimitDescriptors says of a request that makes no sense.
var ErrDescriptor = errors.New("invalid descriptors")

// LimitDescriptors spends from the limits of all descriptors, or from none where one is over its limit: over then. Those of
// shadow policies are spent from by themselves once the others have let the request pass. A domain without rules limits
// nothing, whatever limits its descriptors bring along. Errors: ErrDescriptor with what is wrong; ErrUnavailable, and then
// nothing was spent. Safe for concurrent use.
func (s *Server) LimitDescriptors(domain string, list []Descriptor) (statuses []DescriptorStatus, over bool, err error) {
	if err := checkDescriptors(domain, list); err != nil {
		return nil, false, err
	}
	for {
		lv := s.live.Load()
		statuses, outcome, moved := s.limitDescriptors(lv, domain, list)
		switch {
		case moved:
		case outcome == limiter.Undecided:
			return nil, false, ErrUnavailable
		default:
			return statuses, outcome == limiter.Refused, nil
		}
	}
}

// limitDescriptors is LimitDescriptors by lv. moved says that lv is no longer in force, and what was spent has been given back.
func (s *Server) limitDescriptors(lv *live, domain string, list []Descriptor) (statuses []DescriptorStatus, outcome limiter.Outcome, moved bool) {
	statuses = make([]DescriptorStatus, len(list))
	tree := lv.policies.domains[domain]
	if tree == nil {
		s.unmatched.domain.Add(uint64(len(list)))
		return statuses, limiter.Admitted, false
	}
	var subject []byte
	for i := range list {
		d, st := &list[i], &statuses[i]
		if d.Limit != nil {
			rule := *d.Limit
			st.policy = newPolicy(policyDescriptor, lv.policies.descriptor.index, rule)
		} else {
			found := tree.find(d.Entries)
			if found == nil {
				s.unmatched.entries.Add(1)
				continue
			}
			if st.policy = found.policy; st.policy == nil {
				continue // unlimited
			}
		}
		st.Policy, st.Rule, st.Shadow, st.cost = st.policy.name, st.policy.rule, st.policy.shadow, d.Cost
		subject = appendDescriptor(subject[:0], domain, d.Entries)
		st.bucket = s.limits.Bucket(st.policy.space, st.Rule, subject)
	}
	outcome, moved = s.takeDescriptors(lv, statuses)
	if moved || outcome == limiter.Undecided {
		return statuses, outcome, moved
	}
	now := s.clock().Unix()
	for i := range statuses {
		st := &statuses[i]
		if st.Policy == "" {
			continue
		}
		st.Remaining, st.ResetAt, _ = st.policy.shown(&st.Verdict, now)
		st.ResetIn = max(st.ResetAt-now, 0)
	}
	return statuses, outcome, false
}

// unmatched counts descriptors that no rule counts: a name that is misspelled somewhere would go unnoticed.
type unmatched struct{ domain, entries atomic.Uint64 }

// UnmatchedDescriptors are how many descriptors passed since the server was made because nothing is configured for their domain, and how
// many because no rule of their domain has their entries. Safe for concurrent use.
func (s *Server) UnmatchedDescriptors() (domain, entries uint64) {
	return s.unmatched.domain.Load(), s.unmatched.entries.Load()
}

// takeDescriptors decides all that are enforced together, and then those that are not.
func (s *Server) takeDescriptors(lv *live, statuses []DescriptorStatus) (whole limiter.Outcome, moved bool) {
	whole = limiter.Admitted
	var charges []limiter.Charge
	var of []*DescriptorStatus
	for i := range statuses {
		switch st := &statuses[i]; {
		case st.Policy == "" || st.Shadow:
		case st.cost == 0:
			st.Verdict = s.limits.Peek(st.charge(1))
			whole = max(whole, st.Verdict.Outcome)
		default:
			charges, of = append(charges, st.charge(st.cost)), append(of, st)
		}
	}
	if whole == limiter.Admitted && len(charges) > 0 {
		verdicts := make([]limiter.Verdict, len(charges))
		whole = s.limits.Take(charges, verdicts)
		if whole == limiter.Admitted && s.live.Load() != lv { // as for requests: see call.moved
			s.limits.Refund(charges)
			return whole, true
		}
		for i, st := range of {
			st.Verdict = verdicts[i]
			lv.decisions.note(st.policy.index, &st.bucket, &st.Verdict, whole)
		}
	} else {
		for i, st := range of {
			st.Verdict = s.limits.Peek(charges[i])
			whole = max(whole, st.Verdict.Outcome)
		}
	}
	for i := range statuses {
		if st := &statuses[i]; st.Policy != "" && st.Shadow {
			s.takeShadowDescriptor(lv, st, whole == limiter.Admitted)
		}
	}
	return whole, false
}

// takeShadowDescriptor spends from a shadow policy where the request passes; otherwise it only looks.
func (s *Server) takeShadowDescriptor(lv *live, st *DescriptorStatus, passes bool) {
	if !passes || st.cost == 0 {
		st.Verdict = s.limits.Peek(st.charge(max(st.cost, 1)))
		return
	}
	charges, verdicts := [1]limiter.Charge{st.charge(st.cost)}, [1]limiter.Verdict{}
	counter := lv.shadows.counters[st.policy.index]
	outcome, wait := s.limits.TryTake(charges[:], verdicts[:])
	if wait {
		s.shadows.later(counter, charges[0])
		st.Verdict = s.limits.Peek(charges[0])
		return
	}
	counter.note(outcome)
	st.Verdict = verdicts[0]
}

func (d *DescriptorStatus) charge(cost int64) limiter.Charge {
	return limiter.Charge{Bucket: d.bucket, Rule: d.Rule, Cost: cost}
}

// appendDescriptor writes what a descriptor's bucket is told apart by: each text with its length before it.
func appendDescriptor(b []byte, domain string, entries []DescriptorEntry) []byte {
	text := func(s string) { b = append(append(b, byte(len(s)>>8), byte(len(s))), s...) }
	text(domain)
	for _, e := range entries {
		text(e.Key)
		text(e.Value)
	}
	return b
}

// checkDescriptors says what is wrong with a request.
func checkDescriptors(domain string, list []Descriptor) error {
	fail := func(field, detail string) error { return fmt.Errorf("%w: %s %s", ErrDescriptor, field, detail) }
	switch {
	case domain == "" || len(domain) > MaxEntryText:
		return fail("domain", "must have 1 to 1024 bytes")
	case len(list) == 0 || len(list) > MaxDescriptors:
		return fail("descriptors", "must have 1 to 100 elements")
	}
	for i := range list {
		d, at := &list[i], "descriptors["+strconv.Itoa(i)+"]"
		if len(d.Entries) == 0 || len(d.Entries) > MaxEntries {
			return fail(at+".entries", "must have 1 to 32 elements")
		}
		for j, e := range d.Entries {
			switch at := at + ".entries[" + strconv.Itoa(j) + "]"; {
			case e.Key == "" || len(e.Key) > MaxEntryText:
				return fail(at+".key", "must have 1 to 1024 bytes")
			case len(e.Value) > MaxEntryText:
				return fail(at+".value", "must have up to 1024 bytes")
			}
		}
		if d.Cost < 0 || d.Cost > maxCost {
			return fail(at+".hits_addend", "must be 0 to 1000000000000")
		}
		if d.Limit != nil {
			if err := checkRule(*d.Limit); err != nil {
				return fail(at+".limit", "cannot be kept: "+err.Error())
			}
		}
	}
	return nil
}

// HeaderPair is a header of an answer that does not go out by HTTP here.
type HeaderPair struct{ Name, Value string }

// DescriptorHeaders are the limit headers for the request that statuses are about: the X-RateLimit trio and window of the
// tightest limit, RateLimit-Policy and RateLimit of all that are enforced, and Retry-After where one is over.
func (s *Server) DescriptorHeaders(statuses []DescriptorStatus) []HeaderPair {
	// One item for each policy, the tightest: names are unique in the header, whichever descriptors a policy counts.
	var shown []*DescriptorStatus
	tightest := -1
	wait := int64(0)
	for i := range statuses {
		st := &statuses[i]
		if st.Policy == "" || st.Shadow {
			continue
		}
		if st.Verdict.Outcome == limiter.Refused {
			wait = max(wait, st.Verdict.RetryAfter, 1)
		}
		at := slices.IndexFunc(shown, func(o *DescriptorStatus) bool { return o.Policy == st.Policy })
		switch {
		case at < 0:
			at = len(shown)
			shown = append(shown, st)
		case tighter(st.policy, &st.Verdict, shown[at].policy, &shown[at].Verdict):
			shown[at] = st
		default:
			continue
		}
		if tightest < 0 || tighter(st.policy, &st.Verdict, shown[tightest].policy, &shown[tightest].Verdict) {
			tightest = at
		}
	}
	if tightest < 0 {
		return nil
	}
	now := s.clock().Unix()
	first := shown[tightest]
	var policies, limits []byte
	for i, st := range shown {
		if i > 0 {
			policies, limits = append(policies, ", "...), append(limits, ", "...)
		}
		policies = append(policies, st.policy.header...)
		remaining, _, t := st.policy.shown(&st.Verdict, now)
		limits = strconv.AppendInt(append(limits, st.policy.head...), remaining, 10)
		limits = strconv.AppendInt(append(limits, ";t="...), t, 10)
	}
	headers := []HeaderPair{
		{string(headerLimit), string(first.policy.limit)},
		{string(headerRemaining), strconv.FormatInt(first.Remaining, 10)},
		{string(headerReset), strconv.FormatInt(first.ResetAt, 10)},
		{string(headerWindow), string(first.policy.window)},
		{string(headerPolicy), string(policies)},
		{string(headerRateLimit), string(limits)},
	}
	if wait > 0 {
		headers = append(headers, HeaderPair{string(headerRetryAfter), strconv.FormatInt(wait, 10)})
	}
	return headers
}
