package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"varve/agent"
	"varve/agent/api"
	"varve/layers"
	"varve/layers/qcow2"
	"varve/nbd"
)

const (
	volumeUnit = 512 // bytes: a volume's size is a multiple

	// The daemon learns a little later than the client that a connection has
	// ended; until then what it had open is in use.
	settleWithin = 20 * time.Second
	settleEvery  = 20 * time.Millisecond
)

func (p *program) importVerb() *cli.Command {
	return p.verb("import", "NAME SOURCE", "make a volume of an image: a raw or qcow2 file, - for raw on stdin, or an NBD URI",
		outputFlags(
			&cli.StringFlag{Name: "format", Value: "auto", Usage: "`FORMAT` of the image: raw, qcow2, or auto, which looks at its first bytes"},
			&cli.StringFlag{Name: "size", Usage: "`SIZE` of the volume, if larger than the image; needed if stdin is a pipe"},
			&cli.StringFlag{Name: "description", Usage: "`TEXT` for people"},
			&cli.BoolFlag{Name: "allow-backing", Usage: "read a qcow2 image's backing file too, if it lies in the image's folder"}),
		(*call).volumeImport)
}

// A source is what is imported: a layer, or a stream.
type source struct {
	layer  layers.Layer
	stream io.Reader
	size   int64 // bytes; of a stream the most that may come, -1: not known
	close  func()
}

func (c *call) volumeImport() error {
	name, from := c.args[0], c.args[1]
	out, err := c.output()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	s, err := c.openSource(from)
	if err != nil {
		return fmt.Errorf("import %s: %w", from, err)
	}
	defer s.close()
	size, err := c.importSize(from, s.size)
	if err != nil {
		return err
	}
	v, err := client.CreateVolume(c.ctx, api.NewVolume{Name: name, Description: c.String("description"), SizeBytes: size, Importing: true})
	if err != nil {
		return err
	}
	if err := c.fill(client, v, s); err != nil {
		return c.dropHalf(client, v, fmt.Errorf("import %s: %w", from, err))
	}
	c.settle(func(ctx context.Context) error {
		if v, err = client.Volume(ctx, v.ID); err == nil && v.Status == "in-use" {
			return &agent.Error{Reason: agent.InUse, Message: "still in use"}
		}
		return err
	})
	if err != nil {
		return err
	}
	return out.show(c.stdout, volumeFields(v))
}

func (c *call) openSource(from string) (source, error) {
	format := c.String("format")
	if format != "auto" && !slices.Contains(imageFormats, format) {
		return source{}, usagef("unknown format %q: there are auto, raw and qcow2", format)
	}
	if from != "-" && !nbd.IsURI(from) {
		image, err := openImage(from, format, c.Bool("allow-backing"))
		if err != nil {
			return source{}, err
		}
		return source{layer: image, size: image.Size(), close: image.Close}, nil
	}
	if format == "qcow2" {
		return source{}, usagef("qcow2 is read from files only: its parts lie in any order")
	}
	if from == "-" {
		return c.openStdin(format)
	}
	export, err := nbd.Dial(c.ctx, from, nbd.ClientOptions{})
	if err != nil {
		return source{}, err
	}
	return source{layer: export, size: export.Size(), close: func() { export.Close() }}, nil
}

// openStdin takes the size from the file that stdin is, if it is one. What looks
// like qcow2 is only taken for raw if that is said.
func (c *call) openStdin(format string) (source, error) {
	s := source{size: -1, close: func() {}}
	if info, err := c.stdin.Stat(); err == nil && info.Mode().IsRegular() {
		if at, err := c.stdin.Seek(0, io.SeekCurrent); err == nil {
			s.size = max(0, info.Size()-at)
		}
	}
	r := bufio.NewReaderSize(interruptible(c.ctx, c.stdin), layers.ScanPiece)
	if start, _ := r.Peek(len(qcow2.Magic)); format == "auto" && string(start) == qcow2.Magic {
		return s, usagef("this is a qcow2 image, which is read from files only; --format raw imports it as it stands")
	}
	s.stream = r
	return s, nil
}

// interruptible is r, but a read ends with ctx. What waits in r then waits on
// until the program ends, as nothing else can be done about a pipe.
func interruptible(ctx context.Context, r io.Reader) io.Reader {
	out, in := io.Pipe()
	context.AfterFunc(ctx, func() { out.CloseWithError(ctx.Err()) })
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{in}, struct{ io.Reader }{r}, make([]byte, layers.ScanPiece))
		in.CloseWithError(err) // nil: the end
	}()
	return reader{ctx, out}
}

// A reader says why a context ended its pipe.
type reader struct {
	ctx context.Context
	io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err == io.ErrClosedPipe {
		err = r.ctx.Err()
	}
	return n, err
}

// importSize is the size of the volume: that of the image, or --size.
func (c *call) importSize(from string, image int64) (int64, error) {
	if c.String("size") == "" {
		if image < 0 {
			return 0, usagef("volume import: a pipe does not tell its size: give one with --size, such as --size 10G")
		}
		if image == 0 {
			return 0, usagef("volume import: %s is empty: give a size with --size", from)
		}
		return (image + volumeUnit - 1) / volumeUnit * volumeUnit, nil
	}
	size, err := parseSize(c.String("size"))
	if err != nil {
		return 0, err
	}
	if size < image {
		return 0, usagef("volume import: --size %s is %d bytes, and %s has %d: an image is not cut", c.String("size"), size, from, image)
	}
	return size, nil
}

// fill writes the source into a new volume, through the daemon's NBD socket,
// and says when it is there. If this program ends before, the daemon sees that
// the connection goes without it.
func (c *call) fill(client *api.Client, v api.Volume, s source) error {
	volume, err := c.dialExport(v, v.ID)
	if err != nil {
		return err
	}
	defer volume.Close()
	if _, err := client.BeginImport(c.ctx, v.ID); err != nil {
		return err
	}
	total := s.size
	if total < 0 {
		total = int64(v.SizeBytes)
	}
	t := c.newTransfer("volume import", volume, true, total)
	defer t.finish()
	if s.layer != nil {
		err = t.layer(c.ctx, s.layer)
	} else {
		err = t.wholeStream(c.ctx, s.stream, int64(v.SizeBytes))
	}
	if err != nil {
		return err
	}
	if err := volume.Flush(); err != nil {
		return err
	}
	_, err = client.EndImport(c.ctx, v.ID)
	return err
}

// wholeStream is stream, and refuses what is longer than size.
func (t *transfer) wholeStream(ctx context.Context, from io.Reader, size int64) error {
	n, err := t.stream(ctx, from, size)
	if err != nil || n < size {
		return err
	}
	if more, err := io.ReadFull(from, make([]byte, 1)); more > 0 {
		return usagef("there is more on stdin than the %d bytes of the volume: give a larger --size", size)
	} else if err != io.EOF {
		return err
	}
	return nil
}

// dialExport connects to what the daemon exports under the id of v or of a
// snapshot of it: names may be ambiguous.
func (c *call) dialExport(v api.Volume, id string) (*nbd.Client, error) {
	address, err := nbd.ParseURI(v.URI)
	if err != nil {
		return nil, err
	}
	return nbd.Dial(c.ctx, volumeURI(address.Host, id), nbd.ClientOptions{})
}

// dropHalf deletes a volume that could not be filled because of why, also after
// Ctrl-C, and returns what the person must know.
func (c *call) dropHalf(client *api.Client, v api.Volume, why error) error {
	err := c.settle(func(ctx context.Context) error { return client.DeleteVolume(ctx, v.ID) })
	if err != nil {
		return fmt.Errorf("%v; the half-made volume %s is left: %w; delete it with: varve volume delete %s", why, v.Name, err, v.ID)
	}
	return fmt.Errorf("%w; the half-made volume %s was deleted again", why, v.Name)
}

// settle tries an act until what it needs is no longer in use. It does not end
// with c.ctx, as it puts things in order after that.
func (c *call) settle(act func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), settleWithin)
	defer cancel()
	for {
		err := act(ctx)
		if err == nil || !inUse(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(settleEvery):
		}
	}
}

func inUse(err error) bool {
	var (
		refused *api.Error
		other   *agent.Error
	)
	return errors.As(err, &refused) && refused.Reason == agent.InUse || errors.As(err, &other) && other.Reason == agent.InUse
}
