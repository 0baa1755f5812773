package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"sluice/bench/floor"
)

type benchFloorCommand struct {
	Listen string `placeholder:"HOST:PORT" default:"127.0.0.1:8079" help:"Where to serve."`
}

// Run serves until the end of ctx or a signal.
func (c *benchFloorCommand) Run(ctx context.Context, env environment) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	listener, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	fmt.Fprintf(env.stdout, "ready http://%s\n", listener.Addr())
	server := floor.Server()
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err = <-served:
	case <-ctx.Done():
		err = server.Shutdown()
		listener.Close() // a server that has not begun yet knows it from nowhere else
		err = errors.Join(err, <-served)
	}
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}
