package main

import (
	"os/exec"
	"strings"
	"testing"
)

func TestCompletion_Bash(t *testing.T) {
	t.Parallel()
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Fatalf("the script is for bash, and there is none: %v", err)
	}
	script, stderr, code := program(t, nil, "completion", "bash")
	if code != exitDone {
		t.Fatalf("code %d, %s", code, stderr)
	}
	for _, test := range []struct{ words, want string }{
		{"''", "backup"},
		{"cluster ''", "transfer-leader"},
		{"cluster rem", "remove"},
		{"cluster remove --fo", "--force"},
		{"backup ver", "verify"},
		{"backup --key", "--key-file"},
		{"--config x cluster sta", "status"},
	} {
		ask := script + "\nCOMP_WORDS=(sluice " + test.words + "); COMP_CWORD=$((${#COMP_WORDS[@]}-1)); _sluice; printf '%s\\n' \"${COMPREPLY[@]}\""
		out, err := exec.CommandContext(t.Context(), bash, "-c", ask).CombinedOutput()
		if err != nil || !strings.Contains("\n"+string(out), "\n"+test.want+"\n") {
			t.Errorf("%s: %v, %s", test.words, err, out)
		}
	}
}

func TestCompletion_KnowsEveryCommand(t *testing.T) {
	if testing.Short() {
		t.Skip("walks all commands one by one: half a minute with the race detector")
	}
	t.Parallel()
	help, _, code := program(t, nil, "--help")
	if code != exitDone {
		t.Fatal(help)
	}
	_, list, _ := strings.Cut(help, "Commands:\n")
	names := 0
	for line := range strings.Lines(list) {
		if !strings.HasPrefix(line, "  ") || strings.HasPrefix(line, "   ") {
			continue
		}
		name := strings.Fields(line)[0]
		names++
		for _, shell := range []string{"bash", "zsh", "fish"} {
			if script, _, code := program(t, nil, "completion", shell); code != exitDone || !strings.Contains(script, name) {
				t.Errorf("%s: code %d, no %s", shell, code, name)
			}
		}
	}
	if names < 10 {
		t.Errorf("%d commands in %s", names, help)
	}
	if _, stderr, code := program(t, nil, "completion", "tcsh"); code != exitUsage || !strings.Contains(stderr, "bash") {
		t.Errorf("another shell: code %d, %s", code, stderr)
	}
}
