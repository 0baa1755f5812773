package systemtest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// TestCheck_IsNeverExceeded spreads the crowd's checks of one key over the nodes: never more than the limit, and all of it in the
// end, give or take one.
func TestCheck_IsNeverExceeded(t *testing.T) {
	c := sharedCluster(t)
	a := register(t, c.urls[0])
	key := a.newKey(t, c.urls[1], 1_000_000, "limits:check")
	const limit = 100
	ask := request{
		method: "POST", path: "/api/v1/limits/check", key: key.secret, address: a.address,
		body: map[string]any{"key": "crowd", "limit": limit, "window_seconds": 86_400, "algorithm": "sliding_window"},
	}
	var mu sync.Mutex
	passed, failed := 0, error(nil)
	one := func(i int) {
		res, err := send(c.urls[i%len(c.urls)], ask)
		var v struct{ Allowed bool }
		if err == nil && res.status != http.StatusOK {
			err = fmt.Errorf("got %v", res)
		}
		if err == nil {
			err = json.Unmarshal(res.body, &v)
		}
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			failed = err
		}
		if v.Allowed {
			passed++
		}
	}
	next := make(chan int, crowd)
	for i := range crowd {
		next <- i
	}
	close(next)
	var all sync.WaitGroup
	for range concurrency {
		all.Go(func() {
			for i := range next {
				one(i)
			}
		})
	}
	all.Wait()
	t.Logf("%d passed at once", passed)
	for i := range 10 * len(c.urls) {
		one(i)
	}
	if failed != nil {
		t.Fatal(failed)
	}
	// The end of a day changes nothing: what was used before it is still in view of the sliding window, all but whole.
	if passed > limit || passed < limit-1 {
		t.Errorf("%d checks passed, want %d or %d", passed, limit-1, limit)
	}
}

var fenced = regexp.MustCompile("(?s)\n```(sh|go|python|js)\n(.*?)\n```\n")

// TestCheck_Examples runs what docs/check-api.md shows, and all of it counts in one bucket.
func TestCheck_Examples(t *testing.T) {
	c := sharedCluster(t)
	doc, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "check-api.md"))
	if err != nil {
		t.Fatal(err)
	}
	programs := map[string]string{}
	for _, m := range fenced.FindAllStringSubmatch(string(doc), -1) {
		if programs[m[1]] != "" {
			t.Fatalf("two examples for %s", m[1])
		}
		programs[m[1]] = m[2]
	}
	a := register(t, c.urls[0])
	key := a.newKey(t, c.urls[0], 0, "limits:check")
	dir := t.TempDir()
	run := func(language, file string, command ...string) string {
		t.Helper()
		if programs[language] == "" {
			t.Fatalf("no example for %s", language)
		}
		path := filepath.Join(dir, file)
		if err := os.WriteFile(path, []byte(programs[language]+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(command[0], append(command[1:], path)...)
		cmd.Env = append(os.Environ(), "SLUICE_URL="+c.urls[len(file)%len(c.urls)], "SLUICE_KEY="+key.secret, "GOFLAGS=")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", language, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	examples := []struct{ language, file, program, argument string }{
		{"sh", "example.sh", "sh", ""},
		{"go", "example.go", "go", "run"},
		{"python", "example.py", "python3", ""},
		{"js", "example.js", "node", ""},
	}
	needProgram(t, "curl") // which the first one calls
	left := 5
	for round := 0; left >= 0; round++ {
		e := examples[round%len(examples)]
		command := []string{needProgram(t, e.program)}
		if e.argument != "" {
			command = append(command, e.argument)
		}
		got := run(e.language, e.file, command...)
		left--
		want := fmt.Sprintf("allowed, %d left", left)
		switch {
		case e.language == "sh":
			want = fmt.Sprintf(`"allowed":true,"limit":5,"remaining":%d,`, left)
		case left < 0:
			want = "refused, try again in "
		}
		if !strings.Contains(got, want) {
			t.Errorf("%s printed %q, want %q", e.language, got, want)
		}
	}
}
