package kernel

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// LinkFolder has a symbolic link to each device that has a name.
const LinkFolder = "/dev/varve"

// Rename gives the device another link; without a name it has none.
func (d *Device) Rename(link string) error {
	d.linking.Lock()
	defer d.linking.Unlock()
	select {
	case <-d.gone:
		return nil
	default:
	}
	if link == d.o.Link {
		return nil
	}
	d.unlink()
	d.o.Link = link
	return d.link()
}

// link makes the device's link. One that shows another device is replaced: the
// name was given to this one last.
func (d *Device) link() error {
	if d.o.Link == "" {
		return nil
	}
	if err := os.MkdirAll(LinkFolder, 0o755); err != nil {
		return err
	}
	// The process's umask is not meant for /dev.
	if err := os.Chmod(LinkFolder, 0o755); err != nil {
		return err
	}
	name := filepath.Join(LinkFolder, d.o.Link)
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink("../"+filepath.Base(d.Path()), name)
}

// unlink removes the device's link, unless it is another's by now.
func (d *Device) unlink() {
	if d.o.Link == "" {
		return
	}
	name := filepath.Join(LinkFolder, d.o.Link)
	if target, err := os.Readlink(name); err == nil && filepath.Base(target) == filepath.Base(d.Path()) {
		os.Remove(name) // a link too many does no harm
	}
}
