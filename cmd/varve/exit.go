package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"varve/agent"
	"varve/agent/api"
	"varve/agent/object"
	"varve/agent/repo"
)

// Exit codes of the program. They are part of its interface: docs/manual.md.
const (
	exitOK          = 0
	exitFailed      = 1   // it was tried and failed
	exitUsage       = 2   // the command line is wrong; nothing was tried
	exitAway        = 3   // no daemon answers
	exitNotFound    = 4   // nothing has that name or id
	exitRefused     = 5   // not in the state that things are in now
	exitDenied      = 6   // credentials, passphrase or rights were refused
	exitUnavailable = 7   // a target or a disk does not answer
	exitCorrupt     = 8   // stored data is damaged
	exitDetached    = 130 // Ctrl-C; what was begun goes on in the daemon
)

const exitCodeHelp = "Exit codes: 0 done, 1 failed, 2 wrong command line, 3 no daemon answers, 4 no such object, " +
	"5 refused as things are now, 6 credentials or passphrase refused, 7 target or disk does not answer, " +
	"8 stored data is damaged, 130 interrupted."

// A quietError has been told to the person already; only its code is left.
type quietError struct{ code int }

func (e quietError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// report tells an error to the person and returns the exit code.
func (p *program) report(err error) int {
	var quiet quietError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &quiet):
		return quiet.code
	}
	code := exitCode(err)
	var unanswered *api.UnansweredError
	if code == exitDetached && !errors.As(err, &unanswered) {
		err = errors.New("interrupted")
	}
	p.complain("varve: ", err)
	return code
}

// complain prints an error, of one line or more, behind a lead.
func (p *program) complain(lead string, err error) {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintf(p.stderr, "%s%s\n", lead, printable(line))
		lead = "  "
	}
}

// exitCode is the one place where an error becomes an exit code.
func exitCode(err error) int {
	var (
		usage   usageError
		away    *api.DaemonAwayError
		refused *api.Error
		other   *agent.Error
		store   *object.Error
	)
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &away):
		return exitAway
	case errors.As(err, &refused):
		return reasonCode(refused.Reason)
	case errors.As(err, &other):
		return reasonCode(other.Reason)
	case errors.Is(err, context.Canceled):
		return exitDetached
	case errors.Is(err, repo.ErrKey), errors.Is(err, fs.ErrPermission):
		return exitDenied
	case errors.Is(err, repo.ErrCorrupt):
		return exitCorrupt
	case errors.Is(err, repo.ErrNoRepository), errors.Is(err, object.ErrNoContainer), errors.Is(err, fs.ErrNotExist):
		return exitNotFound
	case errors.Is(err, fs.ErrExist), errors.Is(err, object.ErrOccupied), errors.Is(err, repo.ErrSlotNeeded), errors.Is(err, repo.ErrNotEncrypted):
		return exitRefused
	case errors.As(err, &store):
		return exitUnavailable
	}
	return exitFailed
}

func reasonCode(r agent.Reason) int {
	switch r {
	case agent.Invalid:
		return exitUsage
	case agent.NotFound:
		return exitNotFound
	case agent.Ambiguous, agent.Conflict, agent.InUse, agent.TooLarge:
		return exitRefused
	case agent.Denied:
		return exitDenied
	case agent.Unavailable:
		return exitUnavailable
	case agent.Corrupt:
		return exitCorrupt
	}
	return exitFailed
}
