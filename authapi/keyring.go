package authapi

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"sluice/raftfsm/state"
)

// Algorithms of signing keys.
const (
	algHS256 = "HS256"
	algEdDSA = "EdDSA"
	algES256 = "ES256"
)

const (
	// tokenType is the header's typ (RFC 9068).
	tokenType = "at+jwt"
	// keyIDLen is the length of a kid: 8 random bytes in hex.
	keyIDLen = 16
	// hmacSecretLen is the length of an HS256 secret in bytes, as long as the hash (RFC 7518, section 3.2).
	hmacSecretLen = 32
)

// signingKey is a state.SigningKey ready for use. It is immutable.
type signingKey struct {
	record state.SigningKey
	method jwt.SigningMethod
	sign   any // what method.Sign takes
	verify any // what method.Verify takes; of the type that belongs to the algorithm, never bytes for an asymmetric one
	// header is the first part of every token of this key. A token is of this key exactly where its first part is this
	// text: so no token can name an algorithm, a type or a parameter (jku, jwk, x5u, crit) of its own.
	header string
}

// keyring is every signing key of one epoch. It is immutable.
type keyring struct {
	epoch    uint64
	keys     []*signingKey // oldest first
	byHeader map[string]*signingKey
}

// ringHolder keeps the newest keyring. Readers take no lock while the epoch stands still.
type ringHolder struct {
	srv  *Server
	ring atomic.Pointer[keyring]
	mu   sync.Mutex // one load at a time
}

// current is the keyring of the present epoch.
func (h *ringHolder) current() (*keyring, error) {
	if r := h.ring.Load(); r != nil && r.epoch == h.srv.state.Epoch() {
		return r, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	epoch := h.srv.state.Epoch() // before the read: what is read is at least this new
	old := h.ring.Load()
	if old != nil && old.epoch == epoch {
		return old, nil
	}
	records, err := h.srv.state.SigningKeys()
	if err != nil {
		return nil, fmt.Errorf("read signing keys: %w", err)
	}
	r := &keyring{epoch: epoch, byHeader: make(map[string]*signingKey, len(records))}
	for _, rec := range records {
		k, err := h.load(old, rec)
		if err != nil {
			return nil, err
		}
		r.keys = append(r.keys, k)
		r.byHeader[k.header] = k
	}
	h.ring.Store(r)
	return r, nil
}

// load opens a key, or takes it from the ring before: a key's secret never changes, the end of its life does.
func (h *ringHolder) load(old *keyring, rec state.SigningKey) (*signingKey, error) {
	if old != nil {
		for _, k := range old.keys {
			if k.record.ID == rec.ID {
				known := *k
				known.record.VerifiesTo, known.record.SignsFrom = rec.VerifiesTo, rec.SignsFrom
				return &known, nil
			}
		}
	}
	secret, err := h.srv.sealer.Open(signingKeyPurpose(rec.ID), rec.SealedSecret)
	if err != nil {
		return nil, fmt.Errorf("open signing key %s: %w", rec.ID, err)
	}
	k, err := newSigningKey(rec, secret)
	if err != nil {
		return nil, fmt.Errorf("load signing key %s: %w", rec.ID, err)
	}
	return k, nil
}

// signer is the key that signs at nowMillis: the newest whose time has come. The first key of a cluster signs at once,
// even where the clock of the node that made it is ahead of this one's.
func (r *keyring) signer(nowMillis int64) *signingKey {
	for i := len(r.keys) - 1; i >= 0; i-- {
		if k := r.keys[i]; k.record.SignsFrom <= nowMillis && k.verifiesAt(nowMillis) {
			return k
		}
	}
	if len(r.keys) > 0 && r.keys[0].record.VerifiesTo == 0 {
		return r.keys[0]
	}
	return nil
}

func (k *signingKey) verifiesAt(nowMillis int64) bool {
	return k.record.VerifiesTo == 0 || nowMillis < k.record.VerifiesTo
}

func signingKeyPurpose(kid string) string { return "signing-key:" + kid }

// newSigningKey makes a record usable. secret is the raw key of HS256, PKCS #8 in DER of the others.
func newSigningKey(rec state.SigningKey, secret []byte) (*signingKey, error) {
	k := &signingKey{record: rec}
	switch rec.Algorithm {
	case algHS256:
		if len(secret) < hmacSecretLen {
			return nil, fmt.Errorf("secret of %d bytes is too short", len(secret))
		}
		k.method, k.sign, k.verify = jwt.SigningMethodHS256, secret, secret
	case algEdDSA, algES256:
		private, err := x509.ParsePKCS8PrivateKey(secret)
		if err != nil {
			return nil, fmt.Errorf("parse private key: %w", err)
		}
		switch private := private.(type) {
		case ed25519.PrivateKey:
			k.method, k.sign, k.verify = jwt.SigningMethodEdDSA, private, private.Public().(ed25519.PublicKey)
		case *ecdsa.PrivateKey:
			if private.Curve != elliptic.P256() {
				return nil, fmt.Errorf("curve %s is not P-256", private.Curve.Params().Name)
			}
			k.method, k.sign, k.verify = jwt.SigningMethodES256, private, &private.PublicKey
		default:
			return nil, fmt.Errorf("private key is a %T", private)
		}
	default:
		return nil, fmt.Errorf("unknown algorithm %q", rec.Algorithm)
	}
	if k.method.Alg() != rec.Algorithm {
		return nil, fmt.Errorf("key of %s in a record of %s", k.method.Alg(), rec.Algorithm)
	}
	k.header = tokenHeader(rec.Algorithm, rec.ID)
	return k, nil
}

// tokenHeader is the first part of a key's tokens: its members in the order of the alphabet, as the JWT library writes
// them too.
func tokenHeader(alg, kid string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"` + alg + `","kid":"` + kid + `","typ":"` + tokenType + `"}`))
}

// generateSigningKey makes a new key of an algorithm that signs from a time on.
func generateSigningKey(sealer Sealer, algorithm string, now, signsFrom time.Time) (state.SigningKey, error) {
	var id [keyIDLen / 2]byte
	rand.Read(id[:])
	rec := state.SigningKey{
		ID: hex.EncodeToString(id[:]), Algorithm: algorithm, CreatedAt: now.UnixMilli(), SignsFrom: signsFrom.UnixMilli(),
	}
	var secret []byte
	var private, public any
	switch algorithm {
	case algHS256:
		secret = make([]byte, hmacSecretLen)
		rand.Read(secret)
	case algEdDSA:
		pub, priv, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return rec, fmt.Errorf("generate signing key: %w", err)
		}
		private, public = priv, pub
	case algES256:
		priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return rec, fmt.Errorf("generate signing key: %w", err)
		}
		private, public = priv, priv.Public()
	default:
		return rec, fmt.Errorf("generate signing key: unknown algorithm %q", algorithm)
	}
	var err error
	if private != nil {
		if secret, err = x509.MarshalPKCS8PrivateKey(private); err != nil {
			return rec, fmt.Errorf("encode signing key: %w", err)
		}
		if rec.Public, err = x509.MarshalPKIXPublicKey(public); err != nil {
			return rec, fmt.Errorf("encode public key: %w", err)
		}
	}
	if rec.SealedSecret, err = sealer.Seal(signingKeyPurpose(rec.ID), secret); err != nil {
		return rec, fmt.Errorf("seal signing key: %w", err)
	}
	return rec, nil
}

// public is the key's public half, nil for HS256.
func (k *signingKey) public() crypto.PublicKey {
	if k.record.Algorithm == algHS256 {
		return nil
	}
	return k.verify
}
