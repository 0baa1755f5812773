package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sluice/node"
)

// program runs the command line and returns what a shell would see.
func program(t *testing.T, variables []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(context.Background(), args, environment{variables: variables, stdout: &out, stderr: &errs})
	return out.String(), errs.String(), code
}

func TestRun_ExitCodes(t *testing.T) {
	t.Parallel()
	bad := filepath.Join(t.TempDir(), "bad.toml")
	if err := os.WriteFile(bad, []byte("nam = \"x\"\n[auth]\ntoken_ttl = 3600\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{[]string{"--help"}, exitDone, "Usage: sluice <command>", ""},
		{[]string{"dev", "--help"}, exitDone, "--nodes", ""},
		{[]string{"version"}, exitDone, "sluice " + released, ""},
		{[]string{"secret", "new"}, exitDone, "slsec_", ""},
		{[]string{"config", "show"}, exitDone, "[limits.anonymous]\nlimit = 10\n", ""},
		{nil, exitUsage, "", "expected one of"},
		{[]string{"nonsense"}, exitUsage, "", "nonsense"},
		{[]string{"version", "--loud"}, exitUsage, "", "--loud"},
		{[]string{"node"}, exitUsage, "", "--config"},
		{[]string{"node", "--config", bad}, exitUsage, "", bad + ":1:1: nam: unknown key: did you mean name?\n" + bad + ":3:1: auth.token_ttl: want a duration"},
		{[]string{"config", "check", "--config", bad}, exitUsage, "", bad + ":1:1: nam: unknown key"},
		{[]string{"config", "show", "--config", bad}, exitUsage, "", bad + ":1:1: nam: unknown key"},
		{[]string{"config", "check", "--config", bad + ".not"}, exitUsage, "", "no such file"},
		{[]string{"dev", "--nodes", "10"}, exitUsage, "", "--nodes: want 1 to 9, not 10"},
		{[]string{"dev", "--nodes", "0"}, exitUsage, "", "--nodes: want 1 to 9, not 0"},
		{[]string{"dev", "--port", "65535", "--nodes", "2", "--dir", t.TempDir()}, exitUsage, "", "--port: node 2 would be on port 65536"},
		{[]string{"bench", "accuracy", "--help"}, exitDone, "--patterns", ""},
		{[]string{"bench", "run", "--help"}, exitDone, "--find-max", ""},
		{[]string{"bench", "run", "--scenario", "sleep"}, exitUsage, "", "scenario: there is no \"sleep\""},
		{[]string{"bench", "run", "--scenario", "mixed", "--mix", "login"}, exitUsage, "", "--mix: want SCENARIO=WEIGHT, not \"login\""},
		{[]string{"bench", "run", "--rate", "0"}, exitUsage, "", "rates: want 0.1 to 1000000, not 0"},
		{[]string{"bench", "run", "--keys", "0"}, exitUsage, "", "--keys: want at least 1, not 0"},
		{[]string{"bench", "run", "--target", "http://127.0.0.1:1"}, exitFailed, "", "target http://127.0.0.1:1 cannot be reached"},
		{[]string{"bench", "compare", bad}, exitUsage, "", "want two reports, or one with --baseline, not 1"},
		{[]string{"bench", "compare", bad, "--baseline", bad}, exitFailed, "", bad + ": read the report"},
		{[]string{"limits", "explain", "--help"}, exitDone, "--policy", ""},
		{[]string{"limits", "reset"}, exitUsage, "", "<subject>"},
		{[]string{"bench"}, exitUsage, "", "accuracy"},
		{[]string{"bench", "accuracy", "--limit", "0"}, exitUsage, "", "limits: want 1 to 1000000, not 0"},
		{[]string{"bench", "accuracy", "--patterns", "zigzag"}, exitUsage, "", "there is no \"zigzag\""},
		{[]string{"bench", "accuracy", "--target", "nowhere"}, exitUsage, "", "targets: want http://HOST:PORT"},
		{[]string{"bench", "accuracy", "--algorithm", "leaky"}, exitUsage, "", "--algorithm"},
		{[]string{"bench", "accuracy", "--deadline", "1ms"}, exitUsage, "", "--deadline: want 1s to 24h"},
		{[]string{"bench", "accuracy", "--target", "http://127.0.0.1:1"}, exitFailed, "", "register an account"},
		{[]string{"dev", "--port", "0"}, exitUsage, "", "--port: want 1 to 65535, not 0"},
		{[]string{"dev", "--port", "65535", "--dir", t.TempDir()}, exitUsage, "", "--port: node 3 would be on port 65537"},
	} {
		stdout, stderr, code := program(t, nil, test.args...)
		if code != test.code || !strings.Contains(stdout, test.stdout) || !strings.Contains(stderr, test.stderr) {
			t.Errorf("sluice %s: code %d, want %d; standard output %q, want %q; standard error %q, want %q",
				strings.Join(test.args, " "), code, test.code, stdout, test.stdout, stderr, test.stderr)
		}
	}
}

func TestBenchFloor_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out, errs bytes.Buffer
	code := run(ctx, []string{"bench", "floor", "--listen", "127.0.0.1:0"}, environment{stdout: &out, stderr: &errs})
	if code != exitDone || !strings.HasPrefix(out.String(), "ready http://127.0.0.1:") {
		t.Errorf("code %d: %s%s", code, out.String(), errs.String())
	}
	if _, stderr, code := program(t, nil, "bench", "floor", "--listen", "nowhere:x"); code != exitFailed || !strings.Contains(stderr, "listen: ") {
		t.Errorf("code %d: %s", code, stderr)
	}
}

func TestBenchCompare_ExitCodes(t *testing.T) {
	t.Parallel()
	write := func(name, values string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(`{"kind":"load","schema":1,"scenario":"login","steps":[`+values+`]}`), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	steps := func(throughput int) string {
		var list []string
		for i := range 3 {
			list = append(list, fmt.Sprintf(`{"rate":0,"throughput":%d,"latency":{"p50_us":100,"p99_us":200}}`, throughput+i))
		}
		return strings.Join(list, ",")
	}
	before, same, worse := write("before", steps(1000)), write("same", steps(1001)), write("worse", steps(800))
	for _, test := range []struct {
		args   []string
		code   int
		stdout string
	}{
		{[]string{before, same}, exitDone, "same"},
		{[]string{before, worse}, exitFailed, "WORSE"},
		{[]string{worse, "--baseline", before}, exitFailed, "WORSE"},
		{[]string{worse, before}, exitDone, "differs"},
		{[]string{before, worse, "--throughput-bound", "0.7"}, exitDone, "differs"},
		{[]string{before, worse, "--throughput-bound", "2"}, exitUsage, ""},
		{[]string{before, worse, "--json"}, exitFailed, `"worse": true`},
	} {
		stdout, stderr, code := program(t, nil, append([]string{"bench", "compare"}, test.args...)...)
		if code != test.code || !strings.Contains(stdout, test.stdout) {
			t.Errorf("%v: code %d, want %d: %s%s", test.args, code, test.code, stdout, stderr)
		}
	}
}

func TestConfigCheck_TellsWhatAvailabilityCosts(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "node.toml")
	text := "initial_members = [\"127.0.0.1:1\", \"127.0.0.1:2\", \"127.0.0.1:3\"]\npeer.listen = \"127.0.0.1:1\"\nlimits.on_isolation = \"available\"\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	variables := []string{"SLUICE_SECRETS__CLUSTER=" + node.NewSecret(), "SLUICE_SECRETS__KEY=" + node.NewSecret()}
	stdout, stderr, code := program(t, variables, "config", "check", "--config", path)
	if code != exitDone || !strings.Contains(stdout, "limits.anonymous may be exceeded by up to 4 a window for each node that is cut off") {
		t.Errorf("code %d, %q, %q", code, stdout, stderr)
	}
}

// TestDevDirectory_IsTheSameTheNextTime makes a directory's files, opens them again, and moves them to another port.
func TestDevDirectory_IsTheSameTheNextTime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, second := freePair(t, 9601), freePair(t, 9701)
	made, err := openDevCluster(dir, 2, first, nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := openDevCluster(dir, 0, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(again.nodes) != 2 || again.echo != made.echo || again.urls()[1] != fmt.Sprintf("http://127.0.0.1:%d", first+1) {
		t.Errorf("opened again: %+v", again)
	}
	moved, err := openDevCluster(dir, 2, second, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(moved.urls(), " "), fmt.Sprintf("http://127.0.0.1:%d http://127.0.0.1:%d", second, second+1); got != want {
		t.Errorf("moved to %s, want %s", got, want)
	}
	if moved.nodes[0].cfg.Peer != made.nodes[0].cfg.Peer {
		t.Errorf("peers moved as well: %v", moved.nodes[0].cfg.Peer)
	}
	// Where the cluster runs, moving it is refused and leaves its files as they are.
	busy, err := net.Listen("tcp", moved.nodes[1].cfg.Peer.Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	if _, err := openDevCluster(dir, 0, first, nil); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("moved a cluster that runs: %v", err)
	}
	for i, n := range moved.nodes {
		if cfg, err := node.LoadConfig(n.config, nil); err != nil || cfg.HTTP.Listen != n.cfg.HTTP.Listen {
			t.Errorf("node%d's file after a refusal: %v, %v", i+1, cfg.HTTP.Listen, err)
		}
	}
	if _, err := openDevCluster(dir, 3, 0, nil); err == nil || !strings.Contains(err.Error(), "was made with --nodes 2") {
		t.Errorf("another number of nodes: %v", err)
	}
	// What a crash in the middle of the making leaves is no cluster to go on with.
	if err := os.Remove(nodeFile(dir, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := openDevCluster(dir, 2, 0, nil); err == nil || !strings.Contains(err.Error(), "has no node1.toml") {
		t.Errorf("without node1.toml: %v", err)
	}
}

// freePair finds two free ports in a row.
func freePair(t *testing.T, from int) int {
	t.Helper()
	for port := from; port < from+100; port += 2 {
		if free(fmt.Sprintf("127.0.0.1:%d", port), false, "") == nil && free(fmt.Sprintf("127.0.0.1:%d", port+1), false, "") == nil {
			return port
		}
	}
	t.Fatal("no two free ports in a row")
	return 0
}

func TestEcho_TellsWhatItGot(t *testing.T) {
	t.Parallel()
	server, err := startEcho("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	request, err := http.NewRequest(http.MethodPut, "http://"+server.Addr+"/a%20b?c=d", strings.NewReader("12345"))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-Auth-User", "")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var got echoAnswer
	if err := json.NewDecoder(response.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if _, user := got.Headers["X-Auth-User"]; got.Method != "PUT" || got.Path != "/a%20b" || got.Query != "c=d" || got.BodyBytes != 5 || !user {
		t.Errorf("got %+v", got)
	}
}
