package repo

import (
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

// noteAccount is noteIn for damage of what a pack says of itself.
func (a *audit) noteAccount(pack packID, err error) error {
	if err := a.noteIn(pack, err); err != nil || err == nil && !a.isFlagged(pack) {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.account[pack] = true
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
	a.flagged[pack], a.account[pack] = true, true
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
	all.ranges = JoinRanges(append(all.ranges, ranges...))
}

// set keeps the first ranges and the sum of all.
func (t *Touched) set(ranges []Range) {
	t.Bytes = 0
	for _, r := range ranges {
		t.Bytes += r.Len
	}
	t.Ranges = slices.Clone(ranges[:min(len(ranges), maxRanges)])
}

// trace finds out what the findings mean: it goes through the maps of the
// volumes that need a pack with damage once more, and tries to read what they
// have in those packs. A frame whose pack has a damaged trailer may be whole.
func (a *audit) trace(ctx context.Context) error {
	a.needed, a.leaves = make(map[sectionKey]*neededFrame), make(map[sectionKey]*lostLeaf)
	a.lists = make(map[sectionKey]*lostList)
	a.report.Damaged = nil
	for id, all := range a.lost {
		if len(all.ranges) > 0 {
			delete(a.lost, id) // found again, if it still is
		}
	}
	for i := range a.report.Findings {
		f := &a.report.Findings[i]
		f.Backups = slices.DeleteFunc(f.Backups, func(t Touched) bool { return len(t.Ranges) > 0 })
	}
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

// settle leaves out the findings that are made good: damage of packs all of
// whose frames are elsewhere too. What this audit repaired is told as such.
func (a *audit) settle() {
	stays := make(map[string]bool) // packs with needed frames that are nowhere else
	for _, n := range a.needed {
		name := packName(inData, n.pack.id)
		stays[name] = stays[name] || !n.moved
	}
	for _, l := range a.leaves {
		stays[l.ref.pack.name()] = true
	}
	for _, l := range a.lists {
		stays[l.root.inventory.pack.name()] = true
	}
	var left, repaired []Finding
	for _, f := range a.report.Findings {
		superseded := a.movedFrom(f.Object) && !stays[f.Object] || a.repaired[damagePlace{f.Object, f.Offset}]
		switch {
		case len(f.Backups) > 0 || !superseded:
			left = append(left, f)
			continue
		case a.repaired[damagePlace{f.Object, wholePack}]:
			f.Repaired = true
			repaired = append(repaired, f)
		}
		a.report.Count--
	}
	a.report.Findings = append(left, repaired...)
}

// movedFrom reports whether something of a pack is elsewhere too.
func (a *audit) movedFrom(object string) bool {
	id, ok := packOf(object)
	i, known := a.index[id]
	return ok && known && a.classOf(id.id, a.keys[a.packs[i].key].volume) >= movedSome
}

// A rowDamage is what is lost of one row, by finding, and the frames that it
// needs of packs with damage.
type rowDamage struct {
	lost   map[int][]Range
	frames []sectionKey
}

// traceVolume looks at each row once, however many backups share it.
func (a *audit) traceVolume(ctx context.Context, roots []listedRoot) error {
	known := make(map[sectionKey]*rowDamage) // by the row's newest leaf
	for _, listed := range roots {
		root, err := a.readRoot(ctx, listed)
		if err != nil {
			return err
		}
		if root == nil {
			continue
		}
		if err := a.loseList(ctx, root); err != nil {
			return err
		}
		found := make(map[int][]Range)
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
			for finding, ranges := range damage.lost {
				found[finding] = append(found[finding], ranges...)
			}
			for _, key := range damage.frames {
				if n := a.needed[key]; n.broken && !root.backup.Boundary.IsZero() {
					n.boundaries = append(n.boundaries, root.backup.Boundary)
				}
			}
		}
		b := &root.backup
		if len(found) > 0 {
			if c, err := a.repo.caption(ctx, listed.name); err == nil && c != nil { // else it goes by its first name
				c.describe(b)
			}
		}
		for _, finding := range slices.Sorted(maps.Keys(found)) {
			a.touch(finding, Touched{Backup: b.ID, Volume: b.Volume, Name: b.Name, VolumeName: b.VolumeName}, clip(JoinRanges(found[finding]), b.Size))
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

func (a *audit) traceRow(ctx context.Context, volume layers.ID, row *row) (*rowDamage, error) {
	damage := &rowDamage{lost: make(map[int][]Range)}
	part, err := a.repo.readPart(ctx, volume, row)
	if err != nil {
		return nil, err
	}
	l := part.known
	for i := range row.leaves {
		a.loseLeaf(row, i, !slices.Contains(part.broken, i))
	}
	if part.err != nil {
		i, _ := a.note(part.err) // it is damage
		damage.lost[i] = part.lost
	}
	var frames []wanted
	for _, w := range a.repo.placed(l.wantedOf(l.first, l.first+l.blocks)) {
		if !a.flagged[packID{inData, w.pack.id}] {
			continue
		}
		frames = append(frames, w)
		n, err := a.needFrame(ctx, volume, &w)
		if err != nil {
			return nil, err
		}
		if n != nil {
			damage.frames = append(damage.frames, n.key())
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(auditReads)
	for _, group := range groups(frames) {
		g.Go(func() error {
			return a.repo.fetch(ctx, &group, make([]byte, group.length), newPlain(), func(w *wanted, _ []byte, err error) error {
				i, other := a.note(err)
				if other != nil || err == nil {
					return other
				}
				a.mu.Lock()
				defer a.mu.Unlock()
				if n := a.needed[sectionKey{w.pack.id, w.frame.number}]; n != nil {
					n.broken = true
				}
				for _, p := range w.pieces {
					damage.lost[i] = append(damage.lost[i], Range{p.block * layers.BlockSize, int64(p.count) * layers.BlockSize})
				}
				return nil
			})
		})
	}
	err = g.Wait()
	return damage, err
}

// needFrame remembers a frame of a pack with damage; nil if there are too many.
func (a *audit) needFrame(ctx context.Context, volume layers.ID, w *wanted) (*neededFrame, error) {
	key := sectionKey{w.pack.id, w.frame.number}
	n := a.needed[key]
	if n == nil {
		if len(a.needed) == healMax {
			return nil, nil
		}
		moved, err := a.repo.elsewhere(ctx, w)
		if err != nil {
			return nil, err
		}
		n = &neededFrame{pack: w.pack, frame: w.frame, name: w.name(), volume: volume, moved: moved}
		for i := range n.blocks {
			n.blocks[i] = -1
		}
		a.needed[key] = n
	}
	n.add(w.pieces)
	return n, nil
}
