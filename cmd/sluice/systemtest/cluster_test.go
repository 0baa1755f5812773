package systemtest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// binary is the program under test, built once.
var binary string

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "sluice-systemtest-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "sluice")
	build := exec.Command("go", "build", "-o", binary, "sluice/cmd/sluice")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build the program:", err)
		return 1
	}
	defer func() {
		if shared.cluster != nil {
			shared.cluster.stop()
		}
	}()
	return m.Run()
}

// Bounds of waiting. A cluster is promised to be ready within 10 s of its start.
const (
	readyWithin = 10 * time.Second
	stopWithin  = 30 * time.Second
)

// cluster is one `sluice dev` and what it says.
type cluster struct {
	dir    string
	port   int
	urls   []string
	cmd    *exec.Cmd
	ready  chan string // the line, once
	exited chan struct{}
	err    error         // of Wait, after exited
	took   time.Duration // from the start to the ready line
	stdout lockedBuffer
	stderr lockedBuffer

	mu     sync.Mutex
	byHand map[int]process // nodes that were started by startNode
}

// process is a node that was started by hand; done is closed when it has ended.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
}

// lockedBuffer is a buffer that may be read while it is written.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// starting keeps two clusters from choosing ports at the same time.
var starting sync.Mutex

// options of a cluster; zero values are those of `sluice dev`, but for the port.
type options struct {
	binary    string // the program, if not the one under test
	nodes     int
	dir       string
	port      int
	variables []string
}

// startCluster starts a cluster and waits until it is ready. It is stopped at the end of the test, and its logs are
// shown if that fails.
func startCluster(t *testing.T, o options) *cluster {
	t.Helper()
	c, err := launch(o, t.TempDir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.stop()
		if t.Failed() {
			t.Log(c.logs())
		}
	})
	return c
}

// launch starts a cluster. On an error nothing is left running.
func launch(o options, tempDir func() string) (*cluster, error) {
	starting.Lock()
	defer starting.Unlock()
	if o.nodes == 0 {
		o.nodes = 3
	}
	if o.port == 0 {
		port, err := consecutivePorts(o.nodes)
		if err != nil {
			return nil, err
		}
		o.port = port
	}
	if o.dir == "" {
		o.dir = tempDir()
	}
	c, err := startDev(o, "--nodes", strconv.Itoa(o.nodes), "--port", strconv.Itoa(o.port), "--dir", o.dir)
	if err != nil {
		return nil, err
	}
	select {
	case line := <-c.ready:
		c.urls = strings.Fields(line)[1:]
		return c, nil
	case <-c.exited:
		return nil, fmt.Errorf("the cluster ended before it was ready: %v\n%s", c.err, c.logs())
	case <-time.After(3 * readyWithin): // the promise itself is a test of its own
		logs := c.logs()
		c.stop()
		return nil, fmt.Errorf("the cluster was not ready within %v\n%s", 3*readyWithin, logs)
	}
}

// startDev runs `sluice dev` with args and does not wait for it.
func startDev(o options, args ...string) (*cluster, error) {
	c := &cluster{dir: o.dir, port: o.port, ready: make(chan string, 1), exited: make(chan struct{})}
	program, variables := o.binary, o.variables
	if program == "" {
		program = binary
		// What nodes that join wait for in the field is only waiting here.
		variables = append([]string{"SLUICE_MEMBERSHIP__STABILIZATION_TIME=500ms"}, variables...)
	}
	c.cmd = exec.Command(program, append([]string{"dev"}, args...)...)
	c.cmd.Env = append(cleanEnvironment(), variables...)
	c.cmd.Stderr = &c.stderr
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	begun := time.Now()
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start: %w", err)
	}
	go func() {
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			fmt.Fprintln(&c.stdout, lines.Text())
			if strings.HasPrefix(lines.Text(), "ready ") {
				c.took = time.Since(begun)
				select {
				case c.ready <- lines.Text():
				default:
				}
			}
		}
		c.err = c.cmd.Wait()
		close(c.exited)
	}()
	return c, nil
}

// cleanEnvironment is the environment without settings that a developer may have made.
func cleanEnvironment() []string {
	var out []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "SLUICE_") {
			out = append(out, v)
		}
	}
	return out
}

// stop ends the cluster as a user would, or harder where that does not help.
func (c *cluster) stop() {
	select {
	case <-c.exited:
		return
	default:
	}
	c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.exited:
	case <-time.After(stopWithin):
		c.cmd.Process.Kill()
		<-c.exited
	}
}

// logs are what the cluster printed and the end of each node's log.
func (c *cluster) logs() string {
	var b strings.Builder
	fmt.Fprintf(&b, "--- standard output\n%s--- standard error\n%s", c.stdout.String(), c.stderr.String())
	paths, _ := filepath.Glob(filepath.Join(c.dir, "*.log"))
	for _, path := range paths {
		data, _ := os.ReadFile(path)
		if len(data) > 12<<10 {
			data = data[len(data)-12<<10:]
		}
		fmt.Fprintf(&b, "--- %s\n%s", path, data)
	}
	return b.String()
}

// pid reads a node's pid file; nodes count from 1.
func (c *cluster) pid(t *testing.T, node int) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(c.dir, fmt.Sprintf("node%d.pid", node)))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatalf("pid file: %v", err)
	}
	return pid
}

// kill ends one node as a power cut would end its process.
func (c *cluster) kill(t *testing.T, node int) {
	t.Helper()
	if err := syscall.Kill(c.pid(t, node), syscall.SIGKILL); err != nil {
		t.Fatalf("kill node%d: %v", node, err)
	}
}

// startNode runs one node of the directory by its file alone, until the end of the test.
func (c *cluster) startNode(t *testing.T, node int) *exec.Cmd {
	t.Helper()
	return c.startProgram(t, binary, node)
}

// startProgram is startNode with another program than the one under test.
func (c *cluster) startProgram(t *testing.T, program string, node int) *exec.Cmd {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(c.dir, fmt.Sprintf("node%d-by-hand.log", node)), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(program, "node", "--config", filepath.Join(c.dir, fmt.Sprintf("node%d.toml", node)))
	cmd.Env = append(cleanEnvironment(), c.cmd.Env[len(cleanEnvironment()):]...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		cmd.Wait()
		close(done)
	}()
	c.mu.Lock()
	if c.byHand == nil {
		c.byHand = make(map[int]process)
	}
	c.byHand[node] = process{cmd: cmd, done: done}
	c.mu.Unlock()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-done:
		case <-time.After(stopWithin):
			t.Errorf("node%d did not stop within %v", node, stopWithin)
			cmd.Process.Kill()
			<-done
		}
	})
	return cmd
}

// waitReadyz waits until a node is ready.
func (c *cluster) waitReadyz(t *testing.T, node int, within time.Duration) {
	t.Helper()
	eventually(t, within, fmt.Sprintf("node%d is ready", node), func() error {
		response, err := plainClient.Get(c.urls[node-1] + "/readyz?verbose")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			body, _ := io.ReadAll(response.Body)
			return fmt.Errorf("%d %s", response.StatusCode, body)
		}
		return nil
	})
}

// shared is one cluster for all tests that leave it as whole as it was.
var shared struct {
	once    sync.Once
	cluster *cluster
	err     error
}

func sharedCluster(t *testing.T) *cluster {
	t.Helper()
	shared.once.Do(func() {
		shared.cluster, shared.err = launch(options{}, func() string { return filepath.Join(filepath.Dir(binary), "shared") })
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(shared.cluster.logs())
		}
	})
	return shared.cluster
}

// consecutivePorts finds n free ports in a row below the range that the system takes for outgoing connections.
func consecutivePorts(n int) (int, error) {
	for range 200 {
		port := 11000 + rand.IntN(20000)
		free := true
		for i := range n {
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port+i)))
			if err != nil {
				free = false
				break
			}
			l.Close()
		}
		if free {
			return port, nil
		}
	}
	return 0, fmt.Errorf("found no %d free ports in a row", n)
}

// eventually waits until check finds nothing wrong.
func eventually(t *testing.T, within time.Duration, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waited %v until %s; at last: %v", within, what, err)
		case <-tick.C:
		}
	}
}

// roomInMinute waits for the next minute where less than need is left of this one, for tests that count what fits into
// one window.
func roomInMinute(t *testing.T, need time.Duration) {
	t.Helper()
	now := time.Now()
	if left := now.Truncate(time.Minute).Add(time.Minute).Sub(now); left < need {
		t.Logf("waiting %v for the next minute", left.Round(time.Millisecond))
		<-time.After(left)
	}
}
