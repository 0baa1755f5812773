package limiter

import (
	"testing"
	"time"
)

// While the machine is suspended Go's monotonic clock stands still; the wall clock and the one since boot go on.
func TestRunningClock_CountsSuspension(t *testing.T) {
	t.Parallel()
	const hour = int64(time.Hour)
	wall, mono, boot := int64(1_700_000_000e9), int64(0), int64(77e9)
	asked := 0
	c := &runningClock{mono: func() int64 { return mono }, boot: func() int64 { asked++; return boot }}
	c.start(wall)
	pass := func(d int64) { wall, mono, boot = wall+d, mono+d, boot+d }
	want := func(what string, at int64) {
		t.Helper()
		if got := c.at(wall, mono); got != at {
			t.Errorf("%s: %v since the start, want %v", what, time.Duration(got), time.Duration(at))
		}
	}
	pass(hour)
	want("an hour", hour)
	if asked != 1 {
		t.Errorf("the system was asked %d times though nothing happened, want once at the start", asked)
	}
	wall, boot = wall+5*hour, boot+5*hour // asleep
	want("after five hours asleep", 6*hour)
	pass(hour)
	want("an hour later", 7*hour)
	wall -= 3 * hour // a step of the clock is no sleep
	want("after a step back", 7*hour)
	wall += 4 * hour
	want("after a step forward", 7*hour)
	boot, wall = boot+hour, wall+hour
	want("asleep again", 8*hour)
}

func TestRunningClock_System(t *testing.T) {
	t.Parallel()
	c := newRunningClock()
	before := c.at(c.split(time.Now()))
	if d := c.at(c.split(time.Now())) - before; before < 0 || d < 0 || d > int64(time.Minute) {
		t.Errorf("read %v, and then %v later", time.Duration(before), time.Duration(d))
	}
}
