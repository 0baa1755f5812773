package limiter

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"testing"
)

func TestSip128_Vectors(t *testing.T) {
	t.Parallel()
	// From the reference implementation's vectors_sip128: key 00..0f, input 00..n-1.
	var key [16]byte
	for i := range key {
		key[i] = byte(i)
	}
	for n, want := range map[int]string{
		0: "a3817f04ba25a8e66df67214c7550293",
		1: "da87c1d86b99af44347659119b22fc45",
	} {
		in := make([]byte, n)
		for i := range in {
			in[i] = byte(i)
		}
		lo, hi := sip128(&key, in)
		var got [16]byte
		for i := range 8 {
			got[i], got[8+i] = byte(lo>>(8*i)), byte(hi>>(8*i))
		}
		if hex.EncodeToString(got[:]) != want {
			t.Errorf("sip128 of %d bytes: got %x, want %s", n, got, want)
		}
	}
}

func TestSip128_Parts(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	key := [16]byte{7}
	in := make([]byte, 70)
	for i := range in {
		in[i] = byte(rng.Uint32())
	}
	for range 500 {
		n := rng.IntN(len(in))
		i := rng.IntN(n + 1)
		j := i + rng.IntN(n-i+1)
		lo, hi := sip128(&key, in[:n])
		plo, phi := sip128(&key, in[:i], in[i:j], in[j:n])
		if lo != plo || hi != phi {
			t.Fatalf("%d bytes in parts at %d, %d: got another hash than in one", n, i, j)
		}
	}
}

func sampleName() bucketName {
	return bucketName{id: BucketID{1, 2, 3, 15: 9}, rule: Rule{Window: 60, Algorithm: SlidingWindow}, n: 28_333_334}
}

func sampleCounters() counters {
	return counters{limit: 100, used: 33, prevUsed: 20, base: 34, net: -5, charge: 21, flags: flagPrevVague}
}

func TestWire_RoundTrip(t *testing.T) {
	t.Parallel()
	h := header{kind: typeAsk, sender: 5, inc: 2, seq: 900, clock: -3}
	ask := askMessage{receiver: 77, bucketName: sampleName(), limit: 100, want: 12, knownInc: 4, known: 3, counters: sampleCounters()}
	p := appendAsk(nil, h, &ask)
	r := reader{b: p}
	if got := r.header(); got != h {
		t.Fatalf("header: got %+v, want %+v", got, h)
	}
	if got := r.ask(); got != ask || !r.done() {
		t.Fatalf("ask: got %+v (done %v), want %+v", got, r.done(), ask)
	}
	h.kind = typeAnswer
	answer := answerMessage{receiver: 77, bucketName: sampleName(), receiverInc: 8, askSeq: 900, flags: flagDenied, cell: 40, counters: sampleCounters()}
	q := appendAnswer(nil, h, &answer)
	r = reader{b: q}
	r.header()
	if got := r.answer(); got != answer || !r.done() {
		t.Fatalf("answer: got %+v (done %v), want %+v", got, r.done(), answer)
	}
	if len(p) > MaxPacket || len(q) > MaxPacket {
		t.Fatalf("packets of %d and %d bytes, at most %d are allowed", len(p), len(q), MaxPacket)
	}
}

// The bytes of version 1, so that a change of the format does not go unnoticed.
func TestWire_Golden(t *testing.T) {
	t.Parallel()
	ask := askMessage{receiver: 77, bucketName: sampleName(), limit: 100, want: 12, knownInc: 4, known: 3, counters: sampleCounters()}
	got := hex.EncodeToString(appendAsk(nil, header{typeAsk, 5, 2, 900, 258}, &ask))
	want := "0101050000000000000002000000000000008403000000000000" + "0201000000000000" + "4d00000000000000" +
		"01020300000000000000000000000009" + "3c" + "02" + "acd4821b" + "64" + "0c" + "04" + "03" + "64211422" + "09" + "15" + "02"
	if got != want {
		t.Fatalf("ask:\n got %s\nwant %s", got, want)
	}
	name, c := sampleName(), sampleCounters()
	relay := append(appendGroup(append(appendHeader(nil, header{typeRelay, 5, 2, 900, 258}), 1, 1), header{typeNews, 6, 3, 300, -129}), 1)
	got = hex.EncodeToString(appendCounters(appendBucket(relay, &name), &c))
	want = "0104050000000000000002000000000000008403000000000000" + "0201000000000000" + "01" + "01" + "0600000000000000" + "03" + "ac02" + "8102" +
		"01" + "01020300000000000000000000000009" + "3c" + "02" + "acd4821b" + "64211422091502"
	if got != want {
		t.Fatalf("relay:\n got %s\nwant %s", got, want)
	}
}

func TestWire_RefusesEveryCut(t *testing.T) {
	t.Parallel()
	for _, packet := range samplePackets() {
		l := newTestLedger("b", 1)
		for n := range len(packet) {
			before := l.refused.Load() + l.foreign.Load()
			var out outbox
			l.receive(instant{ms: 1_700_000_040_000}, "a", packet[:n], &out)
			if l.refused.Load()+l.foreign.Load() != before+1 {
				t.Fatalf("type %d cut to %d of %d bytes was not refused", packet[1], n, len(packet))
			}
		}
		var out outbox
		before := l.refused.Load()
		l.receive(instant{ms: 1_700_000_040_000}, "a", append(bytes.Clone(packet), 0), &out)
		if l.refused.Load() != before+1 {
			t.Fatalf("type %d with a byte too many was not refused", packet[1])
		}
		bad := bytes.Clone(packet)
		bad[0] = wireVersion + 1
		l.receive(instant{ms: 1_700_000_040_000}, "a", bad, &out)
		if l.refused.Load() != before+2 {
			t.Fatalf("type %d of an unknown version was not refused", packet[1])
		}
	}
}

func samplePackets() [][]byte {
	a, b := nodeHash("a"), nodeHash("b")
	ask := askMessage{receiver: b, bucketName: sampleName(), limit: 100, want: 12, counters: sampleCounters()}
	answer := answerMessage{receiver: b, bucketName: sampleName(), receiverInc: 1, cell: 4, counters: sampleCounters()}
	name, c := sampleName(), sampleCounters()
	news := append(appendHeader(nil, header{typeNews, a, 1, 3, 0}), 2)
	for range 2 {
		news = appendCounters(appendBucket(news, &name), &c)
	}
	relay := append(appendHeader(nil, header{typeRelay, a, 1, 4, 0}), 1, 2)
	for _, g := range []header{{typeNews, a, 1, 4, 0}, {typeNews, nodeHash("c"), 1 << 40, 7, -1}} {
		relay = appendCounters(appendBucket(append(appendGroup(relay, g), 1), &name), &c)
	}
	lease := tokenName{BucketID{1, 2, 3, 15: 9}, Rule{Limit: 100, Window: 60, Algorithm: TokenBucket, Burst: 20}}
	tokens := [][]byte{
		appendLeaseAsk(nil, header{typeLeaseAsk, a, 1, 5, 28_333_334 * 60_000}, &leaseAsk{receiver: b, tokenName: lease, ask: 5, want: 1200, more: 7, content: 300}),
		appendLeaseAnswer(nil, header{typeLeaseAnswer, a, 1, 6, 0}, &leaseAnswer{receiver: b, tokenName: lease, receiverInc: 1, ask: 9, lent: 900, content: 33}),
		appendLeaseOver(nil, header{typeLeaseOver, a, 1, 7, 0}, &leaseOver{receiver: b, tokenName: lease, ask: 9, back: 12}),
		appendLevels(nil, header{typeLevels, a, 1, 8, 0}, 1e9, &levelEntry{tokenName: lease, content: 5000, counted: 3, age: 70}, &levelEntry{tokenName: lease}),
		appendClock(nil, header{typeClock, a, 1, 9, 0}, &clockMessage{receiver: b, mono: 1e9}),
		appendClock(nil, header{typeClock, a, 1, 9, 0}, &clockMessage{receiver: b, receiverInc: 1, echo: 0, mono: 1e9}),
	}
	return append(tokens, relay, appendAsk(nil, header{typeAsk, a, 1, 1, 0}, &ask), appendAnswer(nil, header{typeAnswer, a, 1, 2, 0}, &answer), news)
}

func newTestLedger(self string, inc uint64) *ledger {
	l := newLedger(ledgerConfig{self: self, inc: inc, skewMillis: 1000, maxBuckets: 6400})
	l.mark.Store(1 << 50)
	l.setState(State{HorizonMillis: 1 << 50, Rosters: []Roster{{Index: 1, Nodes: []string{"a", "b", "c"}}}})
	return l
}

// No packet panics, and none makes this node hold more than the limit: whatever comes in, what it admits in one
// window stays within its base share and what cells brought, which only donors can make.
func FuzzReceive(f *testing.F) {
	for _, p := range samplePackets() {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		l := newTestLedger("b", 1)
		now := instant{ms: 28_333_334 * 60_000}
		for range 2 {
			var out outbox
			l.receive(now, "a", packet, &out)
			for _, p := range out.to {
				if p.end-p.start > MaxPacket {
					t.Fatalf("packet of %d bytes", p.end-p.start)
				}
			}
		}
		for i := range l.shards {
			l.shards[i].each(func(b *bucket) {
				if tk := b.tok; tk != nil && (tk.content < 0 || tk.room < 0 || tk.content+tk.room > (tk.burst+2)/3*grains+tk.borrowed()) {
					t.Fatalf("more tokens than this node's part: %+v", tk)
				}
				for _, w := range b.wins {
					if w.used < 0 || w.given < 0 || w.received < 0 {
						t.Fatalf("negative counters: %+v", w)
					}
				}
			})
		}
	})
}
