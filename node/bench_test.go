package node_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"sluice/authapi"
	"sluice/node/nodetest"
)

// BenchmarkPropose registers users through the leader and through a follower of three nodes, all on this machine.
func BenchmarkPropose(b *testing.B) {
	c := nodetest.Start(b, 3)
	leader := c.Leader()
	var n atomic.Int64
	for _, via := range []struct {
		name string
		node int
	}{{"leader", leader}, {"follower", (leader + 1) % 3}} {
		for _, parallel := range []int{1, 32} {
			b.Run(fmt.Sprintf("via=%s/callers=%d", via.name, parallel*2), func(b *testing.B) {
				b.SetParallelism(parallel)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						name := fmt.Sprintf("b%d", n.Add(1))
						result, err := c.Members[via.node].Node.Cluster().Propose(context.Background(), nodetest.RequestID(), nodetest.Register(name))
						if err != nil || result.Refused != "" {
							b.Errorf("%s: %+v, %v", name, result, err)
							return
						}
					}
				})
			})
		}
	}
}

// BenchmarkImport sends lines of users and keys to a follower of three nodes, all on this machine, 20,000 a call as
// `sluice import` does.
func BenchmarkImport(b *testing.B) {
	c := nodetest.Start(b, 3, nodetest.WithConfig(generous))
	m := c.Members[c.Followers()[0]]
	const hash = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0c2FsdA$MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE"
	const perCall = 20_000
	n := 0
	for b.Loop() {
		b.StopTimer()
		var lines strings.Builder
		for range perCall / 2 {
			n++
			fmt.Fprintf(&lines, `{"type":"user","username":"user%d","email":"user%d@example.com","password_hash":%q}`+"\n", n, n, hash)
			fmt.Fprintf(&lines, `{"type":"api_key","name":"k","owner":"user%d","sha256":"%064x","scopes":["events:read"]}`+"\n", n, n)
		}
		b.StartTimer()
		resp, err := http.Post(adminURL(m)+"/import", "application/x-ndjson", strings.NewReader(lines.String()))
		if err != nil {
			b.Fatal(err)
		}
		var report authapi.ImportReport
		err = json.NewDecoder(resp.Body).Decode(&report)
		resp.Body.Close()
		if err != nil || report.Users != perCall/2 || report.Keys != perCall/2 {
			b.Fatalf("%+v, %v", report, err)
		}
	}
	b.ReportMetric(float64(perCall*b.N)/b.Elapsed().Seconds(), "rows/s")
}
