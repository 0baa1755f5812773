package main

import (
	"bytes"
	stdlog "log"
	"log/slog"
	"strings"
	"testing"
)

func TestLibraryLog_QuotesNobody(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	library := stdlog.New(libraryLog{slog.New(slog.NewJSONHandler(&out, nil))}, "", 0)
	library.Printf("Unsolicited response received on idle HTTP channel starting with %q; err=%v", "a secret", nil)
	if got := out.String(); !strings.Contains(got, `"message":"Unsolicited response received on idle HTTP channel starting with"`) || strings.Contains(got, "secret") {
		t.Errorf("logged %s", got)
	}
}
