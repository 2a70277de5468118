package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"varve/agent/object"
	"varve/agent/repo"
	"varve/catalog"
	"varve/layers"
)

// targetError says what could not be done with a target, why, and what to do.
func targetError(t catalog.Target, doing string, err error) error {
	var own *Error
	what := fmt.Sprintf("%s target %s (%s)", doing, t.Name, t.URL)
	switch {
	case errors.As(err, &own):
		return fail(own.Reason, "%s: %w", what, err)
	case errors.Is(err, repo.ErrKey):
		return fail(Denied, "%s: %w", what, err)
	case errors.Is(err, repo.ErrVersion):
		return fail(Conflict, "%s: %w: use a newer version of varve", what, err)
	case errors.Is(err, repo.ErrProtected):
		return fail(Conflict, "%s: %w: let it be deleted first with varve backup set --unprotected", what, err)
	case errors.Is(err, repo.ErrNoRepository):
		return fail(NotFound, "%s: %w: remove the target and add it again", what, err)
	case errors.Is(err, repo.ErrCorrupt), errors.Is(err, layers.ErrCorrupt):
		return fail(Corrupt, "%s: %w", what, err)
	case ReasonOf(err) == Denied && strings.HasPrefix(t.URL, "file:"):
		return fail(Denied, "%s: %w: the user that the daemon runs as must own the folder and all in it", what, err)
	case ReasonOf(err) == Denied && t.Synced.IsZero(): // it is being added
		return fail(Denied, "%s: %w: check the credentials", what, err)
	case ReasonOf(err) == Denied:
		return fail(Denied, "%s: %w: check the credentials; new ones are taken with: varve target set %s --login", what, err, t.Name)
	case errors.Is(err, fs.ErrNotExist) && !t.Synced.IsZero():
		return fail(NotFound, "%s: %w: if another host deleted it, varve target sync %s takes it off the list", what, err, t.Name)
	case errors.Is(err, object.ErrNoContainer):
		return fail(NotFound, "%s: %w", what, err)
	case errors.Is(err, object.ErrOccupied), errors.Is(err, repo.ErrExists):
		return fail(Conflict, "%s: %w", what, err)
	case object.IsFull(err):
		return fail(Unavailable, "%s: %w: make room there, or raise its quota, then try again", what, err)
	case errors.Is(err, unix.EROFS):
		return fail(Unavailable, "%s: %w: mount it for writing, then try again", what, err)
	case errors.Is(err, context.Canceled):
		return fail(Stopped, "%s: %w", what, err)
	}
	var away *object.Error
	if errors.As(err, &away) || errors.Is(err, context.DeadlineExceeded) {
		return fail(Unavailable, "%s: %w: check that it is reachable, then try again", what, err)
	}
	return fail(Unavailable, "%s: %w", what, err)
}
