package authapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"sluice/raftfsm/state"
)

const (
	scopeManageKeys = "api-keys:manage"
	// maxScopes bounds a key's scopes, maxScopeLen each, in bytes.
	maxScopes   = 100
	maxScopeLen = 100
	// maxGrace is how long a replaced secret may go on working: a week.
	maxGrace = 7 * 24 * time.Hour
	// maxKeyLife bounds expires_at.
	maxKeyLife = 100 * 365 * 24 * time.Hour
)

type rateLimitBody struct {
	Limit         int64 `json:"limit"`
	WindowSeconds int64 `json:"window_seconds"`
}

// keyBody is a key as its managers see it.
type keyBody struct {
	ID             string         `json:"id"`
	Key            string         `json:"key,omitempty"` // once, in the answer that made it
	Prefix         string         `json:"prefix"`
	Name           string         `json:"name"`
	OrganizationID string         `json:"organization_id"`
	Scopes         []string       `json:"scopes"`
	Environment    string         `json:"environment"`
	RateLimit      *rateLimitBody `json:"rate_limit"`
	CreatedBy      string         `json:"created_by"`
	CreatedAt      string         `json:"created_at"`
	ExpiresAt      *string        `json:"expires_at"`
	LastUsedAt     *string        `json:"last_used_at"`
	LastUsedIP     *string        `json:"last_used_ip"`
	UsageCount     int64          `json:"usage_count"`
	RotatedAt      *string        `json:"rotated_at"`
	PreviousUntil  *string        `json:"previous_key_valid_until"`
}

func newKeyBody(k *state.APIKey, usage *state.KeyUsage, now time.Time) *keyBody {
	b := &keyBody{
		ID: k.ID, Prefix: k.Prefix, Name: k.Name, OrganizationID: k.OrganizationID, Scopes: k.Scopes, Environment: k.Environment,
		CreatedBy: k.CreatedBy, CreatedAt: formatTime(k.CreatedAt), ExpiresAt: timeOrNull(k.ExpiresAt),
		LastUsedAt: timeOrNull(usage.LastAt), LastUsedIP: textOrNull(usage.LastIP), UsageCount: usage.Count,
		RotatedAt: timeOrNull(k.RotatedAt),
	}
	if b.Scopes == nil {
		b.Scopes = []string{}
	}
	if k.RateLimit > 0 && k.RateWindow > 0 {
		b.RateLimit = &rateLimitBody{Limit: k.RateLimit, WindowSeconds: k.RateWindow}
	}
	if k.PreviousUntil > now.UnixMilli() {
		b.PreviousUntil = timeOrNull(k.PreviousUntil)
	}
	return b
}

type createKeyRequest struct {
	Name           string         `json:"name"`
	OrganizationID string         `json:"organization_id"`
	Scopes         []string       `json:"scopes"`
	Environment    *string        `json:"environment"`
	ExpiresAt      *string        `json:"expires_at"`
	RateLimit      *rateLimitBody `json:"rate_limit"`
}

func handleCreateKey(c *call) error {
	var req createKeyRequest
	wrong := c.decode(&req)
	// Permission before the rest of the body: a stranger learns nothing from how it is checked.
	var err error
	if wrong == nil && req.OrganizationID != "" {
		_, err = c.allow(opManageKeys, req.OrganizationID)
	} else {
		err = c.allowOwn(opManageKeys)
	}
	if err != nil {
		return err
	}
	if wrong != nil {
		return wrong
	}
	key := state.APIKey{
		ID: newID(idKey, c.now), OrganizationID: req.OrganizationID, CreatedBy: c.principal.UserID, Environment: envLive, CreatedAt: c.now.UnixMilli(),
	}
	if c.principal.Method == MethodAPIKey {
		key.CreatedBy = c.principal.KeyID
	}
	if err := c.fillKey(&key, req); err != nil {
		return err
	}
	if err := c.mayGrant(key.Scopes, key.ExpiresAt); err != nil {
		return err
	}
	if err := c.mayMakeKeys(); err != nil {
		return err
	}
	once, err := c.beginOnce()
	if err != nil {
		return err
	}
	defer once.end()
	secret, hash, prefix := newAPIKey(key.Environment)
	key.Hash, key.Prefix = hash[:], prefix
	answer := newKeyBody(&key, &state.KeyUsage{}, c.now)
	answer.Key = secret
	record, err := once.record(http.StatusCreated, answer)
	if err != nil {
		return err
	}
	ctx, cancel := c.context()
	defer cancel()
	res, err := c.srv.propose(ctx, state.CreateKey{
		Key: key, Actor: c.actor(opManageKeys, key.Scopes...), Idempotency: record,
		Audit: []state.AuditEvent{c.event("api_key.created", key.OrganizationID, kindKey, key.ID,
			"name", key.Name, "scopes", strings.Join(key.Scopes, " "))},
	})
	if err != nil {
		return err
	}
	return once.answer(res, http.StatusCreated, answer)
}

// fillKey checks a request and takes what it says into key; all mistakes at once.
func (c *call) fillKey(key *state.APIKey, req createKeyRequest) error {
	var wrong []FieldError
	add := func(field, detail string) {
		if detail != "" {
			wrong = append(wrong, FieldError{field, detail})
		}
	}
	var detail string
	key.Name, detail = checkName(req.Name)
	add("name", detail)
	if req.OrganizationID == "" {
		add("organization_id", "is required")
	}
	key.Scopes, detail = c.live.checkScopes(req.Scopes)
	add("scopes", detail)
	if req.Environment != nil {
		if key.Environment = *req.Environment; key.Environment != envLive && key.Environment != envTest {
			add("environment", `must be "live" or "test"`)
		}
	}
	if req.ExpiresAt != nil {
		key.ExpiresAt, detail = checkExpiry(*req.ExpiresAt, c.now)
		add("expires_at", detail)
	} else if c.principal.Method == MethodAPIKey {
		key.ExpiresAt = c.principal.ExpiresAt // a key's key does not outlive it
	}
	if req.RateLimit != nil {
		key.RateLimit, key.RateWindow = req.RateLimit.Limit, req.RateLimit.WindowSeconds
		wrong = append(wrong, checkRateLimit(*req.RateLimit)...)
	}
	return invalidFields(wrong)
}

// checkScopes checks scopes against the catalogue and drops repetitions.
func (lv *live) checkScopes(scopes []string) (clean []string, wrong string) {
	if len(scopes) == 0 || len(scopes) > maxScopes {
		return nil, "must have 1 to 100 scopes"
	}
	for _, scope := range scopes {
		if !lv.validScope(scope) {
			if len(scope) > maxScopeLen {
				return nil, "has a scope that is too long"
			}
			return nil, fmt.Sprintf("%q is not a scope: it must be <resource>:<action>, <resource>:* or *, with a resource of %s",
				scope, strings.Join(lv.scopes, ", "))
		}
		if !slices.Contains(clean, scope) {
			clean = append(clean, scope)
		}
	}
	return clean, ""
}

func (lv *live) validScope(scope string) bool {
	if scope == "*" {
		return true
	}
	resource, action, ok := strings.Cut(scope, ":")
	if !ok || len(scope) > maxScopeLen || !slices.Contains(lv.scopes, resource) {
		return false
	}
	if action == "*" {
		return true
	}
	for i, ch := range []byte(action) {
		switch {
		case ch >= 'a' && ch <= 'z':
		case i > 0 && (ch >= '0' && ch <= '9' || ch == '-' || ch == '_'):
		default:
			return false
		}
	}
	return action != ""
}

// checkExpiry reads expires_at: in the future, cut to the whole seconds that answers show.
func checkExpiry(text string, now time.Time) (millis int64, wrong string) {
	millis, ok := parseTime(text)
	if !ok {
		return 0, "must be a time as in RFC 3339, like 2030-01-02T15:04:05Z"
	}
	millis -= millis % 1000
	if millis <= now.UnixMilli() {
		return 0, "must be in the future"
	}
	if millis > now.Add(maxKeyLife).UnixMilli() {
		return 0, "must be within 100 years"
	}
	return millis, ""
}

func checkRateLimit(r rateLimitBody) (wrong []FieldError) {
	if r.Limit < 1 || r.Limit > maxLimit {
		wrong = append(wrong, FieldError{"rate_limit.limit", fmt.Sprintf("must be from 1 to %d", maxLimit)})
	}
	if r.WindowSeconds < 1 || r.WindowSeconds > maxWindow {
		wrong = append(wrong, FieldError{"rate_limit.window_seconds", fmt.Sprintf("must be from 1 to %d", maxWindow)})
	}
	return wrong
}

// mayGrant refuses a key that wants to give what it does not have itself: scopes, or a longer life. A user who manages
// the organization may give everything.
func (c *call) mayGrant(scopes []string, expiresAt int64) error {
	if c.principal.Method != MethodAPIKey {
		return nil
	}
	if !state.ScopeCovers(c.principal.Scopes, scopes) {
		return errBeyond("the key would have scopes that this key does not have")
	}
	if own := c.principal.ExpiresAt; own != 0 && (expiresAt == 0 || expiresAt > own) {
		return errBeyond("the key would outlive this key")
	}
	return nil
}

// mayMakeKeys refuses a key at the end of a chain of keys that made each other: the next one would open nothing.
func (c *call) mayMakeKeys() error {
	if c.principal.Method != MethodAPIKey {
		return nil
	}
	maker := c.principal.KeyID
	for range state.MaxKeyChain {
		key, err := c.srv.state.Key(maker)
		if err != nil {
			return err
		}
		if key == nil {
			return nil // a user made the one before
		}
		maker = key.CreatedBy
	}
	return errBeyond(fmt.Sprintf("%d keys made each other already; let a user make this one", state.MaxKeyChain))
}

func errBeyond(detail string) *Problem { return problem(http.StatusForbidden, "forbidden", detail) }

// managedKey is the key of the route, for a caller that may manage it.
func (c *call) managedKey() (*state.APIKey, error) {
	if !plainID(c.param(0)) {
		return nil, errNotFound()
	}
	key, err := found(c, func() (*state.APIKey, error) { return c.srv.state.Key(c.param(0)) })
	if err != nil {
		return nil, err
	}
	if key == nil {
		return nil, errNotFound()
	}
	if _, err := c.allow(opManageKeys, key.OrganizationID); err != nil {
		var p *Problem
		if errors.As(err, &p) && p.concern != nil {
			return nil, p.concerning("", kindKey, key.ID, whyForeign) // what was asked for, not whose it is
		}
		return nil, err
	}
	if key.RevokedAt != 0 {
		return nil, errNotFound()
	}
	return key, nil
}

func handleGetKey(c *call) error {
	c.catchUpToRead()
	key, err := c.managedKey()
	if err != nil {
		return err
	}
	return c.writeKey(key)
}

// updateKeyRequest tells absent (empty) from null: null takes an expiry or a limit of its own away.
type updateKeyRequest struct {
	Name      json.RawMessage `json:"name"`
	Scopes    json.RawMessage `json:"scopes"`
	ExpiresAt json.RawMessage `json:"expires_at"`
	RateLimit json.RawMessage `json:"rate_limit"`
}

var jsonNull = []byte("null")

func handleUpdateKey(c *call) error {
	key, err := c.managedKey()
	if err != nil {
		return err
	}
	var req updateKeyRequest
	if err := c.decode(&req); err != nil {
		return err
	}
	cmd, err := c.keyUpdate(key, req)
	if err != nil {
		return err
	}
	if cmd.Audit == nil { // nothing to change
		return c.writeKey(key)
	}
	// What the key will be able to do, and what it can do now: a key may not take over one that is stronger.
	scopes, expires := key.Scopes, key.ExpiresAt
	if cmd.Scopes != nil {
		scopes = append(slices.Clone(*cmd.Scopes), key.Scopes...)
	}
	if cmd.ExpiresAt != nil {
		expires = *cmd.ExpiresAt
	}
	if err := c.mayGrant(scopes, expires); err != nil {
		return err
	}
	cmd.Actor = c.actor(opManageKeys, scopes...)
	ctx, cancel := c.context()
	defer cancel()
	if _, err := c.srv.propose(ctx, cmd); err != nil {
		return err
	}
	if key, err = c.srv.state.Key(key.ID); err != nil {
		return err
	}
	if key == nil || key.RevokedAt != 0 {
		return errNotFound()
	}
	return c.writeKey(key)
}

// keyUpdate checks a request, all mistakes at once, and makes the command of it, but for the actor. It has no audit
// event where the request changes nothing.
func (c *call) keyUpdate(key *state.APIKey, req updateKeyRequest) (state.UpdateKey, error) {
	cmd := state.UpdateKey{KeyID: key.ID}
	var wrong []FieldError
	var changed []string
	add := func(field, detail string) {
		if detail != "" {
			wrong = append(wrong, FieldError{field, detail})
		}
		changed = append(changed, field)
	}
	if req.Name != nil {
		var name string
		detail := "must be a string"
		if json.Unmarshal(req.Name, &name) == nil && !bytes.Equal(req.Name, jsonNull) {
			name, detail = checkName(name)
		}
		cmd.Name = &name
		add("name", detail)
	}
	if req.Scopes != nil {
		var scopes []string
		detail := "must be an array of strings"
		if json.Unmarshal(req.Scopes, &scopes) == nil && !bytes.Equal(req.Scopes, jsonNull) {
			scopes, detail = c.live.checkScopes(scopes)
		}
		cmd.Scopes = &scopes
		add("scopes", detail)
	}
	if req.ExpiresAt != nil {
		var text *string
		var at int64
		detail := "must be a string or null"
		if json.Unmarshal(req.ExpiresAt, &text) == nil {
			if detail = ""; text != nil {
				at, detail = checkExpiry(*text, c.now)
			}
		}
		cmd.ExpiresAt = &at
		add("expires_at", detail)
	}
	if req.RateLimit != nil {
		cmd.SetRateLimit = true
		add("rate_limit", "")
		if !bytes.Equal(req.RateLimit, jsonNull) {
			var limit rateLimitBody
			if decodeJSON(req.RateLimit, &limit) != nil {
				add("rate_limit", "must be null or an object with limit and window_seconds")
			} else {
				cmd.RateLimit, cmd.RateWindow = limit.Limit, limit.WindowSeconds
				wrong = append(wrong, checkRateLimit(limit)...)
			}
		}
	}
	if err := invalidFields(wrong); err != nil || len(changed) == 0 {
		return cmd, err
	}
	cmd.Audit = []state.AuditEvent{c.event("api_key.updated", key.OrganizationID, kindKey, key.ID, "changed", strings.Join(changed, " "))}
	return cmd, nil
}

func handleDeleteKey(c *call) error {
	key, err := c.managedKey()
	if err != nil {
		return err
	}
	ctx, cancel := c.context()
	defer cancel()
	_, err = c.srv.propose(ctx, state.RevokeKey{
		KeyID: key.ID, Actor: c.actor(opManageKeys), At: c.now.UnixMilli(),
		Audit: []state.AuditEvent{c.event("api_key.revoked", key.OrganizationID, kindKey, key.ID, "name", key.Name)},
	})
	if err != nil {
		return err
	}
	return c.noContent()
}

type rotateKeyRequest struct {
	GracePeriodSeconds int64 `json:"grace_period_seconds"`
}

type rotateKeyResponse struct {
	ID            string  `json:"id"`
	Key           string  `json:"key"`
	Prefix        string  `json:"prefix"`
	Name          string  `json:"name"`
	RotatedAt     string  `json:"rotated_at"`
	PreviousUntil *string `json:"previous_key_valid_until"`
}

func handleRotateKey(c *call) error {
	// The present secret is compared and swapped: this node must know it.
	if err := c.srv.catchUp(); err != nil {
		return err
	}
	key, err := c.managedKey()
	if err != nil {
		return err
	}
	var req rotateKeyRequest
	if err := c.decodeOptional(&req); err != nil {
		return err
	}
	grace := req.GracePeriodSeconds
	if grace < 0 || grace > int64(maxGrace/time.Second) {
		return invalid("grace_period_seconds", fmt.Sprintf("must be from 0 to %d", int64(maxGrace/time.Second)))
	}
	// Whoever rotates a key gets its secret: a key may do so only to one that is no stronger than itself.
	if err := c.mayGrant(key.Scopes, key.ExpiresAt); err != nil {
		return err
	}
	once, err := c.beginOnce()
	if err != nil {
		return err
	}
	defer once.end()
	at := c.now.UnixMilli()
	previousUntil := int64(0)
	if grace > 0 {
		previousUntil = at + grace*1000
	}
	secret, hash, prefix := newAPIKey(key.Environment)
	answer := rotateKeyResponse{
		ID: key.ID, Key: secret, Prefix: prefix, Name: key.Name, RotatedAt: formatTime(at), PreviousUntil: timeOrNull(previousUntil),
	}
	record, err := once.record(http.StatusOK, answer)
	if err != nil {
		return err
	}
	ctx, cancel := c.context()
	defer cancel()
	res, err := c.srv.propose(ctx, state.RotateKey{
		KeyID: key.ID, Actor: c.actor(opManageKeys, key.Scopes...), OldHash: key.Hash, NewHash: hash[:], NewPrefix: prefix,
		At: at, PreviousUntil: previousUntil, Idempotency: record,
		Audit: []state.AuditEvent{c.event("api_key.rotated", key.OrganizationID, kindKey, key.ID, "grace_period_seconds", fmt.Sprint(grace))},
	})
	if err != nil {
		return err
	}
	return once.answer(res, http.StatusOK, answer)
}
