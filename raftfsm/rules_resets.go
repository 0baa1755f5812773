package raftfsm

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/dgraph-io/badger/v4"

	"sluice/raftfsm/state"
)

// Bounds on resets, part of the rules as those in rules.go are.
const (
	bucketSize      = 16
	maxResetTargets = 64
	// maxResets are kept at most; beyond manyResets the oldest are handed back to their first names.
	maxResets  = 4096
	manyResets = 2048
	// maxWindow is the limiter's longest window in seconds, which stands in for one that is not known.
	maxWindow = 2_678_400
	// resetSlack is for clocks: how much longer than its windows can count a reset is kept, in milliseconds.
	resetSlack = 24 * 60 * 60 * 1000
)

// resetBucket gives each bucket a new generation.
//
// A generation cannot just be forgotten: its bucket would count from nothing once more, in the middle of a window and on
// each node at another time. So an old one is handed back first: from the windows that begin at or after the
// present horizon on the first name counts again, which every node that may act in such a window knows, as with rosters.
// It is dropped once no window before those can count. The horizon is the clock here: the proposer's may be wrong.
func resetBucket(b *batch, c state.ResetBucket) state.Result {
	if len(c.Buckets) == 0 || len(c.Buckets) > maxResetTargets {
		return refuse(state.CodeInvalid)
	}
	now := loadLimiter(b).Horizon
	at := c.At
	if now > 0 {
		at = min(at, now) // a clock in the future must not make a reset last for ever
	}
	fresh := make(map[string]*state.Reset, len(c.Buckets))
	for i := range c.Buckets {
		t := &c.Buckets[i]
		name := string(t.Bucket)
		if len(name) != bucketSize || fresh[name] != nil || len(t.Policy) > maxName || t.Window < 0 || t.Window > maxWindow {
			return refuse(state.CodeInvalid)
		}
		fresh[name] = &state.Reset{
			Bucket: t.Bucket, Generation: b.at.index, At: at, Policy: t.Policy, Algorithm: t.Algorithm, Window: t.Window,
		}
	}
	var kept []*state.Reset
	for _, r := range b.scan([]byte{prefixReset}, nil, maxResets+1) {
		old := new(state.Reset)
		if err := state.Unmarshal(r.value, old); err != nil {
			b.fail(fmt.Errorf("decode state: record %q: %w", r.key, err))
			return state.Result{}
		}
		again := fresh[string(old.Bucket)]
		switch {
		case again != nil:
			again.Earlier = max(old.Until, old.Earlier)
		case old.Until != 0 && old.Until+counts(old) < now:
			b.delete(r.key)
		default:
			kept = append(kept, old)
		}
	}
	total := len(kept) + len(c.Buckets)
	if total > maxResets {
		return refuse(state.CodeTooManyResets)
	}
	handBack(b, kept, total-manyResets, now)
	for _, t := range c.Buckets {
		b.store(key1(prefixReset, string(t.Bucket)), fresh[string(t.Bucket)])
	}
	b.announce, b.rename = true, true
	audit(b, c.Audit)
	return state.Result{Count: len(c.Buckets)}
}

// counts is how long after its beginning a window of r's bucket can matter: its own length, that of the one after it, and
// some time for clocks.
func counts(r *state.Reset) int64 {
	window := r.Window
	if window == 0 {
		window = maxWindow
	}
	return 2*window*1000 + resetSlack
}

// handBack ends up to count of the resets that no window from before them needs any more, the oldest first, at the horizon
// now. Only buckets that count by windows have an end to give: algorithms 1 and 2.
func handBack(b *batch, resets []*state.Reset, count int, now int64) {
	if count <= 0 {
		return
	}
	slices.SortStableFunc(resets, func(x, y *state.Reset) int { return cmp.Compare(x.Generation, y.Generation) })
	for _, r := range resets {
		if count == 0 {
			return
		}
		if r.Until != 0 || r.At+counts(r) >= now || r.Algorithm != 1 && r.Algorithm != 2 {
			continue
		}
		r.Until = now
		b.store(key1(prefixReset, string(r.Bucket)), r)
		count--
	}
}

// readResets reads all resets, by the buckets' names.
func readResets(txn *badger.Txn) ([]state.Reset, error) {
	options := badger.DefaultIteratorOptions
	options.Prefix = []byte{prefixReset}
	iterator := txn.NewIterator(options)
	defer iterator.Close()
	var resets []state.Reset
	for iterator.Rewind(); iterator.Valid(); iterator.Next() {
		var r state.Reset
		if err := iterator.Item().Value(func(value []byte) error { return state.Unmarshal(value, &r) }); err != nil {
			return nil, fmt.Errorf("read resets: %w", err)
		}
		resets = append(resets, r)
	}
	return resets, nil
}
