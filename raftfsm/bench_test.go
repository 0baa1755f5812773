package raftfsm_test

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/hashicorp/raft"

	"sluice/raftfsm/state"
)

// numbered makes keys or sessions in batches as Raft hands them over.
func (f *fixture) numbered(n int, make func(i int) state.Command) {
	f.t.Helper()
	var logs []*raft.Log
	for i := range n {
		f.index++
		logs = append(logs, logOf(f.t, f.index, state.Envelope{ProposedAt: f.now, Command: make(i)}))
		if len(logs) == 64 || i == n-1 {
			f.fsm.ApplyBatch(logs)
			logs = logs[:0]
		}
	}
}

func numberedHash(i int) [32]byte {
	return sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i)))
}

func BenchmarkKeyByHash(b *testing.B) {
	const size = 20_000
	f := fresh(b)
	f.register("ada")
	f.numbered(size, func(i int) state.Command {
		sum := numberedHash(i)
		key := newKey(fmt.Sprintf("key_%08d", i), "org_ada", f.now, "events:*")
		key.Hash, key.CreatedBy = sum[:], "usr_ada"
		return state.CreateKey{Key: key, Actor: owner("ada")}
	})
	b.Run(fmt.Sprintf("auth/keys=%d", size), func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			if auth, err := f.view.KeyAuth(numberedHash(i % size)); err != nil || auth == nil || auth.Disabled {
				b.Fatal(auth, err)
			}
			i += 7919
		}
	})
	b.Run(fmt.Sprintf("keys=%d", size), func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			if key, err := f.view.KeyByHash(numberedHash(i % size)); err != nil || key == nil {
				b.Fatal(key, err)
			}
			i += 7919
		}
	})
	b.Run("unknown", func(b *testing.B) {
		b.ReportAllocs()
		i := size
		for b.Loop() {
			if key, err := f.view.KeyByHash(numberedHash(i)); err != nil || key != nil {
				b.Fatal(key, err)
			}
			i++
		}
	})
}

func BenchmarkSession(b *testing.B) {
	const size = 20_000
	f := fresh(b)
	for u := range 20 {
		f.register(fmt.Sprint("u", u))
	}
	f.numbered(size, func(i int) state.Command {
		return state.CreateSession{Session: session(fmt.Sprintf("ses_%08d", i), fmt.Sprint("usr_u", i*20/size), f.now)}
	})
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if s, err := f.view.Session(fmt.Sprintf("ses_%08d", i%size)); err != nil || s == nil {
			b.Fatal(s, err)
		}
		i += 7919
	}
}

func BenchmarkApplyBatch(b *testing.B) {
	for _, size := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("entries=%d", size), func(b *testing.B) {
			f := fresh(b)
			f.register("ada")
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				logs := make([]*raft.Log, size)
				for i := range logs {
					n++
					f.index++
					sum := numberedHash(n)
					key := newKey(fmt.Sprintf("key_%08d", n), "org_ada", f.now, "events:*")
					key.Hash = sum[:]
					logs[i] = logOf(b, f.index, state.Envelope{RequestID: [16]byte(sum[:16]), ProposedAt: f.now, Command: state.CreateKey{
						Key: key, Actor: owner("ada"), Audit: []state.AuditEvent{event(fmt.Sprintf("%08d", n), "org_ada", "api_key.created", f.now)},
					}})
				}
				for _, answer := range f.fsm.ApplyBatch(logs) {
					if r, ok := answer.(state.Result); !ok || r.Refused != "" {
						b.Fatal(answer)
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*size), "ns/entry")
		})
	}
}
