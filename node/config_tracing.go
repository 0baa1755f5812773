package node

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// TracingConfig says where traces go, and how many.
type TracingConfig struct {
	Endpoint    string   `toml:"endpoint"`      // URL of a collector that takes OTLP over HTTP; "": nothing is traced
	HeadersFile string   `toml:"headers_file"`  // lines "Name: value", sent with every batch
	CA          string   `toml:"ca"`            // PEM; the collector's certificate is of one of these. "": of the system's
	SampleOneIn int64    `toml:"sample_one_in"` // of the traces that begin here
	Timeout     Duration `toml:"timeout"`       // of one batch
	Queue       int      `toml:"queue"`         // spans
}

var defaultTracing = TracingConfig{SampleOneIn: 100, Timeout: Duration(5 * time.Second), Queue: 4096}

// headers reads HeadersFile. The error names a line and never what is in it.
func (c TracingConfig) headers() (map[string]string, error) {
	out := map[string]string{}
	if c.HeadersFile == "" {
		return out, nil
	}
	text, err := os.ReadFile(c.HeadersFile)
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		if !ok || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return nil, fmt.Errorf("line %d of %s is not a header, as in \"Authorization: Bearer …\"", n, c.HeadersFile)
		}
		out[http.CanonicalHeaderKey(name)] = value
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", c.HeadersFile, err)
	}
	return out, nil
}

// roots are the certificates of CA, nil for the system's.
func (c TracingConfig) roots() (*x509.CertPool, error) {
	if c.CA == "" {
		return nil, nil
	}
	return loadPool(c.CA)
}

func (c TracingConfig) checkEndpoint() error {
	u, err := url.Parse(c.Endpoint)
	switch {
	case err != nil:
		return errors.New("is not a URL") // what url.Parse says repeats it, and it may hold a password
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return errors.New("want the URL of a collector, as in \"http://127.0.0.1:4318\"")
	case u.User != nil:
		return errors.New("holds a user name; what the collector is to know of this node belongs into tracing.headers_file")
	case u.RawQuery != "" || u.Fragment != "":
		return errors.New("has a query or a fragment")
	}
	return nil
}

func (v *validator) tracing() {
	t := v.c.Tracing
	v.count("tracing.sample_one_in", t.SampleOneIn, 0, 1_000_000_000)
	v.between("tracing.timeout", t.Timeout, Duration(100*time.Millisecond), Duration(time.Minute))
	v.count("tracing.queue", int64(t.Queue), 1, 1<<20)
	if t.Endpoint != "" {
		if err := t.checkEndpoint(); err != nil {
			v.fail("tracing.endpoint", "%v", err)
		}
	}
	if _, err := t.headers(); err != nil {
		v.fail("tracing.headers_file", "%v", err)
	}
	if _, err := t.roots(); err != nil {
		v.fail("tracing.ca", "%v", err)
	}
}
