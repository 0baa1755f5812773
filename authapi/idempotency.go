package authapi

import (
	"errors"
	"net/http"
	"strings"
	"sync"

	"sluice/raftfsm/state"
)

// headerIdempotencyKey makes a POST safe to repeat (draft-ietf-httpapi-idempotency-key-header).
const headerIdempotencyKey = "Idempotency-Key"

// idempotencyKeyMax bounds a key, in characters.
const idempotencyKeyMax = 255

var (
	errIdempotencyKey = problem(http.StatusBadRequest, "invalid_idempotency_key",
		"Idempotency-Key must be 1 to 255 printable ASCII characters, once, in quotes or without")
	errIdempotencyInFlight = problem(http.StatusConflict, "idempotency_key_in_use", "the first request with this Idempotency-Key is still in flight")
)

// inFlight are the scopes of idempotent requests that this node is working on.
type inFlight struct {
	mu     sync.Mutex
	scopes map[[32]byte]struct{}
}

func (f *inFlight) begin(scope [32]byte) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, busy := f.scopes[scope]; busy {
		return false
	}
	f.scopes[scope] = struct{}{}
	return true
}

func (f *inFlight) end(scope [32]byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.scopes, scope)
}

// once is an idempotent request. The zero value is one that carried no key.
type once struct {
	call        *call
	scope       [32]byte
	fingerprint []byte
	active      bool
}

// beginOnce reads the request's Idempotency-Key and claims it on this node; the caller must end it. Scope and
// fingerprint are keyed hashes, since a body may hold a password, which a plain hash would let a thief of the state guess.
func (c *call) beginOnce() (once, error) {
	o := once{call: c}
	lines := c.ctx.Request.Header.PeekAll(headerIdempotencyKey)
	if len(lines) == 0 {
		return o, nil
	}
	if len(lines) > 1 {
		return o, errIdempotencyKey
	}
	key, ok := parseIdempotencyKey(string(lines[0]))
	if !ok {
		return o, errIdempotencyKey
	}
	keys, err := c.srv.accounts.refresh.get()
	if err != nil {
		return o, err
	}
	body, err := c.body()
	if err != nil {
		return o, err
	}
	copy(o.scope[:], hmacSum(keys.fingerprint, []byte("scope\x00"), []byte(c.caller()), []byte{0}, []byte(key)))
	o.fingerprint = hmacSum(keys.fingerprint, []byte("request\x00"), c.ctx.Method(), []byte{0}, c.ctx.Request.URI().PathOriginal(), []byte{0}, body)
	if !c.srv.accounts.inFlight.begin(o.scope) {
		return o, errIdempotencyInFlight
	}
	o.active = true
	return o, nil
}

// caller names the credential, or the address where there is none.
func (c *call) caller() string {
	switch c.principal.Method {
	case MethodAPIKey:
		return c.principal.KeyID
	case MethodJWT:
		return c.principal.UserID
	default:
		return "ip:" + c.clientIP
	}
}

func (o *once) end() {
	if o.active {
		o.call.srv.accounts.inFlight.end(o.scope)
	}
}

// record is what goes with the change: the answer that a repetition gets. nil for a request without a key.
func (o *once) record(status int, answer any) (*state.Idempotency, error) {
	if !o.active {
		return nil, nil
	}
	body, err := encodeJSON(answer)
	if err != nil {
		return nil, err
	}
	sealed, err := o.call.srv.sealer.Seal(o.purpose(), body)
	if err != nil {
		return nil, err
	}
	return &state.Idempotency{
		Scope: o.scope[:], Fingerprint: o.fingerprint, Status: status, SealedBody: sealed, CreatedAt: o.call.now.UnixMilli(),
	}, nil
}

func (o *once) purpose() string { return answerPurpose(o.scope[:]) }

// answer writes the answer of a change: its own, or the first one's where res says that this was a repetition.
func (o *once) answer(res state.Result, status int, answer any) error {
	if res.Replay == nil {
		return o.call.writeJSON(status, answer)
	}
	body, err := o.call.srv.sealer.Open(o.purpose(), res.Replay.SealedBody)
	if err != nil {
		return errors.Join(errors.New("open the answer of a repeated request"), err)
	}
	o.call.writeBody(res.Replay.Status, body)
	o.call.ctx.Response.Header.Set("Idempotency-Replayed", "true")
	return nil
}

// parseIdempotencyKey takes the structured-field string ("…", RFC 9651) and, as most clients send it, the bare text.
func parseIdempotencyKey(s string) (key string, ok bool) {
	s = strings.Trim(s, " \t")
	if strings.HasPrefix(s, `"`) {
		if len(s) < 2 || !strings.HasSuffix(s, `"`) {
			return "", false
		}
		var b strings.Builder
		for in := s[1 : len(s)-1]; in != ""; in = in[1:] {
			switch {
			case in[0] == '"':
				return "", false
			case in[0] == '\\':
				if len(in) < 2 || in[1] != '"' && in[1] != '\\' {
					return "", false
				}
				in = in[1:]
			}
			b.WriteByte(in[0])
		}
		s = b.String()
	}
	if len(s) < 1 || len(s) > idempotencyKeyMax {
		return "", false
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return "", false
		}
	}
	return s, true
}
