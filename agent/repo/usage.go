package repo

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"varve/layers"
)

// A Usage says what a repository takes. Roots and packs are counted; what else
// there is, keys, tombstones and sessions, is small.
type Usage struct {
	Volumes    []VolumeUsage // by name
	Unfinished Amount        // packs of backups that are being made, or were cut off lately
	Garbage    Amount        // what no backup needs: pruning frees it once its graces are over

	// Damage says what could not be read, at most maxDamage: what it may need
	// counts as needed.
	Damage []error
}

// VolumeUsage is what the backups of one volume take.
type VolumeUsage struct {
	Volume  layers.ID
	Name    string // as the newest backup has it
	Backups int
	Logical int64  // bytes of data that the backups added, before compression
	Stored  Amount // what they need, that of deleted backups included
}

// Usage looks through the whole repository: it lists all objects, and reads the
// summaries of the backups, and the maps of volumes where something was
// deleted. Whatever is committed or deleted meanwhile is in it or not.
func (r *Repo) Usage(ctx context.Context) (Usage, error) {
	u, err := r.usage(ctx)
	if err != nil {
		return Usage{}, fmt.Errorf("usage: %w", err)
	}
	return u, nil
}

func (r *Repo) usage(ctx context.Context) (Usage, error) {
	c, err := r.count(ctx)
	if err != nil {
		return Usage{}, err
	}
	if err := c.backups(ctx); err != nil {
		return Usage{}, err
	}
	for _, gone := range []rootsOf{c.fading, {layers.ID{}: c.dead}} {
		for _, roots := range gone {
			for _, root := range roots {
				c.out.Garbage.add(root.size)
			}
		}
	}
	portion := make(suspects)
	err = r.eachPack(ctx, func(s *suspect) error {
		switch o := c.owners[s.id.session()]; {
		case c.emptied(s.id, o.root.volume):
		case o.keeps && o.root.volume.IsZero():
			c.out.Unfinished.add(s.size)
			return nil
		case o.keeps:
			c.volume(o.root.volume).Stored.add(s.size)
			return nil
		}
		portion[s.id] = s
		if len(portion) < portionMax {
			return nil
		}
		return c.settle(ctx, portion)
	})
	if err == nil {
		err = c.settle(ctx, portion)
	}
	if err != nil {
		return Usage{}, err
	}
	for _, v := range c.volumes {
		c.out.Volumes = append(c.out.Volumes, *v)
	}
	slices.SortFunc(c.out.Volumes, func(a, b VolumeUsage) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), slices.Compare(a.Volume[:], b.Volume[:]))
	})
	c.out.Damage = append(c.out.Damage, c.report.Kept...)
	return c.out, nil
}

// A counting finds out what is needed as a pruning does, and removes nothing.
type counting struct {
	*prune
	volumes map[layers.ID]*VolumeUsage
	out     Usage
}

func (r *Repo) count(ctx context.Context) (*counting, error) {
	c := &counting{volumes: make(map[layers.ID]*VolumeUsage)}
	c.prune = newPrune(r, PruneOptions{Grace: PruneGrace, DryRun: true})
	var err error
	if c.survey, err = r.survey(ctx, layers.ID{}); err != nil {
		return nil, err
	}
	c.sortRoots()
	if err := c.readMoves(ctx); err != nil {
		return nil, err
	}
	c.findOwners()
	return c, nil
}

func (c *counting) volume(id layers.ID) *VolumeUsage {
	v := c.volumes[id]
	if v == nil {
		v = &VolumeUsage{Volume: id}
		c.volumes[id] = v
	}
	return v
}

// backups counts the roots, and adds up what they say.
func (c *counting) backups(ctx context.Context) error {
	var roots []listedRoot
	for volume, some := range c.live {
		for _, root := range some {
			c.volume(volume).Stored.add(root.size)
			if _, deleted := c.stones[root.name.backup]; !deleted {
				roots = append(roots, root)
			}
		}
	}
	var failed error
	c.repo.summaries(ctx, roots, func(layers.ID, string) bool { return false }, func(b Backup, err error) bool {
		if err != nil && b.ID.IsZero() {
			failed = err
			return false
		}
		v := c.volume(b.Volume)
		v.Backups++
		v.Logical += b.Logical
		if b.VolumeName != "" {
			v.Name = b.VolumeName
		}
		if err != nil && len(c.out.Damage) < maxDamage {
			c.out.Damage = append(c.out.Damage, err)
		}
		return true
	})
	return failed
}

// eachPack lists the packs of the repository.
func (r *Repo) eachPack(ctx context.Context, do func(*suspect) error) error {
	for _, prefix := range []string{"p/", "m/"} {
		for info, err := range r.store.List(ctx, prefix) {
			if err != nil {
				return fmt.Errorf("list packs: %w", err)
			}
			where, id, ok := parsePack(info.Name)
			if !ok {
				continue
			}
			if err := do(&suspect{packSize: packSize{where, id, info.Size}, modified: info.Modified}); err != nil {
				return err
			}
		}
	}
	return nil
}

// settle counts packs whose backups are not there: some backup needs them, or
// they are garbage.
func (c *counting) settle(ctx context.Context, packs suspects) error {
	all := maps.Clone(packs)
	if err := c.mark(ctx, c.live, packs, false); err != nil {
		return err
	}
	for id, s := range all {
		o, known := c.owners[id.session()]
		switch {
		case packs[id] == nil:
			volume := o.root.volume
			if volume.IsZero() {
				volume, _ = c.repo.reach.volume(id.session())
			}
			c.volume(volume).Stored.add(s.size)
		case !known && c.age(s.modified) < c.options.Grace:
			c.out.Unfinished.add(s.size) // a backup that takes minutes shows no session
		default:
			c.out.Garbage.add(s.size)
		}
	}
	clear(packs)
	return nil
}

// Unique returns what would be freed if this backup alone were deleted, once
// it is pruned: its root, and the packs that no other backup needs. One that is
// not there is an error that wraps fs.ErrNotExist.
//
// It reads the map of the backup, and those of later backups of the volume as
// far as they are needed, and lists all packs for their sizes.
func (r *Repo) Unique(ctx context.Context, id layers.ID) (Amount, error) {
	a, err := r.unique(ctx, id)
	if err != nil {
		return Amount{}, fmt.Errorf("what backup %s alone needs: %w", id, err)
	}
	return a, nil
}

func (r *Repo) unique(ctx context.Context, id layers.ID) (Amount, error) {
	c, err := r.count(ctx)
	if err != nil {
		return Amount{}, err
	}
	own, ok := c.owners[sessionOf(id)]
	if !ok || !own.keeps || own.root.backup != id || own.root.volume.IsZero() {
		return Amount{}, fmt.Errorf("backup %s: %w", id, fs.ErrNotExist)
	}
	volume := own.root.volume
	at := slices.IndexFunc(c.live[volume], func(root listedRoot) bool { return root.name.backup == id })
	listed := c.live[volume][at]
	others := rootsOf{volume: slices.Delete(slices.Clone(c.live[volume]), at, at+1)}
	c.owners[sessionOf(id)] = owner{root: own.root}
	reached, err := c.reachOf(ctx, listed)
	if err != nil {
		return Amount{}, err
	}
	only := Amount{Objects: 1, Bytes: listed.size}
	portion := make(suspects)
	judge := func() error {
		if err := c.mark(ctx, others, portion, false); err != nil {
			return err
		}
		for _, s := range portion {
			only.add(s.size)
		}
		clear(portion)
		return nil
	}
	err = r.eachPack(ctx, func(s *suspect) error {
		o := c.owners[s.id.session()]
		if o.root != own.root && (o.keeps || !reached[s.id]) {
			return nil
		}
		portion[s.id] = s
		if len(portion) < portionMax {
			return nil
		}
		return judge()
	})
	if err == nil {
		err = judge()
	}
	if err == nil && len(c.report.Kept) > 0 {
		err = c.report.Kept[0]
	}
	return only, err
}

// reachOf returns the packs where the map of a backup leads.
func (c *counting) reachOf(ctx context.Context, listed listedRoot) (map[objectID]bool, error) {
	root, err := c.repo.readRoot(ctx, listed)
	if err != nil {
		return nil, err
	}
	reached, v := make(map[objectID]bool), c.places[listed.name.volume]
	w := &mapWalk{repo: c.repo, places: v}
	w.pack = func(id objectID) (more bool) {
		if v != nil {
			if _, moved := v.from[id]; moved {
				return true
			}
		}
		reached[id] = true
		return false
	}
	w.section = func(name sectionKey, _ uint32) {
		at := name.id
		if v != nil {
			if to, ok := firstPlace(v.objects, name); ok {
				at = to.pack.id
			}
		}
		reached[at] = true
	}
	return reached, w.root(ctx, root)
}
