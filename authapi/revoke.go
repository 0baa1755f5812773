package authapi

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"sluice/raftfsm/state"
)

const eventTokenRevoked = "token.revoked"

func hashOf(token string) [sha256.Size]byte { return sha256.Sum256([]byte(token)) }

// handleRevokeToken ends a token for whoever holds it (RFC 7009): of a session the whole session, of an API key the key, or,
// in the grace after a rotation, the old secret. What is unknown or dead already is a 200 too. A credential beside the
// token must own it.
func handleRevokeToken(c *call) error {
	token, err := c.sentToken()
	if err != nil {
		return err
	}
	switch c.srv.kindOfToken(token) {
	case tokenKey:
		err = c.revokeKey(token)
	case tokenRefresh:
		err = c.revokeRefresh(token)
	default:
		err = c.revokeAccess(token)
	}
	if err != nil {
		return err
	}
	c.ctx.SetStatusCode(http.StatusOK)
	c.ctx.Response.Header.SetContentLength(0)
	c.ctx.Response.Header.SetCanonical(headerCacheControl, valueNoStore)
	return nil
}

func errNotOwner() *Problem {
	return problem(http.StatusForbidden, "forbidden", "the token belongs to another than the credential of this request")
}

func (c *call) revokeRefresh(token string) error {
	keys, err := c.srv.accounts.refresh.get()
	if err != nil {
		return err
	}
	presented, ok := keys.parse(token)
	if !ok {
		return nil
	}
	// Of whatever generation: one that was spent and turns up is no reason to let the session live.
	return c.revokeSession(presented.sessionID(), "", tokenRefresh)
}

func (c *call) revokeAccess(token string) error {
	cl, err := c.srv.tokens.verify([]byte(token), c.now)
	if errors.Is(err, errUnknownKey) {
		if err := c.srv.catchUp(); err != nil {
			return err
		}
		cl, err = c.srv.tokens.verify([]byte(token), c.now)
	}
	switch {
	case err == nil:
		return c.revokeSession(cl.SessionID, cl.UserID, tokenAccess)
	case errors.Is(err, errTokenInvalid) && foreignType(token):
		return problem(http.StatusBadRequest, "unsupported_token_type", "signed tokens of that type are not this server's to revoke")
	case errors.Is(err, errTokenInvalid), errors.Is(err, errTokenExpired), errors.Is(err, errUnknownKey):
		return nil
	}
	return err
}

// foreignType says whether a token is a JWT that calls itself something else than an access token, like the id_token of a
// provider. Its holder would be wrong to think that it is revoked now (RFC 7009, section 2.2.1).
func foreignType(token string) bool {
	if len(token) > maxTokenLen || !tokenForm([]byte(token)) {
		return false
	}
	header, _, _ := strings.Cut(token, ".")
	b, err := base64.RawURLEncoding.Strict().DecodeString(header)
	if err != nil {
		return false
	}
	var h struct {
		Type string `json:"typ"`
	}
	if json.Unmarshal(b, &h) != nil || h.Type == "" {
		return false
	}
	return !strings.EqualFold(strings.TrimPrefix(strings.ToLower(h.Type), "application/"), tokenType)
}

// revokeSession ends a session; userID is whose it has to be, "" where the token does not say.
func (c *call) revokeSession(id, userID, kind string) error {
	s := c.srv
	session, err := found(c, func() (*state.Session, error) { return s.state.Session(id) })
	if err != nil {
		return err
	}
	if session == nil || session.EndedAt != 0 || session.ExpiresAt <= c.now.UnixMilli() || userID != "" && session.UserID != userID {
		return nil
	}
	if c.principal.Method != MethodAnonymous && c.principal.UserID != session.UserID {
		return errNotOwner()
	}
	user, err := s.state.User(session.UserID)
	if err != nil || user == nil {
		return err
	}
	ctx, cancel := c.context()
	defer cancel()
	_, err = s.propose(ctx, state.EndSession{
		SessionID: id, UserID: session.UserID, At: c.now.UnixMilli(), Reason: endRevoked,
		Audit: inOrder(
			c.event(eventTokenRevoked, user.PersonalOrg, kindSession, id, "token_type", kind),
			c.event("session.ended", user.PersonalOrg, kindSession, id, "reason", endRevoked),
		),
	})
	if refusedWith(err, state.CodeNotFound) {
		return nil
	}
	return err
}

// revokeKey ends an API key by its secret, or the secret alone where a rotation has replaced it.
func (c *call) revokeKey(token string) error {
	if !c.srv.wellFormedKey([]byte(token)) {
		return nil
	}
	s := c.srv
	hash := hashOf(token)
	// Which of its two secrets it is may change under the hands: look again, once.
	for attempt := 0; ; attempt++ {
		key, err := found(c, func() (*state.APIKey, error) { return s.state.KeyByHash(hash) })
		if err != nil {
			return err
		}
		if key == nil || key.RevokedAt != 0 {
			return nil
		}
		if err := c.mayRevoke(key); err != nil {
			return err
		}
		previous := subtle.ConstantTimeCompare(hash[:], key.Hash) != 1
		event := c.event(eventTokenRevoked, key.OrganizationID, kindKey, key.ID, "token_type", tokenKey)
		events := []state.AuditEvent{event}
		if previous {
			events[0].Detail = append(events[0].Detail, state.Pair{Name: "secret", Value: "previous"})
		} else {
			events = inOrder(event, c.event("api_key.revoked", key.OrganizationID, kindKey, key.ID, "name", key.Name))
		}
		ctx, cancel := c.context()
		_, err = s.propose(ctx, state.RevokeKeyBySecret{Hash: hash[:], At: c.now.UnixMilli(), Previous: previous, Audit: events})
		cancel()
		switch {
		case refusedWith(err, state.CodeNotFound):
			return nil
		case refusedWith(err, state.CodeConflict) && attempt == 0:
			continue
		}
		return err
	}
}

// mayRevoke checks a credential that came beside an API key: the key itself, or one that may manage the organization's keys.
func (c *call) mayRevoke(key *state.APIKey) error {
	if c.principal.Method == MethodAnonymous || c.principal.KeyID == key.ID {
		return nil
	}
	_, err := c.allow(opManageKeys, key.OrganizationID)
	var refused *Problem
	if errors.As(err, &refused) {
		return errNotOwner()
	}
	return err
}
