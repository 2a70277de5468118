package fuse

import (
	"context"
	"errors"
	"fmt"
)

// ErrNotMounted means that no Varve has mounted on a folder.
var ErrNotMounted = errors.New("no Varve has mounted there")

// Unmount frees a folder that a Varve has mounted on, this process or another
// one, alive or dead. Files that are open stay readable as long as their server
// lives. Where nothing is mounted, or something else, the error is ErrNotMounted;
// a folder that is not there is fs.ErrNotExist.
func Unmount(ctx context.Context, dir string) error {
	path, top, err := lookAt(dir)
	switch {
	case err != nil:
		return fmt.Errorf("unmount %s: %w", dir, err)
	case top == nil:
		return fmt.Errorf("unmount %s: %w", dir, ErrNotMounted)
	case top.fsType != fsType:
		return fmt.Errorf("unmount %s: %w: it is %s (%s)", dir, ErrNotMounted, top.source, top.fsType)
	}
	if detach(ctx, path, false) == nil {
		return nil
	}
	if err := detach(ctx, path, true); err != nil { // it is in use
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}
