// Package freeze makes the file systems that lie on a volume consistent for
// the instant of a snapshot: it finds those that are mounted on this host from
// a device that a given process serves, and keeps them frozen for a bounded
// time.
//
// # Use
//
//	points := freeze.Host{}.Mounts(freeze.Client{PID: pid, Backend: id})
//	h, err := freeze.Begin(ctx, helper, points, 10*time.Second) // synced; still running
//	err = h.Freeze()                                            // writers wait from here on
//	…                                                           // the snapshot
//	report := h.Thaw()                                          // and go on
//
// # Who thaws
//
// A frozen file system stays so until somebody thaws it: the kernel knows no
// time limit and does not care for the end of the process that froze it. So a
// process of its own does it, the helper, which is this same program started
// again (Main). It thaws when it is told to, when its time is over, and when
// the pipe to its parent ends, which it does also if the parent is killed. If
// the helper is killed, the parent thaws. If both are, at once, nobody does:
// whoever uses this package writes down the mount points before Freeze and calls
// Thaw at its next start.
//
// # Hazards
//
//  1. FIFREEZE writes out what is dirty while writers wait, and cannot be
//     interrupted. Begin syncs first, so that little is left. If it takes longer
//     than the limit all the same, the helper thaws as soon as it returns.
//  2. Whoever freezes must not write to what is frozen: not its data, not its
//     log. Begin refuses a mount point that has one of the given folders in it.
//  3. File systems that cannot be frozen, and all of them for users without
//     CAP_SYS_ADMIN, are synced only. The report says so.
//  4. A file system that somebody else has frozen counts as frozen, and is left
//     to them to thaw.
//
// # Limits
//
// Devices are found by /sys: nbd by the process or the backend's name, loop
// devices over files of FUSE mounts by the process that serves the mount, and
// what is stacked on these (partitions, device-mapper, md). What is mounted in
// other mount namespaces, or inside a virtual machine, is not seen.
package freeze
