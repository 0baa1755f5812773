package node

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/fxamacker/cbor/v2"
)

// Paths of the calls around leaving.
const (
	pathLeave    = "/v1/leave"
	pathBequest  = "/v1/bequest"
	pathRemove   = "/v1/remove"
	pathTransfer = "/v1/transfer"
)

// Headers of pathBequest, whose body is a part of the list.
const (
	headerList   = "Sluice-List"   // SHA-256 of the whole, in hexadecimal
	headerOffset = "Sluice-Offset" // of this part
	headerTotal  = "Sluice-Total"  // bytes of the whole
)

const (
	// bequestChunk is a part of a list that is sent at a time; maxBequest bounds the whole.
	bequestChunk = 1 << 20
	maxBequest   = 8 << 30
)

// leaveRequest tells a node to leave for good.
type leaveRequest struct {
	By    string `cbor:"1,keyasint"` // node id of whom the operator asked
	Force bool   `cbor:"2,keyasint"` // though the rest has no majority
}

// removeRequest asks the leader to take a node out of the configuration.
type removeRequest struct {
	NodeID string `cbor:"1,keyasint"`
	Force  bool   `cbor:"2,keyasint"` // though the rest has no majority
	Check  bool   `cbor:"3,keyasint"` // only say whether it would be done
	By     string `cbor:"4,keyasint"`
	Left   bool   `cbor:"5,keyasint"` // the node asks for itself, having handed over what it holds
}

// transferRequest asks the leader to hand its office over, to NodeID or to whom it chooses.
type transferRequest struct {
	NodeID string `cbor:"1,keyasint"`
	By     string `cbor:"2,keyasint"`
}

// bequestPart is one part of a list.
type bequestPart struct {
	list          [32]byte
	offset, total int64
	data          []byte
}

// bequestReply says up to where the heir has the list; a part that does not begin there changed nothing.
type bequestReply struct {
	Have   int64 `cbor:"1,keyasint"`
	Stored bool  `cbor:"2,keyasint"` // all of it, on its disk
}

// registerLeave adds the calls around leaving.
func (s *rpcServer) registerLeave(mux *http.ServeMux) {
	mux.HandleFunc("POST "+pathLeave, rpcCall(s, maxJoinBytes, func(ctx context.Context, caller string, req leaveRequest) (struct{}, error) {
		return struct{}{}, s.service.serveLeave(ctx, caller, req)
	}))
	mux.HandleFunc("POST "+pathRemove, rpcCall(s, maxJoinBytes, func(ctx context.Context, caller string, req removeRequest) (struct{}, error) {
		return struct{}{}, s.service.serveRemove(ctx, caller, req)
	}))
	mux.HandleFunc("POST "+pathTransfer, rpcCall(s, maxJoinBytes, func(ctx context.Context, caller string, req transferRequest) (struct{}, error) {
		return struct{}{}, s.service.serveTransfer(ctx, caller, req)
	}))
	mux.HandleFunc("POST "+pathBequest, s.bequest)
}

func (s *rpcServer) bequest(w http.ResponseWriter, r *http.Request) {
	var part bequestPart
	n, err := hex.Decode(part.list[:], []byte(r.Header.Get(headerList)))
	if err != nil || n != len(part.list) {
		s.fail(w, &refusedError{reason: "malformed list name"})
		return
	}
	offset, err := strconv.ParseUint(r.Header.Get(headerOffset), 10, 62)
	total, terr := strconv.ParseUint(r.Header.Get(headerTotal), 10, 62)
	if err != nil || terr != nil || total > maxBequest || offset > total {
		s.fail(w, &refusedError{reason: "malformed part of a list"})
		return
	}
	if part.data, err = io.ReadAll(http.MaxBytesReader(w, r.Body, bequestChunk)); err != nil {
		s.fail(w, &refusedError{reason: "part of a list too large or cut short"})
		return
	}
	part.offset, part.total = int64(offset), int64(total)
	reply, err := s.service.serveBequest(r.Context(), s.caller(r), part)
	if err != nil {
		s.fail(w, err)
		return
	}
	s.answer(w, reply)
}

// post sends a small request and decodes a small answer.
func (c *rpcClient) post(ctx context.Context, target, path string, req, reply any) error {
	body, err := cbor.Marshal(req)
	if err != nil {
		return fmt.Errorf("%w: %w", errNotSent, err)
	}
	text, err := c.call(ctx, target, http.MethodPost, path, body, maxJoinBytes)
	if err != nil {
		return err
	}
	if err := rpcDecoding.Unmarshal(text, reply); err != nil {
		return fmt.Errorf("call peer: %w", err)
	}
	return nil
}

func (c *rpcClient) bequest(ctx context.Context, target string, part bequestPart) (reply bequestReply, err error) {
	text, err := c.call(ctx, target, http.MethodPost, pathBequest, part.data, maxJoinBytes,
		headerList, hex.EncodeToString(part.list[:]), headerOffset, strconv.FormatInt(part.offset, 10), headerTotal, strconv.FormatInt(part.total, 10))
	if err != nil {
		return reply, err
	}
	if err := rpcDecoding.Unmarshal(text, &reply); err != nil {
		return reply, fmt.Errorf("call peer: %w", err)
	}
	return reply, nil
}
