package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"sluice/raftfsm/state"
)

// errLevel: another version than this one has a say.
var errLevel = errors.New("the cluster's level is too low")

// levelOf is what a node says of itself; versions of before there were levels say nothing.
func levelOf(said uint64) uint64 { return max(said, 1) }

// mayCommit lets a command into the log, as the leader, only if every member's version knows it: one that does not would stop at it.
// The cluster's level is raised for it where all are of that level by now.
func (n *Node) mayCommit(ctx context.Context, k *consensus, envelope []byte) error {
	level := state.LevelOf(state.TypeOf(envelope))
	if level <= n.fsm.Level() {
		return nil
	}
	return n.raiseLevel(ctx, k, level)
}

// raiseLevel makes the cluster's level at least level. Errors: *refusedError where a member is of a lower one or does not say.
func (n *Node) raiseLevel(ctx context.Context, k *consensus, level uint64) error {
	n.levels.Lock() // nobody joins meanwhile
	defer n.levels.Unlock()
	if level <= n.fsm.Level() {
		return nil
	}
	servers, err := k.servers()
	if err != nil {
		return err
	}
	common, behind := state.Level, []string(nil)
	for i, h := range n.askMembers(ctx, servers) {
		switch known := levelOf(h.reply.Level); {
		case h.err != nil:
			behind = append(behind, fmt.Sprintf("%s does not answer", servers[i].ID))
		case known < level:
			behind = append(behind, fmt.Sprintf("%s, version %s, knows levels up to %d", servers[i].ID, h.reply.Version, known))
		default:
			common = min(common, known)
		}
	}
	if len(behind) > 0 {
		return &refusedError{reason: fmt.Sprintf("%v: this takes level %d, and it is raised from %d once every member is of a version that knows it: %s",
			errLevel, level, n.fsm.Level(), strings.Join(behind, "; "))}
	}
	envelope, err := state.Encode(state.Envelope{
		RequestID: newRequestID(), ProposedAt: n.opts.clock().UnixMilli(), Command: state.RaiseLevel{Level: common},
	})
	if err != nil {
		return err
	}
	if _, err := k.commit(ctx, envelope); err != nil {
		return err
	}
	n.log.Info("cluster's level raised: versions that do not know it can no longer be members", "level", common)
	return nil
}

// raiseLevelAtFormation spares a cluster that forms with this version the question at its first command of a newer level.
func (n *Node) raiseLevelAtFormation() {
	ctx, cancel := context.WithTimeout(n.ctx, 2*time.Second)
	defer cancel()
	if _, err := n.proposer.propose(ctx, newRequestID(), state.RaiseLevel{Level: state.Level}); err != nil {
		n.log.Debug("cluster's level not raised yet", "error", err)
	}
}
