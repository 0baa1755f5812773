package authapi

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"sluice/raftfsm/state"
)

const (
	// keyLead is how long a new signing key is published before it signs: longer than any node may be behind and than
	// clients keep the JWKS.
	keyLead = 90 * time.Second
	// keyMargin is how much longer than its last token an old key verifies: clocks of nodes differ.
	keyMargin = time.Minute
	// maxVerifyingKeys bounds the keys that verify at once; a rotation that would exceed it waits.
	maxVerifyingKeys = 4

	pruneEvery = time.Minute
	pruneMax   = 1000

	// idempotencyLife is how long an answer is kept for repetitions (the contract: 24 h).
	idempotencyLife = 24 * time.Hour
	// requestLife is how long a change's request id is known: much longer than any proposal is retried.
	requestLife = time.Hour
	// sessionKeep is how long an ended session stays on record: longer than its last access token may live.
	sessionKeep = 2 * MaxTokenTTL

	bucketKeyLen = 16
	// checkText is what ClusterSecrets.SealedCheck says to a node that holds the cluster's key for secrets at rest.
	checkPurpose = "secrets-check"
	checkText    = "sluice secrets check v1"
)

// upkeep is what the leader's maintenance remembers between rounds.
type upkeep struct {
	mu    sync.Mutex // one round at a time
	prune time.Time  // when the next one is due
}

// Maintain does the leader's work on accounts: it makes the cluster's secrets and first signing key, replaces the
// signing key when its time has come, prunes what is over, and seals anew what is under another key than the one in use. The leader calls it about once a second; a round in which
// nothing is due reads a few records and proposes nothing. Another leader that does the same at the same time does no
// harm. Errors are the cluster's and the store's: the next round tries again.
func (s *Server) Maintain(ctx context.Context) error {
	u := &s.accounts.upkeep
	u.mu.Lock()
	defer u.mu.Unlock()
	secrets, err := s.state.ClusterSecrets()
	if err != nil {
		return fmt.Errorf("read cluster secrets: %w", err)
	}
	if secrets == nil {
		if err := s.initCluster(ctx); err != nil {
			return fmt.Errorf("make cluster secrets: %w", err)
		}
	}
	if _, err := s.rotateSigningKey(ctx, nil); err != nil {
		return fmt.Errorf("rotate signing key: %w", err)
	}
	if now := s.clock(); !now.Before(u.prune) {
		more, err := s.pruneState(ctx, now)
		if err != nil {
			return fmt.Errorf("prune: %w", err)
		}
		if !more {
			u.prune = now.Add(pruneEvery)
		}
	}
	if err := s.reseal(ctx, s.clock()); err != nil {
		return fmt.Errorf("seal secrets anew: %w", err)
	}
	return nil
}

// CheckSecrets says whether this node can work with the cluster's secrets: it seals under the cluster's key from now on, and
// opens the refresh key, every signing key and every key of gossip. nil also where the cluster has no secrets yet.
func (s *Server) CheckSecrets() error {
	secrets, err := s.state.ClusterSecrets()
	if err != nil {
		return fmt.Errorf("read cluster secrets: %w", err)
	}
	if secrets == nil {
		return nil
	}
	if err := s.UseSecretsKey(); err != nil {
		return err
	}
	return s.opensAllKeys(secrets)
}

// OpensSecrets says whether one of this node's keys for secrets at rest is the one that these secrets are sealed with, which may
// be a backup's: ErrSecretsKey where none is.
func (s *Server) OpensSecrets(secrets *state.ClusterSecrets) error {
	if text, err := s.sealer.Open(checkPurpose, secrets.SealedCheck); err != nil || string(text) != checkText {
		return ErrSecretsKey
	}
	return nil
}

func (s *Server) initCluster(ctx context.Context) error {
	now := s.clock()
	root := make([]byte, refreshKeyLen)
	rand.Read(root)
	// A Cluster that has an identity of its own puts it in the place of this one.
	secrets := state.ClusterSecrets{ClusterID: newID("clu", now), BucketKey: make([]byte, bucketKeyLen)}
	rand.Read(secrets.BucketKey)
	var err error
	if secrets.SealedRefreshKey, err = s.sealer.Seal(refreshKeyPurpose, root); err != nil {
		return fmt.Errorf("seal refresh key: %w", err)
	}
	if secrets.SealedCheck, err = s.sealer.Seal(checkPurpose, []byte(checkText)); err != nil {
		return fmt.Errorf("seal check: %w", err)
	}
	key, err := generateSigningKey(s.sealer, s.cfg.Auth.SigningAlgorithm, now, now)
	if err != nil {
		return err
	}
	_, err = s.propose(ctx, state.InitCluster{Secrets: secrets, SigningKey: key})
	if refusedWith(err, state.CodeConflict) {
		return nil // another leader was first
	}
	return err
}

// rotateSigningKey adds a key where the newest is too old or of another algorithm than configured, or an operator asks
// for it, who is then told of what stands in the way. It gives the key, nil where none was due.
func (s *Server) rotateSigningKey(ctx context.Context, asked *Operator) (*state.SigningKey, error) {
	ring, err := s.tokens.current()
	if err != nil {
		return nil, err
	}
	if len(ring.keys) == 0 {
		if asked != nil {
			return nil, ErrUnavailable // the cluster has not formed yet
		}
		return nil, nil
	}
	now := s.clock()
	newest := ring.keys[len(ring.keys)-1].record
	auth := s.cfg.Auth
	old := auth.SigningRotation > 0 && now.UnixMilli()-newest.SignsFrom >= auth.SigningRotation.Milliseconds()
	if asked == nil && !old && newest.Algorithm == auth.SigningAlgorithm {
		return nil, nil
	}
	verifying := 0
	for _, k := range ring.keys {
		if k.verifiesAt(now.UnixMilli()) {
			verifying++
		}
	}
	switch {
	case newest.SignsFrom > now.UnixMilli(), verifying >= maxVerifyingKeys:
		if asked != nil {
			return nil, errSigningKeys
		}
		return nil, nil
	}
	signsFrom := now.Add(keyLead)
	key, err := generateSigningKey(s.sealer, auth.SigningAlgorithm, now, signsFrom)
	if err != nil {
		return nil, err
	}
	event := Operator{}.event(now, "signing_key.rotated", "", kindSigningKey, key.ID, "algorithm", key.Algorithm)
	event.ActorType = kindSystem
	if asked != nil {
		event = asked.event(now, "signing_key.rotated", "", kindSigningKey, key.ID, "algorithm", key.Algorithm)
	}
	_, err = s.propose(ctx, state.PutSigningKey{
		Key: key, PreviousID: newest.ID, PreviousVerifiesTo: signsFrom.Add(auth.TokenTTL + keyMargin).UnixMilli(),
		Audit: []state.AuditEvent{event},
	})
	if refusedWith(err, state.CodeConflict) && asked == nil {
		return nil, nil // another leader was first
	}
	if err != nil {
		return nil, err
	}
	return &key, nil
}

// pruneState removes what is over; more says that there is more of it.
func (s *Server) pruneState(ctx context.Context, now time.Time) (more bool, err error) {
	cmd := state.Prune{
		IdempotencyBefore: now.Add(-idempotencyLife).UnixMilli(),
		SessionsBefore:    now.Add(-sessionKeep).UnixMilli(),
		RequestsBefore:    now.Add(-requestLife).UnixMilli(),
		Max:               pruneMax,
	}
	if keep := s.cfg.Auth.AuditRetention; keep > 0 {
		cmd.AuditBefore = now.Add(-keep).UnixMilli()
	}
	res, err := s.propose(ctx, cmd)
	return res.Count >= pruneMax, err
}
