package node_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sluice/node"
	"sluice/node/nodetest"
	"sluice/node/tracing/tracingtest"
)

const (
	traceID    = "4bf92f3577b34da6a3ce929d0e0e4736"
	parentID   = "00f067aa0ba902b7"
	traceBegun = "00-" + traceID + "-" + parentID + "-01"
)

// One request's spans connect over the nodes that it needs: a write by a follower's client, at the leader; and a gateway's, at the
// upstream. Nothing that tells who asked is in them.
func TestTracing_OverNodes(t *testing.T) {
	t.Parallel()
	carried := make(chan http.Header, 1)
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { carried <- r.Header.Clone() }))
	t.Cleanup(upstream.Close)
	collector := tracingtest.Start(t)
	headers := filepath.Join(t.TempDir(), "headers")
	if err := os.WriteFile(headers, []byte("# of the collector\nX-Team: the-collectors-key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := nodetest.Start(t, 3, nodetest.WithConfig(func(i int, cfg *node.Config) {
		withAdmin(i, cfg)
		cfg.TrustedProxies = []string{"127.0.0.0/8"}
		cfg.Tracing.Endpoint, cfg.Tracing.HeadersFile, cfg.Tracing.SampleOneIn = collector.URL, headers, 0
		cfg.Routes = []node.RouteConfig{{
			Name: "orders", Path: "/orders", Upstream: upstream.URL, ConnectTimeout: node.Duration(time.Second), Timeout: node.Duration(time.Second),
			IdleTimeout: node.Duration(time.Second), EjectTime: node.Duration(time.Second), WebSocketIdle: node.Duration(time.Second),
			MaxBodyBytes: 1 << 10, MaxRequests: 10, MaxFails: 1, MaxWebSockets: 1, Rules: []node.RouteRuleConfig{{Methods: []string{"*"}, Anonymous: true, Cost: 1}},
		}}
	}))
	follower := c.Members[c.Followers()[0]].Node
	call := func(method, path, body, trace string) (int, []byte) {
		t.Helper()
		req, err := http.NewRequest(method, "http://"+follower.HTTPAddr().String()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Tracestate", "vendor=opaque")
		if trace != "" {
			req.Header.Set("Traceparent", trace)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, answer
	}

	status, answer := call("POST", "/api/v1/auth/register", `{"username":"traced-person","email":"traced@example.org","password":"correct horse battery staple 9"}`, traceBegun)
	if status != http.StatusCreated {
		t.Fatalf("register: %d %s", status, answer)
	}
	var registered struct {
		Token string `json:"token"`
		User  struct {
			ID string `json:"id"`
		} `json:"user"`
	}
	if err := json.Unmarshal(answer, &registered); err != nil || registered.Token == "" || registered.User.ID == "" {
		t.Fatalf("register answered %s (%v)", answer, err)
	}
	if status, _ := call("GET", "/orders/secret-order?token=in-the-query", "", traceBegun); status != http.StatusOK {
		t.Fatalf("gateway: %d", status)
	}
	sent := <-carried
	if status, _ := call("GET", "/api/v1/auth/me", "", ""); status != http.StatusUnauthorized {
		t.Fatalf("me: %d", status)
	}

	var spans map[string]tracingtest.Span
	nodetest.WaitFor(t, "spans", func() error {
		spans = map[string]tracingtest.Span{}
		for _, s := range collector.Spans(traceID) {
			spans[s.Name] = s
		}
		for _, name := range []string{"POST /api/v1/auth/register", "propose RegisterUser", "call /v1/forwards", "serve /v1/forwards", "replicate", "GET orders", "upstream orders"} {
			if spans[name].ID == "" {
				return fmt.Errorf("no span %q among %v", name, spans)
			}
		}
		return nil
	})
	for child, parent := range map[string]string{
		"propose RegisterUser": "POST /api/v1/auth/register", "call /v1/forwards": "propose RegisterUser", "serve /v1/forwards": "call /v1/forwards",
		"replicate": "serve /v1/forwards", "upstream orders": "GET orders",
	} {
		if spans[child].Parent != spans[parent].ID {
			t.Errorf("%q is not below %q", child, parent)
		}
	}
	for _, root := range []string{"POST /api/v1/auth/register", "GET orders"} {
		if spans[root].Parent != parentID || spans[root].Node != follower.ID() {
			t.Errorf("%q: %+v", root, spans[root])
		}
	}
	if served := spans["serve /v1/forwards"].Node; served == follower.ID() || served == "" {
		t.Errorf("the forwarded write was served by %q", served)
	}
	if a := spans["GET orders"].Attributes; a["http.response.status_code"] != "int_value:200" || a["sluice.limit.outcome"] != "admitted" || a["sluice.auth.method"] != "anonymous" {
		t.Errorf("attributes %v", a)
	}
	if got, want := sent.Get("Traceparent"), "00-"+traceID+"-"+spans["upstream orders"].ID+"-01"; got != want || sent.Get("Tracestate") != "vendor=opaque" {
		t.Errorf("the upstream was given %q and %q, want %q", got, sent.Get("Tracestate"), want)
	}
	if n := len(collector.Spans("")); n != len(collector.Spans(traceID)) {
		t.Error("a trace was begun though none is to be")
	}
	raw, from := collector.Raw()
	for _, secret := range []string{"traced-person", "traced@example.org", "correct horse", registered.Token, registered.User.ID, "secret-order", "in-the-query", "the-collectors-key", "127.0.0.1:" + port(follower.HTTPAddr().String())} {
		if bytes.Contains(raw, []byte(secret)) {
			t.Errorf("spans hold %q", secret)
		}
	}
	if from[0].Get("X-Team") != "the-collectors-key" {
		t.Error("the collector's header is missing")
	}
	if got := readMetrics(t, adminText(t, follower, "/metrics")).samples["sluice_trace_spans_sent_total{}"]; got < 5 {
		t.Errorf("%v spans counted as sent", got)
	}
}

func port(address string) string { return address[strings.LastIndexByte(address, ':')+1:] }

// Whoever is no trusted proxy cannot decide what is recorded, nor put spans into a trace that is not theirs.
func TestTracing_StrangersBeginAnew(t *testing.T) {
	t.Parallel()
	collector := tracingtest.Start(t)
	c := nodetest.Start(t, 1, nodetest.WithConfig(func(i int, cfg *node.Config) {
		cfg.Tracing.Endpoint, cfg.Tracing.SampleOneIn = collector.URL, 1
	}))
	req, err := http.NewRequest("GET", "http://"+c.Members[0].Node.HTTPAddr().String()+"/api/v1/health", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Traceparent", traceBegun)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	nodetest.WaitFor(t, "the span", func() error {
		for _, s := range collector.Spans("") {
			if s.Trace == traceID {
				t.Fatal("a stranger's trace goes on")
			}
			if len(s.Links) == 1 && s.Links[0] == traceID && s.Parent == "" {
				return nil
			}
		}
		return fmt.Errorf("none linked in %v", collector.Spans(""))
	})
}

func TestConfig_TracingMistakes(t *testing.T) {
	t.Parallel()
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "headers")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, test := range []struct {
		name, want string
		change     func(*node.TracingConfig)
	}{
		{"no URL", "tracing.endpoint: want the URL", func(c *node.TracingConfig) { c.Endpoint = "collector:4318" }},
		{"a password in it", "tracing.endpoint: holds a user name", func(c *node.TracingConfig) { c.Endpoint = "https://me:hunter2@collector" }},
		{"broken with a password", "tracing.endpoint: is not a URL", func(c *node.TracingConfig) { c.Endpoint = "https://me:hunter2@[collector" }},
		{"a query", "tracing.endpoint: has a query", func(c *node.TracingConfig) { c.Endpoint = "https://collector?key=hunter2" }},
		{"no header", "tracing.headers_file: line 2 of ", func(c *node.TracingConfig) { c.HeadersFile = file("A: b\nhunter2\n") }},
		{"a bad value", "tracing.headers_file: line 1 of ", func(c *node.TracingConfig) { c.HeadersFile = file("A: hunter2\x01\n") }},
		{"no authorities", "tracing.ca: ", func(c *node.TracingConfig) { c.CA = file("nothing") }},
		{"no queue", "tracing.queue: ", func(c *node.TracingConfig) { c.Queue = 0 }},
		{"sampling below nothing", "tracing.sample_one_in: ", func(c *node.TracingConfig) { c.SampleOneIn = -1 }},
	} {
		cfg := node.DefaultConfig()
		test.change(&cfg.Tracing)
		err := cfg.Validate()
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the mistake tells a secret: %v", test.name, err)
		}
	}
}
