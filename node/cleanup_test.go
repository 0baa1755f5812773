package node

import (
	"testing"
	"time"
)

func TestCleaner_NeverTooFew(t *testing.T) {
	t.Parallel()
	const hour = time.Hour
	voter := func(id string) member { return member{ID: id, Voter: true} }
	for _, test := range []struct {
		name      string
		after     time.Duration
		minVoters int
		servers   []member
		dead      map[string]time.Duration
		want      string
	}{
		{"nobody is dead", hour, 3, []member{voter("a"), voter("b"), voter("c"), voter("d")}, nil, ""},
		{"not dead for long", hour, 3, []member{voter("a"), voter("b"), voter("c"), voter("d")}, map[string]time.Duration{"d": hour - 1}, ""},
		{"one of four", hour, 3, []member{voter("a"), voter("b"), voter("c"), voter("d")}, map[string]time.Duration{"d": hour}, "d"},
		{"off", 0, 3, []member{voter("a"), voter("b"), voter("c"), voter("d")}, map[string]time.Duration{"d": 99 * hour}, ""},
		{"one of three", hour, 3, []member{voter("a"), voter("b"), voter("c")}, map[string]time.Duration{"c": hour}, ""},
		{"one of three, where two are enough", hour, 2, []member{voter("a"), voter("b"), voter("c")}, map[string]time.Duration{"c": hour}, "c"},
		{"one of five, another one silent", hour, 3, []member{voter("a"), voter("b"), voter("c"), voter("d"), voter("e")}, map[string]time.Duration{"d": hour, "e": 1}, "d"},
		// Three of five are gone: whoever leads cannot commit anything anyhow, and must not try.
		{"three of five", hour, 1, []member{voter("a"), voter("b"), voter("c"), voter("d"), voter("e")}, map[string]time.Duration{"c": hour, "d": hour, "e": hour}, ""},
		{"one without a vote", hour, 3, []member{voter("a"), voter("b"), voter("c"), {ID: "d"}}, map[string]time.Duration{"d": hour}, "d"},
		{"itself", hour, 1, []member{voter("a"), voter("b")}, map[string]time.Duration{"a": hour}, ""},
	} {
		c := cleaner{after: test.after, minVoters: test.minVoters, dead: func(id string) time.Duration { return test.dead[id] }}
		got, silent, ok := c.next("a", test.servers)
		if got.ID != test.want || ok != (test.want != "") || ok && silent != test.dead[got.ID] {
			t.Errorf("%s: %q after %s, want %q", test.name, got.ID, silent, test.want)
		}
	}
}

func TestProbation(t *testing.T) {
	t.Parallel()
	var p probation
	began := time.Now()
	at := func(s int) time.Time { return began.Add(time.Duration(s) * time.Second) }
	servers := []member{{ID: "new"}, {ID: "old", Voter: true}}
	answers := true
	look := func(s int) { p.look(at(s), servers, func(string) bool { return answers }) }
	missing := func(s int, want time.Duration) {
		t.Helper()
		if got := p.missing(at(s), "new", 10*time.Second); got != want {
			t.Errorf("after %d s it has to answer for another %s, want %s", s, got, want)
		}
	}
	missing(0, 10*time.Second)
	for s := range 8 {
		look(s)
	}
	missing(7, 3*time.Second)
	answers = false
	look(8)
	missing(8, 10*time.Second)
	answers = true
	for s := 9; s <= 19; s++ {
		look(s)
	}
	missing(19, 0)
	// Another node led for a while: what was seen before proves nothing.
	missing(30, 10*time.Second)
	look(30)
	missing(30, 10*time.Second)
}
