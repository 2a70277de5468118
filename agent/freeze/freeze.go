package freeze

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// SyncLimit bounds how long file systems are synced before they are frozen.
// Writers go on meanwhile.
const SyncLimit = time.Minute

// A State is what was done to a file system.
type State string

const (
	Frozen State = "frozen" // no write came in between
	Synced State = "synced" // what was written before is there; more may be, in part
)

// A Report says how a hold on file systems went.
type Report struct {
	State State    // the least that was done to any of them
	Notes []string // why one was not frozen, or not to the end
}

// A Hold is a set of file systems that are about to be frozen, or are. It is
// for one goroutine; each method is called once, in their order, and Thaw in
// any case.
type Hold struct {
	points []string
	dirs   []*os.File // open folders at the points
	child  *exec.Cmd
	in     io.Closer
	tell   io.Writer
	out    *os.File
	lines  chan string // of the helper; closed when it has ended
	limit  time.Duration
	report Report
}

// Begin starts the helper and syncs the file systems at the points, which must
// be mount points. helper are the arguments with which this program, when it is
// started again, hands those that follow to Main. No file system may have one of
// the folders in avoid in it. limit bounds the time that the file systems are
// frozen.
func Begin(ctx context.Context, helper, points, avoid []string, limit time.Duration) (*Hold, error) {
	h := &Hold{points: points, limit: limit, report: Report{State: Synced}}
	err := h.open(avoid)
	if err == nil {
		err = h.start(helper)
	}
	if err != nil {
		h.closeDirs()
		return nil, err
	}
	if err := h.await(ctx, SyncLimit, "sync", new(struct{})); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

// Check refuses a path that cannot be frozen whatever is mounted there: one
// that is no mount point, or whose file system has one of the folders in avoid
// in it.
func Check(path string, avoid []string) error {
	h := &Hold{points: []string{path}}
	defer h.closeDirs()
	return h.open(avoid)
}

// open opens the points, so that what is frozen is what is thawed, whatever is
// mounted over it meanwhile.
func (h *Hold) open(avoid []string) error {
	for _, point := range h.points {
		d, err := openPoint(point)
		if err != nil {
			return err
		}
		h.dirs = append(h.dirs, d)
		for _, dir := range avoid {
			if same, err := sameDevice(d, dir); err != nil {
				return err
			} else if same {
				return fmt.Errorf("freeze %s: %s is in that file system, and is needed to end the freeze: freeze only file systems that lie on the volume", point, dir)
			}
		}
	}
	return nil
}

// openPoint opens a mount point.
func openPoint(point string) (*os.File, error) {
	if !filepath.IsAbs(point) {
		return nil, fmt.Errorf("freeze %s: not an absolute path", point)
	}
	d, err := os.OpenFile(point, os.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("freeze: %w", err)
	}
	// A bind mount has its parent's device; the list of mounts has it too.
	all, err := Host{}.mounts()
	real, evalErr := filepath.EvalSymlinks(point)
	if err = errors.Join(err, evalErr); err == nil {
		if m, ok := holding(all, real); !ok || m.point != real {
			err = fmt.Errorf("nothing is mounted there; it lies in what is mounted at %s", m.point)
		}
	}
	if err != nil {
		d.Close() // Only read.
		return nil, fmt.Errorf("freeze %s: %w", point, err)
	}
	return d, nil
}

func sameDevice(d *os.File, dir string) (bool, error) {
	var a, b unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &a); err != nil {
		return false, fmt.Errorf("look at %s: %w", d.Name(), err)
	}
	if err := unix.Stat(dir, &b); err != nil {
		return false, fmt.Errorf("look at %s: %w", dir, err)
	}
	return a.Dev == b.Dev, nil
}

func (h *Hold) closeDirs() {
	for _, d := range h.dirs {
		d.Close() // Only read.
	}
}

// start starts the helper, with the open folders as its descriptors from 3 on.
func (h *Hold) start(helper []string) error {
	// Not by its path: it may have been replaced by another version.
	h.child = exec.Command("/proc/self/exe")
	h.child.Args = slices.Concat(os.Args[:1], helper, []string{h.limit.String()}, h.points)
	h.child.Env = []string{}
	h.child.Dir = "/"
	h.child.ExtraFiles = h.dirs
	h.child.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is the parent's.
	in, err := h.child.StdinPipe()
	if err != nil {
		return err
	}
	// Not StdoutPipe: Wait would close it under the reader.
	out, childOut, err := os.Pipe()
	if err != nil {
		in.Close()
		return err
	}
	h.child.Stdout = childOut
	err = h.child.Start()
	childOut.Close() // The helper has its own.
	if err != nil {
		in.Close()
		out.Close()
		return fmt.Errorf("start the freeze helper: %w", err)
	}
	h.in, h.tell, h.out, h.lines = in, in, out, make(chan string, maxLines)
	go h.read()
	return nil
}

// maxLines is how many lines a helper writes, at most.
const maxLines = 3

// read hands on the helper's lines until it ends.
func (h *Hold) read() {
	lines := bufio.NewScanner(h.out)
	for i := 0; i < maxLines && lines.Scan(); i++ {
		h.lines <- lines.Text()
	}
	h.child.Wait() // How it ended, its last line has said.
	close(h.lines)
}

// await reads the helper's next line into answer.
func (h *Hold) await(ctx context.Context, limit time.Duration, what string, answer any) error {
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case line, more := <-h.lines:
		if !more {
			return fmt.Errorf("%s %s: %w", what, strings.Join(h.points, ", "), errHelperDied)
		}
		return json.Unmarshal([]byte(line), answer)
	case <-late.C:
		return fmt.Errorf("%s %s: it takes longer than %s: its device may not answer", what, strings.Join(h.points, ", "), limit)
	case <-ctx.Done():
		return ctx.Err()
	}
}

var errHelperDied = errors.New("the helper ended early")

func (h *Hold) close() {
	h.in.Close()
	h.out.Close()
	h.closeDirs()
}

// frozenLine is the helper's answer to freeze: what was done at each point, in
// their order.
type frozenLine struct {
	States []State
	Notes  []string
}

// endedLine is the helper's last word.
type endedLine struct {
	Ended   bool // true
	Expired bool // it was the time limit that thawed
	Error   string
}

// Freeze stops the writers of the file systems. After an error they run, or
// will as soon as the kernel lets go.
func (h *Hold) Freeze(ctx context.Context) error {
	h.report.State = Synced // until it is known better
	if _, err := io.WriteString(h.tell, "freeze\n"); err != nil {
		return fmt.Errorf("freeze: tell the helper: %w", err)
	}
	var l frozenLine
	if err := h.await(ctx, h.limit, "freeze", &l); err != nil {
		return err
	}
	if len(l.States) != len(h.points) {
		return fmt.Errorf("freeze: the helper speaks of %d file systems, there are %d", len(l.States), len(h.points))
	}
	if !slices.Contains(l.States, Synced) {
		h.report.State = Frozen
	}
	h.report.Notes = l.Notes
	return nil
}

// Thaw lets the writers go on and says what was achieved. If the time limit
// came first, the file systems count as synced.
func (h *Hold) Thaw() Report {
	defer h.close()
	h.in.Close() // which tells the helper
	var l endedLine
	err := h.awaitEnd(&l)
	if errors.Is(err, errHelperDied) {
		h.rescue()
	}
	if err != nil {
		h.report.Notes = append(h.report.Notes, err.Error())
	}
	if l.Error != "" {
		h.report.Notes = append(h.report.Notes, l.Error)
	}
	if l.Expired {
		h.report.Notes = append(h.report.Notes, fmt.Sprintf("%s was thawed at its limit of %s", strings.Join(h.points, ", "), h.limit))
	}
	if l.Expired || err != nil {
		h.report.State = Synced
	}
	return h.report
}

// awaitEnd reads the helper's last word and waits for its end, so that the file
// systems can be unmounted. What it says of a freeze that nobody waited for any
// more comes before that.
func (h *Hold) awaitEnd(l *endedLine) error {
	for {
		err := h.await(context.Background(), h.limit, "thaw", l)
		if l.Ended && errors.Is(err, errHelperDied) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// rescue thaws what a helper that died may have left.
func (h *Hold) rescue() {
	for _, d := range h.dirs {
		unix.IoctlSetInt(int(d.Fd()), fiThaw, 0) // EINVAL: it was not frozen.
	}
}

// Thaw thaws the file system at a mount point, if it is frozen: for what a crash
// left behind.
func Thaw(point string) error {
	d, err := openPoint(point)
	if err != nil {
		return err
	}
	defer d.Close() // Only read.
	if err := unix.IoctlSetInt(int(d.Fd()), fiThaw, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("thaw %s: %w", point, err)
	}
	return nil
}
