package node

import (
	"fmt"
	"net"
	"sync"
)

// addressBook knows where nodes are. What a node has said of itself lately beats what the cluster's state says, which
// beats the address that the node was taken in with. Safe for concurrent use.
type addressBook struct {
	mu    sync.RWMutex
	heard map[string]nodeAddr // from hellos and join answers
	state map[string]nodeAddr // from the replicated NodeInfo
	raft  map[string]string   // from the Raft configuration or the formation
}

func newAddressBook() *addressBook {
	return &addressBook{heard: make(map[string]nodeAddr), state: make(map[string]nodeAddr), raft: make(map[string]string)}
}

// peer returns the host:port of a node's peer listener.
func (b *addressBook) peer(id string) (string, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if a := b.heard[id].Peer; a != "" {
		return a, nil
	}
	if a := b.state[id].Peer; a != "" {
		return a, nil
	}
	if a := b.raft[id]; a != "" {
		return a, nil
	}
	return "", fmt.Errorf("%w: %s", errNoAddress, id)
}

// isServer reports whether the Raft configuration has the node.
func (b *addressBook) isServer(id string) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	_, ok := b.raft[id]
	return ok
}

// gossip returns the host:port of a node's gossip listener, "" where it is not known.
func (b *addressBook) gossip(id string) string {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if a := b.heard[id].Gossip; a != "" {
		return a
	}
	return b.state[id].Gossip
}

// hear notes what a node said of itself.
func (b *addressBook) hear(a nodeAddr) {
	if !validNodeID(a.ID) {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.heard[a.ID]
	if a.Peer == "" {
		a.Peer = old.Peer
	}
	if a.Gossip == "" {
		a.Gossip = old.Gossip
	}
	b.heard[a.ID] = a
}

// setState replaces what the replicated state says. A node whose entry there has changed is believed anew: what was
// heard of it before is older.
func (b *addressBook) setState(nodes []nodeAddr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	next := make(map[string]nodeAddr, len(nodes))
	for _, n := range nodes {
		next[n.ID] = n
		if b.state[n.ID] != n {
			delete(b.heard, n.ID)
		}
	}
	b.state = next
}

// setServers replaces the addresses of the configuration.
func (b *addressBook) setServers(servers []member) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.raft = make(map[string]string, len(servers))
	for _, s := range servers {
		b.raft[s.ID] = s.Address
	}
}

// advertised is the address to tell peers: the configured one, or the listener's own where that can be reached.
func advertised(configured string, listener net.Addr, what string) (string, error) {
	host, port, err := net.SplitHostPort(listener.String())
	if err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	if configured != "" {
		h, p, err := net.SplitHostPort(configured)
		if err != nil {
			return "", fmt.Errorf("%s.advertise: %w", what, err)
		}
		if p == "0" {
			p = port
		}
		return net.JoinHostPort(h, p), nil
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		return "", fmt.Errorf("%s.advertise has to be set where %s.listen (%s) is no address that peers can reach", what, what, listener)
	}
	return net.JoinHostPort(host, port), nil
}
