package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"sluice/limiter"
	"sluice/raftfsm/state"
)

// Leaving for good, in this order:
//
//  1. The leader is asked whether the rest keeps a majority. From here on there is no way back but the last step's.
//  2. The node is unready and finishes its requests, as for a stop.
//  3. The limiter spends and gives nothing any more, and its file says so: a start from here on goes on with 4.
//  4. What it spent goes to an heir, who stores it, and one entry of the log names the heir.
//  5. Leadership is handed over, and the leader takes the node out of the configuration; the roster follows by itself.
//  6. left.json says that this directory is nobody's any more, gossip is left, and the process ends.
const (
	// heirPatience is how long heirs are tried. Without one the node leaves all the same: its share then stands idle in
	// windows that are open.
	heirPatience = 30 * time.Second
	// leavePause is between two tries of whatever did not work.
	leavePause = 200 * time.Millisecond
)

// errLeft is the cause of a node's end after it left: no failure.
var errLeft = errors.New("this node left the cluster")

// leaving is how far this node is with it.
type leaving struct {
	start chan leaveRequest // to leaveLoop

	mu   sync.Mutex
	done chan struct{} // nil before it began; closed when the node has left, or could not
	err  error         // set before done is closed
}

// begin reports whether it begins now; it may begin again where it could not.
func (l *leaving) begin() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done != nil {
		select {
		case <-l.done:
			if l.err == nil {
				return false
			}
		default:
			return false
		}
	}
	l.done, l.err = make(chan struct{}), nil
	return true
}

// begun says that it is under way or done.
func (l *leaving) begun() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.done != nil && l.err == nil
}

func (l *leaving) end(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
	close(l.done)
}

// wait waits for the end of what has begun.
func (l *leaving) wait(ctx context.Context) error {
	l.mu.Lock()
	done := l.done
	l.mu.Unlock()
	select {
	case <-done:
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", errUnknown, context.Cause(ctx))
	}
}

// startLeaving begins to leave, unless that has begun. The error says why this node may not; then nothing has happened.
func (n *Node) startLeaving(ctx context.Context, req leaveRequest) error {
	lim := n.limits.limiter.Load()
	if n.consensus.Load() == nil || lim == nil {
		return errUnavailable
	}
	if !n.leaving.begin() {
		return nil
	}
	if !lim.Leaving() {
		err := n.atLeader(ctx, func(ctx context.Context, target string) error {
			return n.askRemoval(ctx, target, removeRequest{NodeID: n.data.NodeID, Check: true, Force: req.Force, By: req.By})
		})
		if err != nil {
			n.leaving.end(err)
			return err
		}
	}
	n.leaving.start <- req
	return nil
}

// leaveLoop waits until this node is to leave, and leaves.
func (n *Node) leaveLoop(ctx context.Context) {
	for {
		var req leaveRequest
		select {
		case req = <-n.leaving.start:
		case <-ctx.Done():
			return
		}
		n.log.Info("leaving the cluster", "asked_by", req.By)
		heir, err := n.leave(ctx, n.limits.limiter.Load(), req)
		n.leaving.end(err)
		if err != nil {
			if ctx.Err() == nil {
				n.log.Error("could not leave", "error", err)
			}
			continue
		}
		n.log.Info("left the cluster", "heir", heir)
		if n.admin != nil {
			// An operator may have asked for it right here, and waits for the answer.
			ctx, cancel := context.WithTimeout(ctx, closeGrace)
			defer cancel()
			if err := n.admin.http.Shutdown(ctx); err != nil {
				n.log.Debug("admin listener closed with calls under way", "error", err)
			}
		}
		n.fail(errLeft)
		return
	}
}

// resumeLeaving goes on where an earlier process was, if its limiter says so.
func (n *Node) resumeLeaving(lim *limiter.Limiter) {
	if !lim.Leaving() {
		return
	}
	n.draining.Store(true)
	if err := n.startLeaving(n.ctx, leaveRequest{By: n.data.NodeID}); err != nil && n.ctx.Err() == nil {
		n.log.Error("could not go on leaving", "error", err)
	}
}

// leave does steps 2 to 6. It gives up only where ctx ends or a file fails.
func (n *Node) leave(ctx context.Context, lim *limiter.Limiter, req leaveRequest) (heir string, err error) {
	resumed := lim.Leaving()
	if err := n.stopServing(ctx); err != nil {
		n.log.Info("requests not finished in time", "error", err)
	}
	for {
		err := lim.Leave()
		if err == nil {
			break
		}
		n.log.Error("leaving cannot be written down", "error", err)
		if !pause(ctx, time.Second) {
			return "", context.Cause(ctx)
		}
	}
	// A process that died after the removal leaves nothing to do; and nobody takes anything from it any more.
	if !resumed || !n.isRemoved(ctx) {
		if heir, err = n.bequeath(ctx, lim, req.By); err != nil {
			n.log.Warn("no heir: this node's share stands idle until the windows end", "error", err)
		}
		if err := n.removeSelf(ctx, req); err != nil {
			return heir, err
		}
	}
	if err := n.data.setLeft(heir, n.opts.clock()); err != nil {
		return heir, err
	}
	if err := n.gossip.leave(); err != nil {
		n.log.Info("gossip not left", "error", err)
	}
	return heir, nil
}

// pause waits; false where ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// heirOf is the heir of this node that the log names, "" for none.
func (n *Node) heirOf(node string) string {
	for _, l := range n.fsm.Limiter().Leaves {
		if l.Leaver == node {
			return l.Heir
		}
	}
	return ""
}

// bequeath finds an heir, hands it what this node spent and commits that.
func (n *Node) bequeath(ctx context.Context, lim *limiter.Limiter, by string) (heir string, err error) {
	ctx, cancel := context.WithTimeout(ctx, heirPatience)
	defer cancel()
	var last error
	for {
		if heir := n.heirOf(n.data.NodeID); heir != "" {
			return heir, nil
		}
		for _, candidate := range n.heirs() {
			if last = n.bequeathTo(ctx, lim, candidate, by); last == nil {
				return candidate, nil
			}
			n.log.Info("not handed over", "to", candidate, "error", last)
			if heir := n.heirOf(n.data.NodeID); heir != "" || ctx.Err() != nil {
				break
			}
		}
		if !pause(ctx, leavePause) {
			if heir := n.heirOf(n.data.NodeID); heir != "" {
				return heir, nil
			}
			return "", errors.Join(context.Cause(ctx), last)
		}
	}
}

// heirs lists who may be the heir, the best first: the next of the roster by id, so that shares spread when several
// nodes leave; then members that come into a roster later. Who goes away itself refuses.
func (n *Node) heirs() []string {
	limits := n.fsm.Limiter()
	var roster []string
	if l := len(limits.Rosters); l > 0 {
		roster = limits.Rosters[l-1].Nodes
	}
	next := func(ids []string) []string {
		slices.Sort(ids)
		at, _ := slices.BinarySearch(ids, n.data.NodeID)
		return append(slices.Clone(ids[at:]), ids[:at]...)
	}
	var in, out []string
	for _, m := range n.members() {
		switch {
		case m.ID == n.data.NodeID || n.heirOf(m.ID) != "":
		case slices.Contains(roster, m.ID):
			in = append(in, m.ID)
		default:
			out = append(out, m.ID)
		}
	}
	return append(next(in), next(out)...)
}

// bequeathTo hands the list to one heir and commits the leave.
func (n *Node) bequeathTo(ctx context.Context, lim *limiter.Limiter, heir, by string) error {
	path := filepath.Join(n.heir.dir, "own")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write list: %w", err)
	}
	defer func() {
		f.Close()
		os.Remove(path)
	}()
	q, err := lim.WriteBequest(f)
	if err != nil {
		return fmt.Errorf("write list: %w", err)
	}
	if err := n.sendBequest(ctx, heir, q, f); err != nil {
		return err
	}
	now := n.opts.clock()
	result, err := n.proposer.propose(ctx, newRequestID(), state.Leave{
		Leaver: n.data.NodeID, Heir: heir, List: q.List[:], Mark: q.MarkMillis, Applied: q.Applied,
		Audit: []state.AuditEvent{operatorEvent("cluster.node_left", n.data.NodeID, now, "heir", heir, "asked_by", by)},
	})
	if err != nil {
		return fmt.Errorf("commit leave: %w", err)
	}
	if result.Refused != "" {
		// Mostly since this node became an heir after it wrote the list: the next one knows.
		return fmt.Errorf("commit leave: %w", &state.Refusal{Code: result.Refused})
	}
	return nil
}

// sendBequest sends the list in parts; an answer says from where on.
func (n *Node) sendBequest(ctx context.Context, heir string, q limiter.Bequest, r io.ReaderAt) error {
	buf := make([]byte, bequestChunk)
	var offset int64
	for failures := 0; ; {
		part := bequestPart{list: q.List, offset: offset, total: q.Bytes, data: buf[:min(int64(len(buf)), q.Bytes-offset)]}
		if _, err := r.ReadAt(part.data, offset); err != nil {
			return fmt.Errorf("read list: %w", err)
		}
		reply, err := func() (bequestReply, error) {
			ctx, cancel := context.WithTimeout(ctx, rpcServerTimeout)
			defer cancel()
			return n.rpc.bequest(ctx, heir, part)
		}()
		var refused *refusedError
		switch {
		case err == nil && reply.Stored:
			return nil
		case err == nil && reply.Have >= 0 && reply.Have < q.Bytes:
			if reply.Have <= offset {
				failures++ // it begins anew, or the part was lost on the way
			} else {
				failures = 0
			}
			offset = reply.Have
		case errors.As(err, &refused):
			return fmt.Errorf("hand over: %w", err)
		default:
			failures++
		}
		if failures > 5 {
			return fmt.Errorf("hand over: no progress at byte %d of %d: %w", offset, q.Bytes, errors.Join(err, ctx.Err()))
		}
		if failures > 0 && !pause(ctx, leavePause) {
			return fmt.Errorf("hand over: %w", context.Cause(ctx))
		}
	}
}

// removeSelf hands leadership over and has the leader take this node out. It tries as long as it takes: a node that has
// handed over its share is of no use.
func (n *Node) removeSelf(ctx context.Context, req leaveRequest) error {
	for {
		if k := n.consensus.Load(); k != nil && k.leads() {
			try, cancel := context.WithTimeout(ctx, 5*time.Second)
			if err := k.transferLeadership(try); err != nil {
				n.log.Info("leadership not handed over", "error", err)
			}
			cancel()
		}
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
			defer cancel()
			return n.atLeader(ctx, func(ctx context.Context, target string) error {
				return n.askRemoval(ctx, target, removeRequest{NodeID: n.data.NodeID, Force: req.Force, By: req.By, Left: true})
			})
		}()
		if err == nil || n.isRemoved(ctx) {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n.log.Info("not removed from the configuration yet", "error", err)
		if !pause(ctx, leavePause) {
			return context.Cause(ctx)
		}
	}
}

// isRemoved asks the others: a node that was removed hears of nothing any more.
func (n *Node) isRemoved(ctx context.Context) bool {
	for _, h := range n.askMembers(ctx, n.members()) {
		r := h.reply
		if h.err != nil || r.NodeID == n.data.NodeID || r.LeaderID != r.NodeID || r.Formed != n.clusterID() || len(r.Servers) == 0 ||
			r.Applied < n.fsm.AppliedIndex() { // a leader of before, perhaps, from whose time this node is not

			continue
		}
		if !slices.ContainsFunc(r.Servers, func(m member) bool { return m.ID == n.data.NodeID }) {
			return true
		}
	}
	return false
}
