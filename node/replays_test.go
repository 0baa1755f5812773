package node

import (
	"encoding/binary"
	mathrand "math/rand/v2"
	"testing"
	"time"
)

func numbered(incarnation, sequence uint64) []byte {
	p := make([]byte, 34)
	p[0] = 1
	binary.LittleEndian.PutUint64(p[10:], incarnation)
	binary.LittleEndian.PutUint64(p[18:], sequence)
	return p
}

// Against a model that remembers everything: a packet comes again if it came before, or if it is older than the window.
func TestNumbers_AgainstModel(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	random := mathrand.New(mathrand.NewPCG(seed, 0))
	n := make(numbers)
	type number struct{ incarnation, sequence uint64 }
	seen, newest := map[number]bool{}, number{1, 1 << 20}
	first := true
	for step := range 200_000 {
		at := number{newest.incarnation, newest.sequence + uint64(random.IntN(8)) - 4}
		switch random.IntN(1000) {
		case 0:
			at.sequence += uint64(random.IntN(3 * numberWindow))
		case 1:
			at.sequence -= min(at.sequence, uint64(random.IntN(3*numberWindow)))
		case 2:
			at = number{newest.incarnation + 1, uint64(8 + random.IntN(1000))}
		case 3:
			at.incarnation--
		}
		want := seen[at]
		switch {
		case first:
			first, newest = false, at
		case at.incarnation < newest.incarnation, at.incarnation == newest.incarnation && at.sequence+numberWindow <= newest.sequence:
			want = true
		case at.incarnation > newest.incarnation || at.sequence > newest.sequence:
			newest = at
		}
		seen[at] = true
		if got := n.again("a", numbered(at.incarnation, at.sequence)); got != want {
			t.Fatalf("seed %d, step %d: %+v after %+v: %t, want %t", seed, step, at, newest, got, want)
		}
	}
	if n.again("b", numbered(newest.incarnation, newest.sequence)) {
		t.Error("another sender's number is taken for the first one's")
	}
	for range 2 {
		if n.again("a", []byte("no packet")) {
			t.Error("what has no number came again")
		}
	}
}
