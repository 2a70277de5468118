package main

import (
	"context"
	"path/filepath"
)

// A mountPeer is a way to show a backup as a file.
type mountPeer struct {
	name  string
	what  string // for the legend
	of    string // the backup peer whose repository it shows
	needs []string
	open  func(ctx context.Context, b *bench, p mountPlace) (mountCommand, error)
}

// A mountPlace is what one mount works with.
type mountPlace struct {
	places
	cold  string // an empty folder, for caches
	point string // an empty folder, to mount on
}

// A mountCommand shows a backup at a mount point.
type mountCommand struct {
	env    []string
	args   []string // a program that stays, unless there is a server
	file   string   // the image, below the mount point
	server *server  // what the mount is served by, if args only tell it to
}

// mountPeers are all cold: no cache on disk, and a program that has just begun.
// Their secrets are passphrases.
var mountPeers = []mountPeer{
	{name: "varve", of: "varve", what: "`varve --target URL mount`, without a daemon", needs: []string{underTest}, open: openVarveMount("file://")},
	{name: "varve-serve", of: "varve", what: "`varve mount`, of a daemon that has just begun", needs: []string{underTest}, open: openServedMount},
	{name: "restic", of: "restic", what: "`restic mount`, its cache empty", needs: []string{"restic"}, open: openResticMount("")},
	{name: "borg", of: "borg", what: "`borg mount` of the archive, chunks of 2 MiB on average", needs: []string{"borg"}, open: openBorgMount},
	{name: "borg-64k", of: "borg-64k", what: "the same, fixed chunks of 64 KiB", needs: []string{"borg"}, open: openBorgMount},
	{name: "varve-s3", of: "varve", what: "as varve, from " + slowS3About, needs: []string{underTest, gateway}, open: openVarveMount("s3://")},
	{name: "restic-s3", of: "restic", what: "as restic, from the same", needs: []string{"restic", gateway}, open: openResticMount("s3:")},
}

// openVarveMount mounts the repository in its folder, or the same files from
// the slow S3 server.
func openVarveMount(scheme string) func(context.Context, *bench, mountPlace) (mountCommand, error) {
	return func(ctx context.Context, b *bench, p mountPlace) (mountCommand, error) {
		binary, err := filepath.Abs(b.varve)
		m := mountCommand{env: []string{"VARVE_PASSPHRASE=" + passphrase}, file: varveFile(p.point)}
		url := scheme + p.repo
		if scheme == "s3://" {
			url = scheme + filepath.Base(p.repo) + "?region=us-east-1&endpoint=" + b.slow.url
			m.env = append(m.env, gatewayEnv...)
		}
		m.args = []string{binary, "--target", url, "mount", p.point}
		return m, err
	}
}

func varveFile(point string) string {
	return filepath.Join(point, exportName, backupName(mountedBackup), "disk.raw")
}

func openServedMount(ctx context.Context, b *bench, p mountPlace) (mountCommand, error) {
	d, err := startDaemon(ctx, b, p.home)
	if err != nil {
		return mountCommand{}, err
	}
	return mountCommand{env: d.env(), args: []string{d.binary, "mount", p.point}, file: varveFile(p.point), server: d.server}, nil
}

func openResticMount(scheme string) func(context.Context, *bench, mountPlace) (mountCommand, error) {
	return func(_ context.Context, b *bench, p mountPlace) (mountCommand, error) {
		m := mountCommand{
			env:  []string{"RESTIC_PASSWORD=" + passphrase, "RESTIC_REPOSITORY=" + p.repo, "RESTIC_CACHE_DIR=" + p.cold},
			args: []string{"restic", "mount", p.point},
			file: filepath.Join(p.point, "snapshots", "latest", p.image),
		}
		if scheme != "" {
			m.env = append(m.env, "RESTIC_REPOSITORY="+scheme+b.slow.url+"/"+filepath.Base(p.repo))
			m.env = append(m.env, gatewayEnv...)
		}
		return m, nil
	}
}

func openBorgMount(_ context.Context, _ *bench, p mountPlace) (mountCommand, error) {
	return mountCommand{
		env:  []string{"BORG_PASSPHRASE=" + passphrase, "BORG_BASE_DIR=" + p.cold},
		args: []string{"borg", "mount", "--foreground", borgArchive(p.places, mountedBackup), p.point},
		file: filepath.Join(p.point, p.image),
	}, nil
}
