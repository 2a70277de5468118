package agent

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"varve/layers"
)

// usualLeave is how long a request waits for a client that has ended. The end
// of its connection is seen a moment later, which on a busy machine is long
// enough for whoever waited for the client, in a script, to ask for the volume.
const usualLeave = 5 * time.Second

// awaitLeavers returns when nobody has the volume attached whose process has
// ended, or after Agent.leaveWithin: a child may have the connection still. It does
// not wait for those of other hosts, whose processes are not known.
func (a *Agent) awaitLeavers(v *volume) {
	limit := time.NewTimer(a.leaveWithin)
	defer limit.Stop()
	for {
		a.mu.Lock()
		if !v.hasLeavers() {
			a.mu.Unlock()
			return
		}
		if v.left == nil {
			v.left = make(chan struct{})
		}
		left := v.left
		a.mu.Unlock()
		select {
		case <-left:
		case <-limit.C:
			return
		}
	}
}

// hasLeavers reports whether a process that has the volume attached has ended.
// The caller holds Agent.mu.
func (v *volume) hasLeavers() bool {
	for _, at := range v.attached {
		if at.PID > 0 && errors.Is(unix.Kill(at.PID, 0), unix.ESRCH) {
			return true
		}
	}
	return false
}

// leave ends an attachment. The caller holds Agent.mu.
func (v *volume) leave(attachment layers.ID) {
	delete(v.attached, attachment)
	if v.left != nil {
		close(v.left)
		v.left = nil
	}
}
