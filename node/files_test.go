package node

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

func TestCheckFiles(t *testing.T) {
	t.Parallel()
	c := DefaultConfig()
	c.HTTP.MaxConns = 10_000
	base, needed := c, c.filesNeeded()
	for _, test := range []struct {
		name   string
		limit  uint64
		err    error
		conns  int
		refuse bool
		warn   string
	}{
		{name: "enough", limit: needed, conns: 10_000},
		{name: "one short", limit: needed - 1, conns: int((needed - 1 - ownFiles) / 2), warn: "less than the configured connections need"},
		{name: "a shell's", limit: 1024, conns: 256, warn: "less than the configured connections need"},
		{name: "the least", limit: leastFiles, conns: 128, warn: "less than the configured connections need"},
		{name: "too few", limit: leastFiles - 1, refuse: true},
		{name: "unknown", err: errors.New("no such limit"), conns: 10_000, warn: "no such limit"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var said bytes.Buffer
			files, conns, err := checkFiles(&base, func() (uint64, error) { return test.limit, test.err }, slog.New(slog.NewTextHandler(&said, nil)))
			if (err != nil) != test.refuse || test.refuse && !strings.Contains(err.Error(), "LimitNOFILE") {
				t.Fatalf("error %v, want one: %v", err, test.refuse)
			}
			if !test.refuse && (conns != test.conns || files.limit != test.limit || files.needed != needed) {
				t.Fatalf("%d connections of %+v, want %d of %d", conns, files, test.conns, test.limit)
			}
			if (test.warn == "") != (said.Len() == 0) || !strings.Contains(said.String(), test.warn) {
				t.Fatalf("said %q, want %q in it", said.String(), test.warn)
			}
		})
	}
	c.GRPC.Listen, c.Routes = ":9000", []RouteConfig{{Upstreams: []string{"http://a", "http://b"}, MaxRequests: 100}}
	if got, want := c.filesNeeded(), needed+uint64(c.GRPC.MaxConns)+200; got != want {
		t.Fatalf("with a listener for gRPC and a route %d files are needed, want %d", got, want)
	}
}
