package node

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"time"

	"sluice/raftfsm/state"
)

// heapAfter is what the heap holds after a collection.
func heapAfter() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Not parallel: it measures the heap. Under a flood each queue takes what it may and no more, counts the rest, and holds memory for what it took.
func TestQueues_Flood(t *testing.T) {
	const flood = 50_000
	check := func(name string, length, most int, rejected uint64, taken uint64) {
		t.Helper()
		if length != most || rejected != flood-taken {
			t.Errorf("%s: %d of %d in it and %d turned away out of %d, want %d and %d", name, length, most, rejected, flood, most, flood-taken)
		}
	}

	g := &gossip{inbox: make(chan []byte, packetQueue)}
	before := heapAfter()
	packet := make([]byte, packetHeader+maxPacket)
	for range flood {
		(*gossipDelegate)(g).NotifyMsg(packet)
	}
	check("gossip", len(g.inbox), cap(g.inbox), uint64(g.dropped.Load()), uint64(cap(g.inbox)))
	if held, most := int64(heapAfter())-int64(before), int64(2*cap(g.inbox)*len(packet)); held > most+1<<20 {
		t.Errorf("gossip holds %d bytes after %d packets, want at most %d", held, flood, most)
	}
	runtime.KeepAlive(g)

	// Nobody proposes: all who ask wait, as while a leader hangs.
	b := newBarriers(func(ctx context.Context, _ state.Command) (state.Result, error) {
		<-ctx.Done()
		return state.Result{}, ctx.Err()
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range maxBarrierWaiters {
		wg.Go(func() {
			if _, err := b.ask(ctx, time.Hour); !errors.Is(err, context.Canceled) {
				t.Errorf("a waiter's end: %v", err)
			}
		})
	}
	for b.count().Length < maxBarrierWaiters {
		runtime.Gosched()
	}
	for range flood - maxBarrierWaiters {
		if _, err := b.ask(ctx, time.Hour); !errors.Is(err, errUnavailable) {
			t.Fatalf("beyond the bound: %v", err)
		}
	}
	count := b.count()
	check("barriers", int(count.Length), int(count.Max), count.Rejected, maxBarrierWaiters)
	cancel()
	wg.Wait()

	p := newProposer("nod_x", func() *consensus { return nil }, nil, time.Now)
	for range maxProposals {
		if !p.own.take() || !p.foreign.take() {
			t.Fatal("a place is missing")
		}
	}
	envelope, err := state.Encode(state.Envelope{ProposedAt: 1, Command: state.Barrier{}})
	if err != nil {
		t.Fatal(err)
	}
	for range flood - maxProposals {
		if _, err := p.propose(t.Context(), [16]byte{}, state.Barrier{}); !errors.Is(err, errUnavailable) {
			t.Fatalf("a proposal beyond the bound: %v", err)
		}
	}
	count = p.own.count("proposals")
	check("proposals", int(count.Length), int(count.Max), count.Rejected, maxProposals)
	k := new(consensus)
	p.consensus = func() *consensus { return k }
	for range flood - maxProposals {
		if _, err := p.serve(t.Context(), envelope); !errors.Is(err, errUnavailable) {
			t.Fatalf("a forwarded proposal beyond the bound: %v", err)
		}
	}
	count = p.foreign.count("forwarded")
	check("forwarded", int(count.Length), int(count.Max), count.Rejected, maxProposals)
}
