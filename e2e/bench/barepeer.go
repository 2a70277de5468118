package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// nullPeers are servers with a device that does nothing.
var nullPeers = []nbdPeer{
	{name: "varve null", what: "ours, a device that does nothing", needs: []string{bareServer}, open: openBare("varve")},
	{name: "nbdkit null", what: "nbdkit, null plugin", needs: []string{"nbdkit"}, open: openNbdkitPlugin("null")},
	{name: "qemu null", what: "qemu-nbd, null-co driver", needs: []string{"qemu-nbd"}, open: openQemuNull},
	{name: "go-nbd null", what: "go-nbd's server, the device of the first", needs: []string{bareServer}, open: openBare("go-nbd")},
}

// filePeers are servers with a raw file, and what comes nearest beside it:
// volumes with layers and memory.
var filePeers = []nbdPeer{
	{name: "varve file", what: "varve nbd FILE", needs: []string{underTest}, open: openVarveFile},
	{name: "varve+10", what: "varve serve, volume with 10 snapshots", needs: []string{underTest}, layers: 10, open: openVarve},
	{name: "nbdkit file", what: "nbdkit, file plugin", needs: []string{"nbdkit"}, open: openNbdkit},
	{name: "nbdkit memory", what: "nbdkit, memory plugin", needs: []string{"nbdkit"}, memory: true, open: openNbdkitPlugin("memory")},
	{name: "qemu raw", what: "qemu-nbd, raw", needs: []string{"qemu-nbd"}, open: openRaw},
	{name: "qcow2+10", what: "qemu-nbd, qcow2 with 10 backing files", needs: []string{"qemu-nbd", "qemu-img"}, layers: 10, open: openQcow2},
	{name: "nbd-server", what: "nbd-server", needs: []string{newerServer}, open: openNBDServer},
	{name: "go-nbd file", what: "go-nbd's server, its file backend", needs: []string{bareServer}, open: openGoNBDFile},
}

// tlsPeers are nullPeers that speak TLS.
var tlsPeers = []nbdPeer{
	{name: "varve TLS", what: "ours", needs: []string{bareServer}, open: openSecure(func(b *bench, dir, socket string, size byteSize) []string {
		return []string{b.bare(), "-tls", dir, "varve", socket, bytesOf(size)}
	})},
	{name: "nbdkit TLS", what: "nbdkit, null plugin", needs: []string{"nbdkit"}, open: openSecure(func(_ *bench, dir, socket string, size byteSize) []string {
		return []string{"nbdkit", "--foreground", "--tls=require", "--tls-certificates=" + dir, "--unix", socket, "null", bytesOf(size)}
	})},
	{name: "qemu TLS", what: "qemu-nbd, null-co driver", needs: []string{"qemu-nbd"}, open: openSecure(func(_ *bench, dir, socket string, size byteSize) []string {
		return append([]string{"qemu-nbd", "--object", "tls-creds-x509,id=tls0,endpoint=server,verify-peer=off,dir=" + dir, "--tls-creds=tls0"},
			qemuNull(socket, size)...)
	})},
}

// bytesOf is a size in the form that every program reads.
func bytesOf(size byteSize) string { return fmt.Sprint(int64(size)) }

type opener = func(ctx context.Context, b *bench, dir string, size byteSize) (export, error)

func openBare(kind string) opener {
	return func(ctx context.Context, b *bench, dir string, size byteSize) (export, error) {
		return openServer(ctx, dir, func(socket string) []string { return []string{b.bare(), kind, socket, bytesOf(size)} })
	}
}

func openGoNBDFile(ctx context.Context, b *bench, dir string, size byteSize) (export, error) {
	return openFile(ctx, dir, size, func(file, socket string) []string { return []string{b.bare(), "go-nbd", socket, file} })
}

func openNbdkitPlugin(plugin string) opener {
	return func(ctx context.Context, _ *bench, dir string, size byteSize) (export, error) {
		return openServer(ctx, dir, func(socket string) []string {
			return []string{"nbdkit", "--foreground", "--unix", socket, plugin, bytesOf(size)}
		})
	}
}

func openQemuNull(ctx context.Context, _ *bench, dir string, size byteSize) (export, error) {
	return openServer(ctx, dir, func(socket string) []string { return append([]string{"qemu-nbd"}, qemuNull(socket, size)...) })
}

// qemuNull are the arguments for a device of QEMU that does nothing at all: if it
// were to read as zeros, replies would say so instead of carrying them.
func qemuNull(socket string, size byteSize) []string {
	return []string{"--persistent", "--shared=16", "--export-name=" + exportName, "--socket=" + socket,
		"--image-opts", "driver=null-co,size=" + bytesOf(size)}
}

func openVarveFile(ctx context.Context, b *bench, dir string, size byteSize) (export, error) {
	return openFile(ctx, dir, size, func(file, socket string) []string {
		return []string{b.varve, "nbd", "--format", "raw", "--listen", "unix:" + socket, file}
	})
}

// newerServer is nbd-server of Debian 13: that of Debian 12 cannot stay in the
// foreground.
const newerServer = "nbd-server"

// newer is the command line, without arguments, of a program that e2e/peers.sh
// has unpacked. It runs with the dynamic linker that comes with it.
func (o *options) newer(program string) []string {
	root := filepath.Join(o.tools, "peers")
	linkers, _ := filepath.Glob(filepath.Join(root, "usr/lib*/ld-linux-*")) // the patterns are well formed
	libraries, _ := filepath.Glob(filepath.Join(root, "usr/lib/*-linux-gnu"))
	path := filepath.Join(root, "usr/bin", program)
	if len(linkers) == 0 {
		return []string{path}
	}
	return []string{linkers[0], "--library-path", strings.Join(libraries, ":"), path}
}

func openNBDServer(ctx context.Context, b *bench, dir string, size byteSize) (export, error) {
	config := filepath.Join(dir, "config")
	text := fmt.Sprintf("[generic]\nunixsock=%s\n[%s]\nexportname=%s\nflush=true\nfua=true\ntrim=true\n",
		filepath.Join(dir, socketName), exportName, filepath.Join(dir, fileName))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return openFile(ctx, dir, size, func(_, _ string) []string {
		return append(b.newer(newerServer), "-n", "-C", config, "-p", filepath.Join(dir, "pid"))
	})
}

// openSecure starts a server with the certificates of this run.
func openSecure(command func(b *bench, certificates, socket string, size byteSize) []string) opener {
	return func(ctx context.Context, b *bench, dir string, size byteSize) (export, error) {
		certificates := filepath.Join(b.disk, "certificates")
		if _, err := os.Stat(certificates); errors.Is(err, os.ErrNotExist) {
			err = makeCertificates(certificates)
			if err != nil {
				return nil, err
			}
		}
		e, err := openServer(ctx, dir, func(socket string) []string { return command(b, certificates, socket, size) })
		if err != nil {
			return nil, err
		}
		e.secure = certificates
		return e, nil
	}
}
