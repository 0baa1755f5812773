package node_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sluice/authapi"
	"sluice/node"
	"sluice/node/nodetest"
)

// settingsCall is one call about settings.
func settingsCall(t *testing.T, m *nodetest.Member, method, path string, body, out any) (problem node.AdminProblem) {
	t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest(method, "http://"+m.Node.AdminAddr().String()+path, bytes.NewReader(data))
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
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return problem
}

// put applies settings through a member and wants that to be done.
func put(t *testing.T, m *nodetest.Member, expected uint64, text string) node.SettingsApplied {
	t.Helper()
	var out node.SettingsApplied
	if p := settingsCall(t, m, http.MethodPut, "/v1/settings", node.SettingsPut{Text: &text, ExpectedVersion: &expected}, &out); p.Code != "" {
		t.Fatalf("put: %s", p.Error())
	}
	return out
}

// settle applies settings through a member, again where a busy cluster is between two leaders.
func settle(t *testing.T, m *nodetest.Member, text string) {
	t.Helper()
	nodetest.WaitFor(t, "the settings to be applied", func() error {
		var now node.Settings
		if p := adminCall(t, m, "/v1/settings", nil, &now); p.Code != "" {
			return &p
		}
		if now.Text == text && now.Running == now.Version {
			return nil
		}
		var out node.SettingsApplied
		if p := settingsCall(t, m, http.MethodPut, "/v1/settings", node.SettingsPut{Text: &text, ExpectedVersion: &now.Version}, &out); p.Code != "" {
			return &p
		}
		return nil
	})
}

// shownLimit is the limit of anonymous clients that a member goes by.
func shownLimit(t *testing.T, m *nodetest.Member) string {
	t.Helper()
	resp, err := http.Get("http://" + m.Node.HTTPAddr().String() + "/api/v1/auth/verify")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.Header.Get("X-RateLimit-Limit")
}

func TestSettings_ApplyAndRollBack(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3, nodetest.WithConfig(withAdmin))
	everywhere := func(want string) {
		t.Helper()
		nodetest.WaitFor(t, "every member to go by "+want, func() error { // at once, but for one that hangs
			for i, m := range c.Members {
				if got := shownLimit(t, m); got != want {
					return fmt.Errorf("member %d goes by %s", i, got)
				}
			}
			return nil
		})
	}
	get := func(i int) (s node.Settings) {
		t.Helper()
		if p := adminCall(t, c.Members[i], "/v1/settings", nil, &s); p.Code != "" {
			t.Fatal(p.Error())
		}
		return s
	}
	if s := get(0); s.Version != 0 || s.Text != "" || s.AppliedAt != nil || s.Running != 0 {
		t.Errorf("before any: %+v", s)
	}
	const first, second = "[limits.anonymous]\nlimit = 11\n", "# more\n[limits.anonymous]\nlimit = 12\n\n[plans.gold]\nlimit = 5\n"
	// The answer comes when every node that answers goes by it.
	applied := put(t, c.Members[1], 0, first)
	everywhere("11")
	if !applied.Applied || applied.Version != 1 || len(applied.Changes) != 1 || applied.Changes[0].Text() != "~ limits.anonymous.limit = 10 → 11" || len(applied.Notes) != 0 {
		t.Errorf("applied %+v", applied)
	}
	if again := put(t, c.Members[2], 1, first); again.Applied || again.Version != 1 || !again.Same {
		t.Errorf("the same once more: %+v", again)
	}
	put(t, c.Members[2], 1, second)
	everywhere("12")

	// Who has not seen the newest overwrites nothing; what is wrong changes nothing.
	for _, test := range []struct {
		text     string
		expected uint64
		status   int
		want     string
	}{
		{first, 1, http.StatusConflict, "at version 2, not 1"},
		{first, 9, http.StatusConflict, "at version 2, not 9"},
		{"[limits.anonymous]\nlimit = -5\n[http]\nlisten = \":1\"", 2, http.StatusUnprocessableEntity, "settings:2:1: limits.anonymous.limit"},
	} {
		var out node.SettingsApplied
		p := settingsCall(t, c.Members[0], http.MethodPut, "/v1/settings", node.SettingsPut{Text: &test.text, ExpectedVersion: &test.expected}, &out)
		if p.Status != test.status || !strings.Contains(p.Detail, test.want) {
			t.Errorf("%q at %d: got %+v, want %d, %s", test.text, test.expected, p, test.status, test.want)
		}
		if test.status == http.StatusUnprocessableEntity && (len(p.Errors) != 2 || p.Errors[1].Field != "http" || p.Errors[1].Line != 3 || p.Errors[1].Column != 2 || p.Errors[1].Source != "settings") {
			t.Errorf("errors %+v", p.Errors)
		}
	}
	for path, body := range map[string]any{
		"/v1/settings":          node.SettingsPut{},
		"/v1/settings/rollback": node.SettingsRollback{},
		"/v1/settings/check":    node.SettingsCheck{},
	} {
		method := http.MethodPost
		if path == "/v1/settings" {
			method = http.MethodPut
		}
		if p := settingsCall(t, c.Members[0], method, path, body, new(any)); p.Status != http.StatusUnprocessableEntity {
			t.Errorf("%s without anything: %+v", path, p)
		}
	}
	everywhere("12")

	// A check tells what would change, and changes nothing.
	var plan node.SettingsPlan
	one := uint64(1)
	if p := settingsCall(t, c.Members[0], http.MethodPost, "/v1/settings/check", node.SettingsCheck{Version: &one}, &plan); p.Code != "" {
		t.Fatal(p.Error())
	}
	var lines []string
	for _, change := range plan.Changes {
		lines = append(lines, change.Text())
	}
	if got := strings.Join(lines, "; "); plan.Version != 2 || got != `~ limits.anonymous.limit = 12 → 11; - plans.gold.limit = 5; - plans.gold.window = "1m"; - plans.gold.algorithm = "sliding_window"` {
		t.Errorf("plan %+v: %s", plan, got)
	}

	two := uint64(2)
	var back node.SettingsApplied
	if p := settingsCall(t, c.Members[0], http.MethodPost, "/v1/settings/rollback", node.SettingsRollback{Version: &one, ExpectedVersion: &two}, &back); p.Code != "" || back.Version != 3 || !back.Applied {
		t.Fatalf("rollback: %+v, %s", back, p.Error())
	}
	everywhere("11")
	var versions node.SettingsVersions
	if p := adminCall(t, c.Members[2], "/v1/settings/versions", nil, &versions); p.Code != "" {
		t.Fatal(p.Error())
	}
	if v := versions.Data; len(v) != 3 || v[0].Version != 3 || v[0].Restores == nil || *v[0].Restores != 1 || v[0].SHA256 != v[2].SHA256 || v[1].Restores != nil || v[1].AppliedAt == nil {
		t.Errorf("versions %+v", v)
	}
	var old node.Settings
	if p := adminCall(t, c.Members[2], "/v1/settings/versions/2", nil, &old); p.Code != "" || old.Text != second || old.Running != 3 {
		t.Errorf("version 2: %+v, %+v", old, p)
	}
	if p := adminCall(t, c.Members[2], "/v1/settings/versions/4", nil, &old); p.Status != http.StatusNotFound || !strings.Contains(p.Detail, "versions 1 to 3 are kept") {
		t.Errorf("version 4: %+v", p)
	}
	zero := uint64(0)
	if p := settingsCall(t, c.Members[0], http.MethodPost, "/v1/settings/rollback", node.SettingsRollback{Version: &two, ExpectedVersion: &two}, &back); p.Status != http.StatusConflict {
		t.Errorf("a rollback by whoever has not seen the newest: %+v", p)
	}

	// Each change is in the operators' log, and nothing else is.
	var audit authapi.AuditPage
	if p := adminCall(t, c.Members[1], "/v1/audit?event=policy.*", nil, &audit); p.Code != "" || len(audit.Data) != 3 {
		t.Fatalf("audit: %+v, %s", audit, p.Error())
	}
	text, err := json.Marshal(audit.Data)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"event":"policy.rolled_back"`, `"restores":"1"`, `"subject":{"type":"settings","id":"3"}`, `"actor":{"type":"operator"`, "limits.anonymous.limit = 10 → 11",
		`"sha256":"` + versions.Data[1].SHA256 + `"`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("audit log has no %s:\n%s", want, text)
		}
	}

	// A node that starts again goes by them from its first answer, and one that was away learns what it missed.
	down := c.Followers()[0]
	c.Stop(down)
	if notes := put(t, c.Members[c.Leader()], 3, second).Notes; len(notes) != 1 || !strings.Contains(notes[0], "was not asked") {
		t.Errorf("with a node down: notes %q", notes)
	}
	c.Start(down)
	if got := shownLimit(t, c.Members[down]); got != "11" && got != "12" {
		t.Errorf("a started node goes by %s", got)
	}
	c.WaitReady()
	everywhere("12")
	four := uint64(4)
	if p := settingsCall(t, c.Members[down], http.MethodPost, "/v1/settings/rollback", node.SettingsRollback{Version: &zero, ExpectedVersion: &four}, &back); p.Code != "" || back.Version != 5 {
		t.Fatalf("back to none: %+v, %s", back, p.Error())
	}
	everywhere("10")
	if s := get(down); s.Running != 5 || s.Restores == nil || *s.Restores != 0 || s.Text != "" {
		t.Errorf("after a rollback to none: %+v", s)
	}
	put(t, c.Members[down], 5, first)
	// Whoever joins later has them before it is fit.
	c.Start(c.Add())
	c.WaitReady()
	everywhere("11")
	nodetest.WaitFor(t, "the status of all members", func() error {
		var status node.ClusterStatus
		if p := adminCall(t, c.Members[0], "/v1/cluster", nil, &status); p.Code != "" {
			return &p
		}
		for _, n := range status.Nodes {
			if n.SettingsVersion == nil || *n.SettingsVersion != 6 {
				return fmt.Errorf("%s: %v", n.Name, n.SettingsVersion)
			}
		}
		return nil
	})
}

// Settings that do not go with what is another node's own are refused before anything changes; where that node was away, it keeps
// what it has and says that it is not fit.
func TestSettings_OtherNodesConfiguration(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3, nodetest.WithConfig(func(i int, cfg *node.Config) {
		withAdmin(i, cfg)
		if i == 2 {
			cfg.Plans = map[string]node.RuleConfig{"own": cfg.Limits.User}
			cfg.Limits.Policies = []node.PolicyConfig{{Name: "of-own", By: []string{"organization"}, Plans: []string{"own"}, RuleConfig: cfg.Limits.User}}
		}
	}))
	const other = "[limits.anonymous]\nlimit = 4\n[plans.other]\nlimit = 5\n"
	text, zero := other, uint64(0)
	p := settingsCall(t, c.Members[0], http.MethodPut, "/v1/settings", node.SettingsPut{Text: &text, ExpectedVersion: &zero}, new(any))
	if p.Status != http.StatusUnprocessableEntity || !strings.Contains(p.Detail, "(node3) cannot take these settings") || !strings.Contains(p.Detail, "limits.policies[0].plans[0]") {
		t.Fatalf("got %+v", p)
	}
	if got := shownLimit(t, c.Members[0]); got != "10" {
		t.Errorf("a refusal changed the limit to %s", got)
	}
	put(t, c.Members[0], 0, "[limits.anonymous]\nlimit = 3\n")
	c.Stop(2)
	put(t, c.Members[c.Leader()], 1, other)
	c.Start(2)
	nodetest.WaitFor(t, "the node that cannot take the settings to say so", func() error {
		for _, check := range c.Members[2].Node.Health() {
			if check.Name == "settings" && check.Err != nil && strings.Contains(check.Err.Error(), "version 1 runs, for version 2 does not go") {
				return nil
			}
		}
		return fmt.Errorf("%+v", c.Members[2].Node.Health())
	})
	if got := shownLimit(t, c.Members[2]); got != "3" {
		t.Errorf("the node goes by %s, want what it had before", got)
	}
	var s node.Settings
	if p := adminCall(t, c.Members[2], "/v1/settings", nil, &s); p.Code != "" || s.Running != 1 || s.Version != 2 || !strings.Contains(s.Problem, "plans[0]") {
		t.Errorf("settings %+v, %+v", s, p)
	}
	// Settings that go with every node's configuration make it fit again.
	put(t, c.Members[2], 2, "[limits.anonymous]\nlimit = 5\n")
	c.WaitReady()
	if got := shownLimit(t, c.Members[2]); got != "5" {
		t.Errorf("the node goes by %s", got)
	}
}

// metricsOf is what a member serves at /metrics.
func metricsOf(t *testing.T, m *nodetest.Member) []byte {
	t.Helper()
	resp, err := http.Get("http://" + m.Node.AdminAddr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// A node that was away when everything was forbidden lets nothing pass by the limit that it knew, from its first answer on.
func TestSettings_OldLimitEndsWithTheHorizon(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits for a horizon")
	}
	c := nodetest.Start(t, 3, nodetest.WithConfig(func(i int, cfg *node.Config) {
		withAdmin(i, cfg)
		cfg.TrustedProxies = []string{"127.0.0.0/8"}
		cfg.Limits.Anonymous = node.RuleConfig{Limit: 1000, Window: node.Duration(time.Second), Algorithm: "fixed_window"}
		cfg.Limits.Lease = node.Duration(2 * time.Second)
	}))
	down := c.Followers()[0]
	if got := anonymous(t, c.Members[down], "192.0.2.1"); got != http.StatusOK {
		t.Fatalf("before: %d", got)
	}
	c.Stop(down)
	settle(t, c.Members[c.Leader()], "[limits.anonymous]\nlimit = 0\nwindow = \"1s\"\nalgorithm = \"fixed_window\"\n")
	// The horizon that the node knows passes, and the window that began before it.
	timer := time.NewTimer(3500 * time.Millisecond)
	defer timer.Stop()
	<-timer.C
	n := c.Start(down)
	undecided, refused := 0, 0
	nodetest.WaitFor(t, "the node to go by the settings", func() error {
		for range 50 {
			switch got := anonymous(t, c.Members[down], "192.0.2.1"); got {
			case http.StatusServiceUnavailable:
				undecided++
			case http.StatusTooManyRequests:
				refused++
			default:
				t.Fatalf("status %d after %d undecided", got, undecided)
			}
		}
		if refused == 0 || n.SettingsVersion() != 1 {
			return fmt.Errorf("%d undecided, %d refused, version %d", undecided, refused, n.SettingsVersion())
		}
		return nil
	})
	t.Logf("%d undecided before the first refusal or after it, %d refused", undecided, refused)
}

// allRun finds a member that does not go by the newest settings that any of them knows.
func allRun(c *nodetest.Cluster) error {
	var newest uint64
	for _, m := range c.Members {
		newest = max(newest, m.Node.SettingsVersion())
	}
	for i, m := range c.Members {
		if got := m.Node.SettingsVersion(); got != newest {
			return fmt.Errorf("member %d goes by version %d, another by %d", i, got, newest)
		}
	}
	return nil
}

// admissions counts what passed, by the end of the window that the answer names.
type admissions struct {
	mu    sync.Mutex
	byEnd map[int64]int
}

// A limit is lowered, raised and lowered again while clients ask all nodes for more: in no window more passes than the highest limit
// that was in force in it, or, for a sliding window, in the one before.
func TestSettings_LimitsChangeUnderLoad(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("asks for some seconds")
	}
	const high, low, client = 40, 8, "203.0.113.40"
	text := func(limit int) string {
		return fmt.Sprintf("[limits.anonymous]\nlimit = %d\nwindow = \"1s\"\nalgorithm = \"fixed_window\"\n[limits.documents]\nlimit = %d\nwindow = \"1s\"\n", limit, limit)
	}
	c := nodetest.Start(t, 3, nodetest.WithConfig(func(i int, cfg *node.Config) {
		withAdmin(i, cfg)
		cfg.TrustedProxies = []string{"127.0.0.0/8"}
	}))
	put(t, c.Members[0], 0, text(high))

	const workers = 3 // of each path, each up to 250 requests a second
	asker := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2 * workers}, Timeout: 10 * time.Second}
	defer asker.CloseIdleConnections()
	stop := make(chan struct{})
	var group sync.WaitGroup
	passed := map[string]*admissions{}
	for _, path := range []string{"/api/v1/auth/verify", "/.well-known/jwks.json"} {
		a := &admissions{byEnd: map[int64]int{}}
		passed[path] = a
		for w := range workers {
			group.Go(func() {
				tick := time.NewTicker(4 * time.Millisecond)
				defer tick.Stop()
				for i := w; ; i++ {
					select {
					case <-stop:
						return
					case <-tick.C:
					}
					req, err := http.NewRequest(http.MethodGet, "http://"+c.Members[i%3].Node.HTTPAddr().String()+path, nil)
					if err != nil {
						t.Error(err)
						return
					}
					req.Header.Set("X-Forwarded-For", client)
					resp, err := asker.Do(req)
					if err != nil {
						t.Error(err)
						return
					}
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					end, parseErr := strconv.ParseInt(resp.Header.Get("X-RateLimit-Reset"), 10, 64)
					switch {
					case err != nil || parseErr != nil:
						t.Error(err, parseErr)
						return
					case resp.StatusCode == http.StatusOK:
						a.mu.Lock()
						a.byEnd[end]++
						a.mu.Unlock()
					case resp.StatusCode == http.StatusServiceUnavailable: // a busy machine: nothing passed
					case resp.StatusCode != http.StatusTooManyRequests:
						t.Errorf("%s: %s", path, resp.Status)
						return
					}
				}
			})
		}
	}
	// lowFrom and lowTo are the times between which the low limit alone was in force.
	type span struct{ from, to time.Time }
	var lows []span
	wait := func(d time.Duration) {
		timer := time.NewTimer(d)
		defer timer.Stop()
		<-timer.C
	}
	for i := range 2 {
		wait(2200 * time.Millisecond)
		settle(t, c.Members[i], text(low))
		nodetest.WaitFor(t, "all nodes to go by it", func() error { return allRun(c) })
		from := time.Now()
		wait(3200 * time.Millisecond)
		lows = append(lows, span{from, time.Now()})
		settle(t, c.Members[i+1], text(high))
	}
	wait(1200 * time.Millisecond)
	close(stop)
	group.Wait()
	// Nor does what nodes say of themselves look as if more had passed.
	for i, m := range c.Members {
		if text := string(metricsOf(t, m)); !strings.Contains(text, "\nsluice_limit_overadmitted_total 0\n") {
			t.Errorf("member %d: the auditor found a limit exceeded:\n%s", i, text)
		}
	}

	for path, a := range passed {
		windows, most := 0, 0
		for end, n := range a.byEnd {
			limit := high
			for _, s := range lows {
				begin := time.Unix(end-1, 0)
				if path != "/api/v1/auth/verify" {
					begin = begin.Add(-time.Second) // what slides counts the window before
				}
				// A request goes to its end by what it began with; none takes so long.
				if begin.After(s.from.Add(250*time.Millisecond)) && time.Unix(end, 0).Before(s.to) {
					limit = low
					windows++
				}
			}
			most = max(most, n)
			if n > limit {
				t.Errorf("%s: %d passed in the window that ends at %d, and %d may; low %v", path, n, end, limit, lows)
			}
		}
		t.Logf("%s: %v", path, a.byEnd)
		if windows == 0 || most <= low {
			t.Errorf("%s: %d windows of the low limit alone, at most %d passed in one: this shows nothing", path, windows, most)
		}
	}
}
