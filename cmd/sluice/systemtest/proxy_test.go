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

// needProgram finds a program. Where it is not installed the test has nothing to do, but in CI it must be there.
func needProgram(t *testing.T, name string) string {
	t.Helper()
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/usr/local/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed", name)
	}
	t.Skipf("%s is not installed", name)
	return ""
}

// startProxy runs a load balancer with the example in deploy/, its addresses replaced by those of the cluster, and waits
// until it passes requests to every node.
func startProxy(t *testing.T, c *cluster, example string, command func(dir, config string) *exec.Cmd) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "deploy", example))
	if err != nil {
		t.Fatal(err)
	}
	starting.Lock()
	port, err := consecutivePorts(1)
	starting.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	replacements := []string{"127.0.0.1:8000", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), "/tmp/sluice-nginx", dir}
	for i, url := range c.urls {
		replacements = append(replacements, fmt.Sprintf("127.0.0.1:%d", 8080+i), strings.TrimPrefix(url, "http://"))
	}
	config := filepath.Join(dir, example)
	if err := os.WriteFile(config, []byte(strings.NewReplacer(replacements...).Replace(string(text))), 0o600); err != nil {
		t.Fatal(err)
	}
	var output lockedBuffer
	cmd := command(dir, config)
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
			t.Logf("the load balancer said:\n%s%s", output.String(), bytes.TrimSpace(log))
		}
	})
	url := "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
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
