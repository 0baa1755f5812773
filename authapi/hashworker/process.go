package hashworker

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// patience bounds a job: the dearest hash that is accepted takes some seconds, at a low priority perhaps ten times that.
	patience = time.Minute
	// restartPause is between two starts, so that a process that ends at once is not started for each sign-in.
	restartPause = time.Second
)

// ErrGone is of another process that could not be started, or ended before the answer. Nothing is lost; hash by other means.
var ErrGone = errors.New("the process that hashes passwords has gone")

// Process is the other process, started when it is needed first and again when it has ended. Safe for concurrent use.
type Process struct {
	path  string
	args  []string
	cores int
	log   *slog.Logger

	mu      sync.Mutex
	running *running // nil: none
	began   time.Time
	closed  bool
}

// New makes a Process of a program that calls Serve on its standard input and output, with its arguments, its own name
// among them. It may use so many cores.
func New(path string, args []string, cores int, log *slog.Logger) *Process {
	return &Process{path: path, args: args, cores: cores, log: log}
}

// running is one run of the process.
type running struct {
	cmd   *exec.Cmd
	input io.WriteCloser
	ended chan struct{} // closed when no answer will come any more

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan []byte
	gone    bool
}

// Argon2id is argon2.IDKey there. Errors: ErrGone.
func (p *Process) Argon2id(password, salt []byte, iterations, memoryKiB uint32, parallelism, length uint8) ([]byte, error) {
	answer, err := p.do(&job{
		kind: kindArgon2id, password: password, salt: salt, iterations: iterations, memoryKiB: memoryKiB, parallelism: parallelism, length: length,
	})
	if err == nil && len(answer) != int(length) {
		err = fmt.Errorf("%w: it answered %d bytes", ErrGone, len(answer))
	}
	return answer, err
}

// Bcrypt says whether a well-formed bcrypt hash was made of password. Errors: ErrGone.
func (p *Process) Bcrypt(hash, password []byte) (bool, error) {
	answer, err := p.do(&job{kind: kindBcrypt, password: password, salt: hash})
	return err == nil && len(answer) == 1 && answer[0] == 1, err
}

func (p *Process) do(j *job) ([]byte, error) {
	r, err := p.ready()
	if err != nil {
		return nil, err
	}
	id, answer := r.enter()
	if answer == nil {
		return nil, ErrGone
	}
	frame, err := j.frame(id)
	if err != nil {
		r.leave(id)
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	if err := r.write(frame); err != nil {
		r.leave(id)
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case result := <-answer:
		return result, nil
	case <-r.ended:
		select {
		case result := <-answer:
			return result, nil
		default:
			return nil, ErrGone
		}
	case <-timer.C:
		// It stands still, or is starved: others shall not wait as long.
		r.leave(id)
		_ = r.cmd.Process.Kill() // it has ended otherwise
		return nil, fmt.Errorf("%w: no answer within %v", ErrGone, patience)
	}
}

// write keeps frames whole; a full pipe makes callers wait for each other, which their number bounds.
func (r *running) write(frame []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, err := r.input.Write(frame)
	return err
}

// enter books a job; no channel where the process has gone.
func (r *running) enter() (uint64, chan []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone {
		return 0, nil
	}
	r.next++
	answer := make(chan []byte, 1)
	r.waiting[r.next] = answer
	return r.next, answer
}

func (r *running) leave(id uint64) (answer chan []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	answer = r.waiting[id]
	delete(r.waiting, id)
	return answer
}

// ready is the process, started if need be.
func (p *Process) ready() (*running, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrGone
	}
	if p.running != nil {
		select {
		case <-p.running.ended:
			p.running = nil
		default:
			return p.running, nil
		}
	}
	if !p.began.IsZero() && time.Since(p.began) < restartPause {
		return nil, ErrGone
	}
	p.began = time.Now()
	r, err := p.start()
	if err != nil {
		p.log.Warn("passwords are hashed in this process, beside requests", "error", err)
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	p.running = r
	return r, nil
}

func (p *Process) start() (*running, error) {
	cmd := &exec.Cmd{Path: p.path, Args: p.args}
	for _, variable := range os.Environ() {
		// It has no business with what the node was told, secrets among it.
		if !strings.HasPrefix(variable, "SLUICE_") && !strings.HasPrefix(variable, "GOMAXPROCS=") {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	cmd.Env = append(cmd.Env, "GOMAXPROCS="+strconv.Itoa(p.cores))
	cmd.Stderr = os.Stderr // of a crash
	input, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r := &running{cmd: cmd, input: input, ended: make(chan struct{}), waiting: make(map[uint64]chan []byte)}
	go func() {
		in := bufio.NewReader(output)
		for {
			id, answer, err := readFrame(in)
			if err != nil {
				break
			}
			if waiting := r.leave(id); waiting != nil {
				waiting <- answer
			}
		}
		r.mu.Lock()
		r.gone = true
		r.mu.Unlock()
		_ = input.Close()
		_ = cmd.Wait() // how it ended does not matter
		close(r.ended)
	}()
	return r, nil
}

// Close ends the process and waits for its end. Jobs at work get ErrGone, and all later ones.
func (p *Process) Close() error {
	p.mu.Lock()
	r := p.running
	p.closed, p.running = true, nil
	p.mu.Unlock()
	if r == nil {
		return nil
	}
	_ = r.cmd.Process.Kill() // it has nothing to finish
	<-r.ended
	return nil
}
