package testbed

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// The guest of a virtual machine is a kernel from Debian's archive, which
// e2e/setup.sh unpacks into the folder .tools, and an initramfs that is made
// here of this machine's own programs. Nothing in it is installed anywhere.

// guestPrograms are the programs of this machine that a guest has besides
// busybox, with the names that they have there if those are not their own.
var guestPrograms = []string{
	"dash", "nbd-client", "mke2fs", "e2fsck", "resize2fs", "mkfs.xfs", "xfs_repair", "xfs_db", "xfs_admin", "xfs_growfs", "fstrim", "fsfreeze",
}

// guestLinks are other names of programs: link -> target.
var guestLinks = map[string]string{
	"bin/sh":        "dash", // busybox's prefers its own applets to programs
	"bin/mkfs.ext4": "mke2fs",
}

// guestModules are the kernel modules that a guest loads at its start. The
// module nbd is left to the scripts.
var guestModules = []string{"virtio_pci", "virtio_blk", "virtio_net", "xfs", "loop", "fuse"}

// carriedModules are those that lie ready in the guest.
var carriedModules = []string{"nbd"}

// guestInit is the first process of a guest. What comes before GUEST-UP is the
// kernel's talk.
const guestInit = `#!/bin/sh
export PATH=/sbin:/bin:/usr/sbin:/usr/bin HOME=/root
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mount -t tmpfs none /run
mount -t tmpfs none /tmp
for module in $(cat /modules); do insmod $module; done
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
	ip addr add 10.0.2.15/24 dev eth0
	ip link set eth0 up
fi
echo "GUEST-UP"
sh -eu /script
echo "GUEST-RC=$?"
sync
echo o >/proc/sysrq-trigger
sleep 60
`

// A guestImage is what all guests have in common.
type guestImage struct {
	kernel string // file
	initrd []byte // a cpio archive, which others may follow
}

// kernelFolder is where e2e/setup.sh unpacks the kernel.
func kernelFolder() (string, error) {
	root, err := moduleRoot()
	return filepath.Join(root, ".tools", "kernel"), err
}

// buildGuest makes the image. An error that wraps os.ErrNotExist says that
// this machine lacks something.
func buildGuest() (*guestImage, error) {
	folder, err := kernelFolder()
	if err != nil {
		return nil, err
	}
	kernels, _ := filepath.Glob(filepath.Join(folder, "boot", "vmlinuz-*")) // the pattern is good
	if len(kernels) == 0 {
		return nil, fmt.Errorf("a kernel in %s: %w", folder, os.ErrNotExist)
	}
	version := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	var archive cpio
	for _, dir := range []string{"dev", "proc", "sys", "run", "tmp", "mnt", "root", "var/lib"} {
		archive.folder(dir)
	}
	if err := addModules(&archive, filepath.Join(folder, "lib", "modules", version)); err != nil {
		return nil, err
	}
	if err := addPrograms(&archive); err != nil {
		return nil, err
	}
	archive.file("init", 0o755, []byte(guestInit))
	return &guestImage{kernel: kernels[0], initrd: archive.bytes()}, nil
}

// addModules adds the modules, with what they depend on, and the list of those
// that init loads.
func addModules(archive *cpio, folder string) error {
	needs, err := readModulesDep(filepath.Join(folder, "modules.dep"))
	if err != nil {
		return err
	}
	loaded, err := modulesInOrder(needs, guestModules)
	if err != nil {
		return err
	}
	carried, err := modulesInOrder(needs, carriedModules)
	if err != nil {
		return err
	}
	var list strings.Builder
	for _, path := range slices.Concat(loaded, carried) {
		data, err := os.ReadFile(filepath.Join(folder, path))
		if err != nil {
			return err
		}
		name := "lib/modules/" + filepath.Base(path)
		archive.file(name, 0o644, data)
		if slices.Contains(loaded, path) {
			fmt.Fprintf(&list, "/%s\n", name)
		}
	}
	archive.file("modules", 0o644, []byte(list.String()))
	return nil
}

// readModulesDep reads the output of depmod: the files that each module's file
// needs, the last of them first.
func readModulesDep(path string) (map[string][]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	needs := map[string][]string{}
	for line := range strings.Lines(string(data)) {
		file, rest, _ := strings.Cut(line, ":")
		needs[file] = strings.Fields(rest)
	}
	return needs, nil
}

// modulesInOrder returns the files of modules and of what they need, in an
// order in which they can be loaded.
func modulesInOrder(needs map[string][]string, names []string) ([]string, error) {
	var order []string
	for _, name := range names {
		file := ""
		for path := range needs {
			if filepath.Base(path) == name+".ko" {
				file = path
			}
		}
		if file == "" {
			return nil, fmt.Errorf("the kernel's module %s: %w", name, os.ErrNotExist)
		}
		before := slices.Clone(needs[file])
		slices.Reverse(before)
		for _, path := range append(before, file) {
			if !slices.Contains(order, path) {
				order = append(order, path)
			}
		}
	}
	return order, nil
}

// addPrograms adds busybox with a link for each of its applets, and
// guestPrograms with their libraries.
func addPrograms(archive *cpio) error {
	busybox, err := find("busybox")
	if err != nil {
		return err
	}
	if err := archive.copy("bin/busybox", busybox); err != nil {
		return err
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("busybox --list: %w", err)
	}
	taken := map[string]bool{"busybox": true}
	for link, target := range guestLinks {
		archive.link(link, target)
		taken[filepath.Base(link)] = true
	}
	for _, name := range guestPrograms {
		path, err := find(name)
		if err != nil {
			return err
		}
		if err := addProgram(archive, path, name); err != nil {
			return err
		}
		taken[name] = true
	}
	for _, applet := range strings.Fields(string(applets)) {
		if !taken[applet] {
			archive.link("bin/"+applet, "busybox")
		}
	}
	config, err := os.ReadFile("/etc/mke2fs.conf")
	if err != nil {
		return err
	}
	archive.file("etc/mke2fs.conf", 0o644, config)
	// A script of xfsprogs starts its programs here.
	archive.link("sbin/dash", "../bin/dash")
	return nil
}

// addProgram adds a program to bin, and its libraries where its loader looks
// for them. A script has none.
func addProgram(archive *cpio, path, name string) error {
	if err := archive.copy("bin/"+name, path); err != nil {
		return err
	}
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		return nil // a script, or linked statically
	}
	for _, word := range strings.Fields(string(out)) {
		if !strings.HasPrefix(word, "/") {
			continue
		}
		if err := archive.copy(word[1:], word); err != nil {
			return err
		}
	}
	return nil
}

// cpio is an archive in the format newc, which the kernel unpacks: cpio(5),
// "New ASCII Format". Each name is added once, and the first counts; folders on
// the way to it are made.
type cpio struct {
	out   bytes.Buffer
	names map[string]bool
}

func (c *cpio) folder(name string) { c.add(name, 0o040755, nil) }

func (c *cpio) link(name, target string) { c.add(name, 0o120777, []byte(target)) }

func (c *cpio) file(name string, mode uint32, data []byte) { c.add(name, 0o100000|mode, data) }

// copy adds a file of this machine.
func (c *cpio) copy(name, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	c.file(name, 0o755, data)
	return nil
}

func (c *cpio) add(name string, mode uint32, data []byte) {
	if c.names == nil {
		c.names = map[string]bool{}
	}
	if c.names[name] {
		return
	}
	for i, r := range name {
		if r == '/' {
			c.add(name[:i], 0o040755, nil)
		}
	}
	c.names[name] = true
	inode := len(c.names)
	fmt.Fprintf(&c.out, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	c.out.WriteString(name)
	c.out.WriteByte(0)
	c.pad()
	c.out.Write(data)
	c.pad()
}

// pad fills up to a multiple of 4 bytes.
func (c *cpio) pad() {
	for c.out.Len()%4 != 0 {
		c.out.WriteByte(0)
	}
}

// bytes ends the archive.
func (c *cpio) bytes() []byte {
	c.add("TRAILER!!!", 0, nil)
	return c.out.Bytes()
}

// writeInitrd writes the image and what one guest has besides.
func (g *guestImage) writeInitrd(path string, own *cpio) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for _, part := range [][]byte{g.initrd, own.bytes()} {
		if _, err := io.Copy(f, bytes.NewReader(part)); err != nil {
			return err
		}
	}
	return nil
}
