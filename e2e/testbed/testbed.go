// Package testbed starts the real peers that Varve is tested against, on free
// ports of the loopback interface: OpenStack Swift with its own log-in or
// behind Keystone, an S3 server, and a proxy that breaks connections.
//
// A server belongs to the test that asks for it, and is stopped at the test's
// end. A package whose tests share servers, because some take seconds to start,
// says so once:
//
//	func TestMain(m *testing.M) { testbed.Main(m) }
//
// Then each kind is started when it is first asked for and stopped after the
// last test; tests keep apart by using containers of their own.
//
// Children are ended by their process id, and die with the test process even
// if that is killed. Their files are in memory where the machine has /dev/shm,
// else in the temporary folder.
//
// What a machine lacks makes a test skip; with STRICT=1 in the environment it
// makes the test fail, so that no machine that should prove something skips it.
package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// startLimit is how long a server may take until it answers. They need a thirtieth
// of it on an idle machine.
const startLimit = 5 * time.Minute

// Require skips the test, or fails it if STRICT=1, unless the programs are in
// PATH. A name with a slash is a file that must exist.
func Require(t testing.TB, tools ...string) {
	t.Helper()
	var missing []string
	for _, tool := range tools {
		if _, err := find(tool); err != nil {
			missing = append(missing, tool)
		}
	}
	if len(missing) > 0 {
		lack(t, "this machine lacks %s; e2e/setup.sh installs it", strings.Join(missing, ", "))
	}
}

// RequireRoot skips the test, or fails it if STRICT=1, unless it runs as root.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		lack(t, "this test needs root")
	}
}

func lack(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("STRICT") == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// find returns the path of a program. Servers live in /usr/sbin, which a
// user's PATH often lacks.
func find(tool string) (string, error) {
	if strings.Contains(tool, "/") {
		_, err := os.Stat(tool)
		return tool, err
	}
	path, err := exec.LookPath(tool)
	for _, folder := range []string{"/usr/sbin", "/sbin"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(filepath.Join(folder, tool))
	}
	return path, err
}

// A bed owns processes and files: those of one test, or of all tests of a
// package.
type bed struct {
	mu     sync.Mutex
	folder string
	stops  []func()
}

// common is the bed that a package's tests share, if its TestMain is Main.
var common *bed

// Main runs the tests of a package with shared servers, stops the servers and
// ends the process.
func Main(m *testing.M) {
	common = new(bed)
	code := m.Run()
	common.close()
	removeOrphans(baseFolder())
	os.Exit(code)
}

// A shared is a kind of server that tests share.
type shared[S any] struct {
	once   sync.Once
	server S
	err    error
}

// get returns the package's one server, or starts one for this test alone.
func (s *shared[S]) get(t testing.TB, start func(*bed) (S, error)) S {
	t.Helper()
	var server S
	var err error
	if common != nil {
		s.once.Do(func() { s.server, s.err = start(common) })
		server, err = s.server, s.err
	} else {
		b := new(bed)
		t.Cleanup(b.close)
		server, err = start(b)
	}
	if err != nil {
		t.Fatalf("testbed: %v", err)
	}
	return server
}

func (b *bed) onClose(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stops = append(b.stops, f)
}

// close undoes everything, the last thing first.
func (b *bed) close() {
	b.mu.Lock()
	stops := b.stops
	b.stops = nil
	b.mu.Unlock()
	for i := len(stops) - 1; i >= 0; i-- {
		stops[i]()
	}
}

const folderPrefix = "varve-testbed-"

// baseFolder is where the folders of all beds are.
func baseFolder() string {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		return "/dev/shm"
	}
	return os.TempDir()
}

// newFolder makes a folder that goes when the bed is closed.
func (b *bed) newFolder() (string, error) {
	base := baseFolder()
	removeOrphans(base)
	folder, err := os.MkdirTemp(base, fmt.Sprintf("%s%d-", folderPrefix, os.Getpid()))
	if err != nil {
		return "", err
	}
	b.onClose(func() { os.RemoveAll(folder) })
	return folder, nil
}

// removeOrphans removes the folders of test processes that were killed.
func removeOrphans(base string) {
	folders, _ := filepath.Glob(filepath.Join(base, folderPrefix+"*")) // the pattern is good
	for _, folder := range folders {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(folder), folderPrefix), "-")
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join("/proc", pid)); errors.Is(err, os.ErrNotExist) {
			os.RemoveAll(folder)
		}
	}
}

// A Process is a server of a bed.
type Process struct {
	name string
	args []string
	env  []string
	log  string // file
	port int    // it is up when it accepts connections here

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
}

// start starts a server and registers its end. It returns before the server is
// up; see ready.
func (b *bed) start(folder string, port int, env []string, args ...string) (*Process, error) {
	p := &Process{
		name: filepath.Base(args[0]), args: args, env: env, port: port,
		log: filepath.Join(folder, fmt.Sprintf("%s-%d.log", filepath.Base(args[0]), port)),
	}
	if err := p.spawn(); err != nil {
		return nil, err
	}
	b.onClose(p.Kill)
	return p, nil
}

func (p *Process) spawn() error {
	path, err := find(p.args[0])
	if err != nil {
		return err
	}
	log, err := os.OpenFile(p.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(path, p.args[1:]...)
	cmd.Dir = filepath.Dir(p.log)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdout, cmd.Stderr = log, log
	// A group of its own: an interrupt typed at the terminal is for the test,
	// which then stops its servers in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := fromLastingThread(cmd.Start); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		cmd.Wait() // how it ended is in the log
		close(done)
	}()
	p.mu.Lock()
	p.cmd, p.done = cmd, done
	p.mu.Unlock()
	return nil
}

// ready waits until the server accepts connections.
func (p *Process) ready() error {
	p.mu.Lock()
	done := p.done
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", p.port), time.Second)
		if err == nil {
			return c.Close()
		}
		select {
		case <-tick.C:
		case <-done:
			return fmt.Errorf("%s ended at its start:\n%s", p.name, p.tail())
		case <-ctx.Done():
			return fmt.Errorf("%s does not listen on port %d after %v:\n%s", p.name, p.port, startLimit, p.tail())
		}
	}
}

func (p *Process) tail() string {
	data, _ := os.ReadFile(p.log) // an empty log says as much
	return string(lastBytes(data))
}

// Kill ends the process at once and waits until it is gone.
func (p *Process) Kill() {
	p.mu.Lock()
	cmd, done := p.cmd, p.done
	p.mu.Unlock()
	cmd.Process.Kill() // fails if it has ended, which will do
	<-done
}

// Restart starts the process again after Kill, on the same port, and waits
// until it is up.
func (p *Process) Restart() error {
	if err := p.spawn(); err != nil {
		return err
	}
	return p.ready()
}

// run runs a command to its end. input may be empty.
func run(folder string, env []string, input string, args ...string) error {
	path, err := find(args[0])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args[1:]...)
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stdin = strings.NewReader(input)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := fromLastingThread(cmd.Start); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, lastBytes(out.Bytes()))
	}
	return nil
}

func lastBytes(out []byte) []byte {
	const limit = 4000
	if len(out) > limit {
		out = out[len(out)-limit:]
	}
	return out
}

// The kernel sends Pdeathsig when the thread that made the child ends, not the
// process, and Go ends threads now and then. So one goroutine keeps a thread
// for good and makes all children.
var spawner = sync.OnceValue(func() chan<- func() {
	calls := make(chan func())
	go func() {
		runtime.LockOSThread()
		for call := range calls {
			call()
		}
	}()
	return calls
})

func fromLastingThread(f func() error) error {
	done := make(chan error, 1)
	spawner() <- func() { done <- f() }
	return <-done
}

// writeFiles writes files below folder, whose names are the keys.
func writeFiles(folder string, files map[string]string) error {
	for name, text := range files {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}
