package node

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"os"
	"strings"
)

// secretPrefix makes a Sluice secret recognisable to people and to scanners for leaked secrets.
const secretPrefix = "slsec_"

// minSecretLength is the least length of a secret of the operator's own making, in bytes. A passphrase of that length
// is no match for 32 random bytes, but it is out of reach of an offline search.
const minSecretLength = 32

// NewSecret returns a fresh secret for secrets.cluster or secrets.key: 32 random bytes in unpadded base64url behind a
// recognisable prefix.
func NewSecret() string {
	var b [32]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return secretPrefix + base64.RawURLEncoding.EncodeToString(b[:])
}

// secretMaterial checks a secret's text and returns the bytes that keys are derived from. A text with the prefix must be
// whole; any other must be long and not plainly repetitive. The error never quotes the secret.
func secretMaterial(name, text string) ([]byte, error) {
	text = strings.TrimSpace(text)
	if encoded, ok := strings.CutPrefix(text, secretPrefix); ok {
		raw, err := base64.RawURLEncoding.DecodeString(encoded)
		if err != nil || len(raw) != 32 {
			return nil, fmt.Errorf("%s: %w: it begins like a generated secret but is cut or mistyped", name, ErrWeakSecret)
		}
		return raw, nil
	}
	if len(text) < minSecretLength {
		return nil, fmt.Errorf("%s: %w: it has %d bytes and needs at least %d (`sluice secret new` makes one)", name, ErrWeakSecret, len(text), minSecretLength)
	}
	var seen [256]bool
	distinct := 0
	for i := range len(text) {
		if !seen[text[i]] {
			seen[text[i]] = true
			distinct++
		}
	}
	if distinct < 10 {
		return nil, fmt.Errorf("%s: %w: it repeats only %d different characters (`sluice secret new` makes one)", name, ErrWeakSecret, distinct)
	}
	return []byte(text), nil
}

// readSecret takes a secret from the value itself or from a file, never from both.
func readSecret(name string, value Secret, file string) ([]byte, error) {
	text, err := readSecretText(name, value, file)
	if err != nil {
		return nil, err
	}
	return secretMaterial(name, text)
}

// readSecretText is readSecret without the derivation: the checked text, which a token is presented as.
func readSecretText(name string, value Secret, file string) (string, error) {
	text, name, err := secretSource(name, value, file)
	if err != nil {
		return "", err
	}
	if _, err := secretMaterial(name, text); err != nil {
		return "", err
	}
	return strings.TrimSpace(text), nil
}

// readSecretLines takes up to most secrets, one a line; empty lines do not count.
func readSecretLines(name string, value Secret, file string, most int) ([]string, error) {
	text, name, err := secretSource(name, value, file)
	if err != nil {
		return nil, err
	}
	var list []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if _, err := secretMaterial(name, line); err != nil {
			return nil, err
		}
		list = append(list, line)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s: %w: it is empty", name, ErrWeakSecret)
	}
	if len(list) > most {
		return nil, fmt.Errorf("%s: it has %d lines, and may have %d", name, len(list), most)
	}
	return list, nil
}

// secretSource is the text of a secret as it stands, and what errors about it name.
func secretSource(name string, value Secret, file string) (text, source string, err error) {
	switch {
	case value != "" && file != "":
		return "", "", fmt.Errorf("%s and %s_file are both set", name, name)
	case file != "":
		data, err := os.ReadFile(file)
		if err != nil {
			return "", "", fmt.Errorf("read %s_file: %w", name, err)
		}
		return string(data), name + "_file", nil
	case value == "":
		return "", "", fmt.Errorf("neither %s nor %s_file is set", name, name)
	}
	return string(value), name, nil
}

// clusterKeys are the keys derived from the cluster secret. Who holds the secret is a peer.
type clusterKeys struct {
	caSeed [32]byte // Ed25519 seed of the certificate authority of peers
	gossip [32]byte // AES-256 key of memberlist
	proof  [32]byte // of connections between nodes with certificates of an operator's own
}

// deriveClusterKeys separates the uses of the one secret by HKDF-SHA-256 (RFC 5869) with a label per use.
func deriveClusterKeys(secret []byte) (clusterKeys, error) {
	var keys clusterKeys
	for label, out := range map[string][]byte{
		"sluice/v1 peer certificate authority": keys.caSeed[:],
		"sluice/v1 peer proof":                 keys.proof[:],
		labelGossipKey:                         keys.gossip[:],
	} {
		key, err := hkdf.Key(sha256.New, secret, nil, label, len(out))
		if err != nil {
			return clusterKeys{}, fmt.Errorf("derive key: %w", err)
		}
		copy(out, key)
	}
	return keys, nil
}
