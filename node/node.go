package node

// Order of the start (Open, then form in the background):
//
//  1. Secrets and data directory: nothing else may touch the disk before the lock is held.
//  2. Replicated state from the disk.
//  3. Listeners: gossip, peers, gRPC, admin, public. All addresses are known from here on, and whoever asks gets an answer: the
//     public API says 503 until the node is ready, peers get this node's hello, which the formation needs.
//  4. The cluster is formed, joined or found again, however long that takes.
//  5. Raft, then gossip, which goes by Raft's members; then what rests on both: freshness probes and the leader's work.
//  6. The limiter, once the replicated state has the key of the bucket hash.
//
// Order of the stop (Drain, then Close):
//
//  1. Readiness goes, so that load balancers look elsewhere; drain_delay lets them notice.
//  2. The listeners for clients close and requests in flight are finished; all of the node still works for them.
//  3. Leadership is handed over, before Raft stops, so that writes elsewhere do not wait for an election.
//  4. Gossip says goodbye. The node stays in the Raft configuration: it is expected back.
//  5. The probes stop and the peers' connections are cut: Raft must not wait for a peer that does not answer. Then Raft
//     and the loops around it.
//  6. Gossip before the limiter that takes its packets, the state, and last the lock of the data directory.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"sluice/authapi"
	"sluice/authapi/grpcapi"
	"sluice/authapi/hashworker"
	"sluice/limiter"
	"sluice/node/tracing"
	"sluice/raftfsm"
	"sluice/raftfsm/state"
)

// Node is one running node. All methods are safe for concurrent use.
type Node struct {
	cfg       Config
	opts      options
	log       *slog.Logger
	discovery discovery

	data      *dataDir
	keys      clusterKeys
	sealer    *Sealer
	creds     PeerCredentials
	peerFiles *fileCredentials // nil where certificates are derived from the cluster secret
	book      *addressBook
	clocks    *clocks
	files     openFiles
	storage   *storage
	// standBack is set while this node may not lead; see consensus.retire.
	standBack atomic.Bool
	fsm       *raftfsm.FSM
	gossip    *gossip
	peers     *peerListener
	rpcServer *http.Server
	rpc       *rpcClient
	dialer    *dialer
	api       *authapi.Server
	tracing   *tracing.Tracing    // nil where nothing is traced
	hashing   *hashworker.Process // nil: in this process
	admin     *adminServer
	limits    limits
	probation probation
	settings  settings
	keyring   keyring
	// certificates is the public listener's, grpcCertificates that of the listener for gRPC, adminCertificates the operators'; nil for
	// plain HTTP.
	certificates, grpcCertificates, adminCertificates *certificates
	// grpc answers on grpcListener; both are nil where that is off, as is the other where that is.
	grpc                             *grpcapi.Server
	grpcListener, gubernatorListener net.Listener
	proposer                         *proposer
	freshness                        *freshness
	barriers                         *barriers
	backingUp                        *slots // for those who read everything
	calls                            *slots // of peers
	importing                        *slots // accounts, by operators
	schedule                         *backupSchedule
	levels                           sync.Mutex  // held while the cluster's level is raised, and while a node is taken in
	restoring                        sync.Mutex  // held while a backup is taken in; one at a time
	secretsAmiss                     atomic.Bool // the key for secrets at rest that is in use is not held here
	secretsKeys                      sync.Mutex  // held while the keys for secrets at rest are exchanged or rotated
	former                           *former
	joiner                           *joiner

	peerAddress string
	httpAddress net.Addr

	consensus atomic.Pointer[consensus]
	formedID  atomic.Pointer[string]
	draining  atomic.Bool

	ctx    context.Context // ends with Close or a failure; its cause is the failure
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // form and all the loops
	ready  chan struct{}
	once   onceIn

	serveErr  chan error // the public listener's end
	leaving   leaving
	heir      *heir
	serveOnce sync.Once
	stopErr   error
	drainOnce sync.Once
	drainErr  error
	closeOnce sync.Once
	closeErr  error
	apiOnce   sync.Once
	apiErr    error
}

// errClosed is the cause of a context that ended since the node was closed.
var errClosed = errors.New("node closed")

// Open starts a node. It returns once the node listens; the cluster is formed, joined or found again in the background,
// which may take as long as other nodes do: see Ready. What ends the node later is told by Run and Done.
//
// ctx bounds Open itself only. On an error everything is released.
func Open(ctx context.Context, cfg Config, opts ...Option) (_ *Node, err error) {
	o := options{version: "dev", clock: time.Now, space: diskSpace, resolver: net.DefaultResolver}
	for _, opt := range opts {
		opt(&o)
	}
	if o.logger == nil {
		o.logger = NewLogger(cfg.Log, os.Stderr)
	}
	n := &Node{
		cfg: cfg, opts: o, log: o.logger,
		discovery: discovery{resolver: o.resolver},
		book:      newAddressBook(), clocks: newClocks(o.clock),
		ready: make(chan struct{}), serveErr: make(chan error, 1), leaving: leaving{start: make(chan leaveRequest, 1)}, backingUp: newSlots(maxBackups), calls: newSlots(maxServedCalls), importing: newSlots(maxImports),
	}
	n.ctx, n.cancel = context.WithCancelCause(context.Background())
	n.limits.now = o.clock
	n.schedule = &backupSchedule{n: n, config: cfg.Backup}
	n.schedule.began.Store(o.clock().UnixMilli())
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
			for _, ln := range []net.Listener{n.opts.http, n.opts.peer, n.opts.admin} {
				if ln != nil {
					ln.Close()
				}
			}
		}
	}()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if n.files, n.cfg.HTTP.MaxConns, err = checkFiles(&n.cfg, raiseFiles, n.log); err != nil {
		return nil, err
	}
	if err := n.openStores(); err != nil {
		return nil, err
	}
	n.wg.Go(func() { n.storage.watchSpace(n.ctx) })
	n.wg.Go(func() { n.watchOffice(n.ctx) })
	n.wg.Go(func() { n.collectValueLog(n.ctx) })
	n.proposer = newProposer(n.data.NodeID, n.consensus.Load, &forwarder{
		base: n.ctx,
		many: func(ctx context.Context, leader string, envelopes [][]byte) ([]forwardReply, error) {
			return n.rpc.forwards(ctx, leader, envelopes)
		},
		one: func(ctx context.Context, leader string, envelope []byte) (state.Result, error) {
			return n.rpc.forward(ctx, leader, envelope)
		},
	}, o.clock)
	n.proposer.standby, n.proposer.admit = n.storage.retired, n.storage.admit
	n.freshness = newFreshness(n.confirm, n.fsm.WaitApplied, time.Duration(cfg.Auth.MaxStaleness))
	n.barriers = newBarriers(func(ctx context.Context, cmd state.Command) (state.Result, error) {
		k := n.consensus.Load()
		if k == nil {
			return state.Result{}, errNotLeader
		}
		return k.proposeHere(ctx, n.opts.clock(), cmd)
	})
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if err := n.listen(); err != nil {
		return nil, err
	}
	n.wg.Go(func() {
		if err := n.form(n.ctx); err != nil && n.ctx.Err() == nil {
			n.fail(err)
		}
	})
	n.wg.Go(n.watchReady)
	return n, nil
}

// openStores reads the secrets, locks the data directory and opens the replicated state.
func (n *Node) openStores() error {
	secret, err := readSecret("secrets.cluster", n.cfg.Secrets.Cluster, n.cfg.Secrets.ClusterFile)
	if err != nil {
		return err
	}
	if n.keys, err = deriveClusterKeys(secret); err != nil {
		return err
	}
	keys, err := n.cfg.Secrets.keys()
	if err != nil {
		return err
	}
	if n.sealer, err = newSealer(keys...); err != nil {
		return err
	}
	if n.data, err = openDataDir(n.cfg.DataDir, n.opts.clock()); err != nil {
		return err
	}
	// What a crash left of a restore is everybody's names and hashes, in the clear.
	if err := os.RemoveAll(filepath.Join(n.data.path, restoreDir)); err != nil {
		return fmt.Errorf("remove what is left of a restore: %w", err)
	}
	if err := n.data.unfinishedRecovery(); err != nil {
		return err
	}
	n.log = nodeLogger(n.opts.logger, n.data.NodeID, n.cfg.Name)
	if err := n.openPeerCredentials(); err != nil {
		return err
	}
	n.heir, err = newHeir(n.data, func(leaver string, list [32]byte, r io.Reader) error {
		return n.limits.limiter.Load().StoreBequest(leaver, list, r)
	})
	if err != nil {
		return err
	}
	paths := [3]string{}
	for i, name := range []string{raftDir, stateDir, limiterDir} {
		if paths[i], err = n.data.sub(name); err != nil {
			return err
		}
	}
	n.storage = newStorage(n.cfg.Storage, n.opts.space, paths[0], paths[1], paths[2], n.log.With("component", "storage"))
	if err := n.storage.enough(); err != nil {
		return err
	}
	c := raftfsm.Config{Dir: paths[1], Logger: n.log.With("component", "state"), Fatal: n.opts.fatal, Room: n.storage.applyRoom}
	m, err := n.data.membership()
	if err != nil {
		return err
	}
	if m != nil {
		c.ClusterID = m.ClusterID
		n.formedID.Store(&m.ClusterID)
	}
	if n.fsm, err = raftfsm.Open(c); err != nil {
		return err
	}
	if err := n.openTracing(); err != nil {
		return err
	}
	n.openSettings()
	return nil
}

// listen opens all listeners and serves on them.
func (n *Node) listen() error {
	var err error
	n.gossip, err = listenGossip(n.data.NodeID, n.cfg.Gossip.Listen, n.cfg.Gossip.Advertise, n.discovery, n.clocks, n.log)
	if err != nil {
		return err
	}
	peerLog := n.log.With("component", "peer")
	if n.opts.peer == nil {
		if n.opts.peer, err = net.Listen("tcp", n.cfg.Peer.Listen); err != nil {
			return fmt.Errorf("listen for peers: %w", err)
		}
	}
	if n.peerAddress, err = advertised(n.cfg.Peer.Advertise, n.opts.peer.Addr(), "peer"); err != nil {
		return err
	}
	n.dialer = newDialer(n.creds, n.book.peer, n.opts.resolver, peerLog)
	n.rpc = &rpcClient{
		http: newRPCClient(n.dialer), clusterID: n.clusterID, clocks: n.clocks, identity: n.creds.Identity, otherCluster: n.otherCluster,
		self: nodeAddr{ID: n.data.NodeID, Peer: n.peerAddress, Gossip: n.gossip.address},
	}
	n.newFormer(peerLog)
	n.peers = newPeerListener(n.opts.peer, n.creds, n.clusterID(), peerLog)
	n.watchPeerFiles()
	n.rpcServer = newRPCServer((*peerCalls)(n), n.creds, n.calls, n.tracer(), peerLog)
	n.wg.Go(func() { n.rpcServer.Serve(n.peers.listener(n.peers.rpc, advertisedAddr(n.peerAddress))) })

	config, err := n.apiConfig()
	if err != nil {
		return err
	}
	if h := n.cfg.HTTP; h.TLSCert != "" {
		if n.certificates, err = openCertificates("http", h.TLSCert, h.TLSKey, "", n.log.With("component", "tls")); err != nil {
			return err
		}
		config.TLS = n.certificates.config()
		n.wg.Go(func() { n.certificates.watch(n.ctx) })
	}
	n.startHashing(&config)
	if n.api, err = authapi.New(config); err != nil {
		return err
	}
	if err := n.listenGRPC(); err != nil { // before the admin listener, whose metrics tell of it
		return err
	}
	if err := n.openAdmin(); err != nil {
		return err
	}
	if n.opts.http == nil {
		if n.opts.http, err = net.Listen("tcp", n.cfg.HTTP.Listen); err != nil {
			return fmt.Errorf("listen for clients: %w", err)
		}
	}
	n.httpAddress = n.opts.http.Addr()
	n.wg.Go(func() {
		if err := n.api.Serve(n.opts.http); err != nil {
			n.fail(err)
		}
	})
	n.log.Info("listening", "http", n.httpAddress.String(), "tls", n.certificates != nil, "peer", n.peerAddress, "gossip", n.gossip.address)
	return nil
}

// form brings this node into its cluster and starts what rests on it. It owns every loop it starts: they end with ctx.
func (n *Node) form(ctx context.Context) error {
	found, err := n.findCluster(ctx)
	if err != nil {
		return err
	}
	dir, err := n.data.sub(raftDir)
	if err != nil {
		return err
	}
	if found.formation != nil {
		n.book.setServers(found.formation.Members)
	}
	n.peers.setCluster(found.clusterID)
	k, err := openConsensus(consensusConfig{
		self: n.data.NodeID, dir: dir, raft: n.cfg.Raft,
		stream:    &streamLayer{protoListener: n.peers.listener(n.peers.raft, advertisedAddr(n.peerAddress)), dialer: n.dialer, standBack: &n.standBack, proto: raftProto(found.clusterID)},
		fsm:       n.fsm,
		log:       n.log,
		fatal:     n.opts.fatal,
		bootstrap: found.bootstrap,
		member:    found.member,
		may:       n.mayCommit,
		storage:   n.storage, wrap: n.opts.logs,
		cut: func() { n.dialer.cut(raftProto(found.clusterID)) }, standBack: &n.standBack,
	})
	if err != nil {
		return err
	}
	n.consensus.Store(k)
	n.formedID.Store(&found.clusterID)
	if found.bootstrap != nil {
		if err := n.data.setMembership(found.clusterID, n.opts.clock(), true); err != nil {
			return err
		}
	}
	n.refreshBook()
	n.wg.Go(func() { n.followState(ctx) })
	n.wg.Go(func() { n.barriers.run(ctx) })
	n.wg.Go(func() { n.freshness.run(ctx) })
	if err := n.startGossip(ctx, found.clusterID, found.joining); err != nil {
		return err
	}
	o := &office{
		self: n.data.NodeID, k: k, barriers: n.barriers, gossip: n.gossip, clocks: n.clocks,
		lease: time.Duration(n.cfg.Limits.Lease), deadAfter: time.Duration(n.cfg.Limits.DeadAfter),
		maxSkew: time.Duration(n.cfg.Limits.MaxClockSkew), keep: max(minRosterKeep, 2*longestWindow),
		now: n.opts.clock, maintain: n.api.Maintain,
		probation: &n.probation, record: n.record,
		cleaner: cleaner{
			after: time.Duration(n.cfg.Membership.DeadServerCleanup), minVoters: n.cfg.Membership.MinVoters,
			dead: func(id string) time.Duration { return n.deadFor(k, id) },
		},
		log: n.log.With("component", "leader"),
	}
	n.wg.Go(func() { o.run(ctx) })
	n.wg.Go(func() { n.announce(ctx) })
	n.wg.Go(func() { n.rediscover(ctx) })
	n.wg.Go(func() { n.watchRemoval(ctx, k) })
	n.wg.Go(func() { n.leaveLoop(ctx) })
	if n.cfg.Backup.Dir != "" {
		n.wg.Go(func() { n.schedule.run(ctx) })
	}
	if err := n.finishJoin(ctx, k, found); err != nil {
		return err
	}
	return n.startLimiter(ctx)
}

// followState hands on what the replicated state says about shares, addresses, settings and the keyring of gossip.
func (n *Node) followState(ctx context.Context) {
	wake := make(chan struct{}, 1)
	cancel := n.fsm.Subscribe(func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	})
	defer cancel()
	for {
		n.tellLimiter()
		n.takeUpSettings()
		n.takeUpSecretsKey()
		n.takeUpKeyring()
		n.refreshBook()
		select {
		case <-wake:
		case <-ctx.Done():
			return
		}
	}
}

// tellLimiter hands on what the replicated state says about shares and resets, if the limiter is there.
func (n *Node) tellLimiter() {
	if l := n.limits.limiter.Load(); l != nil {
		l.SetState(n.limiterNow())
	}
}

// limiterNow is what the replicated state says about shares and resets. All settings from before its horizon in the log are in force
// here when it returns: so no window that begins after that horizon is opened by an older limit.
func (n *Node) limiterNow() limiter.State {
	s := limiterState(n.fsm.Limiter(), n.fsm.Resets())
	n.takeUpSettings()
	return s
}

// startLimiter opens the limiter as soon as the cluster's secrets are known.
func (n *Node) startLimiter(ctx context.Context) error {
	for {
		secrets, err := n.fsm.View().ClusterSecrets()
		if err != nil {
			return fmt.Errorf("read cluster secrets: %w", err)
		}
		if secrets != nil {
			if err := n.api.CheckSecrets(); err != nil {
				return fmt.Errorf("%w: %w", ErrOtherKey, err)
			}
			l, err := n.openLimiter(secrets)
			if err != nil {
				return err
			}
			l.SetState(n.limiterNow())
			receive := l.Receive
			n.gossip.receive.Store(&receive)
			n.limits.limiter.Store(l)
			// The state may have moved between the reading and the publishing: from here on followState sees to it.
			n.tellLimiter()
			n.resumeLeaving(l)
			return nil
		}
		// Only the first leader of a new cluster is waited for.
		if err := n.fsm.WaitApplied(ctx, n.fsm.AppliedIndex()+1); err != nil {
			return err
		}
	}
}

// announce tells the others where this node is: at once those it can reach, then by an entry, where what the state says
// is not so any more.
func (n *Node) announce(ctx context.Context) {
	self := n.rpc.self
	for _, m := range n.members() {
		if m.ID == self.ID {
			continue
		}
		n.wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, formationTimeout)
			defer cancel()
			if reply, err := n.rpc.hello(ctx, m.ID); err == nil {
				n.learn(reply)
			}
		})
	}
	for {
		if n.announced() {
			return
		}
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
			defer cancel()
			_, err := n.proposer.propose(ctx, newRequestID(), state.PutNode{Node: state.NodeInfo{
				ID: self.ID, Name: n.cfg.Name, PeerAddress: self.Peer, GossipAddress: self.Gossip,
				Version: n.opts.version, JoinedAt: n.opts.clock().UnixMilli(),
			}})
			return err
		}()
		if err == nil {
			return
		}
		select {
		case <-time.After(retryMost):
		case <-ctx.Done():
			return
		}
	}
}

// announced reports whether the replicated state says of this node what it would say itself.
func (n *Node) announced() bool {
	infos, err := n.fsm.Nodes()
	if err != nil {
		return false
	}
	self := n.rpc.self
	return slices.ContainsFunc(infos, func(i state.NodeInfo) bool {
		return i.ID == self.ID && i.Name == n.cfg.Name && i.PeerAddress == self.Peer && i.GossipAddress == self.Gossip && i.Version == n.opts.version
	})
}

// removalLook is how long no leader is known before the others are asked whether this node is still one of them.
const removalLook = 3 * time.Second

// watchRemoval ends the node where the cluster removed it: Raft then shuts itself down, and the process must not live on
// as if nothing had happened.
func (n *Node) watchRemoval(ctx context.Context, k *consensus) {
	leaderless := time.Now()
	for {
		changed := k.leadership.wait()
		if k.raft.State() == raft.Shutdown {
			if ctx.Err() == nil && !n.leaving.begun() {
				n.fail(ErrRemoved)
			}
			return
		}
		// Who was removed while it was down is told by nobody.
		if k.leader() != "" {
			leaderless = time.Now()
		} else if time.Since(leaderless) > removalLook && !n.leaving.begun() {
			if n.isRemoved(ctx) && ctx.Err() == nil {
				n.fail(ErrRemoved)
				return
			}
			leaderless = time.Now()
		}
		select {
		case <-changed:
		case <-time.After(time.Second): // Raft tells nobody of its own end
		case <-ctx.Done():
			return
		}
	}
}

// watchReady closes ready once every check passes.
func (n *Node) watchReady() {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var said string
	next := time.Now().Add(10 * time.Second)
	for {
		err := n.healthError()
		if err == nil {
			n.log.Info("ready")
			close(n.ready)
			return
		}
		if time.Now().After(next) && said != err.Error() {
			said, next = err.Error(), time.Now().Add(10*time.Second)
			n.log.Info("not ready yet", "reason", said)
		}
		select {
		case <-tick.C:
		case <-n.ctx.Done():
			return
		}
	}
}

// fail ends the node with an error, which Run returns; the first one counts.
func (n *Node) fail(err error) { n.cancel(err) }

// Ready is closed once the node was fit for traffic for the first time. See Health for what is so now.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Done is closed when the node has failed or was closed; Err says why.
func (n *Node) Done() <-chan struct{} { return n.ctx.Done() }

// Err is what ended the node, nil while it runs, after a plain Close and after it left the cluster.
func (n *Node) Err() error {
	if err := context.Cause(n.ctx); err != nil && !errors.Is(err, errClosed) && !errors.Is(err, errLeft) {
		return err
	}
	return nil
}

// ID is the node's id.
func (n *Node) ID() string { return n.data.NodeID }

// HTTPAddr is where clients are served.
func (n *Node) HTTPAddr() net.Addr { return n.httpAddress }

// AdminAddr is where operators are served, nil if that is off.
func (n *Node) AdminAddr() net.Addr {
	if n.admin == nil {
		return nil
	}
	return n.opts.admin.Addr()
}

// PeerAddress is the advertised host:port of the peer listener.
func (n *Node) PeerAddress() string { return n.peerAddress }

// GossipAddress is the advertised host:port of the gossip listener.
func (n *Node) GossipAddress() string { return n.gossip.address }

// LeaderID is the id of the node that leads as far as this one knows, "" for none.
func (n *Node) LeaderID() string {
	if k := n.consensus.Load(); k != nil {
		return k.leader()
	}
	return ""
}

// Cluster is what the handlers of the public API use of the node.
func (n *Node) Cluster() authapi.Cluster { return (*apiCluster)(n) }

// State is this node's view of the replicated state.
func (n *Node) State() *raftfsm.View { return n.fsm.View() }

// AppliedIndex is the index of the last entry that this node has applied.
func (n *Node) AppliedIndex() uint64 { return n.fsm.AppliedIndex() }

// Rosters is what the log says about shares, as applied here.
func (n *Node) Rosters() state.LimiterState { return n.fsm.Limiter() }

// Resets lists the buckets that were reset, as applied here.
func (n *Node) Resets() []state.Reset { return slices.Clone(n.fsm.Resets()) }

// strict says whether a node cut off from the log opens no new window.
func (n *Node) strict() bool { return n.cfg.Limits.OnIsolation != "available" }

// clusterID is the id of the cluster that this node belongs to, "" before it does.
func (n *Node) clusterID() string {
	if id := n.formedID.Load(); id != nil {
		return *id
	}
	return ""
}
