package node

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAdminAccess_WhoMayCall(t *testing.T) {
	t.Parallel()
	secret := NewSecret()
	without := accessOf(t, AdminConfig{LocalRole: "operate"})
	with := accessOf(t, AdminConfig{LocalRole: "operate", Token: Secret(secret)})
	for _, test := range []struct {
		name, peer, host, header, value string
		none, set                       int // status without a token configured and with one; 0: may call
	}{
		{"this machine", "127.0.0.1:5", "127.0.0.1:7102", "", "", 0, 0},
		{"this machine by name", "127.0.0.1:5", "localhost:7102", "", "", 0, 0},
		{"this machine, IPv6", "[::1]:5", "[::1]:7102", "", "", 0, 0},
		{"this machine, mapped", "[::ffff:127.0.0.1]:5", "127.0.0.1", "", "", 0, 0},
		{"elsewhere", "10.0.0.9:5", "10.0.0.1:7102", "", "", 403, 401},
		{"elsewhere with the token", "10.0.0.9:5", "10.0.0.1:7102", "Authorization", "Bearer " + secret, 401, 0},
		{"scheme in lower case", "10.0.0.9:5", "10.0.0.1:7102", "Authorization", "bearer " + secret, 401, 0},
		{"a wrong token from this machine", "127.0.0.1:5", "127.0.0.1", "Authorization", "Bearer no", 401, 401},
		{"the token cut short", "10.0.0.9:5", "10.0.0.1", "Authorization", "Bearer " + secret[:20], 401, 401},
		{"another scheme", "10.0.0.9:5", "10.0.0.1", "Authorization", "Basic " + secret, 401, 401},
		{"behind a proxy on this machine", "127.0.0.1:5", "127.0.0.1", "X-Forwarded-For", "203.0.113.4", 403, 401},
		{"behind a proxy of RFC 7239", "127.0.0.1:5", "127.0.0.1", "Forwarded", "for=203.0.113.4", 403, 401},
		{"a page in a browser", "127.0.0.1:5", "127.0.0.1", "Origin", "https://example.com", 403, 401},
		{"a name that leads here", "127.0.0.1:5", "rebound.example.com:7102", "", "", 403, 401},
		{"no address", "pipe", "127.0.0.1", "", "", 403, 401},
	} {
		r := httptest.NewRequest(http.MethodGet, "/v1/cluster", nil)
		r.RemoteAddr, r.Host = test.peer, test.host
		if test.header != "" {
			r.Header.Set(test.header, test.value)
		}
		for _, c := range []struct {
			access *adminAccess
			want   int
		}{{without, test.none}, {with, test.set}} {
			got := 0
			if p := c.access.check(r, adminOperate); p != nil {
				got = p.Status
				if strings.Contains(p.Detail, secret[:10]) {
					t.Errorf("%s: the token is in the answer", test.name)
				}
			}
			if got != c.want {
				t.Errorf("%s, token set %t: got %d, want %d", test.name, c.access == with, got, c.want)
			}
		}
	}
}

func TestAdminChange_Bodies(t *testing.T) {
	t.Parallel()
	type input struct {
		Node string `json:"node"`
	}
	a := &adminServer{node: &Node{log: slog.New(slog.DiscardHandler)}, access: accessOf(t, AdminConfig{LocalRole: "operate"})}
	mux := http.NewServeMux()
	calls := make(chan input, 1)
	a.serveRoutes(mux, append(a.routes(), adminRoute{"POST /v1/thing", adminOperate, adminChange(a, func(_ context.Context, in input) (any, error) {
		calls <- in
		switch in.Node {
		case "refused":
			return nil, &refusedError{reason: "it would lose the quorum"}
		case "unknown":
			return nil, errUnknown
		case "away":
			return nil, errUnavailable
		case "broken":
			return nil, errors.New("secret inner matter")
		}
		return map[string]string{"removed": in.Node}, nil
	})}))
	server := httptest.NewServer(mux)
	defer server.Close()
	long := `{"node":"` + strings.Repeat("x", maxAdminBody) + `"}`
	for _, test := range []struct {
		name, method, kind, body string
		status                   int
		code                     string
		called                   bool
	}{
		{"good", "POST", "application/json", `{"node":"nod_1"}`, 200, "", true},
		{"with a charset", "POST", "application/json; charset=utf-8", `{"node":"nod_1"}`, 200, "", true},
		{"a form", "POST", "application/x-www-form-urlencoded", `node=nod_1`, 415, "unsupported_media_type", false},
		{"a form's text", "POST", "text/plain", `{"node":"nod_1"}`, 415, "unsupported_media_type", false},
		{"no type", "POST", "", `{"node":"nod_1"}`, 415, "unsupported_media_type", false},
		{"no JSON", "POST", "application/json", `node`, 400, "invalid_json", false},
		{"nothing", "POST", "application/json", ``, 400, "invalid_json", false},
		{"unknown field", "POST", "application/json", `{"nodes":"a"}`, 400, "invalid_json", false},
		{"two objects", "POST", "application/json", `{"node":"a"}{"node":"b"}`, 400, "invalid_json", false},
		{"too long", "POST", "application/json", long, 413, "body_too_large", false},
		{"another method", "GET", "application/json", ``, 404, "not_found", false},
		{"refused", "POST", "application/json", `{"node":"refused"}`, 409, "conflict", true},
		{"unavailable", "POST", "application/json", `{"node":"away"}`, 503, "cluster_unavailable", true},
		{"unknown outcome", "POST", "application/json", `{"node":"unknown"}`, 503, "cluster_unavailable", true},
		{"broken", "POST", "application/json", `{"node":"broken"}`, 500, "internal_error", true},
	} {
		req, err := http.NewRequest(test.method, server.URL+"/v1/thing", strings.NewReader(test.body))
		if err != nil {
			t.Fatal(err)
		}
		if test.kind != "" {
			req.Header.Set("Content-Type", test.kind)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var p AdminProblem
		err = json.NewDecoder(resp.Body).Decode(&p)
		resp.Body.Close()
		if err != nil || resp.StatusCode != test.status || p.Code != test.code {
			t.Errorf("%s: got %d %q (%v), want %d %q", test.name, resp.StatusCode, p.Code, err, test.status, test.code)
		}
		if test.status != 200 && resp.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: type %q", test.name, resp.Header.Get("Content-Type"))
		}
		if strings.Contains(p.Detail, "inner matter") {
			t.Errorf("%s: %s", test.name, p.Detail)
		}
		called := false
		select {
		case <-calls:
			called = true
		default:
		}
		if called != test.called {
			t.Errorf("%s: called %t, want %t", test.name, called, test.called)
		}
	}
}

func TestAdminConfig_Token(t *testing.T) {
	t.Parallel()
	secret := NewSecret()
	file := filepath.Join(t.TempDir(), "admin.token")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := LoadConfig(write(t, minimal+"admin.token_file = \""+file+"\"\n"), secretVariables())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := cfg.Admin.BearerToken(); got != secret || err != nil {
		t.Errorf("from the file: %v, %v", got == secret, err)
	}
	if a := accessOf(t, cfg.Admin); a.roleOf(secret) != adminOperate || a.roleOf(secret+"\n") != adminOpen || a.roleOf("") != adminOpen {
		t.Error("token of the file")
	}
	other := NewSecret()
	cfg, err = LoadConfig(write(t, minimal+"admin.token_file = \""+file+"\"\n"), append(secretVariables(), "SLUICE_ADMIN__TOKEN="+other))
	if err != nil || cfg.Admin.TokenFile != "" {
		t.Errorf("the variable does not replace the file: %v", err)
	}
	if none := accessOf(t, AdminConfig{}); none.roleOf("") != adminOpen || none.roleOf(secret) != adminOpen {
		t.Error("no token opens something")
	}
	for _, test := range []struct{ text, variable, want string }{
		{"admin.token = \"short\"\n", "", "admin.token: admin.token: weak secret"},
		{"admin.token = \"" + secret + "\"\nadmin.token_file = \"" + file + "\"\n", "", "is set together with admin.token"},
		{"admin.token_file = \"" + file + ".not\"\n", "", "admin.token_file: read admin.token_file"},
		{"admin.token_file = \"" + file + "\"\n", "SLUICE_SECRETS__CLUSTER=" + secret, "is the same secret as one of [secrets]"},
	} {
		_, err := LoadConfig(write(t, minimal+test.text), append(secretVariables(), test.variable))
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: got %v, want %s", strings.ReplaceAll(test.text, secret, "…"), err, test.want)
		}
	}
}
