package systemtest

import (
	"context"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// operate runs a command of an operator against one node; nodes count from 1.
func (c *cluster) operate(t *testing.T, node int, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append(args, "--config", filepath.Join(c.dir, fmt.Sprintf("node%d.toml", node)))...)
	cmd.Env = cleanEnvironment()
	var stdout, stderr lockedBuffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("sluice %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String()
}

// TestOperators_ChangesHoldEverywhere disables a user by one node's admin listener and sees how long the others honour the
// user's token and key.
func TestOperators_ChangesHoldEverywhere(t *testing.T) {
	c := sharedCluster(t)
	for turn := range len(c.urls) {
		origin := c.urls[turn]
		a := register(t, origin)
		key := a.newKey(t, origin, 1_000_000, "triggers:read")
		byToken := request{path: "/api/v1/auth/me", token: a.token, address: a.address}
		byKey := request{path: "/api/v1/triggers", key: key.secret, address: a.address}
		everywhere(t, c, byToken, http.StatusOK)
		everywhere(t, c, byKey, http.StatusOK)
		c.operate(t, turn+1, "user", "disable", a.username, "--note", "a test")
		changes(t, c, "a disabled user's key", byKey, http.StatusOK, http.StatusUnauthorized)
		changes(t, c, "a disabled user's token", byToken, http.StatusOK, http.StatusUnauthorized)

		other := turn%len(c.urls) + 1
		c.operate(t, other, "user", "enable", a.userID)
		for _, url := range c.urls {
			eventually(t, 5*time.Second, "the key works again", func() error {
				res, err := send(url, byKey)
				if err == nil && res.status != http.StatusOK {
					err = fmt.Errorf("%v", res)
				}
				return err
			})
			must(t, url, request{path: "/api/v1/auth/me", token: a.token, address: newAddress()}, http.StatusUnauthorized)
		}

		password, _, _ := strings.Cut(c.operate(t, other, "user", "set-password", a.username), "\n")
		body := map[string]any{"username": a.username, "password": password}
		must(t, origin, request{method: "POST", path: "/api/v1/auth/login", address: newAddress(), body: body}, http.StatusForbidden)
		body["new_password"] = "quite another password"
		must(t, origin, request{method: "POST", path: "/api/v1/auth/login", address: newAddress(), body: body}, http.StatusOK)

		// Of the users alone: what this test tried in vain from so many addresses fills more than a page.
		log := c.operate(t, other, "audit", "--organization", a.organization, "--event", "user.*")
		for _, event := range []string{"user.disabled operator:", "user.enabled operator:", "user.password_changed operator:", "user.password_changed user:"} {
			if !strings.Contains(log, event) {
				t.Errorf("no %q in\n%s", event, log)
			}
		}
	}
	// An access token outlives the rotation of the key that signed it.
	a := register(t, c.urls[0])
	if out := c.operate(t, 2, "cluster", "rotate-signing-key"); !strings.Contains(out, " signs from ") {
		t.Errorf("rotated: %s", out)
	}
	everywhere(t, c, request{path: "/api/v1/auth/me", token: a.token, address: a.address}, http.StatusOK)
}

// team is an organization of an owner with one more member.
type team struct {
	owner, member account
	id            string
}

func newTeam(t *testing.T, origin, role string) team {
	t.Helper()
	tm := team{owner: register(t, origin), member: register(t, origin)}
	tm.id = tm.owner.act(t, origin, "POST", "/api/v1/organizations", map[string]any{"name": "Team"}, http.StatusCreated).field(t, "id")
	tm.owner.act(t, origin, "POST", tm.path("/members"), map[string]any{"username": tm.member.username, "role": role}, http.StatusCreated)
	return tm
}

func (tm team) path(rest string) string { return "/api/v1/organizations/" + tm.id + rest }

func (a account) act(t *testing.T, base, method, path string, body any, status int) response {
	t.Helper()
	return must(t, base, request{method: method, path: path, token: a.token, address: a.address, body: body}, status)
}

// TestOrganizations_ChangesHoldEverywhere changes roles and memberships on one node and sees how long the others go by
// the old ones.
func TestOrganizations_ChangesHoldEverywhere(t *testing.T) {
	c := sharedCluster(t)
	for turn := range len(c.urls) {
		origin := c.urls[turn]

		tm := newTeam(t, origin, "admin")
		use := request{path: "/api/v1/api-keys?organization_id=" + tm.id, token: tm.member.token, address: tm.member.address}
		everywhere(t, c, use, http.StatusOK)
		tm.owner.act(t, origin, "PATCH", tm.path("/members/"+tm.member.userID), map[string]any{"role": "member"}, http.StatusOK)
		changes(t, c, "a role", use, http.StatusOK, http.StatusForbidden)

		tm = newTeam(t, origin, "viewer")
		use = request{path: tm.path(""), token: tm.member.token, address: tm.member.address}
		everywhere(t, c, use, http.StatusOK)
		tm.owner.act(t, origin, "DELETE", tm.path("/members/"+tm.member.userID), nil, http.StatusNoContent)
		changes(t, c, "a membership", use, http.StatusOK, http.StatusNotFound)

		tm = newTeam(t, origin, "viewer")
		use = request{path: "/api/v1/audit-logs?organization_id=" + tm.id + "&limit=1", token: tm.member.token, address: tm.member.address}
		everywhere(t, c, use, http.StatusForbidden)
		tm.owner.act(t, origin, "POST", tm.path("/transfer"), map[string]any{"user_id": tm.member.userID}, http.StatusOK)
		changes(t, c, "a transfer", use, http.StatusForbidden, http.StatusOK)
		for _, url := range c.urls {
			if role := tm.owner.act(t, url, "GET", tm.path(""), nil, http.StatusOK).field(t, "role"); role != "admin" {
				t.Errorf("the owner before is %s", role)
			}
		}

		tm = newTeam(t, origin, "viewer")
		secret := tm.owner.act(t, origin, "POST", "/api/v1/api-keys", map[string]any{
			"name": "k", "organization_id": tm.id, "scopes": []string{"triggers:read"},
			"rate_limit": map[string]any{"limit": 1_000_000, "window_seconds": 60}}, http.StatusCreated).field(t, "key")
		use = request{path: "/api/v1/triggers", key: secret, address: tm.owner.address}
		everywhere(t, c, use, http.StatusOK)
		tm.owner.act(t, origin, "DELETE", tm.path(""), nil, http.StatusNoContent)
		changes(t, c, "a deleted organization's key", use, http.StatusOK, http.StatusUnauthorized)

		a := register(t, origin)
		use = request{path: "/api/v1/auth/me", token: a.token, address: a.address}
		everywhere(t, c, use, http.StatusOK)
		a.act(t, origin, "DELETE", "/api/v1/auth/me", map[string]any{"password": a.password}, http.StatusNoContent)
		changes(t, c, "a deleted account's token", use, http.StatusOK, http.StatusUnauthorized)
	}
}

// TestLastOwner_TwoLeaveAtOnce has the two owners of an organization leave it at the same instant on two nodes: one stays.
func TestLastOwner_TwoLeaveAtOnce(t *testing.T) {
	c := sharedCluster(t)
	for range 4 {
		tm := newTeam(t, c.urls[0], "owner")
		statuses := make(chan int, 2)
		for i, a := range []account{tm.owner, tm.member} {
			go func() {
				res, err := send(c.urls[i+1], request{method: "DELETE", path: tm.path("/members/" + a.userID), token: a.token, address: a.address})
				if err != nil {
					t.Error(err)
				}
				statuses <- res.status
			}()
		}
		if sum := <-statuses + <-statuses; sum != http.StatusNoContent+http.StatusConflict {
			t.Errorf("statuses add up to %d, want one 204 and one 409", sum)
		}
	}
}
