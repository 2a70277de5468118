package repo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"varve/layers"
)

// A condemned list names packs that nothing needed when it was written, and the
// roots that were there then: docs/format.md 2.9. What it names goes if nothing
// needs it a grace later either.
type condemned struct {
	id    layers.ID
	packs []packSize
	roots []rootName
}

const (
	listPacks = 1 << 16 // in one list, at most
	maxList   = 16 << 20
	// maxListText bounds the memory for either part of a list: 64 bytes are
	// more than a root takes in it, and there may be a million.
	maxListText = 64 << 20

	rootsVersion = 1
)

// Tags in the body of a condemned list, beside those of the other bodies.
const (
	bodyPacks = 10
	bodyRoots = 11
)

// sealCondemned returns the object of a list.
func (r *Repo) sealCondemned(c *condemned) []byte {
	f := make(fields)
	f.setID(bodyBackup, c.id)
	f.setTime(bodyTime, time.Now())
	f.setText(bodyHost, hostName())
	f[bodyPacks] = compress(nil, appendInventoryText(nil, c.packs))
	f[bodyRoots] = compress(nil, appendRoots(nil, c.roots))
	return r.sealBody(kindCondemned, c.id, f)
}

// readCondemned reads the list of that ID, which a listing says has size bytes.
func (r *Repo) readCondemned(ctx context.Context, id layers.ID, size int64) (*condemned, error) {
	name := listName(id)
	b, err := r.readAll(ctx, name, min(size, maxList))
	if err != nil {
		return nil, err
	}
	c, err := r.openCondemned(b)
	if err == nil && c.id != id {
		err = fmt.Errorf("it is list %s", c.id)
	}
	if err != nil {
		return nil, damaged(name, 0, err)
	}
	return c, nil
}

func (r *Repo) openCondemned(b []byte) (*condemned, error) {
	f, err := r.openBody(b, kindCondemned)
	if err != nil {
		return nil, err
	}
	c := new(condemned)
	if c.id, err = f.id(bodyBackup); err != nil {
		return nil, err
	}
	text, err := expand(f[bodyPacks], maxListText)
	if err != nil {
		return nil, err
	}
	if c.packs, err = parseInventory(text); err != nil {
		return nil, err
	}
	if text, err = expand(f[bodyRoots], maxListText); err != nil {
		return nil, err
	}
	c.roots, err = parseRoots(text)
	return c, err
}

// condemnedOf returns the packs of a session that are in any condemned list.
// Whoever has shown a session of that backup before may take up the others: a
// list that this listing does not have yet is so young that the session is
// seen before its grace is over.
func (r *Repo) condemnedOf(ctx context.Context, session sessionID) (map[objectID]bool, error) {
	packs := make(map[objectID]bool)
	for info, err := range r.store.List(ctx, listRoot) {
		if err != nil {
			return nil, fmt.Errorf("list what is condemned: %w", err)
		}
		id, ok := parseList(info.Name)
		if !ok {
			continue
		}
		c, err := r.readCondemned(ctx, id, info.Size)
		if errors.Is(err, fs.ErrNotExist) {
			continue // what it named is gone, or stays
		}
		if err != nil {
			return nil, fmt.Errorf("read what is condemned: %w", err)
		}
		for i := range c.packs {
			if c.packs[i].id.session() == session {
				packs[c.packs[i].id] = true
			}
		}
	}
	return packs, nil
}

func appendRoots(b []byte, roots []rootName) []byte {
	b = append(b, rootsVersion)
	b = binary.AppendUvarint(b, uint64(len(roots)))
	for i := range roots {
		b = append(b, roots[i].volume[:]...)
	}
	for i := range roots {
		b = binary.AppendUvarint(b, roots[i].epoch)
	}
	for i := range roots {
		b = binary.AppendUvarint(b, roots[i].seq)
	}
	for i := range roots {
		b = append(b, roots[i].backup[:]...)
	}
	return b
}

func parseRoots(b []byte) ([]rootName, error) {
	d := &decoder{rest: b}
	if v := d.u8(); d.err == nil && v != rootsVersion {
		return nil, fmt.Errorf("roots version %d, this program knows version %d: %w", v, rootsVersion, ErrVersion)
	}
	roots := make([]rootName, d.count(34, "number of roots"))
	for i := range roots {
		copy(roots[i].volume[:], d.bytes(16))
	}
	for i := range roots {
		roots[i].epoch = d.uvarint()
	}
	for i := range roots {
		roots[i].seq = d.uvarint()
	}
	for i := range roots {
		copy(roots[i].backup[:], d.bytes(16))
		if d.err == nil && (roots[i].backup.IsZero() || roots[i].volume.IsZero()) {
			d.fail(errors.New("a root without backup or volume"))
		}
	}
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("roots: %w", err)
	}
	return roots, nil
}
