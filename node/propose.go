package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"sluice/authapi/histogram"
	"sluice/raftfsm/state"
)

const (
	// proposeTimeout bounds a proposal whose context has no end of its own.
	proposeTimeout = 10 * time.Second
	// attemptTimeout bounds one try. A leader that stopped answering is left for the next one well before a client's
	// patience ends; the request id makes the repetition safe.
	attemptTimeout = 3 * time.Second
	// maxProposals bounds the proposals of this node that wait for an answer, those of its clients and, separately, those
	// forwarded to it.
	maxProposals = 512
	retryFirst   = 10 * time.Millisecond
	retryMost    = 200 * time.Millisecond
)

// proposer is the one bridge from commands to Raft: it applies them here on the leader and forwards them elsewhere. It
// waits on contexts, which Raft does not. Safe for concurrent use.
type proposer struct {
	self      string
	consensus func() *consensus // nil before Raft runs and after it was closed
	forwarder *forwarder
	now       func() time.Time

	done, unavailable, unknown atomic.Uint64 // by outcome
	took                       *histogram.Histogram
	// standby says why nothing is proposed or forwarded here, "" for nothing; admit whether this node proposes a command as the leader.
	standby func() string
	admit   func(state.Command) error
	// own are the proposals of this node's clients that wait, foreign those that were forwarded to it.
	own, foreign *slots
}

func newProposer(self string, consensus func() *consensus, forwarder *forwarder, now func() time.Time) *proposer {
	return &proposer{
		self: self, consensus: consensus, forwarder: forwarder, now: now,
		standby: func() string { return "" }, admit: func(state.Command) error { return nil },
		own: newSlots(maxProposals), foreign: newSlots(maxProposals), took: histogram.New(histogram.SlowBounds),
	}
}

// newRequestID returns a fresh id for a proposal.
func newRequestID() (id [16]byte) {
	rand.Read(id[:])
	return id
}

// propose implements authapi.Cluster.Propose.
func (p *proposer) propose(ctx context.Context, requestID [16]byte, cmd state.Command) (state.Result, error) {
	defer since(p.took, time.Now())
	ctx, ended := spanWithin(ctx, "propose "+strings.TrimPrefix(fmt.Sprintf("%T", cmd), "state."))
	result, err := p.try(ctx, requestID, cmd)
	ended(err)
	switch {
	case err == nil:
		p.done.Add(1)
	case errors.Is(err, errUnknown):
		p.unknown.Add(1)
	default:
		p.unavailable.Add(1)
	}
	return result, err
}

func (p *proposer) try(ctx context.Context, requestID [16]byte, cmd state.Command) (state.Result, error) {
	envelope, err := state.Encode(state.Envelope{RequestID: requestID, ProposedAt: p.now().UnixMilli(), Command: cmd})
	if err != nil {
		return state.Result{}, err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, proposeTimeout)
		defer cancel()
	}
	// What another node would apply could not be waited for here.
	if reason := p.standby(); reason != "" {
		return state.Result{}, fmt.Errorf("%w: %s", errUnavailable, reason)
	}
	if !p.own.take() {
		return state.Result{}, fmt.Errorf("%w: %d proposals wait already", errUnavailable, maxProposals)
	}
	defer p.own.release()
	result, err := p.untilDone(ctx, cmd, envelope)
	if err != nil {
		return state.Result{}, err
	}
	// Read-your-writes: the client's next request may come to this node.
	k := p.consensus()
	if k == nil {
		return state.Result{}, fmt.Errorf("%w: stopping", errUnknown)
	}
	if err := k.fsm.WaitApplied(ctx, result.Index); err != nil {
		return state.Result{}, fmt.Errorf("%w: applied by the cluster but not here yet: %w", errUnknown, err)
	}
	return result, nil
}

// untilDone tries until the command was applied, refused for good, or the context has ended. Repetitions carry the same
// request id, so that they happen once however often they are tried.
func (p *proposer) untilDone(ctx context.Context, cmd state.Command, envelope []byte) (state.Result, error) {
	unknown := false
	wait := retryFirst
	for {
		k := p.consensus()
		if k == nil || k.raft.State() == raft.Shutdown {
			return state.Result{}, p.ended(unknown, errors.New("raft does not run"))
		}
		changed := k.leadership.wait()
		result, err := p.attempt(ctx, k, cmd, envelope)
		if err == nil {
			return result, nil
		}
		var refused *refusedError
		switch {
		case errors.As(err, &refused):
			return state.Result{}, p.ended(unknown, err)
		case errors.Is(err, errNotLeader), errors.Is(err, errUnavailable), errors.Is(err, errNotSent), errors.Is(err, errNoAddress):
		default:
			unknown = true
		}
		if ctx.Err() != nil {
			return state.Result{}, p.ended(unknown, err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-changed:
		case <-timer.C:
			wait = min(2*wait, retryMost)
		case <-ctx.Done():
			timer.Stop()
			return state.Result{}, p.ended(unknown, err)
		}
		timer.Stop()
	}
}

// ended is the error of a proposal that was given up.
func (p *proposer) ended(unknown bool, cause error) error {
	if unknown {
		return fmt.Errorf("%w: %w", errUnknown, cause)
	}
	return fmt.Errorf("%w: %w", errUnavailable, cause)
}

// attempt tries once, here or at the leader.
func (p *proposer) attempt(ctx context.Context, k *consensus, cmd state.Command, envelope []byte) (state.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	if k.leads() {
		if err := p.admit(cmd); err != nil {
			return state.Result{}, err
		}
		return k.apply(ctx, envelope)
	}
	leader := k.leader()
	if leader == "" || leader == p.self {
		return state.Result{}, errNotLeader
	}
	return p.forwarder.forward(ctx, leader, envelope, k.under)
}

// serve applies a command that a peer forwarded. The bytes are decoded first: what does not decode would stop every
// node that finds it in its log.
func (p *proposer) serve(ctx context.Context, envelope []byte) (state.Result, error) {
	decoded, err := state.Decode(envelope)
	if err != nil {
		return state.Result{}, &refusedError{reason: err.Error()}
	}
	k := p.consensus()
	if k == nil {
		return state.Result{}, errUnavailable
	}
	if !p.foreign.take() {
		return state.Result{}, errUnavailable
	}
	defer p.foreign.release()
	if k.leads() {
		if err := p.admit(decoded.Command); err != nil {
			return state.Result{}, err
		}
	}
	return k.apply(ctx, envelope)
}

// apply proposes an entry as the leader and waits until this node has applied it.
// Errors: errNotLeader and errUnavailable mean that nothing happened; anything else leaves the outcome unknown.
func (k *consensus) apply(ctx context.Context, envelope []byte) (state.Result, error) {
	if !k.leads() {
		return state.Result{}, errNotLeader
	}
	if k.may != nil {
		if err := k.may(ctx, k, envelope); err != nil {
			return state.Result{}, err
		}
	}
	return k.commit(ctx, envelope)
}

// commit is apply of what may be in the log.
func (k *consensus) commit(ctx context.Context, envelope []byte) (_ state.Result, err error) {
	ctx, ended := spanWithin(ctx, "replicate")
	defer func() { ended(err) }()
	future, err := k.enqueue(envelope)
	if err != nil {
		return state.Result{}, err
	}
	if err := k.await(ctx, future); err != nil {
		return state.Result{}, classify(err)
	}
	switch response := future.Response().(type) {
	case state.Result:
		return response, nil
	case error:
		// The state has failed or is closed: this process is about to end, and the entry is in the log.
		return state.Result{}, fmt.Errorf("apply: %w", response)
	default:
		return state.Result{}, fmt.Errorf("apply: unexpected response %T", response)
	}
}

// classify turns Raft's errors into the three outcomes. Only what Raft refused before it touched its log did surely not
// happen; a lost leadership, a shutdown, an expired wait and any error of the store leave it open.
func classify(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader):
		return errNotLeader
	case errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fmt.Errorf("%w: %w", errUnavailable, err)
	default:
		return fmt.Errorf("apply: %w", err)
	}
}

// proposeHere proposes a command on this node only, as the leader's own work does: what another leader should do is not
// forwarded. The error is as apply's.
func (k *consensus) proposeHere(ctx context.Context, now time.Time, cmd state.Command) (state.Result, error) {
	envelope, err := state.Encode(state.Envelope{RequestID: newRequestID(), ProposedAt: now.UnixMilli(), Command: cmd})
	if err != nil {
		return state.Result{}, err
	}
	return k.apply(ctx, envelope)
}
