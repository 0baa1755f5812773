package node

import (
	"encoding/json"
	"strings"
	"testing"

	"sluice/limiter"
)

// TestExplain_PeerThatSaidNothing tells of a peer that a node asked and never heard of a bucket: as a JSON text, which has no times
// before the year 0.
func TestExplain_PeerThatSaidNothing(t *testing.T) {
	t.Parallel()
	rule := limiter.Rule{Limit: 10, Window: 60, Algorithm: limiter.SlidingWindow}
	var out NodeExplained
	explainNode(&out, &limiter.Explanation{Rule: rule, Peers: []limiter.PeerView{
		{Peer: "nod_dead", Window: -1 << 40, Owing: true, Silent: true}, {Peer: "nod_heard", Window: 29927759},
	}})
	text, err := json.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`{"peer":"nod_dead","window_begin":null,`, `{"peer":"nod_heard","window_begin":"2026-11-26T03:59:00Z",`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s is missing in %s", want, text)
		}
	}
}
