package netfault

import (
	"errors"
	"net/http"
	"testing"
	"time"
)

// TestKill kills each node without warning and starts it again inside the window, under load: what was admitted before still
// counts, and at most a chunk of the killed node's share (an eighth, at least a unit) is lost for each kill.
func TestKill(t *testing.T) {
	needCluster(t)
	c := startCluster(t, sluice, "strict", false)
	a := register(t, 1)
	const limit, spent = 90, 30
	// A window of a minute or more that has just begun, so that none has to be waited for.
	window := freshWindow(time.Now().Unix())
	b := &bucket{name: "key in a long window", key: a.newKey(t, 1, limit, window).secret, address: newAddress(), limit: limit, window: time.Duration(window) * time.Second}
	counts := map[int]int{}
	ask := func(s *spray, i int) answer {
		answer := s.ask(b, 1+i%nodes)
		counts[answer.status]++
		return answer
	}
	s := startSpray(t, ordinaryBuckets(t, a)...)
	var end int64
	for i := range spent {
		answer := ask(s, i)
		if answer.status != http.StatusOK || end != 0 && answer.end != end {
			t.Fatalf("request %d before the kills: %+v", i, answer)
		}
		end = answer.end
	}
	begun := c.leader(t)
	for i := range nodes {
		node := 1 + (begun-1+i)%nodes // the leader first
		c.kill(t, node)
		killed := time.Now()
		writesAgain(t, a, others(node)[0], killed)
		c.start(t, node)
		c.waitReady(t, 15*time.Second)
		t.Logf("node%d killed and ready again after %v", node, time.Since(killed).Round(time.Millisecond))
	}
	completesAgain(t, time.Now())
	last := answer{}
	for i := range 4 * limit {
		last = ask(s, i)
		if last.status == 0 {
			t.Fatal(errors.New("no answer after all kills"))
		}
	}
	s.stop()
	if last.end != end {
		t.Fatalf("the window that ends at %d is over: the machine is too slow for this test", end)
	}
	t.Logf("limit %d in %d s, %d spent before the kills; answers by status in all: %v", limit, window, spent, counts)
	const chunk = (limit/nodes + 7) / 8
	if got := counts[http.StatusOK]; got > limit || got < limit-nodes*chunk {
		t.Errorf("%d admitted in all, want %d to %d", got, limit-nodes*chunk, limit)
	}
	report(t, s, bound{})
	c.audited(t, false)
}

// freshWindow is a length in seconds, from 90 on, whose present window began a second or two ago at most.
func freshWindow(now int64) int64 {
	best := int64(90)
	for w := best; w < 400; w++ {
		if now%w < now%best {
			best = w
		}
	}
	return best
}

// TestAvailable cuts a node of three off where limits.on_isolation is "available". It goes on admitting, and the excess is at
// most its base share: what it admits in one window is no more than that, and the others keep to the limit.
func TestAvailable(t *testing.T) {
	needCluster(t)
	c := startCluster(t, sluice, "available", false)
	a := register(t, 1)
	const share = anonymousLimit / nodes // divides evenly, so every node's is the same
	address := &bucket{name: "address", address: newAddress(), limit: anonymousLimit, window: anonymousWindow}
	key := &bucket{name: "key, 12 in 2 s", key: a.newKey(t, 1, 12, 2).secret, address: newAddress(), limit: 12, window: 2 * time.Second}
	node := c.leader(t)
	s := startSpray(t, address, key)
	isolate(t, node, true, true)
	cutOff := time.Now()
	// Past the horizon, the death and the end of the window then under way there is one whose shares two sides use.
	<-time.After(deadAfter + 2*anonymousWindow + 2*time.Second)
	mend(t)
	healed := time.Now()
	writesAgain(t, a, node, healed)
	completesAgain(t, healed)
	s.stop()
	answers := report(t, s, bound{excess: func(b *bucket) int64 { return b.limit / nodes }})
	// The others keep to the limit among themselves, and the node to its share.
	var rest []answer
	late, byWindow := 0, map[*bucket]map[int64]int{}
	for _, a := range answers {
		if a.node != node {
			rest = append(rest, a)
			continue
		}
		if a.status != http.StatusOK || a.sent.Before(cutOff) || a.got.After(healed) {
			continue
		}
		if time.Unix(a.end, 0).Add(-a.bucket.window).Before(cutOff) {
			continue // it may have been lent something in this window
		}
		if a.sent.Sub(cutOff) > 2*anonymousWindow {
			late++
		}
		if byWindow[a.bucket] == nil {
			byWindow[a.bucket] = map[int64]int{}
		}
		byWindow[a.bucket][a.end]++
		if n := byWindow[a.bucket][a.end]; n > share {
			t.Errorf("%s: node%d has admitted %d in one window while cut off, and its share is %d", a.bucket.name, node, n, share)
		}
	}
	if _, _, problems := verify(rest, bound{}); len(problems) > 0 {
		t.Errorf("on the nodes that were not cut off: %q", problems)
	}
	if _, _, problems := verify(answers, bound{}); len(problems) > 0 {
		t.Logf("%d buckets beyond their limit, none by more than the share; one: %s", len(problems), problems[0])
	}
	if late == 0 {
		t.Error("the node that was cut off has admitted nobody: it is not available")
	}
	c.audited(t, true)
	t.Logf("cut off, node%d admitted %d in windows of its own late in the partition", node, late)
}
