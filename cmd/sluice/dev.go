package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sluice/node"
)

const (
	defaultDevNodes = 3
	defaultDevPort  = 8080
	maxDevNodes     = 9
)

// devCommand keeps nil for what was not given, since a directory that is started again knows its own values.
type devCommand struct {
	Nodes *int   `placeholder:"3" help:"How many nodes (1 to 9). A DIR that is started again has its own number."`
	Port  *int   `placeholder:"8080" help:"Node i serves clients on 127.0.0.1, this port plus i-1. A DIR that is started again has its own."`
	Dir   string `placeholder:"DIR" help:"Where configuration, data, logs and pid files are kept; a temporary one that is removed at the end, unless given."`
}

// perNode are settings that no environment variable can give to several nodes at once.
var perNode = []string{"name", "data_dir", "initial_members", "initial_count", "join", "membership.voter", "http.listen", "peer.listen", "peer.advertise", "peer.tls_cert", "peer.tls_key", "gossip.listen", "gossip.advertise", "admin.listen", "grpc.listen", "gubernator.listen"}

// plainOnly are settings with which nobody could ask the nodes as dev and its users do, over plain HTTP.
var plainOnly = []string{"http.proxy_protocol", "http.tls_cert", "http.tls_key"}

// Run starts the cluster and ends with it.
func (c *devCommand) Run(ctx context.Context, env environment) error {
	ctx, again, release := untilSignal(ctx)
	defer release()
	if err := c.check(env); err != nil {
		return err
	}
	dir, temporary, err := c.directory()
	if err != nil {
		return err
	}
	if temporary {
		defer os.RemoveAll(dir)
	}
	cluster, err := openDevCluster(dir, given(c.Nodes), given(c.Port), env.variables)
	if err != nil {
		return err
	}
	echo, err := startEcho(cluster.echo)
	if err != nil {
		cluster.discard()
		return err
	}
	defer echo.Close()
	say := func(format string, args ...any) { fmt.Fprintf(env.stderr, "sluice dev: "+format+"\n", args...) }
	kept := "kept there"
	if temporary {
		kept = "removed at the end"
	}
	say("%d nodes in %s (%s), a log each", len(cluster.nodes), dir, kept)

	family, err := startFamily(cluster, env)
	if err != nil {
		return err
	}
	runErr := c.attend(ctx, cluster, family, env, say)
	if err := family.stop(stopPatience, again, say); err != nil {
		return errors.Join(runErr, err)
	}
	return runErr
}

// stopPatience is longer than a node's own drain.
const stopPatience = 20 * time.Second

// attend waits for the cluster to be ready and then for its end.
func (c *devCommand) attend(ctx context.Context, cluster *devCluster, family *family, env environment, say func(string, ...any)) error {
	ready := make(chan struct{})
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		if cluster.waitReady(waiting, say) {
			close(ready)
		}
	}()
	isReady := false
	left := len(cluster.nodes)
	var abandoned <-chan struct{} // closed when nothing of the cluster is left
	for {
		select {
		case <-abandoned:
			return errors.New("all nodes have ended")
		case <-ctx.Done():
			return nil
		case <-ready:
			ready, isReady = nil, true
			fmt.Fprintf(env.stdout, "ready %s\n", strings.Join(cluster.urls(), " "))
			fmt.Fprint(env.stderr, greeting(cluster.urls()))
		case e := <-family.ended:
			left--
			if !isReady && ctx.Err() == nil {
				return fmt.Errorf("%s ended before the cluster was ready: %v\n%s", e.name, e.state, e.lastLines())
			}
			say("%s (pid %d) ended: %v. It is not restarted; the others go on. To start it again: sluice node --config %s\n%s",
				e.name, e.pid, e.state, e.config, e.lastLines())
			if left == 0 {
				abandoned = cluster.abandoned(waiting)
			}
		}
	}
}

// abandonedAfter is how long dev goes on without a node: one that was started by hand still needs its echo upstream.
const abandonedAfter = 3 * time.Second

// abandoned returns a channel that is closed once no node has listened for clients for a while.
func (c *devCluster) abandoned(ctx context.Context) <-chan struct{} {
	closed := make(chan struct{})
	go func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for seen := time.Now(); time.Since(seen) < abandonedAfter; {
			for _, n := range c.nodes {
				if conn, err := net.DialTimeout("tcp", n.cfg.HTTP.Listen, time.Second); err == nil {
					conn.Close()
					seen = time.Now()
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
		close(closed)
	}()
	return closed
}

// given is 0 for what was not.
func given(n *int) int {
	if n == nil {
		return 0
	}
	return *n
}

func (c *devCommand) check(env environment) error {
	switch {
	case c.Nodes != nil && (*c.Nodes < 1 || *c.Nodes > maxDevNodes):
		return usagef("--nodes: want 1 to %d, not %d", maxDevNodes, *c.Nodes)
	case c.Port != nil && (*c.Port < 1 || *c.Port > 65535):
		return usagef("--port: want 1 to 65535, not %d", *c.Port)
	}
	for _, key := range perNode {
		name := node.EnvironmentName(key)
		if slices.ContainsFunc(env.variables, func(v string) bool { return strings.HasPrefix(v, name+"=") }) {
			return usagef("%s is set, and would be the same for every node: unset it", name)
		}
	}
	for _, key := range plainOnly {
		name := node.EnvironmentName(key)
		if slices.ContainsFunc(env.variables, func(v string) bool { return strings.HasPrefix(v, name+"=") }) {
			return usagef("%s is set, and the development cluster is asked over plain HTTP: unset it", name)
		}
	}
	return nil
}

func (c *devCommand) directory() (dir string, temporary bool, err error) {
	if c.Dir == "" {
		dir, err = os.MkdirTemp("", "sluice-dev-")
		if err != nil {
			return "", false, fmt.Errorf("make a directory: %w", err)
		}
		return dir, true, nil
	}
	dir, err = filepath.Abs(c.Dir)
	if err != nil {
		return "", false, fmt.Errorf("find %s: %w", c.Dir, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", false, fmt.Errorf("make the directory: %w", err)
	}
	return dir, false, nil
}

// waitReady returns true once every node is fit for traffic: it knows a leader and has, within the last lease, applied
// an entry that a majority committed, so that a write can be taken. It asks nothing that a limit counts.
func (c *devCluster) waitReady(ctx context.Context, say func(string, ...any)) bool {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	impatient := time.NewTicker(15 * time.Second)
	defer impatient.Stop()
	for {
		var missing []string
		for i, url := range c.urls() {
			if problem := notReady(ctx, client, url); problem != "" {
				missing = append(missing, fmt.Sprintf("node%d: %s", i+1, problem))
			}
		}
		if len(missing) == 0 {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-impatient.C:
			say("not ready yet: %s", strings.Join(missing, "; "))
		case <-tick.C:
		}
	}
}

func notReady(ctx context.Context, client *http.Client, url string) string {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/readyz", nil)
	if err != nil {
		return err.Error()
	}
	response, err := client.Do(request)
	if err != nil {
		return "does not answer"
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusOK {
		return ""
	}
	body, _ := io.ReadAll(io.LimitReader(response.Body, 512)) // a reason to show, or none
	return strings.Join(strings.Fields(string(body)), " ")
}

func greeting(urls []string) string {
	last := urls[len(urls)-1]
	return fmt.Sprintf(`
Try it, each request on another node if you like:

  curl -s %[1]s/api/v1/auth/register -H 'Content-Type: application/json' \
    -d '{"username":"ada","email":"ada@example.com","password":"seven lamps by the tide"}'
  TOKEN=... ORG=...   # "token" and "organization"."id" of the answer
  curl -s %[2]s/api/v1/api-keys -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' \
    -d '{"name":"first","organization_id":"'$ORG'","scopes":["triggers:read"]}'
  KEY=...             # "key" of the answer
  curl -si %[1]s/api/v1/triggers -H "X-API-Key: $KEY"

Ctrl-C stops the cluster.
`, urls[0], last)
}

// listenable says why an address cannot be listened on, nil where it can.
func listenable(address string, udp bool) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if err := l.Close(); err != nil {
		return fmt.Errorf("close listener: %w", err)
	}
	if !udp {
		return nil
	}
	p, err := net.ListenPacket("udp", address)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if err := p.Close(); err != nil {
		return fmt.Errorf("close listener: %w", err)
	}
	return nil
}
