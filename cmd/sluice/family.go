package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// family is the node processes of `sluice dev`. They die with this process, however it ends.
type family struct {
	ended   chan ending // one for each child, buffered for all of them
	mu      sync.Mutex
	living  map[string]*exec.Cmd
	all     sync.WaitGroup
	release chan struct{} // closed when the thread that the children hang on may end
}

// ending tells how a child ended.
type ending struct {
	name, config, log, pidFile string
	pid                        int
	state                      *os.ProcessState
}

// startFamily starts all nodes. After an error none is left.
func startFamily(cluster *devCluster, env environment) (*family, error) {
	executable, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	f := &family{
		ended:   make(chan ending, len(cluster.nodes)),
		living:  make(map[string]*exec.Cmd),
		release: make(chan struct{}),
	}
	started := make(chan error, 1)
	go func() {
		// The kernel kills a child when the thread that made it ends, so that thread has to stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for _, n := range cluster.nodes {
			if err := f.start(executable, cluster.dir, n, env.variables); err != nil {
				started <- err
				return
			}
		}
		started <- nil
		<-f.release
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(err, f.stop(0, nil, func(string, ...any) {}))
	}
	return f, nil
}

func (f *family) start(executable, dir string, n devNode, variables []string) error {
	e := ending{name: n.name, config: n.config, log: filepath.Join(dir, n.name+".log"), pidFile: filepath.Join(dir, n.name+".pid")}
	log, err := os.OpenFile(e.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open %s's log: %w", n.name, err)
	}
	defer log.Close() // the child has its own
	cmd := exec.Command(executable, "node", "--config", n.config)
	cmd.Env = variables
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = childAttributes()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", n.name, err)
	}
	e.pid = cmd.Process.Pid
	f.mu.Lock()
	f.living[n.name] = cmd
	f.mu.Unlock()
	f.all.Go(func() {
		_ = cmd.Wait() // the state says what the error would
		e.state = cmd.ProcessState
		f.mu.Lock()
		delete(f.living, n.name)
		f.mu.Unlock()
		f.ended <- e
	})
	if err := replaceFile(e.pidFile, fmt.Sprintf("%d\n", e.pid)); err != nil {
		return err
	}
	return nil
}

func (f *family) signal(s os.Signal) (names []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, cmd := range f.living {
		names = append(names, name)
		cmd.Process.Signal(s) // fails only where the process has just ended
	}
	return names
}

// stop asks all children to end, waits, and kills those that have not ended after patience, or when now is closed.
func (f *family) stop(patience time.Duration, now <-chan struct{}, say func(string, ...any)) error {
	defer close(f.release)
	if f.signal(syscall.SIGTERM) != nil {
		say("stopping")
	}
	done := make(chan struct{})
	go func() {
		f.all.Wait()
		close(done)
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	var err error
	select {
	case <-done:
	case <-now:
		err = f.kill(done, "were killed at the second signal")
	case <-timer.C:
		err = f.kill(done, "did not stop within "+patience.String()+" and had to be killed")
	}
	for {
		select {
		case e := <-f.ended:
			os.Remove(e.pidFile)
			// A node that was told to end before it listened for that has ended by the signal itself.
			status, ok := e.state.Sys().(syscall.WaitStatus)
			asked := ok && status.Signaled() && status.Signal() == syscall.SIGTERM
			if !e.state.Success() && !asked && patience > 0 && err == nil {
				err = fmt.Errorf("%s did not stop cleanly: %v\n%s", e.name, e.state, e.lastLines())
			}
		default:
			return err
		}
	}
}

func (f *family) kill(done <-chan struct{}, why string) error {
	names := f.signal(syscall.SIGKILL)
	<-done
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("%s %s", strings.Join(names, ", "), why)
}

// lastLines is the end of the node's log, indented.
func (e ending) lastLines() string {
	const lines, most = 10, 16 << 10
	file, err := os.Open(e.log)
	if err != nil {
		return ""
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return ""
	}
	start := max(info.Size()-most, 0)
	data := make([]byte, info.Size()-start)
	n, _ := file.ReadAt(data, start) // what can be read is enough
	all := bytes.Split(bytes.TrimRight(data[:n], "\n"), []byte("\n"))
	all = all[max(len(all)-lines, 0):]
	return "  the end of " + e.log + ":\n    " + string(bytes.Join(all, []byte("\n    ")))
}
