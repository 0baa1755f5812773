package node

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSecretMaterial(t *testing.T) {
	t.Parallel()
	good := NewSecret()
	for _, tt := range []struct {
		name, text string
		ok         bool
	}{
		{"generated", good, true},
		{"generated, with a newline", good + "\n", true},
		{"generated, cut", good[:len(good)-4], false},
		{"generated, mistyped", good[:len(good)-1] + "!", false},
		{"empty", "", false},
		{"short", "correct horse battery staple", false},
		{"long", "correct horse battery staple and some more of it", true},
		{"repetitive", strings.Repeat("abc", 20), false},
	} {
		got, err := secretMaterial("secrets.cluster", tt.text)
		if (err == nil) != tt.ok || (err != nil && !errors.Is(err, ErrWeakSecret)) {
			t.Errorf("%s: %v, want ok=%t", tt.name, err, tt.ok)
		}
		if err == nil && len(got) < 32 {
			t.Errorf("%s: %d bytes of material", tt.name, len(got))
		}
		if err != nil && len(tt.text) > 5 && strings.Contains(err.Error(), tt.text[:6]) && !strings.HasPrefix(tt.text, secretPrefix) {
			t.Errorf("%s: the error quotes the secret: %v", tt.name, err)
		}
	}
	if NewSecret() == good {
		t.Error("two secrets are the same")
	}
}

func TestReadSecret(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(NewSecret()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		value Secret
		file  string
		ok    bool
	}{
		{"value", Secret(NewSecret()), "", true},
		{"file", "", file, true},
		{"both", Secret(NewSecret()), file, false},
		{"neither", "", "", false},
		{"no such file", "", file + ".none", false},
	} {
		if _, err := readSecret("secrets.key", tt.value, tt.file); (err == nil) != tt.ok {
			t.Errorf("%s: %v, want ok=%t", tt.name, err, tt.ok)
		}
	}
}

func TestDeriveClusterKeys_SameSecretSameKeys(t *testing.T) {
	t.Parallel()
	one, err1 := deriveClusterKeys([]byte("one"))
	again, err2 := deriveClusterKeys([]byte("one"))
	two, err3 := deriveClusterKeys([]byte("two"))
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	if one != again {
		t.Error("the same secret gives different keys")
	}
	if one.caSeed == two.caSeed || one.gossip == two.gossip || one.caSeed == one.gossip {
		t.Error("different uses or secrets share a key")
	}
}

func TestSealer(t *testing.T) {
	t.Parallel()
	one, err := newSealer([]byte("one"))
	if err != nil {
		t.Fatal(err)
	}
	two, err := newSealer([]byte("two"))
	if err != nil {
		t.Fatal(err)
	}
	plain := []byte("a signing key")
	sealed, err := one.Seal("signing-key:1", plain)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, plain) {
		t.Error("sealed value shows the plaintext")
	}
	if got, err := one.Open("signing-key:1", sealed); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("open: %q, %v", got, err)
	}
	if again, _ := one.Seal("signing-key:1", plain); bytes.Equal(again, sealed) {
		t.Error("two seals of one value are the same")
	}
	for name, open := range map[string]func() ([]byte, error){
		"other purpose": func() ([]byte, error) { return one.Open("signing-key:2", sealed) },
		"other key":     func() ([]byte, error) { return two.Open("signing-key:1", sealed) },
		"cut":           func() ([]byte, error) { return one.Open("signing-key:1", sealed[:len(sealed)-1]) },
		"empty":         func() ([]byte, error) { return one.Open("signing-key:1", nil) },
		"other version": func() ([]byte, error) { return one.Open("signing-key:1", append([]byte{2}, sealed[1:]...)) },
	} {
		if got, err := open(); !errors.Is(err, errSealed) {
			t.Errorf("%s: %q, %v, want the one error of opening", name, got, err)
		}
	}
}
