package netfault

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// The run happens in two processes: the one that `go test` started makes the namespaces, starts itself again in the hub and
// removes the namespaces, whatever became of the other. These variables are how the second one knows.
const (
	variablePrefix  = "SLUICE_NETFAULT_PREFIX"
	variableProgram = "SLUICE_NETFAULT_PROGRAM"
)

var (
	sluice      string // the program under test
	prefix      string // of the namespaces' names
	unavailable string // why there are no namespaces, "" where there are
)

const nodes = 3

// Addresses inside the namespaces. The nodes' lie in one /29 and the hub outside of it, so that one rule hits all traffic
// between nodes and none of the clients'.
const (
	nodesPrefix = "10.77.0.0/29"
	hubAddress  = "10.77.0.254"
)

func nodeAddress(node int) string { return fmt.Sprintf("10.77.0.%d", node) }
func nodeURL(node int) string     { return "http://" + net.JoinHostPort(nodeAddress(node), "8080") }
func namespace(node int) string   { return fmt.Sprintf("%s-%d", prefix, node) }

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	flag.Parse()
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	sluice, prefix = os.Getenv(variableProgram), os.Getenv(variablePrefix)
	if prefix != "" || flag.Lookup("test.list").Value.String() != "" {
		return m.Run()
	}
	if testing.Short() {
		unavailable = "takes minutes"
		return m.Run()
	}
	if unavailable = missing(); unavailable != "" {
		return m.Run()
	}
	code, err := runInHub()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// missing says what this machine lacks.
func missing() string {
	if os.Getuid() != 0 {
		return "takes root"
	}
	for _, program := range []string{"ip", "iptables"} {
		if _, err := exec.LookPath(program); err != nil {
			return "no " + program + " here"
		}
	}
	probe := fmt.Sprintf("sluice-%d-probe", os.Getpid())
	defer exec.Command("ip", "netns", "del", probe).Run()
	for _, args := range [][]string{
		{"ip", "netns", "add", probe},
		{"ip", "netns", "exec", probe, "ip", "link", "add", "bridge", "type", "bridge"},
		{"ip", "netns", "exec", probe, "ip", "link", "add", "name", "here", "type", "veth", "peer", "name", "there"},
		{"ip", "netns", "exec", probe, "iptables", "-A", "INPUT", "-m", "statistic", "--mode", "random", "--probability", "0.1", "-j", "DROP"},
	} {
		if err := command(args...); err != nil {
			return err.Error()
		}
	}
	return ""
}

// command runs a program that has nothing to say when all is well.
func command(args ...string) error {
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// needCluster skips a test where there are no namespaces.
func needCluster(t *testing.T) {
	t.Helper()
	switch {
	case unavailable == "":
	case os.Getenv("CI") == "true" && !testing.Short():
		t.Fatalf("network faults cannot be made here: %s", unavailable)
	default:
		t.Skipf("network faults cannot be made here: %s", unavailable)
	}
}

// runInHub makes the namespaces and runs the tests in the hub.
func runInHub() (code int, err error) {
	// Interrupts reach both processes; this one stays to clean up.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)
	sweep()
	dir, err := os.MkdirTemp("", "sluice-netfault-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	sluice = filepath.Join(dir, "sluice")
	build := exec.Command("go", "build", "-o", sluice, "sluice/cmd/sluice")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		return 1, fmt.Errorf("build the program: %w", err)
	}
	prefix = fmt.Sprintf("sluice-%d", os.Getpid())
	defer func() { err = errors.Join(err, removeNamespaces(prefix)) }()
	if err := makeNamespaces(); err != nil {
		return 1, err
	}
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	inside := exec.Command("ip", append([]string{"netns", "exec", prefix + "-hub", self}, os.Args[1:]...)...)
	inside.Env = append(os.Environ(), variablePrefix+"="+prefix, variableProgram+"="+sluice)
	inside.Stdin, inside.Stdout, inside.Stderr = os.Stdin, os.Stdout, os.Stderr
	inside.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := inside.Start(); err != nil {
		return 1, fmt.Errorf("start the tests: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- inside.Wait() }()
	for {
		select {
		case s := <-signals:
			inside.Process.Signal(s)
		case err := <-done:
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				return max(exit.ExitCode(), 1), nil
			}
			return 0, err
		}
	}
}

// makeNamespaces makes a bridge in the hub and a namespace for each node with one end of a cable to it. On an error
// removeNamespaces takes away what there is.
func makeNamespaces() error {
	hub := prefix + "-hub"
	in := func(name string, args ...string) []string { return append([]string{"ip", "-n", name}, args...) }
	steps := [][]string{
		{"ip", "netns", "add", hub},
		in(hub, "link", "set", "lo", "up"),
		in(hub, "link", "add", "bridge", "type", "bridge"),
		in(hub, "addr", "add", hubAddress+"/24", "dev", "bridge"),
		in(hub, "link", "set", "bridge", "up"),
	}
	for node := 1; node <= nodes; node++ {
		name, cable := namespace(node), fmt.Sprintf("node%d", node)
		steps = append(steps,
			[]string{"ip", "netns", "add", name},
			in(hub, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name),
			in(hub, "link", "set", cable, "master", "bridge", "up"),
			in(name, "link", "set", "lo", "up"),
			in(name, "addr", "add", nodeAddress(node)+"/24", "dev", "eth0"),
			in(name, "link", "set", "eth0", "up"),
		)
	}
	for _, step := range steps {
		if err := command(step...); err != nil {
			return err
		}
	}
	return nil
}

// namespaces lists those whose name begins with the prefix.
func namespaces(prefix string) []string {
	entries, err := os.ReadDir("/run/netns")
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix+"-") {
			names = append(names, e.Name())
		}
	}
	return names
}

// removeNamespaces ends what still runs in them, which a test process that was killed leaves behind, and removes them; the
// interfaces go with them.
func removeNamespaces(prefix string) error {
	var problems []error
	for _, name := range namespaces(prefix) {
		out, err := exec.Command("ip", "netns", "pids", name).Output()
		if err != nil {
			problems = append(problems, fmt.Errorf("list processes in %s: %w", name, err))
		}
		for _, text := range strings.Fields(string(out)) {
			if pid, err := strconv.Atoi(text); err == nil && pid > 1 {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		problems = append(problems, command("ip", "netns", "del", name))
	}
	return errors.Join(problems...)
}

// sweep removes what runs left behind that could not clean up: their process is gone.
func sweep() {
	for _, name := range namespaces("sluice") {
		parts := strings.Split(name, "-")
		if pid, err := strconv.Atoi(parts[1]); err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			if err := removeNamespaces("sluice-" + parts[1]); err != nil {
				fmt.Fprintln(os.Stderr, "left over from another run:", err)
			}
		}
	}
}
