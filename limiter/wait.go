package limiter

import (
	"sync/atomic"
	"time"
)

const (
	// maxWait is how long a request waits for shares at most. What the promised bound, waitBound, has beyond it is for a
	// processor that somebody else has when the time is up.
	maxWait   = 12 * time.Millisecond
	waitBound = 20 * time.Millisecond
	// latenessHalves is after how long without another late waiter half the lateness is forgotten.
	latenessHalves = 50 * time.Millisecond
)

// waitSlot is a waiter with what the shell needs to wait.
type waitSlot struct {
	waiter
	timer *time.Timer
}

func stoppedTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// lateness is how late waiters have been woken of late: on a machine without a processor to spare, a timer, and the goroutine
// that it wakes, come many milliseconds after their time. The greatest counts, halved every latenessHalves.
type lateness struct{ nanos, at atomic.Int64 }

func (l *lateness) note(mono int64, late time.Duration) {
	if late > l.now(mono) {
		l.nanos.Store(int64(late))
		l.at.Store(mono)
	}
}

func (l *lateness) now(mono int64) time.Duration {
	return time.Duration(l.nanos.Load() >> min(max(mono-l.at.Load(), 0)/int64(latenessHalves), 62))
}

// patience is how long a request may wait, so that its answer comes within waitBound even if it is woken twice as late as
// others were: not at all, where they were late by half of that.
func patience(late time.Duration) time.Duration {
	return min(maxWait, waitBound-2*late)
}

// wait looks again whenever something came in, and every few milliseconds for what was lost, until the time is up.
func (l *Limiter) wait(charges []Charge, verdicts []Verdict, slot *waitSlot) Outcome {
	most := patience(l.lateness.now(l.instant().mono))
	if most <= 0 {
		l.waitsSkipped.Add(1)
		return l.decide(charges, verdicts, slot)
	}
	l.waits.Add(1)
	began := time.Now()
	outcome, pending := Refused, true
	for pending {
		waited := time.Since(began)
		left := most - waited
		if left > 0 {
			next := min(left, time.Duration(askAgainNanos))
			slot.timer.Reset(next)
			select {
			case <-slot.ch:
				slot.timer.Stop()
			case <-slot.timer.C:
				l.lateness.note(l.instant().mono, time.Since(began)-waited-next)
			}
		}
		if left <= 0 {
			l.timeouts.Add(1)
			outcome, pending = l.decide(charges, verdicts, slot), false
		} else {
			outcome, pending = l.again(charges, verdicts, slot, &slot.waiter)
		}
	}
	for i := range verdicts {
		verdicts[i].Waited = true
	}
	l.waitTimes.observe(time.Since(began))
	return outcome
}

// decide ends a wait with what can be had now.
func (l *Limiter) decide(charges []Charge, verdicts []Verdict, slot *waitSlot) Outcome {
	outcome, _ := l.again(charges, verdicts, slot, nil)
	return outcome
}

// again takes a waiter out of its queues and looks anew; pending says that w stands in them again.
func (l *Limiter) again(charges []Charge, verdicts []Verdict, slot *waitSlot, w *waiter) (outcome Outcome, pending bool) {
	l.ledger.leave(&slot.waiter, charges)
	select { // it may have been woken while its timer went off
	case <-slot.ch:
	default:
	}
	var out outbox
	outcome, pending = l.ledger.take(l.instant(), charges, verdicts, w, &out)
	l.flush(&out)
	return outcome, pending
}
