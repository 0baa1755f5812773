package raftfsm_test

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"sluice/raftfsm"
	"sluice/raftfsm/state"
)

// The index against a map of lists, with many hashes that begin alike and ids that are no ULIDs among them.
func TestHashIndex_IsAMap(t *testing.T) {
	t.Parallel()
	const seed = 7
	random := rand.New(rand.NewPCG(seed, 0))
	x := raftfsm.NewHashIndex()
	model := map[string][]string{}
	hashes := make([]string, 3000)
	for i := range hashes {
		sum := sha256.Sum256([]byte{byte(i), byte(i >> 8)})
		switch i % 10 {
		case 0:
			copy(sum[:8], make([]byte, 8)) // the fingerprint that stands for a free slot
		case 1:
			binary.BigEndian.PutUint64(sum[:8], raftfsm.AtEnd(uint64(i%40))) // at the end of the table, and round it
		}
		sum[8] = byte(i % 3) // few shards, well filled
		hashes[i] = string(sum[:])
	}
	// Two hashes that begin alike share what is found; so does the model.
	same := func(hash string) string {
		return fmt.Sprint(max(binary.BigEndian.Uint64([]byte(hash)), 1), hash[8])
	}
	check := func(step int, hash string) {
		t.Helper()
		var got []string
		for {
			id, ok := x.Find([]byte(hash), len(got))
			if !ok {
				break
			}
			got = append(got, id)
		}
		want := slices.Clone(model[same(hash)])
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d, step %d: %x has %q, want %q", seed, step, hash, got, want)
		}
	}
	for step := range 60_000 {
		hash := hashes[random.IntN(len(hashes))]
		// Mostly growing, then mostly shrinking.
		if grow := step < 30_000; random.IntN(10) < 3 == grow || len(model[same(hash)]) > 1 {
			x.Remove([]byte(hash))
			if len(model[same(hash)]) == 1 {
				delete(model, same(hash))
			}
		} else {
			id := fmt.Sprintf("key_%026d", random.IntN(5))
			if random.IntN(50) == 0 {
				id = fmt.Sprintf("another form %d", random.IntN(5))
			}
			x.Add([]byte(hash), []byte(id))
			model[same(hash)] = append(model[same(hash)], id)
		}
		check(step, hash)
		check(step, hashes[random.IntN(len(hashes))])
	}
	for _, hash := range hashes {
		check(-1, hash)
	}
	for _, bad := range []string{"", "short", hashes[0] + "x"} {
		x.Add([]byte(bad), []byte("key_1"))
		x.Remove([]byte(bad))
		if _, ok := x.Find([]byte(bad), 0); ok {
			t.Errorf("%x is no hash and was found", bad)
		}
	}
}

// Every id comes back as it was, whichever form it has.
// After a start the index is filled in the order of the hashes.
func TestHashIndex_FilledInOrder(t *testing.T) {
	t.Parallel()
	x := raftfsm.NewHashIndex()
	const n = 20_000 // of one shard
	step := ^uint64(0) / n
	for i := range uint64(n) {
		hash := make([]byte, 32)
		binary.BigEndian.PutUint64(hash, i*step+i*i%step)
		x.Add(hash, fmt.Appendf(nil, "key_%026d", i))
		if longest := x.LongestSearch(); i%1000 == 999 && longest > 300 {
			t.Fatalf("after %d hashes in order one is found after %d slots", i+1, longest)
		}
	}
}

func TestHashIndex_Ids(t *testing.T) {
	t.Parallel()
	for i, id := range []string{
		"key_00000000000000000000000000", "key_7zzzzzzzzzzzzzzzzzzzzzzzzz", "key_01jqz3v7m8k2c5d9e4f6g7h8jn",
		"key_8zzzzzzzzzzzzzzzzzzzzzzzzz", // more than 128 bits
		"key_01JQZ3V7M8K2C5D9E4F6G7H8JN", "key_01jqz3v7m8k2c5d9e4f6g7h8ju", "usr_01jqz3v7m8k2c5d9e4f6g7h8jn", "key_1", "", "key_",
	} {
		x := raftfsm.NewHashIndex()
		hash := sha256.Sum256([]byte{byte(i)})
		x.Add(hash[:], []byte(id))
		if got, ok := x.Find(hash[:], 0); !ok || got != id {
			t.Errorf("%q came back as %q, %v", id, got, ok)
		}
	}
}

// Before the index is complete and after, in a state that was opened again and in one that was restored, the same keys are
// found; and the secrets of rotations, of which one is gone for good. All hashes here begin alike.
func TestKeyByHash_IndexedOrNot(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	f := open(t, dir)
	f.fsm.AwaitIndex(t)
	f.register("ada")
	const keys, rotated = 50, 7
	id := func(i int) string { return fmt.Sprintf("key_%02d%024d", i, 0) }
	for i := range keys {
		f.key(id(i), "ada", "*")
	}
	f.key("key_of_another_form", "ada", "*")
	secrets := []string{"secret " + id(rotated), "secret two", "secret three"}
	for i, secret := range secrets[1:] {
		f.must(state.RotateKey{KeyID: id(rotated), OldHash: hash(secrets[i]), NewHash: hash(secret), PreviousUntil: f.now + 1000, At: f.now, Actor: owner("ada")})
	}
	want := func(f *fixture, what string) {
		t.Helper()
		opens := func(secret, want string) {
			t.Helper()
			got := ""
			if key := get[*state.APIKey](t)(f.view.KeyByHash(hash32(secret))); key != nil {
				got = key.ID
			}
			if got != want {
				t.Errorf("%s: %q opens %q, want %q", what, secret, got, want)
			}
		}
		for i := range keys {
			if i != rotated {
				opens("secret "+id(i), id(i))
			}
		}
		opens("secret key_of_another_form", "key_of_another_form")
		opens(secrets[0], "")
		opens(secrets[1], id(rotated))
		opens(secrets[2], id(rotated))
		opens("secret of nobody", "")
	}
	want(f, "indexed as they came")
	f.fsm.Unindex()
	want(f, "not indexed")
	snapshot := takeSnapshot(t, f.fsm)
	if err := f.fsm.Close(); err != nil {
		t.Fatal(err)
	}
	f = open(t, dir)
	f.fsm.AwaitIndex(t)
	want(f, "opened again")
	f.must(state.RevokeKey{KeyID: id(1), At: f.now, Actor: owner("ada")})
	if err := f.fsm.Restore(reader(snapshot)); err != nil {
		t.Fatal(err)
	}
	f.fsm.AwaitIndex(t)
	want(f, "restored")
}

// Readers beside a writer: what was acknowledged is seen by every read that begins afterwards, whichever transaction it gets.
func TestView_SeesWhatWasAcknowledged(t *testing.T) {
	t.Parallel()
	f := fresh(t)
	f.register("ada")
	f.key("key_1", "ada", "*")
	var done atomic.Int64 // the newest change that was acknowledged
	var stop atomic.Bool
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for !stop.Load() {
				least := done.Load()
				auth, err := f.view.KeyAuth(hash32("secret key_1"))
				if err != nil || auth == nil {
					t.Errorf("read: %+v, %v", auth, err)
					return
				}
				if auth.Key.ExpiresAt < least {
					t.Errorf("change %d was acknowledged, and a read after it saw %d", least, auth.Key.ExpiresAt)
					return
				}
			}
		})
	}
	for i := int64(1); i <= 300; i++ {
		f.must(state.UpdateKey{KeyID: "key_1", ExpiresAt: &i, Actor: owner("ada")})
		done.Store(i)
	}
	stop.Store(true)
	readers.Wait()
}
