package authapi_test

import (
	"net/http"
	"sync/atomic"
	"testing"

	"sluice/authapi"
	"sluice/raftfsm/state"
)

// countedState counts what looking a key up costs.
type countedState struct {
	authapi.State
	lookups atomic.Int64
}

func (s *countedState) KeyAuth(hash [32]byte) (*state.KeyAuth, error) {
	s.lookups.Add(1)
	return s.State.KeyAuth(hash)
}

func TestNoCredentialCache_LooksUpEachTime(t *testing.T) {
	t.Parallel()
	for off, want := range map[bool]int64{false: 1, true: 3} {
		var counted *countedState
		e := newEdge(t, func(cfg *authapi.Config) {
			counted = &countedState{State: cfg.State}
			cfg.State, cfg.Auth.NoCredentialCache = counted, off
		})
		key := e.key(nil, "events:read")
		for range 3 {
			if got := e.do(http.MethodGet, "/api/v1/auth/verify", "", "X-API-Key", key).status; got != http.StatusOK {
				t.Fatalf("cache off %v: status %d, want 200", off, got)
			}
		}
		if got := counted.lookups.Load(); got != want {
			t.Errorf("cache off %v: %d look-ups of three requests, want %d", off, got, want)
		}
	}
}
