package node

import (
	"log/slog"
	"net"
	"time"
)

// Option changes how Open runs a node.
type Option func(*options)

type options struct {
	logger   *slog.Logger
	version  string
	clock    func() time.Time
	given    func() time.Time // clock where it is not the system's: parts that read that one with another thing read it once
	fatal    func(error)
	http     net.Listener
	peer     net.Listener
	admin    net.Listener
	resolver *net.Resolver
	space    func(string) (DiskSpace, error)
	logs     func(LogStore) LogStore
	// hashWorker is a program and its arguments; "": passwords are hashed in this process.
	hashWorker     string
	hashWorkerArgs []string
}

// WithLogger sets the logger; without it the node logs to standard error as the configuration's [log] says.
func WithLogger(logger *slog.Logger) Option { return func(o *options) { o.logger = logger } }

// WithVersion sets the version that the node shows; without it "dev".
func WithVersion(version string) Option { return func(o *options) { o.version = version } }

// WithClock replaces time.Now where the node decides by the wall clock.
func WithClock(clock func() time.Time) Option {
	return func(o *options) { o.clock, o.given = clock, clock }
}

// WithFatal replaces what ends the process where going on would make replicas differ or trust a disk that has failed;
// without it the process exits with 3 at once.
func WithFatal(fatal func(error)) Option { return func(o *options) { o.fatal = fatal } }

// WithDiskSpace replaces what tells of the free space on the file system of a path.
func WithDiskSpace(look func(path string) (DiskSpace, error)) Option {
	return func(o *options) { o.space = look }
}

// WithLogStore puts something between Raft and the store that it keeps its log in: a slow disk, or one that fails.
func WithLogStore(wrap func(LogStore) LogStore) Option { return func(o *options) { o.logs = wrap } }

// WithResolver looks up names of other nodes; without it the system's resolver does.
func WithResolver(r *net.Resolver) Option { return func(o *options) { o.resolver = r } }

// WithHTTPListener serves the public API on a listener that is open already. The node closes it.
func WithHTTPListener(ln net.Listener) Option { return func(o *options) { o.http = ln } }

// WithPeerListener takes peers on a listener that is open already. The node closes it.
func WithPeerListener(ln net.Listener) Option { return func(o *options) { o.peer = ln } }

// WithAdminListener serves operators on a listener that is open already. The node closes it.
func WithAdminListener(ln net.Listener) Option { return func(o *options) { o.admin = ln } }

// WithHashWorker has passwords hashed by a program that calls hashworker.Serve, as a process beside the node; args begin with its
// name. Without it, or with a path of "", they are hashed in this process, where they compete with requests.
func WithHashWorker(path string, args []string) Option {
	return func(o *options) { o.hashWorker, o.hashWorkerArgs = path, args }
}
