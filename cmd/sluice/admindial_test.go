package main

import (
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sluice/node"
)

// over serves on a listener what a node would.
func over(t *testing.T, ln net.Listener) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/cluster" {
			t.Errorf("called %s", r.URL.Path)
		}
		fmt.Fprint(w, `{"cluster":"prod"}`)
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	if ln != nil {
		server.Listener.Close()
		server.Listener = ln
	}
	t.Cleanup(server.Close)
	return server
}

func TestAdminClient_UnixSocket(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "sluice") // t.TempDir's paths may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "admin.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	over(t, ln).Start()
	stdout, stderr, code := program(t, nil, "cluster", "status", "--admin", "unix:"+path)
	if code != exitDone || !strings.Contains(stdout, "cluster prod") {
		t.Errorf("code %d, %s%s", code, stdout, stderr)
	}
	stdout, stderr, code = program(t, []string{"SLUICE_ADMIN__LISTEN=unix:" + path}, "cluster", "status")
	if code != exitDone || !strings.Contains(stdout, "cluster prod") {
		t.Errorf("by environment: code %d, %s%s", code, stdout, stderr)
	}
	_, stderr, code = program(t, nil, "cluster", "status", "--admin", "unix:"+path+".not")
	if code != exitFailed || !strings.Contains(stderr, path+".not: connect: no such file") {
		t.Errorf("no socket: code %d, %s", code, stderr)
	}
	if _, stderr, code = program(t, nil, "cluster", "status", "--admin", "unix:"); code != exitUsage {
		t.Errorf("no path: code %d, %s", code, stderr)
	}
}

func TestAdminClient_TLS(t *testing.T) {
	t.Parallel()
	server := over(t, nil)
	server.StartTLS()
	address := strings.TrimPrefix(server.URL, "https://")
	dir := t.TempDir()
	ca, key, none := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "none.pem")
	files := map[string][]byte{ca: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), none: []byte("nothing"), key: nil}
	for path, text := range files {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		args   []string
		code   int
		stderr string
	}{
		{[]string{"--admin", "https://" + address, "--admin-ca", ca}, exitDone, ""},
		{[]string{"--admin", address, "--admin-ca", ca}, exitDone, ""},
		{[]string{"--admin", "https://" + address}, exitFailed, "certificate signed by unknown authority"},
		{[]string{"--admin", "https://" + address, "--admin-ca", none}, exitUsage, "holds no certificate"},
		{[]string{"--admin", "https://" + address, "--admin-cert", ca}, exitUsage, "go together"},
		{[]string{"--admin", "https://" + address, "--admin-cert", ca, "--admin-key", key}, exitUsage, "--admin-cert"},
		{[]string{"--admin", "https://" + address, "--admin-ca", ca + ".not"}, exitUsage, "--admin-ca"},
	} {
		_, stderr, code := program(t, nil, append([]string{"cluster", "status"}, test.args...)...)
		if code != test.code || !strings.Contains(stderr, test.stderr) {
			t.Errorf("%v: code %d, %s; want %d, %s", test.args, code, stderr, test.code, test.stderr)
		}
	}
}

// TestAdminClient_ConfigWithoutSecrets takes a node's file for what it says of the listener, and nothing else: the secrets may be handed
// to the node by other ways, or be nobody else's to read.
func TestAdminClient_ConfigWithoutSecrets(t *testing.T) {
	t.Parallel()
	address := adminOf(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"cluster_id":"clu_1"}`) })
	for _, test := range []struct {
		text string
		code int
		want string
	}{
		{"name = \"a\"\ncluster = \"c\"\n[admin]\nlisten = \"" + address + "\"\n", exitDone, ""},
		{"[admin]\nlisten = \"" + address + "\"\n[secrets]\ncluster_file = \"/none\"\n[http]\ntls_key = \"/none\"\n", exitDone, ""},
		{"[admin]\nlisten = \"" + address + "\"\n[secret]\nx = 1\n", exitUsage, "secret"},
		{"[admin]\nlisten = \"" + address + "\"\ntoken_file = \"/none\"\n", exitUsage, "/none"},
		{"[admin]\nlisten = \"192.0.2.1:7102\"\ntoken = \"" + node.NewSecret() + "\"\n", exitUsage, "admin.tls_cert is missing"},
	} {
		file := filepath.Join(t.TempDir(), "node.toml")
		if err := os.WriteFile(file, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, stderr, code := program(t, nil, "cluster", "contents", "--config", file); code != test.code || !strings.Contains(stderr, test.want) {
			t.Errorf("%q: code %d, want %d, and %q in %s", test.text, code, test.code, test.want, stderr)
		}
	}
}
