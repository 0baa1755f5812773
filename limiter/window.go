package limiter

import "math/bits"

// Greatest values that the ledger reckons with. They leave room for every sum below in an int64.
const (
	maxLimit  = int64(1e12)
	maxWindow = int64(2_678_400)
	maxCost   = maxLimit
)

// grains is what a unit is made of. The ledger counts in grains, so that nodes can put together the parts of a unit that slid
// out on each: with whole units each would round up alone, and a limit of 3 on three nodes would get none of them back
// before the window's end.
const grains = 1000

// coarse says whether grains of a limit over nodes are not worth moving: rounding costs less than half a per cent.
func coarse(limit int64, nodes int) bool { return limit >= 128*int64(nodes) }

// whole rounds grains down to whole units.
func whole(g int64) int64 { return g - g%grains }

// instant is one reading of the clocks: Unix milliseconds, which windows go by, and monotonic nanoseconds, which
// token buckets and the ages of asks go by. The latter count while the machine is suspended.
type instant struct {
	ms   int64
	mono int64
}

// span is a window length in milliseconds.
type span int64

// at is the number of the window that holds ms.
func (w span) at(ms int64) int64 {
	n := ms / int64(w)
	if ms%int64(w) < 0 {
		n--
	}
	return n
}

func (w span) begin(n int64) int64 { return n * int64(w) }
func (w span) end(n int64) int64   { return (n + 1) * int64(w) }

// inView is how many of the window's milliseconds of window n−1 a sliding window still sees at ms, reckoned in window n:
// all before n begins, none after it ends.
func (w span) inView(n, ms int64) int64 {
	return min(max(w.end(n)-ms, 0), int64(w))
}

// weigh is ⌈w · charge⌉ with w the part of window n−1 still in view at ms.
func (w span) weigh(charge, n, ms int64) int64 {
	if charge < 0 { // only with a safeguard switched off
		return -mulFloor(-charge, w.inView(n, ms), int64(w))
	}
	return mulCeil(charge, w.inView(n, ms), int64(w))
}

// unweigh is the greatest charge that weighs at most units, or -1 where every charge does.
func (w span) unweigh(units, n, ms int64) int64 {
	v := w.inView(n, ms)
	if v == 0 {
		return -1
	}
	return mulFloor(units, int64(w), v)
}

// mulCeil is ⌈a·b/c⌉ and mulFloor ⌊a·b/c⌋, for a, b ≥ 0 and c > 0, where the quotient fits.
func mulCeil(a, b, c int64) int64 {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	lo, carry := bits.Add64(lo, uint64(c-1), 0)
	q, _ := bits.Div64(hi+carry, lo, uint64(c))
	return int64(q)
}

func mulFloor(a, b, c int64) int64 {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	if hi >= uint64(c) {
		return 1<<63 - 1
	}
	q, _ := bits.Div64(hi, lo, uint64(c))
	return int64(min(q, 1<<63-1))
}
