package node

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"sluice/authapi"
	"sluice/limiter"
	"sluice/raftfsm/state"
)

// LimitsQuery names whose limits a call is about. Exactly one of Subject and KeySHA256 is set.
type LimitsQuery struct {
	// Subject is the id of a key, user or organization, an address, or a bucket's name in hexadecimal digits.
	Subject string `json:"subject,omitempty"`
	// KeySHA256 is the SHA-256 of an API key in hexadecimal digits, for those who have the key and not its id.
	KeySHA256 string `json:"key_sha256,omitempty"`
	Policy    string `json:"policy,omitempty"` // "": all
	Route     string `json:"route,omitempty"`  // of policies that count by route, that of this route alone
}

// LimitsExplained is the answer of /v1/limits/explain. Fields may be added.
type LimitsExplained struct {
	AnsweredBy string            `json:"answered_by"` // node id
	At         time.Time         `json:"at"`          // by that node's clock
	Subject    LimitsSubject     `json:"subject"`
	Policies   []PolicyExplained `json:"policies"`
}

// LimitsSubject is whom the limits count.
type LimitsSubject struct {
	Kind           string   `json:"kind"` // "api_key", "user", "organization", "address" or "bucket"
	ID             string   `json:"id"`
	OrganizationID string   `json:"organization_id,omitempty"`
	Note           string   `json:"note,omitempty"`
	Others         []string `json:"other_policies,omitempty"` // count it together with something that its name does not tell
}

// PolicyExplained is one policy's bucket for a subject, all nodes together.
type PolicyExplained struct {
	Policy        string `json:"policy"` // "" where only the bucket's name is known
	Route         string `json:"route,omitempty"`
	Source        string `json:"source,omitempty"` // where the limit comes from, where not from the policy itself
	Shadow        bool   `json:"shadow,omitempty"` // never enforced
	Shared        bool   `json:"shared,omitempty"` // it counts others with the subject
	Bucket        string `json:"bucket"`           // its name in hexadecimal digits
	Generation    uint64 `json:"generation"`       // log index of its last reset that is remembered, 0 for none
	Limit         int64  `json:"limit"`
	WindowSeconds int64  `json:"window_seconds"`
	Algorithm     string `json:"algorithm"`
	Burst         int64  `json:"burst,omitempty"` // of a token bucket

	WindowBegin time.Time `json:"window_begin"`
	WindowEnd   time.Time `json:"window_end"`
	Used        Units     `json:"used"`
	UsedBefore  Units     `json:"used_before"` // in the window before
	Remaining   int64     `json:"remaining"`
	// Complete says that every member answered, of the same window; otherwise what the others used and hold is missing in the
	// sums.
	Complete bool `json:"complete"`
	// NextPass is when a request of one unit would pass, if nobody else spends any; null where none ever does, or nobody
	// can decide.
	NextPass    *time.Time        `json:"next_pass"`
	LastRefusal *RefusalExplained `json:"last_refusal"` // the newest that a node remembers
	Nodes       []NodeExplained   `json:"nodes"`        // by id
}

// Units are thousandths of units as JSON numbers of units.
type Units int64

// MarshalJSON writes 1.5 for 1500.
func (u Units) MarshalJSON() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalJSON reads what MarshalJSON writes.
func (u *Units) UnmarshalJSON(text []byte) error {
	var f float64
	if _, err := fmt.Sscan(string(text), &f); err != nil {
		return fmt.Errorf("units %q: %w", text, err)
	}
	*u = Units(math.Round(f * 1000))
	return nil
}

func (u Units) String() string {
	if u < 0 {
		return "-" + (-u).String()
	}
	return strings.TrimRight(strings.TrimRight(fmt.Sprintf("%d.%03d", u/1000, u%1000), "0"), ".")
}

// RefusalExplained is the last request that was not admitted.
type RefusalExplained struct {
	Node   string    `json:"node"`
	At     time.Time `json:"at"`
	Cost   int64     `json:"cost"`
	Reason string    `json:"reason"` // stable, snake case
	Detail string    `json:"detail"` // for people
}

// NodeExplained is one node's part of a bucket. Where it did not answer, Error says why and the rest is zero.
type NodeExplained struct {
	Node     string `json:"node"`
	Name     string `json:"name"`
	Answered bool   `json:"answered"`
	Error    string `json:"error,omitempty"`
	Known    bool   `json:"known"` // it has counters of the bucket

	// The node may spend and give while used + given − received, and what is in view of charge, stay within share.
	Share      Units `json:"share"`
	Used       Units `json:"used"`
	UsedBefore Units `json:"used_before"`
	Given      Units `json:"given"`
	Received   Units `json:"received"`
	Charge     Units `json:"charge"`
	Room       Units `json:"room"`

	Overflow  bool   `json:"overflow,omitempty"`  // the counters are shared with other buckets: the room for them is used up
	Lost      bool   `json:"lost,omitempty"`      // no share in this window: what the node did before its last start is not known
	Undecided string `json:"undecided,omitempty"` // why it can decide nothing now

	Transfers   []TransferExplained `json:"transfers,omitempty"`
	Ask         *AskExplained       `json:"ask,omitempty"`
	Beliefs     []BeliefExplained   `json:"beliefs,omitempty"`
	LastRefusal *RefusalExplained   `json:"last_refusal,omitempty"`
}

// TransferExplained is what one node lent another in the window.
type TransferExplained struct {
	Peer        string `json:"peer"`
	Direction   string `json:"direction"` // "to" or "from" the peer
	Units       Units  `json:"units"`
	Incarnation uint64 `json:"incarnation"` // of the peer's process; what was lent to an earlier one is gone with it
}

// AskExplained is a request for shares that is on its way.
type AskExplained struct {
	Peer      string `json:"peer"`
	AgeMillis int64  `json:"age_ms"`
	Waiting   int    `json:"waiting"` // requests that wait for it
	Units     Units  `json:"units"`   // that these want
}

// BeliefExplained is what a node last heard from another: it decides whom to ask, never what may pass.
type BeliefExplained struct {
	Peer        string     `json:"peer"`
	WindowBegin *time.Time `json:"window_begin"` // null where it has said nothing of the bucket
	Share       Units      `json:"share"`
	Used        Units      `json:"used"`
	Room        Units      `json:"room"`             // share less what was spent and given; a sliding window's past left out
	Owing       bool       `json:"owing,omitempty"`  // an ask went unanswered: it will be repeated
	Silent      bool       `json:"silent,omitempty"` // it does not answer, and is not asked for now
	QuietMillis int64      `json:"quiet_ms,omitempty"`
}

// LimitsReset is the answer of /v1/limits/reset.
type LimitsReset struct {
	Subject LimitsSubject `json:"subject"`
	Reset   []BucketReset `json:"reset"`
}

// BucketReset is a bucket that counts from nothing again.
type BucketReset struct {
	Policy        string `json:"policy"`
	Route         string `json:"route,omitempty"`
	Bucket        string `json:"bucket"`
	Limit         int64  `json:"limit"`
	WindowSeconds int64  `json:"window_seconds"`
	Algorithm     string `json:"algorithm"`
	Burst         int64  `json:"burst,omitempty"` // of a token bucket
}

// algorithmName is an algorithm as the configuration names it.
func algorithmName(a limiter.Algorithm) string {
	switch a {
	case limiter.FixedWindow:
		return "fixed_window"
	case limiter.SlidingWindow:
		return "sliding_window"
	case limiter.TokenBucket:
		return "token_bucket"
	}
	return fmt.Sprintf("algorithm %d", a)
}

// refusalTexts say a reason to people.
var refusalTexts = map[limiter.Reason]string{
	limiter.ReasonUsedUp:   "the node's share is used up, and no other node was believed to have anything to spare",
	limiter.ReasonWait:     "others were believed to have shares left, and none came in time",
	limiter.ReasonSilent:   "the node's share is used up, and of the nodes that may have something to spare some did not answer",
	limiter.ReasonCost:     "the request costs more than the limit",
	limiter.ReasonLost:     "the node holds no share in this window: it cannot prove what it did before its last start",
	limiter.ReasonOverflow: "the room for counters is used up, so that the bucket counts together with others",
	limiter.ReasonQueue:    "too many requests wait for shares of this bucket already",
	limiter.ReasonMark:     "the node's clock is beyond the time that is safely on its disk",
	limiter.ReasonRoster:   "the node does not know yet who holds shares",
	limiter.ReasonHorizon:  "the node does not hear the cluster's log, and may open no new window",
	limiter.ReasonGone:     "the window is long over: the node's clock stepped back",
	limiter.ReasonRoom:     "there is nowhere left to count",
	limiter.ReasonOpenNext: "the node's clock was ahead: it acted in the next window already",
	limiter.ReasonClosed:   "the node is being shut down",
	limiter.ReasonLeft:     "the node leaves the cluster for good",
}

func (a *adminServer) explainGet(r *http.Request) (any, error) {
	q := r.URL.Query()
	for name := range q {
		if name != "subject" && name != "policy" && name != "route" {
			return nil, adminProblem(http.StatusBadRequest, "invalid_request", "the query has subject, policy and route, and nothing else")
		}
	}
	return a.node.explainLimits(r.Context(), LimitsQuery{Subject: q.Get("subject"), Policy: q.Get("policy"), Route: q.Get("route")})
}

func (a *adminServer) explainPost(ctx context.Context, q LimitsQuery) (any, error) {
	return a.node.explainLimits(ctx, q)
}

func (a *adminServer) resetLimits(ctx context.Context, q LimitsQuery) (any, error) {
	return a.node.resetLimits(ctx, q)
}

// errSecretSubject keeps secrets out of URLs and logs.
var errSecretSubject = adminProblem(http.StatusUnprocessableEntity, "invalid_input",
	"this is an API key itself: name it by its id (key_…), or by its SHA-256 as key_sha256 in the body of a POST")

// subjectOf finds whom a query is about, and all that counts it.
func (n *Node) subjectOf(q LimitsQuery) (authapi.Subject, error) {
	switch {
	case (q.Subject == "") == (q.KeySHA256 == ""):
		return authapi.Subject{}, adminProblem(http.StatusUnprocessableEntity, "invalid_input", "give either subject or key_sha256")
	case strings.HasPrefix(q.Subject, "sk_"):
		return authapi.Subject{}, errSecretSubject
	case q.KeySHA256 != "":
		hash, err := hex.DecodeString(q.KeySHA256)
		if err != nil || len(hash) != 32 {
			return authapi.Subject{}, adminProblem(http.StatusUnprocessableEntity, "invalid_input", "key_sha256 is not of 64 hexadecimal digits")
		}
		return n.api.SubjectByKey([32]byte(hash))
	}
	if id, err := hex.DecodeString(q.Subject); err == nil && len(id) == len(limiter.BucketID{}) {
		return authapi.Subject{Kind: subjectBucket, ID: hex.EncodeToString(id), Buckets: []authapi.SubjectBucket{{Bucket: limiter.BucketID(id)}}}, nil
	}
	return n.api.Subject(q.Subject)
}

const subjectBucket = "bucket"

// resolve is subjectOf with the buckets that the query wants, and errors as callers see them. only says which of a
// subject's buckets are meant where the query names no policy.
func (n *Node) resolve(q LimitsQuery, only func(authapi.SubjectBucket) bool) (authapi.Subject, error) {
	s, err := n.subjectOf(q)
	switch {
	case errors.Is(err, authapi.ErrSubject):
		return s, adminProblem(http.StatusUnprocessableEntity, "invalid_input",
			"subject is neither an id (key_…, usr_…, org_…), nor an address, nor a bucket's name of 32 hexadecimal digits")
	case errors.Is(err, authapi.ErrNoSubject):
		return s, adminProblem(http.StatusNotFound, "not_found", "there is no such key, user or organization")
	case err != nil:
		return s, err
	}
	s.Buckets = slices.DeleteFunc(s.Buckets, func(b authapi.SubjectBucket) bool {
		switch {
		case q.Route != "" && b.Route != q.Route:
			return true
		case q.Policy != "":
			return b.Policy != q.Policy
		}
		return !only(b)
	})
	switch {
	case q.Policy != "" && slices.Contains(s.Others, q.Policy):
		return s, adminProblem(http.StatusUnprocessableEntity, "invalid_input", fmt.Sprintf(
			"policy %s counts by more than the subject's name tells: name the bucket itself", q.Policy))
	case (q.Policy != "" || q.Route != "") && len(s.Buckets) == 0:
		return s, adminProblem(http.StatusNotFound, "not_found", "no such policy counts this subject")
	case len(s.Buckets) > maxExplained:
		return s, adminProblem(http.StatusUnprocessableEntity, "invalid_input", fmt.Sprintf(
			"%d buckets count this subject, and %d can be told at once: name a policy, or a route", len(s.Buckets), maxExplained))
	}
	return s, nil
}

// explainLimits puts together what all members say of a subject's buckets.
func (n *Node) explainLimits(ctx context.Context, q LimitsQuery) (LimitsExplained, error) {
	s, err := n.resolve(q, func(authapi.SubjectBucket) bool { return true })
	if err != nil {
		return LimitsExplained{}, err
	}
	out := LimitsExplained{AnsweredBy: n.data.NodeID, At: n.opts.clock().UTC(), Subject: limitsSubject(s), Policies: []PolicyExplained{}}
	answers, err := n.askBuckets(ctx, &s)
	if err != nil {
		return out, err
	}
	names := n.nodeNames()
	for i, b := range s.Buckets {
		out.Policies = append(out.Policies, explainBucket(b, i, answers, names))
	}
	return out, nil
}

// limitsSubject is what callers see of a subject.
func limitsSubject(s authapi.Subject) LimitsSubject {
	return LimitsSubject{Kind: s.Kind, ID: s.ID, OrganizationID: s.OrganizationID, Note: s.Note, Others: s.Others}
}

type explainAnswer struct {
	node  string
	reply explainReply
	err   error
}

// askBuckets asks all members, this node first, how the subject's buckets stand. A bucket of which only the name is known
// gets the rule that some node counts by.
func (n *Node) askBuckets(ctx context.Context, s *authapi.Subject) ([]explainAnswer, error) {
	answers := n.askExplain(ctx, s)
	if s.Kind != subjectBucket {
		return answers, nil
	}
	for _, a := range answers {
		if a.err == nil && a.reply.Buckets[0] != nil {
			s.Buckets[0].Rule = a.reply.Buckets[0].Rule
			return n.askExplain(ctx, s), nil
		}
	}
	return nil, adminProblem(http.StatusNotFound, "not_found", "no node that answers has counters of this bucket")
}

func (n *Node) askExplain(ctx context.Context, s *authapi.Subject) []explainAnswer {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	var req explainRequest
	for _, b := range s.Buckets {
		req.Buckets = append(req.Buckets, explainedBucket{
			Bucket: b.Bucket[:], Limit: b.Rule.Limit, Window: b.Rule.Window, Algorithm: uint8(b.Rule.Algorithm), Burst: b.Rule.Burst,
		})
	}
	answers := []explainAnswer{{node: n.data.NodeID}}
	for _, m := range n.members() {
		if m.ID != n.data.NodeID {
			answers = append(answers, explainAnswer{node: m.ID})
		}
	}
	answers[0].reply, answers[0].err = n.explainHere(req)
	var wg sync.WaitGroup
	for i := range answers[1:] {
		a := &answers[i+1]
		wg.Go(func() { a.reply, a.err = n.rpc.explain(ctx, a.node, req) })
	}
	wg.Wait()
	return answers
}

func (n *Node) nodeNames() map[string]string {
	names := map[string]string{n.data.NodeID: n.cfg.Name}
	infos, err := n.fsm.Nodes()
	if err != nil {
		n.log.Warn("names of nodes cannot be read", "error", err)
	}
	for _, info := range infos {
		names[info.ID] = info.Name
	}
	return names
}

// explainBucket puts the members' answers of the i-th bucket together.
func explainBucket(b authapi.SubjectBucket, i int, answers []explainAnswer, names map[string]string) PolicyExplained {
	p := PolicyExplained{
		Policy: b.Policy, Route: b.Route, Source: b.Source, Shadow: b.Shadow, Shared: b.Shared, Bucket: hex.EncodeToString(b.Bucket[:]),
		Limit: b.Rule.Limit, WindowSeconds: b.Rule.Window, Algorithm: algorithmName(b.Rule.Algorithm), Burst: b.Rule.Burst, Complete: true,
		Nodes: []NodeExplained{},
	}
	var parts []limiter.Explanation
	for _, a := range answers {
		node := NodeExplained{Node: a.node, Name: names[a.node]}
		switch {
		case a.err != nil:
			p.Complete, node.Error = false, clipText(rootCause(a.err).Error(), 200)
		case a.reply.Buckets[i] == nil:
			p.Complete, node.Error = false, "its limits are not of this kind: another version or configuration?"
		default:
			e := a.reply.Buckets[i]
			parts = append(parts, *e)
			p.Complete = p.Complete && e.Window == parts[0].Window
			explainNode(&node, e)
			p.Generation = max(p.Generation, e.Generation)
			if r := node.LastRefusal; r != nil && (p.LastRefusal == nil || r.At.After(p.LastRefusal.At)) {
				p.LastRefusal = r
			}
		}
		p.Nodes = append(p.Nodes, node)
	}
	slices.SortFunc(p.Nodes, func(x, y NodeExplained) int { return cmp.Compare(x.Node, y.Node) })
	if len(parts) == 0 {
		return p
	}
	p.WindowBegin, p.WindowEnd = *unixMillis(parts[0].BeginMillis), *unixMillis(parts[0].EndMillis)
	sum := limiter.Sum(parts, 1)
	p.Used, p.UsedBefore, p.Remaining = Units(sum.Used), Units(sum.UsedBefore), sum.Remaining
	if sum.NextMillis != 0 {
		p.NextPass = unixMillis(sum.NextMillis)
	}
	return p
}

func explainNode(out *NodeExplained, e *limiter.Explanation) {
	out.Answered, out.Known = true, e.Known
	out.Share, out.Used, out.UsedBefore = Units(e.Base), Units(e.Used), Units(e.UsedBefore)
	out.Given, out.Received, out.Charge, out.Room = Units(e.Given), Units(e.Received), Units(e.Charge), Units(e.Room)
	out.Overflow, out.Lost = e.Shared, e.Lost
	if e.Undecided != 0 {
		out.Undecided = e.Undecided.String()
	}
	for _, c := range e.Cells {
		t := TransferExplained{Peer: c.Peer, Direction: "from", Units: Units(c.Units), Incarnation: c.Incarnation}
		if c.Given {
			t.Direction = "to"
		}
		out.Transfers = append(out.Transfers, t)
	}
	if a := e.Ask; a != nil {
		out.Ask = &AskExplained{Peer: a.Peer, AgeMillis: a.AgeMillis, Waiting: a.Waiting, Units: Units(a.Units)}
	}
	for _, k := range e.Peers {
		var begin *time.Time
		if k.Window >= 0 { // else the number is one that no window has, and too early for a time in JSON
			begin = unixMillis(k.Window * e.Rule.Window * 1000)
		}
		out.Beliefs = append(out.Beliefs, BeliefExplained{
			Peer: k.Peer, WindowBegin: begin, Share: Units(k.Base), Used: Units(k.Used),
			Room: Units(max(k.Base-k.Net, 0)), Owing: k.Owing, Silent: k.Silent, QuietMillis: k.QuietMillis,
		})
	}
	if r := e.Refusal; r != nil {
		out.LastRefusal = &RefusalExplained{
			Node: out.Node, At: *unixMillis(r.AtMillis), Cost: r.Cost, Reason: r.Reason.String(), Detail: refusalTexts[r.Reason],
		}
	}
}

// resetLimits lets a subject's own buckets count from nothing; those that it shares with others only where the policy is
// named.
func (n *Node) resetLimits(ctx context.Context, q LimitsQuery) (LimitsReset, error) {
	s, err := n.resolve(q, func(b authapi.SubjectBucket) bool { return !b.Shared })
	if err != nil {
		return LimitsReset{}, err
	}
	if s.Kind == subjectBucket {
		// The name alone does not say what kind of window has to end: somebody who counts in the bucket does.
		if _, err := n.askBuckets(ctx, &s); err != nil {
			return LimitsReset{}, err
		}
	}
	if len(s.Buckets) == 0 {
		return LimitsReset{}, adminProblem(http.StatusNotFound, "not_found", "no policy counts this subject alone")
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	if err := n.api.ResetLimits(ctx, s); err != nil {
		return LimitsReset{}, resetProblem(err)
	}
	n.tellLimiter() // the next request here is the new generation's already
	out := LimitsReset{Subject: limitsSubject(s)}
	for _, b := range s.Buckets {
		out.Reset = append(out.Reset, BucketReset{
			Policy: b.Policy, Route: b.Route, Bucket: hex.EncodeToString(b.Bucket[:]),
			Limit: b.Rule.Limit, WindowSeconds: b.Rule.Window, Algorithm: algorithmName(b.Rule.Algorithm), Burst: b.Rule.Burst,
		})
	}
	n.log.Info("limits reset", "component", "admin", "kind", s.Kind, "buckets", len(out.Reset))
	return out, nil
}

// resetProblem tells the refusal that a reset can meet.
func resetProblem(err error) error {
	var refusal *state.Refusal
	if errors.As(err, &refusal) && refusal.Code == state.CodeTooManyResets {
		return adminProblem(http.StatusConflict, refusal.Code, "as many resets as can be remembered are still in force; try again when their windows have ended")
	}
	return err
}
