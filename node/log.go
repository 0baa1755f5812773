package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// NewLogger returns the logger that log asks for, writing to w. The configuration is a valid one; an unknown level is
// info, an unknown format JSON.
func NewLogger(log LogConfig, w io.Writer) *slog.Logger {
	var level slog.Level
	if level.UnmarshalText([]byte(log.Level)) != nil {
		level = slog.LevelInfo
	}
	options := &slog.HandlerOptions{Level: level}
	if log.Format == "text" {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

// hclogAdapter writes Raft's log through slog. Raft tells of every vote and every retry at info and above; what is
// routine for an operator goes to debug here.
type hclogAdapter struct {
	log  *slog.Logger
	name string
	args []any
	once *onceIn
}

func newHCLog(logger *slog.Logger, component string) hclog.Logger {
	return &hclogAdapter{log: logger.With("component", component), name: component, once: new(onceIn)}
}

func level(l hclog.Level) slog.Level {
	switch l {
	case hclog.Trace, hclog.Debug, hclog.Info:
		return slog.LevelDebug
	case hclog.Warn:
		return slog.LevelInfo
	default:
		return slog.LevelWarn
	}
}

// attributes turns hclog's loosely typed pairs into slog's, with values as text where they are not plain.
func attributes(args []any) []any {
	out := make([]any, 0, len(args)+1)
	for i := 0; i+1 < len(args); i += 2 {
		key, ok := args[i].(string)
		if !ok {
			continue
		}
		out = append(out, slog.Any(strings.ReplaceAll(key, "-", "_"), args[i+1]))
	}
	return out
}

func (h *hclogAdapter) Log(l hclog.Level, msg string, args ...any) {
	at := level(l)
	for _, arg := range args {
		// Said of connections that this node has closed itself.
		if err, ok := arg.(error); ok && errors.Is(err, net.ErrClosed) {
			at = slog.LevelDebug
		}
	}
	// Raft repeats itself about every peer that is gone, many times a second.
	if at > slog.LevelDebug {
		about := ""
		if len(args) > 1 {
			about = fmt.Sprint(args[1])
		}
		if !h.once.allow(msg+about, time.Minute) {
			at = slog.LevelDebug
		}
	}
	if h.log.Enabled(context.Background(), at) {
		h.log.Log(context.Background(), at, msg, attributes(args)...)
	}
}
func (h *hclogAdapter) Trace(msg string, args ...any) {}
func (h *hclogAdapter) Debug(msg string, args ...any) { h.Log(hclog.Debug, msg, args...) }
func (h *hclogAdapter) Info(msg string, args ...any)  { h.Log(hclog.Info, msg, args...) }
func (h *hclogAdapter) Warn(msg string, args ...any)  { h.Log(hclog.Warn, msg, args...) }
func (h *hclogAdapter) Error(msg string, args ...any) { h.Log(hclog.Error, msg, args...) }
func (h *hclogAdapter) IsTrace() bool                 { return false }
func (h *hclogAdapter) IsDebug() bool                 { return h.enabled(hclog.Debug) }
func (h *hclogAdapter) IsInfo() bool                  { return h.enabled(hclog.Info) }
func (h *hclogAdapter) IsWarn() bool                  { return h.enabled(hclog.Warn) }
func (h *hclogAdapter) IsError() bool                 { return h.enabled(hclog.Error) }
func (h *hclogAdapter) ImpliedArgs() []any            { return h.args }
func (h *hclogAdapter) Name() string                  { return h.name }
func (h *hclogAdapter) SetLevel(hclog.Level)          {}
func (h *hclogAdapter) GetLevel() hclog.Level         { return hclog.Debug }
func (h *hclogAdapter) With(args ...any) hclog.Logger {
	return &hclogAdapter{log: h.log.With(attributes(args)...), name: h.name, args: append(h.args[:len(h.args):len(h.args)], args...), once: h.once}
}
func (h *hclogAdapter) Named(name string) hclog.Logger {
	return &hclogAdapter{log: h.log.With("part", name), name: h.name + "." + name, args: h.args, once: h.once}
}
func (h *hclogAdapter) ResetNamed(name string) hclog.Logger { return h.Named(name) }
func (h *hclogAdapter) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return log.New(h.StandardWriter(nil), "", 0)
}
func (h *hclogAdapter) StandardWriter(*hclog.StandardLoggerOptions) io.Writer {
	return &lineWriter{log: h.log}
}
func (h *hclogAdapter) enabled(l hclog.Level) bool {
	return h.log.Enabled(context.Background(), level(l))
}

// lineWriter takes a standard logger's lines, as memberlist and net/http write them, and passes them on at debug, or at
// warn where the line says so; the same line is passed on once a minute at most, since a stranger's packets can make
// memberlist write one each.
type lineWriter struct {
	log  *slog.Logger
	once onceIn
}

func newLineLogger(logger *slog.Logger) *log.Logger {
	return log.New(&lineWriter{log: logger}, "", 0)
}

func (w *lineWriter) Write(p []byte) (int, error) {
	line := strings.TrimSpace(string(p))
	level := slog.LevelDebug
	for prefix, l := range map[string]slog.Level{"[ERR] ": slog.LevelWarn, "[WARN] ": slog.LevelInfo, "[INFO] ": slog.LevelDebug, "[DEBUG] ": slog.LevelDebug} {
		if rest, ok := strings.CutPrefix(line, prefix); ok {
			line, level = rest, l
			break
		}
	}
	// The address in a line changes with every connection; what stands before the first colon tells the kind of line.
	kind, _, _ := strings.Cut(strings.TrimPrefix(line, "memberlist: "), ":")
	if level > slog.LevelDebug && !w.once.allow(kind, time.Minute) {
		level = slog.LevelDebug
	}
	w.log.Log(context.Background(), level, line)
	return len(p), nil
}

// onceIn lets a message through once in a while. The zero value is ready. Safe for concurrent use.
type onceIn struct {
	mu   sync.Mutex
	seen map[string]time.Time
}

// onceInMax bounds the memory of onceIn against messages of a stranger's making.
const onceInMax = 256

func (o *onceIn) allow(key string, every time.Duration) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if at, ok := o.seen[key]; ok && now.Sub(at) < every {
		return false
	}
	if o.seen == nil || len(o.seen) >= onceInMax {
		o.seen = make(map[string]time.Time)
	}
	o.seen[key] = now
	return true
}
