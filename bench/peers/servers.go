package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"sluice/bench"
)

// Names of the peers.
const (
	floorName      = "floor"
	sluiceName     = "sluice"
	redisName      = "redis"
	nginxName      = "nginx"
	haproxyName    = "haproxy"
	gubernatorName = "gubernator"
)

// createKey is the scenario of writes.
const createKey = "create-key"

// peer is a kind of server.
type peer struct {
	name, describe string
	start          func(ctx context.Context, p *plan, dir string) (*server, error)
	writes         bool // takes writes
	checks         bool // answers checks
}

func allPeers() []peer {
	return []peer{
		{floorName, "fasthttp with an admitted request's headers, without any work", startFloor, false, true},
		{raftName, "hashicorp/raft over TLS on the same log store, callers in the leader's process, no state", startRaft, true, false},
		{sluiceName, "this project", startSluice, true, true},
		{redisName, "central Redis, go-redis/redis_rate behind fasthttp", startRedis, false, true},
		{nginxName, "limit_req, in the memory of one machine", startNginx, false, true},
		{haproxyName, "stick-table, in the memory of one machine", startHAProxy, false, true},
		{gubernatorName, "by URL", startGubernator, false, true},
	}
}

// does reports whether a peer can be measured at a scenario.
func (p *peer) does(scenario string) bool {
	if scenario == createKey {
		return p.writes
	}
	return p.checks
}

func peerNames() []string {
	var names []string
	for _, p := range allPeers() {
		names = append(names, p.name)
	}
	return names
}

// missingError is a peer that cannot be measured here.
type missingError struct{ message string }

func (e *missingError) Error() string { return e.message }

// server is a peer that runs.
type server struct {
	targets   []string
	version   string
	keys      []string // API keys to send; none: keys are made by its API
	token     string   // access token to send; "": those of new accounts
	check     *bench.CheckRequest
	processes []*process
	behind    *server // what it asks; nil for none
	// load, where not nil, sends one round in place of the client over HTTP.
	load func(ctx context.Context) (bench.PeerRound, error)
}

// stop ends its processes, the last one first.
func (s *server) stop() {
	for i := len(s.processes) - 1; i >= 0; i-- {
		s.processes[i].stop()
	}
}

// process is a program that was started here.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{}
	ready  chan string // the line that begins with "ready "
	mu     sync.Mutex
	output bytes.Buffer // guarded by mu
}

// Bounds of waiting.
const (
	readyWithin = 60 * time.Second
	stopWithin  = 20 * time.Second
)

func startProcess(program string, variables []string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(program, args...), exited: make(chan struct{}), ready: make(chan string, 1)}
	p.cmd.Env = append(os.Environ(), variables...)
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	p.cmd.Stdout, p.cmd.Stderr = writer, writer
	err = p.cmd.Start()
	writer.Close()
	if err != nil {
		reader.Close()
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer reader.Close()
		for lines := bufio.NewScanner(reader); lines.Scan(); {
			p.mu.Lock()
			if p.output.Len() < 1<<20 {
				p.output.WriteString(lines.Text() + "\n")
			}
			p.mu.Unlock()
			if rest, found := strings.CutPrefix(lines.Text(), "ready "); found {
				select {
				case p.ready <- rest:
				default:
				}
			}
		}
	}()
	go func() {
		_ = p.cmd.Wait() // its output tells more
		<-read
		close(p.exited)
	}()
	return p, nil
}

func (p *process) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(stopWithin):
		p.cmd.Process.Kill()
		<-p.exited
	}
}

func (p *process) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.TrimSpace(p.output.String())
}

// awaitLine waits for the line that says where it serves.
func (p *process) awaitLine(ctx context.Context) ([]string, error) {
	select {
	case line := <-p.ready:
		return strings.Fields(line), nil
	case <-p.exited:
		return nil, fmt.Errorf("it ended: %s", p.said())
	case <-time.After(readyWithin):
		return nil, fmt.Errorf("it was not ready within %v: %s", readyWithin, p.said())
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// awaitPort waits until something answers there.
func (p *process) awaitPort(ctx context.Context, address string) error {
	deadline := time.Now().Add(readyWithin)
	for {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			conn.Close()
			return nil
		}
		select {
		case <-p.exited:
			return fmt.Errorf("it ended: %s", p.said())
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not answer within %v: %w", address, readyWithin, err)
		}
	}
}

// freePort is free at the moment, and below the range of outgoing connections.
func freePort(count int) (int, error) {
	for range 200 {
		port := 11000 + rand.IntN(20000)
		free := true
		for i := range count {
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
	return 0, errors.New("found no free port")
}

// find looks for a program, also where Debian keeps those of administrators.
func find(name, packageName string) (string, error) {
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/usr/local/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path, nil
		}
	}
	return "", &missingError{fmt.Sprintf("%s is not installed: apt-get install %s", name, packageName)}
}

// moduleVersion is that of a module which this program is made of, "" where it does not know.
func moduleVersion(path string) string {
	info, _ := debug.ReadBuildInfo()
	if info == nil {
		return ""
	}
	for _, module := range info.Deps {
		if module.Path == path {
			return module.Version
		}
	}
	return ""
}

// versionOf is the first line that a program says of itself.
func versionOf(ctx context.Context, program, argument string) string {
	out, err := exec.CommandContext(ctx, program, argument).CombinedOutput()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}

// madeUp are keys for servers that know none: of the form and length of Sluice's.
func madeUp(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("sk_test_%038d", i)
	}
	return keys
}

// sluiceProgram is the one that was given, or is built from the sources next to this module.
func sluiceProgram(ctx context.Context, p *plan, dir string) (string, error) {
	if p.sluice != "" {
		return p.sluice, nil
	}
	path := filepath.Join(dir, "sluice")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	// In its own module: this one knows nothing of what the program is made of.
	sources, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "sluice").Output()
	if err != nil {
		return "", fmt.Errorf("find the sources of sluice (run this in bench/peers, or give -sluice): %w", err)
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", path, "./cmd/sluice")
	build.Dir = strings.TrimSpace(string(sources))
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build sluice: %w: %s", err, out)
	}
	return path, nil
}

func startFloor(ctx context.Context, p *plan, dir string) (*server, error) {
	program, err := sluiceProgram(ctx, p, dir)
	if err != nil {
		return nil, err
	}
	return startReady(ctx, &server{keys: madeUp(p.keys)}, program, nil, "bench", "floor", "--listen", "127.0.0.1:0")
}

// startReady starts a program that prints where it serves. On an error all that s has is ended.
func startReady(ctx context.Context, s *server, program string, variables []string, args ...string) (*server, error) {
	started, err := startProcess(program, variables, args...)
	if err != nil {
		s.stop()
		return nil, err
	}
	s.processes = append(s.processes, started)
	if s.targets, err = started.awaitLine(ctx); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// startSluice starts a cluster whose limits for accounts are out of the way: it is the keys' that are measured.
func startSluice(ctx context.Context, p *plan, dir string) (*server, error) {
	return startCluster(ctx, p, dir, p.nodes)
}

// startCluster is startSluice for a number of nodes, with further settings as NAME=VALUE.
func startCluster(ctx context.Context, p *plan, dir string, nodes int, variables ...string) (*server, error) {
	program, err := sluiceProgram(ctx, p, dir)
	if err != nil {
		return nil, err
	}
	port, err := freePort(nodes)
	if err != nil {
		return nil, err
	}
	return startReady(ctx, &server{version: versionOf(ctx, program, "version")}, program,
		append([]string{"SLUICE_LIMITS__ANONYMOUS__LIMIT=1000000000", "SLUICE_LIMITS__USER__LIMIT=1000000000"}, variables...),
		"dev", "--nodes", strconv.Itoa(nodes), "--port", strconv.Itoa(port), "--dir", filepath.Join(dir, "dev"))
}

func startRedis(ctx context.Context, p *plan, dir string) (*server, error) {
	program, err := find("redis-server", "redis-server")
	if err != nil {
		return nil, err
	}
	port, err := freePort(1)
	if err != nil {
		return nil, err
	}
	// Without persistence: what it loses at a restart it may lose, and it is faster so.
	redis, err := startProcess(program, nil, "--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", dir)
	if err != nil {
		return nil, err
	}
	s := &server{version: versionOf(ctx, program, "--version"), keys: madeUp(p.keys), processes: []*process{redis}}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	if err := redis.awaitPort(ctx, address); err != nil {
		s.stop()
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		s.stop()
		return nil, fmt.Errorf("find this program: %w", err)
	}
	return startReady(ctx, s, self, []string{frontVariable + "=1"}, redisFrontCommand, "-redis", address,
		"-limit", strconv.FormatInt(p.limit, 10), "-window", strconv.FormatInt(p.window, 10))
}

// frontVariable lets a test binary know that it is to be the front.
const frontVariable = "SLUICE_PEERS_FRONT"

// startConfigured starts a program with a configuration file that serves at {port}.
func startConfigured(ctx context.Context, p *plan, dir, name, text string, args ...string) (*server, error) {
	program, err := find(name, name)
	if err != nil {
		return nil, err
	}
	port, err := freePort(1)
	if err != nil {
		return nil, err
	}
	home := filepath.Join(dir, name)
	for _, path := range []string{"www/api/v1/auth/verify", "www/api/v1/limits/check"} {
		path = filepath.Join(home, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o644)); err != nil {
			return nil, fmt.Errorf("make its files: %w", err)
		}
	}
	user := "" // who may be nobody in a directory that is the starter's alone
	if os.Getuid() == 0 {
		user = "user root;"
	}
	text = strings.NewReplacer("{user}", user, "{port}", strconv.Itoa(port), "{home}", home, "{cores}", strconv.Itoa(runtime.NumCPU()),
		"{limit}", strconv.FormatInt(p.limit, 10), "{window}", strconv.FormatInt(p.window, 10), "{unit}", map[int64]string{1: "s", 60: "m"}[p.window]).Replace(text)
	file := filepath.Join(home, "peer.conf")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return nil, fmt.Errorf("write its configuration: %w", err)
	}
	for i := range args {
		args[i] = strings.NewReplacer("{file}", file, "{home}", home).Replace(args[i])
	}
	started, err := startProcess(program, nil, args...)
	if err != nil {
		return nil, err
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	s := &server{version: versionOf(ctx, program, "-v"), keys: madeUp(p.keys), processes: []*process{started}, targets: []string{"http://" + address}}
	if err := started.awaitPort(ctx, address); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// nginxConf serves an empty file, since "return" would come before the limit. A POST to a file is a 405, which becomes an
// answer behind the limit.
const nginxConf = `daemon off;
{user}
worker_processes {cores};
pid {home}/nginx.pid;
error_log stderr crit;
events { worker_connections 4096; }
http {
  access_log off;
  client_body_temp_path {home}/body;
  proxy_temp_path {home}/proxy;
  fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi;
  scgi_temp_path {home}/scgi;
  keepalive_requests 10000000;
  open_file_cache max=10;
  limit_req_zone $http_x_api_key zone=keys:64m rate={limit}r/{unit};
  limit_req_status 429;
  server {
    listen 127.0.0.1:{port} reuseport;
    root {home}/www;
    location / {
      limit_req zone=keys burst={limit} nodelay;
      error_page 405 =200 @check;
    }
    location @check {
      default_type application/json;
      return 200 '{"allowed":true}';
    }
  }
}
`

func startNginx(ctx context.Context, p *plan, dir string) (*server, error) {
	return startConfigured(ctx, p, dir, nginxName, nginxConf, "-c", "{file}", "-p", "{home}", "-e", "stderr")
}

const haproxyConf = `global
  nbthread {cores}
  maxconn 8192
defaults
  mode http
  timeout client 30s
  timeout server 30s
  timeout connect 5s
frontend keys
  bind 127.0.0.1:{port}
  stick-table type string len 64 size 1m expire 120s store http_req_rate({window}s)
  http-request track-sc0 req.hdr(x-api-key)
  http-request return status 429 if { sc_http_req_rate(0) gt {limit} }
  http-request return status 200 content-type application/json string "{\"allowed\":true}"
`

func startHAProxy(ctx context.Context, p *plan, dir string) (*server, error) {
	return startConfigured(ctx, p, dir, haproxyName, haproxyConf, "-f", "{file}", "-db", "-q")
}

func startGubernator(ctx context.Context, p *plan, _ string) (*server, error) {
	if p.gubernator == "" {
		return nil, &missingError{"no -gubernator URL was given"}
	}
	if p.scenario != "limits-check" {
		return nil, &missingError{"it answers limits-check alone"}
	}
	base := strings.TrimRight(p.gubernator, "/")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/v1/HealthCheck", nil)
	if err != nil {
		return nil, fmt.Errorf("-gubernator: %w", err)
	}
	client := &http.Client{Timeout: 5 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("reach it: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("its health check answers %s", resp.Status)
	}
	return &server{targets: []string{base}, keys: madeUp(p.keys), check: &bench.CheckRequest{
		Path: "/v1/GetRateLimits", Head: `{"requests":[{"name":"peers","uniqueKey":"`,
		Tail:    fmt.Sprintf(`","hits":1,"limit":%d,"duration":%d}]}`, p.limit, p.window*1000),
		Refused: `"OVER_LIMIT"`,
	}}, nil
}
