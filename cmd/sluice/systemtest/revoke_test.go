package systemtest

import (
	"net/http"
	"sync"
	"testing"
	"time"
)

// holdsWithin is how soon a revocation holds on every connected node.
const holdsWithin = 200 * time.Millisecond

// TestRevocation_HoldsEverywhere deletes, ends and narrows credentials on one node and sees how long the others honour
// them.
func TestRevocation_HoldsEverywhere(t *testing.T) {
	c := sharedCluster(t)
	for turn := range len(c.urls) {
		origin := c.urls[turn]
		a := register(t, origin)

		key := a.newKey(t, origin, 1_000_000, "triggers:read")
		use := request{path: "/api/v1/triggers", key: key.secret, address: a.address}
		everywhere(t, c, use, http.StatusOK)
		must(t, origin, request{method: "DELETE", path: "/api/v1/api-keys/" + key.id, token: a.token, address: a.address}, http.StatusNoContent)
		changes(t, c, "a deleted key", use, http.StatusOK, http.StatusUnauthorized)

		key = a.newKey(t, origin, 1_000_000, "triggers:read", "triggers:write")
		use = request{method: "POST", path: "/api/v1/triggers", key: key.secret, address: a.address, body: map[string]any{}}
		everywhere(t, c, use, http.StatusOK)
		must(t, origin, request{method: "PATCH", path: "/api/v1/api-keys/" + key.id, token: a.token, address: a.address,
			body: map[string]any{"scopes": []string{"triggers:read"}}}, http.StatusOK)
		changes(t, c, "a changed scope", use, http.StatusOK, http.StatusForbidden)

		use = request{path: "/api/v1/auth/me", token: a.token, address: a.address}
		everywhere(t, c, use, http.StatusOK)
		must(t, origin, request{method: "POST", path: "/api/v1/auth/logout", token: a.token, address: a.address}, http.StatusNoContent)
		changes(t, c, "a logged-out session", use, http.StatusOK, http.StatusUnauthorized)
	}
}

func everywhere(t *testing.T, c *cluster, r request, status int) {
	t.Helper()
	for _, url := range c.urls {
		must(t, url, r, status)
	}
}

// changes is called right after a change was acknowledged: each node must answer with the status after within the
// promised time, and never with the one before again.
func changes(t *testing.T, c *cluster, what string, r request, before, after int) {
	t.Helper()
	begun := time.Now()
	var all sync.WaitGroup
	for i, url := range c.urls {
		all.Go(func() {
			for changed := false; ; {
				sent, r := time.Now(), r
				r.address = newAddress() // a credential that fails spends its address's limit
				res, err := send(url, r)
				switch {
				case err != nil:
					t.Errorf("%s: %v", what, err)
					return
				case res.status == after && !changed:
					changed = true
					t.Logf("%s: node%d after %v", what, i+1, time.Since(begun).Round(100*time.Microsecond))
				case res.status == before && sent.Sub(begun) > holdsWithin, res.status == before && changed, res.status != before && res.status != after:
					t.Errorf("%s: node%d answers %v to a request sent %v after", what, i+1, res, sent.Sub(begun))
					return
				}
				if changed && time.Since(begun) > holdsWithin+50*time.Millisecond {
					return
				}
				time.Sleep(10 * time.Millisecond) // paces the asking; nothing depends on it
			}
		})
	}
	all.Wait()
}

// TestNewKey_WorksEverywhereAtOnce uses each new key on the other nodes the moment it is known.
func TestNewKey_WorksEverywhereAtOnce(t *testing.T) {
	c := sharedCluster(t)
	a := register(t, c.urls[0])
	for round := range 12 {
		origin := round % len(c.urls)
		key := a.newKey(t, c.urls[origin], 0, "triggers:read")
		var all sync.WaitGroup
		for i, url := range c.urls {
			if i == origin {
				continue
			}
			for range 3 { // several at once share one probe
				all.Go(func() {
					res, err := send(url, request{path: "/api/v1/triggers", key: key.secret, address: a.address})
					if err != nil || res.status != http.StatusOK {
						t.Errorf("a key just made on node%d at node%d: %v, %v", origin+1, i+1, res, err)
					}
				})
			}
		}
		all.Wait()
	}
	// A session as well.
	for round := range len(c.urls) {
		fresh := register(t, c.urls[round])
		for _, url := range c.urls {
			must(t, url, request{path: "/api/v1/auth/me", token: fresh.token, address: fresh.address}, http.StatusOK)
		}
	}
}
