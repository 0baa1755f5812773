package systemtest

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"sluice/bench"
)

// TestBenchAccuracy_FindsNothing runs the measurement as a user would, on nodes that say whether they waited.
func TestBenchAccuracy_FindsNothing(t *testing.T) {
	c := startCluster(t, options{variables: []string{"SLUICE_LIMITS__DEBUG_HEADER=true"}})
	run := exec.CommandContext(t.Context(), binary, "bench", "accuracy", "--json", "--target", strings.Join(c.urls, ","), "--limit", "10",
		"--window", "4", "--patterns", "edge,hopping", "--requests", "300", "--deadline", "1m")
	run.Env = cleanEnvironment()
	var stderr lockedBuffer
	run.Stderr = &stderr
	stdout, err := run.Output()
	if err != nil {
		t.Fatalf("sluice bench accuracy: %v\n%s%s", err, stdout, stderr.String())
	}
	var report bench.Report
	if err := json.Unmarshal(stdout, &report); err != nil {
		t.Fatalf("report: %v\n%s", err, stdout)
	}
	if len(report.Results) != 2 || report.OverAdmitted {
		t.Errorf("%d results, over-admitted %v, want 2 and false", len(report.Results), report.OverAdmitted)
	}
	for _, r := range report.Results {
		if r.Admitted < 10 || r.Failed > 0 || r.WastedPercent == nil || *r.WastedPercent > 0 || r.WaitedPercent == nil {
			t.Errorf("%s: not all of the limit, a failure, or not said whether a decision waited: %s", r.Pattern, stdout)
		}
	}
}
