package systemtest

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"sluice/authapi/authtest"
)

// TestSlowClients attacks a node with 2,000 connections that drip headers and bodies, while a good client goes on.
func TestSlowClients(t *testing.T) {
	const (
		connections = 2000
		readTimeout = 2 * time.Second
		// p99 of the good client, in the better of some windows: what the attack does to it lasts, and what else this machine does passes.
		bound, windows, window = 50 * time.Millisecond, 4, readTimeout + readTimeout/2
	)
	c := startCluster(t, options{variables: []string{"SLUICE_HTTP__READ_TIMEOUT=" + readTimeout.String(), "SLUICE_LIMITS__ANONYMOUS__LIMIT=10000000", "SLUICE_TRUSTED_PROXIES="}})
	ask := func() time.Duration {
		at := time.Now()
		res, err := send(c.urls[0], request{path: "/api/v1/auth/verify"})
		if err != nil || res.status != http.StatusOK {
			t.Fatalf("a good client got %v, %v", res, err)
		}
		return time.Since(at)
	}
	measure := func(d time.Duration) (n int, p50, p99 time.Duration) {
		var took []time.Duration
		for begun := time.Now(); time.Since(begun) < d; {
			took = append(took, ask())
		}
		slices.Sort(took)
		return len(took), took[len(took)/2], took[len(took)*99/100]
	}
	_, p50, p99 := measure(time.Second / 2)
	t.Logf("without attack: p50 %v, p99 %v", p50, p99)
	attack := authtest.StartSlowAttack(strings.TrimPrefix(c.urls[0], "http://"), connections)
	t.Cleanup(attack.Stop)
	eventually(t, 2*readyWithin, "most slow connections are open", func() error {
		if n := attack.Open(); n < connections*9/10 {
			return fmt.Errorf("%d are open", n)
		}
		return nil
	})
	best := time.Duration(1 << 62)
	for range windows {
		n, p50, p99 := measure(window)
		t.Logf("%d slow connections: %d good requests, p50 %v, p99 %v", attack.Open(), n, p50, p99)
		if best = min(best, p99); best < bound && attack.Cut()+attack.Answered() >= connections {
			break
		}
	}
	attack.Stop()
	t.Logf("%d bytes dripped, %d connections cut off, %d answered and closed, the longest after %v", attack.Sent(), attack.Cut(), attack.Answered(), attack.Longest().Round(time.Millisecond))
	if best >= bound {
		t.Errorf("p99 of a good client is %v at best, want less than %v", best, bound)
	}
	if ended := attack.Cut() + attack.Answered(); ended < connections {
		t.Errorf("%d slow connections were ended, want each of %d at least once", ended, connections)
	}
	if longest := attack.Longest(); longest > 5*readTimeout {
		t.Errorf("a slow client was let go after %v, and the read timeout is %v", longest, readTimeout)
	}
}
