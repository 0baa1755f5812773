package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"

	"github.com/fxamacker/cbor/v2"

	"sluice/raftfsm/state"
)

// pathForwards carries several commands in one call.
const pathForwards = "/v1/forwards"

const (
	// maxForwardCalls is how many calls with commands are under way to a leader at a time. Commands that come meanwhile
	// wait for the first of them to end and go together: the busier a node, the more a call carries.
	maxForwardCalls = 4
	// maxForwardBatch and maxForwardBytes bound what one call carries; a single command always fits.
	maxForwardBatch = 128
	maxForwardBytes = 1 << 20
	// maxForwardsBody is that in CBOR.
	maxForwardsBody = maxForwardBytes + maxForwardBatch*5 + 5
)

// forwardReply is what became of one command of a call. Keys are on the wire between versions: never reuse a number.
type forwardReply struct {
	Outcome string `cbor:"1,keyasint"`
	// Body is an encoded state.Result, the leader that the asked node knows of, or the reason of a refusal.
	Body []byte `cbor:"2,keyasint"`
}

// forwarder takes commands to the leader, those that wait at the same time in one call. Safe for concurrent use.
type forwarder struct {
	base context.Context // ends with the node
	many func(ctx context.Context, leader string, envelopes [][]byte) ([]forwardReply, error)
	// one is for a leader whose version does not know the other call.
	one func(ctx context.Context, leader string, envelope []byte) (state.Result, error)

	mu     sync.Mutex
	queues map[string]*forwardQueue // by leader; only while something waits or is under way
}

type forwardQueue struct {
	waiting []*forwarded
	calls   int
}

// forwarded is a command that waits for its answer.
type forwarded struct {
	ctx      context.Context // for what it carries
	envelope []byte
	under    func(ctx context.Context, leader string) (context.Context, context.CancelFunc)
	done     chan struct{} // closed when result and err are set
	result   state.Result
	err      error
}

// forward implements the proposer's forward: errors are those of rpcClient.call. under ends a call when another node
// leads.
func (f *forwarder) forward(ctx context.Context, leader string, envelope []byte, under func(context.Context, string) (context.Context, context.CancelFunc)) (state.Result, error) {
	command := &forwarded{ctx: ctx, envelope: envelope, under: under, done: make(chan struct{})}
	f.mu.Lock()
	if f.queues == nil {
		f.queues = make(map[string]*forwardQueue)
	}
	q := f.queues[leader]
	if q == nil {
		q = new(forwardQueue)
		f.queues[leader] = q
	}
	q.waiting = append(q.waiting, command)
	start := q.calls < maxForwardCalls
	if start {
		q.calls++
	}
	f.mu.Unlock()
	if start {
		go f.run(leader, q)
	}
	select {
	case <-command.done:
		return command.result, command.err
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := slices.Index(q.waiting, command); i >= 0 {
		q.waiting = slices.Delete(q.waiting, i, i+1)
		return state.Result{}, fmt.Errorf("%w: %w", errNotSent, context.Cause(ctx))
	}
	return state.Result{}, fmt.Errorf("call peer: %w", context.Cause(ctx))
}

// run makes one call after the other until nothing waits.
func (f *forwarder) run(leader string, q *forwardQueue) {
	for {
		batch := f.take(leader, q)
		if batch == nil {
			return
		}
		f.send(leader, batch)
		for _, command := range batch {
			close(command.done)
		}
	}
}

// take is the next call's commands; nil, and the call's place is given back, where nothing waits.
func (f *forwarder) take(leader string, q *forwardQueue) []*forwarded {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, size := 0, 0
	for n < len(q.waiting) && n < maxForwardBatch {
		if size += len(q.waiting[n].envelope); n > 0 && size > maxForwardBytes {
			break
		}
		n++
	}
	if n == 0 {
		if q.calls--; q.calls == 0 {
			delete(f.queues, leader)
		}
		return nil
	}
	batch := slices.Clone(q.waiting[:n])
	q.waiting = slices.Delete(q.waiting, 0, n)
	return batch
}

// send makes one call and tells each command of it what became of it.
func (f *forwarder) send(leader string, batch []*forwarded) {
	// The first one's trace goes on at the leader, but the call outlives its patience: others wait for it too.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(batch[0].ctx), attemptTimeout)
	defer cancel()
	defer context.AfterFunc(f.base, cancel)()
	ctx, release := batch[0].under(ctx, leader)
	defer release()
	envelopes := make([][]byte, len(batch))
	for i, command := range batch {
		envelopes[i] = command.envelope
	}
	replies, err := f.many(ctx, leader, envelopes)
	switch {
	case errors.Is(err, errNoSuchCall):
		var wg sync.WaitGroup
		for _, command := range batch {
			wg.Go(func() { command.result, command.err = f.one(ctx, leader, command.envelope) })
		}
		wg.Wait()
		return
	case err == nil && len(replies) != len(batch):
		err = errors.New("call peer: another number of answers than of commands")
	}
	for i, command := range batch {
		if err != nil {
			command.err = err
		} else {
			command.result, command.err = replies[i].result()
		}
	}
}

// result is the answer to one command, as rpcClient.call would give it.
func (r forwardReply) result() (state.Result, error) {
	switch r.Outcome {
	case outcomeDone:
		result, err := state.DecodeResult(r.Body)
		if err != nil {
			return state.Result{}, fmt.Errorf("call peer: %w", err)
		}
		return result, nil
	case outcomeNotLeader:
		return state.Result{}, &leaderHint{leaderID: string(r.Body)}
	case outcomeUnavailable:
		if len(r.Body) > 0 {
			return state.Result{}, &notYetError{reason: string(r.Body)}
		}
		return state.Result{}, errUnavailable
	case outcomeRefused:
		return state.Result{}, &refusedError{reason: string(r.Body)}
	default:
		return state.Result{}, errors.New("call peer: the outcome is unknown there too")
	}
}

// forwards is the client's side of pathForwards. Errors: as call.
func (c *rpcClient) forwards(ctx context.Context, target string, envelopes [][]byte) ([]forwardReply, error) {
	body, err := cbor.Marshal(envelopes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotSent, err)
	}
	// No more than the answers to that many calls of one command.
	text, err := c.call(ctx, target, http.MethodPost, pathForwards, body, int64(len(envelopes))*(state.MaxResultSize+64))
	if err != nil {
		return nil, err
	}
	var replies []forwardReply
	if err := rpcDecoding.Unmarshal(text, &replies); err != nil {
		return nil, fmt.Errorf("call peer: %w", err)
	}
	return replies, nil
}

// forwards serves pathForwards. The commands are independent, as if each had come in a call of its own; they reach Raft
// together, which writes what it finds waiting with one sync.
func (s *rpcServer) forwards(w http.ResponseWriter, r *http.Request) {
	var envelopes [][]byte
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxForwardsBody))
	if err == nil {
		err = rpcDecoding.Unmarshal(body, &envelopes)
	}
	if err != nil || len(envelopes) == 0 || len(envelopes) > maxForwardBatch {
		s.fail(w, &refusedError{reason: "malformed request"})
		return
	}
	replies := make([]forwardReply, len(envelopes))
	caller := s.caller(r)
	var wg sync.WaitGroup
	for i, envelope := range envelopes {
		wg.Go(func() {
			result, err := s.service.serveForward(r.Context(), caller, envelope)
			if err == nil {
				replies[i].Outcome = outcomeDone
				replies[i].Body, err = state.EncodeResult(result)
			}
			if err != nil {
				outcome, _, text := outcomeOf(err)
				if outcome == outcomeNotLeader {
					text = s.service.leaderID()
				}
				replies[i] = forwardReply{Outcome: outcome, Body: []byte(text)}
			}
		})
	}
	wg.Wait()
	s.answer(w, replies)
}
