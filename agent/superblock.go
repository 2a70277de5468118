package agent

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"varve/catalog"
	"varve/layers"
)

// A FileSystem is what superblocks say that is on a volume or in one of its
// partitions. What lies in LVM or LUKS is not seen.
type FileSystem struct {
	Partition int      // as Linux counts them, from 1; 0: on all of the volume
	Kind      string   // ext4 (for all its family), xfs, btrfs
	UUID      string   // its own, in the usual form
	Twins     []string // names of the other volumes on which the same file system is
}

// Where superblocks lie, in bytes: Linux, fs/xfs/libxfs/xfs_format.h (xfs_dsb),
// fs/ext4/ext4.h (ext4_super_block), include/uapi/linux/btrfs_tree.h
// (btrfs_super_block).
var superblocks = []struct {
	kind  string
	at    int64 // of the superblock
	mark  int64 // in it, of the magic
	magic string
	uuid  int64 // in it
}{
	{"xfs", 0, 0, "XFSB", 32},
	{"ext4", 1 << 10, 56, "\x53\xef", 104},
	{"btrfs", 64 << 10, 64, "_BHRfS_M", 32},
}

// readFileSystems looks for superblocks on a volume of size bytes, and in its
// partitions.
func readFileSystems(volume io.ReaderAt, size int64) ([]FileSystem, error) {
	partitions, err := readPartitions(volume)
	if err != nil {
		return nil, err
	}
	var found []FileSystem
	for _, p := range append([]partition{{0, 0, size}}, partitions...) {
		fs, err := readFileSystem(io.NewSectionReader(volume, p.at, p.length))
		if err != nil {
			return nil, err
		}
		if fs.Kind != "" {
			fs.Partition = p.number
			found = append(found, fs)
		}
	}
	return found, nil
}

// readFileSystem looks for a superblock; without one Kind is empty.
func readFileSystem(part io.ReaderAt) (FileSystem, error) {
	for _, s := range superblocks {
		var b [128]byte
		if ok, err := readWhole(part, b[:], s.at); !ok { // it is too small for this one, and the next
			return FileSystem{}, err
		}
		if string(b[s.mark:s.mark+int64(len(s.magic))]) != s.magic {
			continue
		}
		u := b[s.uuid:][:16]
		return FileSystem{Kind: s.kind, UUID: fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", binary.BigEndian.Uint32(u),
			binary.BigEndian.Uint16(u[4:]), binary.BigEndian.Uint16(u[6:]), binary.BigEndian.Uint16(u[8:]), u[10:])}, nil
	}
	return FileSystem{}, nil
}

// fileSystems returns what is on the volume of the given id, and on which other
// volumes of this daemon the same is: copies, which a kernel may refuse to
// mount side by side. A volume that cannot be read has none: a check of it says
// what is wrong.
func (a *Agent) fileSystems(id layers.ID, records []catalog.Volume) []FileSystem {
	own := a.readFileSystems(id)
	if len(own) == 0 {
		return nil
	}
	for _, r := range records {
		if r.ID == id {
			continue
		}
		others := a.readFileSystems(r.ID)
		for i, fs := range own {
			if slices.ContainsFunc(others, func(o FileSystem) bool { return o.Kind == fs.Kind && o.UUID == fs.UUID }) {
				own[i].Twins = append(own[i].Twins, r.Name)
			}
		}
	}
	return own
}

func (a *Agent) readFileSystems(id layers.ID) []FileSystem {
	v := a.volumeOf(id)
	if v == nil {
		return nil
	}
	a.mu.Lock()
	data := v.data
	a.mu.Unlock()
	if data == nil {
		return nil
	}
	found, err := readFileSystems(data, data.Size())
	if err != nil {
		return nil
	}
	return found
}
