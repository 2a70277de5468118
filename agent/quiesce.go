package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"varve/agent/freeze"
	"varve/catalog"
	"varve/layers"
)

// A snapshot of a volume that is in use holds what was acknowledged, as a power
// cut would leave it. To hold more, who uses the volume is asked to be quiet for
// an instant:
//
//	record            snapshot creating; its quiet, with what is to be undone
//	pre-snapshot hook                             a database writes out what it has
//	sync              of the file systems         their writers go on
//	freeze            of the file systems         their writers wait
//	boundary
//	thaw
//	record            snapshot available
//	post-snapshot hook                            also if any of the above failed
//	record            the quiet is over
//
// A crash leaves the quiet in the volume's record; the next start thaws its
// file systems and runs its hook: both may be done twice.

// Bounds on a freeze and on hooks.
const (
	defaultFreeze = 10 * time.Second
	maxFreeze     = 5 * time.Minute
	defaultHook   = 30 * time.Second
	maxHookTime   = 10 * time.Minute
)

// Quiesce says how who uses a volume is made quiet for a snapshot. As the zero
// value, the volume's hooks run, and the file systems on it that are mounted on
// this host are frozen, all only if the volume is in use.
type Quiesce struct {
	Mounts      []string      // mount points to freeze besides those that are found
	NoFreeze    bool          // freeze nothing
	NoHooks     bool          // run no hooks
	FreezeLimit time.Duration // how long a file system is frozen at most; 0 means ten seconds
}

// A quieting is a quiet that is being planned and kept.
type quieting struct {
	a      *Agent
	record catalog.Volume
	snap   *catalog.Snapshot
	quiet  catalog.Quiet // as it was recorded
	limit  time.Duration
	hold   *freeze.Hold // nil if nothing is frozen
}

// planQuiet finds out what is to be done. A mount point that was named and
// cannot be frozen is refused; one that was found is left out, with a note.
func (a *Agent) planQuiet(record catalog.Volume, v *volume, s *catalog.Snapshot, q Quiesce) (*quieting, error) {
	p := &quieting{a: a, record: record, snap: s, limit: q.FreezeLimit, quiet: catalog.Quiet{SnapshotID: s.ID, SnapshotName: s.Name}}
	switch {
	case p.limit == 0:
		p.limit = defaultFreeze
	case p.limit < 0 || p.limit > maxFreeze:
		return nil, fail(Invalid, "a freeze of %s is not possible: at most %s", p.limit, maxFreeze)
	}
	if q.NoFreeze && len(q.Mounts) > 0 {
		return nil, fail(Invalid, "mount points to freeze are named, and freezing is switched off: leave one of them out")
	}
	attached := a.attachments(v)
	p.quiet.Hook = len(attached) > 0 && !q.NoHooks && (record.PreSnapshot != "" || record.PostSnapshot != "")
	if q.NoFreeze {
		return p, nil
	}
	for _, point := range q.Mounts {
		point = filepath.Clean(point)
		if err := a.checkFreeze(point); err != nil {
			return nil, err
		}
		p.addMount(point)
	}
	if len(attached) == 0 {
		return p, nil
	}
	for _, point := range (freeze.Host{}).Mounts(freezeClients(v.id, attached)...) {
		if err := a.checkFreeze(point); err != nil {
			p.note(err.Error())
			continue
		}
		p.addMount(point)
	}
	return p, nil
}

func (p *quieting) addMount(point string) {
	if !slices.Contains(p.quiet.Mounts, point) {
		p.quiet.Mounts = append(p.quiet.Mounts, point)
	}
}

func (a *Agent) checkFreeze(point string) error {
	if len(a.config.FreezeHelper) == 0 {
		return fail(Unavailable, "freeze %s: this daemon cannot freeze", point)
	}
	if err := freeze.Check(point, a.freezeAvoids()); err != nil {
		return fail(Invalid, "%w", err)
	}
	return nil
}

// freezeAvoids are the folders that are written to while a file system is
// frozen.
func (a *Agent) freezeAvoids() []string { return []string{a.config.State} }

// freezeClients are the processes that have a volume attached, and the name
// that a device of the kernel has for it.
func freezeClients(id layers.ID, attached []Attachment) []freeze.Client {
	clients := []freeze.Client{{Backend: deviceName(id.String())}}
	for _, at := range attached {
		if at.PID != 0 {
			clients = append(clients, freeze.Client{PID: at.PID})
		}
	}
	return clients
}

// needed reports whether there is anything to undo.
func (p *quieting) needed() bool { return p.quiet.Hook || len(p.quiet.Mounts) > 0 }

// begin records what a crash would leave to be undone.
func (p *quieting) begin(tx *catalog.Tx) error {
	if !p.needed() {
		return nil
	}
	return change(tx, catalog.Volumes, p.record.ID, func(r *catalog.Volume) { r.Quiets = append(r.Quiets, p.quiet) })
}

// before runs the hook and syncs the file systems. If the hook fails, no
// snapshot is made; a file system that cannot be synced is a note.
func (p *quieting) before(ctx context.Context) error {
	if p.quiet.Hook && p.record.PreSnapshot != "" {
		if err := p.a.runHook(ctx, preSnapshot, p.record, p.quiet, ""); err != nil {
			return fail(Conflict, "no snapshot of volume %s was made: %w", p.record.Name, err)
		}
	}
	if len(p.quiet.Mounts) == 0 {
		return nil
	}
	hold, err := freeze.Begin(ctx, p.a.config.FreezeHelper, p.quiet.Mounts, p.a.freezeAvoids(), p.limit)
	if err != nil {
		p.note(err.Error())
	}
	p.hold = hold
	return nil
}

// during makes the boundary with the file systems frozen.
func (p *quieting) during(ctx context.Context, boundary func() error) error {
	if p.hold == nil {
		return boundary()
	}
	if err := p.hold.Freeze(ctx); err != nil {
		p.note(err.Error())
	}
	err := boundary()
	report := p.hold.Thaw()
	p.hold = nil
	p.snap.Consistency = catalog.Consistency(report.State)
	for _, n := range report.Notes {
		p.note(n)
	}
	return err
}

// after lets go of what during did not, and runs the hook. Its failure is a
// note: the snapshot is what it is.
func (p *quieting) after(ctx context.Context, made bool) {
	if p.hold != nil {
		p.hold.Thaw() // It was not frozen.
		p.hold = nil
	}
	if !p.quiet.Hook || p.record.PostSnapshot == "" {
		return
	}
	if err := p.a.runHook(ctx, postSnapshot, p.record, p.quiet, outcome(made)); err != nil {
		p.note(err.Error())
	}
}

// end records that there is nothing left to undo.
func (p *quieting) end(tx *catalog.Tx) error {
	if !p.needed() {
		return nil
	}
	return endQuiet(tx, p.record.ID, p.quiet.SnapshotID)
}

func endQuiet(tx *catalog.Tx, volumeID, snapshotID layers.ID) error {
	err := change(tx, catalog.Volumes, volumeID, func(r *catalog.Volume) {
		r.Quiets = slices.DeleteFunc(r.Quiets, func(q catalog.Quiet) bool { return q.SnapshotID == snapshotID })
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil // The volume was deleted meanwhile.
	}
	return err
}

// note keeps what whoever asked for the snapshot should know.
func (p *quieting) note(text string) {
	if p.snap.Note != "" {
		text = p.snap.Note + "; " + text
	}
	p.snap.Note = shorten(text)
}

// undoQuiets ends the quiets that a crash left in the volumes' records: it thaws
// what may be frozen and runs the hooks that are due. It does not hold up the
// start: a file system may wait for this very daemon to serve its device.
func (a *Agent) undoQuiets() {
	volumes, err := list(a, catalog.Volumes)
	if err != nil {
		a.log.Error("what was frozen before a crash may be frozen still", "error", err)
		return
	}
	for _, record := range volumes {
		for _, q := range record.Quiets {
			go a.undoQuiet(record, q)
		}
	}
}

// undoQuiet may sit in the kernel for as long as a device does not answer; Close
// does not wait for it.
func (a *Agent) undoQuiet(record catalog.Volume, q catalog.Quiet) {
	log := a.log.With("volume", record.ID, "name", record.Name, "snapshot", q.SnapshotID)
	for _, point := range q.Mounts {
		if err := freeze.Thaw(point); err != nil {
			log.Warn("a file system that was frozen for a snapshot when the daemon stopped is not there, or cannot be thawed", "mount", point, "error", err)
		} else {
			log.Info("a file system is not frozen any more", "mount", point)
		}
	}
	if q.Hook && record.PostSnapshot != "" {
		var s catalog.Snapshot
		err := a.view(func(tx *catalog.Tx) (err error) {
			s, err = catalog.Snapshots.Get(tx, q.SnapshotID)
			return err
		})
		made := err == nil && s.Status == catalog.Available
		if err := a.runHook(a.ctx, postSnapshot, record, q, outcome(made)); err != nil {
			log.Error("after the daemon stopped in the middle of a snapshot", "error", err)
		}
	}
	if a.ctx.Err() != nil {
		return // The next start does it again.
	}
	if err := a.update(func(tx *catalog.Tx) error { return endQuiet(tx, record.ID, q.SnapshotID) }); err != nil {
		log.Error("what a snapshot began was undone, and will be once more", "error", err)
	}
}

func outcome(made bool) string {
	if made {
		return "made"
	}
	return "failed"
}

// attachments returns who has a volume open.
func (a *Agent) attachments(v *volume) []Attachment {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []Attachment
	for _, at := range v.attached {
		list = append(list, at)
	}
	return list
}

// makeSnapshot makes the snapshot that s describes, and fills in what is not
// known before. also is recorded together with its beginning; it may be nil.
// Nothing is left of one that fails, but for what the error says. The caller
// holds no lock.
func (a *Agent) makeSnapshot(ctx context.Context, record catalog.Volume, v *volume, s *catalog.Snapshot, q Quiesce, also func(*catalog.Tx) error) error {
	v.quiet.Lock() // One at a time: hooks are not asked to nest.
	defer v.quiet.Unlock()
	data, err := a.usable(record, v)
	if err != nil {
		return err
	}
	p, err := a.planQuiet(record, v, s, q)
	if err != nil {
		return err
	}
	s.Size, s.Status = data.Size(), catalog.Creating
	err = a.update(func(tx *catalog.Tx) error {
		if also != nil {
			if err := also(tx); err != nil {
				return err
			}
		}
		return errors.Join(p.begin(tx), catalog.Snapshots.Put(tx, *s))
	})
	if err != nil {
		return err
	}
	if err = p.before(ctx); err == nil {
		err = a.sealQuiet(ctx, record, v, s, p)
	}
	note := s.Note
	p.after(context.WithoutCancel(ctx), err == nil)
	if err != nil {
		v.chain.Lock()
		defer v.chain.Unlock()
		return errors.Join(err, a.unseal(data, s.ID, false, p.end))
	}
	if !p.needed() {
		return nil
	}
	return a.update(func(tx *catalog.Tx) error {
		if s.Note == note {
			return p.end(tx)
		}
		return errors.Join(p.end(tx), change(tx, catalog.Snapshots, s.ID, func(r *catalog.Snapshot) { r.Note = s.Note }))
	})
}

// sealQuiet makes the boundary and records it. Whoever deletes the volume or
// restores onto it may have come first.
func (a *Agent) sealQuiet(ctx context.Context, record catalog.Volume, v *volume, s *catalog.Snapshot, p *quieting) error {
	v.chain.Lock()
	defer v.chain.Unlock()
	data, err := a.usable(record, v)
	if err != nil {
		return err
	}
	err = p.during(ctx, func() error {
		s.Size = data.Size()
		return data.Snapshot(s.ID)
	})
	if err != nil {
		return err
	}
	s.Status = catalog.Available
	return a.update(func(tx *catalog.Tx) error { return catalog.Snapshots.Put(tx, *s) })
}

// checkHooks refuses what no shell can run or no record can hold.
func checkHooks(v catalog.Volume) error {
	for _, command := range []string{v.PreSnapshot, v.PostSnapshot} {
		if err := checkHook(command); err != nil {
			return err
		}
	}
	if v.HookLimit < 0 || v.HookLimit > maxHookTime {
		return fail(Invalid, "a hook's time limit of %s is not possible: at most %s", v.HookLimit, maxHookTime)
	}
	return nil
}

// HookTimeout is how long a hook of the volume may take.
func (v VolumeView) HookTimeout() time.Duration { return hookLimit(v.Volume) }

func hookLimit(v catalog.Volume) time.Duration { return cmp.Or(v.HookLimit, defaultHook) }

func hookError(kind hookKind, command string, err error) error {
	return fmt.Errorf("the %s hook %q failed: %w", kind, command, err)
}
