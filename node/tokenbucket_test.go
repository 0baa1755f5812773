package node_test

import (
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"sluice/node"
	"sluice/node/nodetest"
)

// tokenBucket gives anonymous clients 10 requests a second and 20 at once.
func tokenBucket(_ int, cfg *node.Config) {
	cfg.TrustedProxies = []string{"127.0.0.0/8"}
	cfg.Limits.Anonymous = node.RuleConfig{Limit: 10, Window: node.Duration(time.Second), Algorithm: "token_bucket", Burst: 20}
}

// A client asks all three nodes for more than its token bucket has: what passes is burst + rate · t, never more, and of
// that at least 99 of 100 but for what is in pieces at the end.
func TestTokenBucket_OverThreeNodes(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("asks for some seconds")
	}
	c := nodetest.Start(t, 3, nodetest.WithConfig(tokenBucket))
	const workers, client = 6, "203.0.113.9"
	asker := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: workers}}
	defer asker.CloseIdleConnections()
	began := time.Now()
	end := began.Add(4 * time.Second)
	var mu sync.Mutex
	admitted, refused := 0, 0
	var first, last time.Time // of all answers
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for i := w; time.Now().Before(end); i++ {
				req, err := http.NewRequest(http.MethodGet, "http://"+c.Members[i%3].Node.HTTPAddr().String()+"/api/v1/auth/verify", nil)
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("X-Forwarded-For", client)
				resp, err := asker.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				_, err = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				now := time.Now()
				mu.Lock()
				switch {
				case err != nil:
					t.Error(err)
				case resp.StatusCode == http.StatusOK:
					admitted++
				case resp.StatusCode == http.StatusTooManyRequests:
					refused++
				default:
					t.Errorf("status %s", resp.Status)
				}
				if first.IsZero() {
					first = now
				}
				last = now
				mu.Unlock()
				for name, want := range map[string]string{
					"X-RateLimit-Limit": "10", "X-RateLimit-Window": "1", "RateLimit-Policy": `"anonymous";q=10;w=1;burst=20`,
				} {
					if got := resp.Header.Get(name); got != want {
						t.Errorf("%s: got %q, want %q", name, got, want)
						return
					}
				}
			}
		})
	}
	group.Wait()
	most := 20 + 10*last.Sub(began).Seconds()
	least := 0.99*(20+10*end.Sub(first).Seconds()) - 2
	t.Logf("%d admitted, %d refused, at most %.1f, at least %.1f", admitted, refused, most, least)
	if float64(admitted) > most || float64(admitted) < least {
		t.Errorf("%d admitted, want %.1f to %.1f", admitted, least, most)
	}
}
