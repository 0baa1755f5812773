package main

import (
	"errors"
	"fmt"
	"io/fs"

	"sluice/node"
)

type configCheckCommand struct {
	Config string `required:"" placeholder:"FILE" help:"The node's configuration."`
}

func (c *configCheckCommand) Run(env environment) error {
	cfg, err := loadConfig(c.Config, env)
	if err != nil {
		return err
	}
	fmt.Fprintf(env.stdout, "%s: ok\n", c.Config)
	for _, note := range cfg.Notes() {
		fmt.Fprintf(env.stdout, "note: %s\n", note)
	}
	return nil
}

type configShowCommand struct {
	Config string `placeholder:"FILE" help:"The node's configuration; without it the defaults and the environment's overrides."`
}

func (c *configShowCommand) Run(env environment) error {
	if c.Config == "" {
		cfg, err := node.DefaultsWith(env.variables)
		if err != nil {
			return err
		}
		return cfg.Show(env.stdout)
	}
	cfg, err := loadConfig(c.Config, env)
	if err != nil {
		return err
	}
	return cfg.Show(env.stdout)
}

// loadConfig reads a configuration and checks it.
func loadConfig(path string, env environment) (node.Config, error) {
	return readable(node.LoadConfig(path, env.variables))
}

// readable takes a file that is not there for wrong usage: the command line named it.
func readable(cfg node.Config, err error) (node.Config, error) {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return cfg, usagef("%v", err)
	}
	return cfg, err
}
