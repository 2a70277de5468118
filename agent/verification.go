package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"varve/agent/object"
	"varve/agent/repo"
	"varve/catalog"
	"varve/layers"
)

const kindVerifyTarget = "target verify"

// VerifyRequest says how to verify a target.
type VerifyRequest struct {
	Mode      string        // presence, map, sample or deep; empty: map
	Samples   int           // frames that sample reads; 0: the default
	MaxRate   int64         // bytes a second that are read at most; 0: no limit
	OlderThan time.Duration // deep leaves out packs that were read since; 0: none
	Repair    bool          // write anew what is damaged, from what other backups and the volumes have
}

// A verification is a target that is being verified. What is exported is its
// checkpoint: what was read is in the catalog's readings, so that another
// daemon goes on with the rest.
type verification struct {
	a      *Agent
	target catalog.Target
	report repo.AuditReport

	Level   string
	Samples int
	Rate    int64
	Since   time.Time // packs that were read since then are left out
	Repair  bool
	Quiet   bool // it was not asked for by anybody: it takes nobody's place
}

// VerifyTarget begins to check everything in a target that its backups need. The
// operation's subject is the target.
func (a *Agent) VerifyTarget(ctx context.Context, ref string, r VerifyRequest) (catalog.Operation, error) {
	t, err := a.Target(ctx, ref)
	if err != nil {
		return catalog.Operation{}, err
	}
	if r.Mode == "" {
		r.Mode = repo.Map.String()
	}
	level, err := repo.ParseLevel(r.Mode)
	switch {
	case err != nil:
		return catalog.Operation{}, fail(Invalid, "%w", err)
	case r.Samples < 0 || r.MaxRate < 0 || r.OlderThan < 0:
		return catalog.Operation{}, fail(Invalid, "samples, rate and age cannot be negative")
	case r.Samples > repo.MaxSamples:
		return catalog.Operation{}, fail(Invalid, "%d samples are more than %d: the mode deep reads everything", r.Samples, repo.MaxSamples)
	case r.Samples > 0 && level != repo.Sample:
		return catalog.Operation{}, fail(Invalid, "a number of samples goes with the mode sample, and not with %s", r.Mode)
	case r.OlderThan > 0 && level != repo.Deep:
		return catalog.Operation{}, fail(Invalid, "an age of what was read before goes with the mode deep, and not with %s", r.Mode)
	}
	v := &verification{a: a, target: t, Level: r.Mode, Samples: r.Samples, Rate: r.MaxRate, Repair: r.Repair, Since: time.Now().UTC().Add(-r.OlderThan)}
	return v.begin()
}

// begin claims the target and starts the operation.
func (v *verification) begin() (catalog.Operation, error) {
	j, err := v.job()
	if err != nil {
		return catalog.Operation{}, err
	}
	return v.a.start(j)
}

func (v *verification) job() (job, error) {
	a, m := v.a, v.a.targetOf(v.target)
	release, err := a.holdTarget(v.target)
	if err != nil {
		return job{}, err
	}
	a.mu.Lock()
	busy := m.verifying
	m.verifying = true
	a.mu.Unlock()
	if busy {
		release()
		return job{}, fail(Conflict, "target %s is being verified already: wait for that, or cancel it: varve operation list", v.target.Name)
	}
	return job{
		kind:    kindVerifyTarget,
		subject: v.target.ID,
		state:   v,
		begin:   v.record,
		work:    v.work,
		settle:  func(*catalog.Tx, error) error { return nil },
		release: func() {
			a.mu.Lock()
			m.verifying = false
			a.mu.Unlock()
			release()
		},
	}, nil
}

// record remembers when a verification that nobody asked for was begun.
func (v *verification) record(tx *catalog.Tx) error {
	if !v.Quiet {
		return nil
	}
	return change(tx, catalog.Targets, v.target.ID, func(t *catalog.Target) { t.VerifyBegun = time.Now().UTC() })
}

// resumeVerification makes the job of an operation that the daemon before left
// running.
func (a *Agent) resumeVerification(op catalog.Operation, state []byte) (job, error) {
	v := &verification{a: a}
	if err := json.Unmarshal(state, v); err != nil {
		return job{}, fmt.Errorf("read its checkpoint: %w", err)
	}
	var err error
	if v.target, err = a.targetRecord(op.Subject); err != nil {
		return job{}, err
	}
	return v.job()
}

func (v *verification) work(ctx context.Context, op *operation) error {
	ctx = object.WithClass(ctx, object.Upkeep)
	err := v.a.insist(ctx, op, v.target, func() error { return v.read(ctx, op) })
	if errors.Is(context.Cause(ctx), errStopped) {
		return err // the next daemon goes on
	}
	if err := v.name(); err != nil {
		return err
	}
	findings := findingsOf(&v.report)
	left := v.report.Count
	op.change(func(r *catalog.Operation) { r.Findings, r.Damage = findings, left })
	complete := err == nil || left > 0 && ReasonOf(err) == Corrupt
	if marked := v.mark(op, complete); marked != nil {
		return errors.Join(err, marked)
	}
	if complete {
		op.note(v.summary())
	}
	if complete && left > 0 {
		return v.verdict()
	}
	return err
}

// name calls backups whose roots cannot be read as the catalog does.
func (v *verification) name() error {
	known, err := v.a.backupsIn(v.target.ID)
	if err != nil {
		return err
	}
	call := func(all []repo.Touched) {
		for i := range all {
			if b, is := known[all[i].Backup]; is && all[i].VolumeName == "" {
				all[i].Name, all[i].VolumeName = b.Name, b.VolumeName
			}
		}
	}
	call(v.report.Damaged)
	for _, f := range v.report.Findings {
		call(f.Backups)
	}
	return nil
}

// read reads what is to be read.
func (v *verification) read(ctx context.Context, op *operation) error {
	if !v.Quiet && v.Rate == 0 {
		leave, err := v.a.place(ctx)
		if err != nil {
			return err
		}
		defer leave()
	}
	r, release, err := v.a.useTarget(ctx, v.target)
	if err != nil {
		return err
	}
	defer release()
	level, err := repo.ParseLevel(v.Level)
	if err != nil {
		return fail(Invalid, "%w", err)
	}
	v.report, err = r.Audit(ctx, repo.AuditOptions{
		Level: level, Samples: v.Samples, Rate: v.Rate, Since: v.Since, Ledger: v.a.ledger(v.target.ID), Progress: op.progress,
		Repair: v.Repair, Heal: v.a.healFrom,
	})
	if err != nil {
		return targetError(v.target, "verify", err)
	}
	return nil
}

// ledger keeps in the catalog when the packs of a target were read.
func (a *Agent) ledger(target layers.ID) repo.Ledger {
	return repo.Ledger{
		Read: func(each func(pack string, at time.Time)) error {
			return a.view(func(tx *catalog.Tx) error {
				tx.Readings(target, func(pack string, at time.Time) bool {
					each(pack, at)
					return true
				})
				return nil
			})
		},
		Keep: func(packs []string, at time.Time) error {
			return a.update(func(tx *catalog.Tx) error { return tx.PutReadings(target, packs, at) })
		},
		Drop: func(packs []string) error {
			for portion := range slices.Chunk(packs, syncPortion) {
				if err := a.update(func(tx *catalog.Tx) error { return tx.DropReadings(target, portion) }); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// mark writes into the records of the backups what is lost of each and, if all
// was verified, that of the others nothing is known to be; and into the
// target's what was found.
func (v *verification) mark(op *operation, complete bool) error {
	a := v.a
	lost := map[layers.ID]repo.Touched{}
	for _, b := range v.report.Damaged {
		lost[b.Backup] = b
	}
	known, err := a.backupsIn(v.target.ID)
	if err != nil {
		return err
	}
	var changed []catalog.Backup
	for _, b := range known {
		was := [2]string{b.Damage, b.DamageMode}
		if t, is := lost[b.ID]; is {
			b.Damage, b.DamageMode = lossText(t), v.findingMode()
		} else if complete && covers(v.Level, b.DamageMode) {
			b.Damage, b.DamageMode = "", ""
		}
		if was != [2]string{b.Damage, b.DamageMode} {
			changed = append(changed, b)
		}
	}
	for portion := range slices.Chunk(changed, syncPortion) {
		err := a.update(func(tx *catalog.Tx) error {
			for _, b := range portion {
				err := change(tx, catalog.Backups, b.ID, func(r *catalog.Backup) { r.Damage, r.DamageMode = b.Damage, b.DamageMode })
				if err != nil && ReasonOf(err) != NotFound {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if !complete {
		return nil
	}
	record, _ := op.state()
	return a.update(func(tx *catalog.Tx) error {
		return change(tx, catalog.Targets, v.target.ID, func(t *catalog.Target) {
			t.Verified = catalog.Verification{
				Operation: record.ID, Mode: v.Level, Ended: time.Now().UTC(),
				Backups: v.report.Backups, Packs: v.report.Packs, Read: v.report.Known, Oldest: v.report.Oldest, Damage: v.report.Count,
			}
		})
	})
}

// findingMode is the mode that finds again what this one found: a sample is
// drawn anew.
func (v *verification) findingMode() string {
	if v.Level == repo.Sample.String() {
		return repo.Deep.String()
	}
	return v.Level
}

// covers reports whether a verification would have found again what one of
// another mode had found.
func covers(mode, found string) bool {
	if found == "" {
		return true
	}
	m, err1 := repo.ParseLevel(mode)
	f, err2 := repo.ParseLevel(found)
	return err1 == nil && (err2 != nil || m >= f)
}

// lossText says in a line what of a backup is lost.
func lossText(t repo.Touched) string {
	if len(t.Ranges) == 0 {
		return "it cannot be opened"
	}
	var ranges []string
	told := int64(0)
	for _, r := range t.Ranges {
		ranges = append(ranges, fmt.Sprintf("%d-%d", r.Off, r.Off+r.Len-1))
		told += r.Len
	}
	if told < t.Bytes {
		ranges = append(ranges, "…")
	}
	return fmt.Sprintf("%d bytes of the volume cannot be restored: %s", t.Bytes, strings.Join(ranges, ", "))
}

const (
	// What records of operations keep of findings: they have to fit.
	findingsBytes = 20 << 10
	findingLosses = 8
	findingRanges = 4
)

// findingsOf are the first findings of a report, as records keep them.
func findingsOf(report *repo.AuditReport) []catalog.Finding {
	var list []catalog.Finding
	size := 0
	for _, f := range report.Findings {
		entry := catalog.Finding{File: f.Object, Offset: f.Offset, Expected: "what was written there", Found: shorten(DamageText(f.Err)), Repaired: f.Repaired}
		for _, b := range f.Backups[:min(len(f.Backups), findingLosses)] {
			loss := catalog.Loss{BackupID: b.Backup, Name: b.Name, VolumeName: b.VolumeName, Bytes: b.Bytes}
			for _, r := range b.Ranges[:min(len(b.Ranges), findingRanges)] {
				loss.Ranges = append(loss.Ranges, catalog.Range{Off: r.Off, Len: r.Len})
			}
			entry.Backups = append(entry.Backups, loss)
		}
		text, err := json.Marshal(entry)
		if size += len(text); err != nil || len(list) == maxFindings || size > findingsBytes {
			break
		}
		list = append(list, entry)
	}
	return list
}

// DamageText is what is wrong, without the place, which has fields of its own.
func DamageText(err error) string {
	var d *repo.DamageError
	if errors.As(err, &d) {
		return d.Err.Error()
	}
	return err.Error()
}

func (v *verification) summary() string {
	level, _ := repo.ParseLevel(v.Level) // it was, when it was asked for
	return AuditNote(level, v.report, v.Since)
}

// AuditNote tells a person what an audit has read, and that nothing is damaged
// where that is so. since is when what was left out was read at the earliest.
func AuditNote(level repo.Level, r repo.AuditReport, since time.Time) string {
	text := fmt.Sprintf("%d backups need %d packs; %d leaves of their maps were read", r.Backups, r.Packs, r.Leaves)
	switch level {
	case repo.Presence:
		text = fmt.Sprintf("%d backups; the sizes of %d packs were compared", r.Backups, r.Packs)
	case repo.Sample:
		text += fmt.Sprintf(", and %d frames with %d bytes", r.Frames, r.Bytes)
	case repo.Deep:
		text += fmt.Sprintf(", and %d packs with %d MiB", r.Read, r.Bytes>>20)
		if r.Skipped > 0 {
			text += fmt.Sprintf("; %d packs were left out that were read since %s", r.Skipped, since.Format(time.DateTime))
		}
	}
	if r.Healed > 0 {
		text += fmt.Sprintf("; %d frames of damaged packs were written anew", r.Healed)
	}
	if r.Rebuilt > 0 {
		text += fmt.Sprintf("; %d parts of maps were made again", r.Rebuilt)
	}
	switch {
	case r.Count == 0 && r.Healed+r.Rebuilt > 0:
		text += "; no damage is left"
	case r.Count == 0:
		text += "; nothing is damaged"
	}
	return text
}

// verdict says what is damaged.
func (v *verification) verdict() error {
	r := &v.report
	text := fmt.Sprintf("%d places in target %s are damaged, the first is %v", r.Count, v.target.Name, r.Findings[0].Err)
	if v.Repair {
		text += "; nothing proves what was there any more"
	}
	if len(r.Damaged) == 0 {
		return fail(Corrupt, "%s; no backup has lost data", text)
	}
	var names []string
	for _, b := range r.Damaged[:min(len(r.Damaged), maxDamage)] {
		names = append(names, fmt.Sprintf("%q of volume %s (%s)", b.Name, b.VolumeName, b.Backup))
	}
	if more := len(r.Damaged) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return fail(Corrupt, "%s; %d backups have lost data: %s; back up what of their volumes is still there: where the newest backup has lost data, the next one is full",
		text, len(r.Damaged), strings.Join(names, ", "))
}
