package node_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"sluice/node"
	"sluice/node/nodetest"
)

// adminCall is one call of a member's admin API; body nil for a GET.
func adminCall(t *testing.T, m *nodetest.Member, path string, body, out any) (problem node.AdminProblem) {
	t.Helper()
	address := "http://" + m.Node.AdminAddr().String() + path
	method, data := http.MethodGet, []byte(nil)
	if body != nil {
		method = http.MethodPost
		var err error
		if data, err = json.Marshal(body); err != nil {
			t.Fatal(err)
		}
	}
	req, err := http.NewRequest(method, address, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		out = &problem
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return problem
}

// anonymous asks a member as somebody at address and returns the status.
func anonymous(t *testing.T, m *nodetest.Member, address string) int {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://"+m.Node.HTTPAddr().String()+"/api/v1/auth/verify", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Forwarded-For", address)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func withLimits(_ int, cfg *node.Config) {
	cfg.Admin.Listen = "127.0.0.1:0"
	cfg.TrustedProxies = []string{"127.0.0.0/8"}
	cfg.Limits.Anonymous = node.RuleConfig{Limit: 6, Window: cfg.Limits.Anonymous.Window, Algorithm: "fixed_window"}
	cfg.Limits.Anonymous.Window *= 60 // an hour: its edge is far
}

func TestLimits_ExplainAndReset(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3, nodetest.WithConfig(withLimits))
	const address = "192.0.2.77"
	spend := func() (passed int) {
		for i := range 30 {
			if anonymous(t, c.Members[i%3], address) == http.StatusOK {
				passed++
			}
		}
		return passed
	}
	if got := spend(); got != 6 {
		t.Fatalf("%d of 6 passed", got)
	}
	var out node.LimitsExplained
	if p := adminCall(t, c.Members[1], "/v1/limits/explain?policy=anonymous&subject="+address, nil, &out); p.Code != "" {
		t.Fatal(p.Error())
	}
	if len(out.Policies) != 1 || out.Subject.Kind != "address" || out.Subject.ID != address || out.AnsweredBy != c.Members[1].Node.ID() {
		t.Fatalf("%+v", out)
	}
	e := out.Policies[0]
	if e.Policy != "anonymous" || !e.Complete || e.Used != 6000 || e.Remaining != 0 || e.Limit != 6 || e.WindowSeconds != 3600 ||
		e.Algorithm != "fixed_window" || len(e.Nodes) != 3 || e.NextPass == nil || !e.NextPass.Equal(e.WindowEnd) || e.LastRefusal == nil {
		t.Errorf("%+v", e)
	}
	var sum node.Units
	for _, n := range e.Nodes {
		sum += n.Share
		if !n.Answered || n.Name == "" || n.Room != 0 {
			t.Errorf("node %+v", n)
		}
	}
	if sum != 6000 {
		t.Errorf("shares add up to %v", sum)
	}
	// By the bucket's name alone.
	var byName node.LimitsExplained
	if p := adminCall(t, c.Members[2], "/v1/limits/explain", node.LimitsQuery{Subject: e.Bucket}, &byName); p.Code != "" || byName.Policies[0].Used != 6000 {
		t.Errorf("by the bucket: %+v, %+v", byName, p)
	}
	var reset node.LimitsReset
	if p := adminCall(t, c.Members[0], "/v1/limits/reset", node.LimitsQuery{Subject: e.Bucket}, &reset); p.Code != "" || len(reset.Reset) != 1 || reset.Reset[0].WindowSeconds != 3600 {
		t.Errorf("reset: %+v, %+v", reset, p)
	}
	nodetest.WaitFor(t, "the reset on every node", func() error {
		for i, m := range c.Members {
			if got := m.Node.Resets(); len(got) != 1 {
				return fmt.Errorf("member %d knows %d resets", i, len(got))
			}
		}
		return nil
	})
	if got := spend(); got != 6 {
		t.Errorf("%d of 6 passed after the reset", got)
	}
	// One node less: the others say what they know, and that it is not all.
	down := c.Followers()[0]
	id := c.Members[down].Node.ID()
	c.Stop(down)
	if p := adminCall(t, c.Members[c.Leader()], "/v1/limits/explain?policy=anonymous&subject="+address, nil, &out); p.Code != "" {
		t.Fatal(p.Error())
	}
	e = out.Policies[0]
	if e.Complete || len(e.Nodes) != 3 || e.Generation == 0 {
		t.Errorf("with a node down: %+v", e)
	}
	for _, n := range e.Nodes {
		if n.Answered == (n.Node == id) || (n.Error == "") != n.Answered {
			t.Errorf("node %+v, and %s is down", n, id)
		}
	}
}

func TestLimits_WrongCalls(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 1, nodetest.WithConfig(withLimits))
	secret := "sk_live_" + strings.Repeat("A", 38)
	for _, test := range []struct {
		path   string
		body   any
		status int
		code   string
	}{
		{"/v1/limits/explain?subject=" + secret, nil, 422, "invalid_input"},
		{"/v1/limits/explain", nil, 422, "invalid_input"},
		{"/v1/limits/explain?subject=192.0.2.1&key=" + secret, nil, 400, "invalid_request"},
		{"/v1/limits/explain?subject=" + url.QueryEscape("no such thing"), nil, 422, "invalid_input"},
		{"/v1/limits/explain?subject=key_none", nil, 404, "not_found"},
		{"/v1/limits/explain?subject=192.0.2.1&policy=none", nil, 404, "not_found"},
		{"/v1/limits/explain?subject=192.0.2.1&route=none", nil, 404, "not_found"},
		{"/v1/limits/explain?subject=" + strings.Repeat("0a", 16), nil, 404, "not_found"},
		{"/v1/limits/explain", node.LimitsQuery{Subject: secret}, 422, "invalid_input"},
		{"/v1/limits/explain", node.LimitsQuery{Subject: "192.0.2.1", KeySHA256: strings.Repeat("0a", 32)}, 422, "invalid_input"},
		{"/v1/limits/explain", node.LimitsQuery{KeySHA256: "0a"}, 422, "invalid_input"},
		{"/v1/limits/explain", node.LimitsQuery{KeySHA256: strings.Repeat("0a", 32)}, 404, "not_found"},
		{"/v1/limits/reset", node.LimitsQuery{Subject: strings.Repeat("0a", 16)}, 404, "not_found"},
		{"/v1/limits/reset", node.LimitsQuery{Subject: "usr_none"}, 404, "not_found"},
	} {
		var out any
		p := adminCall(t, c.Members[0], test.path, test.body, &out)
		if p.Status != test.status || p.Code != test.code || strings.Contains(p.Detail, secret) {
			t.Errorf("%s %+v: %+v", test.path, test.body, p)
		}
	}
	if strings.Contains(c.Log(), secret) {
		t.Error("a key is in the log")
	}
}

func TestUnits_JSON(t *testing.T) {
	t.Parallel()
	for units, text := range map[node.Units]string{0: "0", 1: "0.001", 1500: "1.5", 10_000: "10", -2250: "-2.25", 1e15: "1000000000000", 1001: "1.001"} {
		got, err := json.Marshal(units)
		var back node.Units
		if err != nil || string(got) != text || json.Unmarshal(got, &back) != nil || back != units {
			t.Errorf("%d: %s, %v, back %d", int64(units), got, err, int64(back))
		}
	}
	var u node.Units
	if err := json.Unmarshal([]byte(`"x"`), &u); err == nil {
		t.Error("a text is no number of units")
	}
}
