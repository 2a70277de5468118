package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"varve/catalog"
)

// A fakeKernel has devices that outlive the daemons, until it is booted.
type fakeKernel struct {
	mu      sync.Mutex
	devices map[string]*fakeDevice // by identity
	broken  error                  // what Attach fails with
}

type fakeDevice struct {
	kernel *fakeKernel
	o      DeviceOptions
	index  int
	size   int64
	export *Export // nil while it waits
	gone   chan struct{}
	busy   bool
}

func (k *fakeKernel) Attach(_ context.Context, e *Export, o DeviceOptions) (Device, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.broken != nil {
		return nil, k.broken
	}
	d := k.devices[o.Identity]
	if d == nil {
		if o.TakeOver {
			return nil, fs.ErrNotExist
		}
		index := max(o.Index, 0)
		for slices.ContainsFunc(slices.Collect(k.all()), func(d *fakeDevice) bool { return d.index == index }) {
			if o.Index >= 0 && !o.IndexIsAWish {
				return nil, syscall.EBUSY
			}
			index++
		}
		d = &fakeDevice{kernel: k, index: index}
		k.devices[o.Identity] = d
	}
	d.o, d.size, d.export, d.gone = o, e.Layer.Size(), e, make(chan struct{})
	return d, nil
}

func (k *fakeKernel) all() func(func(*fakeDevice) bool) {
	return func(yield func(*fakeDevice) bool) {
		for _, d := range k.devices {
			if !yield(d) {
				return
			}
		}
	}
}

// boot is a start of the machine: no device is left.
func (k *fakeKernel) boot() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.devices = map[string]*fakeDevice{}
}

func (d *fakeDevice) Index() int                    { return d.index }
func (d *fakeDevice) Path() string                  { return fmt.Sprintf("/dev/nbd%d", d.index) }
func (d *fakeDevice) Gone() <-chan struct{}         { return d.gone }
func (d *fakeDevice) Resize(size int64) error       { d.size = size; return nil }
func (d *fakeDevice) Rename(link string) error      { d.o.Link = link; return nil }
func (d *fakeDevice) Release(context.Context) error { d.export = nil; return nil }
func (d *fakeDevice) Detach(_ context.Context, force bool) error {
	if d.busy && !force {
		return fmt.Errorf("mounted at /mnt: %w", syscall.EBUSY)
	}
	d.vanish()
	return nil
}

// vanish is what another program does with nbd-client -d.
func (d *fakeDevice) vanish() {
	d.kernel.mu.Lock()
	defer d.kernel.mu.Unlock()
	delete(d.kernel.devices, d.o.Identity)
	close(d.gone)
}

// startWithKernel starts a daemon on a folder, with a kernel.
func startWithKernel(t *testing.T, dir string, k *fakeKernel) *Agent {
	t.Helper()
	w := newWorld(t)
	c := w.config(dir)
	c.Devices = k
	a, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func newKernel() *fakeKernel { return &fakeKernel{devices: map[string]*fakeDevice{}} }

// V5: the link of a device goes with the name of its volume; a name that is not
// unique is no link.
func TestRenamedVolumeRenamesLinks(t *testing.T) {
	k := newKernel()
	a := startWithKernel(t, t.TempDir(), k)
	createVolume(t, a, "old", mib)
	must(a.CreateSnapshot(t.Context(), "old", NewSnapshot{Name: "s"}))(t)
	must(a.Attach(t.Context(), NewAttachment{Export: "old"}))(t)
	must(a.Attach(t.Context(), NewAttachment{Export: "old@s"}))(t)
	links := func() (all []string) {
		for d := range k.all() {
			all = append(all, d.o.Link)
		}
		slices.Sort(all)
		return all
	}
	if got, want := links(), []string{"old", "old@s"}; !slices.Equal(got, want) {
		t.Fatalf("links %q, want %q", got, want)
	}
	name := "new"
	view := must(a.ChangeVolume(t.Context(), "old", VolumeChange{Name: &name}))(t)
	if got, want := links(), []string{"new", "new@s"}; !slices.Equal(got, want) {
		t.Errorf("after the renaming links %q, want %q", got, want)
	}
	createVolume(t, a, "other", mib)
	name = "other"
	must(a.ChangeVolume(t.Context(), "new", VolumeChange{Name: &name}))(t)
	if got, want := links(), []string{view.ID.String(), view.ID.String() + "@s"}; !slices.Equal(got, want) {
		t.Errorf("with two volumes of that name links %q, want %q", got, want)
	}
}

// V5, V4: an attached volume is in use, is shown with its device, and grows.
func TestAttachedVolume(t *testing.T) {
	k := newKernel()
	a := startWithKernel(t, t.TempDir(), k)
	createVolume(t, a, "v", mib)
	at := must(a.Attach(t.Context(), NewAttachment{Export: "v", Device: "/dev/nbd3", Connections: 2}))(t)
	view := must(a.Volume(t.Context(), "v"))(t)
	if at.Device != "/dev/nbd3" || view.Status != catalog.InUse || len(view.Attachments) != 1 || view.Attachments[0] != at {
		t.Errorf("attached %+v; status %s, attachments %+v", at, view.Status, view.Attachments)
	}
	d := slices.Collect(k.all())[0]
	if d.o.Link != "v" || d.o.Connections != 2 || d.o.BlockSize != 512 {
		t.Errorf("the kernel was told %+v", d.o)
	}
	must(a.GrowVolume(t.Context(), "v", 2*mib))(t)
	if d.size != 2*mib {
		t.Errorf("the device has %d bytes", d.size)
	}
	_, err := a.Attach(t.Context(), NewAttachment{Export: "v"})
	wantError(t, err, InUse, "attached already as /dev/nbd3")
	wantError(t, a.DeleteVolume(t.Context(), "v"), InUse, "in use")
	_, err = a.BeginMaintenance(t.Context(), "v")
	wantError(t, err, InUse, "in use")

	d.busy = true
	wantError(t, a.Detach(t.Context(), "v", false), InUse, "mounted at /mnt")
	if got := statusOf(t, a, "v"); got != catalog.InUse {
		t.Errorf("status %s after a detach that was refused", got)
	}
	if err := a.Detach(t.Context(), "/dev/nbd3", true); err != nil {
		t.Error(err)
	}
	if got := statusOf(t, a, "v"); got != catalog.Available {
		t.Errorf("status %s after a detach", got)
	}
	wantError(t, a.Detach(t.Context(), "v", false), Conflict, "not attached")
	if err := a.DeleteVolume(t.Context(), "v"); err != nil {
		t.Error(err)
	}
}

func TestAttachRefuses(t *testing.T) {
	k := newKernel()
	a := startWithKernel(t, t.TempDir(), k)
	createVolume(t, a, "v", mib+512)
	for _, c := range []struct {
		n      NewAttachment
		reason Reason
		text   string
	}{
		{NewAttachment{Export: "nobody"}, NotFound, "nobody"},
		{NewAttachment{Export: "v@nobody"}, NotFound, "nobody"},
		{NewAttachment{Export: "v", Connections: 17}, Invalid, "1 to 16"},
		{NewAttachment{Export: "v", BlockSize: 1000}, Invalid, "1000"},
		{NewAttachment{Export: "v", BlockSize: 4096}, Invalid, "no multiple"},
		{NewAttachment{Export: "v", Device: "/dev/sda"}, Invalid, "/dev/sda"},
		{NewAttachment{Export: "v", Device: "/dev/nbd1p1"}, Invalid, "/dev/nbd1p1"},
	} {
		_, err := a.Attach(t.Context(), c.n)
		wantError(t, err, c.reason, c.text)
	}
	client := attach(t, a, "v")
	_, err := a.Attach(t.Context(), NewAttachment{Export: "v"})
	wantError(t, err, InUse, "1 NBD client")
	client.detach()

	k.broken = fs.ErrPermission
	_, err = a.Attach(t.Context(), NewAttachment{Export: "v"})
	wantError(t, err, Denied, "attach v")
	if got := statusOf(t, a, "v"); got != catalog.Available {
		t.Errorf("status %s after an attach that failed", got)
	}
	if all := must(list(a, catalog.Attachments))(t); len(all) != 0 {
		t.Errorf("an attach that failed left %+v", all)
	}
	_, err = newWorld(t).start(t.TempDir()).Attach(t.Context(), NewAttachment{Export: "v"})
	wantError(t, err, Unavailable, "cannot attach")
}

func TestAttachedSnapshotIsReadOnly(t *testing.T) {
	k := newKernel()
	a := startWithKernel(t, t.TempDir(), k)
	createVolume(t, a, "v", mib)
	write(t, a, "v", 1, 0, mib)
	must(a.CreateSnapshot(t.Context(), "v", NewSnapshot{Name: "s"}))(t)
	at := must(a.Attach(t.Context(), NewAttachment{Export: "v@s"}))(t)
	d := slices.Collect(k.all())[0]
	if !at.ReadOnly || d.export.Writable || d.o.Link != "v@s" {
		t.Errorf("attached %+v, link %q", at, d.o.Link)
	}
	wantError(t, a.DeleteSnapshot(t.Context(), "v@s"), InUse, "being read")
	must(a.Attach(t.Context(), NewAttachment{Export: "v", ReadOnly: true}))(t)
	if err := errors.Join(a.Detach(t.Context(), "v@s", false), a.DeleteSnapshot(t.Context(), "v@s")); err != nil {
		t.Error(err)
	}
	if got := len(must(a.Attachments(t.Context()))(t)); got != 1 {
		t.Errorf("%d attachments", got)
	}
}

// A daemon takes over what the one before it attached, however that ended, and
// after a start of the machine brings back what is to stay.
func TestAttachedAgain(t *testing.T) {
	k := newKernel()
	dir := t.TempDir()
	a := startWithKernel(t, dir, k)
	createVolume(t, a, "v", mib)
	createVolume(t, a, "kept", mib)
	must(a.Attach(t.Context(), NewAttachment{Export: "v"}))(t)
	at := must(a.Attach(t.Context(), NewAttachment{Export: "kept", Persist: true}))(t)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	for d := range k.all() {
		if d.export != nil {
			t.Errorf("%s is still served by the daemon that has ended", d.Path())
		}
	}

	a = startWithKernel(t, dir, k)
	for _, name := range []string{"v", "kept"} {
		if got := statusOf(t, a, name); got != catalog.InUse {
			t.Errorf("%s is %s under the next daemon", name, got)
		}
	}
	for d := range k.all() {
		if d.export == nil {
			t.Errorf("%s waits for ever", d.Path())
		}
	}
	if got := must(a.Volume(t.Context(), "kept"))(t).Attachments[0]; got != at {
		t.Errorf("attachment %+v became %+v", at, got)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}

	k.boot()
	k.devices["somebody's"] = &fakeDevice{kernel: k, index: 1} // where kept was
	a = startWithKernel(t, dir, k)
	if got := statusOf(t, a, "v"); got != catalog.Available {
		t.Errorf("v is %s after a start of the machine", got)
	}
	got := must(a.Attachments(t.Context()))(t)
	if len(got) != 1 || got[0].Export != "kept" || got[0].Device != "/dev/nbd2" {
		t.Errorf("attachments after a start of the machine: %+v", got)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}

	// A kernel that refuses does not stop the daemon, and the volume is kept from
	// others.
	k.broken = errors.New("no")
	a = startWithKernel(t, dir, k)
	if got := statusOf(t, a, "kept"); got != catalog.InUse {
		t.Errorf("kept is %s while its device cannot be reached", got)
	}
	if err := a.Detach(t.Context(), "kept", false); err != nil {
		t.Error(err)
	}
	if got := statusOf(t, a, "kept"); got != catalog.Available {
		t.Errorf("kept is %s after its detach", got)
	}
}

// A copy of a state folder does not take the devices of the original.
func TestCopyOfStateTakesNoDevices(t *testing.T) {
	k := newKernel()
	dir := t.TempDir()
	a := startWithKernel(t, dir, k)
	createVolume(t, a, "v", mib)
	must(a.Attach(t.Context(), NewAttachment{Export: "v"}))(t)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	b := startWithKernel(t, copied, k)
	if got := statusOf(t, b, "v"); got != catalog.Available {
		t.Errorf("the copy is %s", got)
	}
	for d := range k.all() {
		if d.export != nil {
			t.Error("a copy serves the device of the original")
		}
	}
}

// A device that another program disconnects is forgotten.
func TestDeviceVanishes(t *testing.T) {
	k := newKernel()
	a := startWithKernel(t, t.TempDir(), k)
	createVolume(t, a, "v", mib)
	must(a.Attach(t.Context(), NewAttachment{Export: "v", Persist: true}))(t)
	slices.Collect(k.all())[0].vanish()
	late := time.After(patience)
	for statusOf(t, a, "v") != catalog.Available {
		select {
		case <-late:
			t.Fatal("v is in use for ever")
		default:
			runtime.Gosched()
		}
	}
	if all := must(list(a, catalog.Attachments))(t); len(all) != 0 {
		t.Errorf("records %+v", all)
	}
}
