package fuse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Options say how to mount. The zero value will do.
type Options struct {
	// AllowOther lets other users look into the mount too: all images are then
	// readable for everybody on this machine. Users who are not root need
	// user_allow_other in /etc/fuse.conf for it.
	AllowOther bool

	// Log gets what happens behind the mount; nil is slog.Default().
	Log *slog.Logger
}

// A Server is a mount. Its methods may be called concurrently.
type Server struct {
	dir    string
	mount  mount
	log    *slog.Logger
	cancel context.CancelFunc
	done   chan struct{} // closed when nobody can reach the mount any more

	mu sync.Mutex // held by detach: two that run at once would see each other's traces
}

// Mount shows what s has in the folder dir, which must exist and be empty,
// until it is unmounted; the end of ctx unmounts it.
//
// A mount that a Varve left there when it died is taken over. Anything else that
// is mounted there is an error, as is a missing /dev/fuse or fusermount3; the
// error says what to do.
func Mount(ctx context.Context, dir string, s Source, o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	server, err := newServer(ctx, dir, s, o)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	return server, nil
}

func newServer(ctx context.Context, dir string, src Source, o Options) (*Server, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	path, err := prepare(ctx, dir, o.Log)
	if err != nil {
		return nil, err
	}
	fd, err := attach(path, o.AllowOther)
	if err != nil {
		return nil, err
	}

	// Open files outlive ctx: they are readable until they are closed.
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s := &Server{dir: path, log: o.Log.With("dir", path), cancel: cancel, done: make(chan struct{})}
	fsys := newFilesystem(base, src, s.log)
	if err := s.start(fd, fsys); err != nil {
		cancel()
		if s.mount.dev != "" { // otherwise something that is not ours lies on top
			detach(context.WithoutCancel(ctx), path, true) // err says what went wrong
		}
		return nil, err
	}
	s.readAhead()
	stop := context.AfterFunc(ctx, func() {
		if err := s.Unmount(context.WithoutCancel(ctx)); err != nil {
			s.log.Error("unmount", "err", err)
		}
	})
	go func() {
		<-s.done
		stop()
	}()
	return s, nil
}

// start serves fsys at fd, which it owns from then on.
func (s *Server) start(fd int, fsys *filesystem) error {
	_, top, err := lookAt(s.dir)
	if err == nil && (top == nil || top.fsType != fsType) {
		err = errors.New("somebody has unmounted it, or mounted something on it")
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	s.mount = *top

	short := fresh
	options := &gofs.Options{
		MountOptions: gofuse.MountOptions{
			Name:          "varve",
			FsName:        "varve",
			MaxWrite:      maxRequest, // bounds reads, too
			DisableSplice: true,       // a pipe is 16 bytes too small for such a read
			DisableXAttrs: true,
			Logger:        slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
			PanicHandler: func(v any) gofuse.Status {
				err := guard(func() error { panic(v) })
				s.log.Error("request of the mount", logAttrs(err)...)
				return gofuse.EIO
			},
		},
		EntryTimeout:    &short,
		AttrTimeout:     &short,
		NullPermissions: true,
		RootStableAttr:  &gofs.StableAttr{Ino: rootIno},
	}
	nodes := gofs.NewNodeFS(&root{filesystem: fsys}, options)
	// By this name the library takes a descriptor that is mounted already.
	server, err := gofuse.NewServer(nodes, "/dev/fd/"+strconv.Itoa(fd), &options.MountOptions)
	if err != nil {
		return err
	}
	go func() {
		server.Serve()
		s.cancel()
		fsys.handles.releaseAll()
		close(s.done)
	}()
	return nil
}

// readAhead lets the kernel read ahead as much as fits a request. By itself it
// asks for 128 KiB at a time. Where that is not allowed, reading is slower.
func (s *Server) readAhead() {
	name := "/sys/class/bdi/" + s.mount.dev + "/read_ahead_kb"
	err := os.WriteFile(name, []byte(strconv.Itoa(maxRequest>>10)), 0)
	if err != nil {
		s.log.Debug("set the read-ahead", "err", err)
	}
}

// Dir is the absolute path of the folder, without symbolic links.
func (s *Server) Dir() string { return s.dir }

// Wait returns when the folder has been unmounted, whoever did it, and the last
// file that was open in it is closed.
func (s *Server) Wait() { <-s.done }

// Unmount frees the folder. Files that are open in it stay readable until they
// are closed or this process ends. Without such files it waits, at most until
// ctx ends, for what Wait waits for. It returns nil if the folder has been
// unmounted before.
func (s *Server) Unmount(ctx context.Context) error {
	select {
	case <-s.done:
		return nil
	default:
	}
	idle, err := s.detach(ctx)
	if err != nil {
		return fmt.Errorf("unmount %s: %w", s.dir, err)
	}
	if idle {
		select {
		case <-s.done:
		case <-ctx.Done():
		}
	}
	return nil
}

// detach takes the mount off its folder, and reports whether it did so with no
// file open. It does nothing if the mount is not there any more.
func (s *Server) detach(ctx context.Context) (idle bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	mounted, err := s.mounted()
	if err != nil || !mounted {
		return false, err
	}
	if detach(ctx, s.dir, false) == nil {
		return true, nil
	}
	// It is in use, or somebody else was quicker.
	if err = detach(ctx, s.dir, true); err == nil {
		s.log.Info("unmounted; files that are open in it can be read until they are closed")
	}
	if mounted, again := s.mounted(); again == nil && !mounted {
		return false, nil
	}
	return false, err
}

// mounted reports whether the mount is on top at its folder. One that is below
// another is an error.
func (s *Server) mounted() (bool, error) {
	_, top, err := lookAt(s.dir)
	if err != nil {
		return false, err
	}
	// No other file system gets our device number while done is open.
	if top != nil && top.dev == s.mount.dev {
		return true, nil
	}
	all, err := mounts()
	if err != nil {
		return false, err
	}
	for m := range all {
		if top != nil && m.dev == s.mount.dev && m.point == s.dir {
			return false, fmt.Errorf("%s (%s) is mounted on top of it: unmount that first: %s",
				top.source, top.fsType, unmountHint(s.dir))
		}
	}
	return false, nil
}
