package systemtest

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"
)

var revocations = flag.Int("revocations", 8, "how many revocations TestRevocation_Latency measures")

// adminURL is a node's admin API; nodes count from 1.
func (c *cluster) adminURL(t *testing.T, node int) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(c.dir, fmt.Sprintf("node%d.toml", node)))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?s)\[admin\].*?listen = "([^"]+)"`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("node%d has no admin listener", node)
	}
	return "http://" + string(m[1])
}

// TestRevocation_Latency measures how long after its acknowledgement a revocation holds on the last node, over kinds and
// nodes in turn. The command that shows the promise, on a machine with nothing else to do:
//
//	go test -count=1 -run TestRevocation_Latency ./cmd/sluice/systemtest -v -revocations 200
func TestRevocation_Latency(t *testing.T) {
	c := sharedCluster(t)
	kinds := []struct {
		name string
		try  func(origin int) (revoke func(), use request, after int)
	}{
		{"session ended", func(origin int) (func(), request, int) {
			a := register(t, c.urls[origin])
			return func() { a.act(t, c.urls[origin], "POST", "/api/v1/auth/logout", nil, http.StatusNoContent) },
				request{path: "/api/v1/auth/me", token: a.token}, http.StatusUnauthorized
		}},
		{"key revoked", func(origin int) (func(), request, int) {
			a := register(t, c.urls[origin])
			key := a.newKey(t, c.urls[origin], 1_000_000, "triggers:read")
			return func() { a.act(t, c.urls[origin], "DELETE", "/api/v1/api-keys/"+key.id, nil, http.StatusNoContent) },
				request{path: "/api/v1/triggers", key: key.secret}, http.StatusUnauthorized
		}},
		{"role changed", func(origin int) (func(), request, int) {
			tm := newTeam(t, c.urls[origin], "admin")
			return func() {
					tm.owner.act(t, c.urls[origin], "PATCH", tm.path("/members/"+tm.member.userID), map[string]any{"role": "viewer"}, http.StatusOK)
				},
				request{path: "/api/v1/audit-logs?organization_id=" + tm.id + "&limit=1", token: tm.member.token}, http.StatusForbidden
		}},
		{"user disabled", func(origin int) (func(), request, int) {
			a := register(t, c.urls[origin])
			key := a.newKey(t, c.urls[origin], 1_000_000, "triggers:read")
			admin := c.adminURL(t, origin+1)
			return func() {
					must(t, admin, request{method: "POST", path: "/v1/users/" + a.userID + "/disable", body: map[string]any{}}, http.StatusOK)
				},
				request{path: "/api/v1/triggers", key: key.secret}, http.StatusUnauthorized
		}},
	}
	took := map[string][]time.Duration{}
	var all []time.Duration
	for i := range *revocations {
		kind := kinds[i%len(kinds)]
		revoke, use, after := kind.try(i / len(kinds) % len(c.urls))
		use.address = newAddress()
		everywhere(t, c, use, http.StatusOK)
		revoke()
		d := lastRefusal(t, c, kind.name, use, after)
		took[kind.name] = append(took[kind.name], d)
		all = append(all, d)
	}
	slices.Sort(all)
	at := func(list []time.Duration, p int) time.Duration { return list[min(len(list)*p/100, len(list)-1)] }
	for name, list := range took {
		slices.Sort(list)
		t.Logf("%-14s %4d tries: p50 %v, p99 %v, max %v", name, len(list), at(list, 50), at(list, 99), list[len(list)-1])
	}
	t.Logf("%-14s %4d tries: p50 %v, p99 %v, max %v", "all", len(all), at(all, 50), at(all, 99), all[len(all)-1])
	if p99 := at(all, 99); p99 > holdsWithin {
		t.Errorf("p99 is %v, promised %v", p99, holdsWithin)
	}
}

// lastRefusal is the time from now to the answer of the node that is the last to refuse the request.
func lastRefusal(t *testing.T, c *cluster, what string, use request, after int) time.Duration {
	t.Helper()
	begun := time.Now()
	var mu sync.Mutex
	var last time.Duration
	var wg sync.WaitGroup
	for i, url := range c.urls {
		wg.Go(func() {
			for {
				r := use
				r.address = newAddress() // a credential that fails spends its address's limit
				res, err := send(url, r)
				since := time.Since(begun)
				switch {
				case err != nil:
					t.Errorf("%s: %v", what, err)
					return
				case res.status == after:
					mu.Lock()
					defer mu.Unlock()
					last = max(last, since)
					return
				case res.status != http.StatusOK || since > 10*time.Second:
					t.Errorf("%s: node%d answers %v, %v after", what, i+1, res, since)
					return
				}
				time.Sleep(2 * time.Millisecond) // paces the asking; nothing depends on it
			}
		})
	}
	wg.Wait()
	return last
}
