package node

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"sluice/limiter"
	"sluice/raftfsm/state"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newNodeID() string { return nodeIDPrefix + strings.ToLower(ulid.Make().String()) }

// credentials makes a node of a cluster.
func credentials(t *testing.T, secret, cluster string, now func() time.Time) *derivedCredentials {
	t.Helper()
	keys, err := deriveClusterKeys([]byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	d, err := newDerivedCredentials(keys, PeerIdentity{NodeID: newNodeID(), Cluster: cluster}, now)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// listenPeers serves a node's peer listener until the test's end.
func listenPeers(t *testing.T, creds PeerCredentials) (*peerListener, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := newPeerListener(ln, creds, "", discard())
	t.Cleanup(func() {
		if err := p.close(); err != nil {
			t.Errorf("close peer listener: %v", err)
		}
	})
	return p, ln.Addr().String()
}

func dialerOf(t *testing.T, creds PeerCredentials, address string) *dialer {
	t.Helper()
	d := newDialer(creds, func(string) (string, error) { return address, nil }, nil, discard())
	t.Cleanup(d.close)
	return d
}

func TestPeerTLS_WhoIsLetIn(t *testing.T) {
	t.Parallel()
	server := credentials(t, "secret", "blue", time.Now)
	_, address := listenPeers(t, server)
	for _, tt := range []struct {
		name   string
		client *derivedCredentials
		target string
		want   error // nil: let in
	}{
		{"same cluster, by address", credentials(t, "secret", "blue", time.Now), address, nil},
		{"same cluster, by id", credentials(t, "secret", "blue", time.Now), server.self.NodeID, nil},
		{"another node was meant", credentials(t, "secret", "blue", time.Now), newNodeID(), errOtherNode},
		{"another secret", credentials(t, "other", "blue", time.Now), address, errOtherSecret},
		{"another cluster", credentials(t, "secret", "green", time.Now), address, errOtherCluster},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			conn, err := dialerOf(t, tt.client, address).dial(t.Context(), tt.target, protoRPC)
			if !errors.Is(err, tt.want) {
				t.Errorf("dial: %v, want %v", err, tt.want)
			}
			if err == nil {
				if id, err := tt.client.Identity(conn.ConnectionState()); err != nil || id != server.self {
					t.Errorf("the server is %+v, %v, want %+v", id, err, server.self)
				}
				conn.Close()
			}
		})
	}
}

// The server has to refuse by itself what a client that checks nothing presents.
func TestPeerTLS_ServerRefuses(t *testing.T) {
	t.Parallel()
	server := credentials(t, "secret", "blue", time.Now)
	p, address := listenPeers(t, server)
	ln := p.listener(p.rpc, nil)
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte("in"))
			conn.Close()
		}
	}()
	dial := func(change func(*tls.Config)) error {
		c := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protoRPC}}
		change(c)
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", address, c)
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		text, err := io.ReadAll(conn)
		if err == nil && string(text) != "in" {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	present := func(d *derivedCredentials) func(*tls.Config) {
		cert, err := d.certificate()
		if err != nil {
			t.Fatal(err)
		}
		return func(c *tls.Config) { c.Certificates = []tls.Certificate{*cert} }
	}
	for name, change := range map[string]func(*tls.Config){
		"no certificate":  func(*tls.Config) {},
		"another secret":  present(credentials(t, "other", "blue", time.Now)),
		"another cluster": present(credentials(t, "secret", "green", time.Now)),
		"expired":         present(credentials(t, "secret", "blue", func() time.Time { return time.Now().Add(-2 * nodeCertLife) })),
		"TLS 1.2": func(c *tls.Config) {
			present(credentials(t, "secret", "blue", time.Now))(c)
			c.MaxVersion = tls.VersionTLS12
		},
		"the authority's own": func(c *tls.Config) {
			c.Certificates = []tls.Certificate{{Certificate: [][]byte{server.ca.Raw}, PrivateKey: server.caKey}}
		},
		"another protocol": func(c *tls.Config) {
			present(credentials(t, "secret", "blue", time.Now))(c)
			c.NextProtos = []string{"http/1.1"}
		},
	} {
		if err := dial(change); err == nil {
			t.Errorf("%s: let in", name)
		}
	}
	if err := dial(present(credentials(t, "secret", "blue", time.Now))); err != nil {
		t.Errorf("a member: %v", err)
	}
}

func TestPeerTLS_SameAuthorityEverywhere(t *testing.T) {
	t.Parallel()
	a, b := credentials(t, "secret", "blue", time.Now), credentials(t, "secret", "blue", time.Now)
	if string(a.ca.Raw) != string(b.ca.Raw) {
		t.Error("two holders of one secret made different authorities")
	}
}

func TestPeerTLS_Renews(t *testing.T) {
	t.Parallel()
	now := time.Now()
	d := credentials(t, "secret", "blue", func() time.Time { return now })
	first, err := d.certificate()
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := d.certificate(); again != first {
		t.Error("renewed at once")
	}
	now = now.Add(nodeCertLife / 2)
	if later, err := d.certificate(); err != nil || later == first {
		t.Errorf("not renewed in half its life: %v", err)
	}
}

func TestIdentityURI(t *testing.T) {
	t.Parallel()
	for _, id := range []PeerIdentity{
		{newNodeID(), "blue"}, {newNodeID(), "a/b c?d#e%f"}, {newNodeID(), "ünï"},
	} {
		if got, ok := parseIdentityURI(identityURI(id)); !ok || got != id {
			t.Errorf("%+v comes back as %+v, %t", id, got, ok)
		}
	}
}

// A stranger who connects and says nothing holds a place for the handshake's deadline and no longer, and does not keep
// members out.
func TestPeerListener_SilentStrangers(t *testing.T) {
	t.Parallel()
	server := credentials(t, "secret", "blue", time.Now)
	_, address := listenPeers(t, server)
	var silent []net.Conn
	for range maxPendingHandshakes / 2 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		silent = append(silent, conn)
	}
	conn, err := dialerOf(t, credentials(t, "secret", "blue", time.Now), address).dial(t.Context(), address, protoRPC)
	if err != nil {
		t.Fatalf("a member among silent strangers: %v", err)
	}
	conn.Close()
	silent[0].SetReadDeadline(time.Now().Add(3 * handshakeTimeout))
	if _, err := silent[0].Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a silent stranger was not cut off: %v", err)
	}
}

func TestPeerListener_ConnectionsOfOnePeer(t *testing.T) {
	t.Parallel()
	server := credentials(t, "secret", "blue", time.Now)
	p, address := listenPeers(t, server)
	accepted := make(chan net.Conn, 2*maxConnsPerPeer)
	ln := p.listener(p.rpc, nil)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	defer ln.Close()
	client := credentials(t, "secret", "blue", time.Now)
	d := dialerOf(t, client, address)
	for range maxConnsPerPeer {
		if _, err := d.dial(t.Context(), address, protoRPC); err != nil {
			t.Fatal(err)
		}
		<-accepted
	}
	// The client's handshake ends before the server has counted; the refusal shows as a closed connection.
	if conn, err := d.dial(t.Context(), address, protoRPC); err == nil {
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("connection %d was served: %v", maxConnsPerPeer+1, err)
		}
	}
	if _, err := dialerOf(t, credentials(t, "secret", "blue", time.Now), address).dial(t.Context(), address, protoRPC); err != nil {
		t.Errorf("another peer: %v", err)
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// fakeService answers calls as the test says.
type fakeService struct {
	forward func(caller string, envelope []byte) (state.Result, error)
	from    chan nodeAddr
}

func (f *fakeService) hello() helloReply { return helloReply{NodeID: newNodeID(), Formed: "clu_1"} }
func (f *fakeService) clusterID() string { return "clu_1" }
func (f *fakeService) leaderID() string  { return "nod_leader" }
func (f *fakeService) heard(a nodeAddr) {
	select {
	case f.from <- a:
	default:
	}
}
func (f *fakeService) serveForward(_ context.Context, caller string, envelope []byte) (state.Result, error) {
	return f.forward(caller, envelope)
}
func (f *fakeService) serveSettings(req settingsRequest) (settingsReply, error) {
	return settingsReply{Mistakes: []string{req.Source + ": " + req.Text}}, nil
}
func (f *fakeService) serveKeyring() keyringReply                                   { return keyringReply{} }
func (f *fakeService) serveApplied(context.Context, uint64) error                   { return nil }
func (f *fakeService) serveLeave(context.Context, string, leaveRequest) error       { return nil }
func (f *fakeService) serveRemove(context.Context, string, removeRequest) error     { return nil }
func (f *fakeService) otherCluster(string, string)                                  {}
func (f *fakeService) serveVote(context.Context, string, voteRequest) error         { return nil }
func (f *fakeService) serveTransfer(context.Context, string, transferRequest) error { return nil }
func (f *fakeService) serveBequest(context.Context, string, bequestPart) (bequestReply, error) {
	return bequestReply{}, nil
}

func (f *fakeService) serveBarrier(context.Context, string, time.Duration) (uint64, error) {
	return 42, nil
}
func (f *fakeService) serveJoin(context.Context, string, joinRequest) (joinReply, error) {
	return joinReply{}, &refusedError{reason: "full"}
}

func (f *fakeService) serveExplain(req explainRequest) (explainReply, error) {
	return explainReply{Buckets: []*limiter.Explanation{{Used: 1500, Cells: []limiter.CellView{{Peer: "b", Given: true}}}, nil}[:len(req.Buckets)]}, nil
}

func TestRPC(t *testing.T) {
	t.Parallel()
	server := credentials(t, "secret", "blue", time.Now)
	p, address := listenPeers(t, server)
	service := &fakeService{from: make(chan nodeAddr, 1)}
	srv := newRPCServer(service, server, newSlots(maxServedCalls), nil, discard())
	go srv.Serve(p.listener(p.rpc, advertisedAddr(address)))
	t.Cleanup(func() { srv.Close() })

	client := credentials(t, "secret", "blue", time.Now)
	self := nodeAddr{ID: client.self.NodeID, Peer: "127.0.0.1:1", Gossip: "127.0.0.1:2"}
	id := "clu_1"
	rpc := &rpcClient{http: newRPCClient(dialerOf(t, client, address)), clusterID: func() string { return id }, self: self}
	t.Cleanup(rpc.close)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()

	if reply, err := rpc.hello(ctx, address); err != nil || reply.Formed != "clu_1" {
		t.Fatalf("hello: %+v, %v", reply, err)
	}
	if got := <-service.from; got != self {
		t.Errorf("the server heard of %+v, want %+v", got, self)
	}
	if index, err := rpc.barrier(ctx, server.self.NodeID, time.Second); err != nil || index != 42 {
		t.Errorf("barrier: %d, %v", index, err)
	}
	two := explainRequest{Buckets: make([]explainedBucket, 2)}
	if reply, err := rpc.explain(ctx, server.self.NodeID, two); err != nil || reply.Buckets[1] != nil || reply.Buckets[0].Used != 1500 || !reply.Buckets[0].Cells[0].Given {
		t.Errorf("explain: %+v, %v", reply, err)
	}
	if reply, err := rpc.checkSettings(ctx, server.self.NodeID, settingsRequest{Source: "s", Text: "bad"}); err != nil || len(reply.Mistakes) != 1 || reply.Mistakes[0] != "s: bad" {
		t.Errorf("settings: %+v, %v", reply, err)
	}
	if _, err := rpc.call(ctx, server.self.NodeID, http.MethodPost, "/v1/of-a-later-version", nil, 64); !errors.Is(err, errNoSuchCall) {
		t.Errorf("a call that the peer does not know: %v", err)
	}
	var refused *refusedError
	if _, err := rpc.join(ctx, server.self.NodeID, joinRequest{}); !errors.As(err, &refused) || refused.reason != "full" {
		t.Errorf("join: %v, want the refusal", err)
	}
	for _, tt := range []struct {
		name string
		err  error
		ok   func(error) bool
	}{
		{"done", nil, func(err error) bool { return err == nil }},
		{"not the leader", errNotLeader, func(err error) bool {
			var hint *leaderHint
			return errors.Is(err, errNotLeader) && errors.As(err, &hint) && hint.leaderID == "nod_leader"
		}},
		{"unavailable", errUnavailable, func(err error) bool { return errors.Is(err, errUnavailable) }},
		{"refused", &refusedError{reason: "no"}, func(err error) bool { return errors.As(err, &refused) }},
		{"anything else is unknown", io.ErrUnexpectedEOF, func(err error) bool {
			return err != nil && !errors.Is(err, errUnavailable) && !errors.Is(err, errNotLeader) && !errors.Is(err, errNotSent)
		}},
	} {
		service.forward = func(caller string, envelope []byte) (state.Result, error) {
			if caller != client.self.NodeID || string(envelope) != "envelope" {
				t.Errorf("%s: caller %s, envelope %q", tt.name, caller, envelope)
			}
			return state.Result{Index: 7, Count: 1}, tt.err
		}
		result, err := rpc.forward(ctx, server.self.NodeID, []byte("envelope"))
		if !tt.ok(err) || (err == nil && result.Index != 7) {
			t.Errorf("%s: %+v, %v", tt.name, result, err)
		}
	}
	service.forward = func(string, []byte) (state.Result, error) {
		t.Error("a command beyond the limit was served")
		return state.Result{}, nil
	}
	if _, err := rpc.forward(ctx, server.self.NodeID, make([]byte, state.MaxCommandSize+1)); !errors.As(err, &refused) {
		t.Errorf("too large: %v, want a refusal", err)
	}
	id = "clu_2"
	if _, err := rpc.forward(ctx, server.self.NodeID, []byte("x")); !errors.As(err, &refused) {
		t.Errorf("another cluster's id: %v, want a refusal", err)
	}
}

func TestRPC_NobodyThere(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	ln.Close()
	client := credentials(t, "secret", "blue", time.Now)
	rpc := &rpcClient{http: newRPCClient(dialerOf(t, client, address)), clusterID: func() string { return "" }}
	t.Cleanup(rpc.close)
	if _, err := rpc.forward(t.Context(), newNodeID(), []byte("x")); !errors.Is(err, errNotSent) {
		t.Errorf("nobody there: %v, want errNotSent: nothing can have happened", err)
	}
}

func FuzzRPCDecoding(f *testing.F) {
	f.Add([]byte{0xa1, 1, 0x61, 'x'})
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, data []byte) {
		var hello helloReply
		var join joinRequest
		var reply joinReply
		for _, v := range []any{&hello, &join, &reply} {
			_ = rpcDecoding.Unmarshal(data, v)
		}
	})
}
