package systemtest

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sluice/bench"
)

// runBench runs `sluice bench run` as a user would.
func runBench(t *testing.T, args ...string) (stdout []byte, stderr string, err error) {
	t.Helper()
	run := exec.CommandContext(t.Context(), binary, append([]string{"bench", "run"}, args...)...)
	run.Env = cleanEnvironment()
	var errs lockedBuffer
	run.Stderr = &errs
	stdout, err = run.Output()
	return stdout, errs.String(), err
}

// TestBenchRun_EveryScenario runs each for a second and looks at what the report says of it.
func TestBenchRun_EveryScenario(t *testing.T) {
	c := startCluster(t, options{nodes: 2, variables: []string{
		"SLUICE_LIMITS__ANONYMOUS__LIMIT=1000000", "SLUICE_LIMITS__USER__LIMIT=1000000",
	}})
	targets := strings.Join(c.urls, ",")
	run := func(name string, args ...string) bench.LoadReport {
		t.Helper()
		html, output := filepath.Join(t.TempDir(), "report.html"), filepath.Join(t.TempDir(), "report.json")
		stdout, stderr, err := runBench(t, append([]string{"--target", targets, "--scenario", name, "--duration", "1s", "--warmup", "0s", "--concurrency", "4",
			"--users", "2", "--keys", "5", "--json", "--html", html, "--output", output}, args...)...)
		if err != nil {
			t.Fatalf("%s: %v\n%s%s", name, err, stdout, stderr)
		}
		var report, written bench.LoadReport
		if err := json.Unmarshal(stdout, &report); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, stdout)
		}
		file, err := os.ReadFile(output)
		if err != nil || json.Unmarshal(file, &written) != nil || written.Seed != report.Seed {
			t.Errorf("%s: --output holds another report: %v", name, err)
		}
		page, err := os.ReadFile(html)
		if err != nil || !strings.Contains(string(page), "<polyline") || !strings.Contains(string(page), "Sluice bench run: "+name) {
			t.Errorf("%s: the page has no plot: %v", name, err)
		}
		p := report.Provenance
		if report.Kind != bench.KindLoad || p.Cluster.Nodes != 2 || p.Cluster.Fsync != "always" || len(p.Cluster.Versions) != 1 || p.Go == "" || p.CPUs < 1 ||
			len(p.Command) < 3 || p.Started.IsZero() {
			t.Errorf("%s: provenance %+v", name, p)
		}
		if len(report.Notes) > 0 {
			t.Errorf("%s: notes: %v", name, report.Notes)
		}
		for _, s := range report.Steps {
			if s.Admitted == 0 || s.Failed > 0 || len(s.Nodes) != 2 || s.Requests > 1 && len(s.Percentiles) < 2 || len(s.Series) == 0 || s.Latency.P50Micros <= 0 ||
				s.Latency.MaxMicros < s.Latency.P99Micros || s.Throughput <= 0 || s.Requests != s.Nodes[0].Requests+s.Nodes[1].Requests {
				t.Errorf("%s: a failure, or a field that is not filled: %s", name, stdout)
			}
		}
		return report
	}
	for _, s := range bench.Scenarios() {
		if r := run(s.Name); len(r.Steps) != 1 || r.Loop != "closed" || r.Steps[0].Rate != 0 {
			t.Errorf("%s: want one step of a closed loop: %+v", s.Name, r)
		}
	}
	mixed := run("mixed", "--mix", "verify-key=30,verify-jwt=10,login=1", "--rate", "50,100", "--distribution", "zipf")
	if len(mixed.Steps) != 2 || mixed.Loop != "open" || mixed.Steps[1].Rate != 100 || len(mixed.Steps[0].Scenarios) != 3 {
		t.Errorf("mixed: want two steps of three scenarios: %+v", mixed)
	}
	if s := mixed.Steps[1]; s.Requests+s.Unsent != 100 || s.Scenarios[0].Requests <= s.Scenarios[2].Requests {
		t.Errorf("mixed: %d requests and %d unsent of 100, by scenario %+v", s.Requests, s.Unsent, s.Scenarios)
	}
	refused := run("verify-key", "--limit", "3", "--window", "60", "--rate", "100")
	if s := refused.Steps[0]; s.Refused == 0 || s.Admitted > 15 || s.AdmissibleRate == nil || *s.AdmissibleRate != 0.25 || s.Limit != 3 || s.Window != 60 {
		t.Errorf("five keys with three a minute: %d admitted, %d refused, told %d in %d s", s.Admitted, s.Refused, s.Limit, s.Window)
	}
	// No answer comes within a microsecond, whatever the rate.
	found := run("verify-key", "--find-max", "--p99", "1us", "--rate", "4")
	if m := found.Max; m == nil || m.Trials != len(found.Steps) || m.Rate != 0 || m.FailedRate != 1 || !strings.Contains(m.Why, "p99 ") {
		t.Errorf("find-max: %+v after %d steps", found.Max, len(found.Steps))
	}
}

// TestBenchRun_TellsAFailingTarget has one node that is not there from the start.
func TestBenchRun_TellsAFailingTarget(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := "http://" + l.Addr().String()
	l.Close()
	c := sharedCluster(t)
	stdout, stderr, err := runBench(t, "--target", c.urls[0]+","+gone, "--duration", "1s")
	if err == nil || !strings.Contains(stderr, "target "+gone+" cannot be reached") || strings.Contains(stderr, c.urls[0]+" cannot") || len(stdout) > 0 {
		t.Errorf("got %v\n%s%s", err, stdout, stderr)
	}
	// A key that nobody knows: the target answers, but not as it should.
	stdout, stderr, err = runBench(t, "--target", c.urls[0], "--key", "sk_test_unknown", "--duration", "1s", "--rate", "20", "--warmup", "0s")
	if err == nil || !strings.Contains(stderr, "target "+c.urls[0]+" admitted none of 20 requests") ||
		!strings.Contains(string(stdout), "FAILED: step 1, "+c.urls[0]) || !strings.Contains(stderr, "status 401") || strings.Contains(stderr+string(stdout), "sk_test_unknown") {
		t.Errorf("got %v\n%s%s", err, stdout, stderr)
	}
}
