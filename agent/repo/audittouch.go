package repo

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"

	"golang.org/x/sync/errgroup"

	"varve/layers"
)

// A damagePlace names damage, so that what is met twice is told once.
type damagePlace struct {
	object string
	offset int64
}

// tooMany stands for a finding that the report has no room for.
const tooMany = -1

// lost is what cannot be restored of one backup.
type lost struct {
	touched Touched
	ranges  []Range
}

// note keeps damage and returns its place in the report; other errors it
// returns. Without an error the place means nothing.
func (a *audit) note(err error) (int, error) {
	if err == nil {
		return tooMany, nil
	}
	var d *DamageError
	if !errors.As(err, &d) {
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			return tooMany, err
		}
		d = &DamageError{Err: err}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if i, ok := a.whole[d.Object]; ok {
		return i, nil
	}
	place := damagePlace{d.Object, d.Offset}
	if d.Err == errMissing {
		place.offset = 0
	}
	i, ok := a.places[place]
	if !ok {
		i = tooMany
		if len(a.report.Findings) < maxDamage {
			i = len(a.report.Findings)
			a.report.Findings = append(a.report.Findings, Finding{Object: d.Object, Offset: place.offset, Err: damaged(d.Object, place.offset, d.Err)})
		}
		a.places[place] = i
		a.report.Count++
	}
	if d.Err == errMissing {
		a.whole[d.Object] = i
	}
	return i, nil
}

// noteIn is note for damage of a pack, or that hides what a pack has.
func (a *audit) noteIn(pack packID, err error) error {
	if err == nil {
		return nil
	}
	if _, err := a.note(err); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.flagged[pack] = true
	return nil
}

// noteWhole is noteIn for damage that says all there is to say about a pack.
func (a *audit) noteWhole(pack packID, err error) error {
	i, err := a.note(err)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.flagged[pack] = true
	a.whole[pack.name()] = i
	return nil
}

// touch says that by a finding ranges of a backup are lost. None means all of a
// backup whose size is not known.
func (a *audit) touch(finding int, t Touched, ranges []Range) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if finding != tooMany {
		f := &a.report.Findings[finding]
		own := t
		own.set(ranges)
		f.Backups = append(f.Backups, own)
	}
	all := a.lost[t.Backup]
	if all == nil {
		all = &lost{touched: t}
		a.lost[t.Backup] = all
	}
	all.ranges = join(append(all.ranges, ranges...))
}

// set keeps the first ranges and the sum of all.
func (t *Touched) set(ranges []Range) {
	t.Bytes = 0
	for _, r := range ranges {
		t.Bytes += r.Len
	}
	t.Ranges = slices.Clone(ranges[:min(len(ranges), maxRanges)])
}

// join sorts ranges and joins those that meet, in place.
func join(ranges []Range) []Range {
	slices.SortFunc(ranges, func(x, y Range) int { return cmp.Compare(x.Off, y.Off) })
	out := ranges[:0]
	for _, r := range ranges {
		if n := len(out); n > 0 && r.Off <= out[n-1].Off+out[n-1].Len {
			last := &out[n-1]
			last.Len = max(last.Len, r.Off+r.Len-last.Off)
			continue
		}
		out = append(out, r)
	}
	return out
}

// trace finds out what the findings mean: it goes through the maps of the
// volumes that need a pack with damage once more, and tries to read what they
// have in those packs. A frame whose pack has a damaged trailer may be whole.
func (a *audit) trace(ctx context.Context) error {
	volumes := make(map[int32]bool)
	for pack := range a.flagged {
		p := &a.packs[a.index[pack]]
		if p.volume != severalVolumes {
			volumes[p.volume] = true
			continue
		}
		for i := range a.volumes {
			volumes[int32(i)] = true
		}
	}
	for _, i := range slices.Sorted(maps.Keys(volumes)) {
		if err := a.traceVolume(ctx, a.volumes[i]); err != nil {
			return err
		}
	}
	for _, all := range a.lost {
		all.touched.set(all.ranges)
		a.report.Damaged = append(a.report.Damaged, all.touched)
	}
	slices.SortFunc(a.report.Damaged, func(x, y Touched) int { return slices.Compare(x.Backup[:], y.Backup[:]) })
	return nil
}

// A rowDamage is what is lost of one row, by finding.
type rowDamage map[int][]Range

// traceVolume looks at each row once, however many backups share it.
func (a *audit) traceVolume(ctx context.Context, roots []listedRoot) error {
	known := make(map[sectionKey]rowDamage) // by the row's newest leaf
	for _, listed := range roots {
		root, err := a.readRoot(ctx, listed)
		if err != nil {
			return err
		}
		if root == nil {
			continue
		}
		found := make(rowDamage)
		for i := range root.spans.rows {
			row := &root.spans.rows[i]
			key := sectionKey{row.leaves[0].pack.id, row.leaves[0].number}
			damage, ok := known[key]
			if !ok {
				if damage, err = a.traceRow(ctx, listed.name.volume, row); err != nil {
					return err
				}
				known[key] = damage
			}
			for finding, ranges := range damage {
				found[finding] = append(found[finding], ranges...)
			}
		}
		b := &root.backup
		for _, finding := range slices.Sorted(maps.Keys(found)) {
			a.touch(finding, Touched{Backup: b.ID, Volume: b.Volume, Name: b.Name, VolumeName: b.VolumeName}, clip(join(found[finding]), b.Size))
		}
	}
	return nil
}

// clip cuts off what is past the end of a volume.
func clip(ranges []Range, size int64) []Range {
	var out []Range
	for _, r := range ranges {
		if r.Len = min(r.Len, size-r.Off); r.Len > 0 {
			out = append(out, r)
		}
	}
	return out
}

func (a *audit) traceRow(ctx context.Context, volume layers.ID, row *row) (rowDamage, error) {
	damage := make(rowDamage)
	l, err := a.repo.readRow(ctx, volume, *row)
	i, other := a.note(err)
	if other != nil {
		return nil, other
	}
	if err != nil {
		damage[i] = []Range{{row.first * layers.BlockSize, row.blocks * layers.BlockSize}}
		return damage, nil
	}
	var frames []wanted
	for _, w := range l.wantedOf(l.first, l.first+l.blocks) {
		if a.flagged[packID{inData, w.pack.id}] {
			frames = append(frames, w)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(auditReads)
	for _, group := range groups(frames) {
		g.Go(func() error {
			return a.repo.fetch(ctx, &group, make([]byte, group.length), make([]byte, frameBytes), func(w *wanted, _ []byte, err error) error {
				i, other := a.note(err)
				if other != nil || err == nil {
					return other
				}
				a.mu.Lock()
				defer a.mu.Unlock()
				for _, p := range w.pieces {
					damage[i] = append(damage[i], Range{p.block * layers.BlockSize, int64(p.count) * layers.BlockSize})
				}
				return nil
			})
		})
	}
	err = g.Wait()
	return damage, err
}
