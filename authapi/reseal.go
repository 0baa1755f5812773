package authapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"sluice/raftfsm/state"
)

const (
	// resealPage is how many records are looked at at once, and sealed anew by one command at most.
	resealPage = 128
	// resealSpan bounds the work of one round of maintenance, which others wait for.
	resealSpan = 300 * time.Millisecond
	// resealBytes bounds the sealed values of one command, whose size is bounded (64 KiB). One value alone always fits: it came in a
	// command, with more beside it.
	resealBytes = 32 << 10
	// resealPause is between two looks at everything. It is longer than a change may be on its way: what a node that had not heard of
	// the new key sealed under the old one is in the log when the second look begins.
	resealPause = 30 * time.Second
	// resealLooks is how many looks in a row have to find nothing until nothing is under another key.
	resealLooks = 2
	// resealAgain is when a leader that is through looks again, for what a restored backup brought.
	resealAgain = time.Hour
)

// Resealing says how far a leader is with sealing everything under the key in use.
type Resealing struct {
	Records    int  // that hold something sealed, as of the last look at everything; of the first one, as far as it is
	Checked    int  // that the present look has looked at; all of them between two looks
	Resealed   int  // that this node has sealed anew under the key in use
	Unopenable int  // that none of this node's keys opens
	Done       bool // everything is under the key in use; no other key is needed
	CheckedAt  time.Time

	check []byte // ClusterSecrets.SealedCheck that it is about
}

// resealing is what the leader remembers of it. Only the leader's maintenance changes it.
type resealing struct {
	check   []byte // ClusterSecrets.SealedCheck: which key this is about
	look    look
	quiet   int       // looks in a row that found nothing
	next    time.Time // when the next look begins
	through bool      // enough looks found nothing

	resealed int
	last     atomic.Pointer[Resealing]
}

// look is one look at everything.
type look struct {
	begun               bool
	after               []byte // scope up to which answers were looked at; nil before the first
	records, unopenable int
	found               int // under another key
}

// Resealing is this node's own view; only a leader's moves on. ok is false before its first look under the key in use: what it found
// under the one before says nothing any more, from the moment on that the state has another.
func (s *Server) Resealing() (r Resealing, ok bool) {
	p := s.accounts.resealing.last.Load()
	if p == nil {
		return Resealing{}, false
	}
	secrets, err := s.state.ClusterSecrets()
	if err != nil || secrets == nil || !bytes.Equal(p.check, secrets.SealedCheck) {
		return Resealing{}, false
	}
	return *p, true
}

// UseSecretsKey makes this node seal under the key that the cluster's secrets are under. It is to be called whenever they may have
// changed; ErrSecretsKey where this node does not hold that key.
func (s *Server) UseSecretsKey() error {
	secrets, err := s.state.ClusterSecrets()
	if err != nil {
		return fmt.Errorf("read cluster secrets: %w", err)
	}
	if secrets == nil {
		return nil
	}
	if err := s.sealer.Use(checkPurpose, secrets.SealedCheck); err != nil {
		return ErrSecretsKey
	}
	return nil
}

// RotateSecretsKey makes another key the one under which secrets are sealed. seal seals under it; name tells it to people. The
// caller has made sure that every node holds it. What is sealed already is sealed anew by the leader's maintenance.
func (s *Server) RotateSecretsKey(ctx context.Context, by Operator, name string, seal func(purpose string, plaintext []byte) ([]byte, error)) error {
	ctx, cancel := s.operatorContext(ctx)
	defer cancel()
	secrets, err := s.state.ClusterSecrets()
	if err != nil {
		return err
	}
	if secrets == nil {
		return operatorError(ErrUnavailable)
	}
	check, err := seal(checkPurpose, []byte(checkText))
	if err != nil {
		return err
	}
	now := s.clock()
	_, err = s.propose(ctx, state.RotateSecretsKey{
		OldCheck: secrets.SealedCheck, NewCheck: check,
		Audit: []state.AuditEvent{by.event(now, "secrets_key.rotated", "", kindSecretsKey, name)},
	})
	if refusedWith(err, state.CodeConflict) {
		return problem(http.StatusConflict, "conflict", "somebody else changed the key at the same time; look at it again")
	}
	if err != nil {
		return operatorError(err)
	}
	return s.UseSecretsKey()
}

// reseal does a part of the leader's work of sealing everything under the key in use. It goes on where it was, from round to round;
// a new leader begins anew, and finds what is done already.
func (s *Server) reseal(ctx context.Context, now time.Time) error {
	r := &s.accounts.resealing
	secrets, err := s.state.ClusterSecrets()
	if err != nil || secrets == nil {
		return err
	}
	if !bytes.Equal(r.check, secrets.SealedCheck) {
		r.check, r.look, r.quiet, r.through, r.next, r.resealed = secrets.SealedCheck, look{}, 0, false, now, 0
		r.last.Store(nil)
	}
	if now.Before(r.next) {
		return nil
	}
	// The sealer seals under another key than the state says where this node has not heard of that yet, or does not hold it.
	if fresh, err := s.sealer.Reseal(checkPurpose, secrets.SealedCheck); err != nil || fresh != nil {
		return s.UseSecretsKey()
	}
	if !r.look.begun {
		r.look = look{begun: true}
		if err := s.resealKeys(ctx, secrets); err != nil {
			r.look = look{}
			return err
		}
	}
	// With one key there is nothing to do about answers, of which there may be many; whether it opens them is looked at once.
	last := r.last.Load()
	more := s.sealer.Keys() > 1 || !r.through || last != nil && last.Unopenable > 0
	for end := time.Now().Add(resealSpan); more && time.Now().Before(end) && ctx.Err() == nil; {
		if more, err = s.resealAnswers(ctx); err != nil {
			return err // the next round goes on here
		}
	}
	if !more {
		if r.look.found > 0 {
			r.quiet = 0
		} else {
			r.quiet++
		}
		r.through = r.quiet >= resealLooks || s.sealer.Keys() == 1
		r.next = now.Add(resealPause)
		if r.through {
			r.next = now.Add(resealAgain)
		}
	}
	r.publish(now, more)
	if !more {
		r.look = look{}
	}
	return nil
}

// publish tells how far the look is.
func (r *resealing) publish(now time.Time, more bool) {
	p := Resealing{Records: r.look.records, Checked: r.look.records, Resealed: r.resealed, Unopenable: r.look.unopenable, CheckedAt: now, check: r.check}
	if last := r.last.Load(); more && last != nil {
		p.Records, p.Unopenable = max(p.Records, last.Records), max(p.Unopenable, last.Unopenable)
	}
	p.Done = r.through && p.Unopenable == 0
	r.last.Store(&p)
}

// resealKeys looks at the refresh key, the signing keys and the keys of gossip, of which there are few.
func (s *Server) resealKeys(ctx context.Context, secrets *state.ClusterSecrets) error {
	keys, err := s.state.SigningKeys()
	if err != nil {
		return fmt.Errorf("read signing keys: %w", err)
	}
	b := resealBatch{s: s}
	b.add(state.SealedRefreshKey, nil, refreshKeyPurpose, secrets.SealedRefreshKey)
	for _, key := range keys {
		b.add(state.SealedSigningKey, []byte(key.ID), signingKeyPurpose(key.ID), key.SealedSecret)
	}
	keyring, err := s.state.GossipKeyring()
	if err != nil {
		return fmt.Errorf("read keyring of gossip: %w", err)
	}
	if keyring != nil {
		for _, key := range keyring.Keys {
			b.add(state.SealedGossipKey, []byte(key.ID), GossipKeyPurpose(key.ID), key.Sealed)
		}
	}
	return b.send(ctx)
}

// resealAnswers looks at one page of answers; more says that there is another one.
func (s *Server) resealAnswers(ctx context.Context) (more bool, err error) {
	l := &s.accounts.resealing.look
	page, err := s.state.Answers(l.after, resealPage)
	if err != nil {
		return false, fmt.Errorf("read answers: %w", err)
	}
	b := resealBatch{s: s}
	for i := range page {
		if err := b.makeRoom(ctx, len(page[i].SealedBody)); err != nil {
			return true, err
		}
		b.add(state.SealedAnswer, page[i].Scope, answerPurpose(page[i].Scope), page[i].SealedBody)
		b.after = page[i].Scope
	}
	return len(page) == resealPage, b.send(ctx)
}

func answerPurpose(scope []byte) string { return "idempotency:" + hex.EncodeToString(scope) }

// GossipKeyPurpose is what a key of gossip is sealed for, by its id.
func GossipKeyPurpose(id string) string { return "gossip-key:" + id }

// resealBatch collects what one command seals anew.
type resealBatch struct {
	s                   *Server
	cmd                 state.Reseal
	size                int
	records, unopenable int
	after               []byte
}

func (b *resealBatch) add(kind uint8, id []byte, purpose string, sealed []byte) {
	b.records++
	fresh, err := b.s.sealer.Reseal(purpose, sealed)
	switch {
	case err != nil:
		b.unopenable++
	case fresh != nil:
		sum := sha256.Sum256(sealed)
		b.cmd.Records = append(b.cmd.Records, state.ResealedRecord{Kind: kind, ID: id, OldHash: sum[:], Sealed: fresh})
		b.size += len(fresh)
	}
}

// makeRoom sends what is there where one more of a size would be too much for a command.
func (b *resealBatch) makeRoom(ctx context.Context, size int) error {
	if b.size+size <= resealBytes {
		return nil
	}
	return b.send(ctx)
}

// send proposes what there is, and counts. On an error nothing of it is counted, and the same records are looked at again.
func (b *resealBatch) send(ctx context.Context) error {
	r := &b.s.accounts.resealing
	if len(b.cmd.Records) > 0 {
		res, err := b.s.propose(ctx, b.cmd)
		if err != nil {
			return fmt.Errorf("seal anew: %w", err)
		}
		r.look.found += len(b.cmd.Records) // what was not replaced has changed or gone meanwhile: the next look will tell
		r.resealed += res.Count
	}
	r.look.records += b.records
	r.look.unopenable += b.unopenable
	if b.after != nil {
		r.look.after = b.after
	}
	*b = resealBatch{s: b.s, after: b.after}
	return nil
}

// opensAllKeys says whether this node's keys open the refresh key and every signing key, without which it can serve nobody, and the keys of
// gossip, without which it cannot start again.
func (s *Server) opensAllKeys(secrets *state.ClusterSecrets) error {
	problems := []error{}
	if _, err := s.sealer.Open(refreshKeyPurpose, secrets.SealedRefreshKey); err != nil {
		problems = append(problems, errors.New("the refresh key is sealed under another one"))
	}
	keys, err := s.state.SigningKeys()
	if err != nil {
		return fmt.Errorf("read signing keys: %w", err)
	}
	for _, key := range keys {
		if _, err := s.sealer.Open(signingKeyPurpose(key.ID), key.SealedSecret); err != nil {
			problems = append(problems, fmt.Errorf("signing key %s is sealed under another one", key.ID))
		}
	}
	keyring, err := s.state.GossipKeyring()
	if err != nil {
		return fmt.Errorf("read keyring of gossip: %w", err)
	}
	if keyring != nil {
		for _, key := range keyring.Keys {
			if _, err := s.sealer.Open(GossipKeyPurpose(key.ID), key.Sealed); err != nil {
				problems = append(problems, fmt.Errorf("the key of gossip %s is sealed under another one", key.ID))
			}
		}
	}
	if len(problems) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrSecretsKey, errors.Join(problems...))
}
