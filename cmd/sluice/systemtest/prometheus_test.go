package systemtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"sluice/node"
	"sluice/node/nodetest"
	"sluice/node/tracing/tracingtest"
)

// dashboard is what the tests look at of deploy/grafana/sluice.json.
type dashboard struct {
	UID           string           `json:"uid"`
	SchemaVersion int              `json:"schemaVersion"`
	Panels        []dashboardPanel `json:"panels"`
	Templating    struct {
		List []struct {
			Name, Type string
			Query      json.RawMessage `json:"query"`
		} `json:"list"`
	} `json:"templating"`
	Annotations struct {
		List []struct {
			Name, Expr string
		} `json:"list"`
	} `json:"annotations"`
}

type dashboardPanel struct {
	ID          int
	Type, Title string
	GridPos     struct{ H, W, X, Y int }
	Datasource  struct{ Type, UID string }
	FieldConfig struct {
		Defaults struct{ Unit string }
	}
	Targets []struct {
		RefID      string `json:"refId"`
		Expr       string
		Datasource struct{ Type, UID string }
	}
}

func readDashboard(t *testing.T) dashboard {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "deploy", "grafana", "sluice.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestDashboard_WellFormed holds the dashboard against what Grafana needs to show it as it is meant.
func TestDashboard_WellFormed(t *testing.T) {
	t.Parallel()
	d := readDashboard(t)
	if d.UID != "sluice" || d.SchemaVersion < 36 || len(d.Panels) == 0 {
		t.Errorf("uid %q, schema version %d, %d panels", d.UID, d.SchemaVersion, len(d.Panels))
	}
	var variables []string
	for _, v := range d.Templating.List {
		variables = append(variables, v.Name+" "+v.Type)
	}
	if want := []string{"datasource datasource", "cluster query", "instance query"}; !slices.Equal(variables, want) {
		t.Errorf("variables %v, want %v", variables, want)
	}
	ids, taken := map[int]bool{}, map[[2]int]string{}
	var rows []string
	for _, p := range d.Panels {
		if ids[p.ID] || p.ID == 0 || p.Title == "" {
			t.Errorf("panel %q has the id %d, which is 0 or another's, or no title", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x < 0 || x >= 24 {
					t.Fatalf("panel %q is outside, or over %q", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			rows = append(rows, p.Title)
			continue
		}
		if len(p.Targets) == 0 || p.FieldConfig.Defaults.Unit == "" || p.Datasource.UID != "${datasource}" {
			t.Errorf("panel %q has no queries, no unit, or a data source of its own", p.Title)
		}
		refs := map[string]bool{}
		for _, q := range p.Targets {
			if refs[q.RefID] || q.Datasource.UID != "${datasource}" || !strings.Contains(q.Expr, `job="$cluster"`) {
				t.Errorf("panel %q: query %s is there twice, of another data source, or not of the cluster: %s", p.Title, q.RefID, q.Expr)
			}
			refs[q.RefID] = true
		}
	}
	if want := []string{"At a glance", "Traffic", "Latency", "Limits", "Consensus", "Gossip", "Storage", "Sign-ins", "Gateway", "Resources", "Certificates and secrets"}; !slices.Equal(rows, want) {
		t.Errorf("rows %v, want %v", rows, want)
	}
}

// TestPrometheus has a real Prometheus scrape three nodes with some of every kind of traffic. The rules are evaluated by it, every
// query of the dashboard returns data, and so does every alert's expression that is not about what is wrong.
func TestPrometheus(t *testing.T) {
	program := needProgram(t, "prometheus")
	t.Parallel()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "{}") }))
	t.Cleanup(upstream.Close)
	collector := tracingtest.Start(t)
	c := nodetest.Start(t, 3, nodetest.WithConfig(func(i int, cfg *node.Config) {
		cfg.Admin.Listen, cfg.GRPC.Listen = "127.0.0.1:0", "127.0.0.1:0"
		cfg.TrustedProxies = []string{"127.0.0.0/8"}
		cfg.Tracing.Endpoint, cfg.Tracing.SampleOneIn = collector.URL, 2
		cfg.Backup.Dir = t.TempDir()
		second := node.Duration(time.Second)
		cfg.Routes = []node.RouteConfig{{
			Name: "orders", Path: "/orders", Upstream: upstream.URL, ConnectTimeout: second, Timeout: second, IdleTimeout: second, EjectTime: second,
			WebSocketIdle: second, MaxBodyBytes: 1 << 10, MaxRequests: 10, MaxFails: 1, MaxWebSockets: 1,
			Rules: []node.RouteRuleConfig{{Methods: []string{"*"}, Anonymous: true, Cost: 1}},
		}}
	}))
	var targets []string
	for _, m := range c.Members {
		targets = append(targets, m.Node.AdminAddr().String())
	}
	p := startPrometheus(t, program, targets)
	users := newTraffic(t, c)

	d := readDashboard(t)
	variables := strings.NewReplacer("$cluster", "sluice", "$instance", ".*", "$__rate_interval", "10s")
	queries := map[string]string{}
	for _, panel := range d.Panels {
		for _, q := range panel.Targets {
			queries[panel.Title+" "+q.RefID] = variables.Replace(q.Expr)
		}
	}
	for _, a := range d.Annotations.List {
		if a.Expr != "" {
			if _, err := p.query(variables.Replace(a.Expr)); err != nil {
				t.Errorf("annotation %q: %v", a.Name, err)
			}
		}
	}
	nodetest.WaitFor(t, "data for every query of the dashboard", func() error {
		if err := users.step(); err != nil {
			return err
		}
		var missing []string
		for _, title := range slices.Sorted(maps.Keys(queries)) {
			n, err := p.query(queries[title])
			if err != nil {
				t.Fatalf("%s: %s: %v", title, queries[title], err)
			}
			if n == 0 {
				missing = append(missing, title+": "+queries[title])
				continue
			}
			delete(queries, title) // what is about the past may pass
		}
		if len(missing) > 0 {
			return fmt.Errorf("no data for %d, as for %s", len(missing), strings.Join(missing, "\n"))
		}
		return nil
	})
	for variable, want := range map[string][]string{"job": {"sluice"}, "instance": targets} {
		got, err := p.labels(variable)
		slices.Sort(want)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("label %s is %v, want %v (%v)", variable, got, want, err)
		}
	}
	rules, err := p.rules()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(alerts)
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Count(string(text), "- alert: "); len(rules) != want {
		t.Errorf("%d rules are loaded, want %d", len(rules), want)
	}
	for _, r := range rules {
		if _, err := p.query(r.Query); err != nil {
			t.Errorf("%s: %v", r.Name, err)
		}
		if r.Health != "ok" || r.LastError != "" {
			t.Errorf("%s is %s: %s", r.Name, r.Health, r.LastError)
		}
		if r.State == "firing" {
			t.Errorf("%s rings in a sound cluster", r.Name)
		}
		if got, want := r.Annotations["runbook"], "docs/runbook.md#"+strings.ToLower(r.Name); got != want || r.Annotations["action"] == "" || r.Annotations["summary"] == "" {
			t.Errorf("%s: annotations %v, want an action, and %s as the runbook", r.Name, r.Annotations, want)
		}
	}
}

// traffic asks every node for some of everything.
type traffic struct {
	c     *nodetest.Cluster
	token string
	grpc  []ratelimitv3.RateLimitServiceClient
}

func newTraffic(t *testing.T, c *nodetest.Cluster) *traffic {
	t.Helper()
	u := &traffic{c: c}
	for _, m := range c.Members {
		conn, err := grpc.NewClient(m.Node.GRPCAddr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		u.grpc = append(u.grpc, ratelimitv3.NewRateLimitServiceClient(conn))
	}
	account := `{"username":"watcher","email":"watcher@example.org","password":"correct horse battery staple 9"}`
	if status, body, err := u.ask(0, "POST", "/api/v1/auth/register", account, "198.51.100.1"); err != nil || status != http.StatusCreated {
		t.Fatalf("register: %d %s %v", status, body, err)
	}
	status, body, err := u.ask(1, "POST", "/api/v1/auth/login", `{"username":"watcher","password":"correct horse battery staple 9"}`, "198.51.100.1")
	if err != nil || status != http.StatusOK {
		t.Fatalf("login: %d %s %v", status, body, err)
	}
	var session struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal(body, &session); err != nil {
		t.Fatal(err)
	}
	u.token = session.Token
	return u
}

func (u *traffic) ask(node int, method, path, body, client string, header ...string) (int, []byte, error) {
	req, err := http.NewRequest(method, "http://"+u.c.Members[node].Node.HTTPAddr().String()+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("X-Forwarded-For", client)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

// step is one round, with refusals in it: of one address more requests come than may.
func (u *traffic) step() error {
	for i := range u.c.Members {
		for _, r := range []struct {
			method, path, client string
			header               []string
		}{
			{"GET", "/orders/1", "198.51.100.2", nil}, {"GET", "/orders/2", "198.51.100.2", nil}, {"GET", "/api/v1/health", "198.51.100.2", nil}, {"GET", "/nowhere", "198.51.100.2", nil},
			{"GET", "/api/v1/auth/verify", "198.51.100.3", []string{"X-Forwarded-Method", "GET", "X-Forwarded-Uri", "/orders/1"}},
			{"GET", "/api/v1/auth/me", "198.51.100.4", []string{"Authorization", "Bearer " + u.token}},
			{"GET", "/openapi.json", "198.51.100.5", nil},
		} {
			if _, _, err := u.ask(i, r.method, r.path, "", r.client, r.header...); err != nil {
				return err
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_, err := u.grpc[i].ShouldRateLimit(ctx, &ratelimitv3.RateLimitRequest{Domain: "unknown", Descriptors: []*commonv3.RateLimitDescriptor{{
			Entries: []*commonv3.RateLimitDescriptor_Entry{{Key: "a", Value: "b"}},
		}}})
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// prometheus is one that runs.
type prometheus struct{ url string }

// startPrometheus has it scrape the targets each second, and evaluate the rules.
func startPrometheus(t *testing.T, program string, targets []string) *prometheus {
	t.Helper()
	dir := t.TempDir()
	rules, err := filepath.Abs(alerts)
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf("global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [%q]\nscrape_configs:\n  - job_name: sluice\n    static_configs:\n      - targets: [%q]\n",
		rules, strings.Join(targets, `", "`))
	config = strings.ReplaceAll(config, `\"`, `"`)
	path := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	ln.Close()
	var log bytes.Buffer
	cmd := exec.Command(program, "--config.file="+path, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address, "--log.level=warn")
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // it is killed
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("prometheus:\n%s", log.String())
		}
	})
	p := &prometheus{"http://" + address}
	nodetest.WaitFor(t, "Prometheus", func() error {
		select {
		case <-ended:
			t.Fatal("Prometheus has ended")
		default:
		}
		if n, err := p.query(`up{job="sluice"} == 1`); err != nil || n != len(targets) {
			return fmt.Errorf("%d targets are up (%v)", n, err)
		}
		return nil
	})
	return p
}

func (p *prometheus) get(path string, into any) error {
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get(p.url + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return errors.New(answer.Error)
	}
	return json.Unmarshal(answer.Data, into)
}

// mayBeNaN are quantiles of what need not happen in a sound cluster: series without a number.
var mayBeNaN = regexp.MustCompile(`sluice_limit_wait_seconds`)

// query evaluates an expression now, and says how many series have a number.
func (p *prometheus) query(expr string) (int, error) {
	var data struct {
		ResultType string
		Result     []struct{ Value [2]any }
	}
	if err := p.get("/api/v1/query?query="+url.QueryEscape(expr), &data); err != nil {
		return 0, err
	}
	n := 0
	for _, r := range data.Result {
		text, _ := r.Value[1].(string)
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return 0, err
		}
		if !math.IsNaN(value) || mayBeNaN.MatchString(expr) {
			n++
		}
	}
	return n, nil
}

// labels are the values that a variable of the dashboard may take.
func (p *prometheus) labels(name string) ([]string, error) {
	var values []string
	err := p.get("/api/v1/label/"+name+"/values?match[]="+url.QueryEscape(`sluice_build_info{job="sluice"}`), &values)
	return values, err
}

type prometheusRule struct {
	Name, Query, Health, LastError, State string
	Annotations                           map[string]string
}

// rules are those that were evaluated at least once.
func (p *prometheus) rules() ([]prometheusRule, error) {
	var data struct {
		Groups []struct{ Rules []prometheusRule }
	}
	var all []prometheusRule
	err := p.get("/api/v1/rules?type=alert", &data)
	for _, g := range data.Groups {
		all = append(all, g.Rules...)
	}
	return all, err
}
