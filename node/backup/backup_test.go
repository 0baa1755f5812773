package backup_test

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"sluice/node/backup"
	"sluice/raftfsm"
)

// snapshot is that of a state with one of everything.
func snapshot(t testing.TB) []byte {
	t.Helper()
	data, err := os.ReadFile("../../raftfsm/testdata/snapshots/v1.snap")
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func header(t testing.TB) backup.Header {
	t.Helper()
	h, err := raftfsm.ReadSnapshotHeader(bytes.NewReader(snapshot(t)))
	if err != nil {
		t.Fatal(err)
	}
	return backup.Header{
		Cluster: "test", ClusterID: h.ClusterID, NodeID: "nod_1", Index: h.Index, Term: h.Term,
		CreatedAt: time.Unix(1_700_000_000, 0).UTC(), Version: "1.2.3",
	}
}

func write(t testing.TB, recipients []age.Recipient) []byte {
	t.Helper()
	var out bytes.Buffer
	err := backup.Write(&out, header(t), recipients, func(w io.Writer) error {
		_, err := w.Write(snapshot(t))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func newKey(t testing.TB) (secret, public backup.Key) {
	t.Helper()
	text, line, err := backup.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, content := range map[string]string{"secret": text, "public": "# of somebody\n\n" + line + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if secret, err = backup.ReadKeyFile(filepath.Join(dir, "secret")); err != nil {
		t.Fatal(err)
	}
	if public, err = backup.ReadKeyFile(filepath.Join(dir, "public")); err != nil {
		t.Fatal(err)
	}
	if len(secret.Identities) != 1 || len(secret.Recipients) != 1 || len(public.Identities) != 0 || len(public.Recipients) != 1 {
		t.Fatalf("keys: %d %d %d %d", len(secret.Identities), len(secret.Recipients), len(public.Identities), len(public.Recipients))
	}
	return secret, public
}

func TestBackup_ReadsWhatWasWritten(t *testing.T) {
	t.Parallel()
	secret, public := newKey(t)
	for _, test := range []struct {
		name       string
		recipients []age.Recipient
		identities []age.Identity
	}{{"plain", nil, nil}, {"encrypted", public.Recipients, secret.Identities}, {"plain, with a key", nil, secret.Identities}} {
		data := write(t, test.recipients)
		if leaks := bytes.Contains(data, []byte("ada@example.org")); leaks != (test.recipients == nil) {
			t.Errorf("%s: readable without the key: %v", test.name, leaks)
		}
		b, err := backup.Open(bytes.NewReader(data), test.identities)
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		got, err := io.ReadAll(b)
		if err != nil || b.Finish() != nil || !bytes.Equal(got, snapshot(t)) {
			t.Errorf("%s: %v, %v", test.name, err, b.Finish())
		}
		want := header(t)
		want.Encryption = b.Header.Encryption
		if b.Header != want || b.Header.Encrypted() != (test.recipients != nil) {
			t.Errorf("%s: header %+v", test.name, b.Header)
		}
		_, contents, err := backup.Inspect(bytes.NewReader(data), test.identities)
		if err != nil || contents.Secrets == nil || contents.Sections[0].Records != 1 {
			t.Errorf("%s: %+v, %v", test.name, contents, err)
		}
	}
}

// Every byte of a backup counts, and so does its end.
func TestBackup_RefusesDamage(t *testing.T) {
	t.Parallel()
	secret, _ := newKey(t)
	for name, recipients := range map[string][]age.Recipient{"plain": nil, "encrypted": secret.Recipients} {
		data := write(t, recipients)
		for i := range data {
			damaged := bytes.Clone(data)
			damaged[i] ^= 1
			_, _, err := backup.Inspect(bytes.NewReader(damaged), secret.Identities)
			if !errors.Is(err, backup.ErrDamaged) && !errors.Is(err, backup.ErrVersion) && !errors.Is(err, backup.ErrKey) {
				t.Fatalf("%s, byte %d of %d flipped: %v", name, i, len(data), err)
			}
			if recipients == nil {
				continue
			}
			// Without the key as well.
			if _, _, err := backup.Inspect(bytes.NewReader(damaged), nil); err == nil {
				t.Fatalf("%s, byte %d of %d flipped: taken without the key", name, i, len(data))
			}
		}
		for length := range data {
			if _, _, err := backup.Inspect(bytes.NewReader(data[:length]), secret.Identities); !errors.Is(err, backup.ErrDamaged) {
				t.Fatalf("%s, %d of %d bytes: %v", name, length, len(data), err)
			}
		}
		if _, _, err := backup.Inspect(bytes.NewReader(append(bytes.Clone(data), 0)), secret.Identities); !errors.Is(err, backup.ErrDamaged) {
			t.Errorf("%s, a byte more: %v", name, err)
		}
	}
}

func TestBackup_Keys(t *testing.T) {
	t.Parallel()
	secret, _ := newKey(t)
	other, _ := newKey(t)
	data := write(t, secret.Recipients)
	if _, err := backup.Open(bytes.NewReader(data), nil); !errors.Is(err, backup.ErrKeyNeeded) {
		t.Errorf("without a key: %v", err)
	}
	if _, err := backup.Open(bytes.NewReader(data), other.Identities); !errors.Is(err, backup.ErrKey) {
		t.Errorf("another key: %v", err)
	}
	h, contents, err := backup.Inspect(bytes.NewReader(data), nil)
	if err != nil || h.ClusterID != "cluster_golden" || contents.Sections != nil {
		t.Errorf("without a key: %+v, %+v, %v", h, contents, err)
	}
	// Another format version, however the rest looks.
	foreign := bytes.Clone(data)
	foreign[9]++
	if _, _, err := backup.Inspect(bytes.NewReader(foreign), secret.Identities); !errors.Is(err, backup.ErrVersion) {
		t.Errorf("another version: %v", err)
	}
}

func TestReadKeyFile_Mistakes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, test := range map[string]struct{ text, want string }{
		"empty":     {"# nothing\n", "holds no key"},
		"other":     {"# c\nslsec_abcdef\n", "line 2 is no age key"},
		"cut":       {"AGE-SECRET-KEY-1QQQQQQ\n", "line 1 is a damaged age key"},
		"malformed": {"age1qqqqqqqqqq\n", "line 1 is no age key"},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := backup.ReadKeyFile(path)
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "QQQQQQ") || strings.Contains(err.Error(), "abcdef") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := backup.ReadKeyFile(filepath.Join(dir, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func FuzzInspect(f *testing.F) {
	f.Add(write(f, nil))
	text, _, err := backup.NewKey()
	if err != nil {
		f.Fatal(err)
	}
	path := filepath.Join(f.TempDir(), "key")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		f.Fatal(err)
	}
	key, err := backup.ReadKeyFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(write(f, key.Recipients))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, _, err := backup.Inspect(bytes.NewReader(data), key.Identities)
		if err != nil {
			return
		}
		// What is taken must restore.
		b, err := backup.Open(bytes.NewReader(data), key.Identities)
		if err != nil {
			t.Fatal(err)
		}
		fsm, err := raftfsm.Open(raftfsm.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler), Fatal: func(err error) { t.Fatalf("%+v: %v", h, err) }})
		if err != nil {
			t.Fatal(err)
		}
		defer fsm.Close()
		if err := fsm.Restore(io.NopCloser(b)); err != nil {
			t.Fatal(err)
		}
	})
}
