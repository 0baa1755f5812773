package systemtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"sluice/node"
)

// limits runs `sluice limits` against a node, counted from 1, and wants it to succeed.
func limits(t *testing.T, c *cluster, at int, args ...string) string {
	t.Helper()
	cmd := exec.Command(binary, append(append([]string{"limits"}, args...), "--admin", nodeSetting(t, c, at, "admin"))...)
	cmd.Env = cleanEnvironment()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("sluice limits %v: %v\n%s", args, err, &stderr)
	}
	return stdout.String()
}

// explained is one policy of `sluice limits explain --output json`.
func explained(t *testing.T, c *cluster, at int, subject, policy string) node.PolicyExplained {
	t.Helper()
	var out node.LimitsExplained
	if err := json.Unmarshal([]byte(limits(t, c, at, "explain", subject, "--output", "json")), &out); err != nil {
		t.Fatal(err)
	}
	for _, p := range out.Policies {
		if p.Policy == policy {
			if len(p.Nodes) != len(c.urls) || !p.Complete {
				t.Fatalf("not all nodes answered: %+v", p)
			}
			return p
		}
	}
	t.Fatalf("no policy %s in %+v", policy, out)
	return node.PolicyExplained{}
}

// pass sends count requests round the nodes and says how many each let through.
func pass(t *testing.T, c *cluster, r request, count int) (each []int, all int) {
	t.Helper()
	each = make([]int, len(c.urls))
	for i := range count {
		res, err := send(c.urls[i%len(c.urls)], r)
		if err != nil {
			t.Fatal(err)
		}
		switch res.status {
		case http.StatusOK:
			each[i%len(c.urls)]++
			all++
		case http.StatusTooManyRequests:
		default:
			t.Fatalf("got %v", res)
		}
	}
	return each, all
}

// TestLimits_ExplainAndReset spends a key's limit on all nodes, has it explained and reset by others, and holds what was
// said against what then happens.
func TestLimits_ExplainAndReset(t *testing.T) {
	const limit, window = 30, 20 * time.Second
	c := sharedCluster(t)
	a := register(t, c.urls[0])
	res := must(t, c.urls[1], request{method: "POST", path: "/api/v1/api-keys", token: a.token, address: a.address, body: map[string]any{
		"name": unique("key"), "organization_id": a.organization, "scopes": []string{"triggers:read"},
		"rate_limit": map[string]any{"limit": limit, "window_seconds": int(window / time.Second)},
	}}, http.StatusCreated)
	key := apiKey{id: res.field(t, "id"), secret: res.field(t, "key")}
	r := request{path: "/api/v1/triggers", key: key.secret, address: a.address}
	if left := time.Until(time.Now().Truncate(window).Add(window)); left < 12*time.Second {
		<-time.After(left)
	}
	began := time.Now().Truncate(window)

	if _, all := pass(t, c, r, 3*limit); all != limit {
		t.Fatalf("%d of %d passed", all, limit)
	}
	p := explained(t, c, 2, key.id, "api_key")
	var used, share node.Units
	for _, n := range p.Nodes {
		used, share = used+n.Used, share+n.Share
		if n.LastRefusal == nil {
			t.Errorf("%s remembers no refusal", n.Node)
		}
	}
	if used != limit*1000 || share != limit*1000 || p.Used != used || p.Remaining != 0 || p.Generation != 0 || p.Source != "the key's own limit" {
		t.Errorf("explained: %+v", p)
	}
	if p.LastRefusal == nil || p.LastRefusal.Reason != "used_up" && p.LastRefusal.Reason != "waited_in_vain" {
		t.Errorf("last refusal: %+v", p.LastRefusal)
	}
	if p.NextPass == nil || p.NextPass.Before(began.Add(window)) {
		t.Errorf("the next request passes at %v, says %+v", p.NextPass, p)
	}
	if other := explained(t, c, 3, key.secret, "api_key"); other.Bucket != p.Bucket || other.Used != p.Used {
		t.Errorf("by its secret: %+v", other)
	}
	if other := explained(t, c, 1, p.Bucket, ""); other.Used != p.Used || other.Limit != limit {
		t.Errorf("by its bucket: %+v", other)
	}
	text := limits(t, c, 1, "explain", key.id)
	for _, want := range []string{"api_key " + key.id + " of " + a.organization, "policy api_key: 30 in 20s, sliding_window (the key's own limit)", "30 used, 0 left", "last refused"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, key.secret[8:]) {
		t.Errorf("the key itself is in\n%s", text)
	}

	if text := limits(t, c, 3, "reset", key.id); !strings.Contains(text, "reset: api_key, 30 in 20s") {
		t.Errorf("reset says\n%s", text)
	}
	each, all := pass(t, c, r, 3*limit)
	if all != limit || each[0] == 0 || each[1] == 0 || each[2] == 0 {
		t.Errorf("after the reset %d of %d passed, %v by node", all, limit, each)
	}
	p = explained(t, c, 2, key.id, "api_key")
	if p.Generation == 0 || p.Used != limit*1000 || p.NextPass == nil {
		t.Fatalf("after the reset: %+v", p)
	}
	if now := time.Now().Truncate(window); now != began {
		t.Fatalf("the machine is too slow for this test: it took longer than a window of %v", window)
	}

	// The time that was named holds: nothing passes before it, and then something does.
	<-time.After(time.Until(p.NextPass.Add(-200 * time.Millisecond)))
	for i := 0; ; i++ {
		asked := time.Now()
		res, err := send(c.urls[i%len(c.urls)], r)
		if err != nil {
			t.Fatal(err)
		}
		if res.status == http.StatusOK {
			if time.Now().Before(*p.NextPass) {
				t.Errorf("a request passed before %v", p.NextPass)
			}
			break
		}
		if asked.After(p.NextPass.Add(time.Second)) {
			t.Fatalf("nothing passed in the second after %v", p.NextPass)
		}
	}

	events := must(t, c.urls[0], request{path: "/api/v1/audit-logs?event=limit.reset&organization_id=" + a.organization, token: a.token, address: a.address}, http.StatusOK)
	var log struct {
		Data []struct {
			Actor, Subject struct{ Type, ID string }
			Detail         map[string]string
		}
	}
	if err := json.Unmarshal(events.body, &log); err != nil || len(log.Data) != 1 || log.Data[0].Actor.Type != "operator" || log.Data[0].Subject.ID != key.id || log.Data[0].Detail["policies"] != "api_key" {
		t.Errorf("audit: %v, %v", err, events)
	}
}

// TestLimits_AddressExplained looks at an address, by IPv4 and, as one network, by IPv6.
func TestLimits_AddressExplained(t *testing.T) {
	c := sharedCluster(t)
	for _, address := range []string{newAddress(), fmt.Sprintf("2001:db8:%x::7", time.Now().UnixNano()&0xffff)} {
		roomInMinute(t, windowRoom)
		r := request{path: "/api/v1/triggers", address: address}
		if _, all := pass(t, c, r, 30); all != 10 {
			t.Fatalf("%d of 10 passed", all)
		}
		if p := explained(t, c, 2, address, "anonymous"); p.Used != 10_000 || p.Remaining != 0 {
			t.Errorf("%s: %+v", address, p)
		}
		if p := explained(t, c, 2, address, "documents"); p.Used != 0 || p.Remaining != 600 {
			t.Errorf("%s: %+v", address, p)
		}
		limits(t, c, 1, "reset", address, "--policy", "anonymous")
		if _, all := pass(t, c, r, 30); all != 10 {
			t.Errorf("%d of 10 passed after the reset", all)
		}
	}
}
