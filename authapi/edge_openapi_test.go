package authapi_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"sluice/authapi"
)

// TestOpenAPI_IsTheRouteTable compares the served document with the routes, both ways.
func TestOpenAPI_IsTheRouteTable(t *testing.T) {
	t.Parallel()
	e := newEdge(t, nil)
	a := e.do("GET", "/openapi.json", "")
	e.want(a, 200, "")
	wantHeaders(t, a)
	if got := a.header.Get("RateLimit-Policy"); got != `"documents";q=600;w=60` {
		t.Errorf("RateLimit-Policy = %q", got)
	}
	var doc struct {
		OpenAPI    string
		Paths      map[string]map[string]json.RawMessage
		Components struct{ Schemas, Responses, Headers map[string]json.RawMessage }
	}
	if err := json.Unmarshal([]byte(a.body), &doc); err != nil {
		t.Fatalf("decode: %v", err)
	}
	if doc.OpenAPI != "3.1.0" {
		t.Errorf("openapi = %q", doc.OpenAPI)
	}
	want := map[string]bool{}
	for _, r := range e.srv.RouteRows() {
		path := strings.Replace(r.Pattern, "*", "{path}", 1)
		method := strings.ToLower(strings.Replace(r.Method, "ANY", "GET", 1))
		want[method+" "+path] = true
		if doc.Paths[path][method] == nil {
			t.Errorf("%s %s is not in the document", r.Method, r.Pattern)
		}
	}
	ids := map[string]bool{}
	for path, item := range doc.Paths {
		for method, raw := range item {
			if !want[method+" "+path] {
				t.Errorf("the document has %s %s, which is no route", method, path)
			}
			var op struct {
				OperationID string
				Parameters  []struct{ Name, In string }
				Responses   map[string]json.RawMessage
				Security    []map[string]any
			}
			if err := json.Unmarshal(raw, &op); err != nil || op.OperationID == "" || ids[op.OperationID] || len(op.Responses) == 0 {
				t.Errorf("%s %s: operationId %q is missing or double, or there are no responses (%v)", method, path, op.OperationID, err)
			}
			ids[op.OperationID] = true
			// Where a user's token is a credential, the session in cookies is one; a key's own endpoints take neither, though a
			// key may come as a bearer token.
			schemes := map[string]bool{}
			for _, s := range op.Security {
				schemes["nobody"] = schemes["nobody"] || len(s) == 0
				for name := range s {
					schemes[name] = true
				}
			}
			if takes := schemes["bearer"] && !schemes["nobody"] && !strings.HasPrefix(path, "/oauth2/") && path != "/api/v1/limits/check" && path != "/v1/GetRateLimits"; takes != schemes["session"] {
				t.Errorf("%s %s: security %v", method, path, op.Security)
			}
			for _, p := range op.Parameters {
				if p.In == "path" && !strings.Contains(path, "{"+p.Name+"}") {
					t.Errorf("%s %s: parameter %s is not in the path", method, path, p.Name)
				}
			}
		}
	}
	// Every reference must lead somewhere.
	for _, part := range strings.Split(a.body, `"$ref":"#/components/`)[1:] {
		kind, name, _ := strings.Cut(part[:strings.IndexByte(part, '"')], "/")
		found := map[string]map[string]json.RawMessage{"schemas": doc.Components.Schemas, "responses": doc.Components.Responses, "headers": doc.Components.Headers}[kind]
		if found[name] == nil {
			t.Errorf("reference to %s/%s leads nowhere", kind, name)
		}
	}
}

// TestDocuments_AreLimitedByThemselves shows that documents spend from a bucket of their own, whatever the credential.
func TestDocuments_AreLimitedByThemselves(t *testing.T) {
	t.Parallel()
	e := newEdge(t, func(c *authapi.Config) { c.Limit.Documents, c.Limit.Anonymous = rule(2), rule(1) })
	var got []int
	for _, path := range []string{"/openapi.json", "/api/v1/health", "/api/v1/health", "/openapi.json", "/openapi.json"} {
		got = append(got, e.do("GET", path, "", "X-API-Key", "bad").status)
	}
	if want := []int{200, 401, 429, 200, 429}; !slices.Equal(got, want) {
		t.Errorf("statuses %v, want %v", got, want)
	}
}
