package node

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func accessOf(t *testing.T, c AdminConfig) *adminAccess {
	t.Helper()
	a, err := newAdminAccess(c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// adminRoles is what each route asks for, a second time: a new route is decided on, and a changed one is noticed.
var adminRoles = map[string]adminRole{
	"GET /livez":   adminOpen,
	"GET /readyz":  adminOpen,
	"GET /metrics": adminOpen,

	"/v1/":                                       adminRead,
	"GET /v1/cluster":                            adminRead,
	"POST /v1/cluster/remove":                    adminOperate,
	"POST /v1/cluster/transfer-leader":           adminOperate,
	"POST /v1/cluster/rotate-signing-key":        adminOperate,
	"POST /v1/cluster/promote":                   adminOperate,
	"POST /v1/cluster/demote":                    adminOperate,
	"GET /v1/cluster/keyring":                    adminRead,
	"POST /v1/cluster/keyring/install":           adminOperate,
	"POST /v1/cluster/keyring/use":               adminOperate,
	"POST /v1/cluster/keyring/remove":            adminOperate,
	"GET /v1/limits/explain":                     adminRead,
	"POST /v1/limits/explain":                    adminRead,
	"POST /v1/limits/reset":                      adminOperate,
	"GET /v1/settings":                           adminRead,
	"GET /v1/settings/versions":                  adminRead,
	"GET /v1/settings/versions/{version}":        adminRead,
	"POST /v1/settings/check":                    adminRead,
	"PUT /v1/settings":                           adminOperate,
	"POST /v1/settings/rollback":                 adminOperate,
	"GET /v1/users/{user}":                       adminRead,
	"POST /v1/users/{user}/disable":              adminOperate,
	"POST /v1/users/{user}/enable":               adminOperate,
	"POST /v1/users/{user}/password":             adminOperate,
	"POST /v1/organizations/{organization}/plan": adminOperate,
	"GET /v1/audit":                              adminRead,
	"GET /v1/secrets":                            adminRead,
	"POST /v1/secrets/rotate":                    adminOperate,
	"GET /v1/contents":                           adminRead,
	"GET /v1/backup":                             adminOperate,
	"POST /v1/restore":                           adminOperate,
	"GET /v1/export":                             adminOperate,
	"POST /v1/import":                            adminOperate,
	"GET /debug/pprof/":                          adminOperate,
	"GET /debug/pprof/cmdline":                   adminOperate,
	"GET /debug/pprof/profile":                   adminOperate,
	"GET /debug/pprof/symbol":                    adminOperate,
	"GET /debug/pprof/trace":                     adminOperate,
}

func TestAdminRoutes_EachWithEachRole(t *testing.T) {
	t.Parallel()
	read, operate := NewSecret(), NewSecret()
	a := &adminServer{node: &Node{log: slog.New(slog.DiscardHandler)}, access: accessOf(t, AdminConfig{LocalRole: "none", ReadToken: Secret(read), Token: Secret(operate)})}
	routes := a.routes()
	seen := map[string]bool{}
	for i := range routes {
		if want, ok := adminRoles[routes[i].pattern]; !ok || want != routes[i].role {
			t.Errorf("%s asks for %s, want %s (decided on: %t)", routes[i].pattern, routes[i].role, want, ok)
		}
		seen[routes[i].pattern] = true
		routes[i].handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	}
	for pattern := range adminRoles {
		if !seen[pattern] {
			t.Errorf("%s is not served", pattern)
		}
	}
	mux := http.NewServeMux()
	a.serveRoutes(mux, routes)
	for _, route := range routes {
		method, path, ok := strings.Cut(route.pattern, " ")
		if !ok {
			method, path = "PATCH", route.pattern+"nothing"
		}
		path = strings.NewReplacer("{user}", "anna", "{organization}", "org_1", "{version}", "1").Replace(path)
		for _, caller := range []struct {
			token string
			role  adminRole
		}{{"", adminOpen}, {NewSecret(), -1}, {read, adminRead}, {operate, adminOperate}} {
			r := httptest.NewRequest(method, path, nil)
			r.RemoteAddr = "127.0.0.1:5"
			if caller.token != "" {
				r.Header.Set("Authorization", "Bearer "+caller.token)
			}
			w := httptest.NewRecorder()
			mux.ServeHTTP(w, r)
			want := http.StatusNoContent
			switch {
			case route.role == adminOpen:
			case caller.role <= adminOpen:
				want = http.StatusUnauthorized
			case caller.role < route.role:
				want = http.StatusForbidden
			}
			if w.Code != want {
				t.Errorf("%s %s as %s: %d %s, want %d", method, path, caller.role, w.Code, w.Body, want)
			}
		}
	}
	for i, name := range refusalNames {
		if a.access.refused[i].Load() == 0 {
			t.Errorf("no refusal %s was counted", name)
		}
	}
}

func TestAdminAccess_LocalRole(t *testing.T) {
	t.Parallel()
	token := NewSecret()
	for _, test := range []struct {
		local, path string
		socket      bool
		header      string
		want        int
	}{
		{"operate", "127.0.0.1:5", false, "", 0},
		{"read", "127.0.0.1:5", false, "", 403},
		{"none", "127.0.0.1:5", false, "", 401},
		{"none", "127.0.0.1:5", false, "Authorization", 0},
		{"operate", "@", true, "", 0},
		{"read", "@", true, "", 403},
		{"none", "@", true, "", 401},
		{"operate", "@", true, "X-Forwarded-For", 401},
		{"operate", "@", false, "", 401},
	} {
		a := accessOf(t, AdminConfig{LocalRole: test.local, Token: Secret(token)})
		r := httptest.NewRequest(http.MethodPost, "http://localhost/v1/thing", nil)
		r.RemoteAddr = test.path
		if test.socket {
			r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(&net.UnixAddr{Name: "/run/a", Net: "unix"})))
		}
		if test.header != "" {
			r.Header.Set(test.header, "Bearer "+token)
		}
		got := 0
		if p := a.check(r, adminOperate); p != nil {
			got = p.Status
		}
		if got != test.want {
			t.Errorf("%+v: got %d", test, got)
		}
	}
}

// Two tokens hold while one takes the place of the other.
func TestAdminAccess_TokensAreReplaced(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "tokens")
	old, fresh, third := NewSecret(), NewSecret(), NewSecret()
	write := func(lines ...string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(old)
	cfg := AdminConfig{TokenFile: file, ReadToken: Secret(third)}
	a := accessOf(t, cfg)
	write(fresh, "", old)
	if err := a.load(cfg); err != nil {
		t.Fatal(err)
	}
	if a.roleOf(old) != adminOperate || a.roleOf(fresh) != adminOperate || a.roleOf(third) != adminRead {
		t.Error("not both tokens hold")
	}
	if token, err := cfg.BearerToken(); token != fresh || err != nil {
		t.Errorf("commands do not present the first one: %v", err)
	}
	write(fresh, "cut")
	if err := a.load(cfg); !errors.Is(err, ErrWeakSecret) || strings.Contains(err.Error(), fresh) {
		t.Errorf("a weak token: %v", err)
	}
	if a.roleOf(old) != adminOperate {
		t.Error("a file that cannot be used took the tokens away")
	}
	write(fresh)
	if err := a.load(cfg); err != nil || a.roleOf(old) != adminOpen || a.roleOf(fresh) != adminOperate {
		t.Errorf("the old token lives: %v", err)
	}
}

// Many refusals make few lines.
func TestAdminAccess_RefusalsAreLogged(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	a, err := newAdminAccess(AdminConfig{LocalRole: "none"}, slog.New(slog.NewJSONHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1000, 0)
	a.nowFunc = func() time.Time { return now }
	r := httptest.NewRequest(http.MethodGet, "/v1/cluster?x=private", nil)
	r.Header.Set("Authorization", "Bearer private")
	for range 50 {
		if a.check(r, adminRead) == nil {
			t.Fatal("let in")
		}
	}
	now = now.Add(refusedLogEvery)
	a.check(r, adminRead)
	if text := log.String(); strings.Count(text, "\n") != 2 || !strings.Contains(text, `"refused_before":49`) || strings.Contains(text, "private") {
		t.Errorf("log: %s", text)
	}
	if n := a.refused[refusedToken].Load(); n != 51 {
		t.Errorf("counted %d", n)
	}
}

func TestListenSocket(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "admin.sock")
	ln, err := listenSocket(path, 0o660)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode: %v, %v", info.Mode(), err)
	}
	if other, err := listenSocket(path, 0o600); !errors.Is(err, errSocketInUse) {
		t.Errorf("a socket that is served was taken: %v, %v", other, err)
	}
	// What a process that was killed leaves behind.
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	if ln, err = listenSocket(path, 0o600); err != nil {
		t.Fatalf("after a crash: %v", err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode: %v, %v", info.Mode(), err)
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket stays after its listener: %v", err)
	}
	if err := os.WriteFile(path, []byte("somebody's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenSocket(path, 0o600); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("over a file: %v", err)
	}
	if text, err := os.ReadFile(path); string(text) != "somebody's" {
		t.Errorf("the file is gone: %v", err)
	}
}

func TestConfig_AdminListener(t *testing.T) {
	t.Parallel()
	token := NewSecret()
	for _, test := range []struct{ text, want string }{
		{"listen = \"unix:/run/sluice/admin.sock\"\nsocket_mode = \"0660\"", ""},
		{"listen = \"unix:admin.sock\"", ""},
		{"listen = \"unix:\"", "the path of a file"},
		{"listen = \"unix:@abstract\"", "the path of a file"},
		{"listen = \"unix:/" + strings.Repeat("x", 107) + "\"", "at most 107"},
		{"socket_mode = \"0666\"", "admin.socket_mode"},
		{"local_role = \"root\"", "admin.local_role"},
		{"client_ca = \"/none\"", "admin.client_ca: is set and admin.tls_cert"},
		{"tls_cert = \"/none\"", "admin.tls_key"},
		{"listen = \"10.0.0.1:7102\"", ""},
		{"listen = \":7102\"\nread_token = \"" + token + "\"", "admin.tls_cert: is missing"},
		{"listen = \"127.0.0.1:7102\"\nread_token = \"" + token + "\"", ""},
		{"read_token = \"" + token + "\"\ntoken = \"" + token + "\"", "one token has one role"},
		{"read_token = \"short\"", "admin.read_token: weak secret"},
	} {
		cfg, err := LoadConfig(write(t, minimal+"\n[admin]\n"+test.text+"\n"), secretVariables())
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", test.text, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), token)):
			t.Errorf("%s: got %v, want %s", strings.ReplaceAll(test.text, token, "…"), err, test.want)
		}
		if path, ok := socketPath(cfg.Admin.Listen); err == nil && ok && !filepath.IsAbs(path) {
			t.Errorf("%s: %s is not taken from the file's directory", test.text, path)
		}
		if err == nil {
			var shown strings.Builder
			if err := cfg.Show(&shown); err != nil || strings.Contains(shown.String(), token) {
				t.Errorf("%s: the token is shown, %v", test.text, err)
			}
		}
	}
}
