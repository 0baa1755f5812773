package check_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// TestDockerfile reads it as BuildKit does. Its build step is run in cmd/sluice/systemtest.
func TestDockerfile(t *testing.T) {
	text, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	tree, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range tree.Warnings {
		t.Error(w.Short)
	}
	stages, _, err := instructions.Parse(tree.AST, linter.New(&linter.Config{Warn: func(rule, _, _, short string, at []parser.Range) {
		t.Errorf("%s: %s (%v)", rule, short, at)
	}}))
	if err != nil {
		t.Fatal(err)
	}
	if len(stages) != 2 || stages[1].BaseName != "scratch" {
		t.Fatalf("%d stages", len(stages))
	}
	var user, entry string
	copied := make(map[string]string) // destination by what
	for _, c := range stages[1].Commands {
		switch c := c.(type) {
		case *instructions.UserCommand:
			user = c.User
		case *instructions.EntrypointCommand:
			if c.PrependShell {
				t.Error("scratch has no shell")
			}
			entry = strings.Join(c.CmdLine, " ")
		case *instructions.CopyCommand:
			if c.From != stages[0].Name {
				t.Errorf("copies from %q", c.From)
			}
			copied[c.SourcePaths[0]] = c.DestPath
		case *instructions.RunCommand, *instructions.AddCommand:
			t.Errorf("%s in the last stage", c.Name())
		}
	}
	if user == "" || strings.HasPrefix(user, "0") || strings.HasPrefix(user, "root") {
		t.Errorf("runs as %q", user)
	}
	if copied["/out/sluice"] != entry {
		t.Errorf("runs %q, and the program is in %q", entry, copied["/out/sluice"])
	}
	if copied["/etc/ssl/certs/ca-certificates.crt"] == "" {
		t.Error("no certificates to reach providers with")
	}
}
