package netfault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The cluster's settings. They are short, so that a fault of seconds goes through all that a long one would: credentials
// become too old, the horizon passes, the lost node's share goes to the others, windows begin and end.
const (
	maxStaleness    = 3 * time.Second
	deadAfter       = 3 * time.Second
	anonymousLimit  = 12
	anonymousWindow = 5 * time.Second
)

const nodeTemplate = `name = "node%d"
cluster = "netfault"
data_dir = "node%d"
trusted_proxies = ["` + hubAddress + `"]
initial_members = ["10.77.0.1:7100", "10.77.0.2:7100", "10.77.0.3:7100"]
[http]
listen = "%[3]s:8080"
read_timeout = "15s"
drain_delay = "0s"
drain_timeout = "1s"
[peer]
listen = "%[3]s:7100"
[gossip]
listen = "%[3]s:7101"
[admin]
listen = "%[3]s:7102"
[secrets]
cluster_file = "cluster.secret"
key_file = "key.secret"
[log]
format = "text"
[limits]
on_isolation = "%[4]s"
lease = "4s"
dead_after = "%[5]s"
max_clock_skew = "1s"
[limits.anonymous]
limit = %[6]d
window = "%[7]s"
[limits.user]
limit = 100000000
[auth]
max_staleness = "%[8]s"
`

// cluster is three nodes, numbered from 1.
type cluster struct {
	dir     string
	program string
	shifts  bool // the program reads its clock's offset from node<i>.clock
	running [nodes + 1]*process
}

type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed once it has ended
}

// startCluster starts three nodes, waits until they are ready, and stops them at the end of the test.
func startCluster(t *testing.T, program, isolation string, shifts bool) *cluster {
	t.Helper()
	c := prepareCluster(t, program, isolation, shifts)
	c.startAll(t)
	return c
}

// prepareCluster is startCluster without the start.
func prepareCluster(t *testing.T, program, isolation string, shifts bool) *cluster {
	t.Helper()
	c := &cluster{dir: t.TempDir(), program: program, shifts: shifts}
	for _, name := range []string{"cluster.secret", "key.secret"} {
		secret, err := exec.Command(sluice, "secret", "new").Output()
		if err != nil {
			t.Fatalf("make a secret: %v", err)
		}
		write(t, filepath.Join(c.dir, name), secret)
	}
	for node := 1; node <= nodes; node++ {
		write(t, c.path(node, "toml"), fmt.Appendf(nil, nodeTemplate, node, node, nodeAddress(node), isolation, deadAfter, anonymousLimit, anonymousWindow, maxStaleness))
		if shifts {
			write(t, c.path(node, "clock"), make([]byte, 8))
		}
	}
	t.Cleanup(func() {
		for node := 1; node <= nodes; node++ {
			c.stop(t, node)
		}
		if t.Failed() {
			t.Log(c.logs())
		}
	})
	return c
}

func (c *cluster) startAll(t *testing.T) {
	t.Helper()
	for node := 1; node <= nodes; node++ {
		c.start(t, node)
	}
	c.waitReady(t, 20*time.Second)
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) path(node int, ending string) string {
	return filepath.Join(c.dir, fmt.Sprintf("node%d.%s", node, ending))
}

// start runs a node in its namespace. It dies with the test process.
func (c *cluster) start(t *testing.T, node int) {
	t.Helper()
	log, err := os.OpenFile(c.path(node, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("ip", "netns", "exec", namespace(node), c.program, "node", "--config", c.path(node, "toml"))
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "SLUICE_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	if c.shifts {
		cmd.Env = append(cmd.Env, variableClock+"="+c.path(node, "clock"))
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd, make(chan struct{})}
	c.running[node] = p
	go func() {
		cmd.Wait()
		close(p.done)
	}()
}

// signal reaches the node itself: `ip netns exec` becomes the program that it runs.
func (c *cluster) signal(t *testing.T, node int, s syscall.Signal) {
	t.Helper()
	if err := c.running[node].cmd.Process.Signal(s); err != nil {
		t.Fatalf("signal %v to node%d: %v", s, node, err)
	}
}

// kill ends a node without a chance to say anything.
func (c *cluster) kill(t *testing.T, node int) {
	t.Helper()
	c.signal(t, node, syscall.SIGKILL)
	<-c.running[node].done
}

func (c *cluster) stop(t *testing.T, node int) {
	p := c.running[node]
	if p == nil {
		return
	}
	p.cmd.Process.Signal(syscall.SIGCONT)
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		t.Errorf("node%d does not stop", node)
		p.cmd.Process.Signal(syscall.SIGQUIT) // its log then ends with what it waits for
		<-p.done
	}
}

// logs are the ends of the nodes' logs.
func (c *cluster) logs() string {
	var b strings.Builder
	for node := 1; node <= nodes; node++ {
		data, _ := os.ReadFile(c.path(node, "log"))
		if len(data) > 256<<10 {
			data = data[len(data)-256<<10:]
		}
		fmt.Fprintf(&b, "--- node%d\n%s", node, data)
	}
	return b.String()
}

// waitReady waits until all nodes say that they are fit for traffic.
func (c *cluster) waitReady(t *testing.T, within time.Duration) {
	t.Helper()
	for node := 1; node <= nodes; node++ {
		eventually(t, within, fmt.Sprintf("node%d is ready", node), func() error {
			select {
			case <-c.running[node].done:
				t.Fatalf("node%d ended: %v", node, c.running[node].cmd.ProcessState)
			default:
			}
			return expect(http.StatusOK)(send(node, request{path: "/readyz?verbose"}))
		})
	}
}

// metric reads one number from a node's admin listener. It is of the node that answers and of no client, so it has no labels.
func metric(node int, name string) (float64, error) {
	res, err := client.Get("http://" + net.JoinHostPort(nodeAddress(node), "7102") + "/metrics")
	if err != nil {
		return 0, fmt.Errorf("metrics of node%d: %w", node, err)
	}
	served, err := read(res)
	if err := expect(http.StatusOK)(served, err); err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(served.body)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("node%d has no metric %s", node, name)
}

// audited says what the nodes' auditors found, which must be nothing unless an excess is allowed.
func (c *cluster) audited(t *testing.T, allowed bool) {
	t.Helper()
	var most, windows float64
	for node := 1; node <= nodes; node++ {
		over, err := metric(node, "sluice_limit_overadmitted_total")
		if err != nil {
			t.Fatal(err)
		}
		audited, err := metric(node, "sluice_limit_audited_windows_total")
		if err != nil {
			t.Fatal(err)
		}
		most, windows = max(most, over), windows+audited
	}
	t.Logf("auditors: %v windows summed up, at most %v units over", windows, most)
	if most > 0 && !allowed {
		t.Errorf("an auditor found %v units over", most)
	}
}

// leader asks the nodes who leads, and waits until exactly one says so.
func (c *cluster) leader(t *testing.T) (leader int) {
	t.Helper()
	eventually(t, 10*time.Second, "one node leads", func() error {
		leader = 0
		for node := 1; node <= nodes; node++ {
			res, err := send(node, request{path: "/api/v1/health", address: newAddress()})
			if err == nil && strings.Contains(strings.ReplaceAll(string(res.body), " ", ""), `"leader":true`) {
				if leader != 0 {
					return fmt.Errorf("node%d and node%d say so", leader, node)
				}
				leader = node
			}
		}
		if leader == 0 {
			return errors.New("nobody says so")
		}
		return nil
	})
	return leader
}

// others are all nodes but these.
func others(these ...int) []int {
	var out []int
	for node := 1; node <= nodes; node++ {
		found := false
		for _, n := range these {
			found = found || n == node
		}
		if !found {
			out = append(out, node)
		}
	}
	return out
}

// firewall runs iptables where a node receives.
func firewall(t *testing.T, node int, args ...string) {
	t.Helper()
	if err := command(append([]string{"ip", "netns", "exec", namespace(node), "iptables", "-w"}, args...)...); err != nil {
		t.Fatal(err)
	}
}

// cut loses all packets from one node to another, at the receiver: the sender is not told.
func cut(t *testing.T, from, to int) {
	t.Helper()
	firewall(t, to, "-A", "INPUT", "-s", nodeAddress(from), "-j", "DROP")
}

// lose drops each packet between nodes with a probability.
func lose(t *testing.T, probability string) {
	t.Helper()
	for node := 1; node <= nodes; node++ {
		firewall(t, node, "-A", "INPUT", "-s", nodesPrefix, "-m", "statistic", "--mode", "random", "--probability", probability, "-j", "DROP")
	}
}

// mend undoes cut and lose.
func mend(t *testing.T) {
	t.Helper()
	for node := 1; node <= nodes; node++ {
		firewall(t, node, "-F", "INPUT")
	}
}

// eventually waits until check finds nothing wrong, and says how long that took.
func eventually(t *testing.T, within time.Duration, what string, check func() error) time.Duration {
	t.Helper()
	begun := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return time.Since(begun)
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waited %v until %s; at last: %v", within, what, err)
		case <-tick.C:
		}
	}
}

// response is an answer, or what there is of it.
type response struct {
	status int
	header http.Header
	body   []byte
}

func (r response) String() string { return fmt.Sprintf("%d %s", r.status, r.body) }

func read(res *http.Response) (response, error) {
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return response{res.StatusCode, res.Header, body}, err
}

// expect turns another answer than the wanted one into an error.
func expect(status int) func(response, error) error {
	return func(res response, err error) error {
		if err == nil && res.status != status {
			err = fmt.Errorf("got %v, want %d", res, status)
		}
		return err
	}
}
