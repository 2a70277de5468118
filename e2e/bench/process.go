package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	startLimit = 30 * time.Second // for a server to listen
	stopLimit  = 60 * time.Second // for a server to end after SIGTERM
	pollEvery  = 10 * time.Millisecond
	tailBytes  = 4 << 10 // of a program's messages are kept for errors
)

// find gives the path of a program, looking also where Debian puts those for
// administrators, which an ordinary user's PATH lacks.
func find(program string) (string, error) {
	if path, err := exec.LookPath(program); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
		if path, err := exec.LookPath(dir + program); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("program %s not found", program)
}

// A server is a process of ours that stays until it is told to end.
type server struct {
	name string
	cmd  *exec.Cmd
	log  *tail
	done chan struct{} // closed when the process has ended
	err  error         // of the process; read only after done
}

// startServer starts a program and returns when it accepts connections on
// socket. A socket left there by an earlier process is removed first.
func startServer(ctx context.Context, socket string, env []string, program string, args ...string) (*server, error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	s, err := launch(env, program, args...)
	if err != nil {
		return nil, err
	}
	if err := s.await(ctx, "unix", socket); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

// launch starts a program that stays.
func launch(env []string, program string, args ...string) (*server, error) {
	path, err := find(program)
	if err != nil {
		return nil, err
	}
	s := &server{name: program, cmd: exec.Command(path, args...), log: new(tail), done: make(chan struct{})}
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.Env = append(os.Environ(), env...)
	s.cmd.SysProcAttr = ownGroup()
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	go func() {
		s.err = s.cmd.Wait()
		close(s.done)
	}()
	return s, nil
}

// await returns when the server accepts connections.
func (s *server) await(ctx context.Context, network, address string) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		if conn, err := net.Dial(network, address); err == nil {
			return conn.Close()
		}
		select {
		case <-tick.C:
		case <-s.done:
			return fmt.Errorf("%s ended before it listened on %s: %v; it said: %s", s.name, address, s.err, s.log)
		case <-ctx.Done():
			return fmt.Errorf("%s does not listen on %s: %w; it said: %s", s.name, address, ctx.Err(), s.log)
		}
	}
}

func (s *server) pid() int { return s.cmd.Process.Pid }

// running says nil, or how the server ended and what it said last.
func (s *server) running() error {
	select {
	case <-s.done:
		return fmt.Errorf("%s has ended: %v; it said: %s", s.name, s.err, s.log)
	default:
		return nil
	}
}

// stop ends the server and returns when it is gone. A server that ended before
// it was told to is an error.
func (s *server) stop() error {
	if err := s.running(); err != nil {
		return err
	}
	return s.end()
}

// end ends the server unless it has ended by itself.
func (s *server) end() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", s.name, err)
	}
	limit := time.NewTimer(stopLimit)
	defer limit.Stop()
	select {
	case <-s.done:
		return nil
	case <-limit.C:
	}
	err := fmt.Errorf("%s did not end within %v of SIGTERM and was killed", s.name, stopLimit)
	err = errors.Join(err, s.cmd.Process.Kill())
	<-s.done
	return err
}

// A cost is what a command took.
type cost struct {
	Wall    time.Duration
	CPU     time.Duration // user and system, with the children it waited for
	PeakRSS int64         // bytes; of the command itself
}

// A task is a command that runs to its end.
type task struct {
	dir    string    // where it runs; "" is here
	env    []string  // added to ours
	stdout io.Writer // nil keeps the end of it for errors
	stderr io.Writer // nil likewise
}

// run runs a program to its end and says what it took. The error holds the last
// of what the program printed.
func (t task) run(ctx context.Context, program string, args ...string) (cost, error) {
	path, err := find(program)
	if err != nil {
		return cost{}, err
	}
	messages := new(tail)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Env, cmd.SysProcAttr = t.dir, append(os.Environ(), t.env...), ownGroup()
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopLimit
	cmd.Stdout, cmd.Stderr = cmp.Or[io.Writer](t.stdout, messages), cmp.Or[io.Writer](t.stderr, messages)
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return cost{}, fmt.Errorf("start %s: %w", program, err)
	}
	peak := watchRSS(cmd.Process.Pid)
	err = cmd.Wait()
	c := cost{Wall: time.Since(began), PeakRSS: peak()}
	if state := cmd.ProcessState; state != nil {
		c.CPU = state.UserTime() + state.SystemTime()
	}
	if err != nil {
		return c, fmt.Errorf("%s %s: %w; it said: %s", program, strings.Join(args, " "), err, messages)
	}
	return c, nil
}

// output runs a program and returns what it printed on standard output.
func output(ctx context.Context, program string, args ...string) (string, error) {
	var out strings.Builder
	_, err := task{stdout: &out}.run(ctx, program, args...)
	return strings.TrimSpace(out.String()), err
}

// watchRSS follows the peak resident size of a process until the returned
// function is called, which tells it in bytes. It samples, because the figure
// that wait4 gives is never below that of the process which forked: us.
func watchRSS(pid int) func() int64 {
	stop, peak := make(chan struct{}), make(chan int64)
	go func() {
		tick := time.NewTicker(2 * pollEvery)
		defer tick.Stop()
		var last int64
		for {
			if rss, err := peakRSS(pid); err == nil {
				last = rss
			}
			select {
			case <-tick.C:
			case <-stop:
				peak <- last
				return
			}
		}
	}()
	return func() int64 {
		close(stop)
		return <-peak
	}
}

// ownGroup keeps a Ctrl-C on the terminal from the children: we end them
// ourselves, in order.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// A tail keeps the last bytes written to it. The zero value is ready; it is
// safe for concurrent use.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p[max(0, len(p)-tailBytes):]...)
	if over := len(t.buf) - tailBytes; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.buf) == 0 {
		return "nothing"
	}
	return strings.TrimSpace(string(t.buf))
}
