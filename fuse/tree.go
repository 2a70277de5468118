package fuse

import (
	"cmp"
	"slices"
	"time"

	"varve/layers"
)

// A tree is what the mount shows at one moment. It does not change.
type tree struct {
	folders []*folder // in ascending order of their names
	images  map[layers.ID]*entry
	time    time.Time // of the newest image; zero without any
	blocks  uint64    // sum of the sizes, in units of layers.BlockSize, each rounded up
}

// A folder is a volume in a tree.
type folder struct {
	name    string
	ino     uint64
	time    time.Time // of the newest image
	entries []*entry  // in ascending order of their names
}

// An entry is an image in a tree: a folder with disk.raw in it.
type entry struct {
	Image
	name    string // as shown
	ino     uint64 // of its folder
	diskIno uint64 // of its disk.raw
}

// folder returns the folder that is shown as name, or nil.
func (t *tree) folder(name string) *folder {
	i, ok := slices.BinarySearchFunc(t.folders, name, func(f *folder, name string) int {
		return cmp.Compare(f.name, name)
	})
	if !ok {
		return nil
	}
	return t.folders[i]
}

// entry returns the image that is shown as name, or nil.
func (f *folder) entry(name string) *entry {
	i, ok := slices.BinarySearchFunc(f.entries, name, func(e *entry, name string) int {
		return cmp.Compare(e.name, name)
	})
	if !ok {
		return nil
	}
	return f.entries[i]
}

// newTree arranges the images. An image or folder that is in prev keeps its
// inode numbers; others get theirs from next, which never returns a number
// twice. Of several images with one ID the first counts; a negative size is
// shown as zero, and refused when the image is opened.
func newTree(images []Image, prev *tree, next func() uint64) *tree {
	t := &tree{images: make(map[layers.ID]*entry, len(images))}
	for _, img := range images {
		if t.images[img.ID] != nil {
			continue
		}
		img.Size = max(img.Size, 0)
		e := &entry{Image: img}
		if old := prev.images[img.ID]; old != nil {
			e.ino, e.diskIno = old.ino, old.diskIno
		} else {
			e.ino, e.diskIno = next(), next()
		}
		t.images[img.ID] = e
		t.blocks += uint64(img.Size+layers.BlockSize-1) / layers.BlockSize
	}

	for name, entries := range byFolder(t.images) {
		f := &folder{name: name, entries: entries}
		if old := prev.folder(name); old != nil {
			f.ino = old.ino
		} else {
			f.ino = next()
		}
		f.arrange()
		if f.time.After(t.time) {
			t.time = f.time
		}
		t.folders = append(t.folders, f)
	}
	slices.SortFunc(t.folders, func(a, b *folder) int { return cmp.Compare(a.name, b.name) })
	return t
}

// byFolder returns the images by the name that their folder is shown with.
func byFolder(images map[layers.ID]*entry) map[string][]*entry {
	volumes := map[named][]*entry{}
	for _, e := range images {
		v := named{e.Volume, e.VolumeID}
		volumes[v] = append(volumes[v], e)
	}
	things := make([]named, 0, len(volumes))
	for v := range volumes {
		things = append(things, v)
	}
	// Volumes without an ID may still be shown alike. They share a folder.
	folders := make(map[string][]*entry, len(volumes))
	for i, name := range shownNames(things) {
		folders[name] = append(folders[name], volumes[things[i]]...)
	}
	return folders
}

// arrange names the entries, sorts them and takes the newest one's time.
func (f *folder) arrange() {
	things := make([]named, len(f.entries))
	for i, e := range f.entries {
		things[i] = named{e.Name, e.ID}
		if e.Time.After(f.time) {
			f.time = e.Time
		}
	}
	for i, name := range shownNames(things) {
		f.entries[i].name = name
	}
	slices.SortFunc(f.entries, func(a, b *entry) int { return cmp.Compare(a.name, b.name) })
}
