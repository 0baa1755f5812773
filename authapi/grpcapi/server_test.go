package grpcapi_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"sluice/authapi"
	"sluice/authapi/authtest"
	"sluice/authapi/grpcapi"
	"sluice/authapi/gubernatorpb"
	"sluice/limiter"
)

func TestServer_Token(t *testing.T) {
	t.Parallel()
	s := newService(t, edgeDomain, func(c *grpcapi.Config) { c.Token = "the-token-of-this-listener-0123456789" })
	call := func(values ...string) error {
		ctx := within(t)
		for _, v := range values {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", v)
		}
		_, err := ratelimitv3.NewRateLimitServiceClient(s.conn).ShouldRateLimit(ctx, &ratelimitv3.RateLimitRequest{
			Domain: "edge", Descriptors: []*commonv3.RateLimitDescriptor{descriptor("path", "/search")},
		})
		return err
	}
	good := "Bearer the-token-of-this-listener-0123456789"
	wantCode(t, call(), codes.Unauthenticated, "need the token")
	for _, bad := range []string{"", "Bearer", "Bearer x", "Basic the-token-of-this-listener-0123456789", good + "x", strings.TrimSuffix(good, "9")} {
		wantCode(t, call(bad), codes.Unauthenticated, "not the token")
	}
	wantCode(t, call(good, good), codes.Unauthenticated, "not the token")
	if err := call("bearer the-token-of-this-listener-0123456789"); err != nil {
		t.Errorf("with the token: %v", err)
	}
	_, err := authv3.NewAuthorizationClient(s.conn).Check(within(t), asked{}.request())
	wantCode(t, err, codes.Unauthenticated, "need the token")
	_, err = gubernatorpb.NewV1Client(s.conn).GetRateLimits(within(t), &gubernatorpb.GetRateLimitsReq{})
	wantCode(t, err, codes.Unauthenticated, "need the token")
	// Health checks of load balancers have no token.
	if _, err := healthpb.NewHealthClient(s.conn).Check(within(t), &healthpb.HealthCheckRequest{}); err != nil {
		t.Errorf("health: %v", err)
	}
}

func (s *service) waitHealth(want healthpb.HealthCheckResponse_ServingStatus) {
	s.t.Helper()
	for ctx := within(s.t); ; {
		var got []healthpb.HealthCheckResponse_ServingStatus
		for _, name := range []string{"", "envoy.service.ratelimit.v3.RateLimitService", "envoy.service.auth.v3.Authorization", "pb.gubernator.V1"} {
			resp, err := healthpb.NewHealthClient(s.conn).Check(ctx, &healthpb.HealthCheckRequest{Service: name})
			if err != nil {
				s.t.Fatalf("health of %q: %v; so far %v, want %v", name, err, got, want)
			}
			if resp.GetStatus() == want {
				got = append(got, resp.GetStatus())
			}
		}
		if len(got) == 4 {
			return
		}
	}
}

func TestServer_HealthIsReadiness(t *testing.T) {
	t.Parallel()
	s := newService(t, nil)
	s.waitHealth(healthpb.HealthCheckResponse_SERVING)
	s.cluster.SetHealth(authtest.HealthCheck{Name: "leader", Err: errors.New("none")})
	s.waitHealth(healthpb.HealthCheckResponse_NOT_SERVING)
	s.cluster.SetHealth(authtest.HealthCheck{Name: "leader"})
	s.waitHealth(healthpb.HealthCheckResponse_SERVING)
	s.server.SetDraining()
	s.waitHealth(healthpb.HealthCheckResponse_NOT_SERVING)
	// What comes all the same is answered.
	if _, err := gubernatorpb.NewV1Client(s.conn).HealthCheck(within(t), &gubernatorpb.HealthCheckReq{}); err != nil {
		t.Errorf("while draining: %v", err)
	}
}

// A call that runs is finished; a stream that would never end by itself does not hold up the end.
func TestServer_ShutdownFinishesCalls(t *testing.T) {
	t.Parallel()
	entered, leave := make(chan struct{}), make(chan struct{})
	s := newService(t, func(c *authapi.Config) {
		c.Limits = &slowLimits{c.Limits, entered, leave}
		edgeDomain(c)
	})
	watch, err := healthpb.NewHealthClient(s.conn).Watch(within(t), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := ratelimitv3.NewRateLimitServiceClient(s.conn).ShouldRateLimit(within(t), &ratelimitv3.RateLimitRequest{
			Domain: "edge", Descriptors: []*commonv3.RateLimitDescriptor{descriptor("path", "/search")},
		})
		answered <- err
	}()
	<-entered
	ended := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		ended <- s.server.Shutdown(ctx)
	}()
	for { // until the stream has ended, which Shutdown does before it waits
		if _, err := watch.Recv(); err != nil {
			break
		}
	}
	select {
	case err := <-answered:
		t.Fatalf("the call ended before it was let: %v", err)
	case err := <-ended:
		t.Fatalf("Shutdown did not wait: %v", err)
	default:
	}
	close(leave)
	if err := <-answered; err != nil {
		t.Errorf("the call that ran: %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// slowLimits holds the first decision until it is told to go on.
type slowLimits struct {
	authapi.Limits
	entered, leave chan struct{}
}

func (l *slowLimits) Take(charges []limiter.Charge, verdicts []limiter.Verdict) limiter.Outcome {
	close(l.entered)
	<-l.leave
	return l.Limits.Take(charges, verdicts)
}

func TestServer_BoundsMessages(t *testing.T) {
	t.Parallel()
	s := newService(t, edgeDomain)
	ask := asked{method: "GET", host: "x.example", path: "/events", headers: map[string]string{"x-filler": strings.Repeat("x", 1<<20)}}
	_, err := authv3.NewAuthorizationClient(s.conn).Check(within(t), ask.request())
	wantCode(t, err, codes.ResourceExhausted, "larger than max")
	err = s.conn.Invoke(within(t), "/envoy.service.ratelimit.v2.RateLimitService/ShouldRateLimit", &ratelimitv3.RateLimitRequest{}, &ratelimitv3.RateLimitResponse{})
	wantCode(t, err, codes.Unimplemented, "unknown service")
}

// What is not HTTP/2 at all is cut off, and does nothing to others.
func TestServer_Garbage(t *testing.T) {
	t.Parallel()
	s := newService(t, edgeDomain)
	for _, text := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "\x16\x03\x01\x02\x00\x01", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff"} {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		conn.Write([]byte(text))
		for buf := make([]byte, 512); ; {
			if _, err := conn.Read(buf); err != nil {
				var timeout net.Error
				if errors.As(err, &timeout) && timeout.Timeout() {
					t.Errorf("%q: the connection stays", text)
				}
				break
			}
		}
		conn.Close()
	}
	s.ask(0, descriptor("path", "/search"))
}

// authority makes certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func (a *authority) issue(t *testing.T, name string, ca bool) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{name}, IsCA: ca, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := template, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if ca {
		a.cert, a.key = leaf, key
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func TestServer_TLSWithClientCertificates(t *testing.T) {
	t.Parallel()
	var ours, theirs authority
	ours.issue(t, "ours", true)
	theirs.issue(t, "theirs", true)
	pool := x509.NewCertPool()
	pool.AddCert(ours.cert)
	server := ours.issue(t, "sluice.example", false)
	s := newService(t, edgeDomain, func(c *grpcapi.Config) {
		c.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{server}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	})
	call := func(certificates ...tls.Certificate) error {
		conn := dial(t, s.addr, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: "sluice.example", Certificates: certificates})))
		defer conn.Close()
		_, err := gubernatorpb.NewV1Client(conn).HealthCheck(within(t), &gubernatorpb.HealthCheckReq{})
		return err
	}
	if err := call(ours.issue(t, "envoy", false)); err != nil {
		t.Errorf("with a certificate of ours: %v", err)
	}
	wantCode(t, call(), codes.Unavailable, "")
	wantCode(t, call(theirs.issue(t, "envoy", false)), codes.Unavailable, "")
	_, err := gubernatorpb.NewV1Client(s.conn).HealthCheck(within(t), &gubernatorpb.HealthCheckReq{})
	wantCode(t, err, codes.Unavailable, "")
}

// Shutdown before Serve, and twice: Serve ends, and nothing hangs.
func TestServer_ShutdownFirst(t *testing.T) {
	t.Parallel()
	s := newService(t, nil)
	other := grpcapi.New(grpcapi.Config{API: s.api})
	for range 2 {
		if err := other.Shutdown(within(t)); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Serve(ln); err != nil {
		t.Errorf("Serve: %v", err)
	}
}
