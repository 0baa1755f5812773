package authapi

import (
	"context"
	"net/http"
	"net/mail"
	"strings"
	"sync"
	"time"

	"sluice/raftfsm/state"
)

// accounts is what the handlers of accounts, sessions and keys keep on this node.
type accounts struct {
	refresh   refreshKeyHolder
	guard     signInGuard
	incidents *incidents
	uses      *keyUses
	inFlight  inFlight
	upkeep    upkeep
	resealing resealing
	exports   exports

	stop     context.CancelFunc
	flushers sync.WaitGroup
}

func newAccounts(s *Server) *accounts {
	return &accounts{
		refresh:   refreshKeyHolder{srv: s},
		guard:     newSignInGuard(s.limits),
		incidents: newIncidents(),
		uses:      newKeyUses(),
		exports:   exports{of: map[string]int{}},
		inFlight:  inFlight{scopes: map[[32]byte]struct{}{}},
	}
}

// startAccounts starts the two goroutines of this half: they propose, in batches, which keys were used and which
// credentials failed. closeAccounts ends them.
func (s *Server) startAccounts() {
	s.accounts = newAccounts(s)
	ctx, cancel := context.WithCancel(context.Background())
	s.accounts.stop = cancel
	s.accounts.flushers.Go(func() { flushLoop(ctx, useTick, s.flushKeyUses) })
	s.accounts.flushers.Go(func() { flushLoop(ctx, incidentTick, s.flushIncidents) })
}

// closeAccounts ends them, after a last attempt to propose what is pending. It may be called more than once.
func (s *Server) closeAccounts() {
	s.accounts.stop()
	s.accounts.flushers.Wait()
}

// flushLoop proposes what this node gathered, every now and then until ctx ends, and then once more all of it.
func flushLoop(ctx context.Context, every time.Duration, flush func(ctx context.Context, all bool)) {
	const bound, last = 10 * time.Second, 2 * time.Second
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			final, cancel := context.WithTimeout(context.Background(), last)
			defer cancel()
			flush(final, true)
			return
		case <-tick.C:
			round, cancel := context.WithTimeout(ctx, bound)
			flush(round, false)
			cancel()
		}
	}
}

// userBody is a user as clients see it.
type userBody struct {
	ID        string `json:"id"`
	Username  string `json:"username"`
	Email     string `json:"email"`
	CreatedAt string `json:"created_at"`
}

func newUserBody(u *state.User) *userBody {
	return &userBody{ID: u.ID, Username: u.Username, Email: u.Email, CreatedAt: formatTime(u.CreatedAt)}
}

// tokensBody is a pair of tokens.
type tokensBody struct {
	Token            string `json:"token"`
	TokenType        string `json:"token_type"`
	ExpiresAt        string `json:"expires_at"`
	RefreshToken     string `json:"refresh_token"`
	RefreshExpiresAt string `json:"refresh_expires_at"`

	expires, refreshExpires int64 // the same, Unix milliseconds
	session                 string
}

type registerRequest struct {
	Username string `json:"username"`
	Email    string `json:"email"`
	Password string `json:"password"`
}

type registerResponse struct {
	User         *userBody         `json:"user"`
	Organization *organizationBody `json:"organization"`
	tokensBody
}

func handleRegister(c *call) error {
	s := c.srv
	var req registerRequest
	if err := c.decode(&req); err != nil {
		return err
	}
	username, email, wrong := checkRegistration(req)
	if err := invalidFields(wrong); err != nil {
		return err
	}
	once, err := c.beginOnce()
	if err != nil {
		return err
	}
	defer once.end()
	ctx, cancel := c.context()
	defer cancel()
	// Before the dear part: most of those that are refused here know it after a look. The state machine decides anyway.
	if !once.active {
		if err := s.checkTaken(username, email); err != nil {
			return err
		}
	}
	hash, err := s.passwords.hash(ctx, req.Password)
	if err != nil {
		return err
	}
	at := c.now.UnixMilli()
	user := state.User{
		ID: newID(idUser, c.now), Username: username, Email: email, PasswordHash: hash, CreatedAt: at, PersonalOrg: newID(idOrganization, c.now),
	}
	org := state.Organization{ID: user.PersonalOrg, Name: username, Personal: true, CreatedAt: at, CreatedBy: user.ID}
	session, pair, err := c.newSession(user.ID, org.ID)
	if err != nil {
		return err
	}
	answer := registerResponse{User: newUserBody(&user), Organization: newOrganizationBody(&org, state.RoleOwner), tokensBody: *pair}
	record, err := once.record(http.StatusCreated, answer)
	if err != nil {
		return err
	}
	res, err := s.propose(ctx, state.RegisterUser{
		User: user, Organization: org, Session: session, Idempotency: record,
		Audit: inOrder(
			by(user.ID, c.event("user.registered", org.ID, kindUser, user.ID)),
			by(user.ID, c.event("organization.created", org.ID, kindOrganization, org.ID)),
			by(user.ID, c.event("session.created", org.ID, kindSession, session.ID)),
		),
	})
	if err != nil {
		return err
	}
	return once.answer(res, http.StatusCreated, answer)
}

// checkTaken refuses early what the state machine would refuse in the end.
func (s *Server) checkTaken(username, email string) error {
	u, err := s.state.UserByName(username)
	if err != nil {
		return err
	}
	if u != nil {
		return &state.Refusal{Code: state.CodeUsernameTaken}
	}
	if u, err = s.state.UserByEmail(email); err != nil {
		return err
	}
	if u != nil {
		return &state.Refusal{Code: state.CodeEmailTaken}
	}
	return nil
}

// checkRegistration normalises the names and says everything that is wrong at once.
func checkRegistration(req registerRequest) (username, email string, wrong []FieldError) {
	username, ok := normalUsername(req.Username)
	if !ok {
		wrong = append(wrong, FieldError{"username", "must be 3 to 32 letters, digits, dots, underscores or hyphens"})
	}
	if email, ok = normalEmail(req.Email); !ok {
		wrong = append(wrong, FieldError{"email", "must be an e-mail address"})
	}
	if detail := checkPassword(req.Password, username, email); detail != "" {
		wrong = append(wrong, FieldError{"password", detail})
	}
	return username, email, wrong
}

// normalUsername is the form in which user names are unique: lower case. It has no "@", so that no name can pass for
// somebody's address.
func normalUsername(s string) (string, bool) {
	if len(s) < 3 || len(s) > 32 {
		return "", false
	}
	b := []byte(s)
	for i, ch := range b {
		switch {
		case ch >= 'A' && ch <= 'Z':
			b[i] = ch | 0x20
		case isBase62(ch) || ch == '.' || ch == '_' || ch == '-':
		default:
			return "", false
		}
	}
	return string(b), true
}

// normalEmail is the form in which addresses are unique: lower case throughout. The local part's case could matter (RFC
// 5321, section 2.4), yet no provider of note lets it, and two accounts whose addresses differ in case alone would be
// one person's, or one person's and an impostor's. Quoted local parts, display names, comments and domains that are
// not ASCII are refused.
func normalEmail(s string) (string, bool) {
	const maxAddress, maxLocal, maxLabel = 254, 64, 63
	if len(s) > maxAddress {
		return "", false
	}
	addr, err := mail.ParseAddress(s)
	if err != nil || addr.Name != "" || addr.Address != s {
		return "", false
	}
	at := strings.LastIndexByte(s, '@')
	local, domain := s[:at], s[at+1:]
	if len(local) > maxLocal || strings.ContainsAny(local, "\"\\ ") || domain == "" {
		return "", false
	}
	for label := range strings.SplitSeq(domain, ".") {
		if label == "" || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' {
			return "", false
		}
		for _, ch := range []byte(label) {
			if !isBase62(ch) && ch != '-' {
				return "", false
			}
		}
	}
	return strings.ToLower(s), true
}

// newSession makes a session of a user with its pair of tokens. Nothing of it holds before it is proposed.
func (c *call) newSession(userID, organizationID string) (state.Session, *tokensBody, error) {
	s := c.srv
	keys, err := s.accounts.refresh.get()
	if err != nil {
		return state.Session{}, nil, err
	}
	at := c.now.UnixMilli()
	session := state.Session{
		ID: newID(idSession, c.now), UserID: userID, CreatedAt: at, RefreshedAt: at, ExpiresAt: c.refreshExpiry(at),
		UserAgent: c.userAgent(), Address: c.clientIP,
	}
	refresh, err := keys.first(session.ID)
	if err != nil {
		return session, nil, err
	}
	session.RefreshHash = refresh.hash()
	token, expires, err := s.tokens.issue(userID, session.ID, organizationID, c.now)
	if err != nil {
		return session, nil, err
	}
	pair := newTokensBody(token, expires, refresh.text(), session.ExpiresAt)
	pair.session = session.ID
	return session, pair, nil
}

func newTokensBody(token string, expires int64, refresh string, refreshExpires int64) *tokensBody {
	return &tokensBody{
		Token: token, TokenType: "Bearer", ExpiresAt: formatTime(expires), RefreshToken: refresh, RefreshExpiresAt: formatTime(refreshExpires),
		expires: expires, refreshExpires: refreshExpires,
	}
}

// maxSessionAge is how long a session lives at most, however often it is refreshed.
const maxSessionAge = 365 * 24 * time.Hour

// refreshExpiry is when a refresh token of a session, made at createdAt, ends if it is issued now.
func (c *call) refreshExpiry(createdAt int64) int64 {
	expires := c.now.Add(c.srv.cfg.Auth.RefreshTTL).UnixMilli()
	return min(expires, createdAt+maxSessionAge.Milliseconds())
}

type loginRequest struct {
	Username string `json:"username"`
	Password string `json:"password"`
	// NewPassword takes the place of a one-time password.
	NewPassword string `json:"new_password"`
}

// errInvalidCredentials is one answer for every way in which a sign-in can fail.
func errInvalidCredentials() *Problem {
	return problem(http.StatusUnauthorized, "invalid_credentials", "user name or password is wrong")
}

func handleLogin(c *call) error {
	s := c.srv
	var req loginRequest
	cookies, err := c.wantsCookies()
	if err != nil {
		return err
	}
	if err := c.decode(&req); err != nil {
		return err
	}
	var missing []FieldError
	if req.Username == "" {
		missing = append(missing, FieldError{"username", "is required"})
	}
	if req.Password == "" {
		missing = append(missing, FieldError{"password", "is required"})
	}
	if err := invalidFields(missing); err != nil {
		return err
	}
	// An account that another node made an instant ago must work here, and one that is unknown must not take longer for
	// being looked for: so every sign-in catches up, whatever it names. It needs the leader in any case.
	if err := s.catchUp(); err != nil {
		return err
	}
	user, err := s.signInUser(req.Username)
	if err != nil {
		return err
	}
	hash, once := "", false
	if user != nil {
		hash, once = passwordOf(user, c.now)
	}
	// By the name as typed: going by the account would tell that a name and an address belong together.
	attempt, err := c.guardSignIn(strings.ToLower(req.Username))
	if err != nil {
		return err
	}
	ctx, cancel := c.context()
	defer cancel()
	ok, err := s.passwords.check(ctx, hash, req.Password)
	if err != nil {
		attempt.refund()
		return err
	}
	if !ok {
		c.signInFailed(user)
		return errInvalidCredentials()
	}
	attempt.refund() // whatever comes now is no guess
	if hash, err = c.replaceOneTime(ctx, user, once, req); err != nil {
		return err
	}
	if !once {
		hash = s.renewHash(ctx, user, hash, req.Password)
	}
	session, pair, err := c.newSession(user.ID, user.PersonalOrg)
	if err != nil {
		return err
	}
	_, err = s.propose(ctx, state.StartSession{Replaced: c.replaced(user), ByPassword: &state.CreateSession{
		Session: session, MaxSessions: s.cfg.Auth.MaxSessions, PasswordHash: hash,
		Audit: []state.AuditEvent{by(user.ID, c.event("session.created", user.PersonalOrg, kindSession, session.ID))},
	}})
	if refusedWith(err, state.CodeNotFound) {
		// Disabled, deleted, or given another password while this one was being checked.
		c.signInFailed(user)
		return errInvalidCredentials()
	}
	if err != nil {
		return err
	}
	return c.writePair(pair, session.ID, cookies)
}

// userNamed finds an account by its user name or e-mail address, nil for none.
func (s *Server) userNamed(name string) (*state.User, error) {
	if strings.Contains(name, "@") {
		if email, ok := normalEmail(name); ok {
			return s.state.UserByEmail(email)
		}
	} else if username, ok := normalUsername(name); ok {
		return s.state.UserByName(username)
	}
	return nil, nil
}

// signInUser finds the account that may sign in under a name or an address, nil for none.
func (s *Server) signInUser(name string) (*state.User, error) {
	user, err := s.userNamed(name)
	if err != nil || user == nil || user.DisabledAt != 0 || user.DeletedAt != 0 {
		return nil, err
	}
	return user, nil
}
