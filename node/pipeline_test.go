package node

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// stuckPipeline takes nothing until it is closed.
type stuckPipeline struct {
	raft.AppendPipeline
	closed chan struct{}
}

func (p stuckPipeline) AppendEntries(*raft.AppendEntriesRequest, *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	<-p.closed
	return nil, raft.ErrPipelineShutdown
}

func (p stuckPipeline) Close() error {
	close(p.closed)
	return nil
}

// A sender whose pipeline has lost its reader gets away.
func TestRaftPipeline_LosesItsReader(t *testing.T) {
	t.Parallel()
	p := raftPipeline{stuckPipeline{closed: make(chan struct{})}, 10 * time.Millisecond}
	done := make(chan error, 1)
	go func() {
		_, err := p.AppendEntries(new(raft.AppendEntriesRequest), new(raft.AppendEntriesResponse))
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil {
			t.Fatal("sent through a pipeline that nobody reads")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the sender waits for ever")
	}
}
