package authapi_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"sluice/authapi"
	"sluice/limiter"
	"sluice/raftfsm/state"
)

// subjectEdge counts by everything that there is.
func subjectEdge(t *testing.T) *edge {
	e := newEdge(t, func(c *authapi.Config) {
		trustLoopback(c)
		c.Limit.Plans = map[string]limiter.Rule{"gold": window(77, 60)}
		c.Routes = []authapi.Route{
			{Name: "a", PathPrefix: "/a", Rules: []authapi.RouteRule{{Methods: []string{"*"}, Anonymous: true, Cost: 1}}},
			{Name: "b", PathPrefix: "/b", Rules: []authapi.RouteRule{{Methods: []string{"*"}, Anonymous: true, Cost: 1}}},
		}
		c.Limit.Policies = []authapi.Policy{
			{Name: "key-day", By: []authapi.Dimension{authapi.ByKey}, Rule: window(11, 86_400)},
			{Name: "org", By: []authapi.Dimension{authapi.ByOrganization}, Rule: window(12, 60)},
			{Name: "org-route", By: []authapi.Dimension{authapi.ByOrganization, authapi.ByRoute}, Rule: window(13, 60), Routes: []string{"b"}},
			{Name: "key-address", By: []authapi.Dimension{authapi.ByKey, authapi.ByAddress}, Rule: window(14, 60)},
			{Name: "address-day", By: []authapi.Dimension{authapi.ByAddress}, Rule: window(15, 86_400), Layers: []string{"api_key"}},
			{Name: "user-shadow", By: []authapi.Dimension{authapi.ByUser}, Rule: window(16, 60), Shadow: true},
			{Name: "gold-only", By: []authapi.Dimension{authapi.ByKey}, Rule: window(17, 60), Plans: []string{"gold"}},
		}
	})
	e.organization("org_1", "")
	e.organization("org_gold", "gold")
	return e
}

// used lists what the subject's buckets have counted: "policy@route=units", those with nothing left out.
func (e *edge) used(s authapi.Subject) (out []string) {
	for _, b := range s.Buckets {
		v := e.limits.Peek(limiter.Charge{Bucket: b.Bucket, Rule: b.Rule, Cost: 1})
		if used := b.Rule.Limit - v.Remaining; used > 0 {
			name := b.Policy
			if b.Route != "" {
				name += "@" + b.Route
			}
			out = append(out, fmt.Sprintf("%s=%d", name, used))
		}
	}
	return out
}

// Every bucket that a request spends from is one of its subject's.
func TestSubject_NamesWhatRequestsSpend(t *testing.T) {
	t.Parallel()
	e := subjectEdge(t)
	secret := e.key(nil)
	record, err := e.cluster.KeyByHash(sha256.Sum256([]byte(secret)))
	if err != nil || record == nil {
		t.Fatal(err)
	}
	for _, uri := range []string{"/a/1", "/b/1", "/b/2"} {
		e.want(e.described("GET", uri, "X-API-Key", secret, "X-Forwarded-For", "2001:db8:1:2:3::4"), 200, "")
	}
	e.want(e.described("GET", "/a/1", "X-Forwarded-For", "192.0.2.9"), 200, "")

	for _, test := range []struct {
		subject, kind, id, org string
		used                   []string
		others                 []string
	}{
		{record.ID, "api_key", record.ID, "org_1", []string{"api_key=3", "key-day=3", "org=3", "org-route@b=2"}, []string{"key-address"}},
		{"org_1", "organization", "org_1", "org_1", []string{"org=3", "org-route@b=2"}, nil},
		{"2001:db8:1:2::", "address", "2001:db8:1:2::/64", "", []string{"address-day=3"}, []string{"key-address"}},
		{"2001:db8:1:2::/64", "address", "2001:db8:1:2::/64", "", []string{"address-day=3"}, []string{"key-address"}},
		{"192.0.2.9", "address", "192.0.2.9", "", []string{"anonymous=1"}, []string{"key-address"}},
		{"::ffff:192.0.2.9", "address", "192.0.2.9", "", []string{"anonymous=1"}, []string{"key-address"}},
	} {
		s, err := e.srv.Subject(test.subject)
		if err != nil {
			t.Fatalf("%s: %v", test.subject, err)
		}
		if s.Kind != test.kind || s.ID != test.id || s.OrganizationID != test.org || s.Note != "" || !slices.Equal(s.Others, test.others) {
			t.Errorf("%s: %+v", test.subject, s)
		}
		if got := e.used(s); !slices.Equal(got, test.used) {
			t.Errorf("%s: used %v, want %v", test.subject, got, test.used)
		}
		for _, b := range s.Buckets {
			if want := s.Kind == "api_key" && strings.HasPrefix(b.Policy, "org"); b.Shared != want {
				t.Errorf("%s: policy %s counts others: %v, want %v", test.subject, b.Policy, b.Shared, want)
			}
		}
	}
	bySecret, err := e.srv.SubjectByKey(sha256.Sum256([]byte(secret)))
	if err != nil || bySecret.ID != record.ID || len(bySecret.Buckets) != 4 {
		t.Errorf("by its hash: %+v, %v", bySecret, err)
	}
}

func TestSubject_Users(t *testing.T) {
	t.Parallel()
	e := subjectEdge(t)
	e.cluster.PutUser(state.User{ID: "usr_1", Username: "one", PersonalOrg: "org_1"})
	s, err := e.srv.Subject("usr_1")
	if err != nil || s.Kind != "user" || s.OrganizationID != "org_1" || s.Buckets[0].Policy != "user" || s.Buckets[0].Source != "" {
		t.Fatalf("%+v, %v", s, err)
	}
	shadow := slices.IndexFunc(s.Buckets, func(b authapi.SubjectBucket) bool { return b.Policy == "user-shadow" })
	if shadow < 0 || !s.Buckets[shadow].Shadow {
		t.Errorf("the shadow policy is not told: %+v", s.Buckets)
	}
	e.cluster.PutMembership(state.Membership{OrganizationID: "org_gold", UserID: "usr_1", Role: state.RoleMember})
	if s, err = e.srv.Subject("usr_1"); err != nil || s.Buckets[0].Source != "plan gold" || s.Buckets[0].Rule != window(77, 60) {
		t.Errorf("with a plan: %+v, %v", s, err)
	}
	e.cluster.PutUser(state.User{ID: "usr_1", Username: "one", PersonalOrg: "org_1", DisabledAt: 5})
	if s, err = e.srv.Subject("usr_1"); err != nil || s.Note == "" {
		t.Errorf("disabled: %+v, %v", s, err)
	}
}

func TestSubject_Keys(t *testing.T) {
	t.Parallel()
	e := subjectEdge(t)
	own := limiter.Rule{Limit: 5, Window: 7, Algorithm: authapi.DefaultLimits().APIKey.Algorithm}
	for name, test := range map[string]struct {
		change func(*state.APIKey)
		source string
		rule   limiter.Rule
		note   string
		golden bool
	}{
		"layer":   {nil, "", authapi.DefaultLimits().APIKey, "", false},
		"plan":    {func(k *state.APIKey) { k.OrganizationID = "org_gold" }, "plan gold", window(77, 60), "", true},
		"own":     {func(k *state.APIKey) { k.RateLimit, k.RateWindow = 5, 7 }, "the key's own limit", own, "", false},
		"revoked": {func(k *state.APIKey) { k.RevokedAt = 9 }, "", authapi.DefaultLimits().APIKey, "revoked", false},
		"expired": {func(k *state.APIKey) { k.ExpiresAt = 9 }, "", authapi.DefaultLimits().APIKey, "expired", false},
	} {
		s, err := e.srv.SubjectByKey(sha256.Sum256([]byte(e.key(test.change))))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		golden := slices.ContainsFunc(s.Buckets, func(b authapi.SubjectBucket) bool { return b.Policy == "gold-only" })
		if b := s.Buckets[0]; b.Policy != "api_key" || b.Source != test.source || b.Rule != test.rule || golden != test.golden {
			t.Errorf("%s: %+v", name, s)
		}
		if (test.note == "") != (s.Note == "") || !strings.Contains(s.Note, test.note) {
			t.Errorf("%s: note %q", name, s.Note)
		}
	}
}

func TestSubject_Refuses(t *testing.T) {
	t.Parallel()
	e := subjectEdge(t)
	for text, want := range map[string]error{
		"": authapi.ErrSubject, "nonsense": authapi.ErrSubject, "ses_1": authapi.ErrSubject, "192.0.2.1.": authapi.ErrSubject,
		"192.0.2.0/24": authapi.ErrSubject, "2001:db8::/48": authapi.ErrSubject, "fe80::1%eth0": authapi.ErrSubject,
		"KEY_1": authapi.ErrSubject, "key_none": authapi.ErrNoSubject, "usr_none": authapi.ErrNoSubject, "org_none": authapi.ErrNoSubject,
	} {
		if s, err := e.srv.Subject(text); !errors.Is(err, want) {
			t.Errorf("%q: %+v, %v; want %v", text, s, err, want)
		}
	}
	if _, err := e.srv.SubjectByKey([32]byte{1}); !errors.Is(err, authapi.ErrNoSubject) {
		t.Errorf("an unknown hash: %v", err)
	}
}

func TestResetLimits_CommandsAndAudit(t *testing.T) {
	t.Parallel()
	e := subjectEdge(t)
	var commands []state.ResetBucket
	e.cluster.SetOnPropose(func(cmd state.Command) (bool, error) {
		if c, ok := cmd.(state.ResetBucket); ok {
			commands = append(commands, c)
		}
		return true, nil
	})
	s := authapi.Subject{Kind: "api_key", ID: "key_1", OrganizationID: "org_1"}
	for i := range 70 {
		s.Buckets = append(s.Buckets, authapi.SubjectBucket{Policy: []string{"api_key", "day"}[i%2], Bucket: limiter.BucketID{byte(i + 1)}, Rule: window(5, 60)})
	}
	if err := e.srv.ResetLimits(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	if len(commands) != 2 || len(commands[0].Buckets) != 64 || len(commands[1].Buckets) != 6 {
		t.Fatalf("%d commands", len(commands))
	}
	for i, c := range commands {
		if c.At != start.UnixMilli() || len(c.Audit) != 1 {
			t.Fatalf("command %d: %+v", i, c)
		}
		ev := c.Audit[0]
		if ev.Event != "limit.reset" || ev.ActorType != "operator" || ev.SubjectType != "api_key" || ev.SubjectID != "key_1" ||
			ev.OrganizationID != "org_1" || ev.Result != "success" || fmt.Sprint(ev.Detail) != "[{policies api_key, day} {node node-a}]" {
			t.Errorf("event %+v", ev)
		}
		for j, b := range c.Buckets {
			if b.Bucket[0] != byte(64*i+j+1) || b.Window != 60 || b.Algorithm != uint8(limiter.FixedWindow) {
				t.Errorf("bucket %d: %+v", j, b)
			}
		}
	}
	e.cluster.SetUnavailable(authapi.ErrUnavailable)
	if err := e.srv.ResetLimits(context.Background(), s); !errors.Is(err, authapi.ErrUnavailable) {
		t.Errorf("without a leader: %v", err)
	}
}
