package netfault

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// client waits longer than the longest pause, so that requests sent to a paused node are answered after it.
var client = &http.Client{
	Timeout: 9 * time.Second,
	Transport: &http.Transport{
		MaxIdleConns:        2000,
		MaxIdleConnsPerHost: 200,
		IdleConnTimeout:     20 * time.Second,
		DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
	},
}

// names and addresses make what is unique in a run. The addresses are clients' in X-Forwarded-For only.
var names, addresses atomic.Uint32

func unique(what string) string { return fmt.Sprintf("%s%d", what, names.Add(1)) }

func newAddress() string {
	n := addresses.Add(1)
	return fmt.Sprintf("198.%d.%d.%d", 18+n>>16&1, n>>8&0xff, n&0xff)
}

// request describes one call; the zero value is an anonymous GET.
type request struct {
	method  string
	path    string
	body    any
	token   string // a JWT
	key     string // an API key
	address string // the client's, as a load balancer tells it
	header  map[string]string
}

func send(node int, r request) (response, error) {
	return sendWithin(context.Background(), node, r)
}

func sendWithin(ctx context.Context, node int, r request) (response, error) {
	var body io.Reader
	if r.body != nil {
		data, err := json.Marshal(r.body)
		if err != nil {
			return response{}, fmt.Errorf("encode: %w", err)
		}
		body = bytes.NewReader(data)
	}
	if r.method == "" {
		r.method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(ctx, r.method, nodeURL(node)+r.path, body)
	if err != nil {
		return response{}, fmt.Errorf("make request: %w", err)
	}
	for name, value := range map[string]string{"X-API-Key": r.key, "X-Forwarded-For": r.address} {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.token != "" {
		req.Header.Set("Authorization", "Bearer "+r.token)
	}
	for name, value := range r.header {
		req.Header.Set(name, value)
	}
	res, err := client.Do(req)
	if err != nil {
		return response{}, fmt.Errorf("send: %w", err)
	}
	return read(res)
}

// must makes a call that has to be answered with the status.
func must(t *testing.T, node int, r request, status int) response {
	t.Helper()
	res, err := send(node, r)
	if err := expect(status)(res, err); err != nil {
		t.Fatalf("%s %s at node%d: %v", r.method, r.path, node, err)
	}
	return res
}

// account is a registered user, who makes keys.
type account struct{ organization, token string }

func (r response) field(t *testing.T, path ...string) string {
	t.Helper()
	var v any
	if err := json.Unmarshal(r.body, &v); err != nil {
		t.Fatalf("body of %v: %v", r, err)
	}
	for _, name := range path {
		table, _ := v.(map[string]any)
		v = table[name]
	}
	text, ok := v.(string)
	if !ok {
		t.Fatalf("no text %q in %v", path, r)
	}
	return text
}

func register(t *testing.T, node int) account {
	t.Helper()
	name := unique("user")
	res := must(t, node, request{
		method: http.MethodPost, path: "/api/v1/auth/register", address: newAddress(),
		body: map[string]any{"username": name, "email": name + "@example.com", "password": unique("a fine long password ")},
	}, http.StatusCreated)
	return account{organization: res.field(t, "organization", "id"), token: res.field(t, "token")}
}

type apiKey struct{ id, secret string }

func (a account) newKey(t *testing.T, node int, limit, window int64) apiKey {
	t.Helper()
	res := must(t, node, request{method: http.MethodPost, path: "/api/v1/api-keys", token: a.token, address: newAddress(), body: map[string]any{
		"name": unique("key"), "organization_id": a.organization, "scopes": []string{"triggers:read"},
		"rate_limit": map[string]any{"limit": limit, "window_seconds": window},
	}}, http.StatusCreated)
	return apiKey{id: res.field(t, "id"), secret: res.field(t, "key")}
}

// write makes something that must be replicated. id keeps repetitions from making it twice.
func (a account) write(ctx context.Context, node int, id string) error {
	return expect(http.StatusCreated)(sendWithin(ctx, node, request{
		method: http.MethodPost, path: "/api/v1/organizations", token: a.token, address: newAddress(),
		body: map[string]any{"name": id}, header: map[string]string{"Idempotency-Key": id},
	}))
}

// bucket is what is limited: a key or an address, with the limit that it has.
type bucket struct {
	name    string
	key     string // "": an anonymous client
	address string // "": another one for each request
	limit   int64
	window  time.Duration
}

// check is the request that spends one unit of a bucket: the forward-auth check, which needs no upstream.
func (b *bucket) check() request {
	address := b.address
	if address == "" {
		address = newAddress()
	}
	return request{path: "/api/v1/auth/verify", key: b.key, address: address}
}

// answer is one answered request of a spray.
type answer struct {
	bucket    *bucket
	node      int
	status    int
	sent, got time.Time
	end       int64 // of the window that the node names, unix seconds
}

const (
	sprayInterval = 40 * time.Millisecond // for each bucket on each node
	sprayInFlight = 6                     // so many may wait for a paused node
	crowdInterval = 400 * time.Millisecond
	crowdSize     = 6 // requests at once on each node, from one new address
)

// spray asks on all nodes until it is stopped: steadily for each bucket, and in crowds from new addresses.
type spray struct {
	cancel context.CancelFunc
	all    sync.WaitGroup

	mu      sync.Mutex
	answers []answer
	odd     map[string]int // answers that no fault explains, by what they were
	lost    int            // requests without an answer
}

func startSpray(t *testing.T, buckets ...*bucket) *spray {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &spray{cancel: cancel, odd: map[string]int{}}
	t.Cleanup(func() { s.stop() })
	for node := 1; node <= nodes; node++ {
		for _, b := range buckets {
			s.all.Go(func() { s.steadily(ctx, b, node) })
		}
	}
	s.all.Go(func() { s.crowds(ctx) })
	// Under way only once every node has admitted somebody.
	eventually(t, 10*time.Second, "every node admits somebody", func() error {
		seen := map[int]bool{}
		for _, a := range s.seen() {
			if a.status == http.StatusOK {
				seen[a.node] = true
			}
		}
		if len(seen) < nodes {
			return fmt.Errorf("so far %v", seen)
		}
		return nil
	})
	return s
}

func (s *spray) stop() {
	s.cancel()
	s.all.Wait()
}

func (s *spray) seen() []answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answers[:len(s.answers):len(s.answers)]
}

func (s *spray) steadily(ctx context.Context, b *bucket, node int) {
	tick := time.NewTicker(sprayInterval)
	defer tick.Stop()
	flying := make(chan struct{}, sprayInFlight)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		select {
		case flying <- struct{}{}:
			s.all.Go(func() {
				s.ask(b, node)
				<-flying
			})
		default: // the node does not answer
		}
	}
}

func (s *spray) crowds(ctx context.Context) {
	tick := time.NewTicker(crowdInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		b := newcomer()
		for range crowdSize {
			for node := 1; node <= nodes; node++ {
				s.all.Go(func() { s.ask(b, node) })
			}
		}
	}
}

// newcomer is an anonymous client never seen before.
func newcomer() *bucket {
	address := newAddress()
	return &bucket{name: address, address: address, limit: anonymousLimit, window: anonymousWindow}
}

func (s *spray) ask(b *bucket, node int) answer {
	a := answer{bucket: b, node: node, sent: time.Now()}
	res, err := send(node, b.check())
	a.got, a.status = time.Now(), res.status
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		a.status = 0
		s.lost++
		return a
	}
	a.end, _ = strconv.ParseInt(res.header.Get("X-RateLimit-Reset"), 10, 64)
	switch {
	case a.status == http.StatusOK && (res.header.Get("X-RateLimit-Limit") != strconv.FormatInt(b.limit, 10) || res.header.Get("X-RateLimit-Window") != strconv.Itoa(int(b.window/time.Second))):
		s.odd[fmt.Sprintf("%s admitted under limit %s in %s s", b.name, res.header.Get("X-RateLimit-Limit"), res.header.Get("X-RateLimit-Window"))]++
	case a.status == http.StatusOK, a.status == http.StatusTooManyRequests, a.status == http.StatusServiceUnavailable, a.status == http.StatusUnauthorized && b.key != "":
	default:
		s.odd[res.String()]++
	}
	s.answers = append(s.answers, a)
	return a
}

// tally counts answers by node and status, for the log.
func tally(answers []answer) string {
	counts := map[string]int{}
	for _, a := range answers {
		counts[fmt.Sprintf("node%d %d", a.node, a.status)]++
	}
	return fmt.Sprint(maps.Clone(counts))
}
