package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sluice/node"
)

// An authority and a certificate are made, fit each other and a node's configuration, and are never replaced.
func TestCert(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, out := filepath.Join(dir, "ca"), filepath.Join(dir, "node")
	for _, d := range []string{ca, out} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	secrets := []string{"SLUICE_SECRETS__CLUSTER=" + node.NewSecret(), "SLUICE_SECRETS__KEY=" + node.NewSecret()}
	config := filepath.Join(dir, "node.toml")
	text := "cluster = \"blue\"\ndata_dir = \"data\"\ninitial_members = [\"127.0.0.1:7100\"]\n[peer]\nlisten = \"127.0.0.1:7100\"\n" +
		"tls_cert = \"node/peer.crt\"\ntls_key = \"node/peer.key\"\ntls_ca = \"ca/peer-ca.crt\"\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	want := func(code int, text string, args ...string) string {
		t.Helper()
		stdout, stderr, got := program(t, secrets, args...)
		if got != code || !strings.Contains(stdout+stderr, text) {
			t.Errorf("%q: code %d, want %d, and %q in\n%s%s", args, got, code, text, stdout, stderr)
		}
		return stdout
	}
	want(exitDone, "whoever has it can make nodes", "cert", "new", "ca", "--cluster", "blue", "--out", ca)
	id := strings.TrimSpace(want(exitDone, "nod_", "cert", "id", "--config", config))
	if again := strings.TrimSpace(want(exitDone, "", "cert", "id", "--config", config)); again != id || !regexp.MustCompile(`^nod_[0-9a-z]{26}$`).MatchString(id) {
		t.Errorf("ids %q and %q", id, again)
	}
	want(exitUsage, "peer.tls_cert: open", "config", "check", "--config", config)
	want(exitDone, "peer.tls_cert of "+id+" in blue", "cert", "new", "node", "--ca", ca, "--config", config, "--out", out)
	want(exitDone, "ok", "config", "check", "--config", config)

	before := map[string]string{}
	for _, path := range []string{filepath.Join(ca, "peer-ca.crt"), filepath.Join(ca, "peer-ca.key"), filepath.Join(out, "peer.crt"), filepath.Join(out, "peer.key")} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		before[path] = string(data)
	}
	want(exitUsage, "is not replaced", "cert", "new", "ca", "--cluster", "blue", "--out", ca)
	want(exitUsage, "is not replaced", "cert", "new", "node", "--ca", ca, "--cluster", "blue", "--node-id", id, "--out", out)
	// Half a pair is none: what is there stays, and what was made beside it goes.
	if err := os.Remove(filepath.Join(out, "peer.key")); err != nil {
		t.Fatal(err)
	}
	want(exitUsage, "peer.crt is there already", "cert", "new", "node", "--ca", ca, "--cluster", "blue", "--node-id", id, "--out", out)
	if _, err := os.Stat(filepath.Join(out, "peer.key")); err == nil {
		t.Error("a key was left beside another's certificate")
	}
	delete(before, filepath.Join(out, "peer.key"))
	for path, was := range before {
		if data, err := os.ReadFile(path); err != nil || string(data) != was {
			t.Errorf("%s was changed: %v", path, err)
		}
	}

	other := filepath.Join(dir, "other")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, wrong := range []struct {
		text string
		args []string
	}{
		{"give --config, or", []string{"--ca", ca}},
		{"give --config, or", []string{"--ca", ca, "--cluster", "blue"}},
		{"says what --cluster", []string{"--ca", ca, "--cluster", "blue", "--config", config}},
		{"--ca-cert: open", []string{"--ca", other, "--cluster", "blue", "--node-id", id}},
		{"node id: want nod_", []string{"--ca", ca, "--cluster", "blue", "--node-id", "node1"}},
		{"cluster: want", []string{"--ca", ca, "--cluster", "b/ue", "--node-id", id}},
		{"--days: want", []string{"--ca", ca, "--cluster", "blue", "--node-id", id, "--days", "0"}},
		{"not an authority's", []string{"--ca-cert", filepath.Join(out, "peer.crt"), "--ca-key", filepath.Join(ca, "peer-ca.key"), "--cluster", "blue", "--node-id", id}},
	} {
		want(exitUsage, wrong.text, append([]string{"cert", "new", "node", "--out", other}, wrong.args...)...)
	}
	if files, err := os.ReadDir(other); err != nil || len(files) != 0 {
		t.Errorf("mistakes left %v, %v", files, err)
	}
}
