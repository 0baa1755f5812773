package raftfsm

// Names for the tests in package raftfsm_test.

const AuditScan = auditScan

var Steps = []string{stepLoaded, stepSynced, stepSwitched}

// WithStep makes a restore call fn between its steps; an error is a crash there.
func WithStep(c Config, fn func(string) error) Config {
	c.step = fn
	return c
}

// WithBoot makes the machine's boot id what fn says.
func WithBoot(c Config, fn func() string) Config {
	c.boot = fn
	return c
}

// Abandon stops using the state as a killed process would, but for the locks that the tests need free: nothing is
// written that Close writes.
func (f *FSM) Abandon() {
	h := f.current.Swap(nil)
	h.release()
	<-h.idle
	h.db.Close()
	f.retired.Wait()
}
