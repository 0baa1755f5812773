package systemtest

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"
)

// Spreads of requests over nodes.
var spreads = []struct {
	name string
	pick func(i, nodes int) int
}{
	{"round robin", func(i, nodes int) int { return i % nodes }},
	{"random", func(_, nodes int) int { return rand.IntN(nodes) }},
	{"one node", func(_, nodes int) int { return nodes - 1 }},
}

const (
	crowd       = 1500 // requests at once
	concurrency = 250  // of them on the way
	windowRoom  = 8 * time.Second
)

func TestLimit_KeyIsNeverExceeded(t *testing.T) {
	c := sharedCluster(t)
	for _, spread := range spreads {
		t.Run(spread.name, func(t *testing.T) {
			a := register(t, c.urls[0])
			key := a.newKey(t, c.urls[1], 0, "triggers:read")
			attack(t, c, request{path: "/api/v1/triggers", key: key.secret, address: a.address}, spread.pick, 100, 99)
		})
	}
}

func TestLimit_AddressIsNeverExceeded(t *testing.T) {
	c := sharedCluster(t)
	for _, spread := range spreads {
		t.Run(spread.name, func(t *testing.T) {
			attack(t, c, request{path: "/api/v1/triggers", address: newAddress()}, spread.pick, 10, 10)
		})
	}
}

// tally counts answers by status.
type tally struct {
	mu       sync.Mutex
	statuses map[int]int
	problem  error
}

func (c *tally) add(res response, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.statuses[res.status]++
		err = checkLimitHeaders(res)
		if res.status != http.StatusOK && res.status != http.StatusTooManyRequests {
			err = fmt.Errorf("got %v", res)
		}
	}
	if err != nil && c.problem == nil {
		c.problem = err
	}
}

func (c *tally) admitted() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.statuses[http.StatusOK]
}

// attack sends the crowd and then asks for a second more: never more than limit may pass in the window, and at least
// least must in the end.
func attack(t *testing.T, c *cluster, r request, pick func(i, nodes int) int, limit, least int) {
	t.Helper()
	roomInMinute(t, windowRoom)
	window := time.Now().Truncate(time.Minute)
	count := &tally{statuses: make(map[int]int)}
	next := make(chan int, crowd)
	for i := range crowd {
		next <- i
	}
	close(next)
	var all sync.WaitGroup
	for range concurrency {
		all.Go(func() {
			for i := range next {
				count.add(send(c.urls[pick(i, len(c.urls))], r))
			}
		})
	}
	begun := time.Now()
	all.Wait()
	took, atOnce := time.Since(begun), count.admitted()
	for more, i := time.Now().Add(time.Second), 0; time.Now().Before(more); i++ {
		count.add(send(c.urls[i%len(c.urls)], r))
	}
	got := count.admitted()
	t.Logf("%d at once in %v, %d after a second more; answers by status: %v", atOnce, took.Round(time.Millisecond), got, count.statuses)
	if count.problem != nil {
		t.Error(count.problem)
	}
	if now := time.Now().Truncate(time.Minute); now != window {
		t.Fatalf("the machine is too slow for this test: it took longer than %v", windowRoom)
	}
	if got > limit || got < least {
		t.Errorf("%d requests passed (%d at once), want %d to %d", got, atOnce, least, limit)
	}
}

// TestLimit_SlidesOut spends a key's limit on one node just before a minute ends. What the other nodes may then admit is
// only what has slid out of view since.
func TestLimit_SlidesOut(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the end of a minute")
	}
	c := sharedCluster(t)
	t.Parallel() // what follows mostly waits
	const limit = 100
	end := time.Now().Truncate(time.Minute).Add(time.Minute)
	if time.Until(end) < 8*time.Second {
		end = end.Add(time.Minute)
	}
	<-time.After(time.Until(end.Add(-8 * time.Second)))
	a := register(t, c.urls[0])
	key := a.newKey(t, c.urls[0], 0, "triggers:read")
	r := request{path: "/api/v1/triggers", key: key.secret, address: a.address}
	before := &tally{statuses: make(map[int]int)}
	for time.Until(end) > 2*time.Second && before.admitted() < limit {
		before.add(send(c.urls[0], r))
	}
	if before.problem != nil {
		t.Fatal(before.problem)
	}
	spent := before.admitted()
	if spent < limit-1 || time.Until(end) <= 0 {
		t.Fatalf("spent %d on one node with %v to go, want %d before the minute ends", spent, time.Until(end), limit)
	}
	<-time.After(time.Until(end) + 10*time.Millisecond)
	after := &tally{statuses: make(map[int]int)}
	deadline := end.Add(10 * time.Second)
	for i := 0; time.Now().Before(deadline); i++ {
		after.add(send(c.urls[1+i%2], r))
		// What may have passed by now: the limit without what is still in view of the minute before.
		allowed := limit - float64(spent)*(1-float64(time.Since(end))/float64(time.Minute))
		if got := float64(after.admitted()); got > allowed {
			t.Fatalf("%v after the minute's end the other nodes have admitted %v, and only %.2f have slid out", time.Since(end), got, allowed)
		}
	}
	t.Logf("spent %d, then %v in %v", spent, after.statuses, 10*time.Second)
	if after.problem != nil {
		t.Error(after.problem)
	}
	if got := after.admitted(); got < 8 {
		t.Errorf("the other nodes admitted %d within 10 s of the minute's end, and 16 have slid out", got)
	}
}
