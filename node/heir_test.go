package node

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"sluice/limiter"
)

// Parts get lost, come twice, and a sender begins anew: what is stored is whole, and stored once.
func TestHeir_TakesPartsInOrder(t *testing.T) {
	t.Parallel()
	data, err := openDataDir(filepath.Join(t.TempDir(), "data"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer data.close()
	stored := 0
	var got []byte
	var fails error
	h, err := newHeir(data, func(leaver string, list [32]byte, r io.Reader) error {
		if fails != nil {
			return fails
		}
		stored++
		got, err = io.ReadAll(r)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	for round := range 50 {
		whole := make([]byte, rng.IntN(500))
		for i := range whole {
			whole[i] = byte(rng.Uint32())
		}
		list := sha256.Sum256(append(slices.Clone(whole), byte(round)))
		stored, got = 0, nil
		var offset int64
		for steps := 0; ; steps++ {
			if steps > 10_000 {
				t.Fatalf("seed %d, round %d: no end", seed, round)
			}
			n := min(int64(rng.IntN(100)), int64(len(whole))-offset)
			reply, err := h.take("nod_a", bequestPart{list: list, offset: offset, total: int64(len(whole)), data: whole[offset : offset+n]})
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if reply.Stored {
				break
			}
			switch rng.IntN(10) {
			case 0: // the answer is lost: the same part again
			case 1:
				offset = 0 // a sender that was started again
			case 2:
				offset = int64(rng.IntN(len(whole) + 1)) // one that is wrong
			default:
				offset = reply.Have
			}
		}
		if stored != 1 || !bytes.Equal(got, whole) {
			t.Fatalf("seed %d, round %d: stored %d times, %d of %d bytes", seed, round, stored, len(got), len(whole))
		}
		again, err := h.take("nod_a", bequestPart{list: list, offset: 0, total: int64(len(whole)), data: whole})
		if err != nil || !again.Stored || stored != 1 {
			t.Errorf("seed %d: a repeated part: %+v, %v, stored %d times", seed, again, err, stored)
		}
	}
	for _, test := range []struct {
		err     error
		refused bool
	}{{limiter.ErrLeaving, true}, {limiter.ErrBequest, true}, {errors.New("disk"), false}} {
		fails = test.err
		var refused *refusedError
		if _, err := h.take("nod_b", bequestPart{total: 1, data: []byte{1}}); err == nil || errors.As(err, &refused) != test.refused {
			t.Errorf("%v: got %v", test.err, err)
		}
	}
}
