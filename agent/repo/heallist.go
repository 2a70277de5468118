package repo

import (
	"context"
)

// A lostList is the inventory of a backup that cannot be read, or that stands in
// a pack which says wrong things of itself.
type lostList struct {
	root     *root
	readable bool
}

// loseList remembers the inventory of a backup, if it is to be made again or
// moved.
func (a *audit) loseList(ctx context.Context, root *root) error {
	ref := root.inventory
	if ref == nil {
		return nil
	}
	at := a.repo.placeOf(ref.place(sectionInventory))
	pack := packID{at.where, at.pack.id}
	if !a.flagged[pack] {
		return nil
	}
	_, err := a.repo.readInventory(ctx, root)
	if err != nil && !isDamage(err) {
		return err
	}
	if err != nil || a.account[pack] {
		a.lists[ref.name()] = &lostList{root, err == nil}
	}
	return nil
}

// healList makes an inventory again: of the packs that are listed under the
// backup's session, if there are as many packs of data as its root counts. What
// it says is compared by verifying, and read by nobody else.
func (h *mapHealer) healList(ctx context.Context, l *lostList) error {
	ref := l.root.inventory
	var packs []packSize
	if l.readable {
		var err error
		if packs, err = h.a.repo.readInventory(ctx, l.root); err != nil {
			_, err := h.a.note(err)
			return err
		}
	} else {
		data := int64(0)
		for _, p := range h.a.listed {
			if p.id.session() != sessionOf(l.root.backup.ID) || p.id == ref.pack.id {
				continue
			}
			if p.where == inData {
				data++
			}
			packs = append(packs, packSize{p.where, p.id, p.size})
		}
		if data != l.root.packs {
			return nil
		}
	}
	text := appendInventoryText(nil, packs)
	key, err := h.a.repo.volumeKey(ctx, ref.pack.key)
	if err != nil {
		_, err := h.a.note(err)
		return err
	}
	s := section{kind: sectionInventory, zstd: true, id: sectionID(newKeyed(key.ids), text)}
	if err := h.put(ctx, key, ref.name(), compress(nil, text), s); err != nil {
		return err
	}
	h.places = append(h.places, damagePlace{ref.pack.name(), ref.off})
	h.a.report.Rebuilt++
	return nil
}
