package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// Run waits until ctx ends, then drains and closes the node; or until the node fails, and closes it. The error is the
// failure's, nil after a clean end, which leaving the cluster is as well.
func (n *Node) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return errors.Join(n.Drain(context.WithoutCancel(ctx)), n.Close())
	case <-n.Done():
		err := n.Err()
		return errors.Join(err, n.Close())
	}
}

// Drain makes the node unready, waits drain_delay, finishes the requests in flight within drain_timeout, and hands the
// leadership over. The node stays in the Raft configuration. Close still has to be called. The error tells what was not
// finished in time; ctx cuts all of it short.
func (n *Node) Drain(ctx context.Context) error {
	n.drainOnce.Do(func() {
		errs := []error{n.stopServing(ctx)}
		if k := n.consensus.Load(); k != nil {
			timeout, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			if err := k.transferLeadership(timeout); err != nil {
				n.log.Info("leadership not handed over", "error", err)
			}
		}
		if err := n.gossip.leave(); err != nil {
			n.log.Info("gossip not left", "error", err)
		}
		n.drainErr = errors.Join(errs...)
	})
	return n.drainErr
}

// stopServing makes the node unready and finishes its requests. It is idempotent.
func (n *Node) stopServing(ctx context.Context) error {
	n.serveOnce.Do(func() {
		n.draining.Store(true)
		n.log.Info("draining")
		n.api.SetDraining()
		if n.grpc != nil {
			n.grpc.SetDraining()
		}
		if delay := time.Duration(n.cfg.HTTP.DrainDelay); delay > 0 {
			select {
			case <-time.After(delay):
			case <-ctx.Done():
			case <-n.ctx.Done():
			}
		}
		timeout, cancel := context.WithTimeout(ctx, time.Duration(n.cfg.HTTP.DrainTimeout))
		defer cancel()
		n.stopErr = n.shutdownAPI(timeout)
	})
	return n.stopErr
}

func (n *Node) shutdownAPI(ctx context.Context) error {
	n.apiOnce.Do(func() {
		if n.api == nil {
			return
		}
		n.apiErr = n.shutdownClients(ctx)
	})
	return n.apiErr
}

// closeGrace is what requests in flight get where Close was not preceded by Drain.
const closeGrace = 200 * time.Millisecond

// Close stops the node at once and releases everything; see Drain for a polite end. It is idempotent, goes on past
// failures and joins the errors.
func (n *Node) Close() error {
	n.closeOnce.Do(func() {
		n.draining.Store(true)
		n.cancel(errClosed)
		var errs []error
		add := func(what string, err error) {
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", what, err))
			}
		}
		if n.api != nil {
			ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
			if err := n.shutdownAPI(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
				add("close api", err)
			}
			cancel()
		}
		if n.hashing != nil {
			add("end the hashing of passwords", n.hashing.Close())
		}
		if n.httpAddress != nil {
			n.opts.http.Close() // where Serve had not begun yet
		}
		for _, ln := range []net.Listener{n.grpcListener, n.gubernatorListener} {
			if ln != nil {
				ln.Close() // as above
			}
		}
		if n.admin != nil {
			add("close admin listener", n.admin.http.Close())
		}
		if n.freshness != nil {
			n.freshness.close()
		}
		// Connections go before Raft: its loops must not wait for a peer that does not answer.
		if n.rpcServer != nil {
			add("close peer calls", n.rpcServer.Close())
		}
		if n.peers != nil {
			add("close peer listener", n.peers.close())
		}
		if n.rpc != nil {
			n.dialer.close()
			n.rpc.close()
		}
		if n.storage != nil {
			n.storage.close() // Raft's end waits for the state, which may wait for room
		}
		n.closeConsensus(add)
		n.wg.Wait() // form may have started Raft or the limiter meanwhile
		n.closeConsensus(add)
		if n.gossip != nil {
			add("close gossip", n.gossip.close())
		}
		if l := n.limits.limiter.Load(); l != nil {
			add("close limiter", l.Close())
		}
		n.closeTracing()
		if n.fsm != nil {
			add("close state", n.fsm.Close())
		}
		if n.data != nil {
			add("release data directory", n.data.close())
		}
		n.closeErr = errors.Join(errs...)
		if n.closeErr == nil {
			n.log.Info("closed")
		}
	})
	return n.closeErr
}

func (n *Node) closeConsensus(add func(string, error)) {
	if k := n.consensus.Load(); k != nil {
		add("close raft", k.close())
	}
}
