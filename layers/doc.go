// Package layers is the data path of Varve: block volumes as stacks of layers.
//
// # Words
//
// A layer is a partial map from byte ranges to data or zeros; see [Layer]. A
// [Volume] is a chain of layers in a directory. The topmost, the head, is the
// only one that changes. [Volume.Snapshot] seals it and puts an empty one on
// top; the place between is a [Boundary]. [Volume.Revert] seals it and puts an
// empty one on an older boundary: the chain is a tree then. A boundary is a snapshot while its data
// is kept, and a mark when only the knowledge of what changed since is. A [View]
// is a Layer over a snapshot, or over what differs between two boundaries.
//
// # Use
//
//	v, err := layers.Create(dir, layers.NewID(), 20<<30, layers.Options{})
//	…
//	v.WriteAt(p, off)
//	v.Flush()                           // durable from here on
//	v.Snapshot(monday)
//	…
//	v.Snapshot(tuesday)
//	changed, err := v.Diff(monday, tuesday) // what an incremental backup copies
//	for e, err := range changed.Extents(0, changed.Size()) { … }
//	changed.Close()
//	v.DeleteSnapshot(monday, false)     // its space comes back in the background
//	v.Close()
//
// # Life of a layer
//
//	head ──Snapshot──▶ sealed ──checkpoint──▶ settled ──sums──▶ summed
//	                                                              │
//	            boundary is a mark: blocks that are hidden ◀──────┤
//	            above are dropped                                 │
//	            no boundary: merged with the only layer above, ◀──┘
//	            or removed where there is none
//
// [Volume.Clone] gives the layers below a snapshot to another volume as well, by
// hard links. A layer that several volumes have stays as it is until only one
// has it.
//
// # Concurrency
//
// All methods are safe for concurrent use. Reads take no lock. Writes to
// different blocks run side by side; those that overlap inside a block run one
// after the other. Flushes that wait together share one sync. The order of locks
// stands at the fields of Volume.
//
// # Crashes
//
// What a Flush acknowledged is durable; each 4 KiB block written since is old or
// new, and new if only the process was killed; snapshots that were acknowledged
// are whole. docs/design.md, section 4,
// has the argument, what it assumes, and the test of each claim.
//
// # Hazards
//
//  1. A block becomes visible in the map after its data is in the file, never
//     before; a page of the map becomes durable after the data it names.
//  2. A block is punched out of a sealed layer only after nothing on disk and
//     nothing in memory names it, and after grace.wait.
//  3. Blocks move between sealed layers under open views. Whoever resolves a
//     block must stay inside grace until it has been read.
//  4. A layer whose files have other names is not changed, whoever closed them:
//     link.lent is asked in each step of tidying.
//  5. A sync that failed is not repeated. Volume.sync makes the volume
//     read-only; no other code may call file.sync on an open volume.
//
// # Limits
//
// Volumes of at most 16 TiB in multiples of 512 bytes, 65533 layers, Linux.
// Shrinking is not supported.
package layers
