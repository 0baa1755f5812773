package bench

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestLoad_BesideAnother has a server that is slow while anybody signs in. Both figures must tell it.
func TestLoad_BesideAnother(t *testing.T) {
	t.Parallel()
	var signingIn atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/api/v1/limits/check":
			signingIn.Add(1)
			time.Sleep(20 * time.Millisecond)
			signingIn.Add(-1)
			_, _ = w.Write([]byte(`{"allowed":true}`))
		case signingIn.Load() > 0:
			time.Sleep(60 * time.Millisecond)
		}
	}))
	defer server.Close()
	load := Load{
		Targets: []string{server.URL}, Scenario: "verify-key", APIKeys: []string{"sk_test_x"}, Rates: []float64{50}, Duration: time.Second,
		Warmup: -1, Concurrency: 16, Seed: 1, Beside: &Beside{Scenario: "limits-check", Concurrency: 3, P99Micros: 5_000},
	}
	report, err := load.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Steps) != 2 || report.Steps[0].Beside != nil || report.Steps[1].Beside == nil || report.Steps[1].Beside.Admitted == 0 {
		t.Fatalf("steps %+v", report.Steps)
	}
	b := report.Beside
	if b == nil || b.BesideP99 < 60_000 || b.AloneP99 >= b.BesideP99 || b.Ratio.Median <= 1 || b.Allowed < 5_000 {
		t.Errorf("beside: %+v", b)
	}
	if b != nil && b.Exceeded != (b.BesideP99 > b.Allowed) {
		t.Errorf("beside: %+v", b)
	}
	var text strings.Builder
	if err := report.WriteText(&text); err != nil || !strings.Contains(text.String(), "beside: limits-check") || !strings.Contains(text.String(), "beside 3 connections of limits-check") {
		t.Errorf("text: %v\n%s", err, text.String())
	}
	figures, _ := report.samples()
	if len(figures) != 6 || figures[0].Name != "verify-key at 50/s, answers/s" || figures[3].Name != "verify-key at 50/s beside limits-check, answers/s" {
		t.Errorf("figures %+v", figures)
	}
}

func TestLoad_BesideMistakes(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*Load){
		"there is no \"nothing\"": func(l *Load) { l.Beside.Scenario = "nothing" },
		"leaves more behind":      func(l *Load) { l.Beside.Scenario = "register" },
		"concurrency":             func(l *Load) { l.Beside.Concurrency = MaxConcurrency + 1 },
		"one rate":                func(l *Load) { l.Rates = []float64{1, 2} },
	} {
		load := Load{Targets: []string{"http://127.0.0.1:1"}, Scenario: "verify-key", Beside: &Beside{Scenario: "login"}}
		change(&load)
		_, err := load.Run(t.Context())
		var options *OptionError
		if !errors.As(err, &options) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
