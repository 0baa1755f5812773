package authtest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"sluice/raftfsm/state"
)

// Cluster is a replicated state of one node, in memory: it implements authapi.State and authapi.Cluster. Entities are
// put with Put… by tests and with Propose by handlers. What it returns are copies. Safe for concurrent use.
type Cluster struct {
	// Stale makes Fresh false. Unavailable makes Propose and CatchUp fail with the error it holds.
	Stale       atomic.Bool
	unavailable atomic.Pointer[error]
	// Clock, when set before the first request, is the time of the log.
	Clock *Clock
	// OnCatchUp, when set before the first request, runs inside every CatchUp: it may put what "arrives" by it.
	OnCatchUp func()
	catchUps  atomic.Int64
	epoch     atomic.Uint64

	mu          sync.Mutex
	err         error
	health      []HealthCheck
	users       map[string]state.User
	orgs        map[string]state.Organization
	members     map[[2]string]state.Membership
	keys        map[string]state.APIKey
	usage       map[string]state.KeyUsage
	sessions    map[string]state.Session
	signing     []state.SigningKey
	secrets     *state.ClusterSecrets
	keyring     *state.GossipKeyring
	audit       []state.AuditEvent // oldest first
	idempotency map[string]state.Idempotency
	requests    map[[16]byte]state.Result
	identities  map[[2]string]state.Identity // by provider and subject
	once        map[string]bool
	index       uint64
	prunes      []state.Prune
	onPropose   OnPropose
}

// NewCluster makes an empty state. The caller puts signing keys and secrets in with Propose(state.InitCluster).
func NewCluster() *Cluster {
	return &Cluster{
		users: map[string]state.User{}, orgs: map[string]state.Organization{}, members: map[[2]string]state.Membership{},
		keys: map[string]state.APIKey{}, sessions: map[string]state.Session{}, idempotency: map[string]state.Idempotency{},
		requests: map[[16]byte]state.Result{}, usage: map[string]state.KeyUsage{},
		identities: map[[2]string]state.Identity{}, once: map[string]bool{},
	}
}

// Fail makes every read fail with err, or work again with nil.
func (c *Cluster) Fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

// SetUnavailable makes Propose and CatchUp fail with err, or work again with nil.
func (c *Cluster) SetUnavailable(err error) {
	if err == nil {
		c.unavailable.Store(nil)
		return
	}
	c.unavailable.Store(&err)
}

// CatchUps counts the calls of CatchUp.
func (c *Cluster) CatchUps() int64 { return c.catchUps.Load() }

// CatchUp implements authapi.Cluster.
func (c *Cluster) CatchUp(ctx context.Context) error {
	c.catchUps.Add(1)
	if err := c.unavailable.Load(); err != nil {
		return *err
	}
	if c.OnCatchUp != nil {
		c.OnCatchUp()
	}
	return ctx.Err()
}

// Fresh implements authapi.Cluster.
func (c *Cluster) Fresh() bool { return !c.Stale.Load() }

// Leader implements authapi.Cluster.
func (c *Cluster) Leader() bool { return true }

// Health implements authapi.Cluster.
func (c *Cluster) Health() []HealthCheck {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.health)
}

// SetHealth sets what Health lists.
func (c *Cluster) SetHealth(checks ...HealthCheck) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.health = checks
}

// Epoch implements authapi.State.
func (c *Cluster) Epoch() uint64 { return c.epoch.Load() }

// PutUser puts or replaces a user.
func (c *Cluster) PutUser(u state.User) { c.put(func() { c.users[u.ID] = u }) }

// PutOrganization puts or replaces an organization.
func (c *Cluster) PutOrganization(o state.Organization) { c.put(func() { c.orgs[o.ID] = o }) }

// PutMembership puts or replaces a membership.
func (c *Cluster) PutMembership(m state.Membership) {
	c.put(func() { c.members[[2]string{m.OrganizationID, m.UserID}] = m })
}

// PutKey puts or replaces an API key.
func (c *Cluster) PutKey(k state.APIKey) { c.put(func() { c.keys[k.ID] = k }) }

// PutSession puts or replaces a session.
func (c *Cluster) PutSession(s state.Session) { c.put(func() { c.sessions[s.ID] = s }) }

// PutSigningKey adds a signing key as the newest.
func (c *Cluster) PutSigningKey(k state.SigningKey) {
	c.put(func() { c.signing = append(c.signing, k) })
}

func (c *Cluster) put(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
	c.epoch.Add(1)
}

// find copies one entity.
func find[K comparable, V any](c *Cluster, m map[K]V, key K) (*V, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	v, ok := m[key]
	if !ok {
		return nil, nil
	}
	return &v, nil
}

// pick copies the entities that keep wants, in the order of less.
func pick[K comparable, V any](c *Cluster, m map[K]V, keep func(*V) bool, order func(a, b V) int) ([]V, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	var list []V
	for _, v := range m {
		if keep(&v) {
			list = append(list, v)
		}
	}
	slices.SortFunc(list, order)
	return list, nil
}

func first[V any](list []V, err error) (*V, error) {
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return &list[0], nil
}

func byUserID(a, b state.User) int { return strings.Compare(a.ID, b.ID) }

// User implements authapi.State.
func (c *Cluster) User(id string) (*state.User, error) { return find(c, c.users, id) }

// UserByName implements authapi.State.
func (c *Cluster) UserByName(name string) (*state.User, error) {
	return first(pick(c, c.users, func(u *state.User) bool { return u.Username == name }, byUserID))
}

// UserByEmail implements authapi.State.
func (c *Cluster) UserByEmail(email string) (*state.User, error) {
	return first(pick(c, c.users, func(u *state.User) bool { return u.Email == email }, byUserID))
}

// Organization implements authapi.State.
func (c *Cluster) Organization(id string) (*state.Organization, error) { return find(c, c.orgs, id) }

// Membership implements authapi.State.
func (c *Cluster) Membership(organizationID, userID string) (*state.Membership, error) {
	return find(c, c.members, [2]string{organizationID, userID})
}

// TokenAuth implements authapi.State.
func (c *Cluster) TokenAuth(sessionID, userID, organizationID string) (*state.TokenAuth, error) {
	session, err := c.Session(sessionID)
	if err != nil || session == nil {
		return nil, err
	}
	user, err := c.User(userID)
	if err != nil {
		return nil, err
	}
	auth := &state.TokenAuth{Session: *session, OrganizationID: organizationID}
	if user != nil {
		auth.UserActive = user.DisabledAt == 0 && user.DeletedAt == 0
		if organizationID == "" {
			auth.OrganizationID = user.PersonalOrg
		}
	}
	member, err := c.Membership(auth.OrganizationID, userID)
	if err != nil {
		return nil, err
	}
	if member != nil {
		auth.Role = member.Role
	}
	return auth, nil
}

// MembershipsOf implements authapi.State.
func (c *Cluster) MembershipsOf(userID string) ([]state.Membership, error) {
	return pick(c, c.members, func(m *state.Membership) bool { return m.UserID == userID },
		func(a, b state.Membership) int { return strings.Compare(a.OrganizationID, b.OrganizationID) })
}

func byKeyID(a, b state.APIKey) int { return strings.Compare(a.ID, b.ID) }

// KeyByHash implements authapi.State.
func (c *Cluster) KeyByHash(hash [32]byte) (*state.APIKey, error) {
	h := string(hash[:])
	return first(pick(c, c.keys, func(k *state.APIKey) bool { return string(k.Hash) == h || string(k.PreviousHash) == h }, byKeyID))
}

// Key implements authapi.State.
func (c *Cluster) Key(id string) (*state.APIKey, error) { return find(c, c.keys, id) }

// Keys implements authapi.State.
func (c *Cluster) Keys(organizationID, after string, limit int) ([]state.APIKey, error) {
	list, err := pick(c, c.keys, func(k *state.APIKey) bool {
		return k.OrganizationID == organizationID && k.RevokedAt == 0 && k.ID > after
	}, byKeyID)
	return list[:min(limit, len(list))], err
}

// KeyUsage implements authapi.State.
func (c *Cluster) KeyUsage(ids ...string) ([]state.KeyUsage, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]state.KeyUsage, len(ids))
	for i, id := range ids {
		list[i] = c.usage[id]
	}
	return list, c.err
}

// Session implements authapi.State.
func (c *Cluster) Session(id string) (*state.Session, error) { return find(c, c.sessions, id) }

// SessionsOf implements authapi.State.
func (c *Cluster) SessionsOf(userID string) ([]state.Session, error) {
	return pick(c, c.sessions, func(s *state.Session) bool { return s.UserID == userID && s.EndedAt == 0 },
		func(a, b state.Session) int { return strings.Compare(a.ID, b.ID) })
}

// SigningKeys implements authapi.State.
func (c *Cluster) SigningKeys() ([]state.SigningKey, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.signing), c.err
}

// Answers implements authapi.State.
func (c *Cluster) Answers(after []byte, limit int) ([]state.Idempotency, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var answers []state.Idempotency
	for _, scope := range slices.Sorted(maps.Keys(c.idempotency)) {
		if scope > string(after) && len(answers) < limit {
			answers = append(answers, c.idempotency[scope])
		}
	}
	return answers, c.err
}

// GossipKeyring implements authapi.State.
func (c *Cluster) GossipKeyring() (*state.GossipKeyring, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.keyring, c.err
}

// ClusterSecrets implements authapi.State.
func (c *Cluster) ClusterSecrets() (*state.ClusterSecrets, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.secrets == nil {
		return nil, c.err
	}
	s := *c.secrets
	return &s, nil
}

// Audit implements authapi.State.
func (c *Cluster) Audit(f state.AuditFilter, before string, limit int) (list []state.AuditEvent, next string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := len(c.audit) - 1; i >= 0; i-- {
		e := c.audit[i]
		prefix, wild := strings.CutSuffix(f.Event, "*")
		switch {
		case before != "" && e.ID >= before,
			f.OrganizationID != "" && e.OrganizationID != f.OrganizationID,
			f.ActorID != "" && e.ActorID != f.ActorID,
			f.SubjectID != "" && e.SubjectID != f.SubjectID,
			f.Result != "" && e.Result != f.Result,
			f.Event != "" && !wild && e.Event != f.Event,
			wild && !strings.HasPrefix(e.Event, prefix),
			f.Since != 0 && e.At < f.Since,
			f.Until != 0 && e.At >= f.Until:
		case len(list) == limit:
			return list, list[limit-1].ID, c.err
		default:
			list = append(list, e)
		}
	}
	return list, "", c.err
}

// Propose implements authapi.Cluster: it applies cmd at once, and a second time under the same id not at all.
func (c *Cluster) Propose(ctx context.Context, requestID [16]byte, cmd state.Command) (state.Result, error) {
	if err := c.unavailable.Load(); err != nil {
		return state.Result{}, *err
	}
	if err := ctx.Err(); err != nil {
		return state.Result{}, fmt.Errorf("propose: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, ok := c.requests[requestID]; ok {
		return r, nil
	}
	var failure error
	if c.onPropose != nil {
		applied, err := c.onPropose(cmd)
		if failure = err; err != nil && !applied {
			return state.Result{}, err
		}
	}
	c.index++
	r := c.applyLocked(cmd)
	r.Index = c.index
	c.requests[requestID] = r
	switch cmd.(type) {
	case state.RecordKeyUse, state.AppendAudit:
	default:
		c.epoch.Add(1)
	}
	if failure != nil {
		return state.Result{}, failure
	}
	return r, nil
}
