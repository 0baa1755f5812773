package authapi

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"sluice/limiter"
)

// Names of the layers' policies. They are part of every bucket's identity and what RateLimit-Policy shows. The first
// three are also what Policy.Layers names.
const (
	policyAnonymous = "anonymous"
	policyAPIKey    = "api_key"
	policyUser      = "user"
	policyDocuments = "documents"
)

// Dimension is what a policy tells requests apart by.
type Dimension string

// The dimensions.
const (
	ByAddress      Dimension = "address"
	ByKey          Dimension = "key"
	ByUser         Dimension = "user"
	ByOrganization Dimension = "organization"
	ByRoute        Dimension = "route"
	// ByCheck, which stands alone, is the key of a check (POST /api/v1/limits/check) that names the policy, within the
	// caller's organization. The policy counts no request.
	ByCheck Dimension = "check"
	// ByDescriptor, which stands alone, is a descriptor of Envoy's rate-limit service, within its domain. The policy counts
	// no request; LimitConfig.Descriptors says which descriptors it counts.
	ByDescriptor Dimension = "descriptor"
)

// dimensions in the order in which a subject holds them.
var dimensions = []Dimension{ByOrganization, ByKey, ByUser, ByRoute, ByAddress, ByCheck, ByDescriptor}

// PlanNone stands in Policy.Plans for organizations without a plan.
const PlanNone = "none"

// MaxCharges is how many policies may count one request at most, its layer's own and shadow policies among them.
const MaxCharges = 8

// Policy is a limit on top of the layers' own. It counts a request where all of its selectors name the request, and
// where the request has all that By names: a request without a credential has no key, user, organization or plan, and
// one that matches no configured route has no route.
type Policy struct {
	Name   string // of 1 to 63 of a–z, 0–9, '_' and '-'; no other policy's
	Rule   limiter.Rule
	By     []Dimension // at least one; together they are the bucket's subject
	Layers []string    // "anonymous", "api_key", "user"; empty for all
	Routes []string    // names of configured routes; empty for all requests, also to the API itself
	Plans  []string    // names of plans, or PlanNone; empty for all
	Shadow bool        // evaluated, counted and logged, never enforced
}

// policy is a rule under its name, with the parts of the headers that never change.
type policy struct {
	name   string
	rule   limiter.Rule
	header []byte // RateLimit-Policy: "name";q=…;w=…
	head   []byte // the start of RateLimit: "name";r=
	limit  []byte
	window []byte

	// index is the place in policies.names. A layer's own policy and those that stand in its place (plans', keys' own
	// limits) share one: it numbers what metrics tell apart.
	index int
	// space is the part of the bucket's identity that the subject is told apart in; for a layer's policy its name.
	space string
	// The rest is of configured policies only.
	by     []Dimension // in the order of dimensions
	layers []string
	routes []string
	plans  []string
	shadow bool
}

func newPolicy(name string, index int, rule limiter.Rule) *policy {
	p := &policy{name: name, index: index, space: name, rule: rule}
	p.limit = strconv.AppendInt(nil, rule.Limit, 10)
	p.window = strconv.AppendInt(nil, rule.Window, 10)
	p.header = append(p.header, '"')
	p.header = append(p.header, name...)
	p.header = append(p.header, `";q=`...)
	p.header = append(p.header, p.limit...)
	p.header = append(p.header, ";w="...)
	p.header = append(p.header, p.window...)
	if rule.Algorithm == limiter.TokenBucket {
		p.header = strconv.AppendInt(append(p.header, ";burst="...), rule.Burst, 10)
	}
	p.head = append(p.head, '"')
	p.head = append(p.head, name...)
	p.head = append(p.head, `";r=`...)
	return p
}

// newConfigured makes a policy of one of the configuration's.
func newConfigured(from Policy, index int) *policy {
	p := newPolicy(from.Name, index, from.Rule)
	p.layers, p.routes, p.plans, p.shadow = from.Layers, from.Routes, from.Plans, from.Shadow
	// The subject's shape is in the identity, so that a policy that is counted by something else starts anew.
	p.space = "policy/" + from.Name
	for _, d := range dimensions {
		if slices.Contains(from.By, d) {
			p.by = append(p.by, d)
			p.space += "/" + string(d)
		}
	}
	return p
}

// counts says whether p counts the requests of a layer, plan ("" for none) and route (nil for none).
func (p *policy) counts(layer, plan string, route *configured) bool {
	if len(p.layers) > 0 && !slices.Contains(p.layers, layer) {
		return false
	}
	if len(p.routes) > 0 && (route == nil || !slices.Contains(p.routes, route.name)) {
		return false
	}
	if len(p.plans) > 0 {
		if plan == "" {
			plan = PlanNone
		}
		if layer == policyAnonymous || !slices.Contains(p.plans, plan) {
			return false
		}
	}
	for _, d := range p.by {
		switch {
		case d == ByCheck, d == ByDescriptor:
			return false
		case d == ByKey && layer != policyAPIKey, d == ByUser && layer != policyUser,
			d == ByOrganization && layer == policyAnonymous, d == ByRoute && route == nil:
			return false
		}
	}
	return true
}

// perRequest says whether the bucket depends on more than the credential.
func (p *policy) perRequest() bool {
	return slices.Contains(p.by, ByAddress) || slices.Contains(p.by, ByRoute)
}

// subjectOf is what a bucket's subject is made of.
type subjectOf struct {
	address                 []byte
	key, user, organization string
	route                   string
	buf                     []byte // the subject is built here
}

// bucket names p's bucket for a subject. A subject of several parts has each part's length before it.
func (p *policy) bucket(limits Limits, s *subjectOf) limiter.BucketID {
	b := s.buf[:0]
	for _, d := range p.by {
		at := len(b)
		if len(p.by) > 1 {
			b = append(b, 0, 0)
		}
		from := len(b)
		switch d {
		case ByAddress:
			b = append(b, s.address...)
		case ByKey:
			b = append(b, s.key...)
		case ByUser:
			b = append(b, s.user...)
		case ByOrganization:
			b = append(b, s.organization...)
		case ByRoute:
			b = append(b, s.route...)
		}
		if len(p.by) > 1 {
			n := len(b) - from
			b[at], b[at+1] = byte(n>>8), byte(n)
		}
	}
	s.buf = b
	return limits.Bucket(p.space, p.rule, b)
}

// policySet is what counts the requests of one layer, plan and route beside the layer's own policy.
type policySet struct {
	enforced, shadow []member
	header           []byte // of the enforced ones, for RateLimit-Policy: `, "name";q=…;w=…` each
}

// member is a policy in a set.
type member struct {
	*policy
	// fixed is the place of its bucket in credential.buckets; -1 where the bucket depends on the request.
	fixed int
}

// policyGroup holds the sets of one layer and plan.
type policyGroup struct {
	fixed  []*policy    // those whose buckets the credential alone decides
	routes []*policySet // by configured.slot; the first is that of requests without a route
}

// policies are those that the configuration names.
type policies struct {
	anonymous, apiKey, user, documents *policy
	// check counts the checks that bring their limit along; checks are the policies that others name.
	check  *policy
	checks map[string]*policy
	// descriptor counts the descriptors that bring their limit along, gubernator what comes by Gubernator's API.
	descriptor, gubernator *policy
	domains                domains

	keyPlans, userPlans map[string]*policy
	// names of all policies by index, in an order that is the same for the same configuration: those that are always there
	// and then the configured ones.
	names      []string
	configured []*policy

	// failed counts requests whose credential is no good, and those without one on routes that need one: by address
	// alone, or somebody without any right could use up what others share. open counts those that may go on.
	failed, open *policyGroup
	keys, users  map[string]*policyGroup // by plan, "" for none
}

func newPolicies(cfg LimitConfig, m *matcher) (policies, error) {
	p := policies{
		anonymous: newPolicy(policyAnonymous, 0, cfg.Anonymous),
		apiKey:    newPolicy(policyAPIKey, 1, cfg.APIKey),
		user:      newPolicy(policyUser, 2, cfg.User),
		documents: newPolicy(policyDocuments, 3, cfg.Documents),
		check:     newPolicy(policyCheck, 4, limiter.Rule{}),
		checks:    map[string]*policy{},

		descriptor: newPolicy(policyDescriptor, 5, limiter.Rule{}),
		gubernator: newPolicy(policyGubernator, 6, limiter.Rule{}),

		keyPlans:  map[string]*policy{},
		userPlans: map[string]*policy{},
		names: []string{
			policyAnonymous, policyAPIKey, policyUser, policyDocuments, policyCheck, policyDescriptor, policyGubernator,
		},
		keys:  map[string]*policyGroup{},
		users: map[string]*policyGroup{},
	}
	for name, rule := range cfg.Plans {
		p.keyPlans[name] = newPolicy(policyAPIKey, p.apiKey.index, rule)
		p.userPlans[name] = newPolicy(policyUser, p.user.index, rule)
	}
	var problems []error
	for _, from := range cfg.Policies {
		if err := checkPolicy(from, p.names); err != nil {
			problems = append(problems, fmt.Errorf("policy %s: %w", from.Name, err))
		}
		made := newConfigured(from, len(p.names))
		if slices.Contains(from.By, ByCheck) {
			p.checks[from.Name] = made
		}
		p.configured = append(p.configured, made)
		p.names = append(p.names, from.Name)
	}
	var err error
	if p.domains, err = newDomains(cfg.Descriptors, p.configured); err != nil {
		problems = append(problems, err)
	}
	group := func(layer, plan string, only func(*policy) bool) *policyGroup {
		g, tooMany := newPolicyGroup(p.configured, m.routes, func(c *policy, r *configured) bool {
			return c.counts(layer, plan, r) && (only == nil || only(c))
		})
		if tooMany != nil {
			tooMany.Layer, tooMany.Plan = layer, plan
			problems = append(problems, tooMany)
		}
		return g
	}
	p.open = group(policyAnonymous, "", nil)
	p.failed = group(policyAnonymous, "", func(c *policy) bool { return slices.Contains(c.by, ByAddress) })
	p.keys[""], p.users[""] = group(policyAPIKey, "", nil), group(policyUser, "", nil)
	for _, plan := range slices.Sorted(maps.Keys(cfg.Plans)) {
		if plan == PlanNone {
			problems = append(problems, fmt.Errorf("plan %s: the name stands for organizations without a plan", plan))
		}
		p.keys[plan], p.users[plan] = group(policyAPIKey, plan, nil), group(policyUser, plan, nil)
	}
	return p, errors.Join(problems...)
}

// TooManyPoliciesError says that more than MaxCharges policies would count a request.
type TooManyPoliciesError struct {
	Layer, Plan, Route string   // of the request; Plan and Route are "" for none
	Policies           []string // the configured ones that would count it, in their order; the layer's own comes on top
}

func (e *TooManyPoliciesError) Error() string {
	where := "of layer " + e.Layer
	if e.Plan != "" {
		where += " with plan " + e.Plan
	}
	if e.Route != "" {
		where += " on route " + e.Route
	}
	return fmt.Sprintf("%d policies would count a request %s, its layer's own among them, and %d may: %s",
		len(e.Policies)+1, where, MaxCharges, strings.Join(e.Policies, ", "))
}

// CheckPolicies says what New would find wrong with limits as a whole; a TooManyPoliciesError is in its tree.
func CheckPolicies(limits LimitConfig, routes []Route) error {
	m, err := newMatcher(routes)
	if err != nil {
		return err
	}
	_, err = newPolicies(limits, m)
	return err
}

// newPolicyGroup makes the sets for each route of the policies that count says.
func newPolicyGroup(all []*policy, routes []*configured, count func(*policy, *configured) bool) (*policyGroup, *TooManyPoliciesError) {
	g := &policyGroup{}
	known := map[string]*policySet{} // most routes have the same
	var tooMany *TooManyPoliciesError
	for _, r := range append([]*configured{nil}, routes...) {
		var id strings.Builder
		var of []*policy
		for _, p := range all {
			if count(p, r) {
				of = append(of, p)
				fmt.Fprintf(&id, "%d ", p.index)
			}
		}
		set := known[id.String()]
		if set == nil {
			set = &policySet{}
			known[id.String()] = set
			for _, p := range of {
				m := member{p, -1}
				if !p.perRequest() {
					if m.fixed = slices.Index(g.fixed, p); m.fixed < 0 {
						m.fixed = len(g.fixed)
						g.fixed = append(g.fixed, p)
					}
				}
				if p.shadow {
					set.shadow = append(set.shadow, m)
					continue
				}
				set.enforced = append(set.enforced, m)
				set.header = append(set.header, ", "...)
				set.header = append(set.header, p.header...)
			}
		}
		if len(of)+1 > MaxCharges && tooMany == nil {
			tooMany = &TooManyPoliciesError{}
			if r != nil {
				tooMany.Route = r.name
			}
			for _, p := range of {
				tooMany.Policies = append(tooMany.Policies, p.name)
			}
		}
		g.routes = append(g.routes, set)
	}
	return g, tooMany
}

// fixedBuckets names the buckets of a credential, in the order of g.fixed.
func (g *policyGroup) fixedBuckets(limits Limits, s subjectOf) []limiter.BucketID {
	if len(g.fixed) == 0 {
		return nil
	}
	buckets := make([]limiter.BucketID, len(g.fixed))
	for i, p := range g.fixed {
		buckets[i] = p.bucket(limits, &s)
	}
	return buckets
}

// checkPolicy says what is wrong with a policy by itself. taken are the names before it.
func checkPolicy(p Policy, taken []string) error {
	switch {
	case p.Name == "" || len(p.Name) > 63 || strings.Trim(p.Name, "abcdefghijklmnopqrstuvwxyz0123456789_-") != "":
		return errors.New("the name is not of 1 to 63 lower-case letters, digits, dashes and underscores")
	case slices.Contains(taken, p.Name) || strings.HasPrefix(p.Name, "sign_in"): // those are the guard's
		return errors.New("the name is taken")
	case len(p.By) == 0:
		return errors.New("it counts by nothing")
	}
	for _, d := range p.By {
		if !slices.Contains(dimensions, d) {
			return fmt.Errorf("it counts by %q, which is nothing that a request has", d)
		}
	}
	if slices.Contains(p.By, ByCheck) && (len(p.By) > 1 || len(p.Layers)+len(p.Routes)+len(p.Plans) > 0 || p.Shadow) {
		return errors.New("it is for checks, which count by nothing else, select no requests and are always enforced")
	}
	if slices.Contains(p.By, ByDescriptor) && (len(p.By) > 1 || len(p.Layers)+len(p.Routes)+len(p.Plans) > 0) {
		return errors.New("it is for descriptors, which count by nothing else and select no requests")
	}
	return checkRule(p.Rule)
}

// most is how many units can be left at most, and pass at once.
func (p *policy) most() int64 {
	if p.rule.Algorithm == limiter.TokenBucket && p.rule.Limit > 0 {
		return p.rule.Burst
	}
	return p.rule.Limit
}

// moreGenerous compares rules by what they let through in the long run.
func moreGenerous(a, b limiter.Rule) bool {
	// Limits reach 1e12 and windows 2,678,400: the products stay below 2^63.
	return a.Limit*b.Window > b.Limit*a.Window
}
