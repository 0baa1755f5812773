package limiter

import (
	"math/big"
	"testing"
)

// tokenModel is a token bucket of one node in exact arithmetic, counted in parts: as many to a grain as the window has
// nanoseconds.
type tokenModel struct {
	content      *big.Int // parts; nil: as good as new
	at           int64
	limit, burst int64
	touched      int64 // when something was last taken, or tried to be, by what limit; and the greatest burst since it was full
	touchedLimit int64
	highest      int64
	nanos        int64
}

func (m *tokenModel) parts(units int64) *big.Int {
	return new(big.Int).Mul(big.NewInt(units*grains), big.NewInt(m.nanos))
}

// live brings it up to now by rule. Where the rule changed, the lower of both counts for the time since; a bucket of which
// nothing is missing is full by the new one at once.
func (m *tokenModel) live(now int64, rule Rule) {
	if m.content != nil {
		m.accrue(now, min(m.limit, rule.Limit), min(m.burst, rule.Burst))
		if rule.Burst >= m.burst {
			m.settle()
		}
		if changed := m.limit != rule.Limit || m.burst != rule.Burst; changed && m.overdue() {
			m.content = nil
		}
	}
	m.at, m.limit, m.burst = now, rule.Limit, rule.Burst
	if m.content != nil {
		m.highest = max(m.highest, rule.Burst)
		m.settle()
	}
}

func (m *tokenModel) accrue(now, limit, burst int64) {
	gained := new(big.Int).Mul(big.NewInt(now-m.at), big.NewInt(limit*grains))
	m.content.Add(m.content, gained)
	if most := m.parts(burst); m.content.Cmp(most) > 0 {
		m.content = most
	}
	m.at = now
}

func (m *tokenModel) settle() {
	if m.content != nil && m.burst == m.highest && m.content.Cmp(m.parts(m.burst)) == 0 {
		m.content = nil
	}
}

// overdue: so long nothing was taken that the greatest burst would be back.
func (m *tokenModel) overdue() bool {
	gone := new(big.Int).Mul(big.NewInt(m.at-m.touched), big.NewInt(m.touchedLimit*grains))
	return gone.Cmp(m.parts(m.highest)) >= 0
}

func (m *tokenModel) held() *big.Int {
	if m.content == nil {
		return m.parts(m.burst)
	}
	return new(big.Int).Set(m.content)
}

func (m *tokenModel) take(units int64) bool {
	held := m.held()
	if held.Cmp(m.parts(units)) < 0 {
		return false
	}
	if m.content == nil {
		m.highest = m.burst
	}
	m.content, m.touched, m.touchedLimit = held.Sub(held, m.parts(units)), m.at, m.limit
	return true
}

func (m *tokenModel) giveBack(units int64) {
	m.content.Add(m.content, m.parts(units))
	m.settle()
}

// forget is what a sweep may do.
func (m *tokenModel) forget(now int64) {
	if m.content == nil {
		return
	}
	m.accrue(now, m.limit, m.burst)
	if m.settle(); m.content != nil && m.overdue() {
		m.content = nil
	}
}

// after is how many nanoseconds it takes until units are there.
func (m *tokenModel) after(units int64) *big.Int {
	lack := m.parts(units)
	if lack.Sub(lack, m.held()); lack.Sign() <= 0 {
		return new(big.Int)
	}
	return ceilQuo(lack, big.NewInt(m.limit*grains))
}

func ceilQuo(a, b *big.Int) *big.Int {
	q, rest := new(big.Int).QuoRem(a, b, new(big.Int))
	if rest.Sign() > 0 {
		q.Add(q, big.NewInt(1))
	}
	return q
}

func (s *script) tokenRule() Rule {
	rule := Rule{Limit: s.limit(), Window: modelWindows[s.below(int64(len(modelWindows)))], Algorithm: TokenBucket}
	rule.Burst = max(s.limit(), 1)
	return rule
}

func checkTokenModel(t *testing.T, data []byte) {
	s := &script{data}
	rules := make([]Rule, 1+s.below(3))
	models := make([]*tokenModel, len(rules))
	ids := make([]BucketID, len(rules))
	for i := range rules {
		rules[i] = s.tokenRule()
		ids[i] = bucketID(&[16]byte{1}, "p", rules[i], []byte{byte(i)})
		models[i] = &tokenModel{nanos: rules[i].Window * 1e9}
	}
	l := newTestLedger("a", 1)
	l.setState(State{HorizonMillis: 1 << 50, Rosters: []Roster{{Index: 1, Nodes: []string{"a"}}}})
	now, wall := int64(1e9), int64(testStart)
	var out outbox
	for len(s.data) > 0 {
		switch s.below(10) {
		case 0: // the wall clock steps, and that brings no token
			wall = max(wall+s.below(1_000_000)-500_000, testStart/2)
		case 1:
			now += s.below(2*rules[s.below(int64(len(rules)))].Window) * 1e9
		case 2:
			b := s.below(int64(len(rules)))
			changed := s.tokenRule()
			rules[b].Limit, rules[b].Burst = changed.Limit, changed.Burst
		case 3:
			l.tick(instant{ms: wall, mono: now}, &out)
			for i := range l.shards {
				l.sweepShard(&l.shards[i], 64)
			}
			for _, m := range models {
				m.forget(now)
			}
		default:
			now += s.below(50_000_000)
		}
		at := instant{ms: wall, mono: now}
		charges, on := s.charges(rules, ids)
		verdicts := make([]Verdict, len(charges))
		want := Admitted
		wants := make([]Outcome, len(on))
		for i, b := range on {
			wants[i] = Refused
			if rules[b].Limit > 0 {
				models[b].live(now, rules[b])
				if models[b].take(charges[i].Cost) {
					wants[i] = Admitted
				}
			}
			want = max(want, wants[i])
		}
		undo := want != Admitted
		for i, b := range on {
			if undo && wants[i] == Admitted {
				models[b].giveBack(charges[i].Cost)
			}
		}
		got, pending := l.take(at, charges, verdicts, &waiter{}, &out)
		if got != want || pending || len(out.to) > 0 {
			t.Fatalf("at %d: %+v: outcome %d (pending %v, %d packets), want %d", now, charges, got, pending, len(out.to), want)
		}
		for i, b := range on {
			checkTokenVerdict(t, models[b], rules[b], at, charges[i].Cost, wants[i], verdicts[i])
		}
		if got == Admitted && s.below(4) == 0 {
			// Given back at once, as if it had not been.
			l.refund(charges)
			for i, b := range on {
				models[b].giveBack(charges[i].Cost)
			}
		}
	}
}

func checkTokenVerdict(t *testing.T, m *tokenModel, rule Rule, at instant, cost int64, want Outcome, v Verdict) {
	t.Helper()
	if rule.Limit == 0 {
		if v.Outcome != Refused || v.Remaining != 0 || v.RetryAfter != rule.Window {
			t.Fatalf("a limit of 0: %+v", v)
		}
		return
	}
	remaining := new(big.Int).Quo(m.held(), m.parts(1)).Int64()
	retry := int64(0)
	if want == Refused {
		remaining = min(remaining, cost-1)
		retry = max(clampRefill(m.after(min(cost, rule.Burst)), 1e9), 1)
	}
	full := (at.ms + clampRefill(m.after(rule.Burst), 1e6) + 999) / 1000
	if v.Outcome != want || v.Remaining != remaining || v.Limit != rule.Limit || v.ResetAt != full || v.RetryAfter != retry || v.Waited {
		t.Fatalf("at %+v: %+v of %+v, want outcome %d, %d remaining, full at %d, retry after %d", at, v, rule, want, remaining, full, retry)
	}
}

// clampRefill is nanoseconds, at most maxRefill, in units of per, rounded up.
func clampRefill(nanos *big.Int, per int64) int64 {
	if nanos.Cmp(big.NewInt(maxRefill)) > 0 {
		return ceilDiv(maxRefill, per)
	}
	return ceilDiv(nanos.Int64(), per)
}

func TestTokens_MatchModel(t *testing.T) {
	t.Parallel()
	randomScripts(t, 21, checkTokenModel)
}

// A single node must do what the model does, whatever is asked of it.
func FuzzTokensModel(f *testing.F) { fuzzScripts(f, 23, checkTokenModel) }
