package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"sluice/raftfsm/state"
)

const (
	// horizonInterval is how often the leader raises the horizon, unless the lease asks for more.
	horizonInterval = time.Second
	// minRosterKeep is how long a superseded roster is kept at least: 62 days, twice the longest window.
	minRosterKeep = 62 * 24 * time.Hour
	// abdicateInterval keeps a leader with a bad clock from doing nothing but handing over.
	abdicateInterval = 10 * time.Second
)

// office is what a leader does beside committing entries: it raises the horizon, keeps the roster and runs the API's
// maintenance. One loop at a time; a barrier comes first, so that it acts on everything its predecessors committed.
type office struct {
	self      string
	k         *consensus
	barriers  *barriers
	gossip    *gossip
	clocks    *clocks
	lease     time.Duration
	deadAfter time.Duration
	maxSkew   time.Duration
	keep      time.Duration
	now       func() time.Time
	maintain  func(ctx context.Context) error
	probation *probation
	cleaner   cleaner
	record    func(ctx context.Context, events ...state.AuditEvent)
	log       *slog.Logger

	abdicated time.Time // monotonic
	once      onceIn
}

// run serves one term of office after another until ctx ends.
func (o *office) run(ctx context.Context) {
	for {
		changed := o.k.leadership.wait()
		if o.k.leads() {
			err := o.serve(ctx)
			if ctx.Err() == nil && err != nil {
				o.log.Info("leader's work interrupted", "error", err)
			}
		}
		select {
		case <-changed:
		case <-time.After(horizonInterval):
		case <-ctx.Done():
			return
		}
	}
}

// serve is one term, or what is left of it after an error. It returns when the leadership or ctx ends.
func (o *office) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := o.timed(ctx, func(ctx context.Context) error {
		_, err := o.barriers.commit(ctx, state.Barrier{})
		return err
	}); err != nil {
		return fmt.Errorf("first barrier: %w", err)
	}
	maintained := make(chan struct{})
	go func() {
		defer close(maintained)
		o.keepUp(ctx)
	}()
	defer func() {
		cancel()
		<-maintained
	}()
	interval := min(horizonInterval, o.lease/6)
	for {
		events, changed := o.gossip.events.wait(), o.k.leadership.wait()
		if !o.k.leads() {
			return nil
		}
		if err := o.timed(ctx, func(ctx context.Context) error { return o.round(ctx) }); err != nil {
			return err
		}
		select {
		case <-time.After(interval):
		case <-events:
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

func (o *office) timed(ctx context.Context, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	return fn(ctx)
}

// keepUp runs the API's maintenance about once a second. It has a goroutine of its own: pruning must not hold up the
// horizon.
func (o *office) keepUp(ctx context.Context) {
	for {
		err := o.timed(ctx, o.maintain)
		if err != nil && ctx.Err() == nil && o.once.allow("maintain", 10*time.Second) {
			o.log.Warn("maintenance failed", "error", err)
		}
		wait := time.Second
		if err != nil {
			wait = 100 * time.Millisecond
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// round does what is due now.
func (o *office) round(ctx context.Context) error {
	if skew, peers := o.clocks.skew(); peers > 0 && skew.Abs() > o.maxSkew {
		// The horizon never falls: one leader with a clock in the future would freeze the roster for as long.
		if time.Since(o.abdicated) >= abdicateInterval {
			o.abdicated = time.Now()
			o.log.Warn("this node's clock is off: giving up leadership", "skew", skew.String(), "max", o.maxSkew.String())
			return o.k.transferLeadership(ctx)
		}
		return nil
	}
	servers, err := o.k.servers()
	if err != nil {
		return err
	}
	o.probation.look(time.Now(), servers, func(id string) bool {
		_, silent := o.k.silentSince(id)
		return !silent
	})
	if err := o.keepNodes(ctx, servers); err != nil {
		return err
	}
	if err := o.keepRoster(ctx, servers); err != nil {
		return err
	}
	until := o.now().Add(o.lease).UnixMilli()
	if _, err := o.barriers.commit(ctx, state.Horizon{Until: until, Leader: o.self}); err != nil {
		return err
	}
	o.cleanUp(ctx, servers)
	return nil
}

// propose applies one of the leader's own commands.
func (o *office) propose(ctx context.Context, cmd state.Command) error {
	result, err := o.k.proposeHere(ctx, o.now(), cmd)
	if err != nil {
		return err
	}
	if result.Refused != "" {
		return &state.Refusal{Code: result.Refused}
	}
	return nil
}

// keepNodes marks nodes that the configuration no longer has.
func (o *office) keepNodes(ctx context.Context, servers []member) error {
	infos, err := o.k.fsm.Nodes()
	if err != nil {
		return fmt.Errorf("read nodes: %w", err)
	}
	for _, info := range infos {
		if info.RemovedAt != 0 || slices.ContainsFunc(servers, func(m member) bool { return m.ID == info.ID }) {
			continue
		}
		info.RemovedAt = o.now().UnixMilli()
		if err := o.propose(ctx, state.PutNode{Node: info}); err != nil {
			return fmt.Errorf("mark removed node: %w", err)
		}
	}
	return nil
}

// keepRoster commits a new roster where the list of nodes that should hold shares has changed. The first one holds all
// members, whether they are seen already or not, and comes before the first horizon: so it governs the very first window
// on every node.
func (o *office) keepRoster(ctx context.Context, servers []member) error {
	var previous state.Roster
	limits := o.k.fsm.Limiter()
	if l := len(limits.Rosters); l > 0 {
		previous = limits.Rosters[l-1]
	}
	next := o.wanted(servers, previous)
	// A node that left for good has an heir.
	next = slices.DeleteFunc(next, func(id string) bool {
		return slices.ContainsFunc(limits.Leaves, func(l state.LeaveInfo) bool { return l.Leaver == id })
	})
	if len(next) == 0 || slices.Equal(next, previous.Nodes) {
		return nil
	}
	err := o.propose(ctx, state.SetRoster{
		Nodes: next, PreviousIndex: previous.Index, KeepFrom: o.now().Add(-o.keep).UnixMilli(),
	})
	var refusal *state.Refusal
	if errors.As(err, &refusal) {
		return nil // somebody else's came between: the next round looks again
	}
	if err != nil {
		return fmt.Errorf("set roster: %w", err)
	}
	o.log.Info("roster changed", "nodes", next, "before", previous.Nodes)
	return nil
}

// minSilence is how long a node is silent at least before it leaves the roster, whatever dead_after says.
const minSilence = 2 * time.Second

// patience is the silence after which a node leaves the roster, so that the first window that begins deadAfter after
// its death is shared out without it: a new roster governs from the horizon on, which lies a lease ahead.
func (o *office) patience() time.Duration {
	return max(o.deadAfter-o.lease-horizonInterval, minSilence)
}

// wanted is the sorted list of the nodes that should hold shares: members in the roster stay until neither gossip nor
// Raft hears of them and they have been silent for too long; others come in when both do.
func (o *office) wanted(servers []member, previous state.Roster) []string {
	var next []string
	for _, m := range servers {
		switch {
		case previous.Index == 0, m.ID == o.self:
		case slices.Contains(previous.Nodes, m.ID):
			if o.silence(m.ID) >= o.patience() {
				continue
			}
		default:
			if _, lost := o.k.silentSince(m.ID); lost || !o.gossip.isAlive(m.ID) {
				continue
			}
		}
		next = append(next, m.ID)
	}
	slices.Sort(next)
	return next
}

// silence is how long nothing was heard of a node that neither gossip nor Raft hears: since Raft's last contact, as gossip
// takes some seconds to make up its mind.
func (o *office) silence(id string) time.Duration {
	lost, silent := o.k.silentSince(id)
	if !silent {
		return 0
	}
	if o.gossip.isAlive(id) {
		return 0
	}
	return time.Since(lost)
}
