package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
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
	data    *dataDir
	hello   func(ctx context.Context, address string) (helloReply, error)
	learn   func(helloReply) // called with every answer
	log     *slog.Logger

	agreed atomic.Pointer[formation]
	status atomic.Pointer[string] // why it is not done, for people
}

// membersHash fingerprints initial_members without regard to the order.
func membersHash(addresses []string) []byte {
	sorted := slices.Clone(addresses)
	slices.Sort(sorted)
	sum := sha256.Sum256([]byte(strings.Join(sorted, "\n")))
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
// later too. Errors: ErrNotMember, ErrFormationChanged, the data directory's, the context's.
func (f *former) form(ctx context.Context) (*formation, error) {
	if !slices.Contains(f.initial, f.address) {
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
	address string
	reply   helloReply
	err     error
}

// round asks all members once and acts on what they say.
func (f *former) round(ctx context.Context) (done bool, err error) {
	answers := f.ask(ctx)
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	agreed := f.agreed.Load()
	var missing []string
	for _, a := range answers {
		if a.err != nil {
			missing = append(missing, fmt.Sprintf("%s (%v)", a.address, rootCause(a.err)))
			continue
		}
		if a.reply.Formed == "" || a.reply.NodeID == f.self {
			continue
		}
		if agreed != nil && a.reply.Formed == agreed.ClusterID {
			return true, nil
		}
		return false, fmt.Errorf("%w: %s (%s) belongs to %s; to add this node to it, remove initial_members and set join", ErrNotMember, a.address, a.reply.NodeID, a.reply.Formed)
	}
	if len(missing) > 0 {
		f.setStatus("answers of %s", strings.Join(missing, ", "))
		return false, nil
	}
	byID := make(map[string]string, len(answers))
	members := make([]member, 0, len(answers))
	ours := membersHash(f.initial)
	for _, a := range answers {
		if other, twice := byID[a.reply.NodeID]; twice {
			f.setStatus("initial_members to be mended: %s and %s are the same node", other, a.address)
			return false, nil
		}
		byID[a.reply.NodeID] = a.address
		if !slices.Equal(a.reply.Members, ours) {
			f.setStatus("%s to be started with the same initial_members as this node", a.address)
			return false, nil
		}
		members = append(members, member{ID: a.reply.NodeID, Address: a.address, Voter: true})
	}
	if _, listed := byID[f.self]; !listed {
		f.setStatus("initial_members to be mended: none of them is this node")
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
		if a.reply.NodeID != f.self && a.reply.Agreed != agreed.ClusterID {
			undecided = append(undecided, a.address)
		}
	}
	if len(undecided) > 0 {
		f.setStatus("%s to agree", strings.Join(undecided, ", "))
		return false, nil
	}
	return true, nil
}

// ask calls all members at once.
func (f *former) ask(ctx context.Context) []formationAnswer {
	ctx, cancel := context.WithTimeout(ctx, formationTimeout)
	defer cancel()
	answers := make([]formationAnswer, len(f.initial))
	var wg sync.WaitGroup
	for i, address := range f.initial {
		answers[i].address = address
		if address == f.address {
			answers[i].reply = helloReply{NodeID: f.self, Members: membersHash(f.initial)}
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
	targets []string // addresses to ask
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
		for _, target := range j.targets {
			reply, err := j.askOne(ctx, target, req())
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
			j.setStatus("the leader, by way of %s (%v)", target, rootCause(err))
		}
		select {
		case <-time.After(formationPoll):
		case <-ctx.Done():
			return joinReply{}, context.Cause(ctx)
		}
	}
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
