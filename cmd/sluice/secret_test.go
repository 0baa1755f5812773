package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"sluice/node"
)

func TestSecret_StatusAndRotate(t *testing.T) {
	t.Parallel()
	status := node.SecretsStatus{
		Key: "aaaa", Configured: "bbbb", Nodes: []node.SecretsNode{{ID: "nod_a", Name: "one", Alive: true, Keys: []string{"bbbb", "aaaa"}}, {ID: "nod_b"}},
	}
	address := adminOf(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + r.URL.Path {
		case "GET /v1/secrets":
			if err := json.NewEncoder(w).Encode(status); err != nil {
				t.Error(err)
			}
		case "GET /v1/cluster":
			if err := json.NewEncoder(w).Encode(node.ClusterStatus{Cluster: "c", Secrets: &status}); err != nil {
				t.Error(err)
			}
		case "POST /v1/secrets/rotate":
			var in node.RotateSecrets
			if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
				t.Error(err)
			}
			if !in.Force {
				w.Header().Set("Content-Type", "application/problem+json")
				w.WriteHeader(http.StatusConflict)
				fmt.Fprint(w, `{"status":409,"code":"conflict","detail":"nod_b does not answer"}`)
				return
			}
			fmt.Fprint(w, `{"key":"bbbb","previous":"aaaa"}`)
		default:
			t.Errorf("called %s %s", r.Method, r.URL.Path)
		}
	})
	say := func(want int, words ...string) string {
		t.Helper()
		stdout, stderr, code := program(t, nil, append(words, "--admin", address)...)
		if code != want {
			t.Errorf("%v: code %d, %s", words, code, stderr)
		}
		return stdout + stderr
	}
	if text := say(exitDone, "secret", "status"); !strings.Contains(text, "under key aaaa") || !strings.Contains(text, "nod_a  one   yes    bbbb aaaa\n") ||
		!strings.Contains(text, "nod_b  -     no     -\n") || !strings.Contains(text, "would seal under bbbb") || !strings.Contains(text, "no leader tells") {
		t.Errorf("before:\n%s", text)
	}
	if text := say(exitFailed, "secret", "rotate"); !strings.Contains(text, "nod_b does not answer") {
		t.Errorf("refused: %s", text)
	}
	if text := say(exitDone, "secret", "rotate", "--force"); !strings.Contains(text, "under bbbb from now on; aaaa is needed until") {
		t.Errorf("rotate: %s", text)
	}
	status.Key = "bbbb"
	status.Progress = &node.SecretsProgress{Leader: "nod_a", Key: "bbbb", Records: 10, Checked: 4, Resealed: 3, CheckedAt: time.Unix(0, 0)}
	for _, words := range [][]string{{"secret", "status"}, {"cluster", "status"}} {
		if text := say(exitDone, words...); !strings.Contains(text, "looked at 4 of 10 records, 3 sealed anew; the keys before it are still needed\n") {
			t.Errorf("%v under way:\n%s", words, text)
		}
	}
	status.Progress.Done, status.Unused = true, []string{"aaaa"}
	if text := say(exitDone, "secret", "status"); !strings.Contains(text, "all 10 records are sealed under it\nnot needed any more, and to be taken out of secrets.previous_key_file: aaaa\n") {
		t.Errorf("done:\n%s", text)
	}
	if text := say(exitDone, "cluster", "status"); strings.Contains(text, "seal") {
		t.Errorf("cluster status tells of what is done:\n%s", text)
	}
	status.Problems = []string{"3 secrets at rest cannot be opened"}
	if text := say(exitFailed, "secret", "status"); !strings.Contains(text, "! 3 secrets at rest") {
		t.Errorf("a problem:\n%s", text)
	}
}
