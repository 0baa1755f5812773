package systemtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// plainClient keeps enough connections for the tests that ask hundreds of things at once.
var plainClient = &http.Client{
	Timeout: 15 * time.Second,
	Transport: &http.Transport{
		MaxIdleConns:        2000,
		MaxIdleConnsPerHost: 600,
		IdleConnTimeout:     30 * time.Second,
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
	},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// addresses hands out client addresses of the benchmarking range (RFC 2544), so that no two callers share a limit.
var addresses atomic.Uint32

func newAddress() string {
	n := addresses.Add(1)
	return fmt.Sprintf("198.%d.%d.%d", 18+n>>16&1, n>>8&0xff, n&0xff)
}

// names makes what is unique in a run.
var names atomic.Int64

func unique(prefix string) string {
	return fmt.Sprintf("%s%d", prefix, names.Add(1))
}

// request describes one call; the zero value is an anonymous GET.
type request struct {
	method  string
	path    string
	body    any
	raw     string // a body as it is, in place of body
	token   string // a JWT
	key     string // an API key
	address string // the client's, as a load balancer tells it
	header  map[string]string
}

type response struct {
	status int
	header http.Header
	body   []byte
}

func (r response) String() string { return fmt.Sprintf("%d %s", r.status, r.body) }

// field digs a text out of the JSON body: field("user", "id").
func (r response) field(t *testing.T, path ...string) string {
	t.Helper()
	var v any
	if err := json.Unmarshal(r.body, &v); err != nil {
		t.Fatalf("body of %v: %v", r, err)
	}
	for _, name := range path {
		table, ok := v.(map[string]any)
		if !ok || table[name] == nil {
			t.Fatalf("no %q in %v", path, r)
		}
		v = table[name]
	}
	text, ok := v.(string)
	if !ok {
		t.Fatalf("%q is no text in %v", path, r)
	}
	return text
}

// send makes one call to base.
func send(base string, r request) (response, error) {
	var body io.Reader
	if r.body != nil {
		data, err := json.Marshal(r.body)
		if err != nil {
			return response{}, fmt.Errorf("encode: %w", err)
		}
		body = bytes.NewReader(data)
	}
	if r.raw != "" {
		body = strings.NewReader(r.raw)
	}
	method := r.method
	if method == "" {
		method = http.MethodGet
	}
	req, err := http.NewRequest(method, base+r.path, body)
	if err != nil {
		return response{}, fmt.Errorf("make request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.token != "" {
		req.Header.Set("Authorization", "Bearer "+r.token)
	}
	if r.key != "" {
		req.Header.Set("X-API-Key", r.key)
	}
	if r.address != "" {
		req.Header.Set("X-Forwarded-For", r.address)
	}
	for name, value := range r.header {
		req.Header.Set(name, value)
	}
	res, err := plainClient.Do(req)
	if err != nil {
		return response{}, fmt.Errorf("send: %w", err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		return response{}, fmt.Errorf("read answer: %w", err)
	}
	return response{res.StatusCode, res.Header, data}, nil
}

// must makes a call that has to be answered with the status.
func must(t *testing.T, base string, r request, status int) response {
	t.Helper()
	got, err := send(base, r)
	if err != nil {
		t.Fatalf("%s %s at %s: %v", r.method, r.path, base, err)
	}
	if got.status != status {
		t.Fatalf("%s %s at %s: got %v, want %d", r.method, r.path, base, got, status)
	}
	return got
}

// account is a registered user.
type account struct {
	username, password, address string
	userID, organization        string
	token, refresh              string
}

// register makes a user at base, from an address of its own.
func register(t *testing.T, base string) account {
	t.Helper()
	a := account{username: unique("user"), password: unique("a fine long password "), address: newAddress()}
	res := must(t, base, request{
		method: "POST", path: "/api/v1/auth/register", address: a.address,
		body: map[string]any{"username": a.username, "email": a.username + "@example.com", "password": a.password},
	}, http.StatusCreated)
	a.userID, a.organization = res.field(t, "user", "id"), res.field(t, "organization", "id")
	a.token, a.refresh = res.field(t, "token"), res.field(t, "refresh_token")
	return a
}

// apiKey is a key of an account's personal organization.
type apiKey struct{ id, secret string }

// newKey makes a key at base; limit 0 leaves it the policy's own.
func (a account) newKey(t *testing.T, base string, limit int, scopes ...string) apiKey {
	t.Helper()
	body := map[string]any{"name": unique("key"), "organization_id": a.organization, "scopes": scopes}
	if limit > 0 {
		body["rate_limit"] = map[string]any{"limit": limit, "window_seconds": 60}
	}
	res := must(t, base, request{method: "POST", path: "/api/v1/api-keys", token: a.token, address: a.address, body: body}, http.StatusCreated)
	return apiKey{id: res.field(t, "id"), secret: res.field(t, "key")}
}

// checkLimitHeaders finds what every answer of the public listener must have.
func checkLimitHeaders(res response) error {
	if res.header.Get("X-Request-Id") == "" {
		return errors.New("no X-Request-Id")
	}
	for _, name := range []string{"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "X-RateLimit-Window"} {
		if n, err := strconv.ParseInt(res.header.Get(name), 10, 64); err != nil || n < 0 {
			return fmt.Errorf("%s is %q", name, res.header.Get(name))
		}
	}
	if res.status == http.StatusTooManyRequests {
		if n, err := strconv.Atoi(res.header.Get("Retry-After")); err != nil || n < 1 {
			return fmt.Errorf("Retry-After of a 429 is %q", res.header.Get("Retry-After"))
		}
	}
	return nil
}
