package limiter

import (
	"encoding/binary"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// each visits the buckets of either form.
func (sh *shard) each(visit func(b *bucket)) {
	for _, b := range sh.slab {
		if b != nil && b.live {
			visit(b)
		}
	}
	for at := sh.arena.next(0); at != 0; at = sh.arena.next(at + 1) {
		visit(sh.open(at))
	}
}

// The index finds what was put into it and nothing else, through splits, removals and moves between the forms.
func TestStore_MatchesMap(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(5, 5))
	l := newTestLedger("a", 1)
	sh := &l.shards[3]
	l.fullPerShard = 40
	want := map[BucketID]int64{}
	var ids []BucketID
	for step := range 60_000 {
		switch k := rng.IntN(10); {
		case k < 5 && len(ids) < 6000 || len(ids) == 0:
			var id BucketID
			binary.LittleEndian.PutUint64(id[:], rng.Uint64())
			binary.LittleEndian.PutUint64(id[8:], rng.Uint64())
			if sh.get(&id) != nil {
				t.Fatalf("step %d: found a bucket never made", step)
			}
			b := sh.add(&id, 60_000, FixedWindow)
			b.limit = rng.Int64N(1000)
			want[id] = b.limit
			ids = append(ids, id)
		case k < 8:
			id := ids[rng.IntN(len(ids))]
			b := sh.get(&id)
			if b == nil || b.id != id || b.limit != want[id] {
				t.Fatalf("step %d: got %+v, want limit %d", step, b, want[id])
			}
			b.limit = rng.Int64N(1 << rng.IntN(40))
			want[id] = b.limit
			if rng.IntN(4) == 0 && !b.dirty {
				sh.list(b, rng.IntN(2))
			}
		default:
			i := rng.IntN(len(ids))
			sh.drop(sh.get(&ids[i]))
			if sh.get(&ids[i]) != nil {
				t.Fatalf("step %d: found a bucket that was dropped", step)
			}
			delete(want, ids[i])
			ids[i] = ids[len(ids)-1]
			ids = ids[:len(ids)-1]
		}
		l.trim(sh, 0)
		if step%5000 == 0 { // all go at once, now and then
			if sh.live != len(want) {
				t.Fatalf("step %d: %d live, want %d", step, sh.live, len(want))
			}
			seen, listed := 0, 0
			sh.each(func(b *bucket) {
				if seen++; want[b.id] != b.limit {
					t.Fatalf("step %d: got limit %d, want %d", step, b.limit, want[b.id])
				}
				listed += int(btou(b.dirty))
			})
			if seen != len(want) || listed != len(sh.news[0])+len(sh.news[1]) {
				t.Fatalf("step %d: %d buckets, %d listed; want %d, %d", step, seen, listed, len(want), len(sh.news[0])+len(sh.news[1]))
			}
		}
		if step%20_000 == 19_999 {
			for i := range ids {
				sh.drop(sh.get(&ids[i]))
			}
			ids = nil
			clear(want)
			if sh.live != 0 || sh.index.dir != nil || sh.arena.marked != [markKinds]int{} {
				t.Fatalf("step %d: %d live, marks %v after all were dropped", step, sh.live, sh.arena.marked)
			}
			for _, p := range sh.arena.pages {
				if p != nil && p.used > 0 {
					t.Fatalf("step %d: blocks are in use after all were dropped", step)
				}
			}
		}
	}
}

// Names made up to collide find no room, and do no other harm.
func TestStore_CollidingNames(t *testing.T) {
	t.Parallel()
	l := newTestLedger("a", 1)
	sh := &l.shards[0]
	first := BucketID{1: 1}
	hash := first.hash()
	room := 0
	for i := range uint64(2000) {
		// hash mixes one half into the other, which can be undone.
		var id BucketID
		hi, lo := getWords(&first)
		putWords(&id, i, lo^mix64(hi)^mix64(i))
		if id.hash() != hash {
			t.Fatal("the name does not collide")
		}
		if sh.add(&id, 60_000, FixedWindow) != nil {
			room++
		}
		l.trim(sh, 0)
	}
	if room == 0 || room > indexMost {
		t.Fatalf("%d of 2000 names with one hash found room", room)
	}
	if sh.live != room {
		t.Fatalf("%d live, want %d", sh.live, room)
	}
	other := BucketID{1: 2, 9: 3}
	if other.hash()>>40 == hash>>40 {
		t.Fatal("not another hash")
	}
	if sh.add(&other, 60_000, FixedWindow) == nil || sh.get(&other) == nil {
		t.Fatal("another name finds no room")
	}
}

func TestArena_ReusesBlocks(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(6, 6))
	var a arena
	lengths := map[block]int{}
	var blocks []block
	most := 0
	for step := range 60_000 {
		grow := step/10_000%2 == 0
		if len(blocks) == 0 || grow == (rng.IntN(4) > 0) {
			n := 1 + rng.IntN(1<<(3+rng.IntN(9)))
			at := a.alloc(n)
			if at == 0 || len(a.bytes(at)) < n {
				t.Fatalf("step %d: no room for %d bytes", step, n)
			}
			if _, twice := lengths[at]; twice {
				t.Fatalf("step %d: block %x is given twice", step, at)
			}
			p := a.bytes(at)
			for i := range p {
				p[i] = byte(at) ^ byte(at>>8)
			}
			lengths[at] = n
			blocks = append(blocks, at)
			if rng.IntN(3) == 0 {
				a.mark(at, rng.IntN(2))
			}
		} else {
			i := rng.IntN(len(blocks))
			at := blocks[i]
			for _, c := range a.bytes(at)[:lengths[at]] {
				if c != byte(at)^byte(at>>8) {
					t.Fatalf("step %d: block %x was overwritten", step, at)
				}
			}
			a.release(at)
			delete(lengths, at)
			blocks[i] = blocks[len(blocks)-1]
			blocks = blocks[:len(blocks)-1]
		}
		pages := 0
		for _, p := range a.pages {
			if p != nil {
				pages++
			}
		}
		if most = max(most, pages); step == 59_999 && pages >= most {
			t.Errorf("%d pages in use at the end, %d at most: none was given back", pages, most)
		}
	}
	seen := 0
	for at := a.next(0); at != 0; at = a.next(at + 1) {
		if _, known := lengths[at]; !known {
			t.Fatalf("block %x is visited though it is free", at)
		}
		seen++
	}
	if seen != len(blocks) {
		t.Fatalf("%d blocks visited of %d", seen, len(blocks))
	}
	if a.alloc(maxBlock+1) != 0 {
		t.Error("a block longer than a page was given")
	}
}

// Packing keeps all that is not reckoned anew or over: with records and without, in as many forms as there are.
func TestPacked_RoundTrip(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(7, 7))
	r := newRecords(make([]uint64, headerWords+4096*slotWords), 4096, "boot", 0)
	grain := func() int64 {
		v := rng.Int64N(1 << (1 + rng.IntN(55)))
		if rng.IntN(2) == 0 {
			v = whole(v)
		}
		return v
	}
	slotted := 0
	for step := range 20_000 {
		b := &bucket{alg: Algorithm(1 + rng.IntN(2)), span: span(60_000 * (1 + rng.Int64N(40_000))), limit: rng.Int64N(1 << rng.IntN(40))}
		binary.LittleEndian.PutUint64(b.id[:], rng.Uint64())
		binary.LittleEndian.PutUint64(b.id[8:], rng.Uint64())
		n := rng.Int64N(30_000_000)
		for i := range rng.IntN(5) {
			w := window{n: n + int64(i) - rng.Int64N(2)*3, used: grain(), slot: noSlot, lost: rng.IntN(8) == 0}
			if b.find(w.n) != nil || w.n < 0 {
				continue
			}
			if rng.IntN(3) == 0 {
				w.given = grain()
			}
			if rng.IntN(3) == 0 {
				w.received = grain()
			}
			for range rng.IntN(3) {
				w.cells = append(w.cells, cell{value: grain(), inc: rng.Uint64() >> rng.IntN(64), peer: uint16(rng.IntN(maxPeers)), out: rng.IntN(2) == 0})
			}
			w.vague, w.audited, w.refused = rng.IntN(3) == 0, rng.IntN(3) == 0, uint8(rng.IntN(2)*rng.IntN(256))
			if rng.IntN(3) > 0 {
				w.slot = r.claim(b, &w)
			}
			if rng.IntN(4) == 0 {
				w.used /= 2 // a refund
			}
			b.wins = append(b.wins, w)
		}
		for range rng.IntN(20) / (1 + rng.IntN(10)) {
			k := counters{n: n - rng.Int64N(3), used: grain(), base: grain(), limit: rng.Int64N(1 << rng.IntN(40)), inc: rng.Uint64() >> rng.IntN(64),
				seq: rng.Uint64() >> rng.IntN(64), owing: rng.IntN(3) == 0, peer: uint16(rng.IntN(maxPeers)), denied: uint8(rng.IntN(2) * rng.IntN(9)), flags: uint8(rng.IntN(4))}
			k.net, k.charge = k.used, k.prevUsed
			if rng.IntN(2) == 0 {
				held := grain()
				k.net, k.charge, k.prevUsed = grain()-held, grain(), grain()
			}
			if rng.IntN(2) == 0 {
				k.limit = b.limit
			}
			b.know = append(b.know, k)
		}
		if rng.IntN(10) == 0 {
			b.learn(0) // of which nothing is known yet
		}
		if !b.packable(0) {
			t.Fatalf("step %d: not packable", step)
		}
		p := r.appendPacked(nil, b)
		slotted += int(p[0] & packedSlot / packedSlot)
		if got := r.packedName(p); got != b.id {
			t.Fatalf("step %d: name %x, want %x", step, got, b.id)
		}
		got := &bucket{}
		r.unpack(append(p, 0xee), got) // blocks are longer than what is in them
		if got.id != b.id || got.span != b.span || got.alg != b.alg || got.limit != b.limit || len(got.wins) != len(b.wins) || len(got.know) != len(b.know) {
			t.Fatalf("step %d: got %+v, want %+v", step, got, b)
		}
		for i := range b.wins {
			if got, want := got.wins[i], b.wins[i]; !reflect.DeepEqual(got, want) {
				t.Fatalf("step %d: window %+v, want %+v", step, got, want)
			}
		}
		for i := range b.know {
			if got.know[i] != b.know[i] {
				t.Fatalf("step %d: known %+v, want %+v", step, got.know[i], b.know[i])
			}
		}
		for i := range b.wins {
			if w := &b.wins[i]; w.slot != noSlot {
				r.release(w.slot, w.n)
			}
		}
	}
	if slotted < 5000 {
		t.Fatalf("only %d with a record", slotted)
	}
}

// The same of token buckets: in any state that may be packed, all comes back but what an ask that is over left.
func TestPacked_RoundTripTokens(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(8, 8))
	grain := func() int64 {
		v := rng.Int64N(1 << (1 + rng.IntN(55)))
		if rng.IntN(2) == 0 {
			v = whole(v)
		}
		return v
	}
	wide := func() uint64 { return rng.Uint64() >> rng.IntN(64) }
	some := func(out int) bool { return rng.IntN(out) == 0 }
	got := &bucket{}
	for step := range 20_000 {
		b := &bucket{alg: TokenBucket, span: span(1000 * (1 + rng.Int64N(maxWindow)))}
		binary.LittleEndian.PutUint64(b.id[:], rng.Uint64())
		binary.LittleEndian.PutUint64(b.id[8:], rng.Uint64())
		if !some(20) {
			tk := b.makeTokens()
			tk.content, tk.room, tk.filled = grain(), grain(), grain()
			tk.frac, tk.at = rng.Int64N(b.span.nanos()), 1+rng.Int64N(1<<61)
			tk.limit, tk.birth = rng.Int64N(1<<rng.IntN(40)), rng.Int64N(1<<rng.IntN(60))
			tk.burst = tk.limit
			if some(2) {
				tk.burst = rng.Int64N(1 << rng.IntN(40))
			}
			if part := tk.burst * grains / int64(1+rng.IntN(200)); some(2) && part > 0 {
				tk.content = rng.Int64N(part)
				tk.room = part + rng.Int64N(3) - tk.content
			}
			if tk.highest = tk.burst; some(4) {
				tk.highest += rng.Int64N(1000)
			}
			if tk.spent = some(2); tk.spent {
				if tk.spentAt, tk.spentLimit = tk.at, tk.limit; some(2) {
					tk.spentAt -= rng.Int64N(tk.at)
				}
				if some(4) {
					tk.spentLimit++
				}
			}
			if some(4) {
				tk.generation = wide()
			}
			if tk.countFrom = tk.at / levelNanos * levelNanos; some(2) {
				tk.counted = 1 + rng.Int64N(1<<rng.IntN(56))
				tk.countFrom -= rng.Int64N(1<<rng.IntN(40)) * levelNanos
			} else if some(4) {
				tk.countFrom += (1 + rng.Int64N(1<<rng.IntN(40))) * levelNanos
			}
			if some(4) {
				tk.dealings().lost, tk.dealings().yieldTo = uint8(1+rng.IntN(maxLost)), tk.at+rng.Int64N(1<<40)-1<<39
			}
			for range rng.IntN(3) {
				tr := tk.dealings()
				tr.out = append(tr.out, lease{units: grain(), end: tk.at + rng.Int64N(leaseNanos), inc: wide(), seq: wide(), peer: uint16(rng.IntN(maxPeers))})
			}
			for range rng.IntN(20) / (1 + rng.IntN(10)) {
				k := level{peer: uint16(rng.IntN(maxPeers)), denied: uint8(rng.IntN(2) * rng.IntN(9))}
				if !some(4) {
					k.hear(grain(), wide()|1, wide()|1, rng.Int64N(1<<62))
				}
				if some(2) {
					k.counted = 1 + rng.Int64N(1<<rng.IntN(56))
					k.countFrom = k.heard - rng.Int64N(1<<rng.IntN(40))*levelNanos
				}
				if some(2) {
					k.servedInc, k.servedSeq = k.inc, wide()
				} else if some(2) {
					k.servedInc, k.servedSeq = wide(), wide()
				}
				tk.dealings().levels = append(tk.trade.levels, k)
			}
		}
		if !b.packable(0) {
			t.Fatalf("step %d: not packable", step)
		}
		var r *recordFile
		p := r.appendPacked(nil, b)
		if id := r.packedName(p); id != b.id {
			t.Fatalf("step %d: name %x, want %x", step, id, b.id)
		}
		*got = bucket{spare: got.tokenMemory()} // with what the last one left there
		r.unpack(append(p, 0xee), got)
		if got.id != b.id || got.span != b.span || got.alg != b.alg || (got.tok == nil) != (b.tok == nil) {
			t.Fatalf("step %d: got %+v, want %+v", step, got, b)
		}
		if b.tok == nil {
			continue
		}
		gotTrade, wantTrade := got.tok.dealings(), b.tok.dealings()
		if !slices.Equal(gotTrade.out, wantTrade.out) || !slices.Equal(gotTrade.levels, wantTrade.levels) || len(gotTrade.in) > 0 || gotTrade.listed ||
			gotTrade.lost != wantTrade.lost || gotTrade.yieldTo != wantTrade.yieldTo {
			t.Fatalf("step %d: got %+v, want %+v", step, gotTrade, wantTrade)
		}
		g, w := *got.tok, *b.tok
		if g.trade, w.trade = nil, nil; g != w {
			t.Fatalf("step %d: got %+v, want %+v", step, g, w)
		}
	}
}

// What waits for an answer, or holds what others lent, stays in full form.
func TestPacked_TokensInUse(t *testing.T) {
	t.Parallel()
	const now = int64(5e9)
	for what, use := range map[string]func(b *bucket){
		"a loan from another": func(b *bucket) { b.tok.trade.in = append(b.tok.trade.in, lease{units: 1}) },
		"a loan to return":    func(b *bucket) { b.tok.trade.listed = true },
		"an ask under way":    func(b *bucket) { b.tok.trade.learn(1).askSeq, b.tok.trade.learn(1).askMono = 1, now-leaseNanos+1 },
		"a pause":             func(b *bucket) { b.tok.trade.learn(1).quietTo = now + 1 },
		"a pause of all":      func(b *bucket) { b.ask.quietTo = now + 1 },
		"a request that waits": func(b *bucket) {
			b.addWaiter(&waiter{}, 1)
		},
	} {
		b := &bucket{alg: TokenBucket, span: 60_000}
		b.makeTokens().dealings().learn(1)
		if !b.packable(now) {
			t.Fatal("a bucket left alone is not packable")
		}
		if use(b); b.packable(now) {
			t.Errorf("%s: packable", what)
		}
	}
}

// Whoever adds a field to what a bucket is made of has to say what becomes of it when the bucket is packed: kept by
// appendPacked and unpack, a reason for packable to say no, or reckoned anew.
func TestPacked_KnowsEveryField(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		of   any
		want string
	}{
		{bucket{}, "id span alg cell live dirty recent index kind listAt limit wins first rank know cells ask tok spare"},
		{window{}, "n used given received cells slot lost vague audited refused"},
		{cell{}, "value inc peer out"},
		{counters{}, "n used prevUsed base net charge limit inc seq quietTo owing denied flags peer"},
		{ask{}, "peer inFlight n seq sentMono quietTo waiting queued waiters"},
		{tokens{}, "content frac at limit burst spent spentAt spentLimit highest due room filled birth generation counted countFrom trade"},
		{tokenTrade{}, "in out levels listed lost yieldTo"},
		{lease{}, "units end inc seq peer"},
		{level{}, "content heard inc seq askSeq askMono askSent askWant askSilent servedInc servedSeq quietTo counted countFrom denied peer"},
	} {
		var fields []string
		kind := reflect.TypeOf(c.of)
		for i := range kind.NumField() {
			fields = append(fields, kind.Field(i).Name)
		}
		if got := strings.Join(fields, " "); got != c.want {
			t.Errorf("%s has the fields %q, its packed form knows of %q", kind, got, c.want)
		}
	}
}
