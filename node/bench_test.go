package node_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

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
