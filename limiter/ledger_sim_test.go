package limiter

import (
	"flag"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

var (
	simSeed      = flag.Uint64("limiter.seed", 0, "run this one schedule of the simulator and print it")
	simSchedules = flag.Int("limiter.schedules", 4000, "number of schedules for the simulator")
)

// runSchedules runs seeds from 1 on and returns the first that fails, 0 for none.
func runSchedules(count int, opts func(seed uint64) simOptions) (failed uint64, failure string, admitted int64) {
	var next, total atomic.Int64
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				seed := uint64(next.Add(1))
				mu.Lock()
				stop := failed != 0
				mu.Unlock()
				if stop || seed > uint64(count) {
					return
				}
				s := newSim(seed, opts(seed))
				s.run()
				total.Add(int64(s.admitted))
				if s.failure != "" {
					mu.Lock()
					if failed == 0 || seed < failed {
						failed, failure = seed, s.failure
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return failed, failure, total.Load()
}

func TestLedger_NeverOver(t *testing.T) {
	t.Parallel()
	if *simSeed != 0 {
		s := newSim(*simSeed, randomOptions(*simSeed))
		s.tracing = true
		s.run()
		t.Logf("%+v\n%s", s.opt, strings.Join(s.trace, "\n"))
		if s.failure != "" {
			t.Fatal(s.failure)
		}
		return
	}
	count := *simSchedules
	if raceEnabled {
		count /= 20
	}
	seed, failure, admitted := runSchedules(count, randomOptions)
	if seed != 0 {
		t.Fatalf("schedule %d: %s\nagain: %s -test.run NeverOver -limiter.seed %d -test.v", seed, failure, os.Args[0], seed)
	}
	t.Logf("%d schedules, %d admissions", count, admitted)
	if admitted < int64(count)*10 {
		t.Fatalf("only %d admissions in %d schedules: the simulator tests nothing", admitted, count)
	}
}

// Each safeguard is missed when it is switched off: the simulator can see what it looks for.
func TestLedger_SafeguardsMatter(t *testing.T) {
	t.Parallel()
	if raceEnabled || testing.Short() {
		t.Skip("tests the simulator, not the ledger; slow with the race detector")
	}
	for name, off := range map[string]func(*ledger){
		"signed charge":               func(l *ledger) { l.unsafeSigned = true },
		"growth not charged":          func(l *ledger) { l.unsafeNoGrowth = true },
		"one window only":             func(l *ledger) { l.unsafeOneWindow = true },
		"windows before the start":    func(l *ledger) { l.unsafeForget = true },
		"cells of any incarnation":    func(l *ledger) { l.unsafeAnyInc = true },
		"answer before the debit":     func(l *ledger) { l.unsafeLateDebit = true },
		"newest roster, no horizon":   func(l *ledger) { l.unsafeNewest = true },
		"charge of what was used":     func(l *ledger) { l.unsafeUsedCharge = true },
		"no record of what was spent": func(l *ledger) { l.unsafeNoRecord = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seed, failure, _ := runSchedules(30_000, func(seed uint64) simOptions {
				o := randomOptions(seed)
				o.unsafely = off
				return o
			})
			if seed == 0 {
				t.Fatal("no schedule misses it")
			}
			t.Logf("schedule %d: %s", seed, failure)
		})
	}
}
