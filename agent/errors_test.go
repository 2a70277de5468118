package agent

import (
	"errors"
	"fmt"
	"testing"

	"varve/agent/object"
	"varve/layers"
)

// Who found a volume or a target in the instant before it went is told that it
// went. That is no failure of a disk or a target.
func TestLateUseOfWhatIsGone(t *testing.T) {
	_, a := startWithTarget(t)
	createVolume(t, a, "v", mib)
	record, v, err := a.findVolume("v")
	if err != nil {
		t.Fatal(err)
	}
	target := must(a.Target(t.Context(), "t1"))(t)
	if err := errors.Join(a.DeleteVolume(t.Context(), "v"), a.RemoveTarget(t.Context(), "t1")); err != nil {
		t.Fatal(err)
	}
	_, err = a.usable(record, v)
	wantError(t, err, Conflict, "volume v", "being deleted")
	_, err = a.holdTarget(target)
	wantError(t, err, Conflict, "target t1 was removed")
	_, _, err = a.useTarget(t.Context(), target)
	wantError(t, err, Conflict, "target t1 was removed")
	wantError(t, a.beginRemoval(target, a.targetOf(target)), Conflict, "target t1 was removed")
	if len(a.targets) != 0 {
		t.Errorf("%d targets are left in memory", len(a.targets))
	}
}

// While a target is being removed nobody begins to use it or to remove it.
func TestUseOfATargetThatIsBeingRemoved(t *testing.T) {
	_, a := startWithTarget(t)
	record := must(a.Target(t.Context(), "t1"))(t)
	if err := a.beginRemoval(record, a.targetOf(record)); err != nil {
		t.Fatal(err)
	}
	_, err := a.holdTarget(record)
	wantError(t, err, Conflict, "is being removed")
	wantError(t, a.RemoveTarget(t.Context(), "t1"), Conflict, "is being removed")
}

// Why a volume is not open decides what its caller can do about it.
func TestReasonOfAClosedVolume(t *testing.T) {
	_, a := startWithTarget(t)
	createVolume(t, a, "v", mib)
	record, v, err := a.findVolume("v")
	if err != nil {
		t.Fatal(err)
	}
	for want, why := range map[Reason]error{
		Conflict:    errDeleted,
		InUse:       &layers.LockedError{},
		Corrupt:     fmt.Errorf("chain: %w", layers.ErrCorrupt),
		Stopped:     errStopped,
		Unavailable: errors.New("input/output error"),
	} {
		wantError(t, (&volume{id: v.id, err: why}).unusable(record), want, "volume v cannot be used", why.Error())
	}
}

// A container that nobody made is missing; a server that is away is not.
func TestReasonOfATarget(t *testing.T) {
	_, a := startWithTarget(t)
	record := must(a.Target(t.Context(), "t1"))(t)
	missing := &object.Error{Op: "list", Store: record.URL, Err: fmt.Errorf("there is no container: %w", object.ErrNoContainer)}
	wantError(t, targetError(record, "open", missing), NotFound, "t1", "create it first")
	away := &object.Error{Op: "list", Store: record.URL, Err: errors.New("connection refused"), Temporary: true}
	wantError(t, targetError(record, "open", away), Unavailable, "t1", "check that it is reachable")
}
