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

// A sealer with several keys opens what any of them sealed, and seals under the one that it is told to.
func TestSealer_SeveralKeys(t *testing.T) {
	t.Parallel()
	sealer := func(secrets ...string) *Sealer {
		t.Helper()
		var keys [][]byte
		for _, secret := range secrets {
			keys = append(keys, []byte(secret))
		}
		s, err := newSealer(keys...)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	seal := func(s *Sealer, text string) []byte {
		t.Helper()
		sealed, err := s.Seal("p", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return sealed
	}
	opens := func(s *Sealer, sealed []byte) bool {
		_, err := s.Open("p", sealed)
		return err == nil
	}
	old, fresh, both := sealer("old"), sealer("new"), sealer("new", "old", "old")
	byOld := seal(old, "text")
	if both.Keys() != 2 || !opens(both, byOld) || opens(fresh, byOld) {
		t.Errorf("%d keys", both.Keys())
	}
	// What is in use is the cluster's to say.
	if err := both.Use("p", byOld); err != nil {
		t.Fatal(err)
	}
	if sealed := seal(both, "x"); !opens(old, sealed) || opens(fresh, sealed) {
		t.Error("it seals under another key than the one in use")
	}
	if again, err := both.Reseal("p", byOld); again != nil || err != nil {
		t.Errorf("what the key in use sealed was sealed anew: %v", err)
	}
	if err := both.Use("p", seal(fresh, "check")); err != nil {
		t.Fatal(err)
	}
	anew, err := both.Reseal("p", byOld)
	if err != nil || !opens(fresh, anew) || opens(old, anew) {
		t.Errorf("sealed anew: %v", err)
	}
	if _, err := both.Reseal("q", byOld); !errors.Is(err, errSealed) {
		t.Errorf("another purpose: %v", err)
	}
	if err := both.Use("p", seal(sealer("third"), "x")); !errors.Is(err, errSealed) {
		t.Errorf("a key that is not held: %v", err)
	}
	if _, err := both.replace([][]byte{[]byte("old"), []byte("third")}); err == nil || both.Keys() != 2 {
		t.Errorf("the key in use was taken away: %v", err)
	}
	if _, err := both.replace([][]byte{[]byte("third"), []byte("new")}); err != nil {
		t.Fatal(err)
	}
	if sealed := seal(both, "x"); !opens(fresh, sealed) || opens(both, byOld) {
		t.Error("after the exchange it seals under another key, or opens what it should not")
	}
}

func TestConfig_PreviousKeys(t *testing.T) {
	t.Parallel()
	one, two := NewSecret(), NewSecret()
	file := filepath.Join(t.TempDir(), "previous")
	if err := os.WriteFile(file, []byte(one+"\n\n"+two+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := LoadConfig(write(t, minimal+"secrets.previous_key_file = \""+file+"\"\n"), secretVariables())
	if err != nil {
		t.Fatal(err)
	}
	if keys, err := cfg.Secrets.keys(); err != nil || len(keys) != 3 || string(keys[1]) == string(keys[2]) {
		t.Errorf("%d keys, %v", len(keys), err)
	}
	var shared string
	variables := secretVariables()
	for _, variable := range variables {
		if value, ok := strings.CutPrefix(variable, "SLUICE_SECRETS__CLUSTER="); ok {
			shared = value
		}
	}
	if shared == "" {
		t.Fatal("no cluster secret")
	}
	for _, test := range []struct{ text, want string }{
		{"secrets.previous_key = \"short\"\n", "secrets.previous_key: secrets.previous_key: weak secret"},
		{"secrets.previous_key = \"" + one + "\"\nsecrets.previous_key_file = \"" + file + "\"\n", "is set together with"},
		{"secrets.previous_key = \"" + shared + "\"\n", "holds the cluster's secret"},
		{"secrets.previous_key_file = \"" + file + ".not\"\n", "read secrets.previous_key_file"},
		{"secrets.previous_key = \"" + strings.Repeat(one+"\\n", 9) + "\"\n", "may have 8"},
	} {
		_, err := LoadConfig(write(t, minimal+test.text), variables)
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), one) {
			t.Errorf("got %v, want %s", err, test.want)
		}
	}
}
