package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"sluice/bench"
)

// row is one promise: a kind of load, what is measured, and what it is compared with, in turn.
type row struct {
	Name string `json:"name"`
	// Least is the least ratio of answers a second, 0 where there is none; P99 the greatest of the p99.
	Least float64 `json:"least,omitempty"`
	P99   float64 `json:"p99,omitempty"`
	// Reference and Subject are what the ratio is of.
	Reference bench.Peer `json:"reference"`
	Subject   bench.Peer `json:"subject"`
	// AddressBytes is by how much the subject's resident memory grew for each address that it saw.
	AddressBytes float64 `json:"address_bytes,omitempty"`
	LeftOut      string  `json:"left_out,omitempty"`

	scenario           string
	limit, window      int64
	addresses          int
	reference, subject func(ctx context.Context, p *plan, dir string) (*server, error)
}

// rows are all of them. A flood is spread over -addresses.
func (p *plan) rows() []row {
	cluster := func(nodes int, variables ...string) func(context.Context, *plan, string) (*server, error) {
		return func(ctx context.Context, p *plan, dir string) (*server, error) {
			return startCluster(ctx, p, dir, nodes, variables...)
		}
	}
	one := cluster(1)
	unseen := func(algorithm string) func(context.Context, *plan, string) (*server, error) {
		return cluster(1, "SLUICE_AUTH__CREDENTIAL_CACHE=false", "SLUICE_AUTH__SIGNING_ALGORITHM="+algorithm)
	}
	return []row{
		{Name: "verify, JWT", Least: 0.70, P99: 1.3, scenario: "verify-jwt", reference: startFloor, subject: one},
		{Name: "verify, key", Least: 0.70, P99: 1.3, scenario: "verify-key", reference: startFloor, subject: one},
		{Name: "verify, anonymous, 1000 addresses", scenario: "verify-anonymous", reference: startFloor, subject: one},
		{Name: "verify, HS256 never seen", Least: 0.5, scenario: "verify-jwt", reference: startFloor, subject: unseen("HS256")},
		{Name: "verify, EdDSA never seen", scenario: "verify-jwt", reference: startFloor, subject: unseen("EdDSA")},
		{Name: "verify, ES256 never seen", scenario: "verify-jwt", reference: startFloor, subject: unseen("ES256")},
		{Name: "limits check, 1 node", Least: 0.7, scenario: "limits-check", reference: startFloor, subject: one},
		{Name: "limits check, 3 nodes", Least: 0.5, scenario: "limits-check", reference: startFloor, subject: cluster(3)},
		{Name: "limits check, 1 node to Redis", Least: 3, P99: 2.0 / 3, scenario: "limits-check", reference: startRedis, subject: one},
		{Name: "refusals", Least: 0.75, scenario: "verify-key", limit: 1, window: 3600, reference: startFloor, subject: one},
		{Name: "anonymous flood", Least: 0.6, scenario: "verify-anonymous", addresses: p.addresses, reference: startFloor, subject: one},
		{Name: "nginx auth_request", Least: 0.85, scenario: "verify-key", reference: behindNginx(startFloor), subject: behindNginx(one)},
	}
}

// table measures all rows, one after the other, each in rounds of its reference and its subject, and prints their ratios. What is measured before
// an error is printed as well.
func (p *plan) table(ctx context.Context, stdout io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "sluice-peers-")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	defer os.RemoveAll(dir)
	if p.sluice, err = sluiceProgram(ctx, p, dir); err != nil {
		return err
	}
	var done []row
	for i, r := range p.rows() {
		if p.only != "" && !strings.Contains(r.Name, p.only) {
			continue
		}
		home := filepath.Join(dir, strconv.Itoa(i))
		var missing *missingError
		if err = p.measureRow(ctx, &r, home); errors.As(err, &missing) {
			r.LeftOut, err = missing.Error(), nil
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", r.Name, err)
			break
		}
		done = append(done, r)
	}
	if len(done) == 0 && err == nil {
		return &usageError{"-only: no row has " + strconv.Quote(p.only) + " in its name"}
	}
	provenance := bench.NewProvenance(p.command, "", commitOf(ctx))
	errs := []error{err, p.printRows(stdout, provenance, done)}
	if p.output != "" {
		data, err := json.MarshalIndent(struct {
			Kind       string           `json:"kind"`
			Provenance bench.Provenance `json:"provenance"`
			Rows       []row            `json:"rows"`
		}{"table", provenance, done}, "", "  ")
		errs = append(errs, err, os.WriteFile(p.output, data, 0o644))
	}
	return errors.Join(errs...)
}

// measureRow fills a row in.
func (p *plan) measureRow(ctx context.Context, r *row, home string) error {
	q := *p
	q.scenario = r.scenario
	if r.limit > 0 {
		q.limit, q.window = r.limit, r.window
	}
	var servers [2]*server
	peers := [2]*bench.Peer{&r.Reference, &r.Subject}
	peers[0].Name, peers[1].Name = "reference", "subject"
	for i, start := range []func(context.Context, *plan, string) (*server, error){r.reference, r.subject} {
		at := filepath.Join(home, peers[i].Name)
		if err := os.MkdirAll(at, 0o755); err != nil {
			return fmt.Errorf("make a directory: %w", err)
		}
		s, err := start(ctx, &q, at)
		if err != nil {
			return fmt.Errorf("start the %s: %w", peers[i].Name, err)
		}
		defer s.stopAll()
		servers[i], peers[i].Version = s, s.version
		if len(s.keys) > 0 && r.scenario == "verify-jwt" {
			s.token = strings.Repeat("e30", 140) // as long as a real one
		}
		if len(s.keys) == 0 && r.scenario != "verify-jwt" && r.addresses == 0 {
			if s.keys, err = makeKeys(ctx, s.api(), &q); err != nil {
				return fmt.Errorf("prepare the %s: %w", peers[i].Name, err)
			}
		}
	}
	if r.addresses > 0 {
		// What a server keeps once it is busy is not for addresses.
		q.flood = 1000
		if _, _, err := q.measure(ctx, servers[1]); err != nil {
			return fmt.Errorf("warm the subject up: %w", err)
		}
	}
	q.flood = r.addresses
	before, asked := servers[1].usage().resident, int64(0)
	for round := range p.rounds {
		for i := range servers {
			at := (i + round) % len(servers)
			fmt.Fprintf(p.stderr, "peers: %s: round %d of %d: %s\n", r.Name, round+1, p.rounds, peers[at].Name)
			measured, _, err := q.measure(ctx, servers[at])
			if err != nil {
				return fmt.Errorf("measure the %s: %w", peers[at].Name, err)
			}
			if measured.Failed > 0 {
				return fmt.Errorf("measure the %s: %d requests failed", peers[at].Name, measured.Failed)
			}
			peers[at].Rounds = append(peers[at].Rounds, measured)
			if at == 1 {
				asked += measured.Admitted + measured.Refused
			}
		}
	}
	if r.addresses > 0 {
		// Drawn evenly, so many requests hit so many different ones. Each round has addresses of its own.
		all, each := float64(r.addresses), float64(asked)/float64(p.rounds)
		if seen := all * (1 - math.Exp(-each/all)) * float64(p.rounds); seen > 0 {
			r.AddressBytes = float64(servers[1].usage().resident-before) / seen
		}
	}
	return nil
}

// api is where a server makes keys.
func (s *server) api() string {
	if s.behind != nil {
		return s.behind.api()
	}
	return s.targets[0]
}

// stopAll ends a server and what is behind it.
func (s *server) stopAll() {
	s.stop()
	if s.behind != nil {
		s.behind.stopAll()
	}
}

// makeKeys makes API keys of a new account, through the API alone. They end with the cluster.
func makeKeys(ctx context.Context, base string, p *plan) ([]string, error) {
	post := func(path, token string, body, answer any) error {
		data, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("encode a request: %w", err)
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+path, bytes.NewReader(data))
		if err != nil {
			return fmt.Errorf("ask %s: %w", path, err)
		}
		req.Header.Set("Content-Type", "application/json")
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
		if err != nil {
			return fmt.Errorf("ask %s: %w", path, err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusCreated {
			return fmt.Errorf("%s answers %s", path, resp.Status)
		}
		return json.NewDecoder(resp.Body).Decode(answer)
	}
	var account struct {
		Token        string
		Organization struct{ ID string }
	}
	name := "peers" + strings.ToLower(rand.Text()[:12])
	if err := post("/api/v1/auth/register", "", map[string]string{"username": name, "email": name + "@bench.example", "password": rand.Text()}, &account); err != nil {
		return nil, err
	}
	limit, window := p.limit, p.window
	if p.scenario == "limits-check" {
		limit, window = bench.MaxLimit, 1 // the checks' own limit is asked about
	}
	keys := make([]string, p.keys)
	for i := range keys {
		var made struct{ Key string }
		if err := post("/api/v1/api-keys", account.Token, map[string]any{
			"name": "peers", "organization_id": account.Organization.ID, "scopes": []string{"events:read", "limits:check"}, "environment": "test",
			"rate_limit": map[string]int64{"limit": limit, "window_seconds": window},
		}, &made); err != nil {
			return nil, err
		}
		keys[i] = made.Key
	}
	return keys, nil
}

// nginxAuthConf lets every request ask another server first, over connections that are kept.
const nginxAuthConf = `daemon off;
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
  upstream check {
    server {backend};
    keepalive 64;
    keepalive_requests 10000;
  }
  server {
    listen 127.0.0.1:{port} reuseport;
    root {home}/www;
    location / { auth_request /check; }
    location = /check {
      internal;
      proxy_pass http://check/api/v1/auth/verify;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Content-Length "";
      proxy_pass_request_body off;
    }
  }
}
`

// behindNginx is nginx that asks what start starts about every request.
func behindNginx(start func(context.Context, *plan, string) (*server, error)) func(context.Context, *plan, string) (*server, error) {
	return func(ctx context.Context, p *plan, dir string) (*server, error) {
		if _, err := find("nginx", "nginx"); err != nil {
			return nil, err
		}
		behind, err := start(ctx, p, dir)
		if err != nil {
			return nil, err
		}
		conf := strings.ReplaceAll(nginxAuthConf, "{backend}", strings.TrimPrefix(behind.targets[0], "http://"))
		s, err := startConfigured(ctx, p, dir, nginxName, conf, "-c", "{file}", "-p", "{home}", "-e", "stderr")
		if err != nil {
			behind.stopAll()
			return nil, err
		}
		s.behind, s.keys = behind, behind.keys
		return s, nil
	}
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}

// printRows prints the ratios of all rows.
func (p *plan) printRows(w io.Writer, provenance bench.Provenance, rows []row) error {
	fmt.Fprintf(w, "%s\n%s, %s, %d cores, commit %s\n\n", strings.Join(provenance.Command, " "), provenance.Go, provenance.CPU, provenance.CPUs, provenance.Commit)
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "row\treference/s\tsubject/s\tratio (least-greatest)\twanted\tp99 ratio\twanted\tby CPU time\tserver CPU us\treference CPU us\t")
	for i := range rows {
		r := &rows[i]
		if r.LeftOut != "" {
			fmt.Fprintf(out, "%s\tleft out: %s\t\t\t\t\t\t\t\t\t\n", r.Name, r.LeftOut)
			continue
		}
		of := func(peer *bench.Peer, figure func(*bench.PeerRound) float64) float64 {
			var values []float64
			for j := range peer.Rounds {
				values = append(values, figure(&peer.Rounds[j]))
			}
			return median(values)
		}
		rate := func(m *bench.PeerRound) float64 { return m.Throughput }
		p99 := func(m *bench.PeerRound) float64 { return m.P99Micros }
		ratios := bench.Ratios(&r.Subject, &r.Reference, rate)
		// What two cores that are busy with nothing else would give: all that one request costs, client and server.
		cost := func(m *bench.PeerRound) float64 { return m.ServerMicros + m.ClientMicros }
		server := func(m *bench.PeerRound) float64 { return m.ServerMicros }
		fmt.Fprintf(out, "%s\t%.0f\t%.0f\t%.2f (%.2f-%.2f)\t%s\t%.2f\t%s\t%.2f\t%.1f\t%.1f\t\n", r.Name, of(&r.Reference, rate), of(&r.Subject, rate),
			median(ratios), slices.Min(ratios), slices.Max(ratios), bound(">=", r.Least), median(bench.Ratios(&r.Subject, &r.Reference, p99)), bound("<=", r.P99),
			median(bench.Ratios(&r.Reference, &r.Subject, cost)), of(&r.Subject, server), of(&r.Reference, server))
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("print the table: %w", err)
	}
	for i := range rows {
		if r := &rows[i]; r.AddressBytes != 0 {
			fmt.Fprintf(w, "%s: %.0f bytes of resident memory for each address (wanted <= 150)\n", r.Name, r.AddressBytes)
		}
	}
	_, err := fmt.Fprintf(w, "\nMedians of %d rounds of %v. By CPU time: what a request costs client and reference, over what it costs client and subject.\n", p.rounds, p.duration)
	return err
}

func bound(sign string, v float64) string {
	if v == 0 {
		return "-"
	}
	return sign + strconv.FormatFloat(v, 'f', 2, 64)
}
