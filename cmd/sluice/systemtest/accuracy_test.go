package systemtest

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sluice/bench"
)

// TestBenchAccuracy_FindsNothing runs the measurement as a user would, on nodes that say whether they waited.
func TestBenchAccuracy_FindsNothing(t *testing.T) {
	c := startCluster(t, options{variables: []string{"SLUICE_LIMITS__DEBUG_HEADER=true"}})
	report := benchAccuracy(t, c, "--window", "4", "--patterns", "edge,hopping")
	for _, r := range report.Results {
		if r.Admitted < 10 || r.Failed > 0 || r.WastedPercent == nil || *r.WastedPercent > 0 || r.WaitedPercent == nil {
			t.Errorf("%s: not all of the limit, a failure, or not said whether a decision waited: %+v", r.Pattern, r)
		}
	}
}

// TestBenchAccuracy_TokenBucket is the same of token buckets, which have no windows to be used up in.
func TestBenchAccuracy_TokenBucket(t *testing.T) {
	c := startCluster(t, options{variables: []string{"SLUICE_LIMITS__DEBUG_HEADER=true", "SLUICE_LIMITS__API_KEY__ALGORITHM=token_bucket"}})
	report := benchAccuracy(t, c, "--algorithm", "token_bucket", "--window", "4", "--patterns", "hopping,sustained", "--duration", "3s")
	for _, r := range report.Results {
		if r.Admitted < 10 || r.Failed > 0 || r.Burst != 10 || r.WastedPercent == nil || *r.WastedPercent > 20 || r.WaitedPercent == nil {
			t.Errorf("%s: little of the limit, a failure, or not said whether a decision waited: %+v", r.Pattern, r)
		}
	}
}

// benchAccuracy measures a limit of 10 with two patterns.
func benchAccuracy(t *testing.T, c *cluster, args ...string) (report bench.Report) {
	t.Helper()
	html := filepath.Join(t.TempDir(), "report.html")
	args = append([]string{"bench", "accuracy", "--json", "--target", strings.Join(c.urls, ","), "--limit", "10", "--requests", "300", "--deadline", "1m", "--html", html}, args...)
	run := exec.CommandContext(t.Context(), binary, args...)
	run.Env = cleanEnvironment()
	var stderr lockedBuffer
	run.Stderr = &stderr
	stdout, err := run.Output()
	if err != nil {
		t.Fatalf("sluice bench accuracy: %v\n%s%s", err, stdout, stderr.String())
	}
	if err := json.Unmarshal(stdout, &report); err != nil {
		t.Fatalf("report: %v\n%s", err, stdout)
	}
	if len(report.Results) != 2 || report.OverAdmitted {
		t.Errorf("%d results, over-admitted %v, want 2 and false", len(report.Results), report.OverAdmitted)
	}
	if p := report.Provenance; report.Kind != bench.KindAccuracy || report.Schema != bench.SchemaReport || p.Cluster.Nodes != 3 || p.Cluster.Fsync != "always" || len(p.Command) < 3 {
		t.Errorf("%s %d, provenance %+v", report.Kind, report.Schema, p)
	}
	plotted := report.Results[0].Burst == 0 // a token bucket has no windows
	if page, err := os.ReadFile(html); err != nil || strings.Contains(string(page), "Admitted in each window: hopping") != plotted || !strings.Contains(string(page), "no limit was exceeded") {
		t.Errorf("the page: %v\n%s", err, page)
	}
	return report
}
