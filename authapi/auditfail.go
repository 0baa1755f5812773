package authapi

import (
	"context"
	"errors"
	"hash/maphash"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"sluice/raftfsm/state"
)

// Incidents are what an attacker can make happen as often as he likes: credentials that fail, sign-ins that fail,
// requests that are denied. They are audited by source and minute: the first of a source at once, what follows as a
// number a minute later. What a node writes of them in a minute is bounded, so that an attack fills neither the log nor
// the disks; what is beyond that, or beyond the memory for it, is one sum.
const (
	incidentTick  = 250 * time.Millisecond
	incidentQuiet = time.Minute // between two events of a source
	// Events of a node in a minute, of each kind, beside the sums: those that concern an organization have a part of their
	// own, which noise without any cannot use up, and no kind uses up another's.
	incidentsKnown   = 24
	incidentsUnknown = 16
	incidentsHeld    = 16 // sources in a shard, of each kind with an organization and without; what comes from more at once is only counted
	incidentShards   = 16
	incidentBatch    = 32 // events in a proposal
)

type incidentKind uint8

const (
	credentialFailed incidentKind = iota
	sessionFailed
	accessDenied
	oauthFailed
	incidentKinds
)

var incidentEvents = [incidentKinds]struct{ event, result string }{
	credentialFailed: {"credential.failed", resultFailure},
	sessionFailed:    {"session.failed", resultFailure},
	accessDenied:     {"access.denied", resultDenied},
	oauthFailed:      {"oauth.failed", resultFailure},
}

// Why a credential failed, as credential.failed says it.
const (
	whyMalformed      = "malformed" // not a credential at all
	whyMistyped       = "mistyped"  // an API key whose checksum is wrong
	whyUnknown        = "unknown"   // well-formed, and never heard of
	whyInvalid        = "invalid"   // a token that was forged, or is meant for others
	whyExpired        = "expired"
	whyRevoked        = "revoked"         // a key, or its organization
	whyDisabled       = "disabled"        // a key whose maker is disabled
	whyReplaced       = "replaced"        // the secret of before a rotation
	whySessionEnded   = "session_ended"   // or its user's account
	whyRefreshInvalid = "refresh_invalid" // a refresh token that this cluster did not make
	whyForeign        = "foreign"         // access.denied: what was asked for belongs to others
)

// concern is whom an incident is about: whose log it goes to, and its subject.
type concern struct {
	organization string // "" where none is known
	kind, id     string
	why          string
}

// concerning says whom a refusal is about, for the audit log; the answer stays as it is.
func (p *Problem) concerning(organization, kind, id, why string) *Problem {
	p.concern = &concern{organization, kind, id, why}
	return p
}

// because is concerning where nobody is known.
func (p *Problem) because(why string) *Problem { return p.concerning("", "", "", why) }

// notYours is the 404 for an organization that is not the caller's. Asking for one that exists is audited; the answer is
// the same.
func (c *call) notYours(organizationID string) error {
	p := errNotFound()
	if org, err := c.srv.state.Organization(organizationID); err == nil && org != nil {
		return p.concerning("", kindOrganization, organizationID, whyForeign)
	}
	return p
}

// incidentID is what makes incidents one.
type incidentID struct {
	kind         incidentKind
	source       [16]byte // the address, or the /64 of it
	sourceLen    uint8
	organization string
	actor        string
	subject      string
	why          string
}

// class is 1 where an organization is concerned, else 0. Each has memory and events of its own.
func (id *incidentID) class() int {
	if id.organization != "" {
		return 1
	}
	return 0
}

type incident struct {
	event  state.AuditEvent // of the first since the last event
	latest int64            // Unix milliseconds
	count  int              // since the last event
	quiet  int64            // not before this time
}

// incidents are those that are not audited yet.
type incidents struct {
	seed   maphash.Seed
	shards [incidentShards]incidentShard
	// beyond counts what no event of its own will stand for, by kind.
	beyond [incidentKinds]atomic.Int64

	mu     sync.Mutex            // one flush at a time; guards what follows
	minute int64                 // when the present one ends, Unix milliseconds
	left   [2][incidentKinds]int // events that it may still have: without an organization, with one
	unsent []state.AuditEvent
}

type incidentShard struct {
	mu      sync.Mutex
	pending [2][incidentKinds]map[incidentID]*incident // without an organization, with one
}

func newIncidents() *incidents {
	in := &incidents{seed: maphash.MakeSeed()}
	for i := range in.shards {
		for class := range in.shards[i].pending {
			for kind := range in.shards[i].pending[class] {
				in.shards[i].pending[class][kind] = map[incidentID]*incident{}
			}
		}
	}
	return in
}

// note counts an incident of the caller's.
func (c *call) note(kind incidentKind, what concern, detail ...string) {
	in := c.srv.accounts.incidents
	id := incidentID{kind: kind, organization: what.organization, subject: what.id, why: what.why}
	var buf [16]byte
	id.sourceLen = uint8(copy(id.source[:], c.client.subject(&buf)))
	switch c.principal.Method {
	case MethodJWT:
		id.actor = c.principal.UserID
	case MethodAPIKey:
		id.actor = c.principal.KeyID
	}
	shard := &in.shards[maphash.Comparable(in.seed, id)%incidentShards]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	pending := shard.pending[id.class()][kind]
	p := pending[id]
	if p == nil {
		if len(pending) >= incidentsHeld {
			in.beyond[kind].Add(1)
			return
		}
		p = &incident{}
		pending[id] = p
	}
	p.latest = c.now.UnixMilli()
	if p.count++; p.count > 1 {
		return
	}
	// The call may still be before the point where these are set.
	e := c.event(incidentEvents[kind].event, what.organization, what.kind, what.id, detail...)
	e.IP, e.RequestID, e.Result = c.client.addr.String(), string(c.idBuf[:c.idLen]), incidentEvents[kind].result
	if what.why != "" {
		e.Detail = append(e.Detail, state.Pair{Name: "reason", Value: what.why})
	}
	p.event = e
}

// noteRefusal audits an answer that refused the caller.
func (c *call) noteRefusal(p *Problem) {
	switch {
	case p.Status == http.StatusUnauthorized && p.concern != nil:
		c.note(credentialFailed, *p.concern)
	case c.principal.Method == MethodAnonymous:
		// Nobody was denied anything.
	case p.concern != nil:
		c.noteDenied(p, *p.concern)
	case p.Status == http.StatusForbidden:
		c.noteDenied(p, concern{why: p.Code})
	}
}

// noteDenied audits what the caller may not do in the log of the caller's own organization. The subject is what was
// asked for: a foreign entity by its id, else the endpoint.
func (c *call) noteDenied(p *Problem, what concern) {
	what.organization = c.principal.OrganizationID
	endpoint := c.pattern()
	if c.target != nil {
		endpoint = "route " + c.target.name // without the method, which may be any text
	}
	if what.id == "" {
		what.kind, what.id = kindEndpoint, endpoint
		c.note(accessDenied, what, "code", p.Code)
		return
	}
	c.note(accessDenied, what, "code", p.Code, "endpoint", endpoint)
}

// signInFailed notes a failed sign-in. user is nil where no account was named; what was typed instead is not kept: it is
// too often a password.
func (c *call) signInFailed(user *state.User) {
	what := concern{kind: kindUser}
	if user != nil {
		what.organization, what.id = user.PersonalOrg, user.ID
	}
	c.note(sessionFailed, what)
}

// due takes the events whose time has come, and forgets what has been quiet.
func (in *incidents) due(now int64, all bool) (events []state.AuditEvent) {
	var sums []state.AuditEvent
	if now >= in.minute {
		if in.minute != 0 {
			sums = in.sums(now)
		}
		in.minute = now + time.Minute.Milliseconds()
		for kind := range incidentKinds {
			in.left[0][kind], in.left[1][kind] = incidentsUnknown, incidentsKnown
		}
	}
	for i := range in.shards {
		shard := &in.shards[i]
		shard.mu.Lock()
		for class := range shard.pending {
			for kind, pending := range shard.pending[class] {
				events = in.take(pending, &in.left[class][kind], now, all, events)
			}
		}
		shard.mu.Unlock()
	}
	if all {
		sums = append(sums, in.sums(now)...)
	}
	return append(events, sums...)
}

// take appends the events of some incidents whose time has come, as many as left allows.
func (in *incidents) take(pending map[incidentID]*incident, left *int, now int64, all bool, events []state.AuditEvent) []state.AuditEvent {
	for id, p := range pending {
		switch {
		case now < p.quiet && !all:
			continue
		case p.count == 0:
			delete(pending, id)
			continue
		case *left == 0:
			in.beyond[id.kind].Add(int64(p.count))
		default:
			*left--
			events = append(events, p.take(now))
		}
		p.count, p.quiet = 0, now+incidentQuiet.Milliseconds()
	}
	return events
}

// take makes the event that stands for what happened since the last one.
func (p *incident) take(now int64) state.AuditEvent {
	e := p.event
	e.Detail = append(e.Detail, state.Pair{Name: "attempts", Value: strconv.Itoa(p.count)})
	if p.count > 1 {
		e.Detail = append(e.Detail, state.Pair{Name: "first_at", Value: formatTime(e.At)}, state.Pair{Name: "last_at", Value: formatTime(p.latest)})
	}
	// Lists go by time and id, and whoever follows one must not miss what is written late.
	e.ID, e.At = newID(idEvent, time.UnixMilli(now)), now
	return e
}

// sums are the events for what no other stands for.
func (in *incidents) sums(now int64) (events []state.AuditEvent) {
	for kind := range in.beyond {
		n := in.beyond[kind].Swap(0)
		if n == 0 {
			continue
		}
		e := incidentEvents[kind]
		events = append(events, state.AuditEvent{
			ID: newID(idEvent, time.UnixMilli(now)), Event: e.event, ActorType: kindAnonymous, Result: e.result, At: now,
			Detail: []state.Pair{{Name: "attempts", Value: strconv.FormatInt(n, 10)}, {Name: "reason", Value: "others"}},
		})
	}
	return events
}

// flushIncidents proposes the events that are due, or all of them where all is set. Those of no organization go to the
// node's log too: no organization sees them.
func (s *Server) flushIncidents(ctx context.Context, all bool) {
	in := s.accounts.incidents
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.unsent) == 0 {
		in.unsent = in.due(s.clock().UnixMilli(), all)
		for i := range in.unsent {
			if e := &in.unsent[i]; e.OrganizationID == "" {
				s.log.Warn("refused", "event", e.Event, "ip", e.IP, "request_id", e.RequestID, "detail", newAuditBody(e).Detail)
			}
		}
	}
	// What could not be written is tried again before anything new is taken, so that an outage gathers numbers only. An
	// event whose outcome is unknown has its id: it is written once.
	for len(in.unsent) > 0 {
		n := min(len(in.unsent), incidentBatch)
		_, err := s.propose(ctx, state.AppendAudit{Events: in.unsent[:n]})
		switch {
		case err == nil:
		case errors.Is(err, ErrUnavailable), errors.Is(err, ErrUnknown), errors.Is(err, ErrOverloaded), ctx.Err() != nil:
			s.log.Debug("failed credentials not audited yet", "error", err, "events", len(in.unsent))
			return
		default:
			// It would fail the next time too, and must not keep the others out.
			s.log.Error("failed credentials not audited", "error", err, "events", n)
		}
		in.unsent = in.unsent[n:]
	}
}
