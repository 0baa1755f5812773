package authapi

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/oklog/ulid/v2"
)

// A refresh token is "rt_" and, in base64url, session (16 bytes: the ULID of its id), generation (4, big-endian),
// secret (32) and tag (16). Only its SHA-256 is stored.
//
// The tag is an HMAC over the rest under a replicated key: so every node can tell a token that the cluster once made
// from one that was made up, long after its hash is gone. Only the former may end a session.
//
// The secret of generation n+1 is an HMAC over session, n and the secret of n under another key: so the successor is a
// function of the token presented, and an honest replay gets the same one from any node though nothing keeps it.
const (
	refreshPrefix     = "rt_"
	refreshSecretLen  = 32
	refreshTagLen     = 16
	refreshSecretAt   = 16 + 4
	refreshTagAt      = refreshSecretAt + refreshSecretLen
	refreshLen        = refreshTagAt + refreshTagLen
	refreshTextLen    = len(refreshPrefix) + (refreshLen*8+5)/6
	refreshKeyPurpose = "refresh-key"
	refreshKeyLen     = 32
)

// refreshKeys are what refresh tokens and fingerprints of requests are derived with, and sign-ins with a provider sealed. They never change.
type refreshKeys struct {
	tag, next, fingerprint, csrf, oauth []byte
}

func newRefreshKeys(root []byte) *refreshKeys {
	derive := func(label string) []byte { return hmacSum(root, []byte("sluice "+label+" v1")) }
	return &refreshKeys{
		tag: derive("refresh tag"), next: derive("refresh successor"), fingerprint: derive("request fingerprint"), csrf: derive("csrf token"),
		oauth: derive("sign-in with a provider"),
	}
}

func hmacSum(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// refreshKeyHolder loads the keys, and again where a restored backup brought others.
type refreshKeyHolder struct {
	srv    *Server
	loaded atomic.Pointer[loadedRefreshKeys]
}

type loadedRefreshKeys struct {
	epoch  uint64 // State.Epoch() from before the read
	sealed []byte
	keys   *refreshKeys
}

// get is ErrUnavailable until the first leader has made the cluster's secrets and this node knows them.
func (h *refreshKeyHolder) get() (*refreshKeys, error) {
	epoch, old := h.srv.state.Epoch(), h.loaded.Load()
	if old != nil && old.epoch == epoch {
		return old.keys, nil
	}
	secrets, err := h.srv.state.ClusterSecrets()
	if err != nil {
		return nil, fmt.Errorf("read cluster secrets: %w", err)
	}
	if secrets == nil {
		return nil, ErrUnavailable
	}
	if old != nil && bytes.Equal(old.sealed, secrets.SealedRefreshKey) {
		h.loaded.Store(&loadedRefreshKeys{epoch: epoch, sealed: old.sealed, keys: old.keys})
		return old.keys, nil
	}
	root, err := h.srv.sealer.Open(refreshKeyPurpose, secrets.SealedRefreshKey)
	if err != nil {
		return nil, fmt.Errorf("open refresh key: %w", err)
	}
	if len(root) < refreshKeyLen {
		return nil, fmt.Errorf("open refresh key: %d bytes are too few", len(root))
	}
	k := newRefreshKeys(root)
	h.loaded.Store(&loadedRefreshKeys{epoch: epoch, sealed: secrets.SealedRefreshKey, keys: k})
	return k, nil
}

// refreshToken is a token's content, tag included.
type refreshToken [refreshLen]byte

// first makes the token of a new session.
func (k *refreshKeys) first(sessionID string) (refreshToken, error) {
	var t refreshToken
	id, err := sessionULID(sessionID)
	if err != nil {
		return t, err
	}
	copy(t[:], id[:])
	rand.Read(t[refreshSecretAt:refreshTagAt])
	k.seal(&t)
	return t, nil
}

// successor is the token that follows t.
func (k *refreshKeys) successor(t refreshToken) refreshToken {
	next := t
	copy(next[refreshSecretAt:refreshTagAt], hmacSum(k.next, t[:refreshTagAt]))
	binary.BigEndian.PutUint32(next[16:], binary.BigEndian.Uint32(t[16:])+1)
	k.seal(&next)
	return next
}

func (k *refreshKeys) seal(t *refreshToken) {
	copy(t[refreshTagAt:], hmacSum(k.tag, t[:refreshTagAt])[:refreshTagLen])
}

// parse reads a token. ok is false for everything that this cluster did not make.
func (k *refreshKeys) parse(text string) (t refreshToken, ok bool) {
	if len(text) != refreshTextLen || !strings.HasPrefix(text, refreshPrefix) {
		return t, false
	}
	// The decoder skips line breaks; a token has none, and then fewer bytes come out than refreshLen.
	n, err := base64.RawURLEncoding.Strict().Decode(t[:], []byte(text[len(refreshPrefix):]))
	if err != nil || n != refreshLen {
		return t, false
	}
	tag := hmacSum(k.tag, t[:refreshTagAt])[:refreshTagLen]
	return t, hmac.Equal(tag, t[refreshTagAt:])
}

// text is what the client holds.
func (t refreshToken) text() string {
	return refreshPrefix + base64.RawURLEncoding.EncodeToString(t[:])
}

// hash is what the state holds.
func (t refreshToken) hash() []byte {
	sum := sha256.Sum256([]byte(t.text()))
	return sum[:]
}

func (t refreshToken) sessionID() string {
	return idSession + "_" + strings.ToLower(ulid.ULID(t[:16]).String())
}

func sessionULID(id string) (ulid.ULID, error) {
	text, ok := strings.CutPrefix(id, idSession+"_")
	if !ok {
		return ulid.ULID{}, fmt.Errorf("session id %q has another form", id)
	}
	u, err := ulid.ParseStrict(strings.ToUpper(text))
	if err != nil {
		return u, fmt.Errorf("parse session id: %w", err)
	}
	return u, nil
}
