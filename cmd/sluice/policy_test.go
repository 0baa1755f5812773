package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sluice/node"
)

// policyAdmin answers about settings at version 4: a check of "same" finds the same, one of "bad" mistakes, and a change beside
// another a conflict. What was changed is in the channel.
func policyAdmin(t *testing.T) (address string, changed chan string) {
	t.Helper()
	changed = make(chan string, 1)
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	old, from, to := uint64(2), "10", "20"
	plan := node.SettingsPlan{Version: 4, Changes: []node.SettingChange{{Key: "limits.user.limit", From: &from, To: &to}}, Notes: []string{"a note"}}
	fail := func(w http.ResponseWriter, p node.AdminProblem) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(p.Status)
		if err := json.NewEncoder(w).Encode(p); err != nil {
			t.Error(err)
		}
	}
	mux := http.NewServeMux()
	answer := func(pattern string, fn func(r *http.Request) any) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			out := fn(r)
			if p, ok := out.(node.AdminProblem); ok {
				fail(w, p)
				return
			}
			if err := json.NewEncoder(w).Encode(out); err != nil {
				t.Error(err)
			}
		})
	}
	decode := func(r *http.Request, in any) {
		if err := json.NewDecoder(r.Body).Decode(in); err != nil || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
		}
	}
	version := node.SettingsVersion{Version: 4, AppliedAt: &at, SHA256: "0123456789abcdef", Bytes: 5, Address: "127.0.0.1", Restores: &old}
	answer("GET /v1/settings", func(*http.Request) any {
		return node.Settings{SettingsVersion: version, Text: "# new\n", Running: 3, Problem: "it does not go"}
	})
	answer("GET /v1/settings/versions/2", func(*http.Request) any {
		return node.Settings{SettingsVersion: node.SettingsVersion{Version: 2, AppliedAt: &at}, Text: "# old\n", Running: 4}
	})
	answer("GET /v1/settings/versions", func(*http.Request) any {
		return node.SettingsVersions{Data: []node.SettingsVersion{version, {Version: 3, AppliedAt: &at, Bytes: 7}}}
	})
	answer("POST /v1/settings/check", func(r *http.Request) any {
		var in node.SettingsCheck
		decode(r, &in)
		switch {
		case in.Version != nil:
			return plan
		case *in.Text == "same":
			return node.SettingsPlan{Version: 4, Same: true}
		case *in.Text == "bad":
			return node.AdminProblem{Status: 422, Code: "invalid_input", Detail: "x", Errors: []node.AdminFieldError{
				{Field: "limits.user.limit", Detail: "want a whole number", Source: in.Source, Line: 3, Column: 1}, {Field: "http", Detail: "does not change live", Source: in.Source, Line: 5, Column: 2}}}
		}
		return plan
	})
	answer("PUT /v1/settings", func(r *http.Request) any {
		var in node.SettingsPut
		decode(r, &in)
		if *in.Text == "late" {
			return node.AdminProblem{Status: 409, Code: "conflict", Detail: "at version 5, not 4"}
		}
		changed <- fmt.Sprintf("put %s at %d", *in.Text, *in.ExpectedVersion)
		done := node.SettingsApplied{SettingsPlan: plan, Applied: true}
		done.Version, done.Notes = 5, append(done.Notes, "another note")
		return done
	})
	answer("POST /v1/settings/rollback", func(r *http.Request) any {
		var in node.SettingsRollback
		decode(r, &in)
		changed <- fmt.Sprintf("back to %d at %d", *in.Version, *in.ExpectedVersion)
		done := node.SettingsApplied{SettingsPlan: plan, Applied: true}
		done.Version = 5
		return done
	})
	return adminOf(t, mux.ServeHTTP), changed
}

func TestPolicy(t *testing.T) {
	t.Parallel()
	address, changed := policyAdmin(t)
	dir := t.TempDir()
	file := func(text string) string {
		path := filepath.Join(dir, text+".toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const planned = "against version 4:\n~ limits.user.limit = 10 → 20\n! a note\n"
	for _, test := range []struct {
		args     string
		stdin    string
		terminal bool
		code     int
		stdout   string // whole
		stderr   string // a part
		changed  string // what the node was told, "" for nothing
	}{
		{args: "show", stdout: "# new\n", stderr: "version 4, applied 2030-01-02T03:04:05Z from 127.0.0.1, brought version 2 back\n! the node goes by version 3: it does not go\n"},
		{args: "show --version 2", stdout: "# old\n", stderr: "version 2, applied"},
		{args: "history", stdout: "VERSION  APPLIED               FROM       BYTES  RESTORES  SHA256\n4        2030-01-02T03:04:05Z  127.0.0.1  5      2         0123456789ab\n3        2030-01-02T03:04:05Z  -          7      -         \n"},
		{args: "diff " + file("new"), stdout: planned},
		{args: "diff -", stdin: "same", stdout: "version 4 is the same\n"},
		{args: "diff " + file("bad"), code: exitUsage, stderr: "bad.toml:3:1: limits.user.limit: want a whole number\n" + filepath.Join(dir, "bad.toml") + ":5:2: http: does not change live\n"},
		{args: "diff " + filepath.Join(dir, "not-there"), code: exitUsage, stderr: "no such file"},
		{args: "apply " + file("new"), code: exitUsage, stderr: "--yes is needed"},
		{args: "apply -", stdin: "new", terminal: true, code: exitUsage, stderr: "--yes is needed"},
		{args: "apply --yes " + file("new"), stdout: planned + "! another note\nversion 5 is in force\n", changed: "put new at 4"},
		{args: "apply --yes -", stdin: "new", stdout: planned + "! another note\nversion 5 is in force\n", changed: "put new at 4"},
		{args: "apply " + file("new"), terminal: true, stdin: "y\n", stdout: planned + "! another note\nversion 5 is in force\n", stderr: "Apply this as version 5? [y/N] ", changed: "put new at 4"},
		{args: "apply " + file("new"), terminal: true, stdin: "\n", code: exitFailed, stdout: planned, stderr: "nothing was changed"},
		{args: "apply " + file("new"), terminal: true, code: exitFailed, stdout: planned, stderr: "nothing was changed"},
		{args: "apply --yes " + file("same"), stdout: "version 4 is the same\n"},
		{args: "apply --yes " + file("bad"), code: exitUsage, stderr: "bad.toml:3:1: limits.user.limit"},
		{args: "apply --yes " + file("late"), code: exitFailed, stdout: planned, stderr: "conflict: at version 5, not 4"},
		{args: "rollback 2", code: exitUsage, stderr: "--yes is needed"},
		{args: "rollback 2 --yes", stdout: planned + "version 5 is in force\n", changed: "back to 2 at 4"},
		{args: "rollback 2", terminal: true, stdin: "YES\n", stdout: planned + "version 5 is in force\n", stderr: "Bring version 2 back as version 5? [y/N] ", changed: "back to 2 at 4"},
		{args: "rollback two --yes", code: exitUsage, stderr: "two"},
	} {
		var stdout, stderr bytes.Buffer
		args := append([]string{"policy"}, strings.Fields(test.args)...)
		code := run(context.Background(), append(args, "--admin", address), environment{
			stdin: strings.NewReader(test.stdin), terminal: test.terminal, stdout: &stdout, stderr: &stderr,
		})
		did := ""
		select {
		case did = <-changed:
		default:
		}
		if code != test.code || stdout.String() != test.stdout || !strings.Contains(stderr.String(), test.stderr) || did != test.changed {
			t.Errorf("%s: code %d, changed %q\n%s\n%s", test.args, code, did, stdout.String(), stderr.String())
		}
	}
	stdout, stderr, code := program(t, nil, "policy", "apply", "--yes", "--output", "json", "--admin", address, file("new"))
	var out node.SettingsApplied
	if err := json.Unmarshal([]byte(stdout), &out); err != nil || code != exitDone || !out.Applied || out.Version != 5 || stderr != planned {
		t.Errorf("code %d, %v: %s\n%s", code, err, stdout, stderr)
	}
}
