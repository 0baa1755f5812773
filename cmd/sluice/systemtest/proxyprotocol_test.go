package systemtest

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestProxyProtocol_HAProxy lets HAProxy name clients in PROXY headers, of both versions. It connects from an address that the nodes
// trust; the test itself asks from another, without such a header.
func TestProxyProtocol_HAProxy(t *testing.T) {
	program := needProgram(t, "haproxy")
	const from = "127.0.0.9"
	c := startCluster(t, options{variables: []string{"SLUICE_TRUSTED_PROXIES=" + from, "SLUICE_LIMITS__ANONYMOUS__LIMIT=5", "SLUICE_LIMITS__ANONYMOUS__WINDOW=24h"}})
	// `sluice dev` has no such setting: it asks its nodes over plain HTTP itself.
	c.stop()
	for node := range c.urls {
		path := filepath.Join(c.dir, fmt.Sprintf("node%d.toml", node+1))
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		changed := strings.Replace(string(text), "[http]\n", "[http]\nproxy_protocol = true\n", 1)
		if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		c.startNode(t, node+1)
	}
	for node := range c.urls {
		c.waitReadyz(t, node+1, 3*readyWithin)
	}
	for i, version := range []string{"send-proxy", "send-proxy-v2"} {
		t.Run(version, func(t *testing.T) {
			url := startProxyWith(t, c, "haproxy.cfg", func(_, config string) *exec.Cmd { return exec.Command(program, "-db", "-f", config) },
				"default-server check", "default-server "+version+" check-send-proxy source "+from+" check")
			// passed says how many of some requests from an address passed. They name others in headers, in vain: HAProxy appends.
			passed := func(address string, n int) int {
				count := 0
				for i := range n {
					req, err := http.NewRequest("GET", url+"/api/v1/auth/verify", http.NoBody)
					if err != nil {
						t.Fatal(err)
					}
					req.Header.Set("X-Forwarded-For", fmt.Sprintf("192.0.2.%d", i+1))
					res, err := clientAt(address).Do(req)
					if err != nil {
						t.Fatal(err)
					}
					_, err = io.Copy(io.Discard, res.Body)
					res.Body.Close()
					switch {
					case err != nil:
						t.Fatal(err)
					case res.StatusCode == http.StatusOK:
						count++
					case res.StatusCode != http.StatusTooManyRequests:
						t.Errorf("status %d", res.StatusCode)
					}
				}
				return count
			}
			one, other := fmt.Sprintf("127.0.8.%d", 2*i+1), fmt.Sprintf("127.0.8.%d", 2*i+2)
			if got := passed(one, 12); got != 5 {
				t.Errorf("%d of 12 requests of one address passed, want its limit of 5", got)
			}
			if got := passed(other, 3); got != 3 {
				t.Errorf("%d of 3 requests of another address passed", got)
			}
		})
	}
	// Nobody else may say who they are.
	const header, raw = "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
	node := strings.TrimPrefix(c.urls[0], "http://")
	if status, err := sendRaw(node, "127.0.0.1", header+raw); err != nil || status != http.StatusBadRequest && status != 0 {
		t.Errorf("a PROXY header of a client: %d, %v", status, err)
	}
	if status, err := sendRaw(node, from, raw); err != nil || status != 0 {
		t.Errorf("a connection of the proxy without a PROXY header: %d, %v", status, err)
	}
}
