package agent

import (
	"context"
	"fmt"
	"slices"

	"varve/agent/repo"
	"varve/catalog"
)

// A rotation that was cut off leaves a key that should be gone, and opens the
// target. The repository knows: KeySlot.ReplacedBy. The daemon looks whenever it
// lists the keys or polls the target, says so in its log once, and in its status
// as long as it is so.

// readKeys lists the keys of a target and notes what a rotation left.
func (a *Agent) readKeys(ctx context.Context, r *repo.Repo, t catalog.Target) ([]KeySlot, error) {
	slots, err := r.Slots(ctx)
	if err != nil {
		return nil, err
	}
	var left []string
	for _, s := range slots {
		if !s.ReplacedBy.IsZero() {
			left = append(left, leftKey(t.Name, s, slots))
		}
	}
	m := a.targetOf(t)
	a.mu.Lock()
	was := m.leftKeys
	m.leftKeys = left
	a.mu.Unlock()
	for _, text := range left {
		if !slices.Contains(was, text) {
			a.log.Warn(text, "target", t.Name)
		}
	}
	return slots, nil
}

// lookAtKeys is readKeys for who does something else: if the keys cannot be read
// now, they are when somebody looks again.
func (a *Agent) lookAtKeys(ctx context.Context, r *repo.Repo, t catalog.Target) {
	if r.Encrypted() {
		a.readKeys(ctx, r, t)
	}
}

// leftKeys returns what was seen last of the keys of a target that rotations
// have left, a sentence each.
func (a *Agent) leftKeys(t catalog.Target) []string {
	m := a.targetOf(t)
	a.mu.Lock()
	defer a.mu.Unlock()
	return m.leftKeys
}

// leftKey says of a key that was to be replaced what to do: rotate it again,
// unless the daemon has the key that is to stay.
func leftKey(target string, s KeySlot, all []KeySlot) string {
	by := all[slices.IndexFunc(all, func(o KeySlot) bool { return o.ID == s.ReplacedBy })]
	do := fmt.Sprintf("Rotate it again: varve target key rotate %s %s", target, s.ID)
	if by.InUse {
		do = fmt.Sprintf("Remove it: varve target key remove %s %s", target, s.ID)
	}
	return fmt.Sprintf("The rotation of a key of target %s was cut off: the old %s (slot %s) opens it still, beside the new %s (slot %s). %s",
		target, s.Kind, s.ID, by.Kind, by.ID, do)
}
