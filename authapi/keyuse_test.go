package authapi_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sluice/authapi"
	"sluice/raftfsm/state"
)

func (e *edge) usage(key string) state.KeyUsage {
	e.t.Helper()
	list, err := e.cluster.KeyUsage(key)
	if err != nil {
		e.t.Fatal(err)
	}
	return list[0]
}

func TestKeyUsage_IsShown(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	k := e.createKey(p.token, p.org, "events:read")
	id, path := k["id"].(string), "/api/v1/api-keys/"+k["id"].(string)
	if k["last_used_at"] != nil || k["last_used_ip"] != nil || k["usage_count"] != 0.0 {
		t.Errorf("a new key: %v", k)
	}
	use := func(from string) {
		t.Helper()
		e.want(e.send("GET", "/api/v1/auth/me", k["key"].(string), nil, "X-Forwarded-For", from), 200, "")
	}
	use("192.0.2.1")
	use("2001:db8::7")
	e.clock.Advance(2 * time.Second)
	eventually(t, "the first uses are recorded", func() bool { return e.usage(id).Count == 2 })
	for _, query := range []string{path, "/api/v1/api-keys"} {
		a := e.send("GET", query, p.token, nil)
		e.want(a, 200, "")
		o := a.object(t)
		if list, ok := o["data"].([]any); ok {
			o = list[0].(object)
		}
		if o["last_used_at"] != "2026-03-04T05:06:07Z" || o["last_used_ip"] != "2001:db8::7" || o["usage_count"] != 2.0 {
			t.Errorf("%s: %v", query, o)
		}
	}
	// Within a minute: later uses are one write more.
	written := e.recorded(func() {
		for range 5 {
			use("192.0.2.9")
		}
		e.clock.Advance(30 * time.Second)
		e.srv.FlushKeyUses(t.Context())
		if got := e.usage(id); got.Count != 2 {
			t.Errorf("written again after 30 s: %+v", got)
		}
		e.clock.Advance(29 * time.Second)
		eventually(t, "later uses are recorded", func() bool { return e.usage(id).Count == 7 })
	})
	if len(written) != 1 || written[0].IP != "192.0.2.9" || written[0].Count != 5 {
		t.Errorf("written: %+v", written)
	}
}

// recorded is what is written of keys' uses while fn runs.
func (e *edge) recorded(fn func()) (uses []state.KeyUses) {
	e.t.Helper()
	var mu sync.Mutex
	e.cluster.SetOnPropose(func(cmd state.Command) (bool, error) {
		if c, ok := cmd.(state.RecordKeyUse); ok {
			mu.Lock()
			defer mu.Unlock()
			uses = append(uses, c.Keys...)
		}
		return false, nil
	})
	fn()
	e.cluster.SetOnPropose(nil)
	mu.Lock()
	defer mu.Unlock()
	return uses
}

func TestKeyUse_AllocatesNothing(t *testing.T) {
	e := newAccounts(t, nil)
	now := e.clock.Now()
	from := netip.MustParseAddr("2001:db8::1")
	e.srv.NoteKeyUse("key_a", from, now)
	if n := testing.AllocsPerRun(100, func() { e.srv.NoteKeyUse("key_a", from, now) }); n != 0 {
		t.Errorf("%v allocations for a key seen lately", n)
	}
}

func TestKeyUse_SurvivesAnOutage(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	k := e.createKey(p.token, p.org, "events:read")
	id := k["id"].(string)
	e.cluster.SetUnavailable(authapi.ErrUnavailable)
	e.send("GET", "/api/v1/auth/me", k["key"].(string), nil)
	e.clock.Advance(2 * time.Minute)
	e.srv.FlushKeyUses(t.Context())
	e.send("GET", "/api/v1/auth/me", k["key"].(string), nil)
	e.cluster.SetUnavailable(nil)
	e.clock.Advance(2 * time.Minute)
	eventually(t, "both uses are recorded after the outage", func() bool { return e.usage(id).Count == 2 })
}

func TestKeyUse_WrittenWhenTheServerStops(t *testing.T) {
	t.Parallel()
	cfg, cluster, _, clock := edgeConfig(nil)
	srv, err := authapi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cluster.PutKey(state.APIKey{ID: "key_a"})
	from := netip.MustParseAddr("192.0.2.1")
	for range 3 {
		srv.NoteKeyUse("key_a", from, clock.Now())
	}
	if err := srv.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	if u, _ := cluster.KeyUsage("key_a"); u[0].Count != 3 || u[0].LastIP != "192.0.2.1" {
		t.Errorf("usage %+v", u[0])
	}
}

// Three nodes see uses of the same keys. What is in the state is never a minute behind, every use is counted once, and a
// key is written about once a minute, whichever nodes it is used on.
func TestKeyUse_OneWriteAMinuteOverAllNodes(t *testing.T) {
	t.Parallel()
	cfg, cluster, _, clock := edgeConfig(nil)
	var mu sync.Mutex
	writes := map[string]int{}
	cluster.SetOnPropose(func(cmd state.Command) (bool, error) {
		if c, ok := cmd.(state.RecordKeyUse); ok {
			mu.Lock()
			defer mu.Unlock()
			for _, k := range c.Keys {
				writes[k.KeyID]++
			}
		}
		return false, nil
	})
	var nodes []*authapi.Server
	for range 3 {
		srv, err := authapi.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := srv.Shutdown(context.Background()); err != nil {
				t.Error(err)
			}
		})
		nodes = append(nodes, srv)
	}
	// How often a key is used on each node, in steps of half a second; 0: never.
	every := map[string][3]int{
		"key_busy": {1, 1, 1}, "key_uneven": {1, 7, 200}, "key_one": {1, 0, 0}, "key_rare": {90, 130, 0}, "key_two": {0, 3, 3},
	}
	uses, times := map[string]int64{}, map[string][]int64{}
	for id := range every {
		cluster.PutKey(state.APIKey{ID: id, Hash: []byte(id)})
	}
	from := netip.MustParseAddr("192.0.2.1")
	const minutes = 30
	for step := range minutes * 120 {
		now := clock.Now()
		for id, rates := range every {
			for i, rate := range rates {
				if rate != 0 && step%rate == 0 {
					nodes[i].NoteKeyUse(id, from, now)
					uses[id]++
					times[id] = append(times[id], now.UnixMilli())
				}
			}
		}
		for _, n := range nodes {
			n.FlushKeyUses(t.Context())
		}
		for id := range every {
			u, _ := cluster.KeyUsage(id)
			// Every use of a minute ago is known, or a later one.
			for len(times[id]) > 0 && times[id][0] <= now.Add(-time.Minute).UnixMilli() {
				if times[id][0] > u[0].LastAt {
					t.Fatalf("%s: a use is not recorded after a minute, at step %d", id, step)
				}
				times[id] = times[id][1:]
			}
		}
		clock.Advance(500 * time.Millisecond)
	}
	for id := range every {
		if n := writes[id]; n > minutes*3/2 {
			t.Errorf("%s: %d writes in %d minutes", id, n, minutes)
		}
	}
	t.Logf("writes in %d minutes: %v", minutes, writes)
	clock.Advance(20 * time.Minute)
	eventually(t, "every use is counted", func() bool {
		for id := range every {
			if u, _ := cluster.KeyUsage(id); u[0].Count != uses[id] {
				return false
			}
		}
		return true
	})
}

func TestListKeys_Filters(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	create := func(credential string, body object) object {
		t.Helper()
		body["organization_id"] = p.org
		a := e.send("POST", "/api/v1/api-keys", credential, body)
		e.want(a, 201, "")
		return a.object(t)
	}
	maker := create(p.token, object{"name": "Maker", "scopes": []string{"*"}})
	create(p.token, object{"name": "reader", "scopes": []string{"events:read"}, "environment": "test"})
	create(p.token, object{"name": "Short reader", "scopes": []string{"events:*", "triggers:read"}, "expires_at": "2026-03-04T05:10:00Z"})
	create(maker["key"].(string), object{"name": "made", "scopes": []string{"triggers:write"}})
	e.clock.Advance(10 * time.Minute)
	list := func(query string) string {
		t.Helper()
		a := e.send("GET", "/api/v1/api-keys?organization_id="+p.org+query, p.token, nil)
		e.want(a, 200, "")
		var got []string
		for _, k := range a.object(t)["data"].([]any) {
			got = append(got, k.(object)["name"].(string))
		}
		return strings.Join(got, ",")
	}
	for query, want := range map[string]string{
		"":                                      "Maker,reader,Short reader,made",
		"&environment=test":                     "reader",
		"&environment=live":                     "Maker,Short reader,made",
		"&name=READER":                          "reader,Short reader",
		"&name=m":                               "Maker,made",
		"&created_by=" + p.id:                   "Maker,reader,Short reader",
		"&created_by=" + maker["id"].(string):   "made",
		"&created_by=usr_none":                  "",
		"&scope=events:read":                    "Maker,reader,Short reader",
		"&scope=events:*":                       "Maker,Short reader",
		"&scope=*":                              "Maker",
		"&expired=true":                         "Short reader",
		"&expired=false":                        "Maker,reader,made",
		"&expired=false&scope=triggers:write":   "Maker,made",
		"&name=reader&environment=test&limit=1": "reader",
	} {
		if got := list(query); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	for query, field := range map[string]string{
		"&environment=prod": "environment", "&expired=yes": "expired", "&expired=1": "expired", "&scope=nothing:read": "scope", "&scope=x": "scope",
		"&created_by=a%20b": "created_by", "&name=" + strings.Repeat("x", 401): "name",
	} {
		if f := e.fields(e.send("GET", "/api/v1/api-keys?organization_id="+p.org+query, p.token, nil)); !f[field] {
			t.Errorf("%s: errors in %v", query, f)
		}
	}
	// A stranger learns nothing from what is wrong with a filter.
	e.want(e.send("GET", "/api/v1/api-keys?organization_id="+p.org+"&expired=yes", e.register().token, nil), 404, "not_found")
	// Pages of a filtered list leave nothing out and repeat nothing.
	for i := range 230 {
		create(p.token, object{"name": fmt.Sprintf("page %d", i), "scopes": []string{[]string{"events:read", "limits:check"}[i%2]}})
	}
	var got []string
	cursor := ""
	for range 100 {
		a := e.send("GET", "/api/v1/api-keys?name=page&scope=limits:check&limit=9&organization_id="+p.org+cursor, p.token, nil)
		e.want(a, 200, "")
		for _, k := range a.object(t)["data"].([]any) {
			got = append(got, k.(object)["id"].(string))
		}
		next, ok := a.object(t)["next_cursor"].(string)
		if !ok {
			break
		}
		cursor = "&cursor=" + next
	}
	if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != 115 || len(got) != 115 {
		t.Errorf("pages gave %d keys, want 115", len(got))
	}
}

func TestKeyStats(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	for i := range 205 {
		k := state.APIKey{ID: fmt.Sprintf("key_%03d", i), OrganizationID: p.org, Hash: []byte{byte(i), byte(i >> 8)}, Environment: []string{"live", "test"}[i%2], CreatedAt: 1}
		if i < 3 {
			k.ExpiresAt = start.UnixMilli()
		}
		e.cluster.PutKey(k)
	}
	if _, err := e.cluster.Propose(t.Context(), [16]byte{9}, state.RecordKeyUse{Keys: []state.KeyUses{
		{KeyID: "key_001", At: start.Add(-48 * time.Hour).UnixMilli(), Count: 5}, {KeyID: "key_204", At: start.Add(-time.Hour).UnixMilli(), Count: 7},
	}}); err != nil {
		t.Fatal(err)
	}
	path := "/api/v1/organizations/" + p.org + "/api-keys/stats"
	a := e.send("GET", path, p.token, nil)
	e.want(a, 200, "")
	want := `{"organization_id":"` + p.org + `","keys":205,"live":103,"test":102,"expired":3,"never_used":203,"used_last_day":1,"usage_count":12,` +
		`"last_used_at":"2026-03-04T04:06:07Z","complete":true}`
	if a.body != want {
		t.Errorf("stats %s, want %s", a.body, want)
	}
	member, stranger := e.register(), e.register()
	e.join(member, p.org, state.RoleMember)
	e.want(e.send("GET", path, member.token, nil), 403, "forbidden")
	e.want(e.send("GET", path, stranger.token, nil), 404, "not_found")
	e.want(e.send("GET", path, "", nil), 401, "authentication_required")
	e.want(e.send("GET", path, e.createKey(p.token, p.org, "events:read")["key"].(string), nil), 403, "insufficient_scope")
	e.want(e.send("GET", path, e.createKey(p.token, p.org, "api-keys:manage")["key"].(string), nil), 200, "")
}
