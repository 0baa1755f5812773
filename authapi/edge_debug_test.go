package authapi_test

import (
	"testing"

	"sluice/authapi"
	"sluice/limiter"
)

// waiting answers every decision as one that waited.
type waiting struct{ authapi.Limits }

func (w waiting) Take(charges []limiter.Charge, verdicts []limiter.Verdict) limiter.Outcome {
	o := w.Limits.Take(charges, verdicts)
	for i := range verdicts {
		verdicts[i].Waited = true
	}
	return o
}

func TestDebugHeader_SaysWhetherTheDecisionWaited(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name       string
		on, waited bool
		header     string
	}{
		{name: "off"},
		{name: "off, waited", waited: true},
		{name: "on", on: true, header: "waited=0"},
		{name: "on, waited", on: true, waited: true, header: "waited=1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			e := newEdge(t, func(c *authapi.Config) {
				c.Limit.DebugHeader = test.on
				c.Limit.Anonymous = rule(1)
				if test.waited {
					c.Limits = waiting{c.Limits}
				}
			})
			for _, status := range []int{200, 429} {
				a := e.do("GET", "/api/v1/auth/verify", "")
				if got := a.header.Get("X-RateLimit-Debug"); a.status != status || got != test.header {
					t.Errorf("status %d, X-RateLimit-Debug %q, want %d and %q", a.status, got, status, test.header)
				}
			}
			if a := e.do("GET", "/livez", ""); a.header.Get("X-RateLimit-Debug") != "" {
				t.Errorf("/livez: X-RateLimit-Debug %q, want none: nothing was decided", a.header.Get("X-RateLimit-Debug"))
			}
		})
	}
}
