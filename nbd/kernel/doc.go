// Package kernel shows exports as block devices of this machine's kernel: it
// owns what there is to know of Linux's NBD driver, its generic netlink
// family, its folders in /sys, and who uses a device.
//
// # Concepts
//
// A [Device] is /dev/nbdN with sockets of ours in it. [Attach] makes the
// sockets, gives one end of each to the kernel, and has [Options.Serve] answer
// at the other. When one dies (the driver gives up on a request, say), the
// device makes a new one in its place. The device also lives on without us:
//
//	Attach ─► served ──Release, or the process dies──► waiting ──Attach──► served
//	            │                                         │
//	            └──Detach, or somebody disconnects it     └──DeadTimeout──► I/O errors
//
// While it waits, nothing fails: requests stay in the kernel until there are
// sockets again. So a daemon can be replaced under a mounted file system. A
// device is found again by its [Options.Identity], which the kernel shows in
// /sys and holds every later socket to.
//
// # How long things wait
//
// A request that was sent into a socket which died is sent again only when its
// own time limit has passed, which is what a file system waits after a daemon
// was killed. The limit must be short for that reason. It is safe to be short only with
// one connection: when it passes while the daemon is alive, the driver drops the
// socket, and the same write may come again while the first is still at work.
// With one connection no new socket is offered before everything that came over
// the old one is done, so they cannot overtake each other. With several the
// driver sends it over another one at once; there the limit is so long that a
// write which is still at work then can be taken for lost.
//
// # Hazards
//
//  1. This process never keeps a device of its own open: the last close of a
//     block device writes back what is dirty, through ourselves, and a process
//     that was killed would wait for itself. Detach opens it for an instant.
//  2. A socket that is offered while none of the device's is dead is dropped,
//     and the kernel reports success. It then ends at once, and is offered again
//     a little later.
//  3. A process that serves a device of its own machine may need memory which
//     only its own answers can free. Attach tells the kernel so
//     (PR_SET_IO_FLUSHER).
//  4. The kernel answers CONNECT with a message and, if asked, an
//     acknowledgement too, which genetlink.Conn does not expect. One Conn is used
//     for one command.
//
// # Limits
//
// Linux 5.16 or newer, for the backend identifier; root. The number of
// connections is fixed for the life of a device.
package kernel
