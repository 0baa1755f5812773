package systemtest

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var alerts = filepath.Join("..", "..", "..", "deploy", "prometheus", "alerts.yml")

// TestAlerts_Promtool has Prometheus' own tool check the rules, and what they do with some histories.
func TestAlerts_Promtool(t *testing.T) {
	promtool := needProgram(t, "promtool")
	for _, args := range [][]string{
		{"check", "rules", filepath.Base(alerts)}, {"test", "rules", "alerts_test.yml"},
	} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = filepath.Dir(alerts)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// scrape reads a node's metrics.
func scrape(t *testing.T, c *cluster, node int) []byte {
	t.Helper()
	config, err := os.ReadFile(filepath.Join(c.dir, "node"+strconv.Itoa(node)+".toml"))
	if err != nil {
		t.Fatal(err)
	}
	listen := regexp.MustCompile(`(?s)\[admin\].*?listen = "([^"]+)"`).FindSubmatch(config)
	if listen == nil {
		t.Fatalf("node%d has no admin listener:\n%s", node, config)
	}
	resp, err := http.Get("http://" + string(listen[1]) + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("metrics of node%d: %d, %v", node, resp.StatusCode, err)
	}
	return body
}

// TestMetrics_Live holds what a running node serves against the rules and the runbook, which name only metrics that there are, and has
// Prometheus' own tool look at its form.
func TestMetrics_Live(t *testing.T) {
	c := sharedCluster(t)
	served := scrape(t, c, 1)
	named := regexp.MustCompile(`sluice_[a-z0-9_]+`)
	for _, file := range []string{alerts, filepath.Join("..", "..", "..", "docs", "runbook.md")} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range named.FindAllString(string(text), -1) {
			base := strings.TrimSuffix(name, "_bucket")
			if text := string(served); !strings.Contains(text, "# TYPE "+base+" ") && !strings.Contains(text, "\n"+base+" ") {
				t.Errorf("%s names %s, which no node serves", file, name)
			}
		}
	}
	cmd := exec.Command(needProgram(t, "promtool"), "check", "metrics")
	cmd.Stdin = bytes.NewReader(served)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}
