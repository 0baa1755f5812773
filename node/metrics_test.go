package node_test

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sluice/node"
	"sluice/node/nodetest"
)

func adminText(t *testing.T, n *node.Node, path string) string {
	t.Helper()
	return textAt(t, n.AdminAddr(), path)
}

func get(t *testing.T, n *node.Node, path string) string {
	t.Helper()
	return textAt(t, n.HTTPAddr(), path)
}

func textAt(t *testing.T, at net.Addr, path string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + at.String() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

var (
	typeLine   = regexp.MustCompile(`^# TYPE (sluice_\w+) (\w+)$`)
	helpLine   = regexp.MustCompile(`^# HELP (sluice_\w+) \S.*$`)
	sampleLine = regexp.MustCompile(`^(\w+)(?:\{(.*)\})? (\S+)$`)
	labelPair  = regexp.MustCompile(`(\w+)="[^"\\]*"`)
	docLine    = regexp.MustCompile("^\\| `(sluice_\\w+)` \\| (\\w+) \\| ([^|]*) \\| ([^|]+) \\|$")
)

// exposition is what /metrics answered: the sluice_ metrics' types, help texts, label names, and samples.
type exposition struct {
	types, helps, labels map[string]string
	samples              map[string]float64
}

func readMetrics(t *testing.T, text string) exposition {
	t.Helper()
	e := exposition{map[string]string{}, map[string]string{}, map[string]string{}, map[string]float64{}}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if m := typeLine.FindStringSubmatch(line); m != nil {
			if e.types[m[1]] != "" {
				t.Errorf("%s comes twice", m[1])
			}
			e.types[m[1]] = m[2]
			continue
		}
		if m := helpLine.FindStringSubmatch(line); m != nil {
			e.helps[m[1]] = strings.TrimPrefix(line, "# HELP "+m[1]+" ")
			continue
		}
		m := sampleLine.FindStringSubmatch(line)
		if m == nil || strings.HasPrefix(line, "#") {
			if strings.Contains(line, "sluice_") {
				t.Errorf("line %q is not well-formed", line)
			}
			continue
		}
		if !strings.HasPrefix(m[1], "sluice_") {
			continue
		}
		value, err := strconv.ParseFloat(m[3], 64)
		if _, twice := e.samples[m[1]+"{"+m[2]+"}"]; err != nil || twice {
			t.Errorf("sample %q: no number, or twice", line)
		}
		e.samples[m[1]+"{"+m[2]+"}"] = value
		name := m[1]
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base := strings.TrimSuffix(name, suffix); e.types[base] == "histogram" {
				name = base
			}
		}
		if e.types[name] == "" {
			t.Errorf("sample %q belongs to no metric", line)
		}
		for _, pair := range labelPair.FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains(strings.Split(e.labels[name], ", "), pair[1]) {
				e.labels[name] = strings.TrimPrefix(e.labels[name]+", "+pair[1], ", ")
			}
		}
	}
	return e
}

// What a node of a cluster serves and docs/metrics.md lists is the same, to the word.
func TestMetrics_AsDocumented(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 2, nodetest.WithConfig(func(i int, cfg *node.Config) {
		withAdmin(i, cfg)
		cfg.Routes = []node.RouteConfig{{
			Name: "orders", Path: "/orders", Upstream: "http://127.0.0.1:9", ConnectTimeout: node.Duration(time.Second),
			Timeout: node.Duration(time.Second), IdleTimeout: node.Duration(time.Second), EjectTime: node.Duration(time.Second),
			WebSocketIdle: node.Duration(time.Second), MaxBodyBytes: 1, MaxRequests: 1, MaxFails: 1, MaxWebSockets: 1, Rules: []node.RouteRuleConfig{{Methods: []string{"*"}, Anonymous: true, Cost: 1}},
		}}
		cfg.GRPC.Listen = "127.0.0.1:0"
		cfg.Limits.Policies = []node.PolicyConfig{
			{Name: "second", By: []string{"address"}, RuleConfig: node.RuleConfig{Limit: 100, Window: node.Duration(time.Second), Algorithm: "fixed_window"}},
			{Name: "trial", By: []string{"address"}, RuleConfig: node.RuleConfig{Limit: 2, Window: node.Duration(time.Hour), Algorithm: "fixed_window"}, Shadow: true},
		}
	}))
	n := c.Members[c.Leader()].Node // which tells of its followers
	get(t, n, "/api/v1/auth/me")    // what is counted by status begins with the first request
	var got exposition
	nodetest.WaitFor(t, "metrics as they are in peace, of the other node too", func() error {
		got = readMetrics(t, adminText(t, n, "/metrics"))
		for name := range got.types {
			if got.labels[name] == "" && strings.Contains(name, "_peer_") && !strings.HasPrefix(name, "sluice_peer_") {
				return fmt.Errorf("no sample of %s yet", name)
			}
		}
		for _, want := range []string{
			`sluice_http_requests_total{route="/api/v1/auth/me",method="GET",status="401"}`,
			`sluice_ready{}`, `sluice_roster_member{}`, `sluice_limit_incarnation{}`,
			`sluice_raft_has_leader{}`, `sluice_gateway_upstream_up{route="orders",upstream="http://127.0.0.1:9"}`,
		} {
			if got.samples[want] != 1 {
				return fmt.Errorf("%s is %v, want 1", want, got.samples[want])
			}
		}
		if ahead := got.samples["sluice_horizon_ahead_seconds{}"]; ahead <= 0 {
			return fmt.Errorf("the horizon is %v s ahead", ahead)
		}
		return nil
	})
	doc, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for line := range strings.Lines(string(doc)) {
		m := docLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			continue
		}
		name := m[1]
		listed[name] = true
		if got.types[name] != m[2] || got.labels[name] != strings.TrimSpace(m[3]) || got.helps[name] != m[4] {
			t.Errorf("%s is documented as a %s with labels %q: %s\nand served as a %q with labels %q: %s",
				name, m[2], strings.TrimSpace(m[3]), m[4], got.types[name], got.labels[name], got.helps[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got.types)) {
		if !listed[name] {
			t.Errorf("docs/metrics.md does not list %s", name)
		}
	}
	// No label has as many values as there are clients: a request of a new address adds no sample.
	count := len(got.samples)
	for range 3 {
		get(t, n, "/api/v1/auth/me")
	}
	after := readMetrics(t, adminText(t, n, "/metrics"))
	if len(after.samples) != count {
		t.Errorf("%d samples before some requests and %d after", count, len(after.samples))
	}
	for sample, want := range map[string]float64{
		`sluice_limit_decisions_total{policy="anonymous",outcome="admitted"}`:    4,
		`sluice_limit_decisions_total{policy="second",outcome="admitted"}`:       4,
		`sluice_limit_shadow_decisions_total{policy="trial",outcome="admitted"}`: 2,
		`sluice_limit_shadow_decisions_total{policy="trial",outcome="refused"}`:  2,
	} {
		// A shadow decision that waits for another node is made after the answer.
		nodetest.WaitFor(t, sample, func() error {
			if got := readMetrics(t, adminText(t, n, "/metrics")).samples[sample]; got != want {
				return fmt.Errorf("got %v, want %v", got, want)
			}
			return nil
		})
	}
	if _, ok := after.samples[`sluice_limit_decisions_total{policy="trial",outcome="admitted"}`]; ok {
		t.Error("a shadow policy counts as one that decides")
	}
	if n := after.samples[`sluice_limit_overadmitted_total{}`]; n != 0 {
		t.Errorf("%v units over", n)
	}
}

// A node that has lost the others goes on where it may, and says so: in /readyz?verbose, to clients and operators, and in
// metrics.
func TestDegraded_Shows(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3, nodetest.WithConfig(func(i int, cfg *node.Config) {
		withAdmin(i, cfg)
		cfg.Limits.OnIsolation, cfg.Auth.OnStale = "available", "serve"
	}))
	n := c.Members[0].Node
	if text := adminText(t, n, "/readyz"); strings.Contains(text, "[!]") || !strings.Contains(text, "[+] gossip: ok") {
		t.Fatalf("a sound cluster: %s", text)
	}
	c.Stop(1)
	c.Stop(2)
	nodetest.WaitFor(t, "the node that is alone says so", func() error {
		operator, client := adminText(t, n, "/readyz"), get(t, n, "/readyz?verbose")
		served := readMetrics(t, adminText(t, n, "/metrics"))
		for check, says := range map[string]string{
			"gossip": "nothing heard of ", "horizon": "passed", "fresh": "state may be older",
		} {
			line := "[!] " + check + ": " + says
			if !strings.Contains(operator, line) || !strings.Contains(client, line) {
				return fmt.Errorf("no %q in\n%s\nor\n%s", line, operator, client)
			}
			if served.samples[`sluice_degraded{check="`+check+`"}`] != 1 {
				return errors.New("no metric of " + check)
			}
		}
		if served.samples["sluice_horizon_ahead_seconds{}"] >= 0 {
			return errors.New("the horizon has not passed by the metric")
		}
		return nil
	})
}
