package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"sluice/node"
)

type secretNewCommand struct{}

func (secretNewCommand) Run(env environment) error {
	_, err := fmt.Fprintln(env.stdout, node.NewSecret())
	return err
}

type versionCommand struct{}

func (versionCommand) Run(env environment) error {
	_, err := fmt.Fprintf(env.stdout, "sluice %s %s %s/%s\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}

// released is the version that this source is of or leads to.
const released = "0.1.0-dev"

// version is the release and, where the build knows it, the commit.
func version() string {
	if c := commit(); c != "" {
		return released + "+" + c
	}
	return released
}

// commit is that of the sources, with ".dirty" where they differ from it; "" where the build does not know it.
func commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	var revision, dirty string
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			revision = s.Value[:min(len(s.Value), 12)]
		case "vcs.modified":
			if s.Value == "true" {
				dirty = ".dirty"
			}
		}
	}
	if revision == "" {
		return ""
	}
	return revision + dirty
}
