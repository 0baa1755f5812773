package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
)

const (
	pathKeyring      = "/v1/keyring"
	maxKeyringAnswer = 16 << 10
)

// keyringReply says what a node's gossip goes by. Keys are on the wire between versions: never reuse a number.
type keyringReply struct {
	Version uint64   `cbor:"1,keyasint"`
	Primary string   `cbor:"2,keyasint"` // "" before gossip runs
	Keys    []string `cbor:"3,keyasint"` // ids
	// Problem says, for people, why it is not the newest that the node knows.
	Problem string `cbor:"4,keyasint"`
}

func (p *peerCalls) serveKeyring() keyringReply {
	n := (*Node)(p)
	n.takeUpKeyring() // what the caller made known must not wait for its turn
	r := n.keyring.now.Load()
	if r == nil {
		return keyringReply{Problem: "gossip does not run yet"}
	}
	reply := keyringReply{Version: r.version, Primary: r.primary, Keys: r.ids()}
	if r.problem != nil {
		reply.Problem = clipText(r.problem.Error(), 200)
	}
	return reply
}

func (s *rpcServer) registerKeyring(mux *http.ServeMux) {
	mux.HandleFunc("GET "+pathKeyring, func(w http.ResponseWriter, _ *http.Request) { s.answer(w, s.service.serveKeyring()) })
}

// keyring asks a peer what its gossip goes by. errNoSuchCall: it is older than that question.
func (c *rpcClient) keyring(ctx context.Context, target string) (keyringReply, error) {
	var reply keyringReply
	text, err := c.call(ctx, target, http.MethodGet, pathKeyring, nil, maxKeyringAnswer)
	if err != nil {
		return reply, err
	}
	if err := rpcDecoding.Unmarshal(text, &reply); err != nil {
		return reply, fmt.Errorf("call peer: %w", err)
	}
	return reply, nil
}

// memberKeyring is what a member said of its keyring, or why it did not.
type memberKeyring struct {
	id    string
	reply keyringReply
	err   error
	seen  bool // by this node's gossip
}

// down says that nothing is heard of the member at all: it gets the keyring with the log when it comes back.
func (m *memberKeyring) down() bool {
	return m.err != nil && !m.seen && !errors.Is(m.err, errNoSuchCall)
}

// askKeyrings asks all members at once, in their order; this node speaks for itself.
func (n *Node) askKeyrings(ctx context.Context) []memberKeyring {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	members := n.members()
	out := make([]memberKeyring, len(members))
	var wg sync.WaitGroup
	for i, m := range members {
		out[i].id = m.ID
		if m.ID == n.data.NodeID {
			out[i].reply, out[i].seen = (*peerCalls)(n).serveKeyring(), true
			continue
		}
		wg.Go(func() {
			out[i].reply, out[i].err = n.rpc.keyring(ctx, m.ID)
			out[i].seen = n.gossip.isAlive(m.ID)
		})
	}
	wg.Wait()
	return out
}
