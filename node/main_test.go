package node_test

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// Sleeps up to 10s between looks for idle workers and ends at the look after the server's end.
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
		// One for the process, never ended: it keeps the Date header.
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		// Sleeps once, for part of its interval, before it looks whether it was stopped.
		goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).triggerFunc"),
		goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).pushPullTrigger"),
		// Raft never answers what it had committed and not applied when it stopped; the process is expected to end.
		goleak.IgnoreAnyFunction("github.com/hashicorp/raft.(*deferError).Error"),
		// One for the process, started by the library's init.
		goleak.IgnoreAnyFunction("github.com/golang/glog.(*fileSink).flushDaemon"),
	)
}
