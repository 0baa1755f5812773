package authapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"sluice/raftfsm/state"
)

// Problem is an error that a client gets as application/problem+json (RFC 9457). Everything in it is public. Handlers
// return one for what the client did; any other error becomes one through [problemOf].
type Problem struct {
	Type       string       `json:"type"`
	Title      string       `json:"title"`
	Status     int          `json:"status"`
	Detail     string       `json:"detail"`
	Code       string       `json:"code"`
	RequestID  string       `json:"request_id"`
	Errors     []FieldError `json:"errors,omitempty"`
	RetryAfter int64        `json:"retry_after,omitempty"` // seconds
	// Violated are the names of the policies that refused, for a 429.
	Violated []string `json:"violated-policies,omitempty"`

	// OAuth is the error code of RFC 6749, section 5.2, for the endpoints whose clients look for it.
	OAuth string `json:"error,omitempty"`

	// Challenge is the WWW-Authenticate of a 401 or 403; "" for none.
	Challenge string `json:"-"`
	// Allow is the Allow header of a 405.
	Allow string `json:"-"`
	// concern is for the audit log; nil where there is nothing to say.
	concern *concern
}

// FieldError is one mistake in a request's body or query.
type FieldError struct {
	Field  string `json:"field"`
	Detail string `json:"detail"`
}

// Error makes a Problem an error. It is for logs and tests.
func (p *Problem) Error() string {
	s := strconv.Itoa(p.Status) + " " + p.Code
	if p.Detail != "" {
		s += ": " + p.Detail
	}
	return s
}

// problem makes the answer for one mistake. detail is a sentence for people.
func problem(status int, code, detail string) *Problem {
	return &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code, Detail: detail}
}

// invalid is the 422 for one field; more pairs of (field, detail) may follow.
func invalid(field, detail string, more ...string) *Problem {
	p := problem(http.StatusUnprocessableEntity, "invalid_input", "some fields are not valid")
	p.Errors = append(p.Errors, FieldError{Field: field, Detail: detail})
	for i := 0; i+1 < len(more); i += 2 {
		p.Errors = append(p.Errors, FieldError{Field: more[i], Detail: more[i+1]})
	}
	return p
}

// invalidFields is the 422 for several fields, nil where there are none.
func invalidFields(fields []FieldError) error {
	if len(fields) == 0 {
		return nil
	}
	p := problem(http.StatusUnprocessableEntity, "invalid_input", "some fields are not valid")
	p.Errors = fields
	return p
}

// errNotFound answers for what does not exist and for what is not the caller's alike.
func errNotFound() *Problem { return problem(http.StatusNotFound, state.CodeNotFound, detailNotFound) }

const detailNotFound = "there is nothing here, or nothing that this credential may see"

// retryUnavailable is the Retry-After of a 503, in seconds: an election takes about one.
const retryUnavailable = 1

// The refusals of the replicated state machine, but state.CodeInvalid: that one is a mistake of this node's own making,
// so it is a 500 that says nothing, and the log's to tell.
var refusals = map[string]struct {
	status int
	detail string
}{
	state.CodeNotFound:      {http.StatusNotFound, detailNotFound},
	state.CodeForbidden:     {http.StatusForbidden, "this credential may not do that"},
	state.CodeConflict:      {http.StatusConflict, "another change came first"},
	state.CodeUsernameTaken: {http.StatusConflict, "this user name is taken"},
	state.CodeEmailTaken:    {http.StatusConflict, "this e-mail address is taken"},
	state.CodeSessionEnded:  {http.StatusUnauthorized, "the session has ended"},
	state.CodeLastOwner: {http.StatusConflict,
		"an organization needs an owner who can act: make somebody else one first, or delete the organization"},
	state.CodePersonalOrganization: {http.StatusConflict,
		"a personal organization has its one owner and goes with the account"},
	state.CodeAlreadyMember: {http.StatusConflict, "the user is a member already; change the role instead"},
	state.CodeMembershipLimit: {http.StatusConflict,
		"there are as many members or memberships as there can be; remove or leave some first"},
	state.CodeIdentityTaken: {http.StatusConflict, "this identity belongs to another account"},
	state.CodeLastSignIn: {http.StatusConflict,
		"the account would be left without a way to sign in; set a password or link another identity first"},
	state.CodeIdempotencyMismatch: {http.StatusUnprocessableEntity, "this Idempotency-Key was used with another request"},
}

// The errors that are not the client's fault but whose meaning a client may use.
var conditions = []struct {
	err    error
	status int
	code   string
	detail string
}{
	{ErrUnavailable, http.StatusServiceUnavailable, "cluster_unavailable", "this node cannot decide now; nothing was changed"},
	{ErrUnknown, http.StatusServiceUnavailable, "cluster_unavailable", "the outcome is unknown; look before you repeat the request"},
	{ErrOverloaded, http.StatusServiceUnavailable, "overloaded", "too many requests of this kind at once; nothing was changed"},
	{context.DeadlineExceeded, http.StatusServiceUnavailable, "cluster_unavailable", "the outcome is unknown; look before you repeat the request"},
	{context.Canceled, http.StatusServiceUnavailable, "cluster_unavailable", "the outcome is unknown; look before you repeat the request"},
}

// problemOf is the one table from errors to answers. listed is false where err has no entry: the answer is then a 500
// that says nothing, and err belongs in the log. The Problem is the caller's to change.
func problemOf(err error) (p *Problem, listed bool) {
	var own *Problem
	if errors.As(err, &own) {
		p := *own
		return &p, true
	}
	var refusal *state.Refusal
	if errors.As(err, &refusal) {
		if r, ok := refusals[refusal.Code]; ok {
			return problem(r.status, refusal.Code, r.detail), true
		}
	}
	for _, c := range conditions {
		if errors.Is(err, c.err) {
			p := problem(c.status, c.code, c.detail)
			p.RetryAfter = retryUnavailable
			return p, true
		}
	}
	return problem(http.StatusInternalServerError, "internal_error", "something went wrong on this node; its log knows the request id"), false
}

// encode is the body. Marshalling these plain fields cannot fail.
func (p *Problem) encode() []byte {
	b, err := json.Marshal(p)
	if err != nil {
		return []byte(`{"type":"about:blank","title":"Internal Server Error","status":500,"code":"internal_error"}`)
	}
	return b
}
