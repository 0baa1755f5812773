package grpcapi

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"sluice/authapi"
	"sluice/authapi/gubernatorpb"
	"sluice/authapi/histogram"
)

const (
	// DefaultMaxStreams bounds the calls at once of one connection, DefaultMaxConns the connections.
	DefaultMaxStreams = 1024
	DefaultMaxConns   = 1024

	// maxMessage bounds a call's message: a thousand requests of Gubernator's fit, and a described request with its headers.
	maxMessage = 1 << 20
	// maxHeaders bounds a call's metadata.
	maxHeaders = 16 << 10
	// handshakeTimeout bounds the beginning of a connection, callTimeout what one call may wait for.
	handshakeTimeout = 5 * time.Second
	callTimeout      = 8 * time.Second
	// keepaliveEvery is how long a connection is silent before it is asked for; clients may ask as often as pingsEvery.
	keepaliveEvery   = 30 * time.Second
	keepaliveTimeout = 10 * time.Second
	pingsEvery       = 5 * time.Second
	idleTimeout      = 15 * time.Minute
	// healthEvery is how often the health service looks whether the node is ready.
	healthEvery = 200 * time.Millisecond
)

// Config is everything a Server needs.
type Config struct {
	API *authapi.Server
	// Token is what callers send as "authorization: Bearer …"; "": none is needed. The health service never needs one.
	Token string
	// TLS is what Serve speaks; nil: plain HTTP/2.
	TLS                  *tls.Config
	MaxStreams, MaxConns int // 0: the defaults
	// NoHeaders leaves the limit headers out of what the rate-limit service answers.
	NoHeaders bool
	Logger    *slog.Logger // nil: discards
	Tracer    trace.Tracer // nil: calls are not traced
}

// Server answers gRPC calls. All methods are safe for concurrent use.
type Server struct {
	cfg    Config
	api    *authapi.Server
	log    *slog.Logger
	digest [sha256.Size]byte // of the token
	grpc   *grpc.Server
	health *health.Server
	counts counts

	stop    chan struct{} // ends streams, which would never end by themselves
	stopped sync.Once
}

// New makes a Server; nothing runs before Serve.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.MaxStreams, cfg.MaxConns = cmp.Or(cfg.MaxStreams, DefaultMaxStreams), cmp.Or(cfg.MaxConns, DefaultMaxConns)
	s := &Server{
		cfg: cfg, api: cfg.API, log: cfg.Logger, digest: sha256.Sum256([]byte(cfg.Token)), health: health.NewServer(), stop: make(chan struct{}),
	}
	options := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxConcurrentStreams(uint32(cfg.MaxStreams)),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleTimeout, Time: keepaliveEvery, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingsEvery, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	}
	if cfg.TLS != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(cfg.TLS)))
	}
	s.grpc = grpc.NewServer(options...)
	ratelimitv3.RegisterRateLimitServiceServer(s.grpc, &rateLimits{server: s})
	authv3.RegisterAuthorizationServer(s.grpc, &authorization{server: s})
	gubernatorpb.RegisterV1Server(s.grpc, &gubernator{server: s})
	healthpb.RegisterHealthServer(s.grpc, s.health)
	s.counts.init(s.grpc.GetServiceInfo())
	s.showHealth(false)
	return s
}

// Serve answers calls from ln until Shutdown, which makes it return nil, even where it came first.
func (s *Server) Serve(ln net.Listener) error {
	served := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() { s.watchHealth(served) })
	err := s.grpc.Serve(netutil.LimitListener(ln, s.cfg.MaxConns))
	close(served)
	watch.Wait()
	if err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve grpc: %w", err)
	}
	return nil
}

// SetDraining makes the health service say that the node is not for new calls, at once; they are still answered.
func (s *Server) SetDraining() { s.health.Shutdown() }

// Shutdown takes no new calls and waits for those that run until ctx ends, which then cuts them off. It is safe to call more than
// once.
func (s *Server) Shutdown(ctx context.Context) error {
	s.SetDraining()
	s.stopped.Do(func() { close(s.stop) })
	finished := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		close(finished)
	}()
	var err error
	select {
	case <-finished:
	case <-ctx.Done():
		s.grpc.Stop() // which ends the other
		<-finished
		err = fmt.Errorf("shut down grpc: %w", ctx.Err())
	}
	return err
}

// watchHealth keeps the health service up to date.
func (s *Server) watchHealth(served <-chan struct{}) {
	ticker := time.NewTicker(healthEvery)
	defer ticker.Stop()
	shown := false
	for {
		if ready := s.api.Ready(); ready != shown {
			shown = ready
			s.showHealth(ready)
		}
		select {
		case <-served:
			return
		case <-ticker.C:
		}
	}
}

// showHealth sets the status of the server, "", and of each service.
func (s *Server) showHealth(ready bool) {
	serving := healthpb.HealthCheckResponse_NOT_SERVING
	if ready {
		serving = healthpb.HealthCheckResponse_SERVING
	}
	for _, name := range []string{"", ratelimitv3.RateLimitService_ServiceDesc.ServiceName, authv3.Authorization_ServiceDesc.ServiceName, gubernatorpb.V1_ServiceDesc.ServiceName} {
		s.health.SetServingStatus(name, serving)
	}
}

// unary is every call but those of streams.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	began := time.Now()
	ctx, traced := s.traced(ctx, info.FullMethod)
	defer func() { traced(err) }()
	defer func() {
		if r := recover(); r != nil {
			err = s.panicked(info.FullMethod, r)
		}
		s.counts.note(info.FullMethod, status.Code(err))
		s.counts.took(info.FullMethod, time.Since(began))
	}()
	if err := s.mayCall(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return handler(ctx, req)
}

// stream is the health service's Watch.
func (s *Server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = s.panicked(info.FullMethod, r)
		}
		s.counts.note(info.FullMethod, status.Code(err))
	}()
	if err := s.mayCall(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	go func() {
		select {
		case <-s.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	return handler(srv, endingStream{stream, ctx})
}

// endingStream is a stream that ends with the server, too.
type endingStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s endingStream) Context() context.Context { return s.ctx }

func (s *Server) panicked(method string, reason any) error {
	s.log.Error("handler panicked", "panic", fmt.Sprint(reason), "method", method, "stack", string(debug.Stack()))
	return status.Error(codes.Internal, "something went wrong on this node; its log knows more")
}

// mayCall looks at the token, in a time that does not depend on where it differs.
func (s *Server) mayCall(ctx context.Context, method string) error {
	if s.cfg.Token == "" || strings.HasPrefix(method, "/"+healthpb.Health_ServiceDesc.ServiceName+"/") {
		return nil
	}
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	if len(values) == 0 {
		return status.Error(codes.Unauthenticated, "calls need the token of this listener, as authorization: Bearer")
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	digest := sha256.Sum256([]byte(strings.TrimSpace(token)))
	if len(values) > 1 || !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(digest[:], s.digest[:]) != 1 {
		return status.Error(codes.Unauthenticated, "this is not the token of this listener")
	}
	return nil
}

// failure is what callers see of an error of authapi's.
func (s *Server) failure(method string, err error) error {
	switch {
	case errors.Is(err, authapi.ErrUnavailable), errors.Is(err, authapi.ErrUnknown), errors.Is(err, authapi.ErrOverloaded):
		return status.Error(codes.Unavailable, "this node cannot decide now; nothing was spent")
	case errors.Is(err, authapi.ErrDescriptor), errors.Is(err, authapi.ErrGubernator):
		return status.Error(codes.InvalidArgument, err.Error())
	}
	s.log.Error("call failed", "method", method, "error", err)
	return status.Error(codes.Internal, "something went wrong on this node; its log knows more")
}

// CallCount is how many calls of a method ended with a code, since the server was made.
type CallCount struct {
	Method string // as in "envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
	Code   string // as gRPC names it: "OK", "Unavailable"
	Count  uint64
}

// maxCode is the greatest code of gRPC.
const maxCode = codes.Unauthenticated

// counts are the calls of each method by code; the methods are known from the start.
type counts struct {
	methods []string
	cells   map[string]*[maxCode + 1]atomic.Uint64
	times   map[string]*histogram.Histogram // of calls that are no streams
}

func (c *counts) init(services map[string]grpc.ServiceInfo) {
	c.cells = map[string]*[maxCode + 1]atomic.Uint64{}
	c.times = map[string]*histogram.Histogram{}
	for name, info := range services {
		for _, m := range info.Methods {
			full := "/" + name + "/" + m.Name
			c.methods = append(c.methods, full)
			c.cells[full] = new([maxCode + 1]atomic.Uint64)
			if !m.IsClientStream && !m.IsServerStream {
				c.times[full] = histogram.New(histogram.Bounds)
			}
		}
	}
	slices.Sort(c.methods)
}

func (c *counts) note(method string, code codes.Code) {
	if cell := c.cells[method]; cell != nil {
		cell[min(code, maxCode)].Add(1)
	}
}

// took counts how long a call was worked on.
func (c *counts) took(method string, d time.Duration) {
	if h := c.times[method]; h != nil {
		h.Observe(uint8(rand.Uint32()), d)
	}
}

// CallDurations is how long the calls of a method took.
type CallDurations struct {
	Method  string // without the leading slash
	Reading histogram.Reading
}

// Durations are those of all methods but streams, in the same order each time.
func (s *Server) Durations() []CallDurations {
	var out []CallDurations
	for _, method := range s.counts.methods {
		if h := s.counts.times[method]; h != nil {
			out = append(out, CallDurations{method[1:], h.Read()})
		}
	}
	return out
}

// Calls counts what was answered, by method and code, in the same order each time. Those that never happened are left out but for
// each method's OK.
func (s *Server) Calls() []CallCount {
	var out []CallCount
	for _, method := range s.counts.methods {
		for code := range s.counts.cells[method] {
			n := s.counts.cells[method][code].Load()
			if n > 0 || codes.Code(code) == codes.OK {
				out = append(out, CallCount{method[1:], codes.Code(code).String(), n})
			}
		}
	}
	return out
}
