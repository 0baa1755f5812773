package systemtest

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestLimit_SeveralPoliciesAreNeverExceeded spends from a limit per second and one per minute of each key and one per day
// of their organization, on all nodes: none is ever exceeded, and what one refuses costs the others nothing, so that in the
// end each is used up to the last unit.
func TestLimit_SeveralPoliciesAreNeverExceeded(t *testing.T) {
	t.Parallel()
	const (
		second, minute, day = 5, 12, 20
		room                = 25 * time.Second
	)
	c := startCluster(t, options{variables: []string{fmt.Sprintf(`SLUICE_LIMITS__POLICIES=[
		{ name = "second", by = ["key"], limit = %d, window = "1s", algorithm = "fixed_window" },
		{ name = "minute", by = ["key"], limit = %d, window = "1m", algorithm = "fixed_window", routes = ["triggers"] },
		{ name = "day", by = ["organization"], layers = ["api_key"], limit = %d, window = "24h" },
		{ name = "trial", by = ["organization"], limit = 3, window = "24h", shadow = true }]`, second, minute, day)}})
	a := register(t, c.urls[0])
	keys := []apiKey{a.newKey(t, c.urls[0], 0, "triggers:read"), a.newKey(t, c.urls[1], 0, "triggers:read")}
	roomInMinute(t, room)
	window := time.Now().Truncate(time.Minute)
	var (
		mu       sync.Mutex
		byKey    [2]int
		bySecond = map[string]int{} // by key and second, those that began and ended within it
		violated = map[string]int{}
		problem  error
	)
	ask := func(who, i int) {
		begun := time.Now().Unix()
		res, err := send(c.urls[i%len(c.urls)], request{path: "/api/v1/triggers", key: keys[who].secret, address: a.address})
		ended := time.Now().Unix()
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			err = checkLimitHeaders(res)
		}
		if fields := res.header.Get("RateLimit") + res.header.Get("RateLimit-Policy"); err == nil && (strings.Count(fields, `"`) != 16 || strings.Contains(fields, "trial")) {
			err = fmt.Errorf("RateLimit %q, RateLimit-Policy %q, want the key's and the three on top", res.header.Get("RateLimit"), res.header.Get("RateLimit-Policy"))
		}
		switch {
		case err != nil:
		case res.status == http.StatusOK:
			byKey[who]++
			if begun == ended {
				bySecond[fmt.Sprintf("key %d, second %d", who, begun)]++
			}
		case res.status == http.StatusTooManyRequests:
			for _, name := range []string{"second", "minute", "day", "api_key", "trial"} {
				if strings.Contains(string(res.body), `"`+name+`"`) {
					violated[name]++
				}
			}
		default:
			err = fmt.Errorf("got %v", res)
		}
		if err != nil && problem == nil {
			problem = err
		}
	}
	// untilSpent goes on asking for a key until its requests that passed are as many, or time is up; then some more.
	untilSpent := func(who, want int) {
		passed := func() int {
			mu.Lock()
			defer mu.Unlock()
			return byKey[who]
		}
		i := 0
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for until := time.Now().Add(10 * time.Second); passed() < want && time.Now().Before(until); i++ {
			ask(who, i)
			<-tick.C
		}
		for range 12 {
			ask(who, i)
			i++
		}
	}
	var all sync.WaitGroup
	for i := range 60 {
		all.Go(func() { ask(0, i) })
	}
	all.Wait()
	atOnce := byKey[0]
	untilSpent(0, minute)
	untilSpent(1, day-minute)
	if now := time.Now().Truncate(time.Minute); now != window {
		t.Fatalf("the machine is too slow for this test: it took longer than %v", room)
	}
	t.Logf("%d at once, %v in the end, refused by %v", atOnce, byKey, violated)
	if problem != nil {
		t.Fatal(problem)
	}
	if byKey[0] != minute || byKey[1] != day-minute {
		t.Errorf("%v passed, want the minute's %d of the first key and what is left of the day's %d of the second", byKey, minute, day)
	}
	for where, n := range bySecond {
		if n > second {
			t.Errorf("%s: %d passed, %d may", where, n, second)
		}
	}
	if violated["second"] == 0 || violated["minute"] == 0 || violated["day"] == 0 || violated["trial"] != 0 || violated["api_key"] != 0 {
		t.Errorf("refusals name %v, want second, minute and day, and never trial or api_key", violated)
	}
}
