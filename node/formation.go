package node

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Formation of a cluster, in two steps, so that no two of the initial members ever form different ones:
//
//  1. A node that has heard the ids of all initial members writes down the configuration that follows from them, for
//     good, and says so in its hello ("agreed").
//  2. It bootstraps Raft once all the others say that they agreed to the same configuration, or one of them has formed
//     a cluster of it already, which proves the same.
//
// A member whose data directory is lost between the steps comes back under another id. Nobody can tell then whether a
// third one has bootstrapped meanwhile, so the rest stop with ErrFormationChanged rather than guess.
const (
	formationPoll    = 200 * time.Millisecond
	formationTimeout = 2 * time.Second
)

// former finds or forms the cluster of the initial members.
type former struct {
	self    string // node id
	address string // own advertised peer address
	cluster string // configured name
	initial []string
	// count is how many nodes initial names; 0: as many as it has entries, each of them one.
	count  int
	others []string // who else may know of a cluster: it is joined where it exists already
	expand func(ctx context.Context, entry string) ([]endpoint, error)
	data   *dataDir
	hello  func(ctx context.Context, address string) (helloReply, error)
	learn  func(helloReply) // called with every answer
	log    *slog.Logger

	agreed atomic.Pointer[formation]
	status atomic.Pointer[string] // why it is not done, for people
}

// errExists: a cluster was formed without this node, which may join it.
var errExists = errors.New("the cluster exists already")

// membersHash fingerprints initial_members, and how many they name, without regard to the order.
func membersHash(addresses []string, count int) []byte {
	sorted := slices.Clone(addresses)
	slices.Sort(sorted)
	text := strings.Join(sorted, "\n")
	if count > 0 {
		text += fmt.Sprintf("\n= %d", count)
	}
	sum := sha256.Sum256([]byte(text))
	return sum[:16]
}

// newFormation is the configuration that follows from the members' ids: the same on every node.
func newFormation(cluster string, members []member) *formation {
	members = slices.Clone(members)
	slices.SortFunc(members, func(a, b member) int { return strings.Compare(a.ID, b.ID) })
	h := sha256.New()
	fmt.Fprintf(h, "sluice cluster 1\n%q\n", cluster)
	for _, m := range members {
		fmt.Fprintf(h, "%q %q %t\n", m.ID, m.Address, m.Voter)
	}
	return &formation{Version: 1, ClusterID: "clu_" + hex.EncodeToString(h.Sum(nil)[:16]), Members: members}
}

// agreedID is the id of the cluster that this node has agreed to form, "" if none yet.
func (f *former) agreedID() string {
	if a := f.agreed.Load(); a != nil {
		return a.ClusterID
	}
	return ""
}

// waiting says what formation waits for, "" before it began.
func (f *former) waiting() string {
	if s := f.status.Load(); s != nil {
		return *s
	}
	return ""
}

func (f *former) setStatus(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if old := f.status.Swap(&text); old == nil || *old != text {
		f.log.Info("forming the cluster", "waiting_for", text)
	}
}

// form returns the configuration to bootstrap with. It waits as long as it takes: for a member that comes an hour
// later too. Errors: ErrNotMember, or errExists where there are others to ask; ErrFormationChanged, the data directory's, the
// context's.
func (f *former) form(ctx context.Context) (*formation, error) {
	if f.count == 0 && !slices.Contains(f.initial, f.address) {
		f.log.Warn("own advertised peer address is not among initial_members as written there", "address", f.address)
	}
	for {
		done, err := f.round(ctx)
		if err != nil {
			return nil, err
		}
		if done {
			return f.agreed.Load(), nil
		}
		select {
		case <-time.After(formationPoll):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

type formationAnswer struct {
	endpoint
	reply helloReply
	err   error
	other bool // not of initial_members
}

// round asks all members once and acts on what they say.
func (f *former) round(ctx context.Context) (done bool, err error) {
	answers := f.ask(ctx)
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	agreed := f.agreed.Load()
	there := make(map[string]bool, len(answers))
	for _, a := range answers {
		there[a.entry] = there[a.entry] || a.err == nil
	}
	var missing []string
	for _, a := range answers {
		if a.err != nil {
			// One address of a node's may be of a network that does not lead there.
			if !a.other && (f.count > 0 || !there[a.entry]) {
				missing = append(missing, fmt.Sprintf("%s (%v)", a.endpoint, rootCause(a.err)))
			}
			continue
		}
		if a.reply.Formed == "" || a.reply.NodeID == f.self {
			continue
		}
		if agreed != nil && a.reply.Formed == agreed.ClusterID {
			return true, nil
		}
		if agreed == nil && len(f.others) > 0 {
			return false, errExists
		}
		return false, fmt.Errorf("%w: %s (%s) belongs to %s; to add this node to it, set join", ErrNotMember, a.endpoint, a.reply.NodeID, a.reply.Formed)
	}
	answers = slices.DeleteFunc(answers, func(a formationAnswer) bool { return a.other })
	members := f.membersOf(answers, missing)
	if members == nil {
		return false, nil
	}
	next := newFormation(f.cluster, members)
	if agreed == nil {
		if err := f.data.setFormation(next); err != nil {
			return false, err
		}
		f.agreed.Store(next)
		agreed = next
		f.log.Info("all initial members are known", "cluster_id", next.ClusterID, "members", len(members))
	} else if next.ClusterID != agreed.ClusterID {
		return false, fmt.Errorf("%w: agreed on %s, the members now make %s; empty the data directories of all initial members and start again", ErrFormationChanged, agreed.ClusterID, next.ClusterID)
	}
	var undecided []string
	for _, a := range answers {
		if a.err == nil && a.reply.NodeID != f.self && a.reply.Agreed != agreed.ClusterID {
			undecided = append(undecided, a.String())
		}
	}
	if len(undecided) > 0 {
		f.setStatus("%s to agree", strings.Join(undecided, ", "))
		return false, nil
	}
	return true, nil
}

// membersOf are the initial members, nil where they are not all known or cannot be what is meant; the status then says why.
func (f *former) membersOf(answers []formationAnswer, missing []string) []member {
	if f.count == 0 && len(missing) > 0 {
		f.setStatus("answers of %s", strings.Join(missing, ", "))
		return nil
	}
	byID := make(map[string]endpoint, len(answers))
	byEntry := make(map[string]string, len(answers))
	var members []member
	ours := membersHash(f.initial, f.count)
	for _, a := range answers {
		if a.err != nil {
			continue // one of more addresses than there are nodes, perhaps
		}
		if other, twice := byID[a.reply.NodeID]; twice {
			if f.count > 0 || other.entry == a.entry {
				continue // a node may have several addresses
			}
			f.setStatus("initial_members to be mended: %s and %s are the same node", other, a.endpoint)
			return nil
		}
		byID[a.reply.NodeID] = a.endpoint
		if other, twice := byEntry[a.entry]; twice && f.count == 0 {
			f.setStatus("initial_count to be set: %s leads to several nodes, %s and %s", a.entry, other, a.reply.NodeID)
			return nil
		}
		byEntry[a.entry] = a.reply.NodeID
		if !slices.Equal(a.reply.Members, ours) {
			f.setStatus("%s to be started with the same initial_members and initial_count as this node", a.endpoint)
			return nil
		}
		m := member{ID: a.reply.NodeID, Address: a.entry, Voter: true}
		if f.count > 0 {
			// What was looked up is not the same everywhere; what a node says of itself is.
			m.Address = a.reply.Peer
		}
		members = append(members, m)
	}
	own, listed := byID[f.self]
	switch {
	case f.count > 0 && len(members) > f.count:
		f.setStatus("initial_members to be mended: they lead to %d nodes, and initial_count is %d", len(members), f.count)
	case f.count > 0 && len(members) < f.count:
		more := ""
		if len(missing) > 0 {
			more = ": no answer of " + strings.Join(missing, ", ")
		}
		f.setStatus("%d of %d initial members%s", f.count-len(members), f.count, more)
	case !listed:
		f.setStatus("initial_members to be mended: none of them is this node")
	case f.count == 0 && len(f.initial) == 1 && own.entry != f.address && own.entry != own.address && !loopbackAddress(own.address):
		// The name of all members, looked up before the others were there, would make every one of them a cluster.
		f.setStatus("initial_count to be set, or peer.advertise to %s, if that is the name of this node alone", own.entry)
	default:
		return members
	}
	return nil
}

// loopbackAddress reports whether a host:port is of this machine alone.
func loopbackAddress(address string) bool {
	ap, err := netip.ParseAddrPort(address)
	return err == nil && ap.Addr().IsLoopback()
}

// ask calls all members at once, and whoever else may know of a cluster.
func (f *former) ask(ctx context.Context) []formationAnswer {
	entries := slices.Concat(f.initial, f.others)
	looked := make([][]formationAnswer, len(entries))
	var wg sync.WaitGroup
	for i, entry := range entries {
		other := i >= len(f.initial)
		if entry == f.address {
			looked[i] = []formationAnswer{{endpoint: endpoint{entry, entry}, other: other}}
			continue
		}
		wg.Go(func() {
			list, err := f.expand(ctx, entry)
			if err != nil || len(list) == 0 {
				looked[i] = []formationAnswer{{endpoint: endpoint{entry, entry}, err: cmp.Or(err, errNoAddress), other: other}}
			}
			for _, l := range list {
				looked[i] = append(looked[i], formationAnswer{endpoint: l, other: other})
			}
		})
	}
	wg.Wait()
	answers := slices.Concat(looked...)
	ctx, cancel := context.WithTimeout(ctx, formationTimeout)
	defer cancel()
	for i := range answers {
		address := answers[i].address
		if answers[i].err != nil {
			continue
		}
		if address == f.address {
			answers[i].reply = helloReply{NodeID: f.self, Peer: f.address, Members: membersHash(f.initial, f.count)}
			continue
		}
		wg.Go(func() {
			answers[i].reply, answers[i].err = f.hello(ctx, address)
			if answers[i].err == nil {
				f.learn(answers[i].reply)
			}
		})
	}
	wg.Wait()
	return answers
}

// rootCause is the innermost error, which is what a person wants to read in one line.
func rootCause(err error) error {
	for _, plain := range []error{errOtherSecret, errOtherAuthority, errCertificateEnded, errOtherCluster, errOtherNode, context.DeadlineExceeded} {
		if errors.Is(err, plain) {
			return plain
		}
	}
	for {
		switch e := err.(type) { //nolint:errorlint // this is the unwrapping itself
		case *net.DNSError:
			return errors.New(e.Err) // without the server that was asked
		case interface{ Unwrap() error }:
			if inner := e.Unwrap(); inner != nil {
				err = inner
				continue
			}
		case interface{ Unwrap() []error }:
			if inner := e.Unwrap(); len(inner) > 0 {
				err = inner[len(inner)-1]
				continue
			}
		}
		return err
	}
}

// joiner takes a new node into a running cluster.
type joiner struct {
	self    string   // own advertised peer address, which a name of all nodes leads to as well
	targets []string // entries of join
	expand  func(ctx context.Context, entry string) ([]endpoint, error)
	join    func(ctx context.Context, target string, req joinRequest) (joinReply, error)
	learn   func(joinReply)
	log     *slog.Logger
	status  atomic.Pointer[string]
}

func (j *joiner) waiting() string {
	if s := j.status.Load(); s != nil {
		return *s
	}
	return ""
}

func (j *joiner) setStatus(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if old := j.status.Swap(&text); old == nil || *old != text {
		j.log.Info("joining the cluster", "waiting_for", text)
	}
}

// ask asks until the leader has answered: each target in turn, and whoever they name as the leader. req is made anew
// for each try. Errors: a refusal for good, the context's.
func (j *joiner) ask(ctx context.Context, req func() joinRequest) (joinReply, error) {
	for {
		for _, target := range j.look(ctx) {
			reply, err := j.askOne(ctx, target.address, req())
			if err == nil {
				j.learn(reply)
				return reply, nil
			}
			var refused *refusedError
			if errors.As(err, &refused) {
				return joinReply{}, fmt.Errorf("join: %w", err)
			}
			if ctx.Err() != nil {
				return joinReply{}, context.Cause(ctx)
			}
			var early *notYetError
			if errors.As(err, &early) {
				// The leader's own word, which others would only pass on.
				j.setStatus("the leader to agree: %s", early.reason)
				break
			}
			j.setStatus("the leader, by way of %s (%v)", target, rootCause(err))
		}
		select {
		case <-time.After(formationPoll):
		case <-ctx.Done():
			return joinReply{}, context.Cause(ctx)
		}
	}
}

// look lists whom to ask now.
func (j *joiner) look(ctx context.Context) []endpoint {
	var out []endpoint
	for _, entry := range j.targets {
		list, err := j.expand(ctx, entry)
		if err != nil && ctx.Err() == nil {
			j.setStatus("%s to be looked up (%v)", entry, rootCause(err))
		}
		for _, e := range list {
			if e.address != j.self && e.entry != j.self {
				out = append(out, e)
			}
		}
	}
	return out
}

func (j *joiner) askOne(ctx context.Context, target string, req joinRequest) (joinReply, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	reply, err := j.join(ctx, target, req)
	var hint *leaderHint
	if errors.As(err, &hint) && hint.leaderID != "" && hint.leaderID != target {
		return j.join(ctx, hint.leaderID, req)
	}
	return reply, err
}
