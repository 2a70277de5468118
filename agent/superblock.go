package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"varve/layers"
)

// A FileSystem is what the start of a volume says that is on all of it. The zero
// value is none that is known; what is in partitions is not looked for.
type FileSystem struct {
	Kind string // ext4 (for all its family), xfs, btrfs
	UUID string // its own, in the usual form
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

// readFileSystem looks at a volume for superblocks.
func readFileSystem(volume io.ReaderAt) (FileSystem, error) {
	for _, s := range superblocks {
		var b [128]byte
		if _, err := volume.ReadAt(b[:], s.at); err != nil {
			if errors.Is(err, io.EOF) { // it is too small for this one, and the next
				return FileSystem{}, nil
			}
			return FileSystem{}, err
		}
		if string(b[s.mark:s.mark+int64(len(s.magic))]) != s.magic {
			continue
		}
		u := b[s.uuid:][:16]
		return FileSystem{s.kind, fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", binary.BigEndian.Uint32(u),
			binary.BigEndian.Uint16(u[4:]), binary.BigEndian.Uint16(u[6:]), binary.BigEndian.Uint16(u[8:]), u[10:])}, nil
	}
	return FileSystem{}, nil
}

// fileSystems returns what is on the volume, and the other volumes of this
// daemon on which the same is: copies, which a kernel may refuse to mount side
// by side. A volume that cannot be read has none.
func (a *Agent) fileSystems(id layers.ID) (own FileSystem, twins []layers.ID) {
	a.mu.Lock()
	open := make(map[layers.ID]*layers.Volume, len(a.volumes))
	for other, v := range a.volumes {
		if v.data != nil {
			open[other] = v.data
		}
	}
	a.mu.Unlock()
	data := open[id]
	if data == nil {
		return FileSystem{}, nil
	}
	own, err := readFileSystem(data)
	if err != nil || own == (FileSystem{}) {
		return FileSystem{}, nil // a check of the volume says what is wrong with it
	}
	for other, data := range open {
		if found, err := readFileSystem(data); other != id && err == nil && found == own {
			twins = append(twins, other)
		}
	}
	return own, twins
}
