package freeze

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Requests that stop and start the writers of a file system: linux/fs.h.
const (
	fiFreeze = 0xc0045877 // _IOWR('X', 119, int)
	fiThaw   = 0xc0045878 // _IOWR('X', 120, int)
)

// Main is the helper: a process with the folders to freeze as its descriptors
// from 3 on, args being the time limit and their names. It returns its exit
// code.
//
//	helper → {}                       all are synced
//	parent → freeze
//	helper → {"States": …}            the time runs
//	parent closes its end, or dies
//	helper → {"Expired": …}           all are thawed
func Main(args []string, in io.Reader, out io.Writer) int {
	// The end of the pipe is what ends it. Whoever stops the daemon would
	// otherwise stop it in the middle.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	if len(args) < 2 {
		return 2
	}
	limit, err := time.ParseDuration(args[0])
	if err != nil {
		return 2
	}
	h := helper{points: args[1:], limit: limit, in: bufio.NewReader(in), out: json.NewEncoder(out)}
	return h.run()
}

type helper struct {
	points []string
	limit  time.Duration
	in     *bufio.Reader
	out    *json.Encoder
}

func (h helper) run() int {
	for i := range h.points {
		unix.Syncfs(h.fd(i)) // What cannot be synced is told when it is frozen.
	}
	if h.out.Encode(struct{}{}) != nil {
		return 1
	}
	if line, err := h.in.ReadString('\n'); err != nil || line != "freeze\n" {
		return 0 // It is not wanted any more.
	}
	gone := make(chan struct{})
	go func() {
		h.in.ReadByte() // An end, whatever it is.
		close(gone)
	}()
	begun := time.Now() // Writers wait from the first FIFREEZE on.
	late := time.NewTimer(h.limit)
	defer late.Stop()
	answer, held := h.freeze()
	h.out.Encode(answer) // A parent that is gone is seen below.
	select {
	case <-gone:
	case <-late.C:
	}
	expired := time.Since(begun) >= h.limit
	problem := h.thaw(held)
	h.out.Encode(endedLine{Ended: true, Expired: expired, Error: problem})
	if problem != "" {
		return 1
	}
	return 0
}

func (h helper) fd(i int) int { return 3 + i }

// freeze freezes or syncs all and returns the indexes of those that it must
// thaw.
func (h helper) freeze() (answer frozenLine, held []int) {
	for i, point := range h.points {
		state := Frozen
		err := unix.IoctlSetInt(h.fd(i), fiFreeze, 0)
		switch {
		case err == nil:
			held = append(held, i)
		case errors.Is(err, unix.EBUSY): // Somebody froze it, and will thaw it.
		default:
			state = Synced
			if err := unix.Syncfs(h.fd(i)); err != nil {
				answer.Notes = append(answer.Notes, fmt.Sprintf("%s could not be synced: %v", point, err))
			}
			answer.Notes = append(answer.Notes, fmt.Sprintf("%s cannot be frozen (%v), it was synced", point, err))
		}
		answer.States = append(answer.States, state)
	}
	return answer, held
}

// thaw undoes freeze, last first, and says what went wrong.
func (h helper) thaw(held []int) string {
	var problems []string
	for _, i := range slices.Backward(held) {
		// EINVAL: somebody else thawed it.
		if err := unix.IoctlSetInt(h.fd(i), fiThaw, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			problems = append(problems, fmt.Sprintf("%s could not be thawed: %v; run: fsfreeze -u %s", h.points[i], err, h.points[i]))
		}
	}
	return strings.Join(problems, "; ")
}
