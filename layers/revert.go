package layers

import (
	"fmt"
	"io/fs"
)

// Revert makes the volume read what a snapshot holds. The present state is sealed
// first, as the snapshot safety. Both it and the snapshots that came after the
// target stay, as a branch: each reads as before, can be deleted, cloned, and
// reverted to. The size stays what it is; bytes past the end of the target are
// zeros. Writes that run meanwhile go to one side or the other; who has the
// volume mounted must not have it any more.
//
// A target that is not there, or is a mark, is fs.ErrNotExist; a safety that is
// there already fs.ErrExist. After an error nothing has changed.
func (v *Volume) Revert(target, safety ID) error {
	if err := v.revert(target, safety); err != nil {
		return fmt.Errorf("revert volume %s to snapshot %s: %w", v.id, target, err)
	}
	kick(v.wantCheckpoint)
	return nil
}

func (v *Volume) revert(target, safety ID) error {
	if safety.IsZero() {
		return fmt.Errorf("no id for the safety snapshot: %w", fs.ErrInvalid)
	}
	v.tidying.Lock() // no block moves while the map is made
	defer v.tidying.Unlock()
	v.admin.Lock()
	defer v.admin.Unlock()
	if err := v.writable(); err != nil {
		return err
	}
	at := v.chain.find(target)
	if at < 0 || v.chain.Layers[at].Flags != flagSnapshot {
		return fs.ErrNotExist
	}
	if v.chain.find(safety) >= 0 {
		return fmt.Errorf("safety snapshot %s: %w", safety, fs.ErrExist)
	}
	live := newBlockMap(blocksOf(v.size.Load()))
	if err := v.fillMap(live, at); err != nil {
		return err
	}
	next, err := v.newHead()
	if err != nil {
		return err
	}
	err = v.Flush()
	if err == nil {
		err = v.sealTo(safety, next, at, live)
	}
	if err != nil {
		v.abandon(next)
	}
	return err
}
