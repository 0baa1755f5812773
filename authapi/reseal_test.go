package authapi_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"sluice/authapi"
	"sluice/authapi/authtest"
	"sluice/raftfsm/state"
)

// underway is a server with something of every kind sealed, and its sealer.
func underway(t *testing.T, answers int) (*edge, *authtest.Sealer, person) {
	t.Helper()
	var sealer *authtest.Sealer
	e := newAccounts(t, func(cfg *authapi.Config) { sealer = cfg.Sealer.(*authtest.Sealer) })
	p := e.register()
	for i := range answers {
		body := object{"name": fmt.Sprintf("key %d", i), "organization_id": p.org, "scopes": []string{"events:read"}}
		e.want(e.send("POST", "/api/v1/api-keys", p.token, body, "Idempotency-Key", fmt.Sprintf("once-%d", i)), 201, "")
	}
	return e, sealer, p
}

// Everything comes under the new key, nothing stops working meanwhile, and the old one can go when it is said to be done.
func TestReseal(t *testing.T) {
	t.Parallel()
	e, sealer, p := underway(t, 200)
	first := e.send("POST", "/api/v1/api-keys", p.token, object{"name": "key 0", "organization_id": p.org, "scopes": []string{"events:read"}}, "Idempotency-Key", "once-0")
	seal := sealer.AddKey()
	maintain := func() authapi.Resealing {
		t.Helper()
		if err := e.srv.Maintain(t.Context()); err != nil {
			t.Fatal(err)
		}
		r, ok := e.srv.Resealing()
		if !ok {
			t.Fatal("nothing is known of it")
		}
		return r
	}
	if r, ok := e.srv.Resealing(); !ok || !r.Done {
		t.Errorf("with one key: %+v", r)
	}
	if err := e.srv.RotateSecretsKey(t.Context(), authapi.Operator{Address: "127.0.0.1"}, "k2", seal); err != nil {
		t.Fatal(err)
	}
	if r, ok := e.srv.Resealing(); ok {
		t.Errorf("what was found under the old key is said of the new one: %+v", r)
	}
	for i := 0; ; i++ {
		if r := maintain(); r.Checked == r.Records && r.Resealed == 202 {
			if r.Done || r.Unopenable != 0 {
				t.Errorf("after one look: %+v", r)
			}
			break
		} else if i > 1000 {
			t.Fatalf("never through: %+v", r)
		}
	}
	before := e.cluster.Index()
	for range 2 {
		if r := maintain(); r.Done {
			t.Errorf("done before what was under way can have come: %+v", r)
		}
	}
	var r authapi.Resealing
	for range 2 {
		e.clock.Advance(31 * time.Second)
		r = maintain()
	}
	if !r.Done || r.Records != 202 || r.Resealed != 202 {
		t.Errorf("at the end: %+v", r)
	}
	if got := e.cluster.Index(); got > before+2 { // prunings
		t.Errorf("looking made %d log entries", got-before)
	}
	sealer.DropKeys()
	if err := e.srv.CheckSecrets(); err != nil {
		t.Errorf("with the new key alone: %v", err)
	}
	again := e.send("POST", "/api/v1/api-keys", p.token, object{"name": "key 0", "organization_id": p.org, "scopes": []string{"events:read"}}, "Idempotency-Key", "once-0")
	e.want(again, 201, "")
	if again.body != first.body {
		t.Errorf("a repetition gets %s, and got %s before", again.body, first.body)
	}
	// A server that has opened nothing yet, as after a start.
	cfg, _, _, _ := edgeConfig(nil)
	cfg.State, cfg.Cluster, cfg.Sealer, cfg.Clock = e.cluster, e.cluster, sealer, e.clock.Now
	srv, err := authapi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Shutdown(t.Context())
	if err := srv.CheckSecrets(); err != nil {
		t.Errorf("after a start: %v", err)
	}
	page := e.everyEvent(map[string]string{"event": "secrets_key.rotated"})
	if len(page.Data) != 1 || page.Data[0].Subject.ID == nil || *page.Data[0].Subject.ID != "k2" {
		t.Errorf("audit: %v", page)
	}
}

// A leader that stops in the middle leaves what the next one goes on with.
func TestReseal_AnotherLeaderGoesOn(t *testing.T) {
	t.Parallel()
	e, sealer, _ := underway(t, 300)
	seal := sealer.AddKey()
	if err := e.srv.RotateSecretsKey(t.Context(), authapi.Operator{}, "k2", seal); err != nil {
		t.Fatal(err)
	}
	lost, batches := errors.New("lost the leadership"), 0
	e.cluster.SetOnPropose(func(cmd state.Command) (bool, error) {
		if _, ok := cmd.(state.Reseal); !ok {
			return true, nil
		}
		if batches++; batches > 2 {
			return false, lost
		}
		return true, nil
	})
	if err := e.srv.Maintain(t.Context()); !errors.Is(err, lost) {
		t.Fatalf("Maintain: %v", err)
	}
	one, ok := e.srv.Resealing()
	if ok && one.Done {
		t.Errorf("the one that stopped: %+v", one)
	}
	cfg, _, _, _ := edgeConfig(nil)
	cfg.State, cfg.Cluster, cfg.Sealer, cfg.Clock = e.cluster, e.cluster, sealer, e.clock.Now
	srv, err := authapi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Shutdown(t.Context())
	e.cluster.SetOnPropose(nil)
	var r authapi.Resealing
	for i := 0; !r.Done; i++ {
		if i > 1000 {
			t.Fatalf("never done: %+v", r)
		}
		if err := srv.Maintain(t.Context()); err != nil {
			t.Fatal(err)
		}
		e.clock.Advance(31 * time.Second)
		r, _ = srv.Resealing()
	}
	if r.Resealed == 0 || r.Resealed >= 302 || r.Records != 302 {
		t.Errorf("the second one: %+v", r)
	}
	sealer.DropKeys()
	if err := srv.CheckSecrets(); err != nil {
		t.Error(err)
	}
}

// A key that is taken out too early is told of, at the start and by the leader.
func TestReseal_KeyDroppedTooEarly(t *testing.T) {
	t.Parallel()
	e, sealer, _ := underway(t, 3)
	seal := sealer.AddKey()
	if err := e.srv.RotateSecretsKey(t.Context(), authapi.Operator{}, "k2", seal); err != nil {
		t.Fatal(err)
	}
	sealer.DropKeys()
	if err := e.srv.CheckSecrets(); !errors.Is(err, authapi.ErrSecretsKey) || !strings.Contains(err.Error(), "signing key") {
		t.Errorf("CheckSecrets: %v", err)
	}
	sealer.AddKey()
	if err := e.srv.Maintain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r, ok := e.srv.Resealing(); !ok || r.Unopenable != 5 || r.Done {
		t.Errorf("resealing: %+v", r)
	}
}

// The keys of gossip are of what is looked at, and of what a node has to open.
func TestReseal_GossipKeyring(t *testing.T) {
	t.Parallel()
	e, sealer, _ := underway(t, 0)
	put := func(version uint64, keys ...state.GossipKey) {
		t.Helper()
		cmd := state.PutGossipKeyring{Keyring: state.GossipKeyring{Version: version, Keys: keys, Primary: keys[0].ID}}
		if res, err := e.cluster.Propose(t.Context(), [16]byte{byte(version), 1}, cmd); err != nil || res.Refused != "" {
			t.Fatalf("keyring %d: %+v, %v", version, res, err)
		}
	}
	var keys []state.GossipKey
	for _, id := range []string{"one", "two"} {
		sealed, err := sealer.Seal(authapi.GossipKeyPurpose(id), []byte("key "+id))
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, state.GossipKey{ID: id, Sealed: sealed})
	}
	put(1, keys...)
	if err := e.srv.RotateSecretsKey(t.Context(), authapi.Operator{}, "k2", sealer.AddKey()); err != nil {
		t.Fatal(err)
	}
	maintain := func() (r authapi.Resealing) {
		t.Helper()
		for range 4 {
			if err := e.srv.Maintain(t.Context()); err != nil {
				t.Fatal(err)
			}
			if r, _ = e.srv.Resealing(); r.Done {
				break
			}
			e.clock.Advance(31 * time.Second)
		}
		return r
	}
	// Between the first look and the second comes a version that was made before the first.
	if err := e.srv.Maintain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r, ok := e.srv.Resealing(); !ok || r.Records != 4 || r.Resealed != 4 || r.Done {
		t.Errorf("after one look: %+v", r)
	}
	put(2, keys...)
	e.clock.Advance(31 * time.Second)
	if r := maintain(); !r.Done || r.Records != 4 || r.Resealed != 6 || r.Unopenable != 0 {
		t.Errorf("at the end: %+v", r)
	}
	sealer.DropKeys()
	if err := e.srv.CheckSecrets(); err != nil {
		t.Errorf("with the new key alone: %v", err)
	}
	ring, err := e.cluster.GossipKeyring()
	if err != nil || ring.Version != 2 || ring.Primary != "one" || len(ring.Keys) != 2 {
		t.Fatalf("keyring: %+v, %v", ring, err)
	}
	for _, key := range ring.Keys {
		if text, err := sealer.Open(authapi.GossipKeyPurpose(key.ID), key.Sealed); err != nil || string(text) != "key "+key.ID {
			t.Errorf("key %s: %q, %v", key.ID, text, err)
		}
	}
	// What nobody opens any more is told of.
	put(3, keys...)
	if err := e.srv.CheckSecrets(); !errors.Is(err, authapi.ErrSecretsKey) || !strings.Contains(err.Error(), "key of gossip two") {
		t.Errorf("CheckSecrets: %v", err)
	}
	e.clock.Advance(2 * time.Hour)
	if err := e.srv.Maintain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r, _ := e.srv.Resealing(); r.Done || r.Unopenable != 2 {
		t.Errorf("with keys that nobody opens: %+v", r)
	}
}
