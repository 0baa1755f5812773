package authapi_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"

	"sluice/authapi"
)

// contract holds what the tests of this package send and get against the OpenAPI document: every answer of a described
// operation must be described, and every request that succeeds. It also notes what was called.
type contract struct {
	validator validator.Validator
	// documented are the statuses of each operation, "GET /api/v1/…" as the document spells it.
	documented map[string][]string

	mu   sync.Mutex
	seen map[string]map[string]bool // operation -> status
}

var theContract = sync.OnceValue(func() *contract {
	document, err := libopenapi.NewDocument(authapi.OpenAPI)
	if err != nil {
		panic(err)
	}
	v, errs := validator.NewValidator(document)
	if len(errs) > 0 {
		panic(errs[0])
	}
	var doc struct {
		Paths map[string]map[string]struct{ Responses map[string]json.RawMessage }
	}
	if err := json.Unmarshal(authapi.OpenAPI, &doc); err != nil {
		panic(err)
	}
	c := &contract{validator: v, documented: map[string][]string{}, seen: map[string]map[string]bool{}}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			for status := range op.Responses {
				name := strings.ToUpper(method) + " " + path
				c.documented[name] = append(c.documented[name], status)
			}
		}
	}
	return c
})

// operation finds which one a request is for, "" for none: a configured route, or what is not there.
func (c *contract) operation(method, path string) string {
	if strings.HasPrefix(path, "/api/v1/auth/verify") && method != "HEAD" {
		method = "GET" // which answers every method alike
	}
	// The path is chosen first: a literal one wins over a parameter whatever methods it has.
	best, literal := "", -1
	for name := range c.documented {
		_, pattern, _ := strings.Cut(name, " ")
		if n, ok := matchPattern(pattern, path); ok && n > literal {
			best, literal = pattern, n
		}
	}
	if name := method + " " + best; c.documented[name] != nil {
		return name
	}
	return ""
}

// matchPattern counts the literal segments of a pattern that a path matches. A last {path} takes all that is left.
func matchPattern(pattern, path string) (literal int, ok bool) {
	want, got := strings.Split(pattern, "/"), strings.Split(path, "/")
	for i, segment := range want {
		switch {
		case segment == "{path}":
			return literal, true
		case i >= len(got):
			return 0, false
		case strings.HasPrefix(segment, "{") && got[i] != "":
		case segment == got[i]:
			literal++
		default:
			return 0, false
		}
	}
	return literal, len(want) == len(got)
}

// check reports what does not fit the document.
func (c *contract) check(t testing.TB, req *http.Request, body string, a answer) {
	t.Helper()
	// A 500 is promised by nobody.
	if strings.Contains(req.URL.Path, "//") || req.Method == "OPTIONS" || a.status == http.StatusInternalServerError {
		return
	}
	name := c.operation(req.Method, req.URL.Path)
	if name == "" {
		return
	}
	status := fmt.Sprint(a.status)
	c.mu.Lock()
	if c.seen[name] == nil {
		c.seen[name] = map[string]bool{}
	}
	c.seen[name][status] = true
	c.mu.Unlock()
	if !slices.Contains(c.documented[name], status) {
		t.Errorf("%s answered %s, which its description leaves out: %s", name, status, a.body)
		return
	}
	r := req.Clone(req.Context())
	method, pattern, _ := strings.Cut(name, " ")
	r.Method = method
	if strings.HasSuffix(pattern, "{path}") {
		r.URL.Path, r.URL.RawPath = strings.Replace(pattern, "{path}", "x", 1), ""
	}
	r.Body = io.NopCloser(strings.NewReader(body))
	resp := &http.Response{StatusCode: a.status, Header: a.header.Clone(), Body: io.NopCloser(bytes.NewReader([]byte(a.body))), Request: r}
	if resp.Header.Get("Content-Type") == "application/x-ndjson" && a.status == http.StatusOK {
		// The validator reads one JSON value. Lines are what the elements of a page are.
		list := strings.Join(strings.Split(strings.TrimSuffix(a.body, "\n"), "\n"), ",")
		resp.Header.Set("Content-Type", "application/json")
		resp.Body = io.NopCloser(strings.NewReader(`{"data":[` + list + `],"next_cursor":null}`))
	}
	if ok, errs := c.validator.ValidateHttpResponse(r, resp); !ok {
		for _, e := range errs {
			t.Errorf("%s answered %s with what is not described: %s: %s: %s", name, status, e.Message, e.Reason, a.body)
			for _, s := range e.SchemaValidationErrors {
				t.Errorf("  %s: %s", s.FieldPath, s.Reason)
			}
		}
	}
	// The forward-auth check takes whatever a proxy sends.
	if a.status >= 300 || req.Header.Get("Content-Type") == "" && body != "" || strings.HasPrefix(pattern, "/api/v1/auth/verify") {
		return
	}
	// The document can name a cookie one way only.
	r.Header.Set("Cookie", strings.Replace(r.Header.Get("Cookie"), "sluice=", "__Host-sluice=", 1))
	if strings.Contains(req.Header.Get("Cookie"), "__Host-") {
		r.Header.Set("Cookie", req.Header.Get("Cookie"))
	}
	r.Body = io.NopCloser(strings.NewReader(body))
	if ok, errs := c.validator.ValidateHttpRequestSync(r); !ok {
		for _, e := range errs {
			t.Errorf("%s took a request that is not described: %s: %s: %s", name, e.Message, e.Reason, body)
			for _, s := range e.SchemaValidationErrors {
				t.Errorf("  %s: %s", s.FieldPath, s.Reason)
			}
		}
	}
}

// missing lists operations, with the successes that the document promises, that no test has called.
func (c *contract) missing() []string {
	var list []string
	for name, statuses := range c.documented {
		for _, status := range statuses {
			if status < "400" && !c.seen[name][status] {
				list = append(list, name+" "+status)
			}
		}
	}
	slices.Sort(list)
	return list
}

// TestMain also wants every operation called, where all tests ran.
func TestMain(m *testing.M) {
	code := m.Run()
	whole := true
	for _, name := range []string{"test.run", "test.skip", "test.list", "test.fuzz", "test.bench"} {
		if f := flag.Lookup(name); f != nil && f.Value.String() != "" {
			whole = false
		}
	}
	if code == 0 && whole {
		if missing := theContract().missing(); len(missing) > 0 {
			fmt.Fprintf(os.Stderr, "operations that no test has called: %s\n", strings.Join(missing, ", "))
			code = 1
		}
	}
	os.Exit(code)
}

// TestOpenAPI_IsValid holds the document against the schema of OpenAPI 3.1 itself.
func TestOpenAPI_IsValid(t *testing.T) {
	t.Parallel()
	if ok, errs := theContract().validator.ValidateDocument(); !ok {
		for _, e := range errs {
			t.Errorf("%s: %s", e.Message, e.Reason)
			for _, s := range e.SchemaValidationErrors {
				t.Errorf("  %s: %s", s.FieldPath, s.Reason)
			}
		}
	}
}
