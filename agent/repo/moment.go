package repo

import (
	"time"

	"golang.org/x/sys/unix"
)

// A moment is a point in time by every clock of this host. Each of them alone
// can stand still or be set: the monotonic one while the machine sleeps, the
// wall clock by whoever sets it.
type moment struct {
	at   time.Time     // wall clock and monotonic
	boot time.Duration // since the machine began, its sleep included
}

func (r *Repo) moment() moment {
	m := moment{at: r.now()}
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) == nil {
		m.boot = time.Duration(ts.Nano())
	}
	return m
}

// before is the moment that was d earlier.
func (m moment) before(d time.Duration) moment { return moment{m.at.Add(-d), m.boot - d} }

// passed is the longest time that any clock says has passed since m. A clock
// that is set forward makes a writer look again, or stop, without need; none
// makes it go on too long unless all of them stand still.
func (r *Repo) passed(m moment) time.Duration {
	now := r.moment()
	return max(now.at.Sub(m.at), now.at.Round(0).Sub(m.at.Round(0)), now.boot-m.boot)
}
