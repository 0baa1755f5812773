package node_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sluice/authapi"
	"sluice/node"
	"sluice/node/nodetest"
)

// generous is a cluster with admin listeners whose limits are no matter.
func generous(_ int, cfg *node.Config) {
	cfg.Admin.Listen = "127.0.0.1:0"
	cfg.Limits.Anonymous.Limit, cfg.Limits.User.Limit, cfg.Limits.APIKey.Limit = 1e6, 1e6, 1e6
	cfg.Plans = map[string]node.RuleConfig{"gold": {Limit: 5000, Window: node.Duration(time.Minute), Algorithm: "sliding_window"}}
}

// exchange sends JSON and decodes the answer into out, which may be nil; want is the status.
func exchange(t *testing.T, method, url, credential string, body, out any, want int) http.Header {
	t.Helper()
	status, header, text := tell(t, method, url, credential, body)
	if status != want {
		t.Fatalf("%s %s: %d %s, want %d", method, url, status, text, want)
	}
	if out != nil {
		if err := json.Unmarshal(text, out); err != nil {
			t.Fatalf("%s %s: %v", method, url, err)
		}
	}
	return header
}

func tell(t *testing.T, method, url, credential string, body any) (int, http.Header, []byte) {
	t.Helper()
	var content io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		content = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(bounded(t), method, url, content)
	if err != nil {
		t.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if credential != "" {
		req.Header.Set("Authorization", "Bearer "+credential)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return resp.StatusCode, resp.Header, text
}

// someone is a registered user.
type someone struct {
	ID, Name, Org, Token string
}

func signUp(t *testing.T, m *nodetest.Member, name string) someone {
	t.Helper()
	var a struct {
		User, Organization struct{ ID string }
		Token              string
	}
	exchange(t, "POST", publicURL(m)+"/api/v1/auth/register", "", map[string]string{
		"username": name, "email": name + "@example.com", "password": "a fine long password"}, &a, 201)
	return someone{ID: a.User.ID, Name: name, Org: a.Organization.ID, Token: a.Token}
}

func publicURL(m *nodetest.Member) string { return "http://" + m.Node.HTTPAddr().String() }

func adminURL(m *nodetest.Member) string { return "http://" + m.Node.AdminAddr().String() + "/v1" }

func TestAdminAccounts(t *testing.T) {
	t.Parallel()
	c := nodetest.Start(t, 3, nodetest.WithConfig(generous))
	first, second, third := c.Members[0], c.Members[1], c.Members[2]
	p := signUp(t, first, "anna")
	var key struct{ Key string }
	exchange(t, "POST", publicURL(second)+"/api/v1/api-keys", p.Token, map[string]any{
		"name": "k", "organization_id": p.Org, "scopes": []string{"organizations:read"}}, &key, 201)
	everywhere := func(credential string, want int) {
		t.Helper()
		for _, m := range c.Members {
			exchange(t, "GET", publicURL(m)+"/api/v1/auth/me", credential, nil, nil, want)
		}
	}
	everywhere(p.Token, 200)
	everywhere(key.Key, 200)

	// Each call at another node than the one before.
	var u authapi.OperatorUser
	exchange(t, "GET", adminURL(third)+"/users/anna", "", nil, &u, 200)
	if u.ID != p.ID || len(u.Organizations) != 1 || u.Organizations[0].ID != p.Org || u.DisabledAt != nil {
		t.Errorf("user: %+v", u)
	}
	exchange(t, "POST", adminURL(first)+"/users/anna@example.com/disable", "", node.UserStateRequest{Note: "why"}, &u, 200)
	if u.DisabledAt == nil {
		t.Errorf("disabled: %+v", u)
	}
	eventually401 := func(credential string) {
		t.Helper()
		for i, m := range c.Members {
			nodetest.WaitFor(t, fmt.Sprintf("a dead credential on node %d", i), func() error {
				if status, _, text := tell(t, "GET", publicURL(m)+"/api/v1/auth/me", credential, nil); status != 401 {
					return fmt.Errorf("%d %s", status, text)
				}
				return nil
			})
		}
	}
	eventually401(p.Token)
	eventually401(key.Key)
	exchange(t, "POST", adminURL(second)+"/users/"+p.ID+"/password", "", struct{}{}, nil, 409)
	exchange(t, "POST", adminURL(third)+"/users/"+p.ID+"/enable", "", struct{}{}, &u, 200)
	for _, m := range c.Members {
		nodetest.WaitFor(t, "a key that lives again", func() error {
			if status, _, text := tell(t, "GET", publicURL(m)+"/api/v1/auth/me", key.Key, nil); status != 200 {
				return fmt.Errorf("%d %s", status, text)
			}
			return nil
		})
	}
	eventually401(p.Token)

	var once authapi.OneTimePassword
	exchange(t, "POST", adminURL(second)+"/users/anna/password", "", struct{}{}, &once, 200)
	login := map[string]string{"username": "anna", "password": once.Password}
	exchange(t, "POST", publicURL(third)+"/api/v1/auth/login", "", login, nil, 403)
	login["new_password"] = "another fine password"
	var in struct{ Token string }
	exchange(t, "POST", publicURL(first)+"/api/v1/auth/login", "", login, &in, 200)
	exchange(t, "POST", publicURL(second)+"/api/v1/auth/login", "", login, nil, 401)
	everywhere(in.Token, 200)

	plan := "gold"
	var change authapi.PlanChange
	exchange(t, "POST", adminURL(third)+"/organizations/"+p.Org+"/plan", "", node.PlanRequest{Plan: &plan}, &change, 200)
	if change.Plan == nil || *change.Plan != plan {
		t.Errorf("plan: %+v", change)
	}
	for _, m := range c.Members {
		nodetest.WaitFor(t, "the plan's limit", func() error {
			_, header, _ := tell(t, "GET", publicURL(m)+"/api/v1/auth/me", key.Key, nil)
			if got := header.Get("X-RateLimit-Limit"); got != "5000" {
				return fmt.Errorf("limit %s", got)
			}
			return nil
		})
	}

	var page authapi.AuditPage
	exchange(t, "GET", adminURL(first)+"/audit?limit=100", "", nil, &page, 200)
	operators := map[string]bool{}
	for _, e := range page.Data {
		if e.Actor.Type == "operator" {
			operators[e.Event] = true
			if e.IP == nil || *e.IP != "127.0.0.1" {
				t.Errorf("event: %+v", e)
			}
		}
		if strings.Contains(fmt.Sprint(e), once.Password) {
			t.Errorf("a password is in the audit log: %+v", e)
		}
	}
	for _, name := range []string{"user.disabled", "user.enabled", "user.password_changed", "organization.plan_changed"} {
		if !operators[name] {
			t.Errorf("no event %s by an operator in %+v", name, page.Data)
		}
	}

	for _, test := range []struct {
		method, path string
		body         any
		status       int
		code         string
	}{
		{"GET", "/users/nobody", nil, 404, "not_found"},
		{"POST", "/users/nobody/disable", struct{}{}, 404, "not_found"},
		{"POST", "/users/anna/disable", map[string]string{"reason": "x"}, 400, "invalid_json"},
		{"POST", "/users/anna/disable", map[string]string{"note": strings.Repeat("x", 501)}, 422, "invalid_input"},
		{"GET", "/users/anna/disable", nil, 404, "not_found"},
		{"POST", "/organizations/" + p.Org + "/plan", struct{}{}, 422, "invalid_input"},
		{"POST", "/organizations/" + p.Org + "/plan", map[string]string{"plan": "lead"}, 422, "invalid_input"},
		{"POST", "/organizations/org_none/plan", map[string]string{"plan": "gold"}, 404, "not_found"},
		{"GET", "/audit?event=x", nil, 422, "invalid_input"},
	} {
		var problem node.AdminProblem
		exchange(t, test.method, adminURL(second)+test.path, "", test.body, &problem, test.status)
		if problem.Code != test.code || problem.Status != test.status {
			t.Errorf("%s %s: %+v, want %s", test.method, test.path, problem, test.code)
		}
	}
}

// Tokens of the key before a rotation verify on every node until they end; the new key signs on every node once it has
// been known for long enough.
func TestRotateSigningKey_OnAllNodes(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	clock := func(int) func() time.Time {
		return func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	}
	c := nodetest.Start(t, 3, nodetest.WithConfig(generous), nodetest.WithClock(clock))
	p := signUp(t, c.Members[0], "anna")
	var made authapi.RotatedKey
	exchange(t, "POST", adminURL(c.Members[c.Followers()[0]])+"/cluster/rotate-signing-key", "", struct{}{}, &made, 200)
	exchange(t, "POST", adminURL(c.Members[c.Followers()[1]])+"/cluster/rotate-signing-key", "", struct{}{}, nil, 409)
	// Published everywhere before it signs anywhere.
	for _, m := range c.Members {
		exchange(t, "GET", publicURL(m)+"/api/v1/auth/me", p.Token, nil, nil, 200)
		keys, err := m.Node.State().SigningKeys()
		if err != nil || len(keys) != 2 || keys[1].ID != made.ID {
			t.Errorf("keys: %d, %v", len(keys), err)
		}
	}
	// The clocks jump: limits are decided again once the leader has set a horizon for the new time.
	settle := func() {
		t.Helper()
		c.WaitReady()
		for _, m := range c.Members {
			nodetest.WaitFor(t, "a decision after the jump", func() error {
				if status, _, text := tell(t, "GET", publicURL(m)+"/api/v1/health", "", nil); status != 200 {
					return fmt.Errorf("%d %s", status, text)
				}
				return nil
			})
		}
	}
	ahead.Add(int64(2 * time.Minute))
	settle()
	header := ""
	for _, m := range c.Members {
		var in struct{ Token string }
		exchange(t, "POST", publicURL(m)+"/api/v1/auth/login", "", map[string]string{"username": "anna", "password": "a fine long password"}, &in, 200)
		now, _, _ := strings.Cut(in.Token, ".")
		if before, _, _ := strings.Cut(p.Token, "."); now == before || header != "" && now != header {
			t.Errorf("signed with another key than the new one")
		}
		header = now
		for _, other := range c.Members {
			exchange(t, "GET", publicURL(other)+"/api/v1/auth/me", in.Token, nil, nil, 200)
			exchange(t, "GET", publicURL(other)+"/api/v1/auth/me", p.Token, nil, nil, 200)
		}
	}
	ahead.Add(int64(59 * time.Minute)) // past the first token's end
	settle()
	for _, m := range c.Members {
		exchange(t, "GET", publicURL(m)+"/api/v1/auth/me", p.Token, nil, nil, 401)
	}
}
