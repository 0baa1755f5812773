package bench

import (
	"math/rand/v2"
	"testing"
	"time"
)

// choices runs one worker of a picker and returns the nodes that it chose.
func choices(pick picker, worker, n int, refused func(i int) bool) []int {
	next := pick(worker, rand.New(rand.NewPCG(1, uint64(worker))))
	var out []int
	last := false
	for i := range n {
		out = append(out, next(last))
		last = refused(i)
	}
	return out
}

func never(int) bool { return false }

func TestPickers(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		pick    picker
		worker  int
		refused func(int) bool
		want    []int
	}{
		{"sticky", sticky(3), 2, never, []int{0, 0, 0, 0}},
		{"round robin", roundRobin(3), 2, never, []int{0, 1, 2, 0}},
		{"pinned", pinned(3), 5, never, []int{2, 2, 2, 2}},
		{"others", others(3), 0, never, []int{1, 2, 1, 2}},
		{"others of one", others(1), 0, never, []int{0, 0, 0, 0}},
		{"hopping", hopping(3), 1, func(i int) bool { return i > 0 }, []int{1, 1, 2, 0}},
	} {
		got := choices(test.pick, test.worker, len(test.want), test.refused)
		for i := range got {
			if got[i] != test.want[i] {
				t.Errorf("%s: nodes %v, want %v", test.name, got, test.want)
				break
			}
		}
	}
}

func TestPickers_SpreadAsTheySay(t *testing.T) {
	t.Parallel()
	const n = 20_000
	for name, test := range map[string]struct {
		pick picker
		want [3]float64
	}{
		"random": {anyNode(3), [3]float64{1. / 3, 1. / 3, 1. / 3}},
		"zipf":   {zipf(3), [3]float64{0.647, 0.229, 0.124}}, // 1, 2^-1.5 and 3^-1.5, over their sum
	} {
		var counts [3]int
		for _, node := range choices(test.pick, 0, n, never) {
			counts[node]++
		}
		for node, count := range counts {
			if got := float64(count) / n; got < test.want[node]-0.02 || got > test.want[node]+0.02 {
				t.Errorf("%s: node %d gets %.3f of the requests, want %.3f", name, node, got, test.want[node])
			}
		}
	}
}

func TestPatterns_AreBounded(t *testing.T) {
	t.Parallel()
	for _, limit := range []int64{1, 3, 1000, MaxLimit} {
		for _, window := range []int64{1, 10, MaxWindow} {
			p := &planner{nodes: 3, rule: Rule{Limit: limit, Window: window}, crowd: 1500, after: time.Second, duration: 10 * time.Second}
			for _, pattern := range Patterns() {
				for i, s := range pattern.plan(p) {
					if s.requests == 0 && s.duration == 0 && !s.untilEnd {
						t.Errorf("%s, stage %d: neither its number nor its time is bounded", pattern.Name, i)
					}
					if s.duration > 30*time.Second {
						t.Errorf("%s, stage %d takes %v, want at most 30s", pattern.Name, i, s.duration)
					}
				}
			}
		}
	}
}
