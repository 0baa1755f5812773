package authapi

import (
	"errors"
	"os"
	"sync"
	"time"
)

// deadline is one direction's deadline of a connection. Setting the system's takes as long as a small decision, and the
// HTTP library sets three for each request, nearly all of which only put off what is never reached. So a later deadline is only noted: when
// the one before passes, what timed out goes on until the later one. An earlier one is set at once, and wakes who waits.
// Safe for concurrent use.
type deadline struct {
	mu sync.Mutex
	// want is what was asked for, set what the connection has: never later than want. Zero is none.
	want, set time.Time
}

// change sets a deadline by way of apply, where it must be.
func (d *deadline) change(to time.Time, apply func(time.Time) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.want = to
	if !later(d.set, to) {
		return nil
	}
	if err := apply(to); err != nil {
		return err
	}
	d.set = to
	return nil
}

// later says whether a is a later deadline than b.
func later(a, b time.Time) bool { return !b.IsZero() && (a.IsZero() || a.After(b)) }

// extended says whether what ended with err, by a deadline, is to go on: the deadline that was asked for last is later, and
// is set now.
func (d *deadline) extended(err error, apply func(time.Time) error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.want.IsZero() && !d.want.After(time.Now()) {
		return false
	}
	if apply(d.want) != nil {
		return false
	}
	d.set = d.want
	return true
}
