package node

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"sluice/authapi"
)

// namedPolicy is a limit of the configuration, with its key.
type namedPolicy struct {
	key    string
	title  string // the key, and the name where that is not in it
	rule   RuleConfig
	shadow bool
}

// policies lists the limits by layer, the plans by name, and then the policies on top of them.
func (c *Config) policies() []namedPolicy {
	l := c.Limits
	var list []namedPolicy
	add := func(key string, rule RuleConfig) { list = append(list, namedPolicy{key: key, title: key, rule: rule}) }
	add("limits.anonymous", l.Anonymous)
	add("limits.api_key", l.APIKey)
	add("limits.user", l.User)
	add("limits.documents", l.Documents)
	for _, name := range slices.Sorted(maps.Keys(c.Plans)) {
		add("plans."+name, c.Plans[name])
	}
	for i, p := range l.Policies {
		key := fmt.Sprintf("limits.policies[%d]", i)
		list = append(list, namedPolicy{key, fmt.Sprintf("%s (%s)", key, p.Name), p.RuleConfig, p.Shadow})
	}
	return list
}

// Notes says what an operator should know about a valid configuration, a sentence each.
func (c Config) Notes() []string {
	var notes []string
	if failover := c.Raft.HeartbeatTimeout + c.Raft.ElectionTimeout; c.Auth.MaxStaleness <= failover && c.Auth.OnStale == "refuse" {
		notes = append(notes, fmt.Sprintf("auth.max_staleness is %s and a failover may take longer than %s: nodes will refuse credentials for a moment whenever the leader is lost",
			c.Auth.MaxStaleness, failover))
	}
	if on := c.oauthOn(); len(on) > 0 && c.PublicURL == "" {
		notes = append(notes, fmt.Sprintf("%s is configured and public_url is not: callbacks will be of http and the name that each client used",
			on[0].key))
	}
	notes = append(notes, c.openNotes()...)
	if c.Limits.OnIsolation != "available" {
		return notes
	}
	for _, p := range c.policies() {
		if !p.shadow {
			note := `limits.on_isolation = "available": ` + p.title + " may be exceeded " + excess(p.rule.Limit, int64(len(c.InitialMembers)))
			if p.rule.Algorithm == "token_bucket" {
				note += fmt.Sprintf(", and once by the same part of the burst, %d", p.rule.Burst)
			}
			notes = append(notes, note)
		}
	}
	return notes
}

// excess says by how much a limit may be exceeded by nodes that go on by themselves: each by its share of the limit, which
// is what the roster gives it that it knows. A minority at most can be cut off while the rest takes its shares over, and
// whoever is cut off later had a greater one.
func excess(limit, nodes int64) string {
	if nodes == 0 {
		return fmt.Sprintf("for each node that is cut off by up to its share, %d divided by the number of nodes", limit)
	}
	share := func(n int64) int64 { return (limit + n - 1) / n }
	text := fmt.Sprintf("by up to %d a window for each node that is cut off (%d nodes share %d", share(nodes), nodes, limit)
	if minority := (nodes - 1) / 2; minority > 1 {
		worst := int64(0)
		for i := range minority {
			worst += share(nodes - i)
		}
		text += fmt.Sprintf("; by up to %d with %d cut off one after the other", worst, minority)
	}
	return text + ")"
}

var policyName = regexp.MustCompile(`^[a-z0-9_-]{1,63}$`)

const guardPrefix = "sign_in"

// maxPolicies bounds what each request and each credential is compared with.
const maxPolicies = 64

// What a policy may count by and which layers it may name, in the words of the configuration.
var (
	policyDimensions = []string{"address", "key", "user", "organization", "route", "check", "descriptor"}
	policyLayers     = []string{"anonymous", "api_key", "user"}
	// policyNames are those of the layers' own policies, and of what brings its limit along; names that begin with guardPrefix are of
	// the guard of sign-ins.
	policyNames = []string{"anonymous", "api_key", "user", "documents", "check", "descriptor", "gubernator"}
)

// policies checks limits.policies but for the rules themselves.
func (v *validator) policies() {
	all := v.c.Limits.Policies
	if len(all) > maxPolicies {
		v.fail("limits.policies", "has %d entries and may have %d", len(all), maxPolicies)
		return
	}
	before := len(v.mistakes)
	for i := range all {
		v.policy(i)
	}
	v.descriptors()
	if len(v.mistakes) > before {
		return
	}
	limits, err := v.c.apiLimits()
	if err != nil {
		return // a rule that is a mistake of its own
	}
	var tooMany *authapi.TooManyPoliciesError
	if errors.As(authapi.CheckPolicies(limits, v.c.apiRoutes()), &tooMany) {
		last := tooMany.Policies[authapi.MaxCharges-1] // the first that is one too many
		i := slices.IndexFunc(all, func(p PolicyConfig) bool { return p.Name == last })
		v.fail(fmt.Sprintf("limits.policies[%d]", i), "%v", tooMany)
	}
}

func (v *validator) policy(i int) {
	p, key := v.c.Limits.Policies[i], fmt.Sprintf("limits.policies[%d]", i)
	named := func(name string) bool { return v.c.origins == nil || v.c.origins.named(key+"."+name) }
	switch {
	case p.Name == "":
		v.fail(key+".name", "is missing")
	case !policyName.MatchString(p.Name):
		v.fail(key+".name", "want up to 63 lower-case letters, digits, dashes and underscores, not %s", quote(p.Name))
	case slices.Contains(policyNames, p.Name) || strings.HasPrefix(p.Name, guardPrefix):
		v.fail(key+".name", "%s is the name of a policy that is always there", quote(p.Name))
	}
	for j, other := range v.c.Limits.Policies[:i] {
		if other.Name == p.Name && p.Name != "" {
			v.fail(key+".name", "%s is the name of %s as well", quote(p.Name), v.also(fmt.Sprintf("limits.policies[%d].name", j)))
			break
		}
	}
	if p.Limit == 0 && !named("limit") {
		v.fail(key+".limit", "is missing")
	}
	if len(p.By) == 0 {
		v.fail(key+".by", "is missing: want one or more of %s", strings.Join(policyDimensions, ", "))
	}
	v.words(key+".by", p.By, policyDimensions)
	v.words(key+".layers", p.Layers, policyLayers)
	v.words(key+".plans", p.Plans, append(slices.Sorted(maps.Keys(v.c.Plans)), authapi.PlanNone))
	var routes []string
	for _, r := range v.c.Routes {
		routes = append(routes, cmp.Or(r.Name, r.Path)) // as authapi names it
	}
	v.words(key+".routes", p.Routes, routes)
	v.policyReach(key, p, len(routes) > 0)
}

// words checks a list whose elements are some of known, each once.
func (v *validator) words(key string, list, known []string) {
	for i, word := range list {
		at := fmt.Sprintf("%s[%d]", key, i)
		switch {
		case len(known) == 0:
			v.fail(at, "%s is not there, and nothing else that could stand here", quote(word))
		case !slices.Contains(known, word):
			v.fail(at, "want one of %s, not %s%s", strings.Join(known[:min(len(known), 10)], ", "), quote(word), suggest(word, known))
		case slices.Index(list, word) < i:
			v.fail(at, "%s is in the list twice", word)
		}
	}
}

// policyReach finds what keeps a policy, or one of the layers that it names, from ever counting a request.
func (v *validator) policyReach(key string, p PolicyConfig, routes bool) {
	by := func(d string) bool { return slices.Contains(p.By, d) }
	if by("check") || by("descriptor") {
		what := "checks"
		switch {
		case by("check") && len(p.By) > 1:
			v.fail(key+".by", "check stands alone: a check has a key of its own, and nothing else that a request has")
		case by("descriptor") && len(p.By) > 1:
			v.fail(key+".by", "descriptor stands alone: its entries are all that a descriptor has")
		case by("check") && p.Shadow:
			v.fail(key+".shadow", "means nothing to a policy for checks")
		}
		if by("descriptor") {
			what = "descriptors"
		}
		for _, list := range []struct {
			name string
			set  bool
		}{{"layers", len(p.Layers) > 0}, {"routes", len(p.Routes) > 0}, {"plans", len(p.Plans) > 0}} {
			if list.set {
				v.fail(key+"."+list.name, "means nothing to a policy for %s, which counts no requests", what)
			}
		}
		return
	}
	switch {
	case by("key") && by("user"):
		v.fail(key+".by", "counts nothing: no request has both a key and a user")
	case by("route") && !routes:
		v.fail(key+".by", "counts nothing: there are no [[routes]]")
	}
	for i, layer := range p.Layers {
		at, lacks := fmt.Sprintf("%s.layers[%d]", key, i), ""
		switch {
		case by("key") && layer != "api_key":
			lacks = "key"
		case by("user") && layer != "user":
			lacks = "user"
		case by("organization") && layer == "anonymous":
			lacks = "organization"
		case len(p.Plans) > 0 && layer == "anonymous":
			lacks = "plan"
		}
		if lacks != "" {
			v.fail(at, "%s counts nothing: its requests have no %s", quote(layer), lacks)
		}
	}
}
