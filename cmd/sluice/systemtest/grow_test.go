package systemtest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// growing is a cluster whose nodes come and go, each with certificates of an authority of its own, under load.
type growing struct {
	*cluster
	t       *testing.T
	account account
	key     apiKey
	limited request // of a limit of 100 in a long window

	mu       sync.Mutex
	serving  []int // nodes that a load balancer would send to
	reads    int
	failed   map[string]int // of reads, by node and second
	writes   []string       // ids of what was acknowledged
	admitted int
}

const growthLimit = 100

// files writes a node's file and certificate. The first node begins the cluster, the others ask those that are there.
func (g *growing) files(node int, voter bool) {
	t := g.t
	t.Helper()
	starting.Lock()
	port, err := consecutivePorts(4)
	starting.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	entry := fmt.Sprintf("initial_members = [\"127.0.0.1:%d\"]", port+1)
	if node > 1 {
		entry = fmt.Sprintf("join = [%q]", nodeSetting(t, g.cluster, g.oldest(), "peer"))
	}
	text := fmt.Sprintf(`name = "node%[1]d"
cluster = "growing"
data_dir = "node%[1]d"
trusted_proxies = ["127.0.0.0/8"]
routes_default = "allow"
%[2]s

[http]
listen = "127.0.0.1:%[3]d"
drain_delay = "500ms"

[peer]
listen = "127.0.0.1:%[4]d"
tls_cert = "node%[1]d-certificates/peer.crt"
tls_key = "node%[1]d-certificates/peer.key"
tls_ca = "node%[1]d-certificates/authorities.crt"

[gossip]
listen = "127.0.0.1:%[5]d"

[admin]
listen = "127.0.0.1:%[6]d"

[secrets]
cluster_file = "cluster.secret"
key_file = "key.secret"

[membership]
voter = %[7]v
stabilization_time = "1s"

[limits.anonymous]
limit = %[8]d
window = %[9]q

[limits.api_key]
limit = 100000000
window = %[9]q

[limits.user]
limit = 100000000
window = %[9]q
`, node, entry, port, port+1, port+2, port+3, voter, growthLimit, longWindow())
	if err := os.WriteFile(filepath.Join(g.dir, fmt.Sprintf("node%d.toml", node)), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	g.urls = append(g.urls, fmt.Sprintf("http://127.0.0.1:%d", port))
	g.certificate(node, "authority")
	g.trust(node, "authority")
}

// oldest is the node that has served longest.
func (g *growing) oldest() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.serving[0]
}

// run runs the program outside of any node and returns what it prints.
func (g *growing) run(args ...string) string {
	g.t.Helper()
	cmd := exec.CommandContext(g.t.Context(), binary, args...)
	cmd.Dir, cmd.Env = g.dir, cleanEnvironment()
	out, err := cmd.Output()
	if err != nil {
		g.t.Fatalf("sluice %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// on asks a node that serves for a change of the cluster.
func (g *growing) on(args ...string) string {
	g.t.Helper()
	stdout, stderr, err := g.command(g.t, g.oldest(), args...)
	if err != nil {
		g.t.Fatalf("sluice %v: %v\n%s%s", args, err, stdout, stderr)
	}
	return stdout
}

// authority makes one, in a directory of its name.
func (g *growing) authority(name string) {
	g.t.Helper()
	if err := os.Mkdir(filepath.Join(g.dir, name), 0o700); err != nil {
		g.t.Fatal(err)
	}
	g.run("cert", "new", "ca", "--cluster", "growing", "--out", name)
}

// certificate gives a node a certificate of an authority, in the place of the one that it has.
func (g *growing) certificate(node int, authority string) {
	g.t.Helper()
	config := filepath.Join(g.dir, fmt.Sprintf("node%d.toml", node))
	fresh := g.t.TempDir()
	g.run("cert", "new", "node", "--config", config, "--ca", filepath.Join(g.dir, authority), "--out", fresh)
	dir := filepath.Join(g.dir, fmt.Sprintf("node%d-certificates", node))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		g.t.Fatal(err)
	}
	for _, name := range []string{"peer.crt", "peer.key"} {
		g.replace(filepath.Join(dir, name), read(g.t, filepath.Join(fresh, name)))
	}
}

// trust says whose certificates a node accepts.
func (g *growing) trust(node int, authorities ...string) {
	g.t.Helper()
	var bundle []byte
	for _, a := range authorities {
		bundle = append(bundle, read(g.t, filepath.Join(g.dir, a, "peer-ca.crt"))...)
	}
	g.replace(filepath.Join(g.dir, fmt.Sprintf("node%d-certificates", node), "authorities.crt"), bundle)
}

// replace writes a file as a whole, as who renews certificates should.
func (g *growing) replace(path string, content []byte) {
	g.t.Helper()
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		g.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		g.t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// add lets one more node join and waits until it serves.
func (g *growing) add(voter bool) (node int) {
	g.t.Helper()
	node = len(g.urls) + 1
	g.files(node, voter)
	g.startNode(g.t, node)
	g.waitReadyz(g.t, node, 3*readyWithin)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.serving = append(g.serving, node)
	return node
}

// remove takes a node out of the load balancer and then out of the cluster.
func (g *growing) remove(node int) {
	g.t.Helper()
	g.mu.Lock()
	g.serving = slices.DeleteFunc(g.serving, func(n int) bool { return n == node })
	g.mu.Unlock()
	g.on("cluster", "remove", fmt.Sprintf("node%d", node))
	select {
	case <-g.byHand[node].done:
	case <-time.After(stopWithin):
		g.t.Fatalf("node%d did not end within %v", node, stopWithin)
	}
}

// pick is the node of the i-th request.
func (g *growing) pick(i int) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.urls[g.serving[i%len(g.serving)]-1]
}

// load sends requests until ctx ends: reads have to pass, writes are noted, and a client asks for more than its limit.
func (g *growing) load(ctx context.Context) (wait func()) {
	var all sync.WaitGroup
	every := func(pause time.Duration, ask func(i int)) {
		all.Go(func() {
			tick := time.NewTicker(pause)
			defer tick.Stop()
			for i := 0; ; i++ {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
					ask(i)
				}
			}
		})
	}
	for _, r := range []request{
		{path: "/api/v1/auth/verify", key: g.key.secret, address: g.account.address},
		{path: "/api/v1/auth/verify", token: g.account.token, address: g.account.address},
	} {
		every(5*time.Millisecond, func(i int) {
			url := g.pick(i)
			res, err := send(url, r)
			g.mu.Lock()
			defer g.mu.Unlock()
			g.reads++
			if err == nil && res.status == http.StatusOK {
				return
			}
			at := url + time.Now().Format(" 15:04:05")
			g.failed[at]++
			if len(g.failed) <= 2 && g.failed[at] == 1 {
				g.t.Errorf("verify at %s: %v, %v", url, res, err)
			}
		})
	}
	every(50*time.Millisecond, func(i int) {
		// A write may fail while a leader goes; what was acknowledged is there in the end.
		res, err := send(g.pick(i), request{method: "POST", path: "/api/v1/organizations", token: g.account.token, address: g.account.address, body: map[string]any{"name": unique("grown")}})
		if err == nil && res.status == http.StatusCreated {
			g.mu.Lock()
			g.writes = append(g.writes, res.field(g.t, "id"))
			g.mu.Unlock()
		}
	})
	every(400*time.Millisecond, func(i int) { g.spend(i) })
	return all.Wait
}

func (g *growing) spend(i int) {
	res, err := send(g.pick(i), g.limited)
	if err == nil && res.status == http.StatusOK {
		g.mu.Lock()
		g.admitted++
		g.mu.Unlock()
	}
}

// settled waits until the cluster has so many voters and others, all well.
func (g *growing) settled(voters, others int) {
	g.t.Helper()
	eventually(g.t, 3*readyWithin, fmt.Sprintf("%d voters and %d others, nothing wrong", voters, others), func() error {
		stdout, stderr, err := g.command(g.t, g.oldest(), "cluster", "status", "--output", "json")
		if err != nil {
			return fmt.Errorf("%w: %s%s", err, stdout, stderr)
		}
		var s struct{ Nodes []struct{ Role string } }
		if err := json.Unmarshal([]byte(stdout), &s); err != nil {
			return err
		}
		v, o := 0, 0
		for _, n := range s.Nodes {
			if n.Role == "nonvoter" {
				o++
			} else {
				v++
			}
		}
		if v != voters || o != others {
			return fmt.Errorf("%d voters and %d others", v, o)
		}
		return nil
	})
}

// gossipKeys are the fingerprints of the keyring.
func (g *growing) gossipKeys() (ids []string) {
	g.t.Helper()
	var ring struct{ Keys []struct{ ID string } }
	if err := json.Unmarshal([]byte(g.on("cluster", "keyring", "list", "--output", "json")), &ring); err != nil {
		g.t.Fatal(err)
	}
	for _, k := range ring.Keys {
		ids = append(ids, k.ID)
	}
	return ids
}

// TestGrow grows a cluster from one node to three and to five, two of them without a vote, replaces each node, changes every key between
// nodes and the one that signs, and shrinks it to three, under load all the time.
func TestGrow(t *testing.T) {
	t.Parallel()
	g := &growing{cluster: &cluster{dir: t.TempDir(), cmd: &exec.Cmd{Env: cleanEnvironment()}}, t: t, failed: map[string]int{}}
	for _, name := range []string{"cluster.secret", "key.secret"} {
		g.replace(filepath.Join(g.dir, name), []byte(g.run("secret", "new")))
	}
	g.authority("authority")
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(g.logs())
		}
	})
	g.add(true)
	g.account = register(t, g.urls[0])
	g.key = g.account.newKey(t, g.urls[0], 0, "triggers:read")
	g.limited = request{path: "/api/v1/auth/verify", address: newAddress()}
	ctx, stop := context.WithCancel(t.Context())
	wait := g.load(ctx)
	defer func() { stop(); wait() }()

	begun := time.Now()
	phase := func(what string) {
		g.mu.Lock()
		defer g.mu.Unlock()
		t.Logf("%5.1f s: %s; %d verified, %d failed, %d written, %d of %d admitted", time.Since(begun).Seconds(), what, g.reads, len(g.failed), len(g.writes), g.admitted, growthLimit)
	}
	g.add(true)
	g.add(true)
	g.settled(3, 0)
	phase("three nodes")
	g.add(false)
	g.add(false)
	g.settled(3, 2)
	phase("five, two without a vote")
	for old := 1; old <= 5; old++ {
		g.add(old <= 3)
		g.remove(old)
	}
	g.settled(3, 2)
	phase("all replaced")

	g.on("cluster", "rotate-signing-key")
	old := g.gossipKeys()
	fresh, _, _ := strings.Cut(g.on("cluster", "keyring", "install"), " ")
	g.on("cluster", "keyring", "use", fresh)
	for _, key := range old {
		g.on("cluster", "keyring", "remove", key)
	}
	if left := g.gossipKeys(); !slices.Equal(left, []string{fresh}) {
		t.Errorf("keys of gossip %q, want %q alone", left, fresh)
	}
	phase("gossip under a new key, " + fresh)

	g.authority("successor")
	nodes := slices.Clone(g.serving)
	for _, step := range []func(node int){
		func(node int) { g.trust(node, "authority", "successor") },
		func(node int) { g.certificate(node, "successor") },
		func(node int) { g.trust(node, "successor") },
	} {
		for _, node := range nodes {
			step(node)
			if err := g.byHand[node].cmd.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
		}
		g.settled(3, 2)
	}
	phase("certificates of a new authority")

	for _, node := range nodes[3:] {
		g.remove(node)
	}
	g.settled(3, 0)
	phase("three again")
	stop()
	wait()
	for i := range growthLimit - g.admitted + 10 {
		if passes(t, g.pick(i), g.limited) {
			g.admitted++
		}
	}
	if g.admitted != growthLimit {
		t.Errorf("%d admitted of %d", g.admitted, growthLimit)
	}
	for i, id := range g.writes {
		must(t, g.pick(i), request{path: "/api/v1/organizations/" + id, token: g.account.token, address: g.account.address}, http.StatusOK)
	}
	for at, n := range g.failed {
		t.Errorf("%d reads failed at %s", n, at)
	}
	if len(g.writes) < 20 || g.reads < 200 {
		t.Errorf("hardly any load: %d writes, %d reads", len(g.writes), g.reads)
	}
}
