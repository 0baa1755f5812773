package bench

import (
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// Pattern is a way of spreading requests over nodes and time.
type Pattern struct {
	Name string
	// Describe says in a few words what it does.
	Describe string
	// plan is what is sent, one stage after the other.
	plan func(p *planner) []stage
	// atEdge begins just before a window's end; all others with most of a window ahead of them.
	atEdge bool
}

// stage is a part of a pattern: requests that go out until all are sent or the time is up.
type stage struct {
	requests int           // at most; 0: as many as maxSamples leaves
	duration time.Duration // at most; 0: until all are sent
	// untilEnd ends the stage with the window in which the pattern began.
	untilEnd bool
	rate     float64 // a second; 0: as fast as the workers can
	pick     picker
}

// picker makes, for one worker, what chooses the node of each request. refused is what became of the worker's last one.
type picker func(worker int, random *rand.Rand) func(refused bool) int

// planner is what a plan may go by.
type planner struct {
	nodes    int
	rule     Rule
	crowd    int           // requests at once
	after    time.Duration // how long to go on asking
	duration time.Duration // of what lasts
	lead     time.Duration // how long before the window's end an edge begins
}

// Limits of what one run sends.
const (
	maxSamples = 1_000_000
	// zipfExponent makes the first of three nodes take some 62 % of the requests.
	zipfExponent = 1.5
	// steadyShare of the limit is what a client asks for that keeps within it.
	steadyShare = 0.8
)

// Patterns are all there are, in the order in which they run.
func Patterns() []Pattern {
	return []Pattern{
		{Name: "sticky", Describe: "all on one node", plan: burst(sticky)},
		{Name: "round_robin", Describe: "node after node", plan: burst(roundRobin)},
		{Name: "random", Describe: "any node", plan: burst(anyNode)},
		{Name: "zipf", Describe: "most on one node, some on the second, few on the others", plan: burst(zipf)},
		{Name: "flash", Describe: "many clients at once, each with a node of its own", plan: flash},
		{Name: "edge", Describe: "all on one node before a window's end, then on the others", plan: edge, atEdge: true},
		{Name: "hopping", Describe: "to the next node at each refusal", plan: burst(hopping)},
		{Name: "sustained", Describe: "all nodes at full speed, over several windows", plan: sustained},
		{Name: "steady", Describe: "node after node at 80 % of the limit, for two windows", plan: steady},
	}
}

// burst sends the crowd at once and then goes on asking for a while.
func burst(spread func(nodes int) picker) func(*planner) []stage {
	return func(p *planner) []stage {
		pick := spread(p.nodes)
		return []stage{{requests: p.crowd, pick: pick}, {duration: p.after + 100*time.Millisecond, rate: p.patience(), pick: pick}}
	}
}

// patience is the rate of a client that was refused and goes on: enough to use up what is left of the limit.
func (p *planner) patience() float64 { return min(max(2*float64(p.rule.Limit), 200), 5000) }

func flash(p *planner) []stage {
	crowd := max(p.crowd, int(min(crowdFactor*p.rule.Limit, maxCrowd)))
	pick := pinned(p.nodes)
	return []stage{{requests: crowd, pick: pick}, {duration: p.after + 100*time.Millisecond, rate: p.patience(), pick: pick}}
}

// A flash crowd wants crowdFactor times the limit, up to maxCrowd requests.
const (
	crowdFactor = 10
	maxCrowd    = 20_000
)

func edge(p *planner) []stage {
	return []stage{
		{requests: maxCrowd, untilEnd: true, pick: sticky(p.nodes)},
		{requests: p.crowd, pick: others(p.nodes)},
		{duration: 2*p.after + 100*time.Millisecond, rate: p.patience(), pick: others(p.nodes)},
	}
}

func sustained(p *planner) []stage { return []stage{{duration: p.duration, pick: pinned(p.nodes)}} }

func steady(p *planner) []stage {
	window := time.Duration(p.rule.Window) * time.Second
	rate := steadyShare * float64(p.rule.Limit) / window.Seconds()
	return []stage{{duration: min(2*window, max(p.duration, 20*time.Second)), rate: rate, pick: roundRobin(p.nodes)}}
}

func sticky(int) picker {
	return func(int, *rand.Rand) func(bool) int { return func(bool) int { return 0 } }
}

func roundRobin(nodes int) picker {
	turn := new(atomic.Uint64)
	return func(int, *rand.Rand) func(bool) int {
		return func(bool) int { return int((turn.Add(1) - 1) % uint64(nodes)) }
	}
}

func anyNode(nodes int) picker {
	return func(_ int, random *rand.Rand) func(bool) int {
		return func(bool) int { return random.IntN(nodes) }
	}
}

func zipf(nodes int) picker {
	return func(_ int, random *rand.Rand) func(bool) int {
		z := rand.NewZipf(random, zipfExponent, 1, uint64(nodes-1))
		return func(bool) int { return int(z.Uint64()) }
	}
}

func pinned(nodes int) picker {
	return func(worker int, _ *rand.Rand) func(bool) int {
		return func(bool) int { return worker % nodes }
	}
}

// others are all nodes but the first; the first where it is the only one.
func others(nodes int) picker {
	if nodes == 1 {
		return sticky(nodes)
	}
	rest := roundRobin(nodes - 1)
	return func(worker int, random *rand.Rand) func(bool) int {
		next := rest(worker, random)
		return func(refused bool) int { return 1 + next(refused) }
	}
}

func hopping(nodes int) picker {
	return func(worker int, _ *rand.Rand) func(bool) int {
		at := worker % nodes
		return func(refused bool) int {
			if refused {
				at = (at + 1) % nodes
			}
			return at
		}
	}
}
