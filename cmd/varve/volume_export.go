package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"varve/agent"
	"varve/agent/api"
	"varve/layers"
	"varve/layers/qcow2"
	"varve/nbd"
)

func (p *program) exportVerb() *cli.Command {
	command := p.verb("export", "VOLUME[@SNAPSHOT] DESTINATION",
		"write a volume or snapshot to a raw or qcow2 file, to stdout as raw with -, or to an NBD URI",
		append(quiesceFlags(),
			&cli.StringFlag{Name: "format", Usage: "`FORMAT` of the file: raw or qcow2; by its name if left out"},
			&cli.BoolFlag{Name: "force", Usage: "overwrite the destination"},
		), (*call).volumeExport)
	command.Description = "A volume may be in use: a temporary snapshot is exported, so that the image is of one instant, as after a power cut. " +
		"It is deleted at the end; if this program is killed, one whose name begins with " + exportSnapshot + " stays. " +
		"What a virtual machine keeps in memory and has not written is not in it, unless a hook sees to that. A file appears under its name only when it is whole."
	return command
}

// exportSnapshot is how the names of temporary snapshots begin.
const exportSnapshot = "export-"

func (c *call) volumeExport() error {
	ref, to := c.args[0], c.args[1]
	client, err := c.client()
	if err != nil {
		return err
	}
	if err := c.checkExport(to); err != nil {
		return err
	}
	s, temporary, err := c.exported(client, ref)
	if err != nil {
		return err
	}
	err = c.exportTo(client, s, to)
	if temporary {
		drop := c.settle(func(ctx context.Context) error { return client.DeleteSnapshot(ctx, s.ID) })
		if drop != nil {
			err = errors.Join(err, fmt.Errorf("the temporary snapshot %s is left: %w; delete it with: varve snapshot delete %s", s.Name, drop, s.ID))
		}
	}
	if err != nil {
		return fmt.Errorf("export %s to %s: %w", ref, to, err)
	}
	said := c.stdout
	if to == "-" {
		said = c.stderr
	}
	fmt.Fprintf(said, "exported %s to %s, %d bytes\n", ref, to, s.SizeBytes)
	return nil
}

// checkExport refuses a command line before anything is begun.
func (c *call) checkExport(to string) error {
	format := c.String("format")
	if format != "" && !slices.Contains(imageFormats, format) {
		return usagef("volume export: unknown format %q: there are raw and qcow2", format)
	}
	switch {
	case to != "-" && !nbd.IsURI(to):
		return checkDestination("export", to, c.Bool("force"))
	case format == "qcow2":
		return usagef("volume export: qcow2 is written to files only: its parts lie in any order")
	case to == "-":
		if f, is := c.stdout.(interface{ Fd() uintptr }); is && term.IsTerminal(int(f.Fd())) {
			return usagef("volume export: stdout is a terminal: send it to a file or a pipe")
		}
	case !c.Bool("force"):
		return &agent.Error{Reason: agent.Conflict, Message: fmt.Sprintf("export to %s: what is in that export would be lost; --force overwrites it", to)}
	}
	return nil
}

// exported is the snapshot to export: the one named, or a new one.
func (c *call) exported(client *api.Client, ref string) (s api.Snapshot, temporary bool, err error) {
	if strings.Contains(ref, "@") {
		s, err = client.Snapshot(c.ctx, ref)
		return s, false, err
	}
	quiesce, err := c.quiesce()
	if err != nil {
		return s, false, err
	}
	s, err = client.CreateSnapshot(c.ctx, api.NewSnapshot{
		VolumeID: ref, Name: exportSnapshot + time.Now().UTC().Format("20060102T150405.000"),
		Description: "temporary, of varve volume export", Quiesce: quiesce,
	})
	if err == nil {
		c.tellNote(s)
	}
	return s, true, err
}

func (c *call) exportTo(client *api.Client, s api.Snapshot, to string) error {
	v, err := client.Volume(c.ctx, s.VolumeID)
	if err != nil {
		return err
	}
	from, err := c.dialExport(v, s.ID)
	if err != nil {
		return err
	}
	defer from.Close()
	switch {
	case to == "-":
		return c.exportStream(from)
	case nbd.IsURI(to):
		return c.exportNBD(from, to)
	}
	return c.exportFile(from, to)
}

// exportFile writes an image beside its place and puts it there when it is
// whole.
func (c *call) exportFile(from *nbd.Client, path string) error {
	format := c.String("format")
	if format == "" {
		format = "raw"
		if strings.EqualFold(filepath.Ext(path), ".qcow2") {
			format = "qcow2"
		}
	}
	size := int64(0) // qcow2 grows as it is written
	if format == "raw" {
		size = from.Size()
	}
	image, err := newImage(path, size)
	if err != nil {
		return err
	}
	defer image.abandon()
	t := c.newTransfer("volume export", image, true, from.Size())
	if format == "raw" {
		err = t.layer(c.ctx, from)
	} else {
		_, err = qcow2.Write(c.ctx, image, from, qcow2.WriteOptions{Depth: transferDepth, Progress: t.bar.update})
	}
	t.finish()
	if err == nil {
		err = image.finish(c.Bool("force"))
	}
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w: the image needs up to %s on the file system of %s", err, formatBytes(from.Size()), filepath.Dir(path))
	}
	return err
}

// exportNBD writes over an export of some server. Of one that is larger the
// rest stays as it is.
func (c *call) exportNBD(from *nbd.Client, uri string) error {
	to, err := nbd.Dial(c.ctx, uri, nbd.ClientOptions{})
	if err != nil {
		return err
	}
	defer to.Close()
	if to.ReadOnly() {
		return &agent.Error{Reason: agent.Denied, Message: "the server's export is read-only"}
	}
	if to.Size() < from.Size() {
		return &agent.Error{Reason: agent.TooLarge, Message: fmt.Sprintf("the server's export has %d bytes, and %d are needed", to.Size(), from.Size())}
	}
	t := c.newTransfer("volume export", to, false, from.Size())
	defer t.finish()
	if err := t.layer(c.ctx, from); err != nil {
		return err
	}
	return to.Flush()
}

// exportStream writes all bytes to stdout in order.
func (c *call) exportStream(from *nbd.Client) error {
	bar := newProgress(c.stderr, "volume export", c.onTerminal())
	defer bar.finish()
	for piece, err := range layers.Scan(c.ctx, from, transferDepth) {
		if err != nil {
			return err
		}
		if piece.Kind == layers.Data {
			_, err = c.stdout.Write(piece.Bytes)
		} else {
			_, err = io.CopyN(c.stdout, zeroReader{}, piece.Len)
		}
		if err != nil {
			return err
		}
		bar.update(piece.End(), from.Size())
	}
	return nil
}

// A zeroReader reads as zeros without end.
type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
