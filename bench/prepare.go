package bench

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// material is what requests are made of.
type material struct {
	prefix, password string // of accounts that are made while measuring, and of checks' keys
	expires          string
	organization     string
	tokens           []string
	signIns          []account // signing in ends older sessions, so these are nobody else's
	keys, managers   []string

	registered  atomic.Int64
	newAccounts *harvest // tokens
	newKeys     *harvest // ids
}

// account is one that was made here.
type account struct {
	name, token, organization string
	credentials               []byte // the body of a sign-in
}

// preparer makes what scenarios need, and takes it away again.
type preparer struct {
	*material
	load    *Load
	users   []account // all that were made before measuring
	api     *api
	scopes  []string
	manager string   // id of the key that makes the others
	made    []string // ids of keys in an organization that stays
	mu      sync.Mutex
}

// Bounds of preparing: what goes on at once, since accounts cost a password hash each, and keys.
const (
	preparingKeys     = 16
	preparingAccounts = 4
	fewKeys           = 16 // of callers whose number does not matter
)

// prepare makes what the scenarios need. The caller cleans up, also after an error.
func (p *preparer) prepare(ctx context.Context, want needs) error {
	l := p.load
	forTokens, forSignIns := 0, 0
	switch {
	case want.tokens && len(p.tokens) == 0:
		forTokens = l.Users
	case want.keys && len(p.keys) == 0 && l.Token == "":
		forTokens = 1
	}
	if want.accounts {
		forSignIns = l.Users
	}
	if forTokens+forSignIns > 0 {
		l.Progress(LoadProgress{Doing: fmt.Sprintf("making accounts: %d", forTokens+forSignIns)})
		if err := p.accounts(ctx, forTokens+forSignIns); err != nil {
			return err
		}
		p.signIns = p.users[forTokens:]
	}
	if want.tokens && len(p.tokens) == 0 {
		for _, u := range p.users[:forTokens] {
			p.tokens = append(p.tokens, u.token)
		}
	}
	if len(p.keys) > 0 {
		p.managers = p.keys
		if want.organization && p.organization == "" {
			return p.organizationOf(ctx, p.keys[0])
		}
		return nil
	}
	if !want.keys {
		return nil
	}
	count := l.Keys
	if !want.manyKeys {
		count = min(count, fewKeys)
	}
	return p.makeKeys(ctx, count)
}

// atOnce runs n things, some at once, and stops at the first error.
func atOnce(ctx context.Context, n, most int, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(n, most) {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := do(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

func (p *preparer) accounts(ctx context.Context, n int) error {
	made := make([]account, n)
	err := atOnce(ctx, n, preparingAccounts, func(ctx context.Context, i int) error {
		a := account{name: fmt.Sprintf("%sa%d", p.prefix, i)}
		var answer struct {
			Token        string
			Organization struct{ ID string }
		}
		err := p.api.do(ctx, http.MethodPost, "/api/v1/auth/register", "", map[string]any{
			"username": a.name, "email": a.name + "@bench.example", "password": p.password,
		}, &answer)
		if err != nil {
			return fmt.Errorf("register an account: %w", err)
		}
		a.token, a.organization = answer.Token, answer.Organization.ID
		a.credentials, err = json.Marshal(map[string]string{"username": a.name, "password": p.password})
		made[i] = a
		return err
	})
	for _, a := range made {
		if a.token != "" {
			p.users = append(p.users, a)
		}
	}
	return err
}

// organizationOf is the credential's own.
func (p *preparer) organizationOf(ctx context.Context, credential string) error {
	var answer struct {
		Auth struct {
			OrganizationID string `json:"organization_id"`
		}
	}
	if err := p.api.do(ctx, http.MethodGet, "/api/v1/auth/me", credential, nil, &answer); err != nil {
		return fmt.Errorf("look up the credential's organization: %w", err)
	}
	p.organization = answer.Auth.OrganizationID
	return nil
}

// makeKeys makes one key that makes the others: its own limit is not that of people.
func (p *preparer) makeKeys(ctx context.Context, count int) error {
	l := p.load
	token := l.Token
	switch {
	case token == "":
		token, p.organization = p.users[0].token, p.users[0].organization
	case l.Organization != "":
		p.organization = l.Organization
	default:
		if err := p.organizationOf(ctx, token); err != nil {
			return err
		}
	}
	scopes := slices.Clone(p.scopes)
	if !slices.Contains(scopes, "api-keys:manage") {
		scopes = append(scopes, "api-keys:manage")
	}
	manager, id, err := p.key(ctx, token, "bench run", scopes, MaxLimit, 1)
	if err != nil {
		return err
	}
	p.managers, p.manager = []string{manager}, id
	limit, window := l.Limit, l.Window
	if l.Scenario == "limits-check" {
		limit, window = MaxLimit, 1 // it is the checks' own limit that is asked about
	}
	l.Progress(LoadProgress{Doing: fmt.Sprintf("making API keys: %d", count)})
	p.keys = make([]string, count)
	return atOnce(ctx, count, preparingKeys, func(ctx context.Context, i int) error {
		secret, id, err := p.key(ctx, manager, "bench run "+fmt.Sprint(i), p.scopes, limit, window)
		if err != nil {
			return err
		}
		p.keys[i] = secret
		if l.Token != "" {
			p.mu.Lock()
			p.made = append(p.made, id)
			p.mu.Unlock()
		}
		return nil
	})
}

func (p *preparer) key(ctx context.Context, credential, name string, scopes []string, limit, window int64) (secret, id string, err error) {
	var answer struct{ ID, Key string }
	err = p.api.do(ctx, http.MethodPost, "/api/v1/api-keys", credential, map[string]any{
		"name": name, "organization_id": p.organization, "scopes": scopes, "environment": "test", "expires_at": p.expires,
		"rate_limit": map[string]any{"limit": limit, "window_seconds": window},
	}, &answer)
	if err != nil {
		return "", "", fmt.Errorf("make a key: %w", err)
	}
	return answer.Key, answer.ID, nil
}

// close takes away what was made, and says what could not be.
func (p *preparer) close(ctx context.Context) []string {
	var left []string
	tell := func(format string, args ...any) { left = append(left, fmt.Sprintf(format, args...)) }
	if n := p.deleteNew(ctx); n > 0 {
		tell("left behind: %d of %d accounts that register made, named %s1 and on", n, p.registered.Load(), p.prefix)
	}
	// Keys in the organization of an account that was made here end with it.
	if !slices.ContainsFunc(p.users, func(u account) bool { return u.organization == p.organization }) {
		if n := p.revoke(ctx); n > 0 {
			tell("left behind: %d API keys named \"bench run\", which expire at %s", n, p.expires)
		}
	}
	failed := p.deleteAccounts(ctx, p.users)
	if len(failed) > 0 {
		tell("left behind: the accounts %s", strings.Join(failed, ", "))
	}
	return left
}

// deleteNew deletes the accounts that the measured requests made, and returns how many are left.
func (p *preparer) deleteNew(ctx context.Context) int64 {
	close(p.newAccounts.list)
	var accounts []account
	for token := range p.newAccounts.list {
		accounts = append(accounts, account{name: "one", token: token})
	}
	return int64(len(p.deleteAccounts(ctx, accounts))) + p.newAccounts.dropped.Load()
}

func (p *preparer) deleteAccounts(ctx context.Context, accounts []account) (failed []string) {
	deleted := make([]bool, len(accounts))
	_ = atOnce(ctx, len(accounts), preparingAccounts, func(ctx context.Context, i int) error {
		err := p.deleteAccount(ctx, accounts[i])
		deleted[i] = err == nil
		if unreachable := new(unreachableError); errors.As(err, &unreachable) {
			return err // the others would fail as well, each after a wait
		}
		return nil
	})
	for i, a := range accounts {
		if !deleted[i] {
			failed = append(failed, a.name)
		}
	}
	return failed
}

// deleteAccount signs in for it where the session has ended, as it does after many sign-ins.
func (p *preparer) deleteAccount(ctx context.Context, a account) error {
	remove := func(token string) error {
		return p.api.do(ctx, http.MethodDelete, "/api/v1/auth/me", token, map[string]any{"password": p.password}, nil)
	}
	err := remove(a.token)
	if unreachable := new(unreachableError); err == nil || len(a.credentials) == 0 || errors.As(err, &unreachable) {
		return err
	}
	var answer struct{ Token string }
	if err := p.api.do(ctx, http.MethodPost, "/api/v1/auth/login", "", json.RawMessage(a.credentials), &answer); err != nil {
		return fmt.Errorf("sign in: %w", err)
	}
	return remove(answer.Token)
}

// revoke revokes the keys in an organization that stays, that which made the others last.
func (p *preparer) revoke(ctx context.Context) int64 {
	close(p.newKeys.list)
	ids := p.made
	for id := range p.newKeys.list {
		ids = append(ids, id)
	}
	var left atomic.Int64
	left.Store(int64(len(ids)) + p.newKeys.dropped.Load())
	if len(p.managers) == 0 {
		return left.Load()
	}
	one := func(ctx context.Context, id string) error {
		if err := p.api.do(ctx, http.MethodDelete, "/api/v1/api-keys/"+id, p.managers[0], nil, nil); err != nil {
			if unreachable := new(unreachableError); errors.As(err, &unreachable) {
				return err
			}
			return nil
		}
		left.Add(-1)
		return nil
	}
	err := atOnce(ctx, len(ids), preparingKeys, func(ctx context.Context, i int) error { return one(ctx, ids[i]) })
	if p.manager != "" {
		left.Add(1)
		if err == nil {
			_ = one(ctx, p.manager) // what is left is counted
		}
	}
	return left.Load()
}

func newPreparer(l *Load) *preparer {
	p := &preparer{load: l, api: newAPI(l.Targets[0], l.Timeout), material: &material{
		prefix: "bench" + rand.Text()[:12], password: rand.Text(), expires: time.Now().Add(24 * time.Hour).UTC().Format(time.RFC3339),
		keys: slices.Clone(l.APIKeys), organization: l.Organization,
		newAccounts: newHarvest(), newKeys: newHarvest(),
	}}
	if l.Token != "" {
		p.tokens = []string{l.Token}
	}
	if l.Addresses > 0 {
		// Whoever prepares has an address of its own too, one that the load does not use.
		p.api.forwardedFor = string(appendAddress(nil, l.address(l.Addresses)))
	}
	return p
}
