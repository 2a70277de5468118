package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"varve/agent"
	"varve/layers"
	"varve/layers/qcow2"
	"varve/nbd"
)

// An imageOut writes an image to where a person says: a raw or qcow2 file,
// stdout, or an NBD export of some server.
type imageOut struct {
	*call
	act string // for messages: "volume export"
	to  string // a path, an NBD URI, or "-" for stdout
}

// imageOutFlags are those of commands that write an image.
func imageOutFlags(more ...cli.Flag) []cli.Flag {
	return append(more,
		&cli.StringFlag{Name: "format", Usage: "`FORMAT` of the file: raw or qcow2; by its name if left out"})
}

// isImageOut reports whether a destination can be no volume: names of volumes
// have no slash, and are no lone dash.
func isImageOut(to string) bool { return to == "-" || nbd.IsURI(to) || strings.Contains(to, "/") }

// check refuses a command line before anything is begun.
func (o *imageOut) check() error {
	format := o.String("format")
	if format != "" && !slices.Contains(imageFormats, format) {
		return usagef("%s: unknown format %q: there are raw and qcow2", o.act, format)
	}
	switch {
	case o.to != "-" && !nbd.IsURI(o.to):
		return checkDestination(o.act, o.to, o.Bool("force"))
	case format == "qcow2":
		return usagef("%s: qcow2 is written to files only: its parts lie in any order", o.act)
	case o.to == "-":
		if f, is := o.stdout.(interface{ Fd() uintptr }); is && term.IsTerminal(int(f.Fd())) {
			return usagef("%s: stdout is a terminal: send it to a file or a pipe", o.act)
		}
	case !o.Bool("force"):
		return &agent.Error{Reason: agent.Conflict, Message: fmt.Sprintf("%s to %s: what is in that export would be lost; --force overwrites it", o.act, o.to)}
	}
	return nil
}

// said is where to tell that all is done: not into the image.
func (o *imageOut) said() io.Writer {
	if o.to == "-" {
		return o.stderr
	}
	return o.stdout
}

// write copies all of an image.
func (o *imageOut) write(from layers.Layer) error {
	switch {
	case o.to == "-":
		return o.stream(from)
	case nbd.IsURI(o.to):
		return o.export(from.Size(), func(to sink) error {
			t := o.newTransfer(o.act, to, false, from.Size())
			defer t.finish()
			return t.layer(o.ctx, from)
		})
	case o.qcow2():
		return o.file(0, from.Size(), func(image *image) error { return o.writeQCOW2(image, from) }) // it grows as it is written
	}
	return o.file(from.Size(), from.Size(), func(image *image) error {
		t := o.newTransfer(o.act, image, true, from.Size())
		defer t.finish()
		return t.layer(o.ctx, from)
	})
}

// qcow2 reports whether a file is to be of that format, by --format or its name.
func (o *imageOut) qcow2() bool {
	if format := o.String("format"); format != "" {
		return format == "qcow2"
	}
	return strings.EqualFold(filepath.Ext(o.to), ".qcow2")
}

func (o *imageOut) writeQCOW2(image *image, from layers.Layer) error {
	t := o.newTransfer(o.act, image, true, from.Size())
	defer t.finish()
	_, err := qcow2.Write(o.ctx, image, from, qcow2.WriteOptions{Depth: transferDepth, Progress: t.bar.update})
	return err
}

// file lets fill write an image beside its place, of start bytes at first, and
// puts it there when it is whole. The message of a full disk tells size.
func (o *imageOut) file(start, size int64, fill func(*image) error) error {
	image, err := newImage(o.to, start)
	if err != nil {
		return err
	}
	defer image.abandon()
	err = fill(image)
	if err == nil {
		err = image.finish(o.Bool("force"))
	}
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w: the image needs up to %s on the file system of %s", err, formatBytes(size), filepath.Dir(o.to))
	}
	if err != nil {
		return fmt.Errorf("%w; %s is as it was before", err, o.to)
	}
	return nil
}

// export lets fill write size bytes over an export of some server. Of one that
// is larger the rest stays as it is.
func (o *imageOut) export(size int64, fill func(sink) error) error {
	to, err := nbd.Dial(o.ctx, o.to, nbd.ClientOptions{})
	if err != nil {
		return err
	}
	defer to.Close()
	if to.ReadOnly() {
		return &agent.Error{Reason: agent.Denied, Message: "the server's export is read-only"}
	}
	if to.Size() < size {
		return &agent.Error{Reason: agent.TooLarge, Message: fmt.Sprintf("the server's export has %d bytes, and %d are needed", to.Size(), size)}
	}
	if err := fill(to); err != nil {
		return err
	}
	return to.Flush()
}

// stream writes all bytes to stdout in order.
func (o *imageOut) stream(from layers.Layer) error {
	bar := newProgress(o.stderr, o.act, o.onTerminal())
	defer bar.finish()
	for piece, err := range layers.Scan(o.ctx, from, transferDepth) {
		if err != nil {
			return err
		}
		if piece.Kind == layers.Data {
			_, err = o.stdout.Write(piece.Bytes)
		} else {
			_, err = io.CopyN(o.stdout, zeroReader{}, piece.Len)
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
