package authapi_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"sluice/raftfsm/state"
)

// fill puts n events of an organization into the log.
func (e *edge) fill(org string, n int) {
	e.t.Helper()
	for i := 0; i < n; i += 100 {
		var events []state.AuditEvent
		for j := i; j < min(i+100, n); j++ {
			events = append(events, state.AuditEvent{ID: fmt.Sprintf("evt_z%06d", j), OrganizationID: org, Event: []string{"test.even", "test.odd"}[j%2],
				ActorType: "system", Result: "success", At: start.UnixMilli(), Detail: []state.Pair{{Name: "text", Value: strings.Repeat("x", 200)}}})
		}
		if _, err := e.cluster.Propose(e.t.Context(), [16]byte{byte(i >> 8), byte(i), 7}, state.AppendAudit{Events: events}); err != nil {
			e.t.Fatal(err)
		}
	}
}

func lines(t *testing.T, a answer) (events []object) {
	t.Helper()
	if ct := a.header.Get("Content-Type"); a.status != 200 || ct != "application/x-ndjson" || a.header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %v %.200s", a.status, a.header, a.body)
	}
	for line := range strings.Lines(a.body) {
		var o object
		if err := json.Unmarshal([]byte(line), &o); err != nil || !strings.HasSuffix(line, "\n") {
			t.Fatalf("line %q: %v", line, err)
		}
		events = append(events, o)
	}
	return events
}

func TestAuditExport(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p, member := e.register(), e.register()
	e.join(member, p.org, state.RoleMember)
	const n = 1234
	e.fill(p.org, n)
	path := "/api/v1/audit-logs?organization_id=" + p.org
	a := e.send("GET", path+"&format=ndjson", p.token, nil)
	got := lines(t, a)
	wantHeaders(t, a)
	if len(got) != n+3 || got[0]["id"] != fmt.Sprintf("evt_z%06d", n-1) || got[n+2]["event"] != "user.registered" {
		t.Errorf("%d events, from %v to %v", len(got), got[0], got[len(got)-1])
	}
	// A line is what an element of a page is.
	page := e.events(p.token, "?limit=1&organization_id="+p.org)
	if encode(page[0]) != encode(got[0]) {
		t.Errorf("a line %v, an element %v", got[0], page[0])
	}
	for _, accept := range []string{"application/x-ndjson", "text/html, application/x-ndjson;q=0.5, */*"} {
		if list := lines(t, e.send("GET", path+"&event=test.odd&limit=1", p.token, nil, "Accept", accept)); len(list) != n/2 {
			t.Errorf("%s: %d odd events, want %d", accept, len(list), n/2)
		}
	}
	first := e.send("GET", path+"&limit=200", p.token, nil).object(t)
	rest := lines(t, e.send("GET", path+"&format=ndjson&cursor="+first["next_cursor"].(string), p.token, nil))
	if len(rest) != n+3-200 {
		t.Errorf("%d events after the first page", len(rest))
	}
	if list := lines(t, e.send("GET", path+"&format=ndjson&event=nothing.happened", p.token, nil)); len(list) != 0 {
		t.Errorf("%d events of nothing", len(list))
	}
	// Pages, where lines are not asked for, or turned down.
	for _, accept := range []string{"", "*/*", "application/json", "application/x-ndjson; q=0"} {
		if a := e.send("GET", path, p.token, nil, "Accept", accept); a.header.Get("Content-Type") != "application/json" {
			t.Errorf("Accept %q: %v", accept, a.header)
		}
	}
	if a := e.send("GET", path+"&format=json", p.token, nil, "Accept", "application/x-ndjson"); a.header.Get("Content-Type") != "application/json" {
		t.Errorf("format=json: %v", a.header)
	}
	if f := e.fields(e.send("GET", path+"&format=csv", p.token, nil)); !f["format"] {
		t.Errorf("errors in %v", f)
	}
	if f := e.fields(e.send("GET", path+"&format=ndjson&result=good", p.token, nil)); !f["result"] {
		t.Errorf("errors in %v", f)
	}
	e.want(e.send("GET", path+"&format=ndjson", member.token, nil), 403, "forbidden")
	e.want(e.send("GET", path+"&format=ndjson", e.register().token, nil), 404, "not_found")
	head := e.send("HEAD", path+"&format=ndjson", p.token, nil)
	if head.status != 200 || head.header.Get("Content-Type") != "application/x-ndjson" {
		t.Errorf("HEAD: %d %v", head.status, head.header)
	}
	eventually(t, "no export is left", func() bool { return e.srv.Exports() == 0 })
}

// slowExport begins an export and reads its first line.
func (e *edge) slowExport(credential, org string) (*http.Response, *bufio.Reader) {
	e.t.Helper()
	req, err := http.NewRequest("GET", "http://"+e.addr+"/api/v1/audit-logs?format=ndjson&organization_id="+org, nil)
	if err != nil {
		e.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+credential)
	resp, err := e.http.Do(req)
	if err != nil {
		e.t.Fatal(err)
	}
	r := bufio.NewReader(resp.Body)
	if resp.StatusCode == 200 {
		if _, err := r.ReadString('\n'); err != nil {
			e.t.Fatal(err)
		}
	}
	return resp, r
}

// Whoever takes the log slowly costs a page and a place, both of which come back when he leaves; and a credential that is
// revoked meanwhile reads no further.
func TestAuditExport_SlowClients(t *testing.T) {
	t.Parallel()
	e := newAccounts(t, nil)
	p := e.register()
	e.fill(p.org, 30_000) // some 12 MB: more than the sockets hold
	var open []*http.Response
	for range 2 {
		resp, _ := e.slowExport(p.token, p.org)
		open = append(open, resp)
	}
	resp, r := e.slowExport(p.token, p.org)
	body, err := io.ReadAll(r)
	if err := resp.Body.Close(); err != nil {
		t.Error(err)
	}
	if resp.StatusCode != 503 || err != nil || !strings.Contains(string(body), "overloaded") {
		t.Errorf("one more: %d %s %v", resp.StatusCode, body, err)
	}
	q := e.register() // others have places of their own
	lines(t, e.send("GET", "/api/v1/audit-logs?format=ndjson", q.token, nil))
	for _, resp := range open {
		if err := resp.Body.Close(); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "all places are free", func() bool { return e.srv.Exports() == 0 })

	key := e.createKey(p.token, p.org, "audit-logs:read")
	session := e.login(p)["token"].(string)
	for _, c := range []struct {
		name, credential string
		end              func() answer
	}{
		{"key", key["key"].(string), func() answer { return e.send("DELETE", "/api/v1/api-keys/"+key["id"].(string), p.token, nil) }},
		{"session", session, func() answer { return e.send("POST", "/api/v1/auth/logout", session, nil) }},
	} {
		resp, r := e.slowExport(c.credential, p.org)
		e.want(c.end(), 204, "")
		n, err := io.Copy(io.Discard, r)
		if err == nil {
			t.Errorf("%s: the whole log after the credential's end, %d bytes", c.name, n)
		}
		if err := resp.Body.Close(); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "no export is left", func() bool { return e.srv.Exports() == 0 })
	// One that only changes beside it goes on.
	resp, r = e.slowExport(p.token, p.org)
	e.createKey(p.token, p.org, "events:read")
	e.clock.Advance(time.Second)
	count := 1
	for {
		if _, err := r.ReadString('\n'); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		count++
	}
	if count < 30_000 {
		t.Errorf("%d lines", count)
	}
	if err := resp.Body.Close(); err != nil {
		t.Error(err)
	}
}
