package authtest

import (
	"encoding/binary"
	"hash/maphash"
	"sync"
	"sync/atomic"

	"sluice/limiter"
)

// Limits is a limiter of one node: it counts what each bucket admitted in the present window, whatever the algorithm.
// Safe for concurrent use.
type Limits struct {
	clock *Clock
	seed  maphash.Seed
	// Undecided makes every decision limiter.Undecided, as on a node whose horizon has passed.
	Undecided atomic.Bool
	// WouldWait makes TryTake leave every decision to Take.
	WouldWait atomic.Bool

	mu      sync.Mutex
	used    map[limiter.BucketID]counter
	refunds int64
}

type counter struct{ window, units int64 }

// NewLimits makes a limiter that reads its time from clock.
func NewLimits(clock *Clock) *Limits {
	return &Limits{clock: clock, seed: maphash.MakeSeed(), used: map[limiter.BucketID]counter{}}
}

// Bucket implements authapi.Limits.
func (l *Limits) Bucket(policy string, rule limiter.Rule, subject []byte) limiter.BucketID {
	var h maphash.Hash
	h.SetSeed(l.seed)
	h.WriteString(policy)
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], uint64(rule.Window)<<8|uint64(rule.Algorithm))
	h.Write(n[:])
	h.Write(subject)
	var id limiter.BucketID
	binary.LittleEndian.PutUint64(id[:], h.Sum64())
	h.WriteByte(1)
	binary.LittleEndian.PutUint64(id[8:], h.Sum64())
	return id
}

// Take implements authapi.Limits.
func (l *Limits) Take(charges []limiter.Charge, verdicts []limiter.Verdict) limiter.Outcome {
	l.mu.Lock()
	defer l.mu.Unlock()
	outcome := limiter.Admitted
	for i, c := range charges {
		verdicts[i] = l.verdictLocked(c)
		outcome = max(outcome, verdicts[i].Outcome)
	}
	if outcome != limiter.Admitted {
		return outcome
	}
	for i, c := range charges {
		u := l.used[c.Bucket]
		if w := l.window(c.Rule); u.window != w {
			u = counter{window: w}
		}
		u.units += c.Cost
		l.used[c.Bucket] = u
		verdicts[i].Remaining -= c.Cost
	}
	return outcome
}

// TryTake implements authapi.Limits.
func (l *Limits) TryTake(charges []limiter.Charge, verdicts []limiter.Verdict) (limiter.Outcome, bool) {
	if l.WouldWait.Load() {
		return limiter.Refused, true
	}
	return l.Take(charges, verdicts), false
}

// Peek implements authapi.Limits.
func (l *Limits) Peek(c limiter.Charge) limiter.Verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.verdictLocked(c)
}

// Refund implements authapi.Limits.
func (l *Limits) Refund(charges []limiter.Charge) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range charges {
		u := l.used[c.Bucket]
		u.units = max(u.units-c.Cost, 0)
		l.used[c.Bucket] = u
		l.refunds += c.Cost
	}
}

// Refunded is how many units were given back so far.
func (l *Limits) Refunded() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refunds
}

// Reset forgets everything that was spent.
func (l *Limits) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.used)
}

func (l *Limits) window(r limiter.Rule) int64 { return l.clock.Now().Unix() / r.Window }

func (l *Limits) verdictLocked(c limiter.Charge) limiter.Verdict {
	w := l.window(c.Rule)
	v := limiter.Verdict{Outcome: limiter.Admitted, Limit: c.Rule.Limit, ResetAt: (w + 1) * c.Rule.Window}
	if l.Undecided.Load() {
		v.Outcome = limiter.Undecided
		return v
	}
	used := int64(0)
	if u := l.used[c.Bucket]; u.window == w {
		used = u.units
	}
	v.Remaining = max(c.Rule.Limit-used, 0)
	if v.Remaining < c.Cost {
		v.Outcome = limiter.Refused
		v.RetryAfter = max(v.ResetAt-l.clock.Now().Unix(), 1)
	}
	return v
}
