package layers

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Remove deletes the volume in dir, and dir. It also clears away what a crash
// left of a Create, a Clone or a Remove. A volume that is open is a
// *LockedError; a directory that is not there is fs.ErrNotExist. Files that no
// volume has are left alone, and make it fail. Clones of the volume keep what
// they need; whether a volume with clones is to be deleted at all, the caller
// decides: see [Volume.Lent].
func Remove(dir string) error {
	err := removeDir(dir)
	if err != nil {
		return fmt.Errorf("remove volume %s: %w", dir, err)
	}
	return nil
}

func removeDir(dir string) error {
	if _, err := os.Stat(dir); err != nil {
		return err
	}
	d := osDisk{dir}
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	err = errors.Join(removeVolume(d), unlock())
	if err == nil {
		err = os.Remove(dir)
	}
	if err == nil {
		err = syncPath(filepath.Dir(filepath.Clean(dir)))
	}
	return err
}

// removeVolume removes the files of a volume. The header is the first to go, for
// good: layers may be shared, and as soon as they have lost a name here, whoever
// has the last one changes them. No crash may bring this volume back then.
func removeVolume(d disk) error {
	names, err := d.list()
	if err != nil {
		return err
	}
	for _, name := range names {
		if !ours(name) {
			return fmt.Errorf("%s is not a file of a volume: move it away first: %w", d.path(name), fs.ErrExist)
		}
	}
	if slices.Contains(names, headerName) {
		if err := d.remove(headerName); err != nil {
			return err
		}
	}
	if err := d.syncDir(); err != nil {
		return err
	}
	for _, name := range names {
		if name == headerName {
			continue
		}
		if err := d.remove(name); err != nil {
			return err
		}
	}
	return d.syncDir()
}

// ours reports whether a volume has files of that name.
func ours(name string) bool {
	switch name {
	case lockName, headerName, headerTemp, chainName, chainTemp, journalName, journalTemp, recentNames[0], recentNames[1]:
		return true
	}
	_, ok := layerOfName(name)
	return ok
}

// layerOfName returns the layer whose file has the name.
func layerOfName(name string) (ID, bool) {
	base, isData := strings.CutSuffix(name, ".data")
	if !isData {
		var isMap bool
		if base, isMap = strings.CutSuffix(name, ".map"); !isMap {
			return ID{}, false
		}
	}
	id, err := ParseID(base)
	return id, err == nil
}
