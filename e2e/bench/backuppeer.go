package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// A backupPeer is a program that backs up an image.
type backupPeer struct {
	name  string
	what  string   // for the legend
	needs []string // programs
	open  func(ctx context.Context, b *bench, p places) (repository, error)
}

// places are the files and folders that one peer works with in one round.
type places struct {
	image string // the file to back up; every peer of the round reads the same one
	home  string // folder for whatever the peer keeps beside its repository
	repo  string // folder for the repository, empty
}

// restored is where a peer that restores to a file puts the image. It is where
// restic and borg, which keep absolute paths, put it by themselves.
func (p places) restored() string { return filepath.Join(p.home, "restored", p.image) }

// A repository is a peer's place for backups during one round.
type repository interface {
	// change tells that the runs have been written to the image.
	change(context.Context, []run) error

	// prepare does what must come before backup but is not measured.
	prepare(ctx context.Context) error

	// backup saves the image as it is. n counts the backups of the round from 0.
	backup(ctx context.Context, n int) (cost, error)

	// restore brings back the newest of n backups.
	restore(ctx context.Context, n int) (cost, error)

	// compare reports an error unless what was restored is the image.
	compare(ctx context.Context, image *os.File) error

	close() error
}

var backupPeers = []backupPeer{
	{name: "varve", what: "volume, changes written through NBD", needs: []string{underTest, "nbdcopy"}, open: openVarveRepository("fastest")},
	{name: "varve-default", what: "the same with `--compression default`", needs: []string{underTest, "nbdcopy"}, open: openVarveRepository("default")},
	{name: "varve-s3", what: "as varve, " + countedS3About, needs: []string{underTest, "nbdcopy", gateway}, open: onS3(openVarveOnS3)},
	{name: "restic", what: "defaults", needs: []string{"restic"}, open: openRestic},
	{name: "restic-s3", what: "as restic, " + countedS3About, needs: []string{"restic", gateway}, open: onS3(openResticOnS3)},
	{name: "borg", what: "defaults, repokey-blake2", needs: []string{"borg"}, open: openBorg(nil)},
	{name: "borg-64k", what: "fixed chunks of 64 KiB, zstd 1, repokey-blake2", needs: []string{"borg"},
		open: openBorg([]string{"--chunker-params", "fixed,65536", "--compression", "zstd,1"})},
	{name: "qemu-img", what: "convert -c to qcow2 with zstd; no incremental", needs: []string{"qemu-img"}, open: openQemuImg},
	{name: "zstd", what: "level 1, one thread; no incremental", needs: []string{"zstd"}, open: openZstd},
}

// A commandRepository is a peer that is a program run once for each act.
type commandRepository struct {
	places
	env  []string
	save func(n int) []string // the command that makes backup n
	load func(n int) []string // the command that restores backup n
}

func (r *commandRepository) change(context.Context, []run) error { return nil }
func (r *commandRepository) prepare(context.Context) error       { return nil }
func (r *commandRepository) close() error                        { return nil }

func (r *commandRepository) backup(ctx context.Context, n int) (cost, error) {
	args := r.save(n)
	return task{env: r.env}.run(ctx, args[0], args[1:]...)
}

func (r *commandRepository) restore(ctx context.Context, n int) (cost, error) {
	if err := os.MkdirAll(filepath.Dir(r.restored()), 0o700); err != nil {
		return cost{}, err
	}
	args := r.load(n - 1)
	return task{env: r.env, dir: filepath.Join(r.home, "restored")}.run(ctx, args[0], args[1:]...)
}

func (r *commandRepository) compare(ctx context.Context, image *os.File) error {
	info, err := image.Stat()
	if err != nil {
		return err
	}
	f, err := os.Open(r.restored())
	if err != nil {
		return err
	}
	defer f.Close() // read only
	if got, err := f.Stat(); err != nil || got.Size() != info.Size() {
		return fmt.Errorf("the restored image is not %d bytes long: %v, %w", info.Size(), got, err)
	}
	return equal(ctx, f, image, info.Size())
}

func openRestic(ctx context.Context, b *bench, p places) (repository, error) {
	return newResticRepository(ctx, p, p.repo)
}

func openResticOnS3(ctx context.Context, b *bench, p places, s3 *countedS3) (repository, error) {
	return newResticRepository(ctx, p, "s3:"+s3.url+"/"+s3.bucket, gatewayEnv...)
}

func newResticRepository(ctx context.Context, p places, url string, env ...string) (repository, error) {
	r := &commandRepository{
		places: p,
		env: append([]string{"RESTIC_REPOSITORY=" + url, "RESTIC_PASSWORD=" + passphrase,
			"RESTIC_CACHE_DIR=" + filepath.Join(p.home, "cache")}, env...),
		save: func(int) []string { return []string{"restic", "backup", "--quiet", p.image} },
		load: func(int) []string {
			return []string{"restic", "restore", "--quiet", "latest", "--target", filepath.Join(p.home, "restored")}
		},
	}
	_, err := task{env: r.env}.run(ctx, "restic", "init")
	return r, err
}

func openBorg(options []string) func(context.Context, *bench, places) (repository, error) {
	return func(ctx context.Context, b *bench, p places) (repository, error) {
		r := &commandRepository{
			places: p,
			env:    []string{"BORG_PASSPHRASE=" + passphrase, "BORG_BASE_DIR=" + p.home},
			save: func(n int) []string {
				return append(append([]string{"borg", "create"}, options...), borgArchive(p, n), p.image)
			},
			load: func(n int) []string { return []string{"borg", "extract", "--sparse", borgArchive(p, n)} },
		}
		_, err := task{env: r.env}.run(ctx, "borg", "init", "--encryption=repokey-blake2", p.repo)
		return r, err
	}
}

func borgArchive(p places, n int) string { return fmt.Sprintf("%s::b%d", p.repo, n) }

// A singleFile is a peer that makes one file of the image each time.
type singleFile struct{ commandRepository }

// prepare removes the last backup, so that the next one is not measured while
// it replaces a file and does not count for less than it is.
func (r *singleFile) prepare(context.Context) error { return emptyFolder(r.repo) }

func openQemuImg(ctx context.Context, b *bench, p places) (repository, error) {
	file := filepath.Join(p.repo, "image.qcow2")
	return &singleFile{commandRepository{
		places: p,
		save: func(int) []string {
			return []string{"qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", p.image, file}
		},
		load: func(int) []string {
			return []string{"qemu-img", "convert", "-f", "qcow2", "-O", "raw", file, p.restored()}
		},
	}}, nil
}

func openZstd(ctx context.Context, b *bench, p places) (repository, error) {
	file := filepath.Join(p.repo, "image.zst")
	return &singleFile{commandRepository{
		places: p,
		save:   func(int) []string { return []string{"zstd", "-1", "-T1", "-q", p.image, "-o", file} },
		load:   func(int) []string { return []string{"zstd", "-d", "-q", "--sparse", file, "-o", p.restored()} },
	}}, nil
}

func emptyFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, entry.Name())))
	}
	return errors.Join(errs...)
}

// folderSize is the sum of the lengths of the files below a folder, and their
// number.
func folderSize(dir string) (bytes int64, files int, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		bytes += info.Size()
		files++
		return nil
	})
	return bytes, files, err
}
