package limiter

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestPatience(t *testing.T) {
	t.Parallel()
	var l lateness
	start := int64(time.Hour)
	if got := patience(l.now(start)); got != maxWait {
		t.Errorf("nobody was late: waits %s, want %s", got, maxWait)
	}
	l.note(start, 6*time.Millisecond)
	l.note(start, 2*time.Millisecond) // the greatest counts
	if got := patience(l.now(start)); got != 8*time.Millisecond {
		t.Errorf("6 ms late: waits %s, want 8ms", got)
	}
	l.note(start, 11*time.Millisecond)
	if got := patience(l.now(start)); got > 0 {
		t.Errorf("11 ms late: waits %s, want not at all", got)
	}
	if got := patience(l.now(start + int64(latenessHalves))); got != 9*time.Millisecond {
		t.Errorf("11 ms late, half forgotten: waits %s, want 9ms", got)
	}
	if got := patience(l.now(start + int64(time.Hour))); got != maxWait {
		t.Errorf("an hour later: waits %s, want %s", got, maxWait)
	}
	if got := l.now(start - int64(time.Second)); got != 11*time.Millisecond {
		t.Errorf("read by one whose clock was read before: %s", got)
	}
}

// Whoever wants to wait starts the pulse, and it ends some time after the last one did.
func TestPulse_BeatsWhileWanted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		mono := func() int64 { return int64(time.Since(began)) + int64(time.Hour) }
		p := pulse{start: make(chan struct{}, 1)}
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			p.keep(stop, mono)
		}()
		is := func(beats bool, when string) {
			t.Helper()
			synctest.Wait()
			if p.beating.Load() != beats {
				t.Errorf("%s: beats %v, want %v", when, !beats, beats)
			}
		}
		is(false, "nobody wants")
		for range 3 {
			p.want(mono())
			is(true, "wanted")
			time.Sleep(pulseFor - pulseEvery)
			p.want(mono())
			time.Sleep(pulseFor - pulseEvery)
			is(true, "wanted again meanwhile")
			time.Sleep(2 * pulseEvery)
			is(false, "a second later")
		}
		p.want(mono())
		is(true, "before the end")
		close(stop)
		<-done
	})
}
