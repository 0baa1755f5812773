package systemtest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sluice/authapi/authtest"
)

// rawStatuses sends bytes and lists the statuses of what comes back until nothing has come for a while, "-" for none.
func rawStatuses(address, raw string) (string, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	go io.WriteString(conn, raw) // the other end may close before it has all
	var list []string
	for r := bufio.NewReader(conn); ; {
		if err := conn.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return "", err
		}
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			break
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			return "", fmt.Errorf("body of a %d: %w", res.StatusCode, err)
		}
		list = append(list, fmt.Sprint(res.StatusCode))
	}
	if list == nil {
		return "-", nil
	}
	return strings.Join(list, " "), nil
}

// TestSmuggling_Nginx sends the corpus through nginx: each request is refused by one of the two, or means the same to both. While
// it goes on and afterwards, others' requests over the same connections between nginx and the nodes get their own answers.
func TestSmuggling_Nginx(t *testing.T) {
	program := needProgram(t, "nginx")
	corpus, err := authtest.ReadSmuggling(filepath.Join("..", "..", "..", "authapi", "testdata", "smuggling", "corpus.txt"))
	if err != nil {
		t.Fatal(err)
	}
	c := startCluster(t, options{variables: []string{"SLUICE_LIMITS__ANONYMOUS__LIMIT=1000000", "SLUICE_HTTP__READ_TIMEOUT=1s"}})
	url := startProxy(t, c, "nginx.conf", func(dir, config string) *exec.Cmd {
		return exec.Command(program, "-p", dir, "-c", config, "-e", filepath.Join(dir, "error.log"), "-g", "daemon off;")
	})
	// canary asks for what nobody else asks for.
	canary := func(n int) error {
		id := fmt.Sprintf("canary-%d", n)
		res, err := send(url, request{path: "/api/v1/triggers/" + id, header: map[string]string{"X-Request-Id": id}})
		switch {
		case err != nil:
			return err
		case res.status != http.StatusOK || res.header.Get("X-Request-Id") != id || !strings.Contains(string(res.body), `"path": "/api/v1/triggers/`+id+`"`):
			return fmt.Errorf("%s got %v, id %q", id, res, res.header.Get("X-Request-Id"))
		}
		return nil
	}
	canaries := make(chan error, 1)
	stop := make(chan struct{})
	asked := 0
	go func() {
		for {
			select {
			case <-stop:
				canaries <- nil
				return
			default:
			}
			asked++
			if err := canary(asked); err != nil {
				canaries <- err
				return
			}
		}
	}()
	address := strings.TrimPrefix(url, "http://")
	var all sync.WaitGroup
	slots := make(chan struct{}, 16)
	for _, smuggled := range corpus {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			got, err := rawStatuses(address, smuggled.Raw)
			switch {
			case err != nil:
				t.Errorf("%s: %v", smuggled.Name, err)
			case got == smuggled.Want || got == smuggled.Proxied:
			case authtest.Refused(got) && len(strings.Fields(got)) <= len(strings.Fields(smuggled.Want)):
			default:
				t.Errorf("%s: %s through nginx, and %s alone, to %.300q", smuggled.Name, got, smuggled.Want, smuggled.Raw)
			}
		})
	}
	all.Wait()
	close(stop)
	err = <-canaries
	for n := range 50 {
		err = errors.Join(err, canary(1_000_000+n))
	}
	if err != nil {
		t.Errorf("a canary: %v", err)
	}
	t.Logf("%d cases, %d canaries meanwhile", len(corpus), asked)
}
