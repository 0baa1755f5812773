package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"

	"sluice/authapi/grpcapi"
	"sluice/limiter"
	"sluice/raftfsm/state"
)

// maxClientResets is how many of the resets that the cluster remembers may be clients'; the rest is for operators.
const maxClientResets = 1024

// listenGRPC opens the listeners for gRPC and for Gubernator's clients, where they are on, and serves on them.
func (n *Node) listenGRPC() error {
	if address := n.cfg.Gubernator.Listen; address != "" {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			return fmt.Errorf("listen for gubernator's clients: %w", err)
		}
		n.gubernatorListener = ln
		n.wg.Go(func() {
			if err := n.api.ServeGubernator(ln); err != nil {
				n.fail(err)
			}
		})
		n.log.Info("listening", "gubernator", ln.Addr().String())
	}
	g := n.cfg.GRPC
	if g.Listen == "" {
		return nil
	}
	c := grpcapi.Config{
		API: n.api, MaxStreams: g.MaxStreams, MaxConns: g.MaxConns, NoHeaders: !g.ResponseHeaders, Logger: n.log.With("component", "grpc"),
		Tracer: n.tracer(),
	}
	var err error
	if c.Token, err = g.BearerToken(); err != nil {
		return err
	}
	if g.TLSCert != "" {
		if n.grpcCertificates, err = openCertificates("grpc", g.TLSCert, g.TLSKey, g.ClientCA, n.log.With("component", "grpc")); err != nil {
			return err
		}
		c.TLS = n.grpcCertificates.grpcTLS()
		n.wg.Go(func() { n.grpcCertificates.watch(n.ctx) })
	}
	if n.grpcListener, err = net.Listen("tcp", g.Listen); err != nil {
		return fmt.Errorf("listen for grpc: %w", err)
	}
	n.grpc = grpcapi.New(c)
	n.wg.Go(func() {
		if err := n.grpc.Serve(n.grpcListener); err != nil {
			n.fail(err)
		}
	})
	n.log.Info("listening", "grpc", n.grpcListener.Addr().String(), "tls", c.TLS != nil)
	return nil
}

// shutdownClients finishes the calls of all clients until ctx ends, over HTTP and gRPC side by side: they share the time.
func (n *Node) shutdownClients(ctx context.Context) error {
	if n.grpc == nil {
		return n.api.Shutdown(ctx)
	}
	ended := make(chan error, 1)
	go func() { ended <- n.grpc.Shutdown(ctx) }()
	return errors.Join(n.api.Shutdown(ctx), <-ended)
}

// GRPCAddr is where calls of gRPC are answered, nil if that is off.
func (n *Node) GRPCAddr() net.Addr { return addrOf(n.grpcListener) }

// GubernatorAddr is where Gubernator's clients are served that have no key, nil if that is off.
func (n *Node) GubernatorAddr() net.Addr { return addrOf(n.gubernatorListener) }

func addrOf(ln net.Listener) net.Addr {
	if ln == nil {
		return nil
	}
	return ln.Addr()
}

// mayReset says whether a client may have a bucket reset. One that is remembered as reset takes no more room.
func (n *Node) mayReset(bucket limiter.BucketID) bool {
	resets := n.fsm.Resets()
	return len(resets) < maxClientResets || slices.ContainsFunc(resets, func(r state.Reset) bool { return string(r.Bucket) == string(bucket[:]) })
}
