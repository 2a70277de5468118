package repo

import (
	"context"
	"fmt"
	"sync"

	"varve/agent/object"
)

// An uploader puts objects while others are being made. Its buffers, an arena
// each, are all the memory that packs take.
type uploader struct {
	ctx     context.Context
	store   object.Store
	made    [][]byte // arenas
	buffers chan []byte

	running sync.WaitGroup
	mu      sync.Mutex
	err     error // of the first that failed
}

func newUploader(ctx context.Context, s object.Store) *uploader {
	return &uploader{ctx: ctx, store: s, buffers: make(chan []byte, buffersMax)}
}

// buffer returns an empty buffer as soon as one is free. Only one goroutine
// may call it.
func (u *uploader) buffer(ctx context.Context) ([]byte, error) {
	if err := u.failed(); err != nil {
		return nil, err
	}
	select {
	case b := <-u.buffers:
		return b, nil
	default:
	}
	if len(u.made) < cap(u.buffers) {
		b, err := takeArena()
		if err != nil {
			return nil, err
		}
		u.made = append(u.made, b)
		return b[:0], nil
	}
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case b := <-u.buffers:
		return b, u.failed()
	}
}

// put uploads an object in the buffer that it was made in.
func (u *uploader) put(name string, object []byte) {
	u.running.Go(func() {
		if err := u.store.Put(u.ctx, name, object); err != nil {
			u.mu.Lock()
			if u.err == nil {
				u.err = fmt.Errorf("write pack: %w", err)
			}
			u.mu.Unlock()
		}
		u.buffers <- object[:0] // has room: it came from there
	})
}

// close gives the buffers back. Nothing is under way any more.
func (u *uploader) close() {
	for _, b := range u.made {
		freeArena(b)
	}
}

// wait returns when everything that was put is durable.
func (u *uploader) wait() error {
	u.running.Wait()
	return u.failed()
}

func (u *uploader) failed() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.err
}
