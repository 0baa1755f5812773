package limiter

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults of Config.
const (
	DefaultMaxClockSkew   = time.Second
	DefaultMaxBuckets     = 200_000
	DefaultGossipInterval = 50 * time.Millisecond
	DefaultGossipBytes    = 3 << 18
)

const (
	// markLead is how far ahead of the clock the mark is set, markEvery how often.
	markLead  = 5 * time.Second
	markEvery = 2 * time.Second
	// restEach is how many buckets in full form each shard looks at in a gossip interval, to pack those left alone.
	restEach = 16
	// signOfLife is how long a node is quiet at most to another, so that asks lost on the way do not make it look dead for
	// long; signOfLifeLarge the same where there are many.
	signOfLife      = 200 * time.Millisecond
	signOfLifeLarge = time.Second
)

// Config is what Open needs.
type Config struct {
	// NodeID is this node's id as rosters name it.
	NodeID string
	// Incarnation must be greater at each start. 0: kept in Dir, which then must be set.
	Incarnation uint64
	// BucketKey is the same on every node, made once for a cluster and never changed.
	BucketKey [16]byte
	// Dir holds the mark and the records of what was spent; it must exist. A directory without them is a first start.
	// "": nothing is kept; then Incarnation 1 is a first start, and any later one has no share in windows that are open.
	Dir string
	// BootID changes when the machine starts; records of another boot prove nothing. "": read from the system.
	BootID string
	// Clock gives the time; nil: time.Now.
	Clock func() time.Time
	// Transport sends to other nodes; nil: there are none.
	Transport Transport
	// Isolation is Strict by default.
	Isolation Isolation
	// MaxClockSkew bounds how far the nodes' clocks are believed to differ; 0: DefaultMaxClockSkew.
	MaxClockSkew time.Duration
	// MaxBuckets bounds the buckets in memory (some 50 bytes for each, a token bucket some 100), one policy's to a quarter of it, and the file of
	// records (72 bytes for each); 0: DefaultMaxBuckets.
	MaxBuckets int
	// GossipInterval is how often counters are sent; 0: DefaultGossipInterval.
	GossipInterval time.Duration
	// GossipBytes bounds what counters cost to send, in bytes per second to all nodes together, what the transport adds
	// left out; 0: DefaultGossipBytes.
	GossipBytes int
	// Logger gets state changes; nil: none.
	Logger *slog.Logger
}

// Limiter decides for one node. All methods are safe for concurrent use.
type Limiter struct {
	cfg     Config
	clock   func() time.Time
	running *runningClock
	ledger  *ledger
	waiters sync.Pool
	log     *slog.Logger

	markMu   sync.Mutex
	markFile *markFile   // guarded by markMu once Open is done
	markLag  atomic.Bool // the mark could not be raised in time
	kick     chan struct{}
	left     atomic.Bool // Leave was called
	listMu   sync.Mutex  // one list is stored or removed at a time

	stop     chan struct{}
	stopped  sync.Once
	done     sync.WaitGroup
	closeErr error

	waits, timeouts, waitsSkipped  atomic.Uint64
	lateness                       lateness
	waitTimes                      waitTimes
	gossipBytes, gossipPackets     atomic.Uint64
	transferBytes, transferPackets atomic.Uint64
	bytesIn, packetsIn             atomic.Uint64
	recent                         recent
	overadmitted                   uint64 // grains, as last logged; the gossip goroutine's own
	overLogged                     int64  // monotonic; as above
}

// Open starts a limiter. It knows no roster until SetState: until then every Take is Undecided. Errors: ErrConfig,
// ErrInUse, ErrDamaged, and those of the files in Dir, a full disk among them.
func Open(cfg Config) (*Limiter, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	l := &Limiter{
		cfg: cfg, clock: cfg.Clock, log: cfg.Logger, running: newRunningClock(),
		kick: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	l.waiters.New = func() any {
		return &waitSlot{waiter: waiter{ch: make(chan struct{}, 1)}, timer: stoppedTimer()}
	}
	if l.clock == nil {
		l.clock = time.Now
	}
	lc := ledgerConfig{
		self: cfg.NodeID, inc: cfg.Incarnation, available: cfg.Isolation == Available,
		skewMillis: cfg.MaxClockSkew.Milliseconds(), maxBuckets: cfg.MaxBuckets, startMono: l.instant().mono,
	}
	if err := l.load(&lc); err != nil {
		return nil, err
	}
	l.ledger = newLedger(lc)
	if l.markFile != nil && l.markFile.leaving {
		l.ledger.depart()
		l.left.Store(true)
	}
	if err := errors.Join(l.loadLists(), l.raiseMark()); err != nil {
		return nil, errors.Join(err, l.release())
	}
	l.done.Add(2)
	go l.keepMark()
	go l.keepGossip()
	return l, nil
}

func (c *Config) fill() error {
	switch {
	case c.NodeID == "":
		return fmt.Errorf("%w: no node id", ErrConfig)
	case c.Dir == "" && c.Incarnation == 0:
		return fmt.Errorf("%w: neither a directory nor an incarnation", ErrConfig)
	case c.MaxClockSkew < 0 || c.MaxBuckets < 0 || c.GossipInterval < 0 || c.GossipBytes < 0:
		return fmt.Errorf("%w: negative setting", ErrConfig)
	case c.Isolation > Available:
		return fmt.Errorf("%w: isolation %d", ErrConfig, c.Isolation)
	}
	if c.Transport == nil {
		c.Transport = nowhere{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.MaxClockSkew == 0 {
		c.MaxClockSkew = DefaultMaxClockSkew
	}
	if c.MaxBuckets == 0 {
		c.MaxBuckets = DefaultMaxBuckets
	}
	if c.GossipInterval == 0 {
		c.GossipInterval = DefaultGossipInterval
	}
	if c.GossipBytes == 0 {
		c.GossipBytes = DefaultGossipBytes
	}
	if c.BootID == "" && c.Dir != "" {
		c.BootID = bootID()
	}
	return nil
}

type nowhere struct{}

func (nowhere) Send(string, []byte) {}

// bootID names this boot of the machine; where the system does not tell, every start counts as a boot.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(b) == 0 {
		return fmt.Sprintf("unknown at %d", time.Now().UnixNano())
	}
	return string(b)
}

// load reads what earlier starts left.
func (l *Limiter) load(lc *ledgerConfig) error {
	if l.cfg.Dir == "" {
		if lc.inc > 1 {
			// Nothing tells what the earlier incarnations did, nor by which clock.
			lc.startMark = l.clock().Add(markLead + 2*l.cfg.MaxClockSkew).UnixMilli()
			lc.lostThrough = lc.startMark
		}
		return nil
	}
	m, fresh, err := openMark(l.cfg.Dir)
	if err != nil {
		return err
	}
	l.markFile = m
	if err := l.loadFiles(lc, fresh); err != nil {
		return errors.Join(err, m.close())
	}
	return nil
}

func (l *Limiter) loadFiles(lc *ledgerConfig, fresh bool) error {
	m := l.markFile
	switch {
	case lc.inc == 0:
		lc.inc = m.inc + 1
	case lc.inc <= m.inc:
		return fmt.Errorf("%w: incarnation %d is not above %d", ErrConfig, lc.inc, m.inc)
	}
	lc.startMark = m.mark
	if fresh && lc.inc > 1 {
		lc.startMark = l.clock().Add(markLead + 2*l.cfg.MaxClockSkew).UnixMilli()
	}
	var err error
	lc.records, lc.restored, lc.lostThrough, err = loadRecords(l.cfg.Dir, l.cfg.MaxBuckets, l.cfg.BootID, lc.startMark)
	if err != nil {
		return err
	}
	if fresh && len(lc.restored) > 0 {
		// Somebody removed the mark alone: the incarnation would start again at 1, and loans to it count anew.
		return errors.Join(ErrDamaged, lc.records.unmap())
	}
	// The incarnation is lasting before anything is done under it.
	if err := m.write(lc.inc, lc.startMark); err != nil {
		return errors.Join(err, lc.records.unmap())
	}
	if err := syncDir(l.cfg.Dir); err != nil {
		return errors.Join(fmt.Errorf("sync directory: %w", err), lc.records.unmap())
	}
	return nil
}

// raiseMark makes a mark ahead of the clock lasting, then lets decisions go on up to it.
func (l *Limiter) raiseMark() error {
	l.markMu.Lock()
	defer l.markMu.Unlock()
	now := l.clock().UnixMilli()
	mark := max(l.ledger.markMillis(), now+markLead.Milliseconds())
	if l.markFile != nil {
		if err := l.markFile.write(l.ledger.inc, mark); err != nil {
			return err
		}
	}
	l.ledger.mark.Store(mark)
	return nil
}

// keepMark is the goroutine that raises the mark, and forgets what has ended; Close ends it.
func (l *Limiter) keepMark() {
	defer l.done.Done()
	ticker := time.NewTicker(markEvery)
	defer ticker.Stop()
	failing := false
	for {
		select {
		case <-l.stop:
			return
		case <-ticker.C:
		case <-l.kick: // the clock ran past the mark
		}
		err := l.raiseMark()
		if (err != nil) != failing {
			failing = err != nil
			l.markLag.Store(failing)
			if failing {
				l.log.Error("mark cannot be raised; decisions stop when the clock reaches it", "error", err)
			} else {
				l.log.Info("mark is raised again")
			}
		}
	}
}

// keepGossip is the goroutine that sends counters and sweeps; Close ends it.
func (l *Limiter) keepGossip() {
	defer l.done.Done()
	ticker := time.NewTicker(l.cfg.GossipInterval)
	defer ticker.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-ticker.C:
		}
		l.gossip()
		l.tick()
		l.sweep()
	}
}

func (l *Limiter) gossip() {
	t := l.instant()
	send := func(peer uint16, packet []byte) {
		p := l.ledger.peers.at(peer)
		p.toldAt = t.mono
		l.gossipBytes.Add(uint64(len(packet)))
		l.gossipPackets.Add(1)
		l.cfg.Transport.Send(p.id, packet)
	}
	l.ledger.gossip(t, int(int64(l.cfg.GossipBytes)*int64(l.cfg.GossipInterval)/int64(time.Second)), send)
	l.ledger.signsOfLife(t, send)
}

// tick does what token buckets need.
func (l *Limiter) tick() {
	var out outbox
	l.ledger.tick(l.instant(), &out)
	l.flush(&out)
}

// sweep looks at a few buckets of each shard, so that all are seen every minute or so and no lock is held long.
func (l *Limiter) sweep() {
	now := l.instant()
	var over uint64
	for i := range l.ledger.shards {
		sh := &l.ledger.shards[i]
		sh.mu.Lock()
		l.ledger.advance(sh, now.ms)
		l.ledger.sweepShard(sh, 8+sh.live/1000)
		l.ledger.sweepCells(sh)
		l.ledger.rest(sh, now.mono, restEach)
		over += sh.stats.audit.over
		sh.mu.Unlock()
	}
	l.ledger.forgetLists()
	l.recent.turn(now.mono, l.audited)
	if over != l.overadmitted && now.mono-l.overLogged >= int64(time.Second) {
		l.log.Error("more was admitted than a limit allows", "units", (over-l.overadmitted+grains-1)/grains)
		l.overadmitted, l.overLogged = over, now.mono
	}
}

// instant reads the clock, once: time.Now carries both readings. A clock of the caller's may not be monotonic at all.
func (l *Limiter) instant() instant {
	now := time.Now()
	mono := l.running.at(l.running.split(now))
	if l.cfg.Clock != nil {
		now = l.cfg.Clock()
	}
	return instant{ms: now.UnixMilli(), mono: mono}
}

// Bucket names the bucket of a subject under a policy. It does not depend on the limit, nor on resets: the name may be kept.
func (l *Limiter) Bucket(policy string, rule Rule, subject []byte) BucketID {
	return bucketID(&l.cfg.BucketKey, policy, rule, subject)
}

// Take charges every charge or none and fills verdicts, which must be as long as charges. It waits for 12 ms at
// most, and only where shares that other nodes are believed to hold would let the request pass. It returns the worst outcome:
// Undecided over Refused over Admitted. It notes in charges what Refund needs.
func (l *Limiter) Take(charges []Charge, verdicts []Verdict) Outcome {
	if len(charges) == 0 {
		return Admitted
	}
	t := l.instant()
	if t.ms > l.ledger.markMillis() {
		l.wakeMark()
	}
	slot := l.waiters.Get().(*waitSlot)
	slot.waited = false
	var out outbox
	outcome, pending := l.ledger.take(t, charges, verdicts, &slot.waiter, &out)
	l.flush(&out)
	if pending {
		outcome = l.wait(charges, verdicts, slot)
	}
	l.waiters.Put(slot)
	return outcome
}

// probe stands for a request that does not wait.
var probe = waiter{probe: true}

// TryTake is Take for a caller that must not wait. wouldWait says that the request lacks shares which other nodes are
// believed to hold: then nothing was charged or asked for, the verdicts say nothing, and Take would decide.
func (l *Limiter) TryTake(charges []Charge, verdicts []Verdict) (outcome Outcome, wouldWait bool) {
	if len(charges) == 0 {
		return Admitted, false
	}
	t := l.instant()
	if t.ms > l.ledger.markMillis() {
		l.wakeMark()
	}
	var out outbox
	outcome, wouldWait = l.ledger.take(t, charges, verdicts, &probe, &out)
	l.flush(&out)
	return outcome, wouldWait
}

func (l *Limiter) wakeMark() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

func (l *Limiter) flush(out *outbox) {
	if len(out.to) == 0 {
		return
	}
	l.transferPackets.Add(uint64(len(out.to)))
	l.transferBytes.Add(uint64(len(out.data)))
	for _, p := range out.to {
		l.cfg.Transport.Send(l.ledger.peers.at(p.peer).id, out.data[p.start:p.end])
	}
}

// Peek is Take's answer for one charge, without the charge and without waiting: Admitted where Take would have something to
// wait for.
func (l *Limiter) Peek(charge Charge) Verdict {
	return l.ledger.peek(l.instant(), charge)
}

// Refund gives back what Take charged for a request that was then answered with 503. charges must be the very slice, or
// copies of its elements made after Take; a second Refund of the same elements does nothing.
func (l *Limiter) Refund(charges []Charge) {
	l.ledger.refund(charges)
}

// SetState takes over the replicated state. Call it whenever the log moved it; a state read at an earlier index than
// one given before changes nothing.
func (l *Limiter) SetState(s State) {
	l.ledger.setState(s)
	l.keepLists(s.Leaves, l.instant().ms)
}

// Receive takes in a packet that the node named from sent. It does not keep packet and does not block on the network.
func (l *Limiter) Receive(from string, packet []byte) {
	l.packetsIn.Add(1)
	l.bytesIn.Add(uint64(len(packet)))
	var out outbox
	l.ledger.receive(l.instant(), from, packet, &out)
	l.flush(&out)
}

// Close stops the limiter and releases its files; what it spent stays recorded. Every later Take is Undecided.
func (l *Limiter) Close() error {
	l.stopped.Do(func() {
		close(l.stop)
		l.done.Wait()
		l.ledger.close()
		l.closeErr = l.release()
	})
	return l.closeErr
}

func (l *Limiter) release() error {
	var errs []error
	if l.ledger.records != nil {
		errs = append(errs, l.ledger.records.unmap())
	}
	if l.markFile != nil {
		errs = append(errs, l.markFile.close())
	}
	return errors.Join(errs...)
}
