package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"sluice/limiter"
)

// handoverDir holds the parts of lists that are on their way, one file a leaver, and the list that this node itself hands
// over. Nothing in it counts: it is emptied at each start.
const handoverDir = "handover"

// heir takes in what leavers hand over. Parts arrive in order, each beginning where the file ends; the answer says where
// that is, so that a sender that lost an answer, or a node that was started again, goes on from there or from the beginning.
type heir struct {
	dir    string
	store  func(leaver string, list [32]byte, r io.Reader) error
	mu     sync.Mutex
	coming map[string]*incoming // by leaver
	stored map[string][32]byte  // the newest list of a leaver
}

type incoming struct {
	list        [32]byte
	total, have int64
}

func newHeir(data *dataDir, store func(leaver string, list [32]byte, r io.Reader) error) (*heir, error) {
	if err := os.RemoveAll(filepath.Join(data.path, handoverDir)); err != nil {
		return nil, fmt.Errorf("empty %s: %w", handoverDir, err)
	}
	dir, err := data.sub(handoverDir)
	if err != nil {
		return nil, err
	}
	return &heir{dir: dir, store: store, coming: make(map[string]*incoming), stored: make(map[string][32]byte)}, nil
}

// take takes one part in. leaver is authenticated, and its id a plain file name.
func (h *heir) take(leaver string, part bequestPart) (bequestReply, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if list, ok := h.stored[leaver]; ok && list == part.list {
		return bequestReply{Have: part.total, Stored: true}, nil // the answer was lost
	}
	in := h.coming[leaver]
	if in == nil || in.list != part.list || in.total != part.total || part.offset == 0 {
		in = &incoming{list: part.list, total: part.total}
		h.coming[leaver] = in
	}
	if part.offset != in.have || part.offset+int64(len(part.data)) > part.total {
		return bequestReply{Have: in.have}, nil
	}
	path := filepath.Join(h.dir, leaver)
	flags := os.O_WRONLY | os.O_CREATE
	if part.offset == 0 {
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return bequestReply{}, fmt.Errorf("take in a list: %w", err)
	}
	_, err = f.WriteAt(part.data, part.offset)
	if err = errors.Join(err, f.Close()); err != nil {
		return bequestReply{}, fmt.Errorf("take in a list: %w", err)
	}
	if in.have += int64(len(part.data)); in.have < in.total {
		return bequestReply{Have: in.have}, nil
	}
	delete(h.coming, leaver)
	if f, err = os.Open(path); err != nil {
		return bequestReply{}, fmt.Errorf("take in a list: %w", err)
	}
	err = errors.Join(h.store(leaver, part.list, f), f.Close(), os.Remove(path))
	switch {
	case errors.Is(err, limiter.ErrLeaving), errors.Is(err, limiter.ErrBequest), errors.Is(err, limiter.ErrConfig):
		return bequestReply{}, &refusedError{reason: err.Error()}
	case err != nil:
		return bequestReply{}, err
	}
	h.stored[leaver] = part.list
	return bequestReply{Have: part.total, Stored: true}, nil
}

func (p *peerCalls) serveBequest(_ context.Context, caller string, part bequestPart) (bequestReply, error) {
	n := (*Node)(p)
	k := n.consensus.Load()
	if k == nil || n.limits.limiter.Load() == nil {
		return bequestReply{}, errUnavailable
	}
	if err := p.isMember(k, caller); err != nil {
		return bequestReply{}, err
	}
	if n.draining.Load() {
		return bequestReply{}, &refusedError{reason: "this node goes down itself"}
	}
	return n.heir.take(caller, part)
}
