package backup

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"filippo.io/age"
)

// maxKeyFile bounds a key file; a post-quantum key is some 2 KiB.
const maxKeyFile = 1 << 20

// Key is what a key file holds. Public keys are enough to make backups, which then only the holder of the other half reads.
type Key struct {
	Recipients []age.Recipient // for whom to encrypt
	Identities []age.Identity  // to decrypt with; none in a file of public keys
}

// NewKey makes the text of a key file: an age identity, as age-keygen writes one, and its public key.
func NewKey() (text, public string, err error) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return "", "", fmt.Errorf("make backup key: %w", err)
	}
	public = identity.Recipient().String()
	return "# public key: " + public + "\n" + identity.String() + "\n", public, nil
}

// ReadKeyFile reads a file of age keys, secret ones (AGE-SECRET-KEY-…) or public ones (age1…), a line each; lines that begin
// with # are comments. Errors never quote a key.
func ReadKeyFile(path string) (Key, error) {
	file, err := os.Open(path)
	if err != nil {
		return Key{}, fmt.Errorf("read backup key: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxKeyFile+1))
	if err != nil {
		return Key{}, fmt.Errorf("read backup key: %w", err)
	}
	if len(text) > maxKeyFile {
		return Key{}, fmt.Errorf("read backup key %s: too large for a key file", path)
	}
	key, err := parseKey(string(text))
	if err != nil {
		return Key{}, fmt.Errorf("read backup key %s: %w", path, err)
	}
	return key, nil
}

func parseKey(text string) (Key, error) {
	var key Key
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if !strings.HasPrefix(line, "AGE-SECRET-KEY-") {
			recipients, err := ParseRecipients(line)
			if err != nil {
				return Key{}, fmt.Errorf("line %d is no age key (AGE-SECRET-KEY-… or age1…; `sluice backup key` makes one)", number)
			}
			key.Recipients = append(key.Recipients, recipients...)
			continue
		}
		identities, err := age.ParseIdentities(strings.NewReader(line))
		if err != nil {
			return Key{}, fmt.Errorf("line %d is a damaged age key", number)
		}
		for _, identity := range identities {
			switch identity := identity.(type) {
			case *age.X25519Identity:
				key.Recipients = append(key.Recipients, identity.Recipient())
			case *age.HybridIdentity:
				key.Recipients = append(key.Recipients, identity.Recipient())
			default:
				return Key{}, fmt.Errorf("line %d is an age key of an unknown kind", number)
			}
			key.Identities = append(key.Identities, identity)
		}
	}
	if len(key.Recipients) == 0 {
		return Key{}, errors.New("it holds no key")
	}
	return key, nil
}

// ParseRecipients reads public keys, a line each.
func ParseRecipients(text string) ([]age.Recipient, error) {
	recipients, err := age.ParseRecipients(strings.NewReader(text))
	if err != nil {
		return nil, errors.New("no public key of age (age1…)")
	}
	return recipients, nil
}
