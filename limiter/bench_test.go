package limiter

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
)

func benchLimiter(tb testing.TB) *Limiter {
	tb.Helper()
	l, err := Open(Config{NodeID: "a", Dir: tb.TempDir(), MaxBuckets: 100_000})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := l.Close(); err != nil {
			tb.Error(err)
		}
	})
	l.SetState(State{HorizonMillis: 1 << 50, Rosters: []Roster{{Index: 1, Nodes: []string{"a", "b", "c"}}}})
	return l
}

func TestTake_AllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	t.Run("alone", func(t *testing.T) { allocatesNothing(t, benchLimiter(t)) })
	t.Run("heir", func(t *testing.T) { allocatesNothing(t, benchHeir(t)) })
}

// benchHeir is a limiter that inherited the share and the list of another one.
func benchHeir(tb testing.TB) *Limiter {
	tb.Helper()
	l := benchLimiter(tb)
	leaver, err := Open(Config{NodeID: "b", Dir: tb.TempDir(), MaxBuckets: 100_000})
	if err != nil {
		tb.Fatal(err)
	}
	defer leaver.Close()
	state := State{HorizonMillis: 1 << 50, Rosters: []Roster{{Index: 1, Nodes: []string{"a", "b", "c"}}}}
	leaver.SetState(state)
	for i := range 1000 {
		take(leaver, Rule{Limit: 1_000_000, Window: 3600, Algorithm: SlidingWindow}, fmt.Sprint(i), 1)
	}
	var list bytes.Buffer
	if err := leaver.Leave(); err != nil {
		tb.Fatal(err)
	}
	q, err := leaver.WriteBequest(&list)
	if err != nil {
		tb.Fatal(err)
	}
	if err := l.StoreBequest("b", q.List, &list); err != nil {
		tb.Fatal(err)
	}
	state.Leaves = []Leave{{Index: 2, Leaver: "b", Heir: "a", MarkMillis: q.MarkMillis, List: q.List}}
	l.SetState(state)
	if l.Stats().Inherited != 1 {
		tb.Fatal("nothing inherited")
	}
	return l
}

func allocatesNothing(t *testing.T, l *Limiter) {
	for _, alg := range []Algorithm{FixedWindow, SlidingWindow, TokenBucket} {
		open, shut := Rule{Limit: 1_000_000, Window: 3600, Algorithm: alg}, Rule{Limit: 0, Window: 3600, Algorithm: alg}
		if alg == TokenBucket {
			open.Burst, shut.Burst = 1_000_000, 1
		}
		subject := []byte("subject")
		for name, rule := range map[string]Rule{"admitted": open, "refused": shut} {
			var v [2]Verdict
			charges := make([]Charge, 2)
			want := Admitted
			if rule.Limit == 0 {
				want = Refused
			}
			if n := testing.AllocsPerRun(1000, func() {
				charges[0] = Charge{Bucket: l.Bucket("one", rule, subject), Rule: rule, Cost: 1}
				charges[1] = Charge{Bucket: l.Bucket("a policy with a name that is longer than most", rule, subject), Rule: rule, Cost: 1}
				if o := l.Take(charges, v[:]); o != want {
					t.Fatalf("%s: %v %+v", name, o, v)
				}
				l.Peek(charges[0])
				l.TryTake(charges, v[:])
			}); n != 0 {
				t.Errorf("%s, algorithm %d: %v allocations", name, alg, n)
			}
		}
	}
}

// A bucket that is unpacked for each request and packed after it, again and again, takes no new memory, nor does what
// peers say of it.
func TestLedger_PackingAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	l := newTestLedger("a", 1)
	l.records = newRecords(make([]uint64, headerWords+64*slotWords), 64, "boot", 0)
	for i := range l.shards {
		l.shards[i].records = l.records
	}
	l.fullPerShard = 0
	rule := Rule{Limit: 1_000_000_000, Window: 60, Algorithm: SlidingWindow}
	var charges [3]Charge
	var verdicts [3]Verdict
	var out outbox
	for i := range charges {
		charges[i] = Charge{Bucket: bucketID(&[16]byte{1}, "p", rule, []byte{byte(i)}), Rule: rule, Cost: 1}
	}
	now := instant{ms: testStart}
	name := bucketName{id: charges[0].Bucket, rule: Rule{Window: 60, Algorithm: SlidingWindow}, n: 28_333_334}
	c := sampleCounters()
	tokens := Rule{Limit: 1_000_000_000, Window: 60, Algorithm: TokenBucket, Burst: 1_000_000_000}
	charges[2] = Charge{Bucket: bucketID(&[16]byte{1}, "p", tokens, []byte{2}), Rule: tokens, Cost: 1}
	level := levelEntry{tokenName: tokenName{charges[2].Bucket, tokens}, content: 5 * grains, counted: 3, age: 1000}
	var packet []byte
	seq := uint64(0)
	if n := testing.AllocsPerRun(2000, func() {
		if o, _ := l.take(now, charges[:], verdicts[:], nil, &out); o != Admitted {
			t.Fatalf("%+v", verdicts)
		}
		seq++
		packet = append(appendHeader(packet[:0], header{typeNews, nodeHash("b"), 1, seq, now.ms}), 1)
		packet = appendCounters(appendBucket(packet, &name), &c)
		l.receive(now, "b", packet, &out)
		packet = appendLevels(packet[:0], header{typeLevels, nodeHash("b"), 1, seq, now.ms}, now.mono, &level)
		l.receive(now, "b", packet, &out)
		now.mono += int64(1e6)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	for i := range l.shards {
		if sh := &l.shards[i]; len(sh.slab) != len(sh.free) {
			t.Errorf("a bucket of shard %d is not packed", i)
		}
	}
}

func BenchmarkTake(b *testing.B) {
	l := benchLimiter(b)
	for _, alg := range []Algorithm{FixedWindow, SlidingWindow, TokenBucket} {
		for name, limit := range map[string]int64{"admitted": 1e12, "refused": 0} {
			for _, keys := range []int{1, 10_000} {
				b.Run(fmt.Sprintf("alg=%d/%s/keys=%d", alg, name, keys), func(b *testing.B) {
					rule := Rule{Limit: limit, Window: 3600, Algorithm: alg}
					if alg == TokenBucket {
						rule.Burst = max(limit, 1)
					}
					ids := make([]BucketID, keys)
					for i := range ids {
						ids[i] = l.Bucket("p", rule, binary.BigEndian.AppendUint64(nil, uint64(i)))
					}
					b.ReportAllocs()
					b.RunParallel(func(pb *testing.PB) {
						var c [1]Charge
						var v [1]Verdict
						for i := 0; pb.Next(); i++ {
							c[0] = Charge{Bucket: ids[i%keys], Rule: rule, Cost: 1}
							l.Take(c[:], v[:])
						}
					})
				})
			}
		}
	}
}

// What a request costs whose bucket is packed: it is unpacked, and another packed.
func BenchmarkTake_Packed(b *testing.B) {
	const buckets = 200_000
	f := newFilling(b, buckets, 2)
	f.spend(b, buckets)
	f.hear(buckets)
	ids := make([]BucketID, buckets)
	for i := range ids {
		ids[i] = f.id(i)
	}
	var out outbox
	var c [1]Charge
	var v [1]Verdict
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		c[0] = Charge{Bucket: ids[i], Rule: Rule{Limit: 0, Window: f.rule.Window, Algorithm: f.rule.Algorithm}, Cost: 1}
		f.l.take(f.now, c[:], v[:], nil, &out)
		if i++; i == buckets {
			i = 0
		}
	}
}

func BenchmarkBucket(b *testing.B) {
	l := benchLimiter(b)
	subject := []byte("key_01hzx3v8q4w2y6n5t7r9p1m3k5")
	b.ReportAllocs()
	for b.Loop() {
		l.Bucket("api_key", Rule{Limit: 100, Window: 60, Algorithm: SlidingWindow}, subject)
	}
}
