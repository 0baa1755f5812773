package logstore_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"sluice/raftfsm/logstore"
)

// Children of the crash tests: this binary, started again.
func TestMain(m *testing.M) {
	path := os.Getenv("LOGSTORE_TEST_PATH")
	var err error
	switch os.Getenv("LOGSTORE_TEST_CHILD") {
	case "write":
		err = writer(path)
	case "read":
		err = readAll(path)
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
}

// writer appends, drops the beginning, sets the term, and says after each what is on disk, until it is killed.
func writer(path string) error {
	s, err := logstore.Open(logstore.Config{Path: path, Logger: quiet()})
	if err != nil {
		return err
	}
	last, err := s.LastIndex()
	if err != nil {
		return err
	}
	for {
		n := 1 + last*7%13
		if err := s.StoreLogs(entries(last+1, last+n)); err != nil {
			return err
		}
		last += n
		fmt.Println("appended", last)
		if last%5 == 0 {
			if err := s.SetUint64([]byte("term"), last); err != nil {
				return err
			}
			fmt.Println("term", last)
		}
		if first, _ := s.FirstIndex(); last-first > 300 {
			if err := s.DeleteRange(first, last-200); err != nil {
				return err
			}
			fmt.Println("dropped", last-200)
		}
	}
}

// readAll checks every entry and says what is there.
func readAll(path string) error {
	s, err := logstore.Open(logstore.Config{Path: path, Logger: quiet()})
	if err != nil {
		return err
	}
	first, err := s.FirstIndex()
	if err != nil {
		return err
	}
	last, err := s.LastIndex()
	if err != nil {
		return err
	}
	for index := first; index != 0 && index <= last; index++ {
		var log raft.Log
		if err := s.GetLog(index, &log); err != nil {
			return err
		}
		if !same(&log, entry(index)) {
			return fmt.Errorf("WRONG entry %d", index)
		}
	}
	fmt.Println("log", first, last)
	return s.Close()
}

func command(mode, path string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "LOGSTORE_TEST_CHILD="+mode, "LOGSTORE_TEST_PATH="+path)
	return cmd
}

// What was acknowledged is there after a kill at any moment, and what was not is there whole or not at all.
func TestKill_AcknowledgedEntriesSurvive(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts and kills processes")
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	path := filepath.Join(t.TempDir(), "raft.db")
	var appended, term, dropped uint64
	for round := range 12 {
		cmd := command("write", path)
		cmd.Stderr = os.Stderr
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := 1 + random.IntN(150)
		lines := bufio.NewScanner(stdout)
		for n := 0; lines.Scan(); n++ {
			var word string
			var index uint64
			if _, err := fmt.Sscan(lines.Text(), &word, &index); err != nil {
				t.Fatalf("child says %q", lines.Text())
			}
			switch word {
			case "appended":
				appended = index
			case "term":
				term = index
			case "dropped":
				dropped = index
			}
			if n == after {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		// It ends by the kill.
		_ = cmd.Wait()

		s := open(t, path)
		first, err := s.FirstIndex()
		if err != nil {
			t.Fatal(err)
		}
		last, err := s.LastIndex()
		if err != nil {
			t.Fatal(err)
		}
		if last < appended || first < dropped+1 {
			t.Fatalf("round %d: log from %d to %d; acknowledged up to %d, dropped up to %d", round, first, last, appended, dropped)
		}
		check(t, s, first, last)
		if got, err := s.GetUint64([]byte("term")); term != 0 && (err != nil || got < term) {
			t.Fatalf("round %d: term %d, %v; acknowledged %d", round, got, err, term)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A file with a cut or garbled end opens with the right entries or is refused; wrong entries are never read. In a
// process of its own, since a garbled file may make bbolt panic in a goroutine of its own.
func TestDamage_IsFoundOrHarmless(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts processes")
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	path := filepath.Join(dir, "good.db")
	s := open(t, path)
	for from := uint64(1); from <= 400; from += 20 {
		if err := s.StoreLogs(entries(from, from+19)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	opened, refused := 0, 0
	for n := range 60 {
		data := bytes.Clone(good)
		what := ""
		at := random.IntN(len(data))
		if n < 8 {
			at = n * 1024 // the meta pages, on which everything hangs
		}
		switch n % 4 {
		case 0:
			data, what = data[:at], fmt.Sprintf("cut at %d", at)
		case 1:
			data[at] ^= 1 << random.IntN(8)
			what = fmt.Sprintf("bit flipped at %d", at)
		case 2:
			end := min(len(data), at+4096)
			clear(data[at:end])
			what = fmt.Sprintf("zeroes from %d", at)
		case 3:
			// The newest pages are at the end of what is used: a sector that holds something else.
			page := at / 512 * 512
			for i := page; i < min(len(data), page+512); i++ {
				data[i] = byte(random.Uint32())
			}
			what = fmt.Sprintf("garbled sector at %d", page)
		}
		damaged := filepath.Join(dir, fmt.Sprintf("bad%d.db", n))
		if err := os.WriteFile(damaged, data, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := command("read", damaged)
		var output bytes.Buffer
		cmd.Stdout, cmd.Stderr = &output, io.Discard
		err := cmd.Run()
		text := strings.TrimSpace(output.String())
		switch {
		case strings.Contains(text, "WRONG"):
			t.Errorf("%s: wrong entries: %s", what, text)
		case err != nil:
			refused++
		case text == "log 1 400":
			opened++
		default:
			t.Errorf("%s: opened with %q", what, text)
		}
	}
	if refused == 0 || opened == 0 {
		t.Errorf("%d opened, %d refused: the damage was not where anything is", opened, refused)
	}
}
