package authapi

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sluice/limiter"
	"sluice/raftfsm/state"
)

var (
	// ErrSubject: the text names nothing that limits are counted by.
	ErrSubject = errors.New("neither an id of a key, user or organization nor an address")
	// ErrNoSubject: there is no such key, user or organization.
	ErrNoSubject = errors.New("no such key, user or organization")
)

// Subject is whom limits count, as operators name it, with everything that counts it.
type Subject struct {
	Kind string // "address", "api_key", "user" or "organization"; "bucket" is for callers that have only its name
	ID   string // an address in its usual form, with /64 for IPv6
	// OrganizationID is the one that the subject belongs to, "" for none.
	OrganizationID string
	Note           string // why its requests may count elsewhere, "" where they do not
	Buckets        []SubjectBucket
	// Others are the policies that count the subject's requests by something else too, so that its name alone names no bucket.
	Others []string
}

// SubjectBucket is one policy's bucket for a subject.
type SubjectBucket struct {
	Policy string
	Rule   limiter.Rule
	Bucket limiter.BucketID
	Route  string // where the policy counts by route, too
	Source string // where the rule comes from: "plan gold", "the key's own limit"; "" for the configuration's
	Shadow bool
	Shared bool // it counts others' requests with the subject's: by organization or route alone
}

// Subject finds whom text names, an id ("key_…", "usr_…", "org_…") or an address, and what counts its requests: by the
// same rules as requests themselves. Errors: ErrSubject, ErrNoSubject, ErrUnavailable, the store's.
func (s *Server) Subject(text string) (Subject, error) {
	switch kind, _, _ := strings.Cut(text, "_"); {
	case !plainID(text):
	case kind == idKey:
		k, err := foundHere(s, func() (*state.APIKey, error) { return s.state.Key(text) })
		if err != nil {
			return Subject{}, err
		}
		return s.keySubject(k)
	case kind == idUser:
		return s.userSubject(text)
	case kind == idOrganization:
		return s.organizationSubject(text)
	}
	return s.addressSubject(text)
}

// SubjectByKey is Subject for whoever has a key's secret: hash is its SHA-256.
func (s *Server) SubjectByKey(hash [32]byte) (Subject, error) {
	k, err := foundHere(s, func() (*state.APIKey, error) { return s.state.KeyByHash(hash) })
	if err != nil {
		return Subject{}, err
	}
	return s.keySubject(k)
}

// foundHere reads an entity, once more after catching up where this node does not have it, or gives ErrNoSubject. A cluster
// without a leader answers from what this node knows.
func foundHere[T any](s *Server, read func() (*T, error)) (*T, error) {
	v, err := read()
	if v == nil && err == nil && s.catchUp() == nil {
		v, err = read()
	}
	if v == nil && err == nil {
		err = ErrNoSubject
	}
	return v, err
}

func (s *Server) keySubject(k *state.APIKey) (Subject, error) {
	lv := s.live.Load()
	org, err := foundHere(s, func() (*state.Organization, error) { return s.state.Organization(k.OrganizationID) })
	if err != nil {
		return Subject{}, err
	}
	out := Subject{Kind: kindKey, ID: k.ID, OrganizationID: k.OrganizationID}
	switch now := s.clock().UnixMilli(); {
	case k.RevokedAt != 0, org.DeletedAt != 0:
		out.Note = "the key is revoked: its requests count for the address that they come from"
	case k.ExpiresAt != 0 && k.ExpiresAt <= now:
		out.Note = "the key has expired: its requests count for the address that they come from"
	}
	p, group := lv.keyPolicy(k, org)
	source := ""
	switch p {
	case lv.policies.apiKey:
	case lv.policies.keyPlans[org.Plan]:
		source = "plan " + org.Plan
	default:
		source = "the key's own limit"
	}
	out.Buckets = []SubjectBucket{s.layerBucket(p, source, []byte(k.ID))}
	s.countedBy(lv, &out, []*policyGroup{group}, subjectOf{key: k.ID, organization: k.OrganizationID}, ByKey, ByOrganization)
	return out.named()
}

func (s *Server) userSubject(id string) (Subject, error) {
	lv := s.live.Load()
	user, err := foundHere(s, func() (*state.User, error) { return s.state.User(id) })
	if err != nil {
		return Subject{}, err
	}
	p, group, organization, err := s.userPolicy(lv, user.ID, user.PersonalOrg)
	if err != nil {
		return Subject{}, err
	}
	out := Subject{Kind: kindUser, ID: user.ID, OrganizationID: user.PersonalOrg}
	if user.DeletedAt != 0 || user.DisabledAt != 0 {
		out.Note = "the account is closed: requests with its tokens count for the address that they come from"
	}
	source := ""
	for name, plan := range lv.policies.userPlans {
		if plan == p {
			source = "plan " + name
		}
	}
	out.Buckets = []SubjectBucket{s.layerBucket(p, source, []byte(user.ID))}
	s.countedBy(lv, &out, []*policyGroup{group}, subjectOf{user: user.ID, organization: organization}, ByUser, ByOrganization)
	return out.named()
}

func (s *Server) organizationSubject(id string) (Subject, error) {
	lv := s.live.Load()
	org, err := foundHere(s, func() (*state.Organization, error) { return s.state.Organization(id) })
	if err != nil {
		return Subject{}, err
	}
	out := Subject{Kind: kindOrganization, ID: org.ID, OrganizationID: org.ID}
	if org.DeletedAt != 0 {
		out.Note = "the organization is deleted"
	}
	plan := org.Plan
	if lv.policies.keyPlans[plan] == nil {
		plan = ""
	}
	// A member's requests count for the organization whose plan they go by, with the users' policies of that plan.
	groups := []*policyGroup{lv.policies.keys[plan], lv.policies.users[plan]}
	s.countedBy(lv, &out, groups, subjectOf{organization: org.ID}, ByOrganization)
	return out.named()
}

func (s *Server) addressSubject(text string) (Subject, error) {
	lv := s.live.Load()
	addr, err := netip.ParseAddr(text)
	if err != nil {
		prefix, err := netip.ParsePrefix(text)
		if err != nil || prefix.Bits() != 64 || !prefix.Addr().Is6() {
			return Subject{}, ErrSubject
		}
		addr = prefix.Addr()
	}
	if addr.Zone() != "" {
		return Subject{}, ErrSubject
	}
	cl := client{addr: addr.Unmap()}
	var buf [16]byte
	subject := cl.subject(&buf)
	out := Subject{Kind: "address", ID: cl.addr.String()}
	if cl.addr.Is6() {
		out.ID = netip.PrefixFrom(cl.addr, 64).Masked().String()
	}
	for _, p := range []*policy{lv.policies.anonymous, lv.policies.documents} {
		out.Buckets = append(out.Buckets, s.layerBucket(p, "", subject))
	}
	groups := []*policyGroup{lv.policies.open, lv.policies.failed}
	for _, g := range lv.policies.keys {
		groups = append(groups, g)
	}
	for _, g := range lv.policies.users {
		groups = append(groups, g)
	}
	s.countedBy(lv, &out, groups, subjectOf{address: subject}, ByAddress)
	return out.named()
}

func (s *Server) layerBucket(p *policy, source string, subject []byte) SubjectBucket {
	return SubjectBucket{Policy: p.name, Rule: p.rule, Bucket: s.limits.Bucket(p.space, p.rule, subject), Source: source}
}

// countedBy adds the buckets that the configured policies of groups count the subject in. have are the dimensions that it has,
// the first of which is its own.
func (s *Server) countedBy(lv *live, out *Subject, groups []*policyGroup, subject subjectOf, have ...Dimension) {
	type place struct {
		p     *policy
		route string
	}
	seen := map[place]bool{}
	var found []place
	for _, g := range groups {
		for slot, set := range g.routes {
			for _, m := range slices.Concat(set.enforced, set.shadow) {
				at := place{p: m.policy}
				if slices.Contains(m.by, ByRoute) {
					at.route = lv.matcher.routes[slot-1].name
				}
				if !seen[at] {
					seen[at] = true
					found = append(found, at)
				}
			}
		}
	}
	slices.SortStableFunc(found, func(a, b place) int {
		if a.p.index != b.p.index {
			return a.p.index - b.p.index
		}
		return strings.Compare(a.route, b.route)
	})
	for _, f := range found {
		mine, others := 0, 0
		for _, d := range f.p.by {
			switch {
			case slices.Contains(have, d):
				mine++
			case d != ByRoute:
				others++
			}
		}
		switch {
		case others > 0 && mine > 0:
			if !slices.Contains(out.Others, f.p.name) {
				out.Others = append(out.Others, f.p.name)
			}
		case others == 0:
			subject.route = f.route
			out.Buckets = append(out.Buckets, SubjectBucket{
				Policy: f.p.name, Rule: f.p.rule, Bucket: f.p.bucket(s.limits, &subject), Route: f.route,
				Shadow: f.p.shadow, Shared: !slices.Contains(f.p.by, have[0]),
			})
		}
	}
}

// named gives the subject if its buckets have names: they have none before the limiter is there.
func (s Subject) named() (Subject, error) {
	for i := range s.Buckets {
		if s.Buckets[i].Bucket == (limiter.BucketID{}) {
			return Subject{}, ErrUnavailable
		}
	}
	return s, nil
}

// maxResets is how many buckets one command resets.
const maxResets = 64

// ResetLimits lets the subject's buckets count from nothing, on every node as soon as it hears of it, and leaves one audit
// event for each 64 of them. It returns once this node has applied it. Errors: those of Cluster.Propose, and a
// *state.Refusal; where there are more than 64 buckets some may have been reset all the same.
func (s *Server) ResetLimits(ctx context.Context, subject Subject) error {
	for buckets := range slices.Chunk(subject.Buckets, maxResets) {
		now := s.clock()
		cmd := state.ResetBucket{At: now.UnixMilli()}
		var names []string
		for _, b := range buckets {
			cmd.Buckets = append(cmd.Buckets, state.ResetTarget{
				Bucket: slices.Clone(b.Bucket[:]), Policy: b.Policy, Algorithm: uint8(b.Rule.Algorithm), Window: b.Rule.Window,
			})
			if !slices.Contains(names, b.Policy) {
				names = append(names, b.Policy)
			}
		}
		cmd.Audit = []state.AuditEvent{{
			ID: newID(idEvent, now), OrganizationID: subject.OrganizationID, Event: "limit.reset",
			ActorType: kindOperator, SubjectType: subject.Kind, SubjectID: subject.ID, Result: resultSuccess, At: now.UnixMilli(),
			Detail: []state.Pair{{Name: "policies", Value: strings.Join(names, ", ")}, {Name: "node", Value: s.cfg.NodeID}},
		}}
		if _, err := s.propose(ctx, cmd); err != nil {
			return fmt.Errorf("reset limits: %w", err)
		}
	}
	return nil
}
