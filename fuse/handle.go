package fuse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"varve/layers"
)

// complainEvery is how often the errors of one open image are logged.
const complainEvery = 10 * time.Second

// handles are the images that are open now. An image is open once, however
// many files are open on it.
type handles struct {
	base   context.Context // ends with the mount
	source Source
	log    *slog.Logger

	mu sync.Mutex
	m  map[layers.ID]*handle
}

// A handle is an image that is open or about to be. It is closed when it has
// neither files nor calls.
type handle struct {
	Handle // nil until ready is closed, and after an error
	image  Image
	err    error         // of the opening
	ready  chan struct{} // closed when the opening has ended

	warn rate.Sometimes

	// The set's mu guards these.
	files  int  // files of the mount that are open on it
	calls  int  // calls of its methods that run, among them its opening
	closed bool // nobody may use it any more
}

func newHandles(base context.Context, s Source, log *slog.Logger) *handles {
	return &handles{base: base, source: s, log: log, m: map[layers.ID]*handle{}}
}

// open returns the image's handle with one more file.
func (s *handles) open(ctx context.Context, image Image) (*handle, error) {
	s.mu.Lock()
	h := s.m[image.ID]
	if h == nil {
		h = &handle{
			image: image,
			ready: make(chan struct{}),
			warn:  rate.Sometimes{First: 1, Interval: complainEvery},
			calls: 1,
		}
		s.m[image.ID] = h
		go s.start(h)
	}
	h.files++
	s.mu.Unlock()

	if _, err := await(ctx, h.ready); err != nil {
		s.release(h)
		return nil, err
	}
	if h.err != nil {
		s.release(h)
		return nil, h.err
	}
	return h, nil
}

// start opens the image. After an error the next open tries again.
func (s *handles) start(h *handle) {
	ctx, cancel := context.WithTimeout(s.base, listTime)
	defer cancel()
	err := guard(func() (err error) {
		h.Handle, err = s.source.Open(ctx, h.image.ID)
		if err == nil && h.Size() != h.image.Size {
			err = fmt.Errorf("it has %d bytes, the list says %d", h.Size(), h.image.Size)
		}
		return err
	})
	if err != nil {
		h.err = fmt.Errorf("open image %s: %w", h.image.ID, err)
		if !errors.Is(err, fs.ErrNotExist) { // it may go between List and Open
			s.complain(h, h.err)
		}
		s.mu.Lock()
		delete(s.m, h.image.ID)
		s.mu.Unlock()
	}
	close(h.ready)
	s.end(h)
}

// begin counts a call of the handle's methods; end follows. It reports whether
// the handle may be used.
func (s *handles) begin(h *handle) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.closed {
		return false
	}
	h.calls++
	return true
}

func (s *handles) end(h *handle) {
	s.mu.Lock()
	h.calls--
	s.closeIdle(h)
}

// release gives back a file.
func (s *handles) release(h *handle) {
	s.mu.Lock()
	if h.files > 0 { // zero: releaseAll came first
		h.files--
	}
	s.closeIdle(h)
}

// releaseAll gives back the files that nobody will release: the mount has gone.
func (s *handles) releaseAll() {
	s.mu.Lock()
	all := make([]*handle, 0, len(s.m))
	for _, h := range s.m {
		h.files = 0
		all = append(all, h)
	}
	s.mu.Unlock()
	for _, h := range all {
		s.mu.Lock()
		s.closeIdle(h)
	}
}

// closeIdle unlocks mu, and closes the handle if nobody uses it.
func (s *handles) closeIdle(h *handle) {
	if h.files > 0 || h.calls > 0 || h.closed {
		s.mu.Unlock()
		return
	}
	h.closed = true
	if s.m[h.image.ID] == h {
		delete(s.m, h.image.ID)
	}
	s.mu.Unlock()
	if h.Handle == nil {
		return
	}
	if err := guard(h.Handle.Close); err != nil {
		s.complain(h, fmt.Errorf("close image %s: %w", h.image.ID, err))
	}
}

// complain logs an error, now and then.
func (s *handles) complain(h *handle, err error) {
	h.warn.Do(func() {
		attrs := append([]any{
			slog.String("volume", h.image.Volume),
			slog.String("name", h.image.Name),
			slog.String("id", h.image.ID.String()),
		}, logAttrs(err)...)
		s.log.Error("image of the mount", attrs...)
	})
}
