package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"sluice/raftfsm/state"
)

const (
	// probePause is how long after a proof of freshness the next one is begun when nobody asks for it, and probePatience
	// how long that one may wait at the leader for an entry that is proposed anyway: the horizon, which comes every
	// second. So each node falls into step with the leader's second: an idle cluster writes one entry a second, not one a
	// node, and no state is much older than a second.
	probePause    = 750 * time.Millisecond
	probePatience = 300 * time.Millisecond
	// probeTimeout bounds one probe, askTimeout one question to a leader that may be gone.
	probeTimeout = 3 * time.Second
	askTimeout   = 1200 * time.Millisecond
)

// freshness knows how old this node's state may be. A state is fresh as of t0 where the leader, asked at t0 or later,
// committed an entry that this node has applied: then everything that was acknowledged anywhere before t0 is applied
// here too. Arrival times of heartbeats prove nothing of the kind, since they can be delivered late. Safe for
// concurrent use.
type freshness struct {
	// confirm asks the leader, which may wait for patience, for an entry to apply.
	confirm func(ctx context.Context, patience time.Duration) (index uint64, err error)
	wait    func(ctx context.Context, index uint64) error
	max     time.Duration

	asOf    atomic.Pointer[time.Time]
	lastErr atomic.Pointer[error] // of the newest try; nil where it succeeded

	mu      sync.Mutex
	running bool
	next    *flight // the probe that callers join: it has not begun
	wg      sync.WaitGroup
	closed  bool
	ctx     context.Context
	cancel  context.CancelFunc
}

// flight is one probe for the callers that came before it began.
type flight struct {
	done chan struct{}
	err  error
}

func newFreshness(confirm func(context.Context, time.Duration) (uint64, error), wait func(context.Context, uint64) error, max time.Duration) *freshness {
	ctx, cancel := context.WithCancel(context.Background())
	return &freshness{confirm: confirm, wait: wait, max: max, ctx: ctx, cancel: cancel}
}

// age is how old the state may be; ok is false where nothing was proved yet. It goes by the monotonic clock and, since
// that one stands still while the machine is suspended, by the wall clock too: the greater counts.
func (f *freshness) age(now time.Time) (age time.Duration, ok bool) {
	at := f.asOf.Load()
	if at == nil {
		return 0, false
	}
	return max(now.Sub(*at), now.Round(0).Sub(at.Round(0))), true
}

// trouble is why the newest try failed, nil where it did not.
func (f *freshness) trouble() error {
	if err := f.lastErr.Load(); err != nil {
		return *err
	}
	return nil
}

// fresh reports whether the state is young enough to honour credentials. Wait-free.
func (f *freshness) fresh() bool {
	age, ok := f.age(time.Now())
	return ok && age <= f.max
}

// note records that the state is fresh as of t0. Never moves back.
func (f *freshness) note(t0 time.Time) {
	for {
		old := f.asOf.Load()
		if old != nil && !t0.After(*old) {
			return
		}
		if f.asOf.CompareAndSwap(old, &t0) {
			return
		}
	}
}

// catchUp returns once everything that was acknowledged anywhere before the call is applied here. A caller joins the
// next probe, never one that has begun: its t0 would be before the call.
func (f *freshness) catchUp(ctx context.Context) error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return fmt.Errorf("%w: stopping", errUnavailable)
	}
	if f.next == nil {
		f.next = &flight{done: make(chan struct{})}
	}
	mine := f.next
	if !f.running {
		f.running = true
		f.wg.Go(f.fly)
	}
	f.mu.Unlock()
	select {
	case <-mine.done:
		return mine.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// fly runs probes, one at a time, while somebody waits for one.
func (f *freshness) fly() {
	for {
		f.mu.Lock()
		now := f.next
		f.next = nil
		if now == nil {
			f.running = false
			f.mu.Unlock()
			return
		}
		f.mu.Unlock()
		now.err = f.probe(f.ctx, 0)
		close(now.done)
	}
}

// probe proves freshness once, trying again while there is no leader and time is left.
func (f *freshness) probe(ctx context.Context, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	wait := retryFirst
	for {
		t0 := time.Now()
		index, err := f.ask(ctx, patience)
		if err == nil {
			if err = f.wait(ctx, index); err == nil {
				f.lastErr.Store(nil)
				f.note(t0)
				return nil
			}
		}
		f.lastErr.Store(&err)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
			wait = min(2*wait, retryMost)
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w: freshness not confirmed: %w", errUnavailable, err)
		}
	}
}

func (f *freshness) ask(ctx context.Context, patience time.Duration) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout+patience)
	defer cancel()
	return f.confirm(ctx, patience)
}

// run probes about once a second until ctx ends.
func (f *freshness) run(ctx context.Context) {
	for {
		pause := probePause
		if f.probe(ctx, probePatience) != nil {
			pause = 0 // it has taken its time already
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// close ends the probes and waits for them.
func (f *freshness) close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.cancel()
	f.wg.Wait()
}

// barriers commits entries, as the leader, for those who want to know that it leads and what it has committed. One
// entry serves everybody who asked before it was proposed. Safe for concurrent use.
type barriers struct {
	propose func(ctx context.Context, cmd state.Command) (state.Result, error)

	mu       sync.Mutex
	waiting  []*barrierWaiter
	rejected uint64
	wake     chan struct{} // buffered 1: a waiter came
}

type barrierWaiter struct {
	by   time.Time // when its patience ends
	done chan barrierAnswer
}

type barrierAnswer struct {
	index uint64
	err   error
}

// maxBarrierWaiters is far above what a cluster's probes need: each node has one catch-up and one timed probe.
const maxBarrierWaiters = 1024

func newBarriers(propose func(ctx context.Context, cmd state.Command) (state.Result, error)) *barriers {
	return &barriers{propose: propose, wake: make(chan struct{}, 1)}
}

// ask waits for the next entry that is proposed after the call, at most patience for somebody else's.
func (b *barriers) ask(ctx context.Context, patience time.Duration) (uint64, error) {
	w := &barrierWaiter{by: time.Now().Add(patience), done: make(chan barrierAnswer, 1)}
	b.mu.Lock()
	if len(b.waiting) >= maxBarrierWaiters {
		b.rejected++
		b.mu.Unlock()
		return 0, errUnavailable
	}
	b.waiting = append(b.waiting, w)
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
	select {
	case a := <-w.done:
		return a.index, a.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// take empties the list of those who wait: the entry that is proposed next answers them.
func (b *barriers) take() []*barrierWaiter {
	b.mu.Lock()
	defer b.mu.Unlock()
	served := b.waiting
	b.waiting = nil
	return served
}

// commit proposes cmd and answers with it everybody who waits now.
func (b *barriers) commit(ctx context.Context, cmd state.Command) (state.Result, error) {
	return b.commitFor(ctx, cmd, b.take())
}

func (b *barriers) commitFor(ctx context.Context, cmd state.Command, served []*barrierWaiter) (state.Result, error) {
	result, err := b.propose(ctx, cmd)
	if err == nil && result.Refused != "" {
		err = errors.New("barrier refused: " + result.Refused)
	}
	for _, w := range served {
		w.done <- barrierAnswer{index: result.Index, err: err}
	}
	return result, err
}

// run proposes a Barrier whenever somebody's patience ends, until ctx does. Two may be under way at a time, so that
// those who come while one is being committed do not wait for all of it.
func (b *barriers) run(ctx context.Context) {
	slots := make(chan struct{}, 2)
	var wg sync.WaitGroup
	defer wg.Wait()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		wait, any := b.soonest()
		if any && wait <= 0 {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			served := b.take()
			wg.Go(func() {
				defer func() { <-slots }()
				ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
				defer cancel()
				_, _ = b.commitFor(ctx, state.Barrier{}, served) // those who wait are told
			})
			continue
		}
		if !any {
			wait = time.Hour
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-b.wake:
		case <-ctx.Done():
			return
		}
	}
}

// soonest is how long until the first waiter's patience ends.
func (b *barriers) soonest() (wait time.Duration, any bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, w := range b.waiting {
		if d := time.Until(w.by); i == 0 || d < wait {
			wait = d
		}
	}
	return wait, len(b.waiting) > 0
}
