package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestErrorsDocument_HasEveryCode compares docs/errors.md with the codes in the sources, both ways.
func TestErrorsDocument_HasEveryCode(t *testing.T) {
	t.Parallel()
	document, err := os.ReadFile("../../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^### ([a-z_]+)$`).FindAllStringSubmatch(string(document), -1) {
		documented[m[1]] = true
	}
	inSources := map[string]bool{"cluster_unavailable": true, "overloaded": true}
	patterns := []*regexp.Regexp{
		regexp.MustCompile(`[pP]roblem\(http\.Status\w+,\s*"([a-z_]+)"`),
		regexp.MustCompile(`\n\tCode[A-Z]\w+\s*=\s*"([a-z_]+)"`),
	}
	files, err := filepath.Glob("../../authapi/*.go")
	if err != nil {
		t.Fatal(err)
	}
	admin, err := filepath.Glob("../../node/admin*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(append(files, admin...), "../../raftfsm/state/result.go") {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range patterns {
			for _, m := range p.FindAllStringSubmatch(string(text), -1) {
				inSources[m[1]] = true
			}
		}
	}
	delete(inSources, "invalid_command") // between nodes, never a client's
	delete(inSources, "already_used")    // likewise
	var missing, extra []string
	for code := range inSources {
		if !documented[code] {
			missing = append(missing, code)
		}
	}
	for code := range documented {
		if !inSources[code] {
			extra = append(extra, code)
		}
	}
	slices.Sort(missing)
	slices.Sort(extra)
	if len(missing) > 0 || len(extra) > 0 || len(inSources) < 20 {
		t.Errorf("codes without a section: %v; sections without a code: %v; %d codes in the sources", missing, extra, len(inSources))
	}
}

// TestAuditDocument_HasEveryEvent compares docs/audit.md with the events in the sources, both ways.
func TestAuditDocument_HasEveryEvent(t *testing.T) {
	t.Parallel()
	document, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[string]bool)
	for _, row := range regexp.MustCompile("(?m)^\\| (`[a-z_]+\\.[^|]*)\\|").FindAllStringSubmatch(string(document), -1) {
		for _, m := range regexp.MustCompile("`([a-z_]+\\.[a-z_]+)`").FindAllStringSubmatch(row[1], -1) {
			documented[m[1]] = true
		}
	}
	inSources := make(map[string]bool)
	event := regexp.MustCompile(`"((?:access|api_key|credential|identity|limit|member|oauth|organization|policy|secrets_key|session|signing_key|token|user)\.[a-z_]+)"`)
	ofNodes := regexp.MustCompile(`operatorEvent\("([a-z_]+\.[a-z_]+)"`)
	files, err := filepath.Glob("../../authapi/*.go")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob("../../node/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, more...) {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		names := event
		if slices.Contains(more, file) {
			names = ofNodes // its settings are spelt like events
		}
		for _, m := range names.FindAllStringSubmatch(string(text), -1) {
			inSources[m[1]] = true
		}
	}
	for name := range inSources {
		if !documented[name] {
			t.Errorf("%s is not in the list", name)
		}
	}
	for name := range documented {
		if !inSources[name] {
			t.Errorf("%s is in the list and nowhere else", name)
		}
	}
	if len(inSources) < 15 {
		t.Errorf("%d events found in the sources", len(inSources))
	}
}

// TestRunbook_HasEveryAlert compares the headings of docs/runbook.md with the alerts, both ways: each alert links to its section.
func TestRunbook_HasEveryAlert(t *testing.T) {
	t.Parallel()
	names := func(file, after, pattern string) []string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, part, _ := strings.Cut(string(text), after)
		var found []string
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(part, -1) {
			found = append(found, m[1])
		}
		slices.Sort(found)
		return found
	}
	alerts := names("../../deploy/prometheus/alerts.yml", "", `(?m)^\s+- alert: (\w+)$`)
	sections := names("../../docs/runbook.md", "\n## Alerts\n", `(?m)^### (.+)$`)
	if len(alerts) < 20 || !slices.Equal(alerts, sections) {
		t.Errorf("alerts %v; sections of the runbook %v", alerts, sections)
	}
}
