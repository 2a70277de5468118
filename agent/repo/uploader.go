package repo

import (
	"context"
	"fmt"
	"sync"

	"varve/agent/object"
)

// An uploader puts objects while others are being made. Its buffers are all
// the memory that packs take.
type uploader struct {
	ctx     context.Context
	store   object.Store
	size    int
	made    int
	buffers chan []byte

	running sync.WaitGroup
	mu      sync.Mutex
	err     error // of the first that failed
}

func newUploader(ctx context.Context, s object.Store, target int) *uploader {
	return &uploader{ctx: ctx, store: s, size: target + packRoom, buffers: make(chan []byte, uploadsMax+1)}
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
	if u.made < cap(u.buffers) {
		u.made++
		return make([]byte, 0, u.size), nil
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
