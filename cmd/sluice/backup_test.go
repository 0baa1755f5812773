package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sluice/node/backup"
)

// goldenBackup is a backup of a state with one user.
func goldenBackup(t *testing.T, change func(*backup.Header), keyFiles ...string) []byte {
	t.Helper()
	snapshot, err := os.ReadFile("../../raftfsm/testdata/snapshots/v1.snap")
	if err != nil {
		t.Fatal(err)
	}
	index, term := binary.BigEndian.Uint64(snapshot[10:]), binary.BigEndian.Uint64(snapshot[18:])
	h := backup.Header{Cluster: "c", ClusterID: "cluster_golden", NodeID: "nod_a", Index: index, Term: term, CreatedAt: time.Unix(1_700_000_000, 0).UTC(), Version: "1"}
	if change != nil {
		change(&h)
	}
	var key backup.Key
	for _, file := range keyFiles {
		if key, err = backup.ReadKeyFile(file); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if err := backup.Write(&out, h, key.Recipients, func(w io.Writer) error { _, err := w.Write(snapshot); return err }); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func keyFile(t *testing.T) string {
	t.Helper()
	stdout, stderr, code := program(t, nil, "backup", "key")
	if code != exitDone || !strings.HasPrefix(stdout, "# public key: age1") {
		t.Fatalf("code %d, %s%s", code, stdout, stderr)
	}
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(stdout), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBackup_WritesAndVerifies(t *testing.T) {
	t.Parallel()
	key, other := keyFile(t), keyFile(t)
	data := goldenBackup(t, nil, key)
	queries := make(chan string, 1)
	address := adminOf(t, func(w http.ResponseWriter, r *http.Request) {
		queries <- r.URL.RawQuery
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Write(data)
	})
	path := filepath.Join(t.TempDir(), "b")
	stdout, stderr, code := program(t, nil, "backup", path, "--admin", address, "--key-file", key)
	if code != exitDone || !strings.Contains(stdout, "cluster c (cluster_golden) at index") || strings.Contains(stderr, "\r") {
		t.Fatalf("code %d, %q%q", code, stdout, stderr)
	}
	if q := <-queries; !strings.HasPrefix(q, "recipient=age1") {
		t.Errorf("asked %s", q)
	}
	if written, err := os.ReadFile(path); err != nil || !bytes.Equal(written, data) {
		t.Errorf("written: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if _, stderr, code := program(t, nil, "backup", path, "--admin", address); code != exitUsage || !strings.Contains(stderr, "exists") {
		t.Errorf("a file that exists: code %d, %s", code, stderr)
	}
	if stdout, stderr, code := program(t, nil, "backup", "-", "--admin", address); code != exitDone || stdout != string(data) {
		t.Errorf("to standard output: code %d, %s", code, stderr)
	} else if q := <-queries; q != "" {
		t.Errorf("asked %s", q)
	}

	stdout, stderr, code = program(t, nil, "backup", "verify", path, "--key-file", key, "--output", "json")
	var got verified
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != exitDone || got.Contents == nil || got.Contents.Sections[0].Records != 1 || len(got.Contents.ContentHash) != 64 {
		t.Errorf("verify: code %d, %v, %s%s", code, err, stdout, stderr)
	}
	if stdout, _, code := program(t, nil, "backup", "verify", path); code != exitDone || !strings.Contains(stdout, "without --key-file") {
		t.Errorf("verify without the key: code %d, %s", code, stdout)
	}
	if _, stderr, code := program(t, nil, "backup", "verify", path, "--key-file", other); code != exitFailed || !strings.Contains(stderr, "another key") {
		t.Errorf("verify with another key: code %d, %s", code, stderr)
	}
	data[len(data)/2] ^= 1
	broken := filepath.Join(t.TempDir(), "broken")
	if _, stderr, code := program(t, nil, "backup", broken, "--admin", address); code != exitFailed || !strings.Contains(stderr, "damaged backup") {
		t.Errorf("a damaged answer: code %d, %s", code, stderr)
	}
	if list, err := os.ReadDir(filepath.Dir(broken)); err != nil || len(list) != 0 {
		t.Errorf("left behind: %v, %v", list, err)
	}
}

func TestBackup_Usage(t *testing.T) {
	t.Parallel()
	key := keyFile(t)
	public := filepath.Join(t.TempDir(), "public")
	text, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(strings.TrimPrefix(string(text), "# public key: "), "\n")
	if err := os.WriteFile(public, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"backup"}, "name a file"},
		{[]string{"backup", "a", "--out", "b"}, "both name one"},
		{[]string{"backup", "a", "--key-file", public + "x"}, "--key-file"},
		{[]string{"backup", "verify", "a", "--key-file", public}, "public keys alone"},
	} {
		if stdout, stderr, code := program(t, nil, test.args...); code != exitUsage || !strings.Contains(stderr, test.want) {
			t.Errorf("%v: code %d, %s%s", test.args, code, stdout, stderr)
		}
	}
}

func TestProgress_Line(t *testing.T) {
	t.Parallel()
	p := &progress{what: "verify", unit: byteCount, total: 4 << 20, done: 1 << 20, began: time.Unix(0, 0)}
	if got, want := p.line(time.Unix(2, 0)), "verify [=======                       ]  25% 1.0 MiB of 4.0 MiB, 512.0 KiB/s"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	p.total = 0
	if got, want := p.line(time.Unix(1, 0)), "verify 1.0 MiB, 1.0 MiB/s"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRestore_ChecksThenSends(t *testing.T) {
	t.Parallel()
	key, other := keyFile(t), keyFile(t)
	sealed := filepath.Join(t.TempDir(), "sealed")
	if err := os.WriteFile(sealed, goldenBackup(t, nil, key), 0o600); err != nil {
		t.Fatal(err)
	}
	type call struct {
		query string
		body  []byte
	}
	calls := make(chan call, 1)
	address := adminOf(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost || r.URL.Path != "/v1/restore" || r.Header.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("called %s %s: %v", r.Method, r.URL, err)
		}
		calls <- call{r.URL.RawQuery, body}
		io.WriteString(w, `{"cluster_id":"clu_new","contents":{"content_hash":"abc"}}`)
	})
	stdout, stderr, code := program(t, nil, "restore", sealed, "--admin", address, "--key-file", key, "--force", "--yes-replace", "clu_new", "--revoke-sessions")
	if code != exitDone || !strings.Contains(stdout, "clu_new now has") || !strings.Contains(stdout, "content hash abc") {
		t.Fatalf("code %d, %s%s", code, stdout, stderr)
	}
	got := <-calls
	if got.query != "replace=clu_new&revoke_sessions=true" {
		t.Errorf("asked %s", got.query)
	}
	// What went out is the same backup, for anybody to read.
	h, contents, err := backup.Inspect(bytes.NewReader(got.body), nil)
	if err != nil || h.Encrypted() || h.NodeID != "nod_a" || contents.Secrets == nil {
		t.Errorf("sent %+v, %v", h, err)
	}

	broken := filepath.Join(t.TempDir(), "broken")
	data := goldenBackup(t, nil)
	data[len(data)-40] ^= 1
	if err := os.WriteFile(broken, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{broken}, exitFailed, "damaged backup"},
		{[]string{sealed}, exitFailed, "its key is needed"},
		{[]string{sealed, "--key-file", other}, exitFailed, "another key"},
		{[]string{sealed, "--key-file", key, "--force"}, exitUsage, "go together"},
		{[]string{sealed, "--key-file", key, "--yes-replace", "x"}, exitUsage, "go together"},
		{[]string{"-"}, exitUsage, "read twice"},
		{[]string{}, exitUsage, "name a file"},
	} {
		_, stderr, code := program(t, nil, append([]string{"restore", "--admin", address}, test.args...)...)
		if code != test.code || !strings.Contains(stderr, test.want) {
			t.Errorf("%v: code %d, %s", test.args, code, stderr)
		}
		select {
		case <-calls:
			t.Errorf("%v: something was sent", test.args)
		default:
		}
	}
}
