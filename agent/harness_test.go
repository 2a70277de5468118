package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"varve/agent/object"
	"varve/catalog"
	"varve/layers"
)

const mib = 1 << 20

// patience bounds what a test waits for. Nothing is expected to take that long.
const patience = 5 * time.Minute

// A world is a set of stores and the daemons that use them.
type world struct {
	t      testing.TB
	mu     sync.Mutex
	stores map[string]*faulty // by URL
	log    bytes.Buffer       // of all daemons
}

func newWorld(t testing.TB) *world {
	return &world{t: t, stores: map[string]*faulty{}}
}

// store returns the store at a URL; it is there as soon as it is asked for.
func (w *world) store(url string) *faulty {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stores[url] == nil {
		w.stores[url] = &faulty{Store: object.NewMem()}
	}
	return w.stores[url]
}

func (w *world) open(ctx context.Context, p Place) (object.Store, error) {
	s := w.store(p.URL)
	if err := s.call(ctx, "open", ""); err != nil {
		return nil, err
	}
	return s, nil
}

// Write is the log of the daemons.
func (w *world) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(p)
}

func (w *world) logged() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.String()
}

// start starts a daemon on the state folder dir, and stops it at the end of the
// test.
func (w *world) start(dir string) *Agent {
	w.t.Helper()
	a, err := Start(context.Background(), w.config(dir))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := a.Close(); err != nil {
			w.t.Errorf("close: %v", err)
		}
	})
	return a
}

func (w *world) config(dir string) Config {
	return Config{State: dir, OpenStore: w.open, FreezeHelper: freezeHelper, Log: slog.New(slog.NewTextHandler(w, nil))}
}

// startWithTarget starts a daemon with an unencrypted target named t1.
func startWithTarget(t testing.TB) (*world, *Agent) {
	t.Helper()
	w := newWorld(t)
	a := w.start(t.TempDir())
	addTarget(t, a, "t1")
	return w, a
}

func addTarget(t testing.TB, a *Agent, name string) catalog.Target {
	t.Helper()
	return must(a.AddTarget(t.Context(), NewTarget{Name: name, URL: url(name), NoEncryption: true}))(t).Target
}

func url(target string) string { return "swift://" + target }

// must ends the test if a call failed, and returns what it gave.
func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// wantError expects an Error of a reason whose text has all the parts.
func wantError(t testing.TB, err error, reason Reason, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one of reason %q with %q", reason, parts)
		return
	}
	if ReasonOf(err) != reason {
		t.Errorf("error %q has reason %q, want %q", err, ReasonOf(err), reason)
	}
	for _, part := range parts {
		if !bytes.Contains([]byte(err.Error()), []byte(part)) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
}

// A faulty is a store whose calls can be made to fail, or to wait.
type faulty struct {
	object.Store
	mu     sync.Mutex
	before func(ctx context.Context, op, name string) error // nil: nothing
}

// on calls f before each call of the store, from now on.
func (s *faulty) on(f func(ctx context.Context, op, name string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = f
}

func (s *faulty) call(ctx context.Context, op, name string) error {
	s.mu.Lock()
	before := s.before
	s.mu.Unlock()
	if before == nil {
		return nil
	}
	return before(ctx, op, name)
}

func (s *faulty) Put(ctx context.Context, name string, data []byte) error {
	if err := s.call(ctx, "put", name); err != nil {
		return err
	}
	return s.Store.Put(ctx, name, data)
}

func (s *faulty) Get(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if err := s.call(ctx, "get", name); err != nil {
		return 0, err
	}
	return s.Store.Get(ctx, name, p, off)
}

func (s *faulty) Delete(ctx context.Context, names ...string) error {
	if err := s.call(ctx, "delete", names[0]); err != nil {
		return err
	}
	return s.Store.Delete(ctx, names...)
}

func (s *faulty) List(ctx context.Context, prefix string) iter.Seq2[object.Info, error] {
	return func(yield func(object.Info, error) bool) {
		if err := s.call(ctx, "list", prefix); err != nil {
			yield(object.Info{}, err)
			return
		}
		for info, err := range s.Store.List(ctx, prefix) {
			if !yield(info, err) {
				return
			}
		}
	}
}

var errFault = errors.New("the store is on fire")

// A gate makes the calls of one kind wait until it is opened.
type gate struct {
	reached chan struct{} // closed when the first call waits
	opened  chan struct{}
	once    sync.Once
}

// shut makes all calls of the operation wait.
func (s *faulty) shut(op string) *gate {
	g := &gate{reached: make(chan struct{}), opened: make(chan struct{})}
	s.on(func(ctx context.Context, called, _ string) error {
		if called != op {
			return nil
		}
		g.once.Do(func() { close(g.reached) })
		select {
		case <-g.opened:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return g
}

// waitAt makes the n-th call of the operation, counted from 1, and all after it
// wait until their contexts end. The channel is closed when the n-th comes.
func (s *faulty) waitAt(op string, n int) (reached <-chan struct{}) {
	var mu sync.Mutex
	calls, come := 0, make(chan struct{})
	s.on(func(ctx context.Context, called, _ string) error {
		if called != op {
			return nil
		}
		mu.Lock()
		calls++
		call := calls
		mu.Unlock()
		if call == n {
			close(come)
		}
		if call < n {
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	})
	return come
}

// await waits until a call is at the gate.
func (g *gate) await(t testing.TB) {
	t.Helper()
	select {
	case <-g.reached:
	case <-time.After(patience):
		t.Fatal("nobody came to the gate")
	}
}

// finish follows an operation to its end.
func finish(t testing.TB, a *Agent, op catalog.Operation) catalog.Operation {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var last catalog.Operation
	for last = range a.WatchOperation(ctx, op.ID) {
	}
	if last.State == catalog.Running || last.ID != op.ID {
		t.Fatalf("operation %s did not end: %+v", op.Kind, last)
	}
	return last
}

// ended is closed when an operation has ended, also if nobody remembers it as
// running any more.
func ended(a *Agent, op catalog.Operation) <-chan struct{} {
	if running := a.runningOperation(op.ID); running != nil {
		return running.ended
	}
	over := make(chan struct{})
	close(over)
	return over
}

// succeed follows an operation to an end that must be a success.
func succeed(t testing.TB, a *Agent, op catalog.Operation) catalog.Operation {
	t.Helper()
	last := finish(t, a, op)
	if last.State != catalog.Succeeded {
		t.Fatalf("%s: %s: %s", last.Kind, last.State, last.Error)
	}
	return last
}

// backUp makes a backup and returns it when it is there.
func backUp(t testing.TB, a *Agent, n NewBackup) BackupView {
	t.Helper()
	b, op, err := a.CreateBackup(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	succeed(t, a, op)
	return must(a.Backup(t.Context(), b.ID.String()))(t)
}

// restore restores a backup and returns the volume when it is there.
func restore(t testing.TB, a *Agent, ref string, r RestoreRequest) VolumeView {
	t.Helper()
	v, op, err := a.RestoreBackup(t.Context(), ref, r)
	if err != nil {
		t.Fatal(err)
	}
	succeed(t, a, op)
	return must(a.Volume(t.Context(), v.ID.String()))(t)
}

func createVolume(t testing.TB, a *Agent, name string, size int64) catalog.Volume {
	t.Helper()
	return must(a.CreateVolume(t.Context(), NewVolume{Name: name, Size: size}))(t)
}

// A disk is a volume that the test has attached.
type disk struct {
	t testing.TB
	*Export
}

func attach(t testing.TB, a *Agent, name string) disk {
	t.Helper()
	return disk{t, must(a.OpenExport(t.Context(), name))(t)}
}

func (d disk) detach() {
	d.t.Helper()
	if err := d.Close(); err != nil {
		d.t.Errorf("detach %s: %v", d.Name, err)
	}
}

// write fills [off, off+n) with bytes that follow from the seed.
func (d disk) write(seed uint64, off, n int64) {
	d.t.Helper()
	data := d.Layer.(*layers.Volume)
	if _, err := data.WriteAt(pattern(seed, n), off); err != nil {
		d.t.Errorf("write %s: %v", d.Name, err)
	}
}

func (d disk) flush() {
	d.t.Helper()
	if err := d.Layer.(*layers.Volume).Flush(); err != nil {
		d.t.Errorf("flush %s: %v", d.Name, err)
	}
}

func pattern(seed uint64, n int64) []byte {
	p := make([]byte, n)
	random := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	random.Read(p)
	return p
}

// write attaches a volume, writes and detaches it.
func write(t testing.TB, a *Agent, name string, seed uint64, off, n int64) {
	t.Helper()
	d := attach(t, a, name)
	d.write(seed, off, n)
	d.flush()
	d.detach()
}

// content returns all bytes of an export.
func content(t testing.TB, a *Agent, name string) []byte {
	t.Helper()
	e := must(a.OpenExport(t.Context(), name))(t)
	defer e.Close()
	return readAll(t, e.Layer)
}

func imageContent(t testing.TB, a *Agent, id layers.ID) []byte {
	t.Helper()
	i := must(a.OpenImage(t.Context(), id))(t)
	defer i.Close()
	return readAll(t, i)
}

func readAll(t testing.TB, l layers.Layer) []byte {
	t.Helper()
	p := make([]byte, l.Size())
	if n, err := l.ReadAt(p, 0); err != nil && !(err == io.EOF && n == len(p)) {
		t.Fatal(err)
	}
	return p
}

// same compares whole images.
func same(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		t.Errorf("%s: %d bytes, want %d", what, len(got), len(want))
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("%s: byte %d is %#x, want %#x", what, i, got[i], want[i])
			return
		}
	}
}

// statusOf returns a volume's status.
func statusOf(t testing.TB, a *Agent, ref string) catalog.Status {
	t.Helper()
	return must(a.Volume(t.Context(), ref))(t).Status
}

// boundaries returns the snapshots and marks in a volume's chain.
func boundaries(t testing.TB, a *Agent, ref string) (snapshots, marks []layers.ID) {
	t.Helper()
	_, v, err := a.findVolume(ref)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range v.data.Boundaries() {
		if b.Mark {
			marks = append(marks, b.ID)
		} else {
			snapshots = append(snapshots, b.ID)
		}
	}
	return snapshots, marks
}

// nothingTemporary expects that no backup and no volume has a snapshot that
// the system made.
func nothingTemporary(t testing.TB, a *Agent) {
	t.Helper()
	for _, s := range must(a.Snapshots(t.Context(), "", true))(t) {
		if s.System {
			t.Errorf("snapshot %s of the system is left, status %s", s.Name, s.Status)
		}
	}
	for _, b := range must(a.Backups(t.Context()))(t) {
		if !b.TempSnapshotID.IsZero() {
			t.Errorf("backup %s still names the temporary snapshot %s", b.Name, b.TempSnapshotID)
		}
	}
}

// copyState copies a state folder as a crash of its daemon would leave it: at
// one instant. Volumes have work in the background, so it copies again until
// none has changed meanwhile.
func copyState(t testing.TB, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "state")
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		before := inventory(t, from)
		err := os.CopyFS(to, os.DirFS(from))
		if err == nil && maps.Equal(before, inventory(t, from)) {
			return to
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if err := os.RemoveAll(to); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("the state folder never rests")
	return ""
}

// inventory returns the size and time of every file.
func inventory(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil {
			var info fs.FileInfo
			if info, err = entry.Info(); err == nil {
				files[path] = fmt.Sprint(info.Size(), info.ModTime())
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
