package authapi

import (
	"errors"
	"net/http"
	"strings"
)

const scopeIntrospect = "tokens:introspect"

// oauthTokenRoutes are the endpoints of RFC 7662 and RFC 7009.
func (s *Server) oauthTokenRoutes() []route {
	return []route{
		{method: "POST", pattern: "/oauth2/introspect", handle: handleIntrospect, auth: authKey, scope: scopeIntrospect, oauth: true},
		{method: "POST", pattern: "/oauth2/revoke", handle: handleRevokeToken, oauth: true},
	}
}

const oauthUnavailable = "temporarily_unavailable"

// oauthError is the error code that OAuth has for a problem (RFC 6749, section 5.2; RFC 6750, section 3.1).
func oauthError(p *Problem) string {
	switch p.Status {
	case http.StatusUnauthorized:
		if p.Challenge == challengeInvalid {
			return "invalid_token"
		}
		return "invalid_client"
	case http.StatusForbidden:
		if p.Code == "insufficient_scope" {
			return p.Code
		}
		return "unauthorized_client"
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return oauthUnavailable
	case http.StatusInternalServerError:
		return "server_error"
	}
	if p.Code == "unsupported_token_type" {
		return p.Code
	}
	return "invalid_request"
}

// Kinds of tokens. The first two are hints of RFC 7009; what a token is shows in its form.
const (
	tokenAccess  = "access_token"
	tokenRefresh = "refresh_token"
	tokenKey     = "api_key"
)

// sentToken reads the form of introspection and revocation. The hint is not looked at: a token's form tells what it is.
func (c *call) sentToken() (string, error) {
	form, err := c.decodeForm()
	if err != nil {
		return "", err
	}
	token := form["token"]
	if token == "" {
		p := invalidForm("the form has no token")
		p.Errors = []FieldError{{Field: "token", Detail: "is required"}}
		return "", p
	}
	return token, nil
}

func (s *Server) kindOfToken(token string) string {
	switch {
	case s.meantAsKey([]byte(token)):
		return tokenKey
	case strings.HasPrefix(token, refreshPrefix):
		return tokenRefresh
	}
	return tokenAccess
}

// introspection is the answer of RFC 7662, section 2.2, for a token that is active. Times are in Unix seconds.
type introspection struct {
	Active    bool   `json:"active"`
	Scope     string `json:"scope,omitempty"`
	ClientID  string `json:"client_id,omitempty"`
	Username  string `json:"username,omitempty"`
	TokenType string `json:"token_type,omitempty"`
	Expires   int64  `json:"exp,omitempty"`
	Issued    int64  `json:"iat,omitempty"`
	Subject   string `json:"sub,omitempty"`
	Audience  string `json:"aud,omitempty"`
	Issuer    string `json:"iss,omitempty"`
	ID        string `json:"jti,omitempty"`

	// Our own.
	OrganizationID string `json:"organization_id,omitempty"`
	Role           string `json:"role,omitempty"`
	SessionID      string `json:"sid,omitempty"`
	Environment    string `json:"environment,omitempty"`
}

// inactive says all that a caller may know of a token that is not active, or not its organization's.
var inactive = []byte(`{"active":false}`)

// handleIntrospect tells a key what a token of its organization may do: one of its keys, or a token of a member. Looking
// spends nothing of the token's limit and is no use of it.
func handleIntrospect(c *call) error {
	token, err := c.sentToken()
	if err != nil {
		return err
	}
	org := c.principal.OrganizationID
	in, err := c.introspect(token, org)
	if errors.Is(err, errUnknownCredential) {
		// Another node may have made it an instant ago.
		if err := c.srv.catchUp(); err != nil {
			return err
		}
		in, err = c.introspect(token, org)
	}
	var bad *Problem
	switch {
	case errors.Is(err, errUnknownCredential), errors.As(err, &bad), err == nil && in == nil:
		c.writeBody(http.StatusOK, inactive)
		return nil
	case err != nil:
		return err
	}
	in.Active, in.Issuer, in.OrganizationID = true, c.srv.tokens.issuer, org
	return c.writeJSON(http.StatusOK, in)
}

// introspect looks a token up in this node's state as it is. It is nil where the token is not the organization's; the
// errors are lookup's.
func (c *call) introspect(token, org string) (*introspection, error) {
	switch c.srv.kindOfToken(token) {
	case tokenKey:
		return c.introspectKey(token, org)
	case tokenRefresh:
		return c.introspectRefresh(token, org)
	}
	return c.introspectAccess(token, org)
}

func (c *call) introspectKey(token, org string) (*introspection, error) {
	if !c.srv.wellFormedKey([]byte(token)) {
		return nil, nil
	}
	hash := hashOf(token)
	cred, err := c.srv.lookupKey(c.live, hash, c.now.UnixMilli())
	if err != nil || cred.principal.OrganizationID != org {
		return nil, err
	}
	key, err := c.srv.state.Key(cred.principal.KeyID)
	if err != nil || key == nil {
		return nil, err
	}
	in := &introspection{
		Scope: strings.Join(cred.principal.Scopes, " "), ClientID: key.ID, TokenType: tokenKey, Subject: key.ID, ID: key.ID,
		Issued: key.CreatedAt / 1000, Environment: key.Environment,
	}
	if cred.validTo != never {
		in.Expires = cred.validTo / 1000
	}
	return in, nil
}

func (c *call) introspectAccess(token, org string) (*introspection, error) {
	s := c.srv
	cred, err := s.lookupToken(c.live, []byte(token), c.now)
	if err != nil {
		return nil, err
	}
	cl, err := s.tokens.verify([]byte(token), c.now)
	if err != nil {
		return nil, err
	}
	in, err := c.introspectUser(cl.UserID, org)
	if err != nil || in == nil {
		return nil, err
	}
	in.Scope, in.TokenType = strings.Join(c.live.scopesOfRole(in.Role), " "), "Bearer"
	in.Issued, in.Expires, in.ID = cl.IssuedAt/1000, cred.validTo/1000, cl.TokenID
	in.SessionID, in.Audience = cl.SessionID, s.tokens.issuer
	return in, nil
}

func (c *call) introspectRefresh(token, org string) (*introspection, error) {
	s := c.srv
	keys, err := s.accounts.refresh.get()
	if err != nil {
		return nil, err
	}
	presented, ok := keys.parse(token)
	if !ok {
		return nil, nil
	}
	session, err := s.state.Session(presented.sessionID())
	if err != nil {
		return nil, err
	}
	if session == nil {
		return nil, errUnknownCredential
	}
	if session.EndedAt != 0 || session.ExpiresAt <= c.now.UnixMilli() {
		return nil, nil
	}
	if string(presented.hash()) != string(session.RefreshHash) {
		if string(presented.hash()) != string(session.PreviousHash) {
			return nil, errUnknownCredential // spent, or the successor of one that was spent on another node an instant ago
		}
		return nil, nil
	}
	in, err := c.introspectUser(session.UserID, org)
	if err != nil || in == nil {
		return nil, err
	}
	in.TokenType, in.SessionID = tokenRefresh, session.ID
	in.Issued, in.Expires = session.RefreshedAt/1000, session.ExpiresAt/1000
	return in, nil
}

// introspectUser is what is told of a member of the organization; nil for anybody else.
func (c *call) introspectUser(userID, org string) (*introspection, error) {
	member, err := c.srv.state.Membership(org, userID)
	if err != nil || member == nil {
		return nil, err
	}
	user, err := c.srv.state.User(userID)
	if err != nil || user == nil || user.DeletedAt != 0 || user.DisabledAt != 0 {
		return nil, err
	}
	return &introspection{Username: user.Username, Subject: user.ID, Role: member.Role}, nil
}

// scopesOfRole writes what roleAllows as scopes.
func (lv *live) scopesOfRole(role string) []string {
	var scopes []string
	for _, resource := range lv.scopes {
		switch every := resource + ":*"; {
		case roleAllows(role, "*"):
			return []string{"*"}
		case roleAllows(role, every):
			scopes = append(scopes, every)
		case roleAllows(role, resource+":read"):
			scopes = append(scopes, resource+":read")
		}
	}
	return scopes
}
