package repo

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"
	"time"

	"varve/agent/object"
)

const (
	// aheadFor is how old a listing may be that was asked for ahead.
	aheadFor = 10 * time.Second
	// aheadNames bounds how many names it has; more are listed when they are
	// wanted.
	aheadNames = 10000
	// aheadReads bounds how many roots and keys are read ahead, and aheadBytes
	// how much of each.
	aheadReads = 64
	aheadBytes = 16 << 10
)

// OpenToList is Open for who lists the backups next. Their names, the fronts of
// their roots and the keys of their volumes are asked for beside the key slot,
// and while a passphrase is stretched: so the list waits for no request that
// needs no key. All is checked when it is used, as what Open leaves to later is.
func OpenToList(ctx context.Context, s object.Store, k Key) (*Repo, error) {
	a, stop := lookAhead(ctx, s)
	r, err := Open(ctx, a, k)
	if err != nil {
		stop()
	}
	return r, err
}

// An ahead is a store that was asked for what a list of the backups takes. It
// gives each of those answers once.
type ahead struct {
	object.Store
	until time.Time // the listing is too old then

	listed chan struct{} // closed when names are there, or err
	names  []object.Info
	err    error

	reading sync.WaitGroup
	places  chan struct{} // one for each read that runs

	mu    sync.Mutex
	taken bool                  // the listing
	begun int                   // reads
	reads map[string]*aheadRead // that nobody has asked for yet
}

// An aheadRead is the front of an object.
type aheadRead struct {
	done chan struct{} // closed when the others are there
	b    []byte
	err  error // io.EOF: b is all of it
}

// lookAhead begins to ask. stop ends that.
func lookAhead(ctx context.Context, s object.Store) (a *ahead, stop func()) {
	ctx, stop = context.WithCancel(ctx)
	a = &ahead{
		Store: s, until: time.Now().Add(aheadFor), listed: make(chan struct{}),
		places: make(chan struct{}, listAhead), reads: make(map[string]*aheadRead),
	}
	go func() {
		defer stop()
		defer a.reading.Wait()
		a.list(ctx)
	}()
	return a, stop
}

// list asks for the names, and begins to read what is named.
func (a *ahead) list(ctx context.Context) {
	defer close(a.listed)
	for info, err := range a.Store.List(ctx, volumesRoot) {
		if err == nil && len(a.names) == aheadNames {
			err = errors.New("repo: too many names to list ahead")
		}
		if err != nil {
			a.names, a.err = nil, err
			return
		}
		a.names = append(a.names, info)
		a.read(ctx, info)
	}
}

// read begins to read a root or a volume's key.
func (a *ahead) read(ctx context.Context, info object.Info) {
	name, ok := parseVolumeName(info.Name)
	if !ok || name.kind != "b" && name.kind != "k" {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.begun++; a.begun > aheadReads {
		return
	}
	r := &aheadRead{done: make(chan struct{})}
	a.reads[info.Name] = r
	a.reading.Go(func() {
		defer close(r.done)
		a.places <- struct{}{}
		defer func() { <-a.places }()
		b := make([]byte, min(max(info.Size, 0), aheadBytes)+1) // one more tells that it ends there
		n, err := a.Store.Get(ctx, info.Name, b, 0)
		r.b, r.err = b[:n], err
	})
}

// List gives the listing that was asked for, if it is the one.
func (a *ahead) List(ctx context.Context, prefix string) iter.Seq2[object.Info, error] {
	if prefix != volumesRoot || !a.take() {
		return a.Store.List(ctx, prefix)
	}
	return func(yield func(object.Info, error) bool) {
		select {
		case <-a.listed:
		case <-ctx.Done():
			yield(object.Info{}, context.Cause(ctx))
			return
		}
		if a.err != nil { // whoever asks now gets an error of its own, if any
			a.Store.List(ctx, prefix)(yield)
			return
		}
		for _, info := range a.names {
			if !yield(info, nil) {
				return
			}
		}
	}
}

// take reports whether the listing is the caller's.
func (a *ahead) take() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	mine := !a.taken && time.Now().Before(a.until)
	a.taken = true
	return mine
}

// Get gives what was read of the object, if that is an answer.
func (a *ahead) Get(ctx context.Context, name string, p []byte, off int64) (int, error) {
	a.mu.Lock()
	r := a.reads[name]
	delete(a.reads, name)
	a.mu.Unlock()
	if r == nil || off != 0 || len(p) == 0 {
		return a.Store.Get(ctx, name, p, off)
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	switch {
	case len(p) <= len(r.b):
		return copy(p, r.b), nil
	case r.err == io.EOF:
		return copy(p, r.b), io.EOF
	}
	return a.Store.Get(ctx, name, p, off)
}
