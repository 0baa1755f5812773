package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pelletier/go-toml/v2"

	"sluice/node"
)

// devCluster is what a directory of `sluice dev` says.
type devCluster struct {
	dir   string
	nodes []devNode
	echo  string   // address of the echo upstream
	made  []string // files that this call has written
}

type devNode struct {
	name   string
	config string // path of its file
	cfg    node.Config
}

// devFile is dev.toml: what a node's own file has no place for.
type devFile struct {
	Echo string `toml:"echo"`
}

func (c *devCluster) urls() []string {
	urls := make([]string, len(c.nodes))
	for i, n := range c.nodes {
		urls[i] = "http://" + n.cfg.HTTP.Listen
	}
	return urls
}

func nodeFile(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("node%d.toml", i)) }

// openDevCluster reads the directory, or fills it where it is new, and sees to it that every address is free. nodes and
// port are 0 where the user left them open. After an error a new directory is as empty as before.
func openDevCluster(dir string, nodes, port int, variables []string) (*devCluster, error) {
	c := &devCluster{dir: dir}
	_, err := os.Stat(nodeFile(dir, 1))
	switch {
	case errors.Is(err, os.ErrNotExist):
		err = c.create(orElse(nodes, defaultDevNodes), orElse(port, defaultDevPort))
	case err == nil:
		err = c.reopen(nodes)
	}
	if err == nil {
		err = c.load(variables)
	}
	var moved []string
	if err == nil && len(c.made) == 0 && port != 0 {
		moved, err = c.move(port)
	}
	if err == nil {
		err = c.checkAddresses()
	}
	// Only now, with nothing left to refuse: a cluster may be running on these files.
	if err == nil && moved != nil {
		err = c.writeMove(moved)
	}
	if err != nil {
		c.discard()
		return nil, err
	}
	return c, nil
}

func orElse(n, fallback int) int {
	if n == 0 {
		return fallback
	}
	return n
}

// discard removes what create has written.
func (c *devCluster) discard() {
	for _, path := range c.made {
		os.Remove(path)
	}
	c.made = nil
}

// create writes the files of a new cluster, node1.toml last: its presence says that the others are there.
func (c *devCluster) create(nodes, port int) error {
	if port+nodes-1 > 65535 {
		return usagef("--port: node %d would be on port %d", nodes, port+nodes-1)
	}
	if left, err := filepath.Glob(filepath.Join(c.dir, "node[0-9]*")); err != nil || len(left) > 0 {
		return usagef("%s has no node1.toml and yet %s: remove what is left there, or choose another --dir", c.dir, strings.Join(left, ", "))
	}
	for i := range nodes {
		if err := free(net.JoinHostPort("127.0.0.1", strconv.Itoa(port+i)), false, fmt.Sprintf("node%d's clients", i+1)); err != nil {
			return err
		}
	}
	inner, err := freePorts(3*nodes+1, port, nodes)
	if err != nil {
		return err
	}
	address := func(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
	c.echo = address(inner[3*nodes])
	for _, name := range []string{"cluster.secret", "key.secret"} {
		if err := c.write(name, node.NewSecret()+"\n"); err != nil {
			return err
		}
	}
	dev, err := toml.Marshal(devFile{Echo: c.echo})
	if err != nil {
		return fmt.Errorf("encode dev.toml: %w", err)
	}
	if err := c.write("dev.toml", string(dev)); err != nil {
		return err
	}
	members := make([]string, nodes)
	for i := range members {
		members[i] = strconv.Quote(address(inner[i]))
	}
	for i := nodes; i >= 1; i-- {
		text := strings.NewReplacer(
			"{i}", strconv.Itoa(i), "{n}", strconv.Itoa(nodes), "{members}", strings.Join(members, ", "), "{http}", address(port+i-1),
			"{peer}", address(inner[i-1]), "{gossip}", address(inner[nodes+i-1]), "{admin}", address(inner[2*nodes+i-1]), "{echo}", c.echo,
		).Replace(nodeTemplate)
		if err := c.write(filepath.Base(nodeFile(c.dir, i)), text); err != nil {
			return err
		}
	}
	return nil
}

// write makes a file that is either whole or not there.
func (c *devCluster) write(name, text string) error {
	path := filepath.Join(c.dir, name)
	c.made = append(c.made, path)
	return replaceFile(path, text)
}

func replaceFile(path, text string) error {
	partial := path + ".partial"
	if err := os.WriteFile(partial, []byte(text), 0o600); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	if err := os.Rename(partial, path); err != nil {
		return errors.Join(fmt.Errorf("write configuration: %w", err), os.Remove(partial))
	}
	return nil
}

const nodeTemplate = `# Node {i} of {n} of a cluster made by "sluice dev". "sluice node --config" with this file starts it by itself. Changes
# are kept; cluster.example.toml in the sources explains every setting.
name = "node{i}"
cluster = "dev"
data_dir = "node{i}"
trusted_proxies = ["127.0.0.0/8", "::1"]
initial_members = [{members}]

[http]
listen = "{http}"
drain_delay = "500ms"
drain_timeout = "5s"

[peer]
listen = "{peer}"

[gossip]
listen = "{gossip}"

[admin]
listen = "{admin}"

[secrets]
cluster_file = "cluster.secret"
key_file = "key.secret"

[log]
format = "text"

# The upstream is a small server inside "sluice dev" that answers with what it got.
[[routes]]
name = "triggers"
path = "/api/v1/triggers"
upstream = "http://{echo}"
rules = [
  { methods = ["GET"], scopes = ["triggers:read"], anonymous = true },
  { methods = ["*"], scopes = ["triggers:write"] },
]

[[routes]]
name = "events"
path = "/api/v1/events"
upstream = "http://{echo}"
rules = [
  { methods = ["GET"], scopes = ["events:read"], anonymous = true },
  { methods = ["*"], scopes = ["events:write"] },
]
`

// reopen looks how many nodes the directory has.
func (c *devCluster) reopen(nodes int) error {
	made := 0
	for {
		if _, err := os.Stat(nodeFile(c.dir, made+1)); errors.Is(err, os.ErrNotExist) {
			break
		} else if err != nil {
			return fmt.Errorf("look for nodes: %w", err)
		}
		made++
	}
	if nodes != 0 && nodes != made {
		return usagef("%s was made with --nodes %d, not %d", c.dir, made, nodes)
	}
	for i := range made {
		c.nodes = append(c.nodes, devNode{config: nodeFile(c.dir, i+1)})
	}
	data, err := os.ReadFile(filepath.Join(c.dir, "dev.toml"))
	if err != nil {
		return fmt.Errorf("read what the directory was made with: %w", err)
	}
	var dev devFile
	if err := toml.Unmarshal(data, &dev); err != nil {
		return usagef("%s: %v", filepath.Join(c.dir, "dev.toml"), err)
	}
	c.echo = dev.Echo
	return nil
}

// move takes the nodes to other public ports, in memory alone, and gives the addresses that their files have.
func (c *devCluster) move(port int) (before []string, err error) {
	if port+len(c.nodes)-1 > 65535 {
		return nil, usagef("--port: node %d would be on port %d", len(c.nodes), port+len(c.nodes)-1)
	}
	for i := range c.nodes {
		http := &c.nodes[i].cfg.HTTP
		before = append(before, http.Listen)
		http.Listen = net.JoinHostPort("127.0.0.1", strconv.Itoa(port+i))
	}
	return before, nil
}

// writeMove makes a move lasting. A file that cannot be written leaves all of them as they were.
func (c *devCluster) writeMove(before []string) error {
	for i, n := range c.nodes {
		err := node.SetListen(n.config, n.cfg.HTTP.Listen)
		if err == nil {
			continue
		}
		for j := range i {
			err = errors.Join(err, node.SetListen(c.nodes[j].config, before[j]))
		}
		return err
	}
	return nil
}

// load reads the nodes' files as the nodes will.
func (c *devCluster) load(variables []string) error {
	if c.nodes == nil {
		for i := 1; len(c.made) > 0; i++ {
			if _, err := os.Stat(nodeFile(c.dir, i)); err != nil {
				break
			}
			c.nodes = append(c.nodes, devNode{config: nodeFile(c.dir, i)})
		}
	}
	for i := range c.nodes {
		n := &c.nodes[i]
		n.name = fmt.Sprintf("node%d", i+1)
		cfg, err := node.LoadConfig(n.config, variables)
		if err != nil {
			return err
		}
		n.cfg = cfg
	}
	return nil
}

// checkAddresses tells a port that is taken before anything is started.
func (c *devCluster) checkAddresses() error {
	for _, n := range c.nodes {
		for _, l := range []struct {
			address, what string
			udp           bool
		}{
			{n.cfg.HTTP.Listen, "clients", false}, {n.cfg.Peer.Listen, "peers", false}, {n.cfg.Gossip.Listen, "gossip", true}, {n.cfg.Admin.Listen, "admin", false},
		} {
			if l.address == "" || strings.HasPrefix(l.address, "unix:") { // the node takes its socket by itself
				continue
			}
			if err := free(l.address, l.udp, n.name+"'s "+l.what); err != nil {
				return err
			}
		}
	}
	// A predecessor whose nodes have all died holds this one for a moment longer.
	for deadline := time.Now().Add(abandonedAfter + 2*time.Second); ; {
		err := free(c.echo, false, "the echo upstream")
		if err == nil || len(c.made) > 0 || time.Now().After(deadline) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func free(address string, udp bool, what string) error {
	err := listenable(address, udp)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%s is in use by another process, and %s would be there: stop that one, or choose another --port", address, what)
	}
	if err != nil {
		return fmt.Errorf("%s for %s: %w", address, what, err)
	}
	return nil
}

// freePorts finds ports for what clients do not use. They lie below the range that the system takes for outgoing
// connections, so that they are still free at the next start, and in a place that depends on the clusters' public ports,
// so that two clusters that start at the same time do not choose alike.
func freePorts(n, public, publicCount int) ([]int, error) {
	const low, wanted = 10000, 32
	high := 32768
	if data, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if first, _, ok := strings.Cut(strings.TrimSpace(string(data)), "\t"); ok {
			if p, err := strconv.Atoi(first); err == nil && p > low+1000 {
				high = min(p, 65000)
			}
		}
	}
	span := high - low
	var ports []int
	for i := 0; i < span && len(ports) < n; i++ {
		port := low + (public*wanted+i)%span
		if port >= public && port < public+publicCount {
			continue
		}
		if listenable(net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), true) == nil {
			ports = append(ports, port)
		}
	}
	if len(ports) < n {
		return nil, fmt.Errorf("no %d free ports between %d and %d", n, low, high)
	}
	return ports, nil
}
