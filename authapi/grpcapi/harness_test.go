package grpcapi_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"sluice/authapi"
	"sluice/authapi/authtest"
	"sluice/authapi/grpcapi"
	"sluice/limiter"
	"sluice/raftfsm/state"
)

// start is a moment well inside a minute.
var start = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// service is a Server over a real listener, with fakes behind it, and a connection to it.
type service struct {
	t       testing.TB
	api     *authapi.Server
	server  *grpcapi.Server
	cluster *authtest.Cluster
	limits  *authtest.Limits
	clock   *authtest.Clock
	addr    string
	conn    *grpc.ClientConn
}

func newService(t testing.TB, change func(*authapi.Config), changeGRPC ...func(*grpcapi.Config)) *service {
	t.Helper()
	clock := authtest.NewClock(start)
	s := &service{t: t, clock: clock, cluster: authtest.NewCluster(), limits: authtest.NewLimits(clock)}
	s.cluster.Clock = clock
	cfg := authapi.Config{
		State: s.cluster, Cluster: s.cluster, Limits: s.limits, Sealer: authtest.NewSealer(), Clock: clock.Now,
		Version: "1.2.3", NodeID: "node-a", Limit: authapi.DefaultLimits(),
	}
	cfg.Limit.Anonymous, cfg.Limit.APIKey = rule(1000), rule(1000)
	if change != nil {
		change(&cfg)
	}
	var err error
	if s.api, err = authapi.New(cfg); err != nil {
		t.Fatalf("New: %v", err)
	}
	g := grpcapi.Config{API: s.api}
	for _, change := range changeGRPC {
		change(&g)
	}
	s.server = grpcapi.New(g)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- s.server.Serve(ln) }()
	s.addr = ln.Addr().String()
	s.conn = dial(t, s.addr)
	t.Cleanup(func() {
		s.conn.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.server.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if err := s.api.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	})
	return s
}

func dial(t testing.TB, addr string, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	options = append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, options...)
	conn, err := grpc.NewClient(addr, options...)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	return conn
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// key puts a key of organization org_1 in and gives its secret.
func (s *service) key(scopes ...string) string {
	s.t.Helper()
	secret := newKey(len(scopes), strings.Join(scopes, " "))
	hash := sha256.Sum256([]byte(secret))
	s.cluster.PutOrganization(state.Organization{ID: "org_1", Name: "one", CreatedAt: 1})
	s.cluster.PutKey(state.APIKey{
		ID: "key_" + strings.ToLower(secret[8:34]), OrganizationID: "org_1", Name: "k", Hash: hash[:], Prefix: secret[:12],
		Scopes: scopes, Environment: "live", CreatedAt: 1,
	})
	return secret
}

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// newKey is a well-formed API key, another one for each n and text.
func newKey(n int, text string) string {
	b := []byte("sk_live_")
	for _, c := range sha256.Sum256(fmt.Append(nil, n, text)) {
		b = append(b, base62[c%62])
	}
	crc := crc32.ChecksumIEEE(b)
	var digits [6]byte
	for i := len(digits) - 1; i >= 0; i-- {
		digits[i] = base62[crc%62]
		crc /= 62
	}
	return string(append(b, digits[:]...))
}

func rule(limit int64) limiter.Rule {
	return limiter.Rule{Limit: limit, Window: 60, Algorithm: limiter.SlidingWindow}
}

func wantCode(t *testing.T, err error, code codes.Code, text string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(status.Convert(err).Message(), text) {
		t.Errorf("error = %v, want %s with %q", err, code, text)
	}
}

func trust(prefixes ...string) func(*authapi.Config) {
	return func(c *authapi.Config) {
		for _, p := range prefixes {
			c.TrustedProxies = append(c.TrustedProxies, netip.MustParsePrefix(p))
		}
	}
}
