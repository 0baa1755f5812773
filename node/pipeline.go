package node

import (
	"time"

	"github.com/hashicorp/raft"
)

// raftTransport is Raft's network transport, with pipelines that never hold up their sender for good.
//
// Raft's reader of a pipeline goes away at the first answer that is no success, as of a follower that has no room for an entry or was
// stopped. Its sender may be sending then, and waits to hand over what nobody takes any more, until the process ends: that
// follower would get no entry from this leader ever again.
type raftTransport struct {
	*raft.NetworkTransport
	patience time.Duration
}

var (
	_ raft.WithPreVote = raftTransport{}
	_ raft.WithClose   = raftTransport{}
)

// AppendEntriesPipeline implements raft.Transport.
func (t raftTransport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	p, err := t.NetworkTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	return raftPipeline{p, t.patience}, nil
}

type raftPipeline struct {
	raft.AppendPipeline
	patience time.Duration
}

// AppendEntries implements raft.AppendPipeline. Where it takes too long the pipeline is closed, and Raft makes another one.
func (p raftPipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	timer := time.AfterFunc(p.patience, func() {
		// It only closes a connection; what that says changes nothing.
		_ = p.Close()
	})
	defer timer.Stop()
	return p.AppendPipeline.AppendEntries(args, resp)
}
