package main

import (
	"context"
	"errors"

	"sluice/node"
)

type nodeCommand struct {
	Config string `required:"" placeholder:"FILE" help:"The node's configuration; enough to start it again."`
}

// Run serves until SIGTERM or SIGINT, then drains. A second signal ends the process at once.
func (c *nodeCommand) Run(ctx context.Context, env environment) error {
	cfg, err := loadConfig(c.Config, env)
	if err != nil {
		return err
	}
	ctx, again, release := untilSignal(ctx)
	defer release()
	ended := make(chan error, 1)
	go func() {
		n, err := node.Open(ctx, cfg, node.WithVersion(version()))
		if err == nil {
			err = n.Run(ctx)
		}
		ended <- err
	}()
	select {
	case err := <-ended:
		return err
	case <-again:
		return errors.New("stopped at the second signal, without an orderly end")
	}
}
