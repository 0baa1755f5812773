package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sluice/bench"
)

// TestMain lets this binary be the front of Redis, as the program is.
func TestMain(m *testing.M) {
	if os.Getenv(frontVariable) != "" {
		os.Exit(code(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr), os.Stderr))
	}
	os.Exit(m.Run())
}

// peers runs the program and decodes its report.
func peers(t *testing.T, args ...string) bench.PeersReport {
	t.Helper()
	var stdout, stderr bytes.Buffer
	html := filepath.Join(t.TempDir(), "report.html")
	args = append(args, "-json", "-rounds", "2", "-duration", "1s", "-warmup", "0s", "-concurrency", "4", "-html", html)
	if err := run(t.Context(), args, &stdout, &stderr); err != nil {
		t.Fatalf("peers %v: %v\n%s", args, err, stderr.String())
	}
	var report bench.PeersReport
	if err := json.Unmarshal(stdout.Bytes(), &report); err != nil {
		t.Fatalf("report: %v\n%s", err, stdout.String())
	}
	if page, err := os.ReadFile(html); err != nil || !strings.Contains(string(page), "Throughput by round") {
		t.Errorf("the page: %v", err)
	}
	return report
}

// TestPeers_AllLimit gives every peer that is installed a limit that the load exceeds. One that lets everything through
// would be measured at other work than the rest.
func TestPeers_AllLimit(t *testing.T) {
	for _, scenario := range []string{"verify-key", "limits-check"} {
		report := peers(t, "-scenario", scenario, "-limit", "3", "-window", "60", "-keys", "2")
		names := make(map[string]bool)
		for _, p := range report.Peers {
			names[p.Name] = true
			if len(p.Rounds) != 2 {
				t.Errorf("%s, %s: %d rounds", scenario, p.Name, len(p.Rounds))
			}
			for _, r := range p.Rounds {
				if r.Failed > 0 || r.Throughput <= 0 || r.P99Micros < r.P50Micros {
					t.Errorf("%s, %s: %+v", scenario, p.Name, r)
				}
				if limits := p.Name != floorName; limits != (r.Refused > 0) {
					t.Errorf("%s, %s: %d refused of %d", scenario, p.Name, r.Refused, r.Admitted+r.Refused)
				}
			}
		}
		if !names[floorName] || !names[sluiceName] || len(report.Peers)+len(report.Notes) != countOf(scenario) {
			t.Errorf("%s: peers %v, notes %v", scenario, names, report.Notes)
		}
		if c := report.Provenance.Cluster; c.Nodes != 1 || c.Fsync != "always" {
			t.Errorf("%s: cluster %+v", scenario, c)
		}
	}
}

// countOf is how many peers a scenario has.
func countOf(scenario string) (n int) {
	for _, p := range allPeers() {
		if p.does(scenario) {
			n++
		}
	}
	return n
}

// TestPeers_Writes measures the creation of keys against bare Raft.
func TestPeers_Writes(t *testing.T) {
	report := peers(t, "-scenario", "create-key", "-nodes", "3")
	if len(report.Peers) != 2 || report.Reference != raftName || report.Peers[0].Name != raftName || report.Provenance.Cluster.Nodes != 3 {
		t.Fatalf("%+v", report)
	}
	for _, p := range report.Peers {
		for _, r := range p.Rounds {
			if r.Failed+r.Refused > 0 || r.Admitted == 0 || r.P99Micros < r.P50Micros || r.P50Micros <= 0 {
				t.Errorf("%s: %+v", p.Name, r)
			}
		}
	}
}

// TestPeers_AdmitAll has a limit out of reach, as measurements do.
func TestPeers_AdmitAll(t *testing.T) {
	for _, p := range peers(t, "-scenario", "limits-check").Peers {
		for _, r := range p.Rounds {
			if r.Failed+r.Refused > 0 || r.Admitted == 0 {
				t.Errorf("%s: %+v", p.Name, r)
			}
		}
	}
}

// TestPeers_Gubernator speaks to what answers as a gubernator does.
func TestPeers_Gubernator(t *testing.T) {
	answers := make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var asked struct {
			Requests []struct {
				Name, UniqueKey       string
				Hits, Limit, Duration int
			}
		}
		switch r.URL.Path {
		case "/v1/HealthCheck":
			return
		case "/api/v1/health": // whether it is a node of Sluice
			http.NotFound(w, r)
			return
		}
		if r.URL.Path != "/v1/GetRateLimits" || json.NewDecoder(r.Body).Decode(&asked) != nil || len(asked.Requests) != 1 || asked.Requests[0].Limit != 7 ||
			asked.Requests[0].Duration != 60_000 || asked.Requests[0].Hits != 1 || asked.Requests[0].UniqueKey == "" {
			select {
			case answers <- fmt.Sprintf("%s %+v", r.URL.Path, asked):
			default:
			}
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		fmt.Fprint(w, `{"responses":[{"status":"OVER_LIMIT","limit":"7","remaining":"0"}]}`)
	}))
	defer server.Close()
	report := peers(t, "-peers", "floor,gubernator", "-gubernator", server.URL, "-scenario", "limits-check", "-limit", "7", "-window", "60", "-keys", "2")
	if len(report.Peers) != 2 || report.Peers[1].Rounds[0].Refused == 0 || report.Peers[1].Rounds[0].Failed > 0 {
		t.Errorf("%+v", report.Peers)
	}
	select {
	case wrong := <-answers:
		t.Errorf("asked %s", wrong)
	default:
	}
}

func TestParse_Mistakes(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		"there is no \"memcached\"": {"-peers", "floor,memcached"}, "-scenario: want": {"-scenario", "login"}, "redis has no create-key": {"-scenario", "create-key", "-peers", "raft,redis"}, "-rounds: want": {"-rounds", "0"},
		"-nodes: want": {"-nodes", "10"}, "-window: want": {"-window", "5"}, "unexpected argument": {"x"}, "its URL is needed": {"-peers", "gubernator"},
		"limits-check alone": {"-gubernator", "http://x"}, "not defined": {"-loud"},
	} {
		err := run(t.Context(), args, &bytes.Buffer{}, &bytes.Buffer{})
		var usage *usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: got %v, want %q", args, err, want)
		}
	}
}

// TestFind_SaysWhatToInstall looks for what is nowhere.
func TestFind_SaysWhatToInstall(t *testing.T) {
	t.Parallel()
	_, err := find("no-such-server", "no-such-package")
	var missing *missingError
	if !errors.As(err, &missing) || !strings.Contains(err.Error(), "apt-get install no-such-package") {
		t.Errorf("got %v", err)
	}
}
