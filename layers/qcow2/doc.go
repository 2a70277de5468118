// Package qcow2 reads and writes disk images in the qcow2 format, as layers.
// The format is QEMU's: docs/interop/qcow2.rst in its sources, whose names are
// used here.
//
// # Reading
//
// [Open] makes a [layers.Layer] of versions 2 and 3 of the format with any size
// of cluster, compressed clusters of both kinds, and zero clusters. What an
// image does not say is Absent, unless it has a backing file, which is then the
// layer below.
//
//	image ─► header ─► L1 table ─► L2 table ─► cluster, compressed cluster,
//	        (checked)  (in memory) (cached)    zeros, or nothing: the backing layer
//
// Refused with an error that says what: encryption, an external data file,
// extended L2 entries, an image that is marked as corrupt, and features that
// this package does not know. Internal snapshots are not shown.
//
// # Untrusted images
//
// An image may come from somebody who wants to do harm. The package opens no
// file: a backing file is refused unless the caller says where to find it
// ([Options.Backing]). Every offset and length is checked against the file, and
// memory is bounded by 32 MiB for the L1 table and 40 MiB of caches. Reading
// changes nothing, and there is nothing to follow in a circle.
//
// An L1 entry and an L2 entry are checked when they are met, so damage is found
// where it is read, as an error that is layers.ErrCorrupt.
//
// # Writing
//
// [Write] makes version 3 with clusters of 64 KiB and without compression. The
// header comes last: a file that was cut off is not an image. The same
// layer gives the same bytes.
package qcow2
