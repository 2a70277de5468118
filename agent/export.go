package agent

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"varve/agent/freeze"
	"varve/catalog"
	"varve/layers"
)

// ExportInfo names something that can be opened as a block device.
type ExportInfo struct {
	Name        string
	Description string
	Properties  map[string]string // of the volume
}

// An Export is an open volume or snapshot.
type Export struct {
	Name        string
	Description string
	Layer       layers.Layer // a *layers.Volume if Writable; not to be closed but by Close
	Writable    bool

	// Depths yields how deep in the stack of layers the bytes of [off, off+n)
	// lie, as layers.Volume.Depths says.
	Depths func(off, n int64) iter.Seq2[layers.Run, error]
	Since  []Since // the volume's other snapshots, oldest first

	close func() error
}

// Close ends the use of the export. Only the first call counts.
func (e *Export) Close() error { return e.close() }

// Exports returns what OpenExport opens now, volumes before their snapshots,
// each by the name that is typed most easily: its name, or its id where others
// have the same name.
func (a *Agent) Exports(ctx context.Context) ([]ExportInfo, error) {
	volumes, snapshots, err := a.volumeRecords()
	if err != nil {
		return nil, err
	}
	count := map[string]int{} // how many have a name
	for _, v := range volumes {
		count[v.Name]++
	}
	of := map[layers.ID][]catalog.Snapshot{}
	for _, s := range snapshots {
		count[s.VolumeID.String()+"@"+s.Name]++
		of[s.VolumeID] = append(of[s.VolumeID], s)
	}
	var exports []ExportInfo
	for _, v := range volumes {
		readable, writable := a.exportable(v)
		if !readable {
			continue
		}
		name := v.Name
		if count[name] > 1 {
			name = v.ID.String()
		}
		if writable {
			exports = append(exports, ExportInfo{name, describeVolume(v), v.Properties})
		}
		for _, s := range of[v.ID] {
			if s.System || s.Status != catalog.Available {
				continue
			}
			point := s.Name
			if count[v.ID.String()+"@"+point] > 1 {
				point = s.ID.String()
			}
			exports = append(exports, ExportInfo{name + "@" + point, describeSnapshot(s, v.Name), v.Properties})
		}
	}
	return exports, nil
}

// exportable reports whether the snapshots of a volume can be opened, and
// whether the volume itself can.
func (a *Agent) exportable(record catalog.Volume) (readable, writable bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := a.volumes[record.ID]
	if v == nil {
		return false, false
	}
	_, err := v.usable(record)
	return err == nil, err == nil && !v.reserved
}

func describeVolume(v catalog.Volume) string {
	return fmt.Sprintf("volume %s, %d bytes", v.ID, v.Size)
}

func describeSnapshot(s catalog.Snapshot, volume string) string {
	return fmt.Sprintf("snapshot %s of volume %s, %d bytes, %s, read-only", s.ID, volume, s.Size, s.Created.Format(time.RFC3339))
}

type peerKey struct{}

// WithPeer tells OpenExport which process of this host it opens something for.
func WithPeer(ctx context.Context, pid int) context.Context {
	return context.WithValue(ctx, peerKey{}, pid)
}

type admitKey struct{}

// WithAdmission lets admit decide, by the properties of its volume, whether
// OpenExport may open something; its error becomes that of OpenExport.
func WithAdmission(ctx context.Context, admit func(properties map[string]string) error) context.Context {
	return context.WithValue(ctx, admitKey{}, admit)
}

// admitted asks who WithAdmission named about a volume.
func admitted(ctx context.Context, id layers.ID, volumes []catalog.Volume) error {
	admit, _ := ctx.Value(admitKey{}).(func(map[string]string) error)
	i := slices.IndexFunc(volumes, func(v catalog.Volume) bool { return v.ID == id })
	if admit == nil || i < 0 {
		return nil // what is not there is not opened
	}
	return admit(volumes[i].Properties)
}

// OpenExport opens VOLUME for reading and writing, or VOLUME@SNAPSHOT for
// reading; names or ids on either side. The id of a snapshot alone will do.
func (a *Agent) OpenExport(ctx context.Context, name string) (*Export, error) {
	volumes, snapshots, err := a.volumeRecords()
	if err != nil {
		return nil, err
	}
	if id, err := layers.ParseID(name); err == nil {
		if slices.ContainsFunc(snapshots, func(s catalog.Snapshot) bool { return s.ID == id }) {
			return a.admitSnapshot(ctx, name, volumes, snapshots)
		}
	}
	if strings.Contains(name, "@") {
		return a.admitSnapshot(ctx, name, volumes, snapshots)
	}
	record, _, err := a.findVolume(name)
	if err == nil {
		err = admitted(ctx, record.ID, volumes)
	}
	if err != nil {
		return nil, err
	}
	pid, _ := ctx.Value(peerKey{}).(int)
	e, err := a.exportVolume(name, Attachment{
		ID: layers.NewID(), Export: name, PID: pid, Process: freeze.Host{}.Process(pid), Since: time.Now().UTC(),
	})
	if err != nil {
		return nil, err
	}
	data := e.Layer.(*layers.Volume)
	e.tellHistory(data, data.ID(), layers.ID{}, snapshots)
	return e, nil
}

// exportVolume opens a volume for reading and writing, which makes it in use by
// the attachment.
func (a *Agent) exportVolume(name string, attachment Attachment) (*Export, error) {
	record, v, err := a.findVolume(name)
	if err != nil {
		return nil, err
	}
	attachment.VolumeID = v.id
	a.mu.Lock()
	data, err := v.usable(record)
	if err == nil && v.reserved {
		err = fail(Conflict, "volume %s is in maintenance: it can be opened when that has ended, with: varve volume detach %s", record.Name, record.Name)
	}
	if err == nil {
		v.attached[attachment.ID] = attachment
	}
	a.mu.Unlock()
	if err != nil {
		return nil, err
	}
	detach := sync.OnceValue(func() error {
		a.mu.Lock()
		v.leave(attachment.ID)
		closed := a.closed
		a.mu.Unlock()
		if closed {
			return nil // The next start finds nobody attached.
		}
		return a.settleUse(v)
	})
	if err := a.settleUse(v); err != nil {
		detach() // The first error says more.
		return nil, err
	}
	return &Export{Name: name, Description: describeVolume(record), Layer: data, Writable: true, close: detach}, nil
}

// admitSnapshot is exportSnapshot for who may be refused.
func (a *Agent) admitSnapshot(ctx context.Context, ref string, volumes []catalog.Volume, snapshots []catalog.Snapshot) (*Export, error) {
	s, err := resolveSnapshot(ref, volumes, snapshots)
	if err == nil {
		err = admitted(ctx, s.VolumeID, volumes)
	}
	if err != nil {
		return nil, err
	}
	return a.exportSnapshot(ref, volumes, snapshots)
}

// exportSnapshot opens a snapshot for reading.
func (a *Agent) exportSnapshot(ref string, volumes []catalog.Volume, snapshots []catalog.Snapshot) (*Export, error) {
	s, err := resolveSnapshot(ref, volumes, snapshots)
	if err != nil {
		return nil, err
	}
	record, view, done, err := a.openSnapshot(s)
	if err != nil {
		return nil, err
	}
	e := &Export{Name: ref, Description: describeSnapshot(s, record.Name), Layer: view, close: done}
	e.tellHistory(view.Volume(), s.VolumeID, s.ID, snapshots)
	return e, nil
}

// openSnapshot opens a snapshot for reading and keeps it from being deleted
// until done is called, whose first call counts.
func (a *Agent) openSnapshot(s catalog.Snapshot) (record catalog.Volume, view *layers.View, done func() error, err error) {
	if s.Status != catalog.Available {
		return record, nil, nil, fail(Conflict, "snapshot %s is in status %s: only one that is available can be read", s.Name, s.Status)
	}
	record, v, err := a.findVolume(s.VolumeID.String())
	if err != nil {
		return record, nil, nil, err
	}
	a.mu.Lock()
	data, err := v.usable(record)
	release := func() {}
	if err == nil {
		release = a.hold(v, s.ID)
	}
	a.mu.Unlock()
	if err != nil {
		return record, nil, nil, err
	}
	view, err = data.View(s.ID)
	if err != nil {
		release()
		return record, nil, nil, dataError("read snapshot "+s.Name+" of volume "+record.Name, err)
	}
	return record, view, sync.OnceValue(func() error {
		defer release()
		return view.Close()
	}), nil
}
