package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"
	"github.com/valyala/fasthttp"

	"sluice/bench/floor"
)

// redisFrontCommand runs what stands between a client and Redis, as a process of its own.
const redisFrontCommand = "redis-front"

// redisFront serves the floor's answers, each after a question to the central Redis: what a team writes that has a Redis.
func redisFront(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet(redisFrontCommand, flag.ContinueOnError)
	address := flags.String("redis", "", "")
	limit := flags.Int("limit", 1, "")
	window := flags.Int("window", 1, "seconds")
	if err := flags.Parse(args); err != nil {
		return &usageError{err.Error()}
	}
	client := redis.NewClient(&redis.Options{Addr: *address, PoolSize: 64})
	defer client.Close()
	if err := client.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("reach redis: %w", err)
	}
	limiter := redis_rate.NewLimiter(client)
	rule := redis_rate.Limit{Rate: *limit, Burst: *limit, Period: time.Duration(*window) * time.Second}
	server := floor.Server()
	server.Handler = func(c *fasthttp.RequestCtx) {
		key := string(c.Request.Header.Peek("X-API-Key"))
		if string(c.Path()) == floor.CheckPath {
			key = string(c.Request.Body())
		}
		result, err := limiter.Allow(ctx, key, rule)
		if err != nil {
			c.SetStatusCode(fasthttp.StatusServiceUnavailable)
			return
		}
		floor.Handle(c)
		c.Response.Header.Set("X-RateLimit-Remaining", strconv.Itoa(result.Remaining))
		if result.Allowed == 0 {
			c.SetStatusCode(fasthttp.StatusTooManyRequests)
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	fmt.Fprintf(stdout, "ready http://%s\n", listener.Addr())
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err = <-served:
	case <-ctx.Done():
		err = server.Shutdown()
		listener.Close()
		err = errors.Join(err, <-served)
	}
	return err
}
