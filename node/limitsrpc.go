package node

import (
	"context"
	"fmt"
	"net/http"

	"github.com/fxamacker/cbor/v2"

	"sluice/limiter"
)

const (
	// maxExplained bounds the buckets of one call.
	maxExplained = 64
	// maxExplainedPeers bounds what is told of each list of a bucket: cells, peers.
	maxExplainedPeers  = 256
	maxExplainRequest  = 16 << 10
	maxExplainedAnswer = 4 << 20
)

// explainRequest asks how buckets stand on a node. Keys are on the wire between versions: never reuse a number.
type explainRequest struct {
	Buckets []explainedBucket `cbor:"1,keyasint"`
}

type explainedBucket struct {
	Bucket []byte `cbor:"1,keyasint"` // 16 bytes
	// Limit, Window, Algorithm and Burst are the rule; a window of 0 stands for the one that the node counts by.
	Limit     int64 `cbor:"2,keyasint"`
	Window    int64 `cbor:"3,keyasint"`
	Algorithm uint8 `cbor:"4,keyasint"`
	Burst     int64 `cbor:"5,keyasint,omitempty"`
}

// explainReply has one element for each bucket, nil where the node cannot tell.
type explainReply struct {
	Buckets []*limiter.Explanation `cbor:"1,keyasint"`
}

// explainHere tells how buckets stand on this node.
func (n *Node) explainHere(req explainRequest) (explainReply, error) {
	if len(req.Buckets) > maxExplained {
		return explainReply{}, &refusedError{reason: fmt.Sprintf("at most %d buckets", maxExplained)}
	}
	l := n.limits.limiter.Load()
	if l == nil {
		return explainReply{}, errUnavailable
	}
	reply := explainReply{Buckets: make([]*limiter.Explanation, len(req.Buckets))}
	for i, b := range req.Buckets {
		if len(b.Bucket) != len(limiter.BucketID{}) {
			return explainReply{}, &refusedError{reason: "malformed bucket"}
		}
		rule := limiter.Rule{Limit: b.Limit, Window: b.Window, Algorithm: limiter.Algorithm(b.Algorithm), Burst: b.Burst}
		e, ok := l.Explain(limiter.BucketID(b.Bucket), rule)
		if !ok {
			continue
		}
		e.Cells = e.Cells[:min(len(e.Cells), maxExplainedPeers)]
		e.Peers = e.Peers[:min(len(e.Peers), maxExplainedPeers)]
		reply.Buckets[i] = &e
	}
	return reply, nil
}

func (p *peerCalls) serveExplain(req explainRequest) (explainReply, error) {
	return (*Node)(p).explainHere(req)
}

// explain asks a peer how buckets stand there.
func (c *rpcClient) explain(ctx context.Context, target string, req explainRequest) (explainReply, error) {
	var reply explainReply
	body, err := cbor.Marshal(req)
	if err != nil {
		return reply, fmt.Errorf("%w: %w", errNotSent, err)
	}
	text, err := c.call(ctx, target, http.MethodPost, pathExplain, body, maxExplainedAnswer)
	if err != nil {
		return reply, err
	}
	if err := rpcDecoding.Unmarshal(text, &reply); err != nil {
		return reply, fmt.Errorf("call peer: %w", err)
	}
	if len(reply.Buckets) != len(req.Buckets) {
		return reply, fmt.Errorf("call peer: %d answers to %d questions", len(reply.Buckets), len(req.Buckets))
	}
	return reply, nil
}
