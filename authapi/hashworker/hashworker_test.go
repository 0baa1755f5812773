package hashworker_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"testing"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"

	"sluice/authapi/hashworker"
)

// TestMain lets this binary be the other process.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 {
		switch os.Args[1] {
		case "serve":
			if err := errors.Join(hashworker.Yield(), hashworker.Serve(os.Stdin, os.Stdout)); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		case "die": // with the first job
			io.CopyN(io.Discard, os.Stdin, 1)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func start(t *testing.T, what string) *hashworker.Process {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := hashworker.New(path, []string{"hashworker", what}, 2, slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return p
}

// TestProcess_SameHashes asks for hashes at once, of passwords that must not be mixed up.
func TestProcess_SameHashes(t *testing.T) {
	t.Parallel()
	p := start(t, "serve")
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			password, salt := bytes.Repeat([]byte{byte(i)}, i*100), bytes.Repeat([]byte{byte(i)}, 8+i)
			got, err := p.Argon2id(password, salt, 2, 64, 1, 32)
			if want := argon2.IDKey(password, salt, 2, 64, 1, 32); err != nil || !bytes.Equal(got, want) {
				t.Errorf("password %d: %x, %v, want %x", i, got, err, want)
			}
		})
	}
	wg.Wait()
	hash, err := bcrypt.GenerateFromPassword([]byte("right"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	for password, want := range map[string]bool{"right": true, "wrong": false, "": false} {
		if ok, err := p.Bcrypt(hash, []byte(password)); err != nil || ok != want {
			t.Errorf("bcrypt of %q: %v, %v", password, ok, err)
		}
	}
}

// TestProcess_Gone: whoever asks hears that it cannot be done there, and does it himself.
func TestProcess_Gone(t *testing.T) {
	t.Parallel()
	ask := func(p *hashworker.Process) error {
		_, err := p.Argon2id([]byte("password"), []byte("12345678"), 1, 64, 1, 32)
		return err
	}
	if err := ask(start(t, "die")); !errors.Is(err, hashworker.ErrGone) {
		t.Errorf("a process that dies: got %v", err)
	}
	nowhere := hashworker.New("/nonexistent/program", []string{"program"}, 1, slog.New(slog.DiscardHandler))
	for range 2 { // the second time it is not even tried
		if err := ask(nowhere); !errors.Is(err, hashworker.ErrGone) {
			t.Errorf("a program that is not there: got %v", err)
		}
	}
	p := start(t, "serve")
	if err := ask(p); err != nil {
		t.Errorf("before its end: %v", err)
	}
	if _, err := p.Argon2id(make([]byte, 1<<18), []byte("12345678"), 1, 64, 1, 32); !errors.Is(err, hashworker.ErrGone) {
		t.Errorf("a password that does not fit: got %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := ask(p); !errors.Is(err, hashworker.ErrGone) {
		t.Errorf("after its end: got %v", err)
	}
}

// TestServe_Nonsense ends with an error and never with a panic.
func TestServe_Nonsense(t *testing.T) {
	t.Parallel()
	if err := hashworker.Serve(bytes.NewReader(nil), io.Discard); err != nil {
		t.Errorf("nothing: %v", err)
	}
	for _, in := range [][]byte{
		{0}, {0, 0, 0, 1, 0}, {255, 255, 255, 255}, append([]byte{0, 0, 0, 9}, make([]byte, 9)...), append([]byte{0, 0, 0, 21}, make([]byte, 21)...),
		{0, 0, 0, 21, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 8, 1, 32, 255, 255},
	} {
		if err := hashworker.Serve(bytes.NewReader(in), io.Discard); err == nil {
			t.Errorf("% x: no error", in)
		}
	}
}
