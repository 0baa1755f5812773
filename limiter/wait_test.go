package limiter

import (
	"testing"
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
