package authapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"strconv"
	"time"

	"sluice/raftfsm/state"
)

// Operator is who calls the methods below, as the audit log has it. They are for whoever runs the cluster: the caller
// has checked that. Their errors are *Problem for what the operator did or the cluster could not, and else for the log.
type Operator struct {
	Address   string // of the caller, "" where it is not known
	UserAgent string
}

// OperatorUser is a user as operators see it. Times are RFC 3339 in UTC.
type OperatorUser struct {
	ID            string               `json:"id"`
	Username      string               `json:"username"` // "" once deleted, as Email
	Email         string               `json:"email"`
	CreatedAt     string               `json:"created_at"`
	DisabledAt    *string              `json:"disabled_at"`
	DeletedAt     *string              `json:"deleted_at"`
	HasPassword   bool                 `json:"has_password"`
	Organizations []OperatorMembership `json:"organizations"` // by id
}

// OperatorMembership is one organization of a user.
type OperatorMembership struct {
	ID       string  `json:"id"`
	Name     string  `json:"name"`
	Personal bool    `json:"personal"`
	Plan     *string `json:"plan"`
	Role     string  `json:"role"`
}

// OneTimePassword is what SetOneTimePassword made.
type OneTimePassword struct {
	UserID    string `json:"user_id"`
	Username  string `json:"username"`
	Password  string `json:"password"` // shown here only
	ExpiresAt string `json:"expires_at"`
}

// PlanChange is what SetPlan did.
type PlanChange struct {
	OrganizationID string  `json:"organization_id"`
	Plan           *string `json:"plan"` // null: none, the layer's default
}

// RotatedKey is the signing key that a rotation made.
type RotatedKey struct {
	ID        string `json:"id"`
	Algorithm string `json:"algorithm"`
	SignsFrom string `json:"signs_from"` // tokens are signed by the one before until then
}

// event makes an audit event with an operator as its actor; detail is pairs of name and value.
func (o Operator) event(now time.Time, name, organizationID, subjectType, subjectID string, detail ...string) state.AuditEvent {
	e := state.AuditEvent{
		ID: newID(idEvent, now), OrganizationID: organizationID, Event: name, ActorType: kindOperator, SubjectType: subjectType, SubjectID: subjectID,
		IP: o.Address, UserAgent: printable(o.UserAgent), Result: resultSuccess, At: now.UnixMilli(),
	}
	for i := 0; i+1 < len(detail); i += 2 {
		e.Detail = append(e.Detail, state.Pair{Name: detail[i], Value: detail[i+1]})
	}
	return e
}

// operatorError makes a *Problem of every error that has a meaning for the caller.
func operatorError(err error) error {
	if errors.Is(err, errSigningKeys) {
		return problem(http.StatusConflict, "conflict", "the last rotation is not in force yet, or too many signing keys still verify tokens; try again later")
	}
	if p, listed := problemOf(err); listed {
		return p
	}
	return err
}

// operatorContext bounds what a call waits for.
func (s *Server) operatorContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.handlerTimeout)
}

// lookUpUser finds a user by id, user name or e-mail address, in this order.
func (s *Server) lookUpUser(name string) (*state.User, error) {
	// Whoever registered on another node an instant ago is found, and a decision goes by what is so everywhere.
	if err := s.catchUp(); err != nil {
		return nil, err
	}
	if plainID(name) {
		if user, err := s.state.User(name); user != nil || err != nil {
			return user, err
		}
	}
	user, err := s.userNamed(name)
	if err == nil && user == nil {
		return nil, errNoSuchUser()
	}
	return user, err
}

// FindUser shows a user, named by id, user name or e-mail address. One whose account was deleted is found by its id.
func (s *Server) FindUser(name string) (OperatorUser, error) {
	user, err := s.lookUpUser(name)
	if err != nil {
		return OperatorUser{}, operatorError(err)
	}
	return s.operatorUser(user)
}

func (s *Server) operatorUser(user *state.User) (OperatorUser, error) {
	password, _ := passwordOf(user, s.clock()) // a one-time password that nobody used is none after its day
	u := OperatorUser{
		ID: user.ID, Username: user.Username, Email: user.Email, CreatedAt: formatTime(user.CreatedAt), DisabledAt: timeOrNull(user.DisabledAt),
		DeletedAt: timeOrNull(user.DeletedAt), HasPassword: password != "", Organizations: []OperatorMembership{},
	}
	memberships, err := s.state.MembershipsOf(user.ID)
	if err != nil {
		return u, err
	}
	for _, m := range memberships {
		org, err := s.state.Organization(m.OrganizationID)
		if err != nil {
			return u, err
		}
		if org != nil && org.DeletedAt == 0 {
			u.Organizations = append(u.Organizations, OperatorMembership{org.ID, org.Name, org.Personal, textOrNull(org.Plan), m.Role})
		}
	}
	return u, nil
}

// maxNote bounds an operator's note, in bytes.
const maxNote = 500

// SetUserDisabled disables a user, whose sessions end and whose keys are dead while it lasts, or enables one again. note
// goes into the audit log and may be "".
func (s *Server) SetUserDisabled(ctx context.Context, by Operator, name string, disabled bool, note string) (OperatorUser, error) {
	if len(note) > maxNote {
		return OperatorUser{}, invalid("note", "must have at most 500 bytes")
	}
	user, err := s.lookUpUser(name)
	if err != nil {
		return OperatorUser{}, operatorError(err)
	}
	now := s.clock()
	event := "user.enabled"
	if disabled {
		event = "user.disabled"
	}
	var detail []string
	if note != "" {
		detail = []string{"note", note}
	}
	ctx, cancel := s.operatorContext(ctx)
	defer cancel()
	_, err = s.propose(ctx, state.SetUserDisabled{
		UserID: user.ID, Disabled: disabled, At: now.UnixMilli(), Reason: endDisabled,
		Audit: []state.AuditEvent{by.event(now, event, user.PersonalOrg, kindUser, user.ID, detail...)},
	})
	if err != nil {
		return OperatorUser{}, operatorError(err)
	}
	if user, err = s.state.User(user.ID); err != nil {
		return OperatorUser{}, err
	}
	return s.operatorUser(user)
}

// SetOneTimePassword gives a user a password that works for a day, for one sign-in, which has to bring the password that
// replaces it. The one before is gone at once, and all sessions end.
func (s *Server) SetOneTimePassword(ctx context.Context, by Operator, name string) (OneTimePassword, error) {
	user, err := s.lookUpUser(name)
	if err != nil {
		return OneTimePassword{}, operatorError(err)
	}
	if user.DisabledAt != 0 {
		return OneTimePassword{}, problem(http.StatusConflict, "conflict", "the user is disabled; enable it first")
	}
	ctx, cancel := s.operatorContext(ctx)
	defer cancel()
	password := newOneTimePassword()
	hash, err := s.passwords.hash(ctx, password)
	if err != nil {
		return OneTimePassword{}, operatorError(err)
	}
	now := s.clock()
	until := now.Add(oneTimeLife).UnixMilli()
	_, err = s.propose(ctx, state.SetPassword{
		UserID: user.ID, OldHash: user.PasswordHash, NewHash: oneTimeHash(hash, until), At: now.UnixMilli(),
		Audit: inOrder(
			by.event(now, "user.password_changed", user.PersonalOrg, kindUser, user.ID, "one_time", "true"),
			by.event(now, "session.ended", user.PersonalOrg, kindUser, user.ID, "reason", endPasswordChanged),
		),
	})
	if err != nil {
		return OneTimePassword{}, operatorError(err)
	}
	return OneTimePassword{UserID: user.ID, Username: user.Username, Password: password, ExpiresAt: formatTime(until)}, nil
}

// SetPlan gives an organization a plan of the configuration, or none with "".
func (s *Server) SetPlan(ctx context.Context, by Operator, organizationID, plan string) (PlanChange, error) {
	if _, ok := s.live.Load().plans[plan]; !ok && plan != "" {
		return PlanChange{}, invalid("plan", "is no plan of the settings in force")
	}
	if !plainID(organizationID) {
		return PlanChange{}, errNotFound()
	}
	if err := s.catchUp(); err != nil {
		return PlanChange{}, operatorError(err)
	}
	org, err := s.state.Organization(organizationID)
	if err != nil {
		return PlanChange{}, err
	}
	if org == nil || org.DeletedAt != 0 {
		return PlanChange{}, problem(http.StatusNotFound, "not_found", "there is no such organization")
	}
	ctx, cancel := s.operatorContext(ctx)
	defer cancel()
	now := s.clock()
	_, err = s.propose(ctx, state.SetPlan{
		OrganizationID: org.ID, Plan: plan, At: now.UnixMilli(),
		Audit: []state.AuditEvent{by.event(now, "organization.plan_changed", org.ID, kindOrganization, org.ID, "from", org.Plan, "plan", plan)},
	})
	if err != nil {
		return PlanChange{}, operatorError(err)
	}
	return PlanChange{OrganizationID: org.ID, Plan: textOrNull(plan)}, nil
}

// PutSettings makes a new version of the settings that change live: settings has its number, its text and what it restores, and
// changes says what is new in it. It returns once this node has applied it. A *state.Refusal with CodeConflict is among the errors:
// the number is not the next one.
func (s *Server) PutSettings(ctx context.Context, by Operator, settings state.Settings, changes string) error {
	ctx, cancel := s.operatorContext(ctx)
	defer cancel()
	now := s.clock()
	settings.AppliedAt, settings.Address = now.UnixMilli(), by.Address
	name := "policy.applied"
	var detail []string
	if settings.Rollback {
		name = "policy.rolled_back"
		detail = append(detail, "restores", strconv.FormatUint(settings.Restores, 10))
	}
	digest := sha256.Sum256([]byte(settings.Text))
	detail = append(detail, "sha256", hex.EncodeToString(digest[:]), "changes", changes, "node", s.cfg.NodeID)
	_, err := s.propose(ctx, state.PutSettings{
		Settings: settings,
		Audit:    []state.AuditEvent{by.event(now, name, "", kindSettings, strconv.FormatUint(settings.Version, 10), detail...)},
	})
	if refusedWith(err, state.CodeConflict) {
		return err
	}
	if err != nil {
		return operatorError(err)
	}
	return nil
}

// RotateSigningKey replaces the signing key now, whatever the schedule says. The new one signs after keyLead; tokens of
// the old one verify until they end. It is refused while the last rotation is not in force yet, and where too many keys
// verify already.
func (s *Server) RotateSigningKey(ctx context.Context, by Operator) (RotatedKey, error) {
	if err := s.catchUp(); err != nil {
		return RotatedKey{}, operatorError(err)
	}
	s.accounts.upkeep.mu.Lock()
	defer s.accounts.upkeep.mu.Unlock()
	ctx, cancel := s.operatorContext(ctx)
	defer cancel()
	key, err := s.rotateSigningKey(ctx, &by)
	if err != nil {
		return RotatedKey{}, operatorError(err)
	}
	return RotatedKey{ID: key.ID, Algorithm: key.Algorithm, SignsFrom: formatTime(key.SignsFrom)}, nil
}

// AuditEntry is one event as operators, owners and admins see it.
type AuditEntry = auditBody

// AuditPage is one page of the audit log.
type AuditPage struct {
	Data       []AuditEntry `json:"data"`
	NextCursor *string      `json:"next_cursor"`
}

// AuditLog lists events of every organization and of none, newest first. query takes what the public endpoint takes, and
// for no organization_id means all.
func (s *Server) AuditLog(query func(name string) string) (AuditPage, error) {
	limit, before, err := pageOf(query)
	if err != nil {
		return AuditPage{}, err
	}
	filter, wrong := auditFilter(query)
	if err := invalidFields(wrong); err != nil {
		return AuditPage{}, err
	}
	if err := s.catchUp(); err != nil && !errors.Is(err, ErrUnavailable) {
		return AuditPage{}, operatorError(err)
	}
	events, next, err := s.state.Audit(filter, before, limit)
	if err != nil {
		return AuditPage{}, err
	}
	page := AuditPage{Data: make([]AuditEntry, 0, len(events)), NextCursor: cursorOf(next)}
	for i := range events {
		page.Data = append(page.Data, newAuditBody(&events[i]))
	}
	return page, nil
}
