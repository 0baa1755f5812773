package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// impatience is how long after the first signal a second one counts as one of its own: a terminal, a supervisor and a
// wrapper may each pass on the same Ctrl-C.
const impatience = time.Second

// untilSignal returns a context that ends with the first SIGINT or SIGTERM, and a channel that is closed on a later one
// by a user who will not wait. stop releases what it holds.
func untilSignal(parent context.Context) (ctx context.Context, again <-chan struct{}, stop func()) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	later := make(chan struct{})
	done := make(chan struct{})
	go func() {
		var first time.Time
		for {
			select {
			case <-done:
				return
			case <-signals:
			}
			if first.IsZero() {
				first = time.Now()
				cancel()
			} else if time.Since(first) >= impatience {
				close(later)
				return
			}
		}
	}()
	return ctx, later, func() {
		signal.Stop(signals)
		close(done)
		cancel()
	}
}
