package limiter

import (
	"sync/atomic"
	"time"
)

// runningClock is a monotonic clock that also counts the time in which the machine is suspended: a lease that ran out
// meanwhile must not be used on. Go's monotonic clock stands still then, and the system's other one costs a
// system call. But a suspension moves the wall clock against Go's, as a step does: only then is the system asked again.
type runningClock struct {
	boot    func() int64 // nanoseconds since the machine started, suspension counted; 0 where the system cannot tell
	mono    func() int64 // nanoseconds by Go's monotonic clock since the start
	started time.Time
	offset  int64 // boot less mono at the start
	state   atomic.Pointer[clockState]
}

// clockState is what was found when the clocks were last compared.
type clockState struct {
	ahead int64 // the wall clock less Go's monotonic clock
	slept int64 // by how much Go's clock fell behind since the start
}

// clockShift is by how much the wall clock may move against Go's before the system is asked: a thousandth of a lease.
const clockShift = int64(1e6)

func newRunningClock() *runningClock {
	c := &runningClock{boot: sinceBoot, started: time.Now()}
	c.mono = func() int64 { return int64(time.Since(c.started)) }
	c.start(c.started.UnixNano())
	return c
}

func (c *runningClock) start(wall int64) {
	mono := c.mono() // before boot: time that passes between the two is no sleep
	c.offset = c.boot() - mono
	c.state.Store(&clockState{ahead: wall})
}

// split gives both parts of a reading of time.Now.
func (c *runningClock) split(now time.Time) (wall, mono int64) {
	return now.UnixNano(), int64(now.Sub(c.started))
}

// at gives the nanoseconds since the start for a reading of both clocks.
func (c *runningClock) at(wall, mono int64) int64 {
	s := c.state.Load()
	if d := wall - mono - s.ahead; d > clockShift || d < -clockShift {
		s = c.compare(wall, mono, s)
	}
	return mono + s.slept
}

func (c *runningClock) compare(wall, mono int64, s *clockState) *clockState {
	next := &clockState{ahead: wall - mono, slept: s.slept}
	// The two are not read at the same moment: what is less than that counts as nothing.
	if b := c.boot(); b != 0 {
		if slept := b - c.mono() - c.offset; slept > s.slept+clockShift {
			next.slept = slept
		}
	}
	c.state.CompareAndSwap(s, next)
	return next
}
