package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sluice/node"
)

// adminOf answers as a node's admin listener would.
func adminOf(t *testing.T, answer http.HandlerFunc) (address string) {
	t.Helper()
	server := httptest.NewServer(answer)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func TestClusterStatus_TextAndJSON(t *testing.T) {
	t.Parallel()
	lag, settings := uint64(3), uint64(7)
	status := node.ClusterStatus{Cluster: "c", ClusterID: "clu_1", AnsweredBy: "nod_a", Leader: "nod_a", Nodes: []node.NodeStatus{
		{ID: "nod_a", Name: "one", Role: "leader", Alive: true, Lag: &lag, SettingsVersion: &settings, InRoster: true, PeerAddress: "10.0.0.1:7100", Version: "1"},
		{ID: "nod_b", Role: "voter"},
	}}
	address := adminOf(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != "/v1/cluster" {
			t.Errorf("called %s %s", r.Method, r.URL.Path)
		}
		if err := json.NewEncoder(w).Encode(status); err != nil {
			t.Error(err)
		}
	})
	stdout, stderr, code := program(t, nil, "cluster", "status", "--admin", address)
	if code != exitDone || !strings.Contains(stdout, "nod_a  one   leader  yes    3    yes     7         10.0.0.1:7100  1\n") || !strings.Contains(stdout, "nod_b  -     voter   no     -    no      -         -              -\n") {
		t.Errorf("code %d, %s\n%s", code, stderr, stdout)
	}
	status.Nodes[1].Problems = []string{"does not answer"}
	stdout, stderr, code = program(t, nil, "cluster", "status", "--admin", address, "--output", "json")
	var got node.ClusterStatus
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != exitFailed || len(got.Nodes) != 2 || !strings.Contains(stderr, "1 things are wrong") {
		t.Errorf("code %d, %v, %s\n%s", code, err, stderr, stdout)
	}
}

func TestAdminClient_Errors(t *testing.T) {
	t.Parallel()
	token := node.NewSecret()
	address := adminOf(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "Bearer "+token {
			fmt.Fprint(w, "{}")
			return
		}
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"status":403,"code":"forbidden","detail":"not from there"}`)
	})
	other := adminOf(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })
	moved := adminOf(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+address+"/v1/cluster", http.StatusFound)
	})
	dir := t.TempDir()
	off := filepath.Join(dir, "off.toml")
	on := filepath.Join(dir, "on.toml")
	text := "initial_members = [\"127.0.0.1:7100\"]\npeer.listen = \"127.0.0.1:7100\"\nsecrets.cluster = \"" + node.NewSecret() + "\"\nsecrets.key = \"" + node.NewSecret() + "\"\n"
	for path, admin := range map[string]string{off: "admin.listen = \"\"\n", on: "admin.listen = \"" + address + "\"\nadmin.token = \"" + token + "\"\n"} {
		if err := os.WriteFile(path, []byte(text+admin), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		args      []string
		variables []string
		code      int
		stderr    string
	}{
		{[]string{"--admin", address}, nil, exitFailed, "forbidden: not from there"},
		{[]string{"--admin", address}, []string{"SLUICE_ADMIN__TOKEN=" + token}, exitDone, ""},
		{[]string{"--config", on}, nil, exitDone, ""},
		{[]string{"--config", off}, nil, exitUsage, "admin.listen is empty"},
		{[]string{"--config", on, "--admin", address}, nil, exitUsage, "both say whom to call"},
		{[]string{"--config", on + ".not"}, nil, exitUsage, "no such file"},
		{[]string{"--admin", "nonsense"}, nil, exitUsage, "want host:port"},
		{[]string{"--admin", address, "--output", "xml"}, nil, exitUsage, "--output"},
		{[]string{"--admin", address, "--timeout", "1ms"}, nil, exitUsage, "--timeout: want 100ms to 1h"},
		{[]string{"--admin", "127.0.0.1:1"}, nil, exitFailed, "connection refused: --config or --admin says whom to call"},
		{[]string{"--admin", other}, nil, exitFailed, "not an answer of a node"},
		{[]string{"--admin", moved}, nil, exitFailed, "not an admin listener?"},
	} {
		_, stderr, code := program(t, test.variables, append([]string{"cluster", "status"}, test.args...)...)
		if code != test.code || !strings.Contains(stderr, test.stderr) || strings.Contains(stderr, token) {
			t.Errorf("%v: code %d, %s; want %d, %s", test.args, code, stderr, test.code, test.stderr)
		}
	}
}

func TestCluster_RemoveTransferAdd(t *testing.T) {
	t.Parallel()
	address := adminOf(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/cluster" {
			fmt.Fprint(w, `{"cluster":"prod","nodes":[{"alive":true,"peer_address":"10.0.0.1:7100"},{"peer_address":"10.0.0.2:7100"}]}`)
			return
		}
		var in struct {
			Node  string
			Force bool
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
		}
		switch {
		case r.URL.Path == "/v1/cluster/promote" || r.URL.Path == "/v1/cluster/demote":
			fmt.Fprintf(w, `{"node":%q,"voter":%t}`, in.Node, r.URL.Path == "/v1/cluster/promote")
		case r.URL.Path == "/v1/cluster/transfer-leader":
			fmt.Fprintf(w, `{"leader":"nod_b"}`)
		case in.Node == "node9":
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"status":404,"code":"not_found","detail":"no member"}`)
		case in.Force:
			fmt.Fprintf(w, `{"node":%q,"heir":""}`, in.Node)
		default:
			fmt.Fprintf(w, `{"node":%q,"heir":"nod_b"}`, in.Node)
		}
	})
	for _, test := range []struct {
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{[]string{"remove", "nod_a"}, exitDone, "nod_a has left; nod_b has its share\n", ""},
		{[]string{"remove", "nod_a", "--force"}, exitDone, "nod_a is removed; its share comes back", ""},
		{[]string{"remove", "nod_a", "--output", "json"}, exitDone, `"heir": "nod_b"`, ""},
		{[]string{"remove", "node9"}, exitFailed, "", "not_found: no member"},
		{[]string{"remove"}, exitUsage, "", "expected"},
		{[]string{"transfer-leader"}, exitDone, "nod_b leads\n", ""},
		{[]string{"transfer-leader", "nod_b"}, exitDone, "nod_b leads\n", ""},
		{[]string{"promote", "nod_a"}, exitDone, "nod_a votes\n", ""},
		{[]string{"demote", "nod_a"}, exitDone, "nod_a listens, validates and limits, and does not vote\n", ""},
		{[]string{"demote"}, exitUsage, "", "expected"},
		{[]string{"add", "--non-voter"}, exitDone, "join = [\"10.0.0.1:7100\"]\nmembership.voter = false\n", ""},
		{[]string{"add"}, exitDone, "cluster = \"prod\"\njoin = [\"10.0.0.1:7100\"]\n", ""},
	} {
		stdout, stderr, code := program(t, nil, append(append([]string{"cluster"}, test.args...), "--admin", address)...)
		if code != test.code || !strings.Contains(stdout, test.stdout) || !strings.Contains(stderr, test.stderr) {
			t.Errorf("%v: code %d, %s%s; want %d, %s%s", test.args, code, stdout, stderr, test.code, test.stdout, test.stderr)
		}
	}
}
