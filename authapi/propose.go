package authapi

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"time"

	"sluice/raftfsm/state"
)

// Pauses between retries of a change whose outcome is unknown.
const (
	retryFirst = 25 * time.Millisecond
	retryMost  = 400 * time.Millisecond
)

// propose makes a change happen once. A change whose outcome is unknown is tried again under its request id until it is
// known or ctx ends. A refusal is a *state.Refusal; the other errors are Cluster.Propose's.
func (s *Server) propose(ctx context.Context, cmd state.Command) (state.Result, error) {
	var id [16]byte
	rand.Read(id[:])
	res, err := s.cluster.Propose(ctx, id, cmd)
	for pause := retryFirst; unknown(err); pause = min(2*pause, retryMost) {
		select {
		case <-ctx.Done():
			return res, ErrUnknown
		case <-time.After(pause):
		}
		if res, err = s.cluster.Propose(ctx, id, cmd); errors.Is(err, ErrUnavailable) {
			// This attempt did not happen, but the one before may have.
			err = ErrUnknown
		}
	}
	if err != nil {
		return res, err
	}
	if res.Refused != "" {
		return res, &state.Refusal{Code: res.Refused}
	}
	return res, nil
}

func unknown(err error) bool {
	return errors.Is(err, ErrUnknown) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// refusedWith says whether err is a refusal with code.
func refusedWith(err error, code string) bool {
	var r *state.Refusal
	return errors.As(err, &r) && r.Code == code
}

// readBound is how long a read waits to see what other nodes acknowledged before it answers with what this node has.
const readBound = 500 * time.Millisecond

// catchUpToRead lets a list or a look at a setting show what was acknowledged on any node before. It is an attempt: a
// cluster without a leader still answers reads, from what this node knows.
func (c *call) catchUpToRead() {
	ctx, cancel := context.WithTimeout(context.Background(), readBound)
	defer cancel()
	if err := c.srv.cluster.CatchUp(ctx); err != nil {
		c.srv.log.Debug("read without catching up", "error", err)
	}
}

// found reads an entity, and where this node does not have it, once more after catching up: another node may have made
// it an instant ago. nil where there is none.
func found[T any](c *call, read func() (*T, error)) (*T, error) {
	v, err := read()
	if v != nil || err != nil {
		return v, err
	}
	if err := c.srv.catchUp(); err != nil {
		return nil, err
	}
	return read()
}

// Kinds of subjects and actors in audit events.
const (
	kindUser         = "user"
	kindKey          = "api_key"
	kindAnonymous    = "anonymous"
	kindSystem       = "system"
	kindOperator     = "operator" // whoever may call the admin listener
	kindSession      = "session"
	kindOrganization = "organization"
	kindSigningKey   = "signing_key"
	kindEndpoint     = "endpoint"
	kindProvider     = "provider"
	kindSettings     = "settings"
	kindSecretsKey   = "secrets_key"
)

// Results in audit events.
const (
	resultSuccess = "success"
	resultFailure = "failure"
	resultDenied  = "denied"
)

// maxUserAgent is how much of a User-Agent is kept, in bytes.
const maxUserAgent = 256

// event makes the audit event of a successful change, with the caller as its actor. detail is pairs of name and value.
func (c *call) event(name, organizationID, subjectType, subjectID string, detail ...string) state.AuditEvent {
	e := state.AuditEvent{
		ID: newID(idEvent, c.now), OrganizationID: organizationID, Event: name, SubjectType: subjectType, SubjectID: subjectID,
		IP: c.clientIP, UserAgent: c.userAgent(), RequestID: c.requestID, Result: resultSuccess, At: c.now.UnixMilli(),
	}
	switch c.principal.Method {
	case MethodJWT:
		e.ActorType, e.ActorID = kindUser, c.principal.UserID
	case MethodAPIKey:
		e.ActorType, e.ActorID = kindKey, c.principal.KeyID
	default:
		e.ActorType = kindAnonymous
	}
	for i := 0; i+1 < len(detail); i += 2 {
		e.Detail = append(e.Detail, state.Pair{Name: detail[i], Value: detail[i+1]})
	}
	return e
}

// inOrder gives events that were made in the same millisecond ids that sort as the events stand: lists go by id.
func inOrder(events ...state.AuditEvent) []state.AuditEvent {
	ids := make([]string, len(events))
	for i := range events {
		ids[i] = events[i].ID
	}
	slices.Sort(ids)
	for i := range events {
		events[i].ID = ids[i]
	}
	return events
}

// by makes a user the actor of an event whose request carried no credential yet.
func by(userID string, e state.AuditEvent) state.AuditEvent {
	e.ActorType, e.ActorID = kindUser, userID
	return e
}

// userAgent is the request's, as it is kept.
func (c *call) userAgent() string {
	b := c.ctx.UserAgent()
	return printable(string(b[:min(len(b), maxUserAgent)]))
}

// printable is a User-Agent cut to a bound and without what is not printable ASCII.
func printable(text string) string {
	b := []byte(text[:min(len(text), maxUserAgent)])
	for i, ch := range b {
		if ch < ' ' || ch > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}
