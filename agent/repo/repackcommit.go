package repo

import (
	"context"
	"errors"
	"fmt"
)

// commit makes one relocation say what was copied, and what those say still that
// it stands for from now on.
func (k *repacker) commit(ctx context.Context) error {
	for len(k.pending) > 0 {
		if err := k.flush(ctx); err != nil {
			return err
		}
	}
	if err := k.early(); err != nil {
		return err
	}
	c := &carrying{repacker: k, all: k.moved.clone()}
	for id, class := range k.whole {
		c.all.setClass(id, class)
	}
	replaces := k.written
	if k.places != nil {
		for i, o := range k.places.objects {
			replaces = append(replaces, o.id)
			if err := c.carry(ctx, i); err != nil {
				return err
			}
		}
		if err := c.settle(ctx); err != nil {
			return err
		}
	}
	name, err := k.repo.writeRelocations(ctx, k.volume, k.session, c.all.build(), replaces[:min(len(replaces), maxReplaced)])
	if err != nil {
		return err
	}
	if late := k.early(); late != nil {
		// What it leads to may be gone.
		return errors.Join(late, k.repo.store.Delete(ctx, name))
	}
	_, id, _ := parseRelocationName(name)
	k.written, k.since = append(k.written, id), 0
	return nil
}

// early is errLate once so much time went by since the survey that what was
// copied may be garbage to other runs.
func (k *repacker) early() error {
	if k.repo.passed(k.began) > sessionGrace {
		return errLate
	}
	return nil
}

// A carrying takes over the rows of relocations into the one that replaces them.
type carrying struct {
	*repacker
	all  *relocating
	lost map[sectionKey]sectionPlace // leads to a pack that is not there
}

// carry takes over what the i. relocation says, and none before, as far as it is
// needed.
func (c *carrying) carry(ctx context.Context, i int) error {
	o := c.places.objects[i]
	for name, row := range o.names() {
		if c.all.has(name) || !c.places.needs(name) {
			continue
		}
		to, err := c.choose(ctx, name, i)
		if err != nil {
			return err
		}
		if _, emptied := c.whole[to.pack.id]; emptied {
			return damaged(packName(inData, to.pack.id), int64(row.off), errors.New("a section that maps name was not copied"))
		}
		there, err := c.there(ctx, inData, to.pack.id)
		if err != nil {
			return err
		}
		if !there {
			if c.lost == nil {
				c.lost = make(map[sectionKey]sectionPlace)
			}
			c.lost[name] = to
			continue
		}
		c.all.add(name, &to)
		c.all.setClass(name.id, o.classAfter(name.id, c.all))
	}
	return nil
}

// classAfter is the class of a pack of which rows are taken over: all of it is
// moved only as long as each row is there.
func (l *relocations) classAfter(id objectID, all *relocating) movedClass {
	i, _ := l.at(id)
	p := &l.packs[i]
	if p.class == movedAll && len(all.packs[id].rows) < p.end-p.first {
		return movedNeeded
	}
	return p.class
}

// choose is where a section is that the i. relocation has first. Where another
// one says otherwise, the first place counts that is whole: one may be a repair
// of the other.
func (c *carrying) choose(ctx context.Context, name sectionKey, i int) (sectionPlace, error) {
	first, _ := c.places.objects[i].find(name)
	places := []sectionPlace{first}
	for _, o := range c.places.objects[i+1:] {
		if to, ok := o.find(name); ok && !c.places.replaced[o] && to != first {
			places = append(places, to)
		}
	}
	if len(places) == 1 {
		return first, nil
	}
	for _, to := range places {
		_, err := c.repo.openPlace(ctx, &to)
		if err == nil {
			return to, nil
		}
		if !errors.Is(err, ErrCorrupt) {
			return first, err
		}
	}
	return first, nil
}

// settle takes over what leads to missing packs if what was there first is
// missing too: somebody may find out what it was.
func (c *carrying) settle(ctx context.Context) error {
	for name, to := range c.lost {
		if c.all.has(name) {
			continue
		}
		data, err := c.there(ctx, inData, name.id)
		if err != nil {
			return err
		}
		leaves, err := c.there(ctx, inLeaves, name.id)
		if err != nil {
			return err
		}
		if data || leaves {
			c.keep(fmt.Errorf("%s is missing, and %s is there in its place", packName(inData, to.pack.id), name.id))
			continue
		}
		c.all.add(name, &to)
	}
	return nil
}
