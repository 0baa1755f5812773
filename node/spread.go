package node

import (
	"context"
	"sync"
	"time"

	"sluice/raftfsm/state"
)

// spreadPatience bounds how long the answer to a revocation, or a reset of limits, waits for the other nodes. A node that
// has not applied it by then is cut off or stands still; what it may still do is bounded by auth.max_staleness.
const spreadPatience = 150 * time.Millisecond

// narrows reports whether a command, applied with this result, may end or narrow what a credential can do, lets a limit count
// from nothing, or changes the settings: until the other nodes know, they refuse what the operator has just allowed, or the reverse.
func narrows(cmd state.Command, result state.Result) bool {
	if result.Refused != "" || result.Replay != nil {
		return false
	}
	switch cmd.(type) {
	case state.EndSession, state.EndSessions, state.SetPassword, state.UpdateKey, state.RotateKey, state.RevokeKey, state.ResetBucket, state.PutSettings,
		state.DeleteOrg, state.UpdateMember, state.RemoveMember, state.TransferOrg, state.SetPlan, state.DeleteUser, state.SetUserDisabled,
		state.RevokeKeyBySecret:
		return true
	case state.RefreshSession:
		return result.Outcome == state.OutcomeReused
	case state.CreateSession, state.SignInByIdentity, state.StartSession:
		return result.Count > 0 // the oldest ended
	}
	return false
}

// spread waits until every other member has applied the entry at index, or spreadPatience has passed. Followers hear
// that an entry was committed with the next message only; without this a revoked credential would outlive the answer
// to its revocation by that long, and by much more on a machine without a free core.
func (n *Node) spread(ctx context.Context, index uint64) {
	ctx, cancel := context.WithTimeout(ctx, spreadPatience)
	defer cancel()
	var wg sync.WaitGroup
	for _, m := range n.members() {
		if m.ID == n.data.NodeID {
			continue
		}
		wg.Go(func() {
			if err := n.rpc.applied(ctx, m.ID, index); err != nil {
				// Nothing can be done about it here: the member refuses by itself once its state is too old.
				n.log.Debug("change not confirmed by a member", "peer", m.ID, "error", err)
			}
		})
	}
	wg.Wait()
}
