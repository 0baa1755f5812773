package systemtest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// proxied sends everything to a load balancer, which says where it went in X-Served-By.
type proxied struct {
	url  string
	last string
}

func (p *proxied) base() string { return p.url }

func (p *proxied) went(t *testing.T, res response) {
	t.Helper()
	node := res.header.Get("X-Served-By")
	if node == "" || node == p.last {
		t.Errorf("served by %q after %q, want another node each time", node, p.last)
	}
	p.last = node
}

func TestReferenceFlow_Nginx(t *testing.T) {
	program := needProgram(t, "nginx")
	c := sharedCluster(t)
	url := startProxy(t, c, "nginx.conf", func(dir, config string) *exec.Cmd {
		return exec.Command(program, "-p", dir, "-c", config, "-e", filepath.Join(dir, "error.log"), "-g", "daemon off;")
	})
	referenceFlow(t, &proxied{url: url})
}

func TestReferenceFlow_HAProxy(t *testing.T) {
	program := needProgram(t, "haproxy")
	c := sharedCluster(t)
	url := startProxy(t, c, "haproxy.cfg", func(_, config string) *exec.Cmd {
		return exec.Command(program, "-db", "-f", config)
	})
	referenceFlow(t, &proxied{url: url})
}

// findProgram gives the path of a program, "" where it is not installed.
func findProgram(name string) string {
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/usr/local/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	return ""
}

// needProgram finds a program. Where it is not installed the test has nothing to do, but in CI it must be there.
func needProgram(t *testing.T, name string) string {
	t.Helper()
	if path := findProgram(name); path != "" {
		return path
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed", name)
	}
	t.Skipf("%s is not installed", name)
	return ""
}

// proxyConfig is an example of deploy/ made to fit: its addresses are replaced by those of a cluster.
type proxyConfig struct {
	example string
	text    string   // in the place of what the example holds, unless ""
	nodes   []string // URLs, for 127.0.0.1:8080 and those that follow
	replace []string // pairs: what stands there, and what takes its place
	beside  []string // files that have to lie beside it
	ports   []string // addresses of its own besides 127.0.0.1:8000
}

// startProxy runs a load balancer with the example in deploy/ and waits until it passes requests to every node.
func startProxy(t *testing.T, c *cluster, example string, command func(dir, config string) *exec.Cmd) string {
	t.Helper()
	return startProxyWith(t, c, example, command)
}

// startProxyWith does so with more of the example replaced.
func startProxyWith(t *testing.T, c *cluster, example string, command func(dir, config string) *exec.Cmd, replace ...string) string {
	t.Helper()
	url := runProxy(t, proxyConfig{example: example, nodes: c.urls, replace: replace}, command)
	served := make(map[string]bool)
	eventually(t, readyWithin, example+" passes requests to every node", func() error {
		res, err := send(url, request{path: "/readyz"})
		if err != nil {
			return err
		}
		if res.status == 200 {
			served[res.header.Get("X-Served-By")] = true
		}
		if len(served) < len(c.urls) {
			return fmt.Errorf("served by %v so far; the last answer was %v", served, res)
		}
		return nil
	})
	return url
}

// runProxy runs a proxy with an example of deploy/ until the end of the test, and gives its URL.
func runProxy(t *testing.T, c proxyConfig, command func(dir, config string) *exec.Cmd) string {
	t.Helper()
	dir := t.TempDir()
	starting.Lock()
	port, err := consecutivePorts(1 + len(c.ports))
	starting.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	address := func(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
	replacements := append([]string{"127.0.0.1:8000", address(port), "\n:8000 {", fmt.Sprintf("\n:%d {", port), "/tmp/sluice-nginx", dir}, c.replace...)
	for i, own := range c.ports {
		replacements = append(replacements, own, address(port+1+i))
	}
	for i, url := range c.nodes {
		replacements = append(replacements, address(8080+i), strings.TrimPrefix(url, "http://"))
	}
	for _, name := range append([]string{c.example}, c.beside...) {
		text := []byte(c.text)
		if c.text == "" {
			if text, err = os.ReadFile(filepath.Join("..", "..", "..", "deploy", name)); err != nil {
				t.Fatal(err)
			}
		}
		text = []byte(strings.NewReplacer(replacements...).Replace(string(text)))
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(name)), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var output lockedBuffer
	cmd := command(dir, filepath.Join(dir, filepath.Base(c.example)))
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		cmd.Wait()
		close(done)
	}()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-done:
		case <-time.After(stopWithin):
			cmd.Process.Kill()
			<-done
		}
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(dir, "error.log"))
			t.Logf("the proxy said:\n%s%s", output.String(), bytes.TrimSpace(log))
		}
	})
	return "http://" + address(port)
}
