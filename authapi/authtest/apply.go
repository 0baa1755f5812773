package authtest

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"sluice/raftfsm/state"
)

// applyLocked is the model of the commands. It does what package state says of each, as plainly as can be.
func (c *Cluster) applyLocked(cmd state.Command) state.Result {
	switch cmd := cmd.(type) {
	case state.InitCluster:
		if c.secrets != nil {
			return refuse(state.CodeConflict)
		}
		c.secrets = &cmd.Secrets
		c.signing = append(c.signing, cmd.SigningKey)
	case state.PutSigningKey:
		last := len(c.signing) - 1
		if last < 0 || c.signing[last].ID != cmd.PreviousID {
			return refuse(state.CodeConflict)
		}
		c.signing[last].VerifiesTo = cmd.PreviousVerifiesTo
		c.signing = append(c.signing, cmd.Key)
		c.audit = append(c.audit, cmd.Audit...)
	case state.RotateSecretsKey:
		if c.secrets == nil || !bytes.Equal(c.secrets.SealedCheck, cmd.OldCheck) {
			return refuse(state.CodeConflict)
		}
		c.secrets.SealedCheck = cmd.NewCheck
		c.audit = append(c.audit, cmd.Audit...)
	case state.Reseal:
		return c.resealLocked(cmd)
	case state.AppendAudit:
		c.audit = append(c.audit, cmd.Events...)
	case state.RegisterUser:
		return c.registerLocked(cmd)
	case state.StartSession:
		return c.startSessionLocked(cmd)
	case state.CreateSession:
		return c.createSessionLocked(cmd)
	case state.RefreshSession:
		return c.refreshLocked(cmd)
	case state.EndSession:
		s, ok := c.sessions[cmd.SessionID]
		if !ok || s.UserID != cmd.UserID {
			return refuse(state.CodeNotFound)
		}
		if s.EndedAt == 0 {
			c.endLocked(s, cmd.At, cmd.Reason)
			c.audit = append(c.audit, cmd.Audit...)
		}
	case state.EndSessions:
		n := c.endAllLocked(cmd.UserID, cmd.ExceptID, cmd.At, cmd.Reason)
		c.audit = append(c.audit, cmd.Audit...)
		return state.Result{Count: n}
	case state.SetPassword:
		u := c.users[cmd.UserID]
		switch {
		case u.ID == "" || u.DeletedAt != 0 || u.DisabledAt != 0:
			return refuse(state.CodeNotFound)
		case u.PasswordHash != cmd.OldHash:
			return refuse(state.CodeConflict)
		}
		u.PasswordHash = cmd.NewHash
		c.users[u.ID] = u
		c.audit = append(c.audit, cmd.Audit...)
		return state.Result{Count: c.endAllLocked(u.ID, cmd.KeepSessionID, cmd.At, "password_changed")}
	case state.ReplacePassword:
		u := c.users[cmd.UserID]
		if !c.activeLocked(cmd.UserID) || u.PasswordHash != cmd.OldHash {
			return refuse(state.CodeConflict)
		}
		u.PasswordHash = cmd.NewHash
		c.users[u.ID] = u
	case state.CreateOrg:
		if r, ok := c.replayedLocked(cmd.Idempotency); ok {
			return r
		}
		if !c.activeLocked(cmd.OwnerID) {
			return refuse(state.CodeNotFound)
		}
		c.addOrgLocked(cmd.Organization, cmd.OwnerID)
		c.doneLocked(cmd.Audit, cmd.Idempotency)
	case state.CreateKey, state.UpdateKey, state.RotateKey, state.RevokeKey, state.TouchKeys:
		return c.applyKeyLocked(cmd)
	case state.UpdateOrg, state.DeleteOrg, state.AddMember, state.UpdateMember, state.RemoveMember, state.TransferOrg, state.SetPlan,
		state.DeleteUser, state.SetUserDisabled:
		return c.applyOrgLocked(cmd)
	case state.RecordKeyUse:
		return c.recordUseLocked(cmd)
	case state.RevokeKeyBySecret:
		return c.revokeBySecretLocked(cmd)
	case state.UseOnce, state.RegisterIdentity, state.SignInByIdentity, state.LinkIdentity, state.UnlinkIdentity:
		return c.applyOAuthLocked(cmd)
	case state.Prune:
		c.prunes = append(c.prunes, cmd)
	case state.Barrier:
	case state.PutSettings: // the nodes' own
		c.audit = append(c.audit, cmd.Audit...)
	case state.PutGossipKeyring:
		if c.keyring == nil && cmd.Keyring.Version != 1 || c.keyring != nil && cmd.Keyring.Version != c.keyring.Version+1 {
			return refuse(state.CodeConflict)
		}
		c.keyring = &cmd.Keyring
		c.audit = append(c.audit, cmd.Audit...)
	case state.ResetBucket: // what counts is the limiter's, which has no part in this model
		c.audit = append(c.audit, cmd.Audit...)
	default:
		panic(fmt.Sprintf("authtest: %T is not modelled", cmd))
	}
	return state.Result{}
}

func refuse(code string) state.Result { return state.Result{Refused: code} }

// doneLocked records what every change carries.
func (c *Cluster) doneLocked(audit []state.AuditEvent, record *state.Idempotency) {
	c.audit = append(c.audit, audit...)
	if record != nil {
		c.idempotency[string(record.Scope)] = *record
	}
}

func (c *Cluster) replayedLocked(wanted *state.Idempotency) (state.Result, bool) {
	if wanted == nil {
		return state.Result{}, false
	}
	record, ok := c.idempotency[string(wanted.Scope)]
	switch {
	case !ok:
		return state.Result{}, false
	case !bytes.Equal(record.Fingerprint, wanted.Fingerprint):
		return refuse(state.CodeIdempotencyMismatch), true
	}
	return state.Result{Replay: &record}, true
}

func (c *Cluster) activeLocked(userID string) bool {
	u, ok := c.users[userID]
	return ok && u.DeletedAt == 0 && u.DisabledAt == 0
}

func (c *Cluster) addOrgLocked(o state.Organization, owner string) {
	c.orgs[o.ID] = o
	c.members[[2]string{o.ID, owner}] = state.Membership{
		OrganizationID: o.ID, UserID: owner, Role: state.RoleOwner, CreatedAt: o.CreatedAt,
	}
}

func (c *Cluster) registerLocked(cmd state.RegisterUser) state.Result {
	if r, ok := c.replayedLocked(cmd.Idempotency); ok {
		return r
	}
	for _, u := range c.users {
		if u.Username == cmd.User.Username {
			return refuse(state.CodeUsernameTaken)
		}
	}
	for _, u := range c.users {
		if u.Email == cmd.User.Email {
			return refuse(state.CodeEmailTaken)
		}
	}
	c.users[cmd.User.ID] = cmd.User
	c.addOrgLocked(cmd.Organization, cmd.User.ID)
	c.sessions[cmd.Session.ID] = cmd.Session
	c.doneLocked(cmd.Audit, cmd.Idempotency)
	return state.Result{ExpiresAt: cmd.Session.ExpiresAt}
}

func (c *Cluster) startSessionLocked(cmd state.StartSession) state.Result {
	var result state.Result
	if cmd.ByIdentity != nil {
		result = c.applyOAuthLocked(*cmd.ByIdentity)
	} else {
		result = c.createSessionLocked(*cmd.ByPassword)
	}
	if result.Refused == "" && result.Count > 0 {
		for _, e := range cmd.Replaced {
			e.Detail = append(slices.Clone(e.Detail), state.Pair{Name: "sessions", Value: strconv.Itoa(result.Count)})
			c.audit = append(c.audit, e)
		}
	}
	return result
}

func (c *Cluster) createSessionLocked(cmd state.CreateSession) state.Result {
	userID := cmd.Session.UserID
	if !c.activeLocked(userID) || cmd.PasswordHash != "" && c.users[userID].PasswordHash != cmd.PasswordHash {
		return refuse(state.CodeNotFound)
	}
	var open []state.Session
	for _, s := range c.sessions {
		if s.UserID == userID && s.EndedAt == 0 && s.ExpiresAt > cmd.Session.CreatedAt {
			open = append(open, s)
		}
	}
	slices.SortFunc(open, func(a, b state.Session) int { return cmp.Compare(a.ID, b.ID) })
	count := 0
	for ; len(open) >= cmd.MaxSessions; open = open[1:] {
		c.endLocked(open[0], cmd.Session.CreatedAt, "too_many_sessions")
		count++
	}
	c.sessions[cmd.Session.ID] = cmd.Session
	c.audit = append(c.audit, cmd.Audit...)
	return state.Result{Count: count, ExpiresAt: cmd.Session.ExpiresAt}
}

func (c *Cluster) refreshLocked(cmd state.RefreshSession) state.Result {
	s, ok := c.sessions[cmd.SessionID]
	if !ok || s.EndedAt != 0 || s.ExpiresAt <= cmd.At || !c.activeLocked(s.UserID) {
		return refuse(state.CodeSessionEnded)
	}
	switch {
	case bytes.Equal(cmd.PresentedHash, s.RefreshHash):
		s.PreviousHash, s.RefreshHash = s.RefreshHash, cmd.SuccessorHash
		s.RefreshedAt, s.ExpiresAt = cmd.At, cmd.ExpiresAt
		s.Generation++
		c.sessions[s.ID] = s
		return state.Result{Outcome: state.OutcomeRotated, ExpiresAt: s.ExpiresAt}
	case cmd.GraceMillis > 0 && bytes.Equal(cmd.PresentedHash, s.PreviousHash) && bytes.Equal(cmd.SuccessorHash, s.RefreshHash) &&
		cmd.At-s.RefreshedAt <= cmd.GraceMillis:
		return state.Result{Outcome: state.OutcomeReplayed, ExpiresAt: s.ExpiresAt}
	}
	c.endLocked(s, cmd.At, "token_reused")
	c.audit = append(c.audit, cmd.ReuseAudit...)
	return state.Result{Outcome: state.OutcomeReused}
}

func (c *Cluster) endLocked(s state.Session, at int64, reason string) {
	s.EndedAt, s.EndReason = at, reason
	c.sessions[s.ID] = s
}

func (c *Cluster) endAllLocked(userID, except string, at int64, reason string) (count int) {
	for _, s := range c.sessions {
		if s.UserID == userID && s.ID != except && s.EndedAt == 0 {
			c.endLocked(s, at, reason)
			count++
		}
	}
	return count
}

func (c *Cluster) applyKeyLocked(cmd state.Command) state.Result {
	switch cmd := cmd.(type) {
	case state.CreateKey:
		if r, ok := c.replayedLocked(cmd.Idempotency); ok {
			return r
		}
		if _, ok := c.orgs[cmd.Key.OrganizationID]; !ok {
			return refuse(state.CodeNotFound)
		}
		if !c.mayLocked(cmd.Actor, cmd.Key.OrganizationID, cmd.Key.Scopes) {
			return refuse(state.CodeForbidden)
		}
		c.keys[cmd.Key.ID] = cmd.Key
		c.doneLocked(cmd.Audit, cmd.Idempotency)
	case state.UpdateKey:
		k, ok := c.keys[cmd.KeyID]
		if !ok || k.RevokedAt != 0 {
			return refuse(state.CodeNotFound)
		}
		var scopes []string
		if cmd.Scopes != nil {
			scopes = *cmd.Scopes
		}
		if !c.mayLocked(cmd.Actor, k.OrganizationID, scopes) {
			return refuse(state.CodeForbidden)
		}
		if cmd.Name != nil {
			k.Name = *cmd.Name
		}
		if cmd.Scopes != nil {
			k.Scopes = scopes
		}
		if cmd.ExpiresAt != nil {
			k.ExpiresAt = *cmd.ExpiresAt
		}
		if cmd.SetRateLimit {
			k.RateLimit, k.RateWindow = cmd.RateLimit, cmd.RateWindow
		}
		c.keys[k.ID] = k
		c.audit = append(c.audit, cmd.Audit...)
	case state.RotateKey:
		if r, ok := c.replayedLocked(cmd.Idempotency); ok {
			return r
		}
		k, ok := c.keys[cmd.KeyID]
		switch {
		case !ok || k.RevokedAt != 0:
			return refuse(state.CodeNotFound)
		case !c.mayLocked(cmd.Actor, k.OrganizationID, k.Scopes):
			return refuse(state.CodeForbidden)
		case !bytes.Equal(k.Hash, cmd.OldHash):
			return refuse(state.CodeConflict)
		}
		k.PreviousHash, k.PreviousUntil = k.Hash, cmd.PreviousUntil
		k.Hash, k.Prefix, k.RotatedAt = cmd.NewHash, cmd.NewPrefix, cmd.At
		c.keys[k.ID] = k
		c.doneLocked(cmd.Audit, cmd.Idempotency)
	case state.RevokeKey:
		k, ok := c.keys[cmd.KeyID]
		switch {
		case !ok || k.RevokedAt != 0:
			return refuse(state.CodeNotFound)
		case !c.mayLocked(cmd.Actor, k.OrganizationID, nil):
			return refuse(state.CodeForbidden)
		}
		k.RevokedAt = cmd.At
		c.keys[k.ID] = k
		c.audit = append(c.audit, cmd.Audit...)
	case state.TouchKeys:
		for _, use := range cmd.Keys {
			if k, ok := c.keys[use.KeyID]; ok && use.At > k.LastUsedAt {
				k.LastUsedAt = use.At
				c.keys[use.KeyID] = k
			}
		}
	}
	return state.Result{}
}

// mayLocked says whether an actor may change an organization's keys, and give one these scopes.
func (c *Cluster) mayLocked(a state.Actor, organizationID string, scopes []string) bool {
	if a.KeyID != "" {
		k, ok := c.keys[a.KeyID]
		return ok && k.RevokedAt == 0 && k.OrganizationID == organizationID &&
			state.ScopeCovers(k.Scopes, a.Scopes) && state.ScopeCovers(k.Scopes, scopes)
	}
	m, ok := c.members[[2]string{organizationID, a.UserID}]
	return ok && c.activeLocked(a.UserID) && slices.Contains(a.Roles, m.Role)
}

// Prunes are the state.Prune commands so far.
func (c *Cluster) Prunes() []state.Prune {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.prunes)
}

// Index is how many commands were applied.
func (c *Cluster) Index() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.index
}

// OnPropose runs before each command, under the Cluster's lock. An error it gives is Propose's, and the command is applied
// only where it says so.
type OnPropose func(cmd state.Command) (applied bool, err error)

// SetOnPropose sets the hook, nil for none.
func (c *Cluster) SetOnPropose(hook OnPropose) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onPropose = hook
}

// ChangePasswordLocked changes a password from within an OnPropose.
func (c *Cluster) ChangePasswordLocked(userID, hash string) {
	u := c.users[userID]
	u.PasswordHash = hash
	c.users[userID] = u
}

// RemoveSession takes a session away without a trace, as if its entry had not been applied yet.
func (c *Cluster) RemoveSession(id string) { c.put(func() { delete(c.sessions, id) }) }

// RemoveKey does the same with a key.
func (c *Cluster) RemoveKey(id string) { c.put(func() { delete(c.keys, id) }) }
