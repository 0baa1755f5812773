package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// subject is whose limit is measured.
type subject interface {
	// limits are those to measure, given those that were asked for.
	limits(asked []int64) []int64
	// key gives a key whose limit is whole, and its rule. It may have to wait for one.
	key(ctx context.Context, limit int64) (string, Rule, error)
	// done ends the use of the last key.
	done(ctx context.Context) error
	// close takes away what was made.
	close(ctx context.Context) error
}

// subject finds out, or makes, what the options ask for.
func (a *Accuracy) subject(ctx context.Context, api *api, crew *crew) (subject, error) {
	if a.Key != "" {
		a.Progress(Progress{Doing: "looking at the key's limit"})
		return a.given(crew)
	}
	m := &maker{api: api, window: a.Window, sliding: !a.Fixed && !a.Tokens, tokens: a.Tokens, token: a.Token, organization: a.Organization}
	a.Progress(Progress{Doing: "preparing an account"})
	if a.Token == "" {
		return m, m.register(ctx)
	}
	return m, m.findOrganization(ctx)
}

// given is a key that somebody gave.
type given struct {
	secret   string
	rule     Rule
	used     time.Time // when it was last used, at the latest
	progress func(Progress)
}

// given asks once what the key's limit is, which spends a unit of it.
func (a *Accuracy) given(crew *crew) (*given, error) {
	c := newCall(a.Key)
	defer c.release()
	s, said, problem := c.ask(crew.targets[0])
	if s.Outcome != Admitted && s.Outcome != Refused {
		return nil, fmt.Errorf("look at the key's limit: %s", cmpOr(problem, "the node cannot decide"))
	}
	if said.limit < 1 || said.limit > MaxLimit || said.window < 1 || said.window > MaxWindow {
		return nil, fmt.Errorf("the key's limit is %d in %d s: want 1 to %d in at most %d s", said.limit, said.window, MaxLimit, MaxWindow)
	}
	if a.Tokens && (said.burst < 1 || said.burst > MaxLimit) {
		return nil, fmt.Errorf("the key's burst is %d: want 1 to %d, of a token bucket", said.burst, MaxLimit)
	}
	return &given{
		secret: a.Key, used: time.Now(), progress: a.Progress,
		rule: Rule{Limit: said.limit, Window: said.window, Sliding: !a.Fixed && !a.Tokens, Burst: said.burst},
	}, nil
}

func (g *given) limits([]int64) []int64 { return []int64{g.rule.Limit} }

// key waits until nothing that was spent is in view any more.
func (g *given) key(ctx context.Context, _ int64) (string, Rule, error) {
	windows := int64(1)
	if g.rule.Sliding {
		windows = 2
	}
	whole := time.Unix((g.used.Unix()/g.rule.Window+windows)*g.rule.Window, 0).Add(50 * time.Millisecond)
	if g.rule.Burst > 0 { // it fills again from when it was last used
		whole = g.used.Add(time.Duration(float64(g.rule.Burst) / float64(g.rule.Limit) * float64(g.rule.Window) * 1.01 * float64(time.Second)))
	}
	if wait := time.Until(whole); wait > 0 {
		g.progress(Progress{Doing: fmt.Sprintf("waiting %v until the key's limit is whole", wait.Round(time.Second))})
		if err := pause(ctx, wait); err != nil {
			return "", Rule{}, err
		}
	}
	return g.secret, g.rule, nil
}

func (g *given) done(context.Context) error { g.used = time.Now(); return nil }

func (g *given) close(context.Context) error { return nil }

// maker makes keys with limits of their own.
type maker struct {
	api          *api
	window       int64
	sliding      bool
	tokens       bool
	token        string
	organization string
	name         string   // of the account that was made; "": none was
	password     string   // of that account
	keys         []string // ids of the keys that are still there
}

// register makes an account, with a random name and a random password.
func (m *maker) register(ctx context.Context) error {
	name, password := "bench"+rand.Text()[:12], rand.Text()
	var answer struct {
		Token        string
		Organization struct{ ID string }
	}
	err := m.api.do(ctx, http.MethodPost, "/api/v1/auth/register", "", map[string]any{
		"username": name, "email": name + "@bench.example", "password": password,
	}, &answer)
	if err != nil {
		return fmt.Errorf("register an account: %w", err)
	}
	m.token, m.organization, m.name, m.password = answer.Token, answer.Organization.ID, name, password
	return nil
}

// findOrganization is the token's own, unless one was named.
func (m *maker) findOrganization(ctx context.Context) error {
	if m.organization != "" {
		return nil
	}
	var answer struct {
		Auth struct {
			OrganizationID string `json:"organization_id"`
		}
	}
	if err := m.api.do(ctx, http.MethodGet, "/api/v1/auth/me", m.token, nil, &answer); err != nil {
		return fmt.Errorf("look up the token's organization: %w", err)
	}
	m.organization = answer.Auth.OrganizationID
	return nil
}

func (m *maker) limits(asked []int64) []int64 { return asked }

func (m *maker) key(ctx context.Context, limit int64) (string, Rule, error) {
	var answer struct{ ID, Key string }
	err := m.api.do(ctx, http.MethodPost, "/api/v1/api-keys", m.token, map[string]any{
		"name": fmt.Sprintf("bench accuracy %d", limit), "organization_id": m.organization, "scopes": []string{"events:read"},
		"environment": "test", "expires_at": time.Now().Add(24 * time.Hour).UTC().Format(time.RFC3339),
		"rate_limit": map[string]any{"limit": limit, "window_seconds": m.window},
	}, &answer)
	if err != nil {
		return "", Rule{}, fmt.Errorf("make a key: %w", err)
	}
	m.keys = append(m.keys, answer.ID)
	rule := Rule{Limit: limit, Window: m.window, Sliding: m.sliding}
	if m.tokens {
		rule.Burst = limit
	}
	return answer.Key, rule, nil
}

// done revokes the keys. One that stays is tried again at the end.
func (m *maker) done(ctx context.Context) error {
	m.keys = slices.DeleteFunc(m.keys, func(id string) bool {
		return m.api.do(ctx, http.MethodDelete, "/api/v1/api-keys/"+id, m.token, nil, nil) == nil
	})
	return ctx.Err()
}

func (m *maker) close(ctx context.Context) error {
	if m.token == "" {
		return nil
	}
	ended := m.done(ctx)
	if m.name != "" {
		if err := m.api.do(ctx, http.MethodDelete, "/api/v1/auth/me", m.token, map[string]any{"password": m.password}, nil); err != nil {
			return fmt.Errorf("the account %s: %w", m.name, err)
		}
	}
	if len(m.keys) > 0 {
		return fmt.Errorf("the keys %v, which expire within a day", m.keys)
	}
	return ended
}

// api is the JSON side of the cluster, for preparations.
type api struct {
	base         string
	client       *http.Client
	forwardedFor string // "": nothing is said
}

func newAPI(base string, timeout time.Duration) *api {
	return &api{base: base, client: &http.Client{
		Timeout: max(timeout, 15*time.Second), Transport: &http.Transport{MaxIdleConnsPerHost: preparingKeys, Proxy: http.ProxyFromEnvironment},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

func (a *api) close() { a.client.CloseIdleConnections() }

// Bounds of patience with a cluster that answers 429 or 503.
const (
	apiTries   = 6
	apiMaxWait = 2 * time.Minute
)

// do sends one request and decodes the answer into out (nil: not). A 429 or 503 is tried again when the answer says, with
// the same idempotency key. Errors hold nothing secret.
func (a *api) do(ctx context.Context, method, path, token string, body, out any) error {
	var encoded []byte
	if body != nil {
		var err error
		if encoded, err = json.Marshal(body); err != nil {
			return fmt.Errorf("encode: %w", err)
		}
	}
	once := rand.Text()
	for try := 1; ; try++ {
		status, after, answer, err := a.send(ctx, method, path, token, once, encoded)
		if err != nil {
			return err
		}
		if (status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable) && try < apiTries && after <= apiMaxWait {
			if err := pause(ctx, after); err != nil {
				return err
			}
			continue
		}
		if status < 200 || status > 299 {
			return statusError(method, path, status, answer)
		}
		if out == nil {
			return nil
		}
		if err := json.Unmarshal(answer, out); err != nil {
			return fmt.Errorf("decode the answer to %s %s: %w", method, path, err)
		}
		return nil
	}
}

func (a *api) send(ctx context.Context, method, path, token, once string, body []byte) (status int, after time.Duration, answer []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, bytes.NewReader(body))
	if err != nil {
		return 0, 0, nil, fmt.Errorf("make a request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if method == http.MethodPost {
		req.Header.Set("Idempotency-Key", once)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if a.forwardedFor != "" {
		req.Header.Set("X-Forwarded-For", a.forwardedFor)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return 0, 0, nil, &unreachableError{err}
	}
	defer resp.Body.Close()
	if answer, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20)); err != nil {
		return 0, 0, nil, fmt.Errorf("read the answer to %s %s: %w", method, path, err)
	}
	seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil {
		seconds = 1
	}
	return resp.StatusCode, time.Duration(max(seconds, 1)) * time.Second, answer, nil
}

// unreachableError is a request that got no answer.
type unreachableError struct{ err error }

func (e *unreachableError) Error() string { return "send: " + e.err.Error() }
func (e *unreachableError) Unwrap() error { return e.err }

func statusError(method, path string, status int, answer []byte) error {
	var p struct {
		Code, Detail string
		Errors       []struct{ Field, Detail string }
	}
	if json.Unmarshal(answer, &p) != nil || p.Code == "" {
		return fmt.Errorf("%s %s: status %d", method, path, status)
	}
	err := fmt.Errorf("%s %s: %d %s: %s", method, path, status, p.Code, p.Detail)
	for _, e := range p.Errors {
		err = errors.Join(err, fmt.Errorf("%s: %s", e.Field, e.Detail))
	}
	return err
}
