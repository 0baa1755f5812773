package main

import (
	"context"
	"errors"
	stdlog "log"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"sluice/node"
)

type nodeCommand struct {
	Config string `required:"" placeholder:"FILE" help:"The node's configuration; enough to start it again."`
}

// Run serves until SIGTERM or SIGINT, then drains. A second signal a second or more later ends the process at once.
// SIGHUP reads the configuration again and takes over what can change while the node runs, and the certificate's files.
func (c *nodeCommand) Run(ctx context.Context, env environment) error {
	cfg, err := loadConfig(c.Config, env)
	if err != nil {
		return err
	}
	ctx, again, release := untilSignal(ctx)
	defer release()

	level := new(slog.LevelVar)
	log := newLogger(cfg.Log, level, env)
	stdlog.SetFlags(0)
	stdlog.SetOutput(libraryLog{log})
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)

	opened, ended := make(chan *node.Node, 1), make(chan error, 1)
	go func() {
		n, err := node.Open(ctx, cfg, node.WithLogger(log), node.WithVersion(version()), node.WithHashWorker(hashWorkerOf()))
		if err == nil {
			opened <- n
			err = n.Run(ctx)
		}
		ended <- err
	}()
	running := cfg // as far as it was taken over
	var n *node.Node
	for {
		select {
		case n = <-opened:
		case err := <-ended:
			return err
		case <-again:
			return errors.New("stopped at the second signal, without an orderly end")
		case <-hangups:
			c.reload(n, &running, level, log, env)
			if n != nil {
				_ = n.ReloadCertificate() // it has logged its error
			}
		}
	}
}

// libraryLog takes what libraries say in the process's own log without being asked: net/http of an upstream that sends more than
// it announced. What they quote may be anybody's data, and stays out.
type libraryLog struct{ log *slog.Logger }

// Write implements io.Writer, for a whole message each time.
func (l libraryLog) Write(p []byte) (int, error) {
	said, _, _ := strings.Cut(string(p), `"`)
	l.log.Warn("library message", "message", strings.TrimSpace(said))
	return len(p), nil
}

// reload takes over what a running node can change: the log's level, who users may sign in with, the operators' tokens, and the keys for
// secrets at rest. n is nil while the
// node starts, with what it has read before.
func (c *nodeCommand) reload(n *node.Node, running *node.Config, level *slog.LevelVar, log *slog.Logger, env environment) {
	next, err := node.LoadConfig(c.Config, env.variables)
	if err != nil {
		log.Error("configuration not reloaded", "error", err)
		return
	}
	if n != nil {
		if err := n.ReloadOAuth(next); err != nil {
			log.Error("configuration not reloaded", "error", err)
			return
		}
		running.OAuth = next.OAuth
		if err := n.ReloadTokens(next); err != nil {
			log.Error("configuration not reloaded", "error", err)
			return
		}
		if err := n.ReloadSecretsKeys(next); err != nil {
			log.Error("configuration not reloaded", "error", err)
			return
		}
		running.Secrets.Key, running.Secrets.KeyFile = next.Secrets.Key, next.Secrets.KeyFile
		running.Secrets.PreviousKey, running.Secrets.PreviousKeyFile = next.Secrets.PreviousKey, next.Secrets.PreviousKeyFile
		running.Admin.Token, running.Admin.ReadToken = next.Admin.Token, next.Admin.ReadToken
		running.Admin.TokenFile, running.Admin.ReadTokenFile = next.Admin.TokenFile, next.Admin.ReadTokenFile
	}
	level.Set(levelOf(next.Log))
	log.Info("configuration reloaded", "log_level", next.Log.Level)
	if running.Log.Level = next.Log.Level; !running.Equal(next) {
		log.Warn("other settings have changed too and take effect at the next start")
	}
}

func levelOf(c node.LogConfig) slog.Level {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		return slog.LevelInfo // the configuration is checked before
	}
	return level
}

// newLogger is the node's own logger, but its level can change.
func newLogger(c node.LogConfig, level *slog.LevelVar, env environment) *slog.Logger {
	level.Set(levelOf(c))
	c.Level = "debug"
	return slog.New(levelHandler{node.NewLogger(c, env.stderr).Handler(), level})
}

// levelHandler passes on what is at least of a level that may change.
type levelHandler struct {
	slog.Handler
	level *slog.LevelVar
}

func (h levelHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

func (h levelHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return levelHandler{h.Handler.WithAttrs(attrs), h.level}
}

func (h levelHandler) WithGroup(name string) slog.Handler {
	return levelHandler{h.Handler.WithGroup(name), h.level}
}
