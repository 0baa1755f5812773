package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// generator are the workers with a connection to each target. Its methods are called by one goroutine.
type generator struct {
	load      *Load
	endpoints []*endpoint
	weights   []int
	scenarios []Scenario
	material  *material
	workers   []*worker
	lanes     []*lane
	toldLimit atomic.Int64 // what answers say of the limit that applies
	toldWait  atomic.Int64 // and its window
}

// worker sends one request at a time.
type worker struct {
	links      []*link
	lane       *lane
	random     *rand.Rand
	choose     chooser // of operations
	operations []operation
	buffer     []byte
}

func newGenerator(l *Load) (*generator, error) {
	g := &generator{load: l}
	for _, base := range l.Targets {
		e, err := newEndpoint(base)
		if err != nil {
			return nil, err
		}
		g.endpoints = append(g.endpoints, e)
	}
	for _, s := range l.Mix {
		scenario, _ := findScenario(s.Scenario)
		g.scenarios, g.weights = append(g.scenarios, scenario), append(g.weights, s.Weight)
	}
	for range min(2*runtime.GOMAXPROCS(0), l.Concurrency) {
		g.lanes = append(g.lanes, &lane{
			filling: newCountSet(len(g.endpoints), len(g.scenarios)), spare: newCountSet(len(g.endpoints), len(g.scenarios)),
		})
	}
	for i := range l.Concurrency {
		w := &worker{lane: g.lanes[i%len(g.lanes)], random: rand.New(rand.NewPCG(l.Seed, uint64(i)))}
		for _, e := range g.endpoints {
			w.links = append(w.links, newLink(e, l.Timeout))
		}
		g.workers = append(g.workers, w)
	}
	return g, nil
}

// equip makes the operations of what has been prepared.
func (g *generator) equip(m *material) {
	g.material = m
	for _, w := range g.workers {
		w.operations = nil
		for _, s := range g.scenarios {
			o := s.make(g.load, m, w.random)
			if o.judge == nil {
				o.judge = byStatus
			}
			w.operations = append(w.operations, o)
		}
		w.choose = weighted(g.weights, w.random)
	}
}

func (g *generator) close() {
	for _, w := range g.workers {
		for _, l := range w.links {
			l.close()
		}
	}
}

// reach connects to each target once, so that one that is not there is told before anything else is done.
func (g *generator) reach() error {
	var errs []error
	for i, e := range g.endpoints {
		if err := g.workers[0].links[i].open(time.Now()); err != nil {
			errs = append(errs, fmt.Errorf("target %s cannot be reached: %w", e.base, errors.Unwrap(err)))
		}
		g.workers[0].links[i].used = time.Now()
	}
	return errors.Join(errs...)
}

// step measures one rate, or a closed loop for 0, after its warm-up. On an error the step holds what was measured.
func (g *generator) step(ctx context.Context, rate float64, round int) (*Step, error) {
	what := "as fast as answers come"
	if rate > 0 {
		what = fmt.Sprintf("%g requests/s", rate)
	}
	if g.load.Rounds > 1 {
		what += fmt.Sprintf(", round %d of %d", round, g.load.Rounds)
	}
	if g.load.Warmup > 0 {
		g.load.Progress(LoadProgress{Doing: what + ", warm-up"})
		if _, err := g.run(ctx, rate, g.load.Warmup, nil); err != nil {
			return nil, err
		}
	}
	g.load.Progress(LoadProgress{Doing: what})
	g.load.Progress(LoadProgress{Begun: true})
	c := &collector{sum: newCountSet(len(g.endpoints), len(g.scenarios)), fresh: newCountSet(len(g.endpoints), len(g.scenarios))}
	run, err := g.run(ctx, rate, g.load.Duration, c)
	step := c.step(g, rate, round, run)
	if step.Requests > 0 {
		g.load.Progress(LoadProgress{Step: step})
	}
	return step, err
}

// passed is what a run tells apart from what the lanes hold.
type passed struct {
	seconds float64
	unsent  int64
}

// run sends for so long. c is nil for a warm-up: what lanes hold after it is thrown away.
func (g *generator) run(ctx context.Context, rate float64, length time.Duration, c *collector) (passed, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	start := time.Now()
	r := &round{start: start, end: start.Add(length), done: ctx.Done()}
	var group sync.WaitGroup
	if rate > 0 {
		r.plan = schedule{rate: rate, length: length}
		r.due = make(chan int64, 1<<16)
		group.Go(func() { r.pace() })
	}
	for i, w := range g.workers {
		group.Go(func() { g.work(w, r, i) })
	}
	finished := make(chan struct{})
	go func() {
		group.Wait()
		close(finished)
	}()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if c != nil {
				g.load.Progress(LoadProgress{Second: c.collect(g, time.Since(start).Seconds())})
			}
			continue
		case <-finished:
		}
		break
	}
	took := passed{seconds: time.Since(start).Seconds()}
	if c == nil {
		discard := newCountSet(len(g.endpoints), len(g.scenarios))
		for _, l := range g.lanes {
			l.take(discard)
		}
		return took, context.Cause(ctx)
	}
	c.collect(g, took.seconds)
	if rate > 0 {
		// Requests that were due and never sent count with the time that they have waited: left out, they would make an
		// overloaded target look fast.
		due := r.plan.due(min(time.Since(start), length).Nanoseconds())
		took.unsent = max(due-r.sent.Load(), 0)
		c.overdue(r.plan, due-took.unsent, due, int64(took.seconds*float64(time.Second)))
	}
	return took, context.Cause(ctx)
}

// round is what pacer and workers of one run share.
type round struct {
	start, end time.Time
	done       <-chan struct{}
	plan       schedule
	due        chan int64 // indexes of requests whose time has come; nil for a closed loop
	sent       atomic.Int64
}

// pace hands requests out when they are due. It sleeps in the system, not in the runtime, whose timers are up to a
// millisecond late on an idle machine. Where the workers do not keep up it waits for them, and the requests for it: they
// count from when they were due.
func (r *round) pace() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(r.due)
	end := time.NewTimer(time.Until(r.end))
	defer end.Stop()
	for i := range r.plan.count() {
		for {
			wait := r.plan.at(i) - int64(time.Since(r.start))
			if wait <= 0 {
				break
			}
			select {
			case <-r.done:
				return
			default:
			}
			sleep(min(time.Duration(wait), 50*time.Millisecond))
		}
		select {
		case r.due <- i:
			continue
		default:
		}
		select {
		case r.due <- i:
		case <-end.C:
			return
		case <-r.done:
			return
		}
	}
}

// refusedPause keeps a closed loop from spinning against a target that is not there.
const refusedPause = 10 * time.Millisecond

// work sends until the end.
func (g *generator) work(w *worker, r *round, index int) {
	next := index // in a closed loop, the target
	for {
		var intended int64
		if r.due != nil {
			i, more := <-r.due
			if !more {
				return
			}
			intended, next = r.plan.at(i), int(i%int64(len(w.links)))
		}
		select {
		case <-r.done:
			return
		default:
		}
		sent := time.Since(r.start)
		if r.start.Add(sent).After(r.end) {
			if r.due == nil {
				return
			}
			continue // drain what was due
		}
		if r.due == nil {
			intended = int64(sent)
		}
		r.sent.Add(1)
		node := next % len(w.links)
		next++
		o, operation := g.one(w, node)
		done := time.Since(r.start)
		w.lane.note(node, operation, intended, int64(sent), int64(done), o)
		if o.kind == kindConnect && r.due == nil {
			time.Sleep(refusedPause)
		}
	}
}

// one sends one request to a target.
func (g *generator) one(w *worker, node int) (outcome, int) {
	index := w.choose()
	operation := &w.operations[index]
	l := w.links[node]
	w.buffer = operation.render(w.buffer[:0], l.endpoint.host)
	a, err := l.exchange(w.buffer)
	if err != nil {
		var failed *wireError
		errors.As(err, &failed)
		return outcome{kind: failed.kind, err: failed.err}, index
	}
	if a.limit > 0 && a.limit != g.toldLimit.Load() {
		g.toldLimit.Store(a.limit)
		g.toldWait.Store(a.window)
	}
	o := operation.judge(a)
	if o.kind != "" {
		o.err = statusProblem(a)
	} else if operation.keep != nil && !o.refused {
		operation.keep(a.body)
	}
	return o, index
}
