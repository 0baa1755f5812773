package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestAccountCommands_CallTheAdminAPI runs each command against a listener that notes what it was asked.
func TestAccountCommands_CallTheAdminAPI(t *testing.T) {
	t.Parallel()
	const user = `{"id":"usr_1","username":"ada","email":"ada@example.com","created_at":"2026-01-02T03:04:05Z","has_password":true,
		"disabled_at":"2026-02-02T03:04:05Z","organizations":[{"id":"org_1","name":"Team","personal":false,"plan":"gold","role":"owner"}]}`
	const event = `{"id":"evt_1","event":"user.disabled","organization_id":"org_1","actor":{"type":"operator","id":null},
		"subject":{"type":"user","id":"usr_1"},"result":"success","ip":"10.0.0.9","at":"2026-01-02T03:04:05Z","detail":{}}`
	for _, test := range []struct {
		args   []string
		call   string // method, path, query and body that the listener has to get; "" for none
		answer string
		code   int
		stdout string
		stderr string
	}{
		{[]string{"user", "show", "ada@example.com"}, "GET /v1/users/ada@example.com ", user, exitDone, "usr_1 ada <ada@example.com>, made 2026-01-02T03:04:05Z, with a password, disabled since 2026-02-02T03:04:05Z\n", ""},
		{[]string{"user", "show", "ada"}, "GET /v1/users/ada ", user, exitDone, "org_1         owner  no        gold  Team\n", ""},
		{[]string{"user", "disable", "a/b?c", "--note", "left"}, `POST /v1/users/a%2Fb%3Fc/disable {"note":"left"}`, user, exitDone, "usr_1 ada: disabled\n", ""},
		{[]string{"user", "enable", "ada"}, `POST /v1/users/ada/enable {}`, user, exitDone, "usr_1 ada: enabled\n", ""},
		{[]string{"user", "set-password", "ada"}, `POST /v1/users/ada/password {}`, `{"username":"ada","password":"aaaaa-bbbbb","expires_at":"soon"}`, exitDone, "aaaaa-bbbbb\nada signs in with it once, until soon", ""},
		{[]string{"user", "set-password", "ada", "--output", "json"}, `POST /v1/users/ada/password {}`, `{"password":"aaaaa-bbbbb"}`, exitDone, `"password": "aaaaa-bbbbb"`, ""},
		{[]string{"user", "show", ".."}, "", "", exitUsage, "", "is no user"},
		{[]string{"user", "show", ""}, "", "", exitUsage, "", "is no user"},
		{[]string{"org", "set-plan", "org_1", "gold"}, `POST /v1/organizations/org_1/plan {"plan":"gold"}`, `{"organization_id":"org_1","plan":"gold"}`, exitDone, "org_1: plan gold\n", ""},
		{[]string{"org", "set-plan", "org_1", "--none"}, `POST /v1/organizations/org_1/plan {"plan":""}`, `{"organization_id":"org_1","plan":null}`, exitDone, "org_1: plan -\n", ""},
		{[]string{"org", "set-plan", "org_1"}, "", "", exitUsage, "", "give a plan, or --none"},
		{[]string{"org", "set-plan", "org_1", "gold", "--none"}, "", "", exitUsage, "", "give a plan, or --none"},
		{[]string{"cluster", "keyring", "list"}, "GET /v1/cluster/keyring ", `{"version":1,"primary":"aa","keys":[{"id":"aa","primary":true,"installed_at":null,"installed_on":2,"used_by":1}],"nodes":[{},{},{}],"notes":["nod_1: goes by version 0"]}`, exitFailed, "aa   yes     with the cluster  2 of 3    1 of 3\n! nod_1: goes by version 0\n", "1 of 3 nodes do not go by this keyring"},
		{[]string{"cluster", "keyring", "install"}, "POST /v1/cluster/keyring/install {}", `{"key":"bb","changed":true}`, exitDone, "bb is installed", ""},
		{[]string{"cluster", "keyring", "install", "--key-file", "testdata/none"}, "", "", exitUsage, "", "--key-file: open testdata/none"},
		{[]string{"cluster", "keyring", "install", "--key-file", "-"}, "", "", exitUsage, "", "there is no standard input"},
		{[]string{"cluster", "keyring", "use", "bb"}, `POST /v1/cluster/keyring/use {"key":"bb"}`, `{"key":"bb","changed":true,"notes":["nod_1: does not answer"]}`, exitDone, "! nod_1: does not answer\n", ""},
		{[]string{"cluster", "keyring", "remove", "aa"}, `POST /v1/cluster/keyring/remove {"key":"aa"}`, `{"status":409,"code":"conflict","detail":"the key is in use"}`, exitFailed, "", "conflict: the key is in use"},
		{[]string{"cluster", "keyring", "use", "slsec_abc"}, "", "", exitUsage, "", "this looks like a key itself"},
		{[]string{"cluster", "rotate-signing-key"}, `POST /v1/cluster/rotate-signing-key {}`, `{"id":"kid","algorithm":"HS256","signs_from":"soon"}`, exitDone, "kid (HS256) signs from soon;", ""},
		{[]string{"audit", "--event", "user.*", "--limit", "5"}, "GET /v1/audit?event=user.%2A&limit=5 ", `{"data":[` + event + `],"next_cursor":null}`, exitDone, "2026-01-02T03:04:05Z success user.disabled operator:- -> user:usr_1 org_1 10.0.0.9\n", ""},
		{[]string{"audit", "--output", "json"}, "GET /v1/audit?limit=100 ", `{"data":[` + event + `,` + event + `],"next_cursor":null}`, exitDone, `"event":"user.disabled"`, ""},
		{[]string{"audit", "--limit", "0"}, "", "", exitUsage, "", "--limit: want 1 to 100000"},
		{[]string{"user", "disable", "ada"}, `POST /v1/users/ada/disable {}`, `{"status":404,"code":"not_found","detail":"there is no such user"}`, exitFailed, "", "not_found: there is no such user"},
		{[]string{"org", "set-plan", "org_1", "x"}, `POST /v1/organizations/org_1/plan {"plan":"x"}`, `{"status":422,"code":"invalid_input","detail":"plan is no plan"}`, exitUsage, "", "plan is no plan"},
	} {
		got := ""
		address := adminOf(t, func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			got = r.Method + " " + r.RequestURI + " " + string(body)
			if strings.HasPrefix(test.answer, `{"status":`) {
				w.Header().Set("Content-Type", "application/problem+json")
				w.WriteHeader(http.StatusTeapot)
			}
			fmt.Fprint(w, test.answer)
		})
		stdout, stderr, code := program(t, nil, append(test.args, "--admin", address)...)
		if got != test.call || code != test.code || !strings.Contains(stdout, test.stdout) || !strings.Contains(stderr, test.stderr) {
			t.Errorf("%v: called %q, want %q; code %d, want %d; standard output %q, want %q; standard error %q, want %q",
				test.args, got, test.call, code, test.code, stdout, test.stdout, stderr, test.stderr)
		}
	}
}

func TestAudit_FollowsThePages(t *testing.T) {
	t.Parallel()
	var calls []string
	address := adminOf(t, func(w http.ResponseWriter, r *http.Request) {
		calls = append(calls, r.URL.Query().Get("limit")+" "+r.URL.Query().Get("cursor"))
		event := `{"event":"a.b","actor":{"type":"user"},"subject":{"type":"user"}}`
		switch len(calls) {
		case 1:
			fmt.Fprintf(w, `{"data":[%s],"next_cursor":"one"}`, event+strings.Repeat(","+event, 199))
		case 2: // a page may be empty and not the last
			fmt.Fprint(w, `{"data":[],"next_cursor":"two"}`)
		default:
			fmt.Fprintf(w, `{"data":[%s],"next_cursor":"three"}`, event+strings.Repeat(","+event, 49))
		}
	})
	stdout, stderr, code := program(t, nil, "audit", "--limit", "250", "--admin", address)
	if lines := strings.Count(stdout, "\n"); code != exitDone || lines != 250 || strings.Join(calls, ",") != "200 ,50 one,50 two" {
		t.Errorf("code %d, %d lines, calls %q, %s", code, lines, calls, stderr)
	}
}
