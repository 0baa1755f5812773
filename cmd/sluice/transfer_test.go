package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"sluice/authapi"
)

func TestImport_SendsInPieces(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var firsts []string
	lines := 0
	address := adminOf(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Header.Get("Content-Type") != "application/x-ndjson" || r.URL.Query().Get("dry_run") != "true" {
			t.Errorf("called %s %s: %v", r.Method, r.URL, err)
		}
		mu.Lock()
		defer mu.Unlock()
		n := strings.Count(string(body), "line")
		lines += n
		firsts = append(firsts, r.URL.Query().Get("first_line"))
		report := authapi.ImportReport{Lines: n, Users: n - 1, Failed: 1, Errors: []authapi.ImportError{{Line: lines, Code: "email_taken", Detail: "d"}}}
		if err := json.NewEncoder(w).Encode(report); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(path, []byte(strings.Repeat("line\n", importLines+1)+"line"), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := program(t, nil, "import", path, "--dry-run", "--admin", address)
	want := fmt.Sprintf("line %d: email_taken: d\nline %d: email_taken: d\n%d lines: %d users and 0 keys would be added, 0 exist, 2 not taken;", importLines, importLines+2, importLines+2, importLines)
	if code != exitFailed || !strings.HasPrefix(stdout, want) || !strings.Contains(stderr, fmt.Sprintf("2 of %d lines were not taken", importLines+2)) {
		t.Errorf("code %d, %s%s", code, stdout, stderr)
	}
	if got := strings.Join(firsts, " "); got != fmt.Sprintf("1 %d", importLines+1) {
		t.Errorf("first lines %s", got)
	}
}

func TestExport_WritesAFile(t *testing.T) {
	t.Parallel()
	cut := false
	address := adminOf(t, func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"type":"user"}`+"\n")
		if cut {
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
	})
	path := filepath.Join(t.TempDir(), "out")
	if stdout, stderr, code := program(t, nil, "export", path, "--admin", address); code != exitDone {
		t.Fatalf("code %d, %s%s", code, stdout, stderr)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != `{"type":"user"}`+"\n" {
		t.Errorf("%s, %v", text, err)
	}
	if _, stderr, code := program(t, nil, "export", path, "--admin", address); code != exitUsage || !strings.Contains(stderr, "exists") {
		t.Errorf("code %d, %s", code, stderr)
	}
	if stdout, _, code := program(t, nil, "export", "--admin", address); code != exitDone || stdout != `{"type":"user"}`+"\n" {
		t.Errorf("code %d, %s", code, stdout)
	}
	cut = true
	broken := filepath.Join(t.TempDir(), "broken")
	if _, _, code := program(t, nil, "export", broken, "--admin", address); code != exitFailed {
		t.Errorf("a cut answer: code %d", code)
	}
	if list, err := os.ReadDir(filepath.Dir(broken)); err != nil || len(list) != 0 {
		t.Errorf("left behind: %v, %v", list, err)
	}
}
