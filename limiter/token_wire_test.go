package limiter

import (
	"encoding/binary"
	"encoding/hex"
	"testing"
)

// appendLevels writes a packet of what a node says of its token buckets.
func appendLevels(b []byte, h header, mono int64, levels ...*levelEntry) []byte {
	b = appendGroup(append(appendHeader(b, h), 0, 1), h)
	b = append(binary.LittleEndian.AppendUint64(b, uint64(mono)), byte(len(levels)))
	for _, e := range levels {
		b = appendLevelEntry(b, e)
	}
	return b
}

// The bytes of the packets of token buckets, there and back.
func TestTokenWire_Golden(t *testing.T) {
	t.Parallel()
	name := tokenName{BucketID{1, 2, 3, 15: 9}, Rule{Limit: 100, Window: 60, Algorithm: TokenBucket, Burst: 20}}
	const bucket = "01020300000000000000000000000009" + "3c" + "64" + "14"
	head := func(kind string) string {
		return "01" + kind + "0500000000000000" + "0200000000000000" + "8403000000000000" + "0201000000000000"
	}
	h := func(kind uint8) header { return header{kind, 5, 2, 900, 258} }
	check := func(got []byte, want string) *reader {
		t.Helper()
		if text := hex.EncodeToString(got); text != want {
			t.Fatalf("type %d:\n got %s\nwant %s", got[1], text, want)
		}
		r := &reader{b: got}
		if decoded := r.header(); decoded != h(got[1]) {
			t.Fatalf("header %+v", decoded)
		}
		return r
	}
	ask := leaseAsk{receiver: 77, tokenName: name, ask: 9, want: 1200, more: 5, content: 300}
	r := check(appendLeaseAsk(nil, h(typeLeaseAsk), &ask), head("05")+"4d00000000000000"+bucket+"09"+"b009"+"05"+"ac02")
	if got := r.leaseAsk(); got != ask || !r.done() {
		t.Fatalf("got %+v, want %+v", got, ask)
	}
	answer := leaseAnswer{receiver: 77, tokenName: name, receiverInc: 3, ask: 9, lent: 1200, content: 300}
	r = check(appendLeaseAnswer(nil, h(typeLeaseAnswer), &answer), head("06")+"4d00000000000000"+bucket+"03"+"09"+"00"+"b009"+"ac02")
	if got := r.leaseAnswer(); got != answer || !r.done() {
		t.Fatalf("got %+v, want %+v", got, answer)
	}
	over := leaseOver{receiver: 77, tokenName: name, ask: 9, back: 7, flags: flagBlurred}
	r = check(appendLeaseOver(nil, h(typeLeaseOver), &over), head("07")+"4d00000000000000"+bucket+"09"+"07"+"02")
	if got := r.leaseOver(); got != over || !r.done() {
		t.Fatalf("got %+v, want %+v", got, over)
	}
	clock := clockMessage{receiver: 77, receiverInc: 3, echo: 8, mono: 258}
	r = check(appendClock(nil, h(typeClock), &clock), head("09")+"4d00000000000000"+"03"+"0800000000000000"+"0201000000000000")
	if got := r.clock(); got != clock || !r.done() {
		t.Fatalf("got %+v, want %+v", got, clock)
	}
	level := levelEntry{tokenName: name, content: 300, counted: 5, age: 700}
	r = check(appendLevels(nil, h(typeLevels), 258, &level), head("08")+"00"+"01"+
		"0500000000000000"+"02"+"8407"+"8404"+"0201000000000000"+"01"+bucket+"ac02"+"05"+"bc05")
	if r.byte() != 0 || r.byte() != 1 {
		t.Fatal("not one group that goes no further")
	}
	g := r.levelGroup(func(g header, mono int64, e levelEntry) {
		if e != level || mono != 258 || g != h(typeLevels) {
			t.Fatalf("got %+v at %d of %+v, want %+v", e, mono, g, level)
		}
	})
	if g != h(typeLevels) || !r.done() {
		t.Fatalf("a group of %+v", g)
	}
}

// What cannot be is refused: a lease of nothing that is not denied, one that is, an ask without a name, a bucket that holds
// nothing.
func TestTokenWire_RefusesNonsense(t *testing.T) {
	t.Parallel()
	a, b := nodeHash("a"), nodeHash("b")
	name := tokenName{BucketID{15: 9}, Rule{Limit: 100, Window: 60, Algorithm: TokenBucket, Burst: 20}}
	empty := name
	empty.rule.Burst = 0
	answer := func(flags uint8, lent int64) []byte {
		return appendLeaseAnswer(nil, header{typeLeaseAnswer, a, 1, 1, 0}, &leaseAnswer{receiver: b, tokenName: name, receiverInc: 1, ask: 3, flags: flags, lent: lent})
	}
	for what, packet := range map[string][]byte{
		"nothing lent":               answer(0, 0),
		"denied and lent":            answer(flagDenied, 1),
		"an unknown flag":            answer(4, 1),
		"more than there is":         answer(0, 20_001),
		"an ask without one":         appendLeaseAsk(nil, header{typeLeaseAsk, a, 1, 1, 0}, &leaseAsk{receiver: b, tokenName: name, want: 1}),
		"no burst":                   appendLeaseOver(nil, header{typeLeaseOver, a, 1, 1, 0}, &leaseOver{receiver: b, tokenName: empty, ask: 3}),
		"an unknown flag of an over": appendLeaseOver(nil, header{typeLeaseOver, a, 1, 1, 0}, &leaseOver{receiver: b, tokenName: name, ask: 3, flags: 1}),
		"a question that answers":    appendClock(nil, header{typeClock, a, 1, 1, 0}, &clockMessage{receiver: b, echo: 1, mono: 1}),
		"a clock before its start":   appendClock(nil, header{typeClock, a, 1, 1, 0}, &clockMessage{receiver: b, mono: -1}),
		"levels cut short":           appendLevels(nil, header{typeLevels, a, 1, 1, 0}, 5, &levelEntry{tokenName: name})[:100],
		"an unknown type":            appendHeader(nil, header{typeClock + 1, a, 1, 1, 0}),
	} {
		l := newTestLedger("b", 1)
		var out outbox
		l.receive(instant{ms: testStart}, "a", packet, &out)
		if l.refused.Load() != 1 || len(out.to) > 0 {
			t.Errorf("%s: refused %d times, %d packets answered", what, l.refused.Load(), len(out.to))
		}
	}
}
