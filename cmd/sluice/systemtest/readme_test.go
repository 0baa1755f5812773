package systemtest

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// readmeLines is how long the way of an nginx site behind Sluice may be.
const readmeLines = 15

// TestReadme_NginxSite moves a site behind Sluice with what the README says, and nothing else.
func TestReadme_NginxSite(t *testing.T) {
	program := needProgram(t, "nginx")
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)```diff\n(.*?)```\n\n```toml\n(.*?)```").FindStringSubmatch(string(text))
	if m == nil {
		t.Fatal("the README has no such site any more")
	}
	var site strings.Builder
	settings := strings.Split(strings.TrimSpace(m[2]), "\n")
	lines := len(settings)
	for line := range strings.Lines(m[1]) {
		switch line[0] {
		case '+':
			lines++
		case ' ':
		default:
			t.Fatalf("neither an added line nor one that was there: %q", line)
		}
		site.WriteString(line[1:])
	}
	if lines > readmeLines {
		t.Errorf("%d lines, want at most %d", lines, readmeLines)
	}
	variables := []string{"SLUICE_TRUSTED_PROXIES=" + proxyAddress}
	for _, setting := range settings {
		key, value, ok := strings.Cut(setting, " = ")
		if !ok {
			t.Fatalf("setting %q", setting)
		}
		variables = append(variables, "SLUICE_"+strings.ToUpper(key)+"="+strings.Trim(value, `"`))
	}
	c := startCluster(t, options{variables: variables})
	p := &protected{cluster: c, app: startApp(t), owner: register(t, c.urls[0])}
	dir := t.TempDir()
	// What a distribution's nginx.conf has around it.
	around := "events {}\npid " + dir + "/pid;\nhttp {\n access_log off; client_body_temp_path " + dir + "; proxy_temp_path " + dir + "; fastcgi_temp_path " + dir +
		"; uwsgi_temp_path " + dir + "; scgi_temp_path " + dir + ";\n" + site.String() + "}\n"
	url := runProxy(t, proxyConfig{text: around, example: "nginx.conf", nodes: c.urls, replace: []string{"127.0.0.1:9000", p.app.address}}, nginxCommand(program))
	eventually(t, readyWithin, "nginx listens", func() error {
		conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	f := &front{protected: p, url: url, client: "127.0.9.1"}
	spoofed := map[string]string{"X-Auth-Method": "spoofed", "X-Auth-User": "spoofed", "X-Auth-Organization": "spoofed", "X-Auth-Key": "spoofed", "X-Auth-Scopes": "spoofed",
		"X-Original-URL": "http://x/", "X-Original-Method": "GET", "X-Forwarded-For": "192.0.2.1"}
	roomInMinute(t, readyWithin/2)
	for n := range 12 {
		res, s, reached := f.get(t, f.client, request{method: "GET", path: "/open/shop?page=2", header: spoofed})
		want := http.StatusOK
		if n >= 10 {
			want = http.StatusTooManyRequests
		}
		if res.status != want || reached != (want == 200) || want == 429 && res.header.Get("Retry-After") == "" || reached && s.header.Get("X-Auth-Method") != "anonymous" {
			t.Errorf("anonymous request %d: %v, %v", n+1, res, s.header)
		}
		for _, name := range identityHeaders {
			if s.header.Get(name) == "spoofed" {
				t.Errorf("the application believes %s: spoofed", name)
			}
		}
	}
	key := p.owner.newKey(t, c.urls[1], 3, "*")
	res, s, _ := f.get(t, "127.0.9.2", request{method: "POST", path: "/open/cart", key: key.secret, raw: "a body"})
	if res.status != 200 || s.header.Get("X-Auth-Key") != key.id || s.header.Get("X-Auth-Organization") != p.owner.organization || s.body != 6 {
		t.Errorf("with a key: %v, %+v", res, s)
	}
	if res, s, _ := f.get(t, "127.0.9.2", request{method: "GET", path: "/open", token: p.owner.token}); res.status != 200 || s.header.Get("X-Auth-User") != p.owner.userID {
		t.Errorf("with a token: %v, %+v", res, s)
	}
	for _, r := range []request{{method: "GET", path: "/open", key: key.secret + "x"}, {method: "GET", path: "/open", token: "e30.e30.x"}} {
		if res, _, reached := f.get(t, "127.0.9.2", r); res.status != 401 || reached || !strings.HasPrefix(res.header.Get("WWW-Authenticate"), "Bearer ") {
			t.Errorf("with a credential that is none: %v", res)
		}
	}
	if res, _, reached := f.get(t, "127.0.9.2", request{method: "GET", path: "/open/%2e%2e/x", key: key.secret}); res.status != 403 || reached {
		t.Errorf("a path that is not canonical: %v", res)
	}
	c.kill(t, 3)
	for range 9 {
		if res, _, _ := f.get(t, "127.0.9.2", request{method: "GET", path: "/open", token: p.owner.token}); res.status != 200 {
			t.Errorf("with a dead node: %v", res)
		}
	}
}
