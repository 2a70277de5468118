package object

import (
	"context"
	"iter"
)

// Limit returns s with at most n calls under way at once; further ones wait
// for their turn or the end of their context. A listing takes a place while it
// fetches and gives it back while its caller looks at what was found, so the
// caller may use the store inside its loop.
func Limit(s Store, n int) Store {
	if n < 1 {
		panic("object: a limit below 1 would let nothing through")
	}
	return &limited{s: s, places: make(chan struct{}, n)}
}

type limited struct {
	s      Store
	places chan struct{}
}

func (l *limited) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case l.places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *limited) leave() { <-l.places }

func (l *limited) Put(ctx context.Context, name string, data []byte) error {
	if err := l.enter(ctx); err != nil {
		return waiting("put", name, err)
	}
	defer l.leave()
	return l.s.Put(ctx, name, data)
}

func (l *limited) Get(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if err := l.enter(ctx); err != nil {
		return 0, waiting("get", name, err)
	}
	defer l.leave()
	return l.s.Get(ctx, name, p, off)
}

func (l *limited) Delete(ctx context.Context, names ...string) error {
	if len(names) == 0 {
		return nil
	}
	if err := l.enter(ctx); err != nil {
		return waiting("delete", names[0], err)
	}
	defer l.leave()
	return l.s.Delete(ctx, names...)
}

func (l *limited) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		next, stop := iter.Pull2(l.s.List(ctx, prefix))
		defer stop()
		for {
			if err := l.enter(ctx); err != nil {
				yield(Info{}, waiting("list", prefix, err))
				return
			}
			info, err, ok := next()
			l.leave()
			if !ok || !yield(info, err) || err != nil {
				return
			}
		}
	}
}

func waiting(op, name string, err error) error {
	return &Error{Op: op, Name: name, Store: "the queue of requests", Err: err}
}
