package limiter

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
)

// filling is a ledger on a mapped file, with buckets in use.
type filling struct {
	l     *ledger
	rule  Rule
	now   instant
	peers []string // that say of every bucket what they used
	rng   *rand.Rand
}

func newFilling(tb testing.TB, buckets, peers int) *filling {
	tb.Helper()
	records, _, _, err := loadRecords(tb.TempDir(), buckets, "boot", 0)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := records.unmap(); err != nil {
			tb.Error(err)
		}
	})
	f := &filling{
		// One policy may fill a quarter; here it fills all.
		l:    newLedger(ledgerConfig{self: "a", inc: 3, skewMillis: 1000, maxBuckets: 5 * buckets, records: records}),
		rule: Rule{Limit: 100, Window: 60, Algorithm: SlidingWindow},
		now:  instant{ms: testStart, mono: 1},
		rng:  rand.New(rand.NewPCG(1, uint64(buckets))),
	}
	nodes := []string{"a"}
	for i := range peers {
		f.peers = append(f.peers, fmt.Sprint("peer", i))
	}
	f.l.mark.Store(1 << 50)
	f.l.setState(State{HorizonMillis: 1 << 50, Rosters: []Roster{{Index: 1, Nodes: append(nodes, f.peers...)}}})
	return f
}

func (f *filling) id(i int) BucketID {
	var subject [8]byte
	binary.LittleEndian.PutUint64(subject[:], uint64(i))
	return bucketID(&[16]byte{1}, "p", f.rule, subject[:])
}

// spend takes some units of each bucket.
func (f *filling) spend(tb testing.TB, buckets int) {
	tb.Helper()
	var out outbox
	var verdicts [1]Verdict
	var charges [1]Charge
	for i := range buckets {
		charges[0] = Charge{Bucket: f.id(i), Rule: f.rule, Cost: 1 + f.rng.Int64N(16)}
		if o, _ := f.l.take(f.now, charges[:], verdicts[:], nil, &out); o != Admitted {
			tb.Fatalf("bucket %d: %+v", i, verdicts[0])
		}
	}
}

// hear takes in what the peers spent of each bucket.
func (f *filling) hear(buckets int) {
	if f.rule.Algorithm == TokenBucket {
		f.hearLevels(buckets)
		return
	}
	var out outbox
	s := span(f.rule.Window * 1000)
	for seq, peer := range f.peers {
		var packet []byte
		count := byte(0)
		for i := range buckets {
			if count == 0 {
				packet = append(appendHeader(packet[:0], header{typeNews, nodeHash(peer), 2, uint64(seq + i + 10_000_000), f.now.ms}), 0)
			}
			name := bucketName{id: f.id(i), rule: Rule{Window: f.rule.Window, Algorithm: f.rule.Algorithm}, n: s.at(f.now.ms)}
			used := grains * (1 + f.rng.Int64N(16))
			c := counters{limit: f.rule.Limit, used: used, prevUsed: used, base: 33 * grains, net: used, charge: used}
			packet = appendCounters(appendBucket(packet, &name), &c)
			if count++; len(packet)+maxEntry > MaxPacket || i == buckets-1 {
				packet[headerLen] = count
				count = 0
				f.l.receive(f.now, peer, packet, &out)
			}
		}
	}
}

// hearLevels is hear for token buckets.
func (f *filling) hearLevels(buckets int) {
	var out outbox
	var packet []byte
	var levels []*levelEntry
	for seq, peer := range f.peers {
		p := f.l.peers.at(uint16(1 + seq))
		p.bind(clockBound{inc: 2, mine: f.now.mono, theirs: f.now.mono + 1e12}, f.now.mono)
		for i := range buckets {
			levels = append(levels, &levelEntry{
				tokenName: tokenName{f.id(i), f.rule}, content: 1 + f.rng.Int64N(33*grains), counted: 1 + f.rng.Int64N(16), age: 1234,
			})
			if len(levels) == 30 || i == buckets-1 {
				f.now.mono += 1_234_567
				h := header{typeLevels, nodeHash(peer), 2, uint64(seq + i + 10_000_000), f.now.ms}
				packet = appendLevels(packet[:0], h, f.now.mono+1e12, levels...)
				levels = levels[:0]
				f.l.receive(f.now, peer, packet, &out)
			}
		}
	}
}

// rest lets everything be told and packed.
func (f *filling) rest() {
	f.l.news(f.now, 1<<40, typeNews, func([]byte) {})
	f.l.newsOfTokens(f.now, 1<<40, 0, func([]byte) {})
	f.now.mono += int64(1e9)
	for i := range f.l.shards {
		for range 2 {
			f.l.rest(&f.l.shards[i], f.now.mono, len(f.l.shards[i].slab))
		}
	}
}

func (f *filling) live() (live, full int) {
	for i := range f.l.shards {
		sh := &f.l.shards[i]
		live += sh.live
		full += len(sh.slab) - len(sh.free)
	}
	return live, full
}

func heapBytes() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// footprint is what a live bucket takes, once everything is packed: on the heap, which was at before, with all that
// finds it, and of the mapped file.
func (f *filling) footprint(tb testing.TB, before uint64, buckets int) (heap, mapped float64) {
	tb.Helper()
	f.rest()
	live, full := f.live()
	if live != buckets || full != 0 {
		tb.Fatalf("%d buckets live, %d of them not packed; want %d, 0", live, full, buckets)
	}
	heap = float64(heapBytes()-before) / float64(buckets)
	mapped = float64(8*(headerWords+f.l.records.words[wordUsed]*slotWords)) / float64(buckets)
	runtime.KeepAlive(f)
	return heap, mapped
}

// inTokens makes the filling one of token buckets, on a node that has run for a day.
func (f *filling) inTokens(tb testing.TB) {
	tb.Helper()
	f.now.mono = 86_400e9
	f.rule = Rule{Limit: 100, Window: 60, Algorithm: TokenBucket, Burst: 100}
	if f.l.startMark != 0 {
		tb.Fatal("not a first start")
	}
}

// A million live token buckets take no more than windows may: spent from twice, so that what has accrued since is in odd
// parts.
func TestMemory_PerTokenBucket(t *testing.T) { // not parallel: it measures the heap
	if raceEnabled || testing.Short() {
		t.Skip("some seconds; the race detector takes memory of its own")
	}
	const buckets = 1_000_000
	before := heapBytes()
	f := newFilling(t, buckets, 2)
	f.inTokens(t)
	check := func(what string) {
		t.Helper()
		heap, mapped := f.footprint(t, before, buckets)
		t.Logf("%s: %.1f bytes of heap and %.1f of the file for each bucket", what, heap, mapped)
		if heap+mapped > 100 {
			t.Errorf("%s: %.1f bytes of heap and %.1f of the file for each bucket, want at most 100", what, heap, mapped)
		}
	}
	f.spend(t, buckets)
	f.now.mono += 1_234_567_891
	f.spend(t, buckets)
	check("own content")
	f.hear(buckets)
	check("and those of two peers")
}

// A million live buckets take less than 100 bytes each, the file and what two peers said of them included.
func TestMemory_PerBucket(t *testing.T) { // not parallel: it measures the heap
	if raceEnabled || testing.Short() {
		t.Skip("some seconds; the race detector takes memory of its own")
	}
	const buckets = 1_000_000
	before := heapBytes()
	f := newFilling(t, buckets, 2)
	check := func(what string) {
		t.Helper()
		heap, mapped := f.footprint(t, before, buckets)
		t.Logf("%s: %.1f bytes of heap and %.1f of the file for each bucket", what, heap, mapped)
		if heap+mapped > 100 {
			t.Errorf("%s: %.1f bytes of heap and %.1f of the file for each bucket, want at most 100", what, heap, mapped)
		}
	}
	f.spend(t, buckets)
	check("own counters")
	f.hear(buckets)
	check("and those of two peers")
}

func BenchmarkMemory(b *testing.B) {
	const buckets = 1_000_000
	for _, peers := range []int{0, 2} {
		b.Run(fmt.Sprintf("buckets=1e6/tokens/peers=%d", peers), func(b *testing.B) {
			for b.Loop() {
				before := heapBytes()
				f := newFilling(b, buckets, peers)
				f.inTokens(b)
				for range 2 {
					f.now.mono += 1_234_567_891
					f.spend(b, buckets)
				}
				f.hear(buckets)
				heap, mapped := f.footprint(b, before, buckets)
				b.ReportMetric(heap, "heap_B/bucket")
				b.ReportMetric(mapped, "mapped_B/bucket")
			}
		})
	}
	for _, windows := range []int{1, 2} {
		for _, peers := range []int{0, 2} {
			b.Run(fmt.Sprintf("buckets=1e6/windows=%d/peers=%d", windows, peers), func(b *testing.B) {
				for b.Loop() {
					before := heapBytes()
					f := newFilling(b, buckets, peers)
					for range windows {
						f.now.ms += 60_000
						f.spend(b, buckets)
						f.hear(buckets)
					}
					heap, mapped := f.footprint(b, before, buckets)
					b.ReportMetric(heap, "heap_B/bucket")
					b.ReportMetric(mapped, "mapped_B/bucket")
				}
			})
		}
	}
}

// A flood of addresses fills what one policy may have and no more; the limits of others are exact meanwhile; and when the
// windows have ended, the memory is given back a little at a time.
func TestMemory_Flood(t *testing.T) { // not parallel: it measures the heap
	if raceEnabled || testing.Short() {
		t.Skip("some seconds; the race detector takes memory of its own")
	}
	const most = 100_000
	before := heapBytes()
	f := newFilling(t, most/5, 2)
	var out outbox
	var verdicts [1]Verdict
	take := func(id BucketID, rule Rule) Outcome {
		c := [1]Charge{{Bucket: id, Rule: rule, Cost: 1}}
		o, _ := f.l.take(f.now, c[:], verdicts[:], nil, &out)
		out = outbox{}
		return o
	}
	for i := range 4 * most {
		take(f.id(i), f.rule)
	}
	live, _ := f.live()
	if live > most/classShare+shardCount || live < most/classShare/2 {
		t.Errorf("%d buckets live in a flood, one policy may have %d", live, most/classShare)
	}
	heap := int64(heapBytes() - before)
	t.Logf("%d buckets live, %d bytes of heap", live, heap)
	if heap > 100*most {
		t.Errorf("a flood takes %d bytes of heap, want at most 100 for each of %d buckets", heap, most)
	}
	key := Rule{Limit: 9, Window: 60, Algorithm: FixedWindow} // of which 3 are here
	for i := range 2000 {
		id := bucketID(&[16]byte{1}, "api_key", key, fmt.Append(nil, i))
		for n := range 4 {
			want := Admitted
			if n == 3 {
				want = Refused
			}
			if o := take(id, key); o != want {
				t.Fatalf("key %d, request %d in the flood: %v %+v", i, n, o, verdicts[0])
			}
		}
	}
	f.now.ms += 600_000
	f.now.mono += int64(600e9)
	for i := range f.l.shards {
		sh := &f.l.shards[i]
		f.l.advance(sh, f.now.ms)
		for n := 0; sh.live > 0 && n < 10_000; n++ {
			f.l.sweepShard(sh, 8)
		}
		f.l.sweepCells(sh)
	}
	left := int64(heapBytes() - before)
	used, _ := f.l.records.usage()
	if live, full := f.live(); live+full+used > 0 || left > heap/2 && left > 12<<20 {
		t.Errorf("long after the flood: %d buckets, %d records, %d bytes of heap of %d", live, used, left, heap)
	}
	runtime.KeepAlive(f)
}
