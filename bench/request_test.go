package bench

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"testing"
)

// TestScenarios_RenderValidRequests reads every scenario's requests as a server would, and allocates nothing once the
// buffers have grown.
func TestScenarios_RenderValidRequests(t *testing.T) {
	l := &Load{Targets: []string{"http://x"}, Keys: 3, Addresses: 5, Limit: 7, Window: 60, Path: "/api/v1/triggers", Distribution: Uniform, Seed: 11}
	m := &material{
		prefix: "benchX", password: "secret", expires: "2030-01-01T00:00:00Z", organization: "org_x", tokens: []string{"eyJ.a", "eyJ.b"},
		signIns: []account{{credentials: []byte(`{"username":"a","password":"b"}`)}}, keys: []string{"sk_test_a", "sk_test_b"}, managers: []string{"sk_test_m"},
		newAccounts: newHarvest(), newKeys: newHarvest(),
	}
	for _, s := range Scenarios() {
		o := s.make(l, m, rand.New(rand.NewPCG(1, 2)))
		var buffer []byte
		credentials, addresses := make(map[string]bool), make(map[string]bool)
		for range 200 {
			buffer = o.render(buffer[:0], "host:1")
			reader := bufio.NewReader(bytes.NewReader(buffer))
			req, err := http.ReadRequest(reader)
			if err != nil {
				t.Fatalf("%s: %v\n%s", s.Name, err, buffer)
			}
			body, err := io.ReadAll(req.Body)
			if err != nil || reader.Buffered() > 0 || req.Host != "host:1" {
				t.Fatalf("%s: %v, %d bytes left\n%s", s.Name, err, reader.Buffered(), buffer)
			}
			if len(body) > 0 && !json.Valid(body) {
				t.Fatalf("%s: body %s", s.Name, body)
			}
			credentials[req.Header.Get("X-API-Key")+req.Header.Get("Authorization")] = true
			addresses[req.Header.Get("X-Forwarded-For")] = true
		}
		want := 1
		if s.needs.tokens || s.needs.keys && !s.needs.organization {
			want = 2
		}
		if len(credentials) != want || len(addresses) != l.Addresses {
			t.Errorf("%s: credentials %v, addresses %v", s.Name, credentials, addresses)
		}
		if n := testing.AllocsPerRun(100, func() { buffer = o.render(buffer[:0], "host:1") }); n > 0 {
			t.Errorf("%s: %v allocations", s.Name, n)
		}
	}
}

func TestHarvest_KeepsWhatIsMarked(t *testing.T) {
	t.Parallel()
	h := newHarvest()
	for _, body := range []string{`{"id":"key_1","key":"sk"}`, `{"id":"key_2"`, `{"name":"x"}`, `{"id":"unfinished`} {
		h.keep([]byte(body), `"id":"`)
	}
	if a, b := <-h.list, <-h.list; a != "key_1" || b != "key_2" || len(h.list) > 0 || h.dropped.Load() != 2 {
		t.Errorf("kept %s, %s and %d more; dropped %d", a, b, len(h.list), h.dropped.Load())
	}
}
