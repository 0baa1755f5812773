package limiter_test

import (
	"fmt"

	"sluice/limiter"
)

func ExampleLimiter_Take() {
	l, err := limiter.Open(limiter.Config{NodeID: "a", Incarnation: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer l.Close()
	l.SetState(limiter.State{
		HorizonMillis: 1 << 50,
		Rosters:       []limiter.Roster{{Index: 1, Nodes: []string{"a"}}},
	})

	perDay := limiter.Rule{Limit: 2, Window: 86_400, Algorithm: limiter.FixedWindow}
	charges := []limiter.Charge{{Bucket: l.Bucket("api_key", perDay, []byte("key_1")), Rule: perDay, Cost: 1}}
	verdicts := make([]limiter.Verdict, 1)
	for range 3 {
		outcome := l.Take(charges, verdicts)
		fmt.Println(outcome == limiter.Admitted, verdicts[0].Remaining)
	}
	// Output:
	// true 1
	// true 0
	// false 0
}
