package netfault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"
)

// What is promised.
const (
	writesWithin   = 5 * time.Second        // after a fault is over, and for a majority after it began
	holdsConnected = 200 * time.Millisecond // a revocation, on connected nodes
	holdsAnywhere  = maxStaleness + 500*time.Millisecond
	recoversWithin = 2 * time.Second // a node that was cut off or paused honours credentials again
	// The use of a limit, after a fault. The node has to find the others again (gossip looks every 10 s for those that it lost
	// sight of), and what was lost with a process is lost for the window under way and, by its weight, for the next one.
	completeWithin = 10*time.Second + 2*anonymousWindow + time.Second
)

// fault is one kind of harm.
type fault struct {
	name string
	// inject does it and says which nodes have no connection to the majority, or none to rely on.
	inject func(t *testing.T, c *cluster, leader int) (suspects []int)
	// heal undoes it.
	heal func(t *testing.T, c *cluster)
	// lasts is how long it is given.
	lasts time.Duration
	// pause says that the suspects are stopped meanwhile: what they were asked then they decide when they go on.
	pause bool
	// alone says that the suspects can confirm nothing meanwhile: they must refuse all credentials.
	alone bool
}

func mendAll(t *testing.T, _ *cluster) { t.Helper(); mend(t) }

// isolate cuts one node off, either way or both.
func isolate(t *testing.T, node int, in, out bool) []int {
	t.Helper()
	for _, other := range others(node) {
		if in {
			cut(t, other, node)
		}
		if out {
			cut(t, node, other)
		}
	}
	return []int{node}
}

func follower(leader int) int { return others(leader)[0] }

// partitionLasts is long enough for credentials to become too old, the horizon to pass, a new roster and a window under it.
const partitionLasts = 9 * time.Second

// pauseNode stops a node's process, and lets it go on.
func pauseNode(pick func(leader int) int) (inject func(*testing.T, *cluster, int) []int, heal func(*testing.T, *cluster)) {
	var node int
	return func(t *testing.T, c *cluster, leader int) []int {
			node = pick(leader)
			c.signal(t, node, syscall.SIGSTOP)
			return []int{node}
		}, func(t *testing.T, c *cluster) {
			c.signal(t, node, syscall.SIGCONT)
		}
}

func faults() []fault {
	list := []fault{
		{name: "follower cut off", lasts: partitionLasts, heal: mendAll, alone: true,
			inject: func(t *testing.T, _ *cluster, leader int) []int { return isolate(t, follower(leader), true, true) }},
		{name: "leader cut off", lasts: partitionLasts, heal: mendAll, alone: true,
			inject: func(t *testing.T, _ *cluster, leader int) []int { return isolate(t, leader, true, true) }},
		{name: "follower hears nobody", lasts: partitionLasts, heal: mendAll, alone: true,
			inject: func(t *testing.T, _ *cluster, leader int) []int { return isolate(t, follower(leader), true, false) }},
		{name: "leader is heard by nobody", lasts: partitionLasts, heal: mendAll, alone: true,
			inject: func(t *testing.T, _ *cluster, leader int) []int { return isolate(t, leader, false, true) }},
		{name: "leader and a follower cut, the third sees both", lasts: partitionLasts, heal: mendAll,
			inject: func(t *testing.T, _ *cluster, leader int) []int {
				cut(t, leader, follower(leader))
				cut(t, follower(leader), leader)
				return []int{leader, follower(leader)}
			}},
		{name: "followers cut, the leader sees both", lasts: 6 * time.Second, heal: mendAll,
			inject: func(t *testing.T, _ *cluster, leader int) []int {
				pair := others(leader)
				cut(t, pair[0], pair[1])
				cut(t, pair[1], pair[0])
				return nil
			}},
		{name: "loss of 10 %", lasts: 6 * time.Second, heal: mendAll,
			inject: func(t *testing.T, _ *cluster, _ int) []int { lose(t, "0.1"); return []int{1, 2, 3} }},
		{name: "loss of 30 %", lasts: 6 * time.Second, heal: mendAll,
			inject: func(t *testing.T, _ *cluster, _ int) []int { lose(t, "0.3"); return []int{1, 2, 3} }},
	}
	for _, node := range []struct {
		name string
		pick func(leader int) int
	}{
		{"follower paused", follower},
		{"leader paused", func(leader int) int { return leader }},
	} {
		f := fault{name: node.name, lasts: 5 * time.Second, pause: true}
		f.inject, f.heal = pauseNode(node.pick)
		list = append(list, f)
	}
	return list
}

// TestNetworkFaults goes through all faults on one cluster.
func TestNetworkFaults(t *testing.T) {
	needCluster(t)
	c := startCluster(t, sluice, "strict", false)
	a := register(t, 1)
	for _, f := range faults() {
		t.Run(f.name, func(t *testing.T) { suffer(t, c, a, f) })
	}
}

// revocation is a key's deletion and since when it is known to be done.
type revocation struct {
	bucket *bucket
	key    apiKey
	done   time.Time
}

// revoke deletes a key at a node and waits for the acknowledgement; attempts repeat until within has passed.
func revoke(t *testing.T, a account, node int, r *revocation, within time.Duration) time.Duration {
	t.Helper()
	return eventually(t, within, fmt.Sprintf("node%d has revoked the key", node), func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		res, err := sendWithin(ctx, node, request{method: http.MethodDelete, path: "/api/v1/api-keys/" + r.key.id, token: a.token, address: newAddress()})
		r.done = time.Now()
		if err == nil && res.status == http.StatusNotFound {
			return nil // an attempt before that had no answer has done it
		}
		return expect(http.StatusNoContent)(res, err)
	})
}

// checkRevoked looks for a request honoured after the bound. A request to a paused node is decided when that goes on.
func checkRevoked(t *testing.T, answers []answer, r *revocation, within func(node int) time.Duration, paused func(answer) time.Time) {
	t.Helper()
	refused, last := map[int]int{}, map[int]time.Duration{}
	for _, a := range answers {
		if a.bucket != r.bucket {
			continue
		}
		if a.status == http.StatusUnauthorized {
			refused[a.node]++
		}
		if a.status != http.StatusOK {
			continue
		}
		decided := a.sent // or later
		if resumed := paused(a); resumed.After(decided) {
			decided = resumed
		}
		last[a.node] = max(last[a.node], decided.Sub(r.done))
		if after := decided.Sub(r.done); after > within(a.node) {
			t.Errorf("node%d honours a key %v after its revocation, more than %v", a.node, after, within(a.node))
			return
		}
	}
	t.Logf("revocation: last honoured after %v", last)
	for node := 1; node <= nodes; node++ {
		if refused[node] == 0 {
			t.Errorf("node%d never said that the key was revoked: this proves nothing", node)
		}
	}
}

// checkFresh follows a good key at a node that was cut off or stopped: it is refused with 503 once the node cannot know any
// more that the key is good, and honoured again soon after the end of the fault.
func checkFresh(t *testing.T, answers []answer, good *bucket, node int, f fault, faulty, healed time.Time) {
	t.Helper()
	refused, again := 0, time.Duration(-1)
	for _, a := range answers {
		if a.bucket != good || a.node != node {
			continue
		}
		switch {
		case f.alone && a.sent.After(faulty.Add(holdsAnywhere)) && a.got.Before(healed):
			if a.status != http.StatusServiceUnavailable {
				t.Errorf("node%d answers %d to a key %v after it was cut off", node, a.status, a.sent.Sub(faulty))
				return
			}
			refused++
		case a.sent.After(healed) && a.status == http.StatusOK && (again < 0 || a.got.Sub(healed) < again):
			again = a.got.Sub(healed)
		}
	}
	t.Logf("node%d refused a good key %d times, and honoured it again after %v", node, refused, again)
	if f.alone && refused == 0 {
		t.Errorf("node%d was not asked: this proves nothing", node)
	}
	if again < 0 || again > recoversWithin {
		t.Errorf("node%d honours a key %v after the end of the fault, want %v at most", node, again, recoversWithin)
	}
}

// suffer runs one fault under load and checks everything that is promised.
func suffer(t *testing.T, c *cluster, a account, f fault) {
	c.waitReady(t, 10*time.Second)
	leader := c.leader(t)
	buckets := ordinaryBuckets(t, a)
	newVictim := func() *revocation {
		key := a.newKey(t, leader, 1_000_000, 60)
		return &revocation{key: key, bucket: &bucket{name: "victim", key: key.secret, limit: 1_000_000, window: time.Minute}}
	}
	during, after := newVictim(), newVictim()
	s := startSpray(t, append(buckets, during.bucket, after.bucket)...)

	suspects := f.inject(t, c, leader)
	faulty := time.Now()
	t.Logf("the leader is node%d, hurt are %v", leader, suspects)
	over := time.After(f.lasts)
	sound, within := others(suspects...), writesWithin
	if len(sound) == 0 { // a cluster without one good connection promises no time
		sound, within = []int{1}, 30*time.Second
	}
	took := revoke(t, a, sound[len(sound)-1], during, within)
	t.Logf("a write during the fault after %v", took.Round(time.Millisecond))
	<-over
	f.heal(t, c)
	healed := time.Now()
	writeEverywhere(t, a, healed)
	completesAgain(t, healed)
	c.waitReady(t, time.Until(healed.Add(completeWithin)))
	t.Logf("all nodes are ready %v after the fault", time.Since(healed).Round(time.Millisecond))
	revoke(t, a, others(leader)[0], after, writesWithin)
	<-time.After(time.Until(after.done.Add(holdsConnected + 100*time.Millisecond))) // so long is watched
	s.stop()

	answers := report(t, s, bound{})
	hurt := map[int]bool{}
	for _, n := range suspects {
		hurt[n] = true
	}
	paused := func(a answer) time.Time {
		if f.pause && hurt[a.node] && a.sent.After(faulty) && a.sent.Before(healed) {
			return healed
		}
		return a.sent
	}
	checkRevoked(t, answers, during, func(node int) time.Duration {
		if hurt[node] {
			return holdsAnywhere
		}
		return holdsConnected
	}, paused)
	checkRevoked(t, answers, after, func(int) time.Duration { return holdsConnected }, paused)
	for node := range hurt {
		if f.alone || f.pause {
			checkFresh(t, answers, after.bucket, node, f, faulty, healed)
		}
	}
	c.audited(t, false)
}

// ordinaryBuckets are keys with limits of their own, made on different nodes, and a client without a key.
func ordinaryBuckets(t *testing.T, a account) []*bucket {
	t.Helper()
	return []*bucket{
		{name: "key, 12 in 5 s", key: a.newKey(t, 1, 12, 5).secret, address: newAddress(), limit: 12, window: 5 * time.Second},
		{name: "key, 10 in 2 s", key: a.newKey(t, 2, 10, 2).secret, address: newAddress(), limit: 10, window: 2 * time.Second},
		{name: "key, 40 in 60 s", key: a.newKey(t, 3, 40, 60).secret, address: newAddress(), limit: 40, window: time.Minute},
		{name: "address", address: newAddress(), limit: anonymousLimit, window: anonymousWindow},
	}
}

// report holds what a spray saw against the bound and says what it was.
func report(t *testing.T, s *spray, b bound) []answer {
	t.Helper()
	answers := s.seen()
	buckets, admitted, problems := verify(answers, b)
	t.Logf("%d buckets, %d admitted of %d answered, %d without an answer: %s", buckets, admitted, len(answers), s.lost, tally(answers))
	for _, p := range append(problems, oddities(s)...) {
		t.Error(p)
	}
	return answers
}

func oddities(s *spray) (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for what, n := range s.odd {
		out = append(out, fmt.Sprintf("%d times %s", n, what))
	}
	return out
}

// writeEverywhere wants a write at each node in time.
func writeEverywhere(t *testing.T, a account, healed time.Time) {
	t.Helper()
	var all sync.WaitGroup
	for node := 1; node <= nodes; node++ {
		all.Go(func() { writesAgain(t, a, node, healed) })
	}
	all.Wait()
}

// writesAgain wants a write at a node in time.
func writesAgain(t *testing.T, a account, node int, healed time.Time) {
	id := unique("after")
	ctx, cancel := context.WithDeadline(context.Background(), healed.Add(writesWithin))
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var err error
	for ctx.Err() == nil {
		attempt, done := context.WithTimeout(ctx, 3*time.Second)
		err = a.write(attempt, node, id)
		done()
		if err == nil {
			t.Logf("node%d writes %v after the fault", node, time.Since(healed).Round(time.Millisecond))
			return
		}
		<-tick.C
	}
	t.Errorf("node%d takes no write within %v after the fault: %v", node, writesWithin, err)
}

// completesAgain waits until a new client gets all of its limit, asking the nodes in turn.
func completesAgain(t *testing.T, healed time.Time) {
	t.Helper()
	tries, last := 0, ""
	eventually(t, time.Until(healed.Add(completeWithin)), "a limit can be used to the full", func() error {
		b, admitted, counts := newcomer(), 0, map[string]int{}
		for i := range 4 * anonymousLimit {
			node := 1 + i%nodes
			res, err := send(node, b.check())
			if err != nil {
				return err
			}
			counts[fmt.Sprintf("node%d %d", node, res.status)]++
			if res.status == http.StatusOK {
				admitted++
			}
		}
		if tries++; admitted < anonymousLimit {
			last = fmt.Sprintf("; the last time that it was not: %d of %d, %v", admitted, anonymousLimit, counts)
			return errors.New(last)
		}
		return nil
	})
	t.Logf("a limit is used to the full %v after the fault, at try %d%s", time.Since(healed).Round(time.Millisecond), tries, last)
}
