package raftfsm

import (
	"bytes"
	"crypto/sha256"

	"github.com/dgraph-io/badger/v4"

	"sluice/raftfsm/state"
)

// Bounds on sealed values, part of the rules as those in rules.go are.
const (
	maxCheck = 256 // bytes of ClusterSecrets.SealedCheck
	// sealSlack is how much longer a value may become when it is sealed anew: another way of sealing may need more room.
	sealSlack = 256
)

func rotateSecretsKey(b *batch, c state.RotateSecretsKey) state.Result {
	if len(c.NewCheck) == 0 || len(c.NewCheck) > maxCheck {
		return refuse(state.CodeInvalid)
	}
	secrets := load[state.ClusterSecrets](b, keySecrets)
	if secrets == nil {
		return refuse(state.CodeNotFound)
	}
	if !bytes.Equal(secrets.SealedCheck, c.OldCheck) {
		return refuse(state.CodeConflict)
	}
	secrets.SealedCheck = c.NewCheck
	b.store(keySecrets, secrets)
	b.announce = true
	audit(b, c.Audit)
	return state.Result{}
}

// reseal looks at each record by itself. What a record says does not change, so the epoch does not either.
func reseal(b *batch, c state.Reseal) state.Result {
	if len(c.Records) == 0 || len(c.Records) > state.MaxResealed {
		return refuse(state.CodeInvalid)
	}
	signing := false
	for i := range c.Records {
		r := &c.Records[i]
		if len(r.Sealed) == 0 || len(r.OldHash) != sha256.Size || (r.Kind == state.SealedRefreshKey) != (len(r.ID) == 0) ||
			r.Kind == state.SealedAnswer && len(r.ID) != hashSize || r.Kind < state.SealedRefreshKey || r.Kind > state.SealedGossipKey ||
			r.Kind == state.SealedGossipKey && len(r.Sealed) > maxSealedKey {
			return refuse(state.CodeInvalid)
		}
		signing = signing || r.Kind == state.SealedSigningKey
	}
	signingKeys := map[string][]byte{} // looked up by id only
	if signing {
		for _, r := range b.scan([]byte{prefixSigningKey}, nil, maxSigningKeys) {
			if key := load[state.SigningKey](b, r.key); key != nil {
				signingKeys[key.ID] = r.key
			}
		}
	}
	count := 0
	for i := range c.Records {
		r := &c.Records[i]
		done := false
		switch r.Kind {
		case state.SealedRefreshKey:
			if secrets := load[state.ClusterSecrets](b, keySecrets); secrets != nil && replaceSealed(&secrets.SealedRefreshKey, r) {
				b.store(keySecrets, secrets)
				done = true
			}
		case state.SealedSigningKey:
			at := signingKeys[string(r.ID)]
			if at == nil {
				continue
			}
			if key := load[state.SigningKey](b, at); key != nil && replaceSealed(&key.SealedSecret, r) {
				b.store(at, key)
				done = true
			}
		case state.SealedAnswer:
			at := key1(prefixIdempotency, string(r.ID))
			if answer := load[state.Idempotency](b, at); answer != nil && replaceSealed(&answer.SealedBody, r) {
				b.store(at, answer)
				done = true
			}
		case state.SealedGossipKey:
			done = resealGossipKey(b, r)
		}
		if done {
			count++
		}
	}
	return state.Result{Count: count}
}

func replaceSealed(sealed *[]byte, r *state.ResealedRecord) bool {
	if sum := sha256.Sum256(*sealed); !bytes.Equal(sum[:], r.OldHash) || len(r.Sealed) > len(*sealed)+sealSlack {
		return false
	}
	*sealed = r.Sealed
	return true
}

// Answers lists the records of requests with an Idempotency-Key, by scope, after a scope (nil for the first), at most limit.
func (v *View) Answers(after []byte, limit int) (answers []state.Idempotency, err error) {
	prefix := []byte{prefixIdempotency}
	err = v.read(func(txn *badger.Txn) error {
		return each(txn, prefix, key1(prefixIdempotency, string(after)), func(scope string) (bool, error) {
			if len(answers) >= limit {
				return false, nil
			}
			answer, err := find[state.Idempotency](txn, key1(prefixIdempotency, scope))
			if err == nil && answer != nil {
				answers = append(answers, *answer)
			}
			return true, err
		})
	})
	return answers, err
}
