package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/fxamacker/cbor/v2"

	"go.opentelemetry.io/otel/trace"

	"sluice/raftfsm/state"
)

// Paths of the calls between nodes. Bodies are CBOR but for a forwarded command, which is its bytes in the log.
const (
	pathForward  = "/v1/forward"
	pathBarrier  = "/v1/barrier"
	pathHello    = "/v1/hello"
	pathJoin     = "/v1/join"
	pathApplied  = "/v1/applied"
	pathExplain  = "/v1/limits"
	pathSettings = "/v1/settings"
)

// Headers of the calls between nodes.
const (
	headerOutcome   = "Sluice-Outcome"
	headerLeader    = "Sluice-Leader"
	headerClusterID = "Sluice-Cluster"
	headerPatience  = "Sluice-Patience-Ms"
	headerIndex     = "Sluice-Index"
	headerPeer      = "Sluice-Peer-Address" // where the caller is to be reached
	headerGossip    = "Sluice-Gossip-Address"
)

// Values of headerOutcome.
const (
	outcomeDone        = "done"
	outcomeNotLeader   = "not_leader"
	outcomeUnavailable = "unavailable"
	outcomeUnknown     = "unknown"
	outcomeRefused     = "refused"
)

const (
	maxHelloBytes = 64 << 10
	maxJoinBytes  = 4 << 10
	// maxServedCalls bounds the calls that this node works on for its peers at a time.
	maxServedCalls = 1024
	// rpcServerTimeout ends a call that its caller has forgotten.
	rpcServerTimeout = 15 * time.Second
)

// helloReply is what a node tells about itself. Keys are on the wire between versions: never reuse a number.
type helloReply struct {
	NodeID   string `cbor:"1,keyasint"`
	Name     string `cbor:"2,keyasint"`
	Version  string `cbor:"3,keyasint"`
	Peer     string `cbor:"4,keyasint"` // advertised addresses
	Gossip   string `cbor:"5,keyasint"`
	Members  []byte `cbor:"6,keyasint"` // hash of its initial_members
	Agreed   string `cbor:"7,keyasint"` // cluster id that it has agreed to form; "" if none yet
	Formed   string `cbor:"8,keyasint"` // cluster id that it has formed or joined; "" if none yet
	LeaderID string `cbor:"9,keyasint"`
	// Servers is its Raft configuration, empty before it has one.
	Servers []member `cbor:"10,keyasint"`
	Applied uint64   `cbor:"11,keyasint"`
	Now     int64    `cbor:"12,keyasint"` // its clock, Unix nanoseconds
	// Problems say, for people, what keeps it from being ready.
	Problems []string `cbor:"13,keyasint"`
	// Settings is the version of the settings that it goes by.
	Settings uint64 `cbor:"14,keyasint"`
	// Level is state.Level of its version; 0 of before there were levels, which is 1.
	Level uint64 `cbor:"15,keyasint"`
	// Sealing tells of secrets at rest; nil of a version that knows one key only.
	Sealing *sealing `cbor:"47,keyasint,omitempty"`
	// Storage says whether it has disk space to lead with.
	Storage spaceLevel `cbor:"20,keyasint,omitempty"`
}

// joinRequest asks the leader to take the caller in: first as one that only listens, then, caught up, as a voter.
type joinRequest struct {
	Address string `cbor:"1,keyasint"`
	Voter   bool   `cbor:"2,keyasint"`
	Applied uint64 `cbor:"3,keyasint"`
	Key     []byte `cbor:"4,keyasint"` // fingerprint of the first of its keys for secrets at rest
	Level   uint64 `cbor:"5,keyasint"` // as in helloReply
	// Keys are the fingerprints of all of them; empty of a version that knows one only.
	Keys [][]byte `cbor:"47,keyasint,omitempty"`
}

// joinReply is the leader's answer.
type joinReply struct {
	ClusterID string     `cbor:"1,keyasint"`
	Servers   []member   `cbor:"2,keyasint"`
	Infos     []nodeAddr `cbor:"3,keyasint"`
	Index     uint64     `cbor:"4,keyasint"` // the caller is up to date once it has applied this
}

// nodeAddr is where a node is.
type nodeAddr struct {
	ID     string `cbor:"1,keyasint"`
	Peer   string `cbor:"2,keyasint"`
	Gossip string `cbor:"3,keyasint"`
}

// refusedError is a call that the peer understood and refused for good.
type refusedError struct{ reason string }

func (e *refusedError) Error() string { return "refused by the peer: " + e.reason }

// leaderHint is errNotLeader with the leader that the asked node knows of.
type leaderHint struct{ leaderID string }

func (e *leaderHint) Error() string        { return "not the leader, which may be " + e.leaderID }
func (e *leaderHint) Is(target error) bool { return target == errNotLeader }

// peerService is what a node does for its peers. Methods are called concurrently; caller is the authenticated peer.
// Their errors: errNotLeader (nothing happened), errUnavailable (nothing happened), *refusedError, anything else is an
// unknown outcome.
type peerService interface {
	hello() helloReply
	clusterID() string
	leaderID() string
	heard(nodeAddr) // what the caller says of itself
	// otherCluster is told of a caller that belongs to another cluster, by its id.
	otherCluster(caller, clusterID string)
	serveForward(ctx context.Context, caller string, envelope []byte) (state.Result, error)
	serveBarrier(ctx context.Context, caller string, patience time.Duration) (uint64, error)
	serveJoin(ctx context.Context, caller string, req joinRequest) (joinReply, error)
	// serveApplied returns once this node has applied the entry at index.
	serveApplied(ctx context.Context, index uint64) error
	// serveExplain tells how buckets stand on this node.
	serveExplain(req explainRequest) (explainReply, error)
	// serveSettings says whether settings go with this node's configuration.
	serveSettings(req settingsRequest) (settingsReply, error)
	// serveLeave makes the node leave for good; it returns once that has begun.
	serveLeave(ctx context.Context, caller string, req leaveRequest) error
	serveBequest(ctx context.Context, caller string, part bequestPart) (bequestReply, error)
	serveRemove(ctx context.Context, caller string, req removeRequest) error
	serveTransfer(ctx context.Context, caller string, req transferRequest) error
	// serveKeyring says what this node's gossip goes by.
	serveKeyring() keyringReply
	serveVote(ctx context.Context, caller string, req voteRequest) error
}

var rpcDecoding = func() cbor.DecMode {
	mode, err := cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		MaxNestedLevels:  8,
		MaxArrayElements: 1024,
		MaxMapPairs:      64,
	}.DecMode()
	if err != nil {
		panic(err) // constant options
	}
	return mode
}()

// newRPCServer serves the calls of authenticated peers.
// tracer is nil where nothing is traced.
func newRPCServer(service peerService, creds PeerCredentials, calls *slots, tracer trace.Tracer, logger *slog.Logger) *http.Server {
	s := &rpcServer{service: service, creds: creds, tracer: tracer, slots: calls}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathHello, s.hello)
	mux.HandleFunc("POST "+pathForward, s.forward)
	mux.HandleFunc("POST "+pathForwards, s.forwards)
	mux.HandleFunc("POST "+pathBarrier, s.barrier)
	mux.HandleFunc("POST "+pathJoin, rpcCall(s, maxJoinBytes, s.service.serveJoin))
	mux.HandleFunc("GET "+pathApplied, s.applied)
	mux.HandleFunc("POST "+pathExplain, rpcCall(s, maxExplainRequest, func(_ context.Context, _ string, req explainRequest) (explainReply, error) {
		return s.service.serveExplain(req)
	}))
	mux.HandleFunc("POST "+pathSettings, rpcCall(s, maxSettingsRequest, func(_ context.Context, _ string, req settingsRequest) (settingsReply, error) {
		return s.service.serveSettings(req)
	}))
	s.registerLeave(mux)
	s.registerKeyring(mux)
	s.registerVote(mux)
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	return &http.Server{
		Handler:           s.guard(mux),
		Protocols:         protocols,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    8 << 10,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxServedCalls, SendPingTimeout: 15 * time.Second},
		ErrorLog:          newLineLogger(logger),
	}
}

type rpcServer struct {
	service peerService
	creds   PeerCredentials
	slots   *slots
	tracer  trace.Tracer // nil: calls are not traced
}

type callerKey struct{}

// guard names the caller, bounds the work in flight and refuses the members of another cluster.
func (s *rpcServer) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil {
			http.Error(w, "no TLS", http.StatusForbidden)
			return
		}
		id, err := s.creds.Identity(*r.TLS)
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		if theirs, ours := r.Header.Get(headerClusterID), s.service.clusterID(); theirs != "" && ours != "" && theirs != ours {
			w.Header().Set(headerClusterID, ours)
			s.fail(w, &refusedError{reason: errOtherCluster.Error() + ": " + theirs})
			s.service.otherCluster(id.NodeID, theirs)
			return
		}
		if peer, gossip := r.Header.Get(headerPeer), r.Header.Get(headerGossip); len(peer) <= 255 && len(gossip) <= 255 {
			s.service.heard(nodeAddr{ID: id.NodeID, Peer: peer, Gossip: gossip})
		}
		if !s.slots.take() {
			s.fail(w, errUnavailable)
			return
		}
		defer s.slots.release()
		ctx, cancel := context.WithTimeout(context.WithValue(r.Context(), callerKey{}, id.NodeID), rpcServerTimeout)
		defer cancel()
		ctx, served := s.traceServed(ctx, r)
		defer served()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

func (s *rpcServer) caller(r *http.Request) string {
	id, _ := r.Context().Value(callerKey{}).(string)
	return id
}

func (s *rpcServer) hello(w http.ResponseWriter, _ *http.Request) { s.answer(w, s.service.hello()) }

func (s *rpcServer) forward(w http.ResponseWriter, r *http.Request) {
	envelope, err := io.ReadAll(http.MaxBytesReader(w, r.Body, state.MaxCommandSize))
	if err != nil {
		s.fail(w, &refusedError{reason: "command too large or cut short"})
		return
	}
	result, err := s.service.serveForward(r.Context(), s.caller(r), envelope)
	if err != nil {
		s.fail(w, err)
		return
	}
	body, err := state.EncodeResult(result)
	if err != nil {
		s.fail(w, err)
		return
	}
	w.Header().Set(headerOutcome, outcomeDone)
	w.Write(body)
}

func (s *rpcServer) barrier(w http.ResponseWriter, r *http.Request) {
	ms, err := strconv.ParseUint(r.Header.Get(headerPatience), 10, 16)
	if err != nil {
		s.fail(w, &refusedError{reason: "malformed patience"})
		return
	}
	index, err := s.service.serveBarrier(r.Context(), s.caller(r), time.Duration(ms)*time.Millisecond)
	if err != nil {
		s.fail(w, err)
		return
	}
	s.answer(w, index)
}

func (s *rpcServer) applied(w http.ResponseWriter, r *http.Request) {
	index, err := strconv.ParseUint(r.Header.Get(headerIndex), 10, 64)
	if err != nil {
		s.fail(w, &refusedError{reason: "malformed index"})
		return
	}
	if err := s.service.serveApplied(r.Context(), index); err != nil {
		s.fail(w, err)
		return
	}
	s.answer(w, index)
}

// rpcCall is a call whose request, of limit bytes at most, and answer are CBOR values.
func rpcCall[Q, A any](s *rpcServer, limit int64, fn func(ctx context.Context, caller string, req Q) (A, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req Q
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
		if err == nil {
			err = rpcDecoding.Unmarshal(body, &req)
		}
		if err != nil {
			s.fail(w, &refusedError{reason: "malformed request"})
			return
		}
		reply, err := fn(r.Context(), s.caller(r), req)
		if err != nil {
			s.fail(w, err)
			return
		}
		s.answer(w, reply)
	}
}

func (s *rpcServer) answer(w http.ResponseWriter, v any) {
	body, err := cbor.Marshal(v)
	if err != nil {
		s.fail(w, err)
		return
	}
	w.Header().Set(headerOutcome, outcomeDone)
	w.Write(body)
}

func (s *rpcServer) fail(w http.ResponseWriter, err error) {
	outcome, status, text := outcomeOf(err)
	if outcome == outcomeNotLeader {
		w.Header().Set(headerLeader, s.service.leaderID())
	}
	w.Header().Set(headerOutcome, outcome)
	w.WriteHeader(status)
	io.WriteString(w, text)
}

// outcomeOf is how an error of the service is told to the caller.
func outcomeOf(err error) (outcome string, status int, text string) {
	var refused *refusedError
	switch {
	case errors.Is(err, errNotLeader):
		return outcomeNotLeader, http.StatusMisdirectedRequest, ""
	case errors.Is(err, errUnavailable):
		var early *notYetError
		if errors.As(err, &early) {
			text = early.reason
		}
		return outcomeUnavailable, http.StatusServiceUnavailable, text
	case errors.As(err, &refused):
		return outcomeRefused, http.StatusConflict, refused.reason
	}
	return outcomeUnknown, http.StatusGatewayTimeout, ""
}

// rpcClient calls peers. A target is a node id or a host:port. Safe for concurrent use.
type rpcClient struct {
	http      *http.Client
	clusterID func() string
	self      nodeAddr
	clocks    *clocks // nil: clocks are not compared
	// identity reads whose certificate a connection is by; nil: what a node says of itself is not compared with it.
	identity func(tls.ConnectionState) (PeerIdentity, error)
	// otherCluster is told of a peer that refused a call since it belongs to another cluster; nil: nobody is.
	otherCluster func(peer, clusterID string)
}

// call sends one request and returns the body of an answer that says it was done.
// Errors: a *leaderHint, errUnavailable and *refusedError mean that nothing happened, and so does errNotSent; anything
// else leaves the outcome unknown.
func (c *rpcClient) call(ctx context.Context, target, method, path string, body []byte, limit int64, header ...string) ([]byte, error) {
	text, _, err := c.callFrom(ctx, target, method, path, body, limit, header...)
	return text, err
}

// callFrom is call that also says which node's certificate the answer came by, "" where that was not looked at.
func (c *rpcClient) callFrom(ctx context.Context, target, method, path string, body []byte, limit int64, header ...string) (answer []byte, from string, err error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+target+path, bytes.NewReader(body))
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", errNotSent, err)
	}
	// Without it net/http would send the request again by itself on a broken connection; the repetitions are ours.
	req.GetBody = nil
	if id := c.clusterID(); id != "" {
		req.Header.Set(headerClusterID, id)
	}
	req.Header.Set(headerPeer, c.self.Peer)
	req.Header.Set(headerGossip, c.self.Gossip)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	req, ended := traceCall(req)
	defer func() { ended(err) }()
	sent := traceSent(req)
	resp, err := c.http.Do(sent.req)
	if err != nil {
		if !sent.any() {
			return nil, "", fmt.Errorf("%w: %w", errNotSent, err)
		}
		return nil, "", fmt.Errorf("call peer: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, "", fmt.Errorf("call peer: %w", err)
	}
	if int64(len(text)) > limit {
		return nil, "", errors.New("call peer: answer too large")
	}
	switch resp.Header.Get(headerOutcome) {
	case outcomeDone:
		if resp.TLS != nil && c.identity != nil {
			id, err := c.identity(*resp.TLS)
			if err != nil {
				return nil, "", fmt.Errorf("call peer: %w", err)
			}
			from = id.NodeID
		}
		return text, from, nil
	case outcomeNotLeader:
		return nil, "", &leaderHint{leaderID: resp.Header.Get(headerLeader)}
	case outcomeUnavailable:
		if len(text) > 0 {
			return nil, "", &notYetError{reason: string(text)}
		}
		return nil, "", errUnavailable
	case outcomeRefused:
		if theirs := resp.Header.Get(headerClusterID); theirs != "" && c.otherCluster != nil {
			c.otherCluster(target, theirs)
		}
		return nil, "", &refusedError{reason: string(text)}
	default:
		if resp.StatusCode == http.StatusNotFound {
			return nil, "", errNoSuchCall
		}
		return nil, "", fmt.Errorf("call peer: answered %s", resp.Status)
	}
}

func (c *rpcClient) hello(ctx context.Context, target string) (helloReply, error) {
	var reply helloReply
	began := time.Now()
	text, from, err := c.callFrom(ctx, target, http.MethodGet, pathHello, nil, maxHelloBytes)
	took := time.Since(began)
	if err != nil {
		return reply, err
	}
	if err := rpcDecoding.Unmarshal(text, &reply); err != nil {
		return reply, fmt.Errorf("call peer: %w", err)
	}
	if !validNodeID(reply.NodeID) {
		return reply, errors.New("call peer: malformed node id")
	}
	if from != "" && from != reply.NodeID {
		return reply, fmt.Errorf("%w: it says that it is %s, by the certificate of %s", errOtherNode, reply.NodeID, from)
	}
	if c.clocks != nil && reply.Now != 0 {
		c.clocks.observe(reply.NodeID, time.Unix(0, reply.Now), took)
	}
	return reply, nil
}

func (c *rpcClient) forward(ctx context.Context, target string, envelope []byte) (state.Result, error) {
	text, err := c.call(ctx, target, http.MethodPost, pathForward, envelope, state.MaxResultSize)
	if err != nil {
		return state.Result{}, err
	}
	result, err := state.DecodeResult(text)
	if err != nil {
		return state.Result{}, fmt.Errorf("call peer: %w", err)
	}
	return result, nil
}

func (c *rpcClient) barrier(ctx context.Context, target string, patience time.Duration) (uint64, error) {
	text, err := c.call(ctx, target, http.MethodPost, pathBarrier, nil, 16, headerPatience, strconv.FormatInt(patience.Milliseconds(), 10))
	if err != nil {
		return 0, err
	}
	var index uint64
	if err := rpcDecoding.Unmarshal(text, &index); err != nil {
		return 0, fmt.Errorf("call peer: %w", err)
	}
	return index, nil
}

func (c *rpcClient) join(ctx context.Context, target string, req joinRequest) (joinReply, error) {
	var reply joinReply
	body, err := cbor.Marshal(req)
	if err != nil {
		return reply, fmt.Errorf("%w: %w", errNotSent, err)
	}
	text, err := c.call(ctx, target, http.MethodPost, pathJoin, body, maxHelloBytes)
	if err != nil {
		return reply, err
	}
	if err := rpcDecoding.Unmarshal(text, &reply); err != nil {
		return reply, fmt.Errorf("call peer: %w", err)
	}
	return reply, nil
}

// applied returns once the peer has applied the entry at index.
func (c *rpcClient) applied(ctx context.Context, target string, index uint64) error {
	_, err := c.call(ctx, target, http.MethodGet, pathApplied, nil, 16, headerIndex, strconv.FormatUint(index, 10))
	return err
}

// close drops the idle connections; calls in flight end with their contexts.
func (c *rpcClient) close() { c.http.CloseIdleConnections() }
