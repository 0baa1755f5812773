package limiter

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

func explain(t *testing.T, l *Limiter, rule Rule, subject string) Explanation {
	t.Helper()
	e, ok := l.Explain(l.Bucket("p", rule, []byte(subject)), rule)
	if !ok {
		t.Fatal("no explanation")
	}
	return e
}

func explainAll(t *testing.T, c *testCluster, rule Rule, subject string) (parts []Explanation) {
	t.Helper()
	for i := range c.names {
		parts = append(parts, explain(t, c.node(i), rule, subject))
	}
	return parts
}

// What the nodes say adds up: shares to the limit, what was spent to what passed, what was given to what was received.
func TestExplain_AddsUp(t *testing.T) {
	t.Parallel()
	for _, alg := range []Algorithm{FixedWindow, SlidingWindow} {
		c := openCluster(t, 3, nil)
		rule := Rule{Limit: 10, Window: 3600, Algorithm: alg}
		e := explain(t, c.node(0), rule, "s")
		if e.Known || e.Base < 3000 || e.Base > 4000 || e.Room != e.Base || e.NextMillis != testStart || e.RosterIndex != 1 {
			t.Errorf("before any request: %+v", e)
		}
		for i := range 10 {
			if o, _ := takePatient(c.node(0), rule, "s", 1); o != Admitted {
				t.Fatalf("request %d: outcome %d", i, o)
			}
		}
		waitFor(t, "the news", func() error {
			for i := range c.names {
				if o, v := take(c.node(i), rule, "s", 1); o != Refused || v.Waited {
					return fmt.Errorf("node %d: outcome %d, waited %v", i, o, v.Waited)
				}
			}
			return nil
		})
		parts := explainAll(t, c, rule, "s")
		var base, used, given, received Milli
		for i, e := range parts {
			base, used, given, received = base+e.Base, used+e.Used, given+e.Given, received+e.Received
			var cells Milli
			for _, cell := range e.Cells {
				if cell.Given {
					cells += cell.Units
				} else {
					cells -= cell.Units
				}
			}
			if cells != e.Given-e.Received || e.Room != e.Base-e.Used-e.Given+e.Received {
				t.Errorf("node %d: %+v", i, e)
			}
			if e.Refusal == nil || e.Refusal.Reason != ReasonUsedUp || e.Refusal.AtMillis != testStart || e.Refusal.Cost != 1 {
				t.Errorf("node %d: refusal %+v", i, e.Refusal)
			}
			if e.BeginMillis > testStart || e.EndMillis-e.BeginMillis != 3_600_000 || e.Undecided != 0 || e.Shared || len(e.Peers) == 0 {
				t.Errorf("node %d: %+v", i, e)
			}
		}
		if base != 10_000 || used != 10_000 || given != received || given == 0 {
			t.Errorf("together: base %d, used %d, given %d, received %d", base, used, given, received)
		}
		sum := Sum(parts, 1)
		if sum.Used != 10_000 || sum.UsedBefore != 0 || sum.Remaining != 0 {
			t.Errorf("sum %+v", sum)
		}
		next := sum.NextMillis
		if next <= testStart {
			t.Fatalf("next at %d", next)
		}
		// It holds: a moment before nobody admits, and then somebody does.
		for _, at := range []int64{next - 1, next} {
			c.state.HorizonMillis = next + 3_600_000
			for i := range c.names {
				c.node(i).SetState(c.state)
			}
			c.move(t, at)
			passed := 0
			for i := range c.names {
				if o, _ := takePatient(c.node(i), rule, "s", 1); o == Admitted {
					passed++
				}
			}
			if (passed > 0) != (at == next) {
				t.Errorf("algorithm %d, %d ms after what was said: %d passed", alg, at-next, passed)
			}
		}
	}
}

func TestExplain_Reasons(t *testing.T) {
	t.Parallel()
	c := openCluster(t, 2, nil)
	rule := Rule{Limit: 4, Window: 3600, Algorithm: FixedWindow}
	reason := func(i int, subject string) Reason {
		t.Helper()
		if e := explain(t, c.node(i), rule, subject); e.Refusal != nil {
			return e.Refusal.Reason
		}
		return 0
	}
	if take(c.node(0), rule, "dear", 5); reason(0, "dear") != ReasonCost {
		t.Errorf("cost above the limit: %s", reason(0, "dear"))
	}
	if got := reason(1, "dear"); got != 0 {
		t.Errorf("another node: %s", got)
	}
	// The other node's answers are lost.
	c.mu.Lock()
	c.loss = 100
	c.mu.Unlock()
	for range 3 {
		take(c.node(0), rule, "cut", 1)
	}
	if got := reason(0, "cut"); got != ReasonWait && got != ReasonSilent {
		t.Errorf("waited in vain: %s", got)
	}
	e := explain(t, c.node(0), rule, "cut")
	if len(e.Peers) != 1 || !e.Peers[0].Owing || e.Peers[0].Peer != "node-1" {
		t.Errorf("peers %+v", e.Peers)
	}
	c.clock.ms.Store(c.state.HorizonMillis + 3_600_000)
	waitFor(t, "the mark", func() error {
		if o, _ := take(c.node(0), rule, "beyond", 1); o != Undecided {
			return fmt.Errorf("outcome %d", o)
		}
		if got := reason(0, "beyond"); got != ReasonHorizon {
			return errors.New(got.String())
		}
		return nil
	})
	if e := explain(t, c.node(0), rule, "beyond"); e.Undecided != ReasonHorizon || e.NextMillis != 0 {
		t.Errorf("beyond the horizon: %+v", e)
	}
	if got := Sum(explainAll(t, c, rule, "beyond"), 1).NextMillis; got != 0 {
		t.Errorf("nobody can decide, and yet the next passes at %d", got)
	}
	for why, text := range reasonTexts {
		if why.String() != text || Reason(99).String() != "unknown" {
			t.Errorf("reason %d is %q", why, why)
		}
	}
}

// By name alone a node tells what it counts by; after a reset it shows the new generation.
func TestExplain_ByNameAndAfterReset(t *testing.T) {
	t.Parallel()
	c := openCluster(t, 1, nil)
	rule := Rule{Limit: 4, Window: 3600, Algorithm: SlidingWindow}
	l := c.node(0)
	id := l.Bucket("p", rule, []byte("s"))
	if _, ok := l.Explain(id, Rule{}); ok {
		t.Error("a bucket that nobody counts in is explained")
	}
	take(l, rule, "s", 3)
	e, ok := l.Explain(id, Rule{})
	if !ok || e.Rule != rule || e.Used != 3000 || e.Generation != 0 {
		t.Errorf("by its name: %+v", e)
	}
	c.resetOn(id, 77, 1)
	if e, ok := l.Explain(id, Rule{}); !ok || e.Used != 3000 || e.Generation != 0 && e.Known {
		t.Logf("before the new generation is used: %+v", e)
	}
	if e, _ := l.Explain(id, rule); e.Generation != 77 || e.Known || e.Used != 0 || e.Room != 4000 {
		t.Errorf("reset: %+v", e)
	}
	take(l, rule, "s", 1)
	if e, _ := l.Explain(id, Rule{}); e.Generation != 77 || e.Used != 1000 || e.Bucket != id {
		t.Errorf("used after the reset: %+v", e)
	}
	for _, bad := range []Rule{{Limit: 1, Window: -1, Algorithm: FixedWindow}, {Limit: -1, Window: 60, Algorithm: FixedWindow}, {Limit: 1, Window: 60, Algorithm: 99}, {Limit: 1, Window: maxWindow + 1, Algorithm: FixedWindow}} {
		if _, ok := l.Explain(id, bad); ok {
			t.Errorf("rule %+v is explained", bad)
		}
	}
}

func TestExplain_OverflowCell(t *testing.T) {
	t.Parallel()
	c := openCluster(t, 1, func(_ int, cfg *Config) { cfg.MaxBuckets = 64 })
	rule := Rule{Limit: 2, Window: 3600, Algorithm: FixedWindow}
	for i := range 3000 {
		subject := fmt.Sprint(i)
		o, _ := take(c.node(0), rule, subject, 1)
		if o != Refused {
			continue
		}
		if e := explain(t, c.node(0), rule, subject); !e.Shared || e.Refusal == nil || e.Refusal.Reason != ReasonOverflow || e.Used != 2000 {
			t.Errorf("%+v, refusal %+v", e, e.Refusal)
		}
		return
	}
	t.Fatal("no bucket overflowed")
}

func TestExplain_WhileWaiting(t *testing.T) {
	t.Parallel()
	c := openCluster(t, 2, func(_ int, cfg *Config) { cfg.GossipInterval = time.Hour })
	rule := Rule{Limit: 2, Window: 3600, Algorithm: FixedWindow}
	take(c.node(0), rule, "s", 1)
	c.mu.Lock()
	c.loss = 100
	c.mu.Unlock()
	var over atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !over.Load() { // many of these do not wait: the peer does not answer, or the processor is too busy
			take(c.node(0), rule, "s", 1)
		}
	}()
	seen := false
	for deadline := time.Now().Add(time.Minute); !seen && time.Now().Before(deadline); {
		if e := explain(t, c.node(0), rule, "s"); e.Ask != nil && e.Ask.Waiting == 1 {
			if e.Ask.Peer != "node-1" || e.Ask.Units != 1000 || e.Ask.AgeMillis < 0 {
				t.Errorf("ask %+v", e.Ask)
			}
			seen = true
		}
	}
	over.Store(true)
	<-done
	if !seen {
		t.Error("no waiting request was seen")
	}
}
