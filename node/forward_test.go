package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"sluice/raftfsm/state"
)

func untilCancelled(ctx context.Context, _ string) (context.Context, context.CancelFunc) {
	return context.WithCancel(ctx)
}

// TestForwarder_WaitingCommandsGoTogether holds the first calls until all other commands wait.
func TestForwarder_WaitingCommandsGoTogether(t *testing.T) {
	t.Parallel()
	const commands = maxForwardCalls + maxForwardBatch + 10
	var mu sync.Mutex
	var sizes []int
	hold := make(chan struct{})
	f := &forwarder{base: t.Context(), many: func(_ context.Context, leader string, envelopes [][]byte) ([]forwardReply, error) {
		mu.Lock()
		sizes = append(sizes, len(envelopes))
		mu.Unlock()
		<-hold
		replies := make([]forwardReply, len(envelopes))
		for i, e := range envelopes {
			if e[0]%2 == 1 {
				replies[i] = forwardReply{Outcome: outcomeRefused, Body: e}
				continue
			}
			body, err := state.EncodeResult(state.Result{Index: uint64(e[0])})
			if err != nil {
				return nil, err
			}
			replies[i] = forwardReply{Outcome: outcomeDone, Body: body}
		}
		return replies, nil
	}}
	waiting := func() (n int) {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, q := range f.queues {
			n += len(q.waiting)
		}
		return n
	}
	var wg sync.WaitGroup
	ask := func(i int) {
		wg.Go(func() {
			result, err := f.forward(t.Context(), "nod_a", []byte{byte(i)}, untilCancelled)
			var refused *refusedError
			switch {
			case i%2 == 1 && (!errors.As(err, &refused) || refused.reason != string([]byte{byte(i)})):
				t.Errorf("command %d: got %v", i, err)
			case i%2 == 0 && (err != nil || result.Index != uint64(byte(i))):
				t.Errorf("command %d: got %+v, %v", i, result, err)
			}
		})
	}
	for i := range maxForwardCalls {
		ask(i)
		await(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(sizes) == i+1 })
	}
	for i := maxForwardCalls; i < commands; i++ {
		ask(i)
	}
	await(t, func() bool { return waiting() == commands-maxForwardCalls })
	close(hold)
	wg.Wait()
	slices.Sort(sizes)
	if want := []int{1, 1, 1, 1, 10, maxForwardBatch}; !slices.Equal(sizes, want) {
		t.Errorf("calls of %v commands, want %v", sizes, want)
	}
	await(t, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return len(f.queues) == 0 })
}

// await waits for something that is about to be so.
func await(t *testing.T, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not so within 30 s")
		}
	}
}

// TestForwarder_OutcomesStayApart: a command that was never sent did not happen; one whose call broke may have.
func TestForwarder_OutcomesStayApart(t *testing.T) {
	t.Parallel()
	called := make(chan struct{}, maxForwardCalls)
	f := &forwarder{base: t.Context(), many: func(ctx context.Context, _ string, _ [][]byte) ([]forwardReply, error) {
		called <- struct{}{}
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}}
	leaderGone, gone := context.WithCancel(t.Context())
	under := func(ctx context.Context, _ string) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancel(ctx)
		context.AfterFunc(leaderGone, cancel)
		return ctx, cancel
	}
	var wg sync.WaitGroup
	for i := range maxForwardCalls {
		wg.Go(func() {
			if _, err := f.forward(t.Context(), "nod_a", []byte{1}, under); err == nil || errors.Is(err, errNotSent) || errors.Is(err, errUnavailable) {
				t.Errorf("call %d, cut off: got %v, want an unknown outcome", i, err)
			}
		})
		<-called
	}
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.forward(impatient, "nod_a", []byte{1}, under); !errors.Is(err, errNotSent) {
		t.Errorf("given up while it waited: got %v, want errNotSent", err)
	}
	gone()
	wg.Wait()
}

// TestForwarder_LeaderOfAnotherVersion falls back on calls of one command.
func TestForwarder_LeaderOfAnotherVersion(t *testing.T) {
	t.Parallel()
	f := &forwarder{
		base: t.Context(),
		many: func(context.Context, string, [][]byte) ([]forwardReply, error) { return nil, errNoSuchCall },
		one: func(_ context.Context, leader string, envelope []byte) (state.Result, error) {
			return state.Result{Index: uint64(envelope[0])}, nil
		},
	}
	if result, err := f.forward(t.Context(), "nod_a", []byte{7}, untilCancelled); err != nil || result.Index != 7 {
		t.Errorf("got %+v, %v", result, err)
	}
	f.many = func(context.Context, string, [][]byte) ([]forwardReply, error) { return nil, nil }
	if _, err := f.forward(t.Context(), "nod_a", []byte{7}, untilCancelled); err == nil || errors.Is(err, errNotSent) {
		t.Errorf("no answers to one command: got %v", err)
	}
}

// TestRPC_Forwards sends commands with different ends through the wire.
func TestRPC_Forwards(t *testing.T) {
	t.Parallel()
	server, client := credentials(t, "secret", "blue", time.Now), credentials(t, "secret", "blue", time.Now)
	listener, address := listenPeers(t, server)
	service := &forwardsService{fakeService: new(fakeService)}
	srv := newRPCServer(service, server, newSlots(maxServedCalls), nil, discard())
	go func() { _ = srv.Serve(listener.listener(listener.rpc, listener.inner.Addr())) }()
	t.Cleanup(func() { srv.Close() })
	rpc := &rpcClient{http: newRPCClient(dialerOf(t, client, address)), clusterID: func() string { return "" }}
	t.Cleanup(rpc.close)
	replies, err := rpc.forwards(t.Context(), server.self.NodeID, [][]byte{{0}, {1}, {2}, {3}, {4}})
	if err != nil || len(replies) != 5 {
		t.Fatalf("got %v, %v", replies, err)
	}
	var refused *refusedError
	var hint *leaderHint
	for i, check := range []func(state.Result, error) bool{
		func(r state.Result, err error) bool { return err == nil && r.Index == 9 },
		func(_ state.Result, err error) bool { return errors.As(err, &hint) && hint.leaderID == "nod_leader" },
		func(_ state.Result, err error) bool { return errors.Is(err, errUnavailable) },
		func(_ state.Result, err error) bool { return errors.As(err, &refused) && refused.reason == "no" },
		func(_ state.Result, err error) bool {
			return err != nil && !errors.Is(err, errUnavailable) && !errors.Is(err, errNotLeader) && !errors.Is(err, errNotSent)
		},
	} {
		if result, err := replies[i].result(); !check(result, err) {
			t.Errorf("command %d: got %+v, %v", i, result, err)
		}
	}
	for name, body := range map[string][]byte{"not CBOR": {0xff}, "none": {0x80}, "a number": {0x81, 0x01}} {
		if _, err := rpc.call(t.Context(), server.self.NodeID, http.MethodPost, pathForwards, body, 1<<10); !errors.As(err, &refused) {
			t.Errorf("%s: got %v, want a refusal", name, err)
		}
	}
	if _, err := rpc.forwards(t.Context(), server.self.NodeID, make([][]byte, maxForwardBatch+1)); !errors.As(err, &refused) {
		t.Errorf("too many: got %v, want a refusal", err)
	}
}

// forwardsService ends each command as its first byte says.
type forwardsService struct{ *fakeService }

func (s *forwardsService) serveForward(_ context.Context, _ string, envelope []byte) (state.Result, error) {
	switch envelope[0] {
	case 0:
		return state.Result{Index: 9}, nil
	case 1:
		return state.Result{}, errNotLeader
	case 2:
		return state.Result{}, fmt.Errorf("%w: full", errUnavailable)
	case 3:
		return state.Result{}, &refusedError{reason: "no"}
	}
	return state.Result{}, errors.New("lost")
}
