// Package fuse shows snapshots and backups as a read-only tree of files:
//
//	DIR/VOLUME/NAME/disk.raw
//
// A [Source] says which images there are and opens them; [Mount] shows them
// until somebody unmounts the folder. disk.raw has the image's size and time,
// its holes are holes (SEEK_DATA, SEEK_HOLE), and it can be loop mounted:
//
//	losetup -f --show -r DIR/VOLUME/NAME/disk.raw
//
// # How to use it
//
//	server, err := fuse.Mount(ctx, dir, source, fuse.Options{})
//	if err != nil {
//		return err
//	}
//	server.Wait() // until umount, fusermount3 -u, or the end of ctx
//
// # Names
//
// Names are bytes. One that is empty, ".", "..", longer than 255 bytes, or has
// a slash or a NUL in it does not suit a path element: those bytes are shown
// as "_" and the ID is appended. Where two images of a folder have one name,
// both are shown with their ID, so that neither is taken for the other; the
// same goes for two volumes of one name.
//
// # Life of an image
//
//	List names it ──► looked up ──► open ──► read ──► last close
//	                                 │                   │
//	                            Source.Open         Handle.Close
//
// The list is asked for when somebody looks, and kept for half a second; the
// kernel keeps what it has looked up for as long. So what is new appears and
// what is gone vanishes within about a second. All files that are open on one
// image share one Handle. It stays open, and readable, when the image vanishes
// from the list. An inode number belongs to one image for the life of the
// mount and is never used for another: the kernel caches data by it.
//
// # Errors
//
// A failing Source.List gives EIO for the folders, and one log line when it
// begins and one when it ends. A failing read gives EIO and a log line, at most
// one each ten seconds for one image. A panic in a Source or a Handle counts as
// an error. A read that ends early is an error, too: the kernel would take what
// is missing for zeros. So is one without an answer for two minutes; the fetch
// goes on behind, and a later read finds what it brought.
//
// # Interrupts
//
// A signal for the reading process interrupts its request. Signals that end it
// cannot be told from those that do not, and a program with a timer does not
// expect EINTR from a file. So an interrupted request gets one more second to
// be answered, then EINTR; the fetch goes on behind, for a cache below.
//
// # Hazards
//
//  1. A process that opens a file of its own mount can deadlock: the Go runtime
//     polls the file in a call that it does not expect to block. Look into a
//     mount from another process, or with plain system calls.
//  2. The library uses the buffer and the context of a request again as soon as
//     the request is answered, interrupted ones too. What goes on behind must
//     touch neither.
//  3. A mount lives as long as anybody holds its /dev/fuse descriptor. If a child
//     process inherits it, a crashed daemon leaves a mount that hangs instead of
//     one that fails. This package opens the descriptor close-on-exec, which is
//     why it mounts by itself.
//
// # Limits
//
// Linux only. Beside disk.raw an image's folder holds nothing: no partitions, no
// files inside them. At most 32 reads go to handles at once. Inode numbers
// differ from one mount to the next.
package fuse
