package node_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"sluice/authapi/gubernatorpb"
	"sluice/node"
	"sluice/node/nodetest"
)

// withGRPC turns the listeners on, with limits long enough that no test sees two windows.
func withGRPC(_ int, cfg *node.Config) {
	const long = node.Duration(30 * 24 * time.Hour)
	cfg.GRPC.Listen, cfg.Gubernator.Listen = "127.0.0.1:0", "127.0.0.1:0"
	cfg.RoutesDefault = "allow"
	cfg.Limits.Anonymous = node.RuleConfig{Limit: 50, Window: long, Algorithm: "fixed_window"}
	cfg.Limits.Policies = []node.PolicyConfig{
		{Name: "by-user", By: []string{"descriptor"}, RuleConfig: node.RuleConfig{Limit: 60, Window: long, Algorithm: "fixed_window"}},
		{Name: "of-all", By: []string{"descriptor"}, RuleConfig: node.RuleConfig{Limit: 150, Window: long, Algorithm: "sliding_window"}},
	}
	cfg.Limits.Descriptors = []node.DescriptorConfig{
		{Domain: "edge", Entries: []node.DescriptorEntryConfig{{Key: "user"}}, Policy: "by-user"},
		{Domain: "edge", Entries: []node.DescriptorEntryConfig{{Key: "generic_key", Value: "all"}}, Policy: "of-all"},
	}
}

// dialAll connects to the gRPC listeners of all members.
func dialAll(t *testing.T, c *nodetest.Cluster) []*grpc.ClientConn {
	t.Helper()
	var conns []*grpc.ClientConn
	for _, m := range c.Members {
		conn, err := grpc.NewClient(m.Node.GRPCAddr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conns = append(conns, conn)
	}
	return conns
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), nodetest.Timeout)
	t.Cleanup(cancel)
	return ctx
}

func described(pairs ...string) *commonv3.RateLimitDescriptor {
	d := &commonv3.RateLimitDescriptor{}
	for i := 0; i < len(pairs); i += 2 {
		d.Entries = append(d.Entries, &commonv3.RateLimitDescriptor_Entry{Key: pairs[i], Value: pairs[i+1]})
	}
	return d
}

// Many clients of all nodes at once: what passes is the limit, of each user and of all, never one more. What is refused for one of
// the two spends nothing of the other.
func TestGRPC_NeverOver(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3, nodetest.WithConfig(withGRPC))
	conns := dialAll(t, c)
	ctx := within(t)
	users := []string{"ada", "bob", "cleo", "dan"}
	passed := map[string]*atomic.Int64{}
	for _, u := range users {
		passed[u] = new(atomic.Int64)
	}
	var undecided atomic.Int64
	var all sync.WaitGroup
	for w := range 12 {
		all.Go(func() {
			client := ratelimitv3.NewRateLimitServiceClient(conns[w%3])
			for i := range 60 {
				user := users[(w+i)%len(users)]
				resp, err := client.ShouldRateLimit(ctx, &ratelimitv3.RateLimitRequest{
					Domain: "edge", Descriptors: []*commonv3.RateLimitDescriptor{described("user", user), described("generic_key", "all")},
				})
				switch {
				case status.Code(err) == codes.Unavailable:
					undecided.Add(1)
				case err != nil:
					t.Errorf("ShouldRateLimit: %v", err)
					return
				case resp.GetOverallCode() == ratelimitv3.RateLimitResponse_OK:
					passed[user].Add(1)
				}
			}
		})
	}
	all.Wait()
	sum := int64(0)
	for _, u := range users {
		n := passed[u].Load()
		if sum += n; n > 60 {
			t.Errorf("%d of %s passed, and 60 may", n, u)
		}
	}
	if sum > 150 {
		t.Errorf("%d passed, and 150 may", sum)
	}
	if undecided.Load() == 0 && sum < 140 {
		t.Errorf("%d of 720 passed, want all 150, but for what is on its way at the end", sum)
	}
	// What is left of each user is what did not pass, as far as the nodes know: nothing was spent beside.
	for _, u := range users {
		look := described("user", u)
		look.HitsAddend = wrapperspb.UInt64(0)
		nodetest.WaitFor(t, "what is left of "+u, func() error {
			resp, err := ratelimitv3.NewRateLimitServiceClient(conns[1]).ShouldRateLimit(ctx, &ratelimitv3.RateLimitRequest{
				Domain: "edge", Descriptors: []*commonv3.RateLimitDescriptor{look},
			})
			if err != nil {
				return err
			}
			if left := int64(resp.GetStatuses()[0].GetLimitRemaining()); left != 60-passed[u].Load() {
				return fmt.Errorf("%d left after %d passed", left, passed[u].Load())
			}
			return nil
		})
	}
}

// The three ways that are about one limit count together, over all nodes: an address over HTTP and over ext_authz, a bucket of
// Gubernator's over HTTP and gRPC.
func TestGRPC_CountsWithHTTP(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3, nodetest.WithConfig(withGRPC))
	conns := dialAll(t, c)
	ctx := within(t)
	host, _, err := net.SplitHostPort(c.Members[0].Node.HTTPAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(host)}}).DialContext}}
	defer client.CloseIdleConnections()
	passed := 0
	for i := range 80 {
		if i%2 == 0 {
			resp, err := client.Get("http://" + c.Members[i%3].Node.HTTPAddr().String() + "/api/v1/auth/verify")
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				passed++
			}
			continue
		}
		resp, err := authv3.NewAuthorizationClient(conns[i%3]).Check(ctx, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
			Source:  &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: host}}}},
			Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{Method: "GET", Host: "x.example", Path: "/"}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		if resp.GetOkResponse() != nil {
			passed++
		}
	}
	if passed > 50 || passed < 45 { // the last units may be on their way where the machine is busy
		t.Errorf("%d of 80 of one address passed, want 50", passed)
	}
	under := 0
	for i := range 60 {
		hit := &gubernatorpb.RateLimitReq{Name: "n", UniqueKey: "k", Hits: 1, Limit: 40, Duration: (30 * 24 * time.Hour).Milliseconds()}
		if i%2 == 0 {
			resp, err := gubernatorpb.NewV1Client(conns[i%3]).GetRateLimits(ctx, &gubernatorpb.GetRateLimitsReq{Requests: []*gubernatorpb.RateLimitReq{hit}})
			if err != nil {
				t.Fatal(err)
			}
			if resp.GetResponses()[0].GetStatus() == gubernatorpb.Status_UNDER_LIMIT {
				under++
			}
			continue
		}
		body := fmt.Sprintf(`{"requests":[{"name":"n","unique_key":"k","hits":1,"limit":40,"duration":%d}]}`, hit.Duration)
		resp, err := http.Post("http://"+c.Members[i%3].Node.GubernatorAddr().String()+"/v1/GetRateLimits", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		var out struct {
			Responses []struct{ Status, Error string }
		}
		err = json.NewDecoder(resp.Body).Decode(&out)
		resp.Body.Close()
		if err != nil || len(out.Responses) != 1 || out.Responses[0].Error != "" {
			t.Fatalf("%+v, %v", out, err)
		}
		if out.Responses[0].Status == "UNDER_LIMIT" {
			under++
		}
	}
	if under > 40 || under < 36 {
		t.Errorf("%d of 60 under a limit of 40", under)
	}
	// A reset holds on every node; on the one that was asked at once.
	reset := &gubernatorpb.RateLimitReq{Name: "n", UniqueKey: "k", Hits: 1, Limit: 40, Duration: (30 * 24 * time.Hour).Milliseconds(), Behavior: gubernatorpb.Behavior_RESET_REMAINING}
	resp, err := gubernatorpb.NewV1Client(conns[2]).GetRateLimits(ctx, &gubernatorpb.GetRateLimitsReq{Requests: []*gubernatorpb.RateLimitReq{reset}})
	if err != nil || resp.GetResponses()[0].GetError() != "" || resp.GetResponses()[0].GetRemaining() != 40 {
		t.Fatalf("reset: %v, %v", resp, err)
	}
	reset.Behavior, reset.Hits = 0, 5
	for i, conn := range []*grpc.ClientConn{conns[2], conns[0], conns[1]} {
		nodetest.WaitFor(t, "the reset on another node", func() error {
			resp, err := gubernatorpb.NewV1Client(conn).GetRateLimits(ctx, &gubernatorpb.GetRateLimitsReq{Requests: []*gubernatorpb.RateLimitReq{reset}})
			if err != nil {
				return err
			}
			if resp.GetResponses()[0].GetStatus() != gubernatorpb.Status_UNDER_LIMIT {
				if i == 0 {
					t.Error("the node that was asked does not know of the reset")
				}
				return errors.New("still over")
			}
			return nil
		})
	}
	if health, err := gubernatorpb.NewV1Client(conns[0]).HealthCheck(ctx, &gubernatorpb.HealthCheckReq{}); err != nil || health.GetStatus() != "healthy" || health.GetPeerCount() != 3 {
		t.Errorf("health: %v, %v", health, err)
	}
}

// A leaky bucket lets burst + rate · t through, and no more, whichever nodes are asked.
func TestGRPC_LeakyBucket(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3, nodetest.WithConfig(withGRPC))
	conns := dialAll(t, c)
	ctx := within(t)
	hit := &gubernatorpb.RateLimitReq{Name: "n", UniqueKey: "k", Hits: 1, Limit: 3600, Duration: 3_600_000, Algorithm: gubernatorpb.Algorithm_LEAKY_BUCKET, Burst: 20}
	began := time.Now()
	var under atomic.Int64
	var all sync.WaitGroup
	for w := range 6 {
		all.Go(func() {
			for range 20 {
				resp, err := gubernatorpb.NewV1Client(conns[w%3]).GetRateLimits(ctx, &gubernatorpb.GetRateLimitsReq{Requests: []*gubernatorpb.RateLimitReq{hit}})
				if err != nil {
					if status.Code(err) != codes.Unavailable {
						t.Error(err)
					}
					continue
				}
				if resp.GetResponses()[0].GetStatus() == gubernatorpb.Status_UNDER_LIMIT {
					under.Add(1)
				}
			}
		})
	}
	all.Wait()
	most := 20 + int64(time.Since(began)/time.Second) + 1
	if n := under.Load(); n > most || n < 10 {
		t.Errorf("%d passed of a burst of 20 with one more a second, in %s", n, time.Since(began))
	}
}

func TestGRPC_OffByDefault(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 1)
	n := c.Members[0].Node
	if n.GRPCAddr() != nil || n.GubernatorAddr() != nil {
		t.Errorf("listening on %v and %v", n.GRPCAddr(), n.GubernatorAddr())
	}
	if cfg := node.DefaultConfig(); cfg.GRPC.Listen != "" || cfg.Gubernator.Listen != "" {
		t.Errorf("on by default: %+v", cfg.GRPC)
	}
}

// While the node drains its health service says so, and calls are answered until the end.
func TestGRPC_Drains(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 1, nodetest.WithConfig(func(i int, cfg *node.Config) {
		withGRPC(i, cfg)
		cfg.HTTP.DrainDelay = node.Duration(time.Second)
	}))
	conn := dialAll(t, c)[0]
	ctx := within(t)
	watch, err := healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		resp, err := watch.Recv()
		if err != nil {
			t.Fatalf("before the drain: %v", err)
		}
		if resp.GetStatus() == healthpb.HealthCheckResponse_SERVING {
			break
		}
	}
	drained := make(chan error, 1)
	go func() { drained <- c.Members[0].Node.Drain(ctx) }()
	if resp, err := watch.Recv(); err != nil || resp.GetStatus() != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Errorf("health while draining: %v, %v", resp, err)
	}
	if _, err := ratelimitv3.NewRateLimitServiceClient(conn).ShouldRateLimit(ctx, &ratelimitv3.RateLimitRequest{
		Domain: "edge", Descriptors: []*commonv3.RateLimitDescriptor{described("user", "ada")},
	}); err != nil {
		t.Errorf("a call while draining: %v", err)
	}
	if _, err := watch.Recv(); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the stream goes on: %v", err)
	}
	if err := <-drained; err != nil {
		t.Errorf("Drain: %v", err)
	}
	if _, err := net.DialTimeout("tcp", c.Members[0].Node.GRPCAddr().String(), time.Second); err == nil {
		t.Error("the listener is still open")
	}
	if _, err := net.DialTimeout("tcp", c.Members[0].Node.GubernatorAddr().String(), time.Second); err == nil {
		t.Error("the listener for Gubernator's clients is still open")
	}
}

// A certificate, a token, and the metrics of what was answered.
func TestGRPC_TLSAndToken(t *testing.T) {
	t.Parallel()
	authority := newAuthority(t)
	cert, key := authority.issue(t.TempDir(), 7)
	pool := x509.NewCertPool()
	pool.AddCert(authority.cert)
	secure := credentials.NewTLS(&tls.Config{RootCAs: pool})
	token := node.NewSecret()
	c := nodetest.Start(t, 1, nodetest.WithConfig(func(i int, cfg *node.Config) {
		withGRPC(i, cfg)
		withAdmin(i, cfg)
		cfg.GRPC.TLSCert, cfg.GRPC.TLSKey, cfg.GRPC.Token = cert, key, node.Secret(token)
	}))
	n := c.Members[0].Node
	call := func(options ...grpc.DialOption) error {
		conn, err := grpc.NewClient(n.GRPCAddr().String(), options...)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, err = gubernatorpb.NewV1Client(conn).HealthCheck(within(t), &gubernatorpb.HealthCheckReq{})
		return err
	}
	if err := call(grpc.WithTransportCredentials(insecure.NewCredentials())); status.Code(err) != codes.Unavailable {
		t.Errorf("without TLS: %v", err)
	}
	if err := call(grpc.WithTransportCredentials(secure)); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without the token: %v", err)
	}
	if err := call(grpc.WithTransportCredentials(secure), grpc.WithPerRPCCredentials(bearerToken(token))); err != nil {
		t.Errorf("with both: %v", err)
	}
	text := adminText(t, n, "/metrics")
	for _, want := range []string{
		`sluice_grpc_calls_total{method="pb.gubernator.V1/HealthCheck",code="OK"} 1`,
		`sluice_grpc_calls_total{method="pb.gubernator.V1/HealthCheck",code="Unauthenticated"} 1`,
		`sluice_grpc_certificate_failing 0`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
	if strings.Contains(c.Log(), token) {
		t.Error("the token is in the log")
	}
}

// bearerToken is sent with every call.
type bearerToken string

func (b bearerToken) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}
func (bearerToken) RequireTransportSecurity() bool { return true }

// A node that ends in the middle of it takes no more than its share along: the others answer, and never let more through.
func TestGRPC_ANodeEnds(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3, nodetest.WithConfig(withGRPC))
	conns := dialAll(t, c)
	ctx := within(t)
	follower := c.Followers()[0]
	ended := make(chan struct{})
	var passed atomic.Int64
	var all sync.WaitGroup
	for w := range 6 {
		all.Go(func() {
			client := ratelimitv3.NewRateLimitServiceClient(conns[w%3])
			for i := range 80 {
				if i == 20 {
					<-ended
				}
				resp, err := client.ShouldRateLimit(ctx, &ratelimitv3.RateLimitRequest{
					Domain: "edge", Descriptors: []*commonv3.RateLimitDescriptor{described("generic_key", "all")},
				})
				switch {
				case err == nil && resp.GetOverallCode() == ratelimitv3.RateLimitResponse_OK:
					passed.Add(1)
				case err != nil && w%3 == follower && status.Code(err) == codes.Unavailable:
					return // its client would ask another
				case err != nil:
					t.Errorf("node %d: %v", w%3, err)
				}
			}
		})
	}
	nodetest.WaitFor(t, "some calls", func() error {
		if passed.Load() < 30 {
			return fmt.Errorf("%d passed", passed.Load())
		}
		return nil
	})
	c.Stop(follower)
	close(ended)
	all.Wait()
	// What the node had left of its third is lost until its share is given out again.
	if n := passed.Load(); n > 150 || n < 100 {
		t.Errorf("%d of 150 passed", n)
	}
}
