// Package repo is the backup repository: it copies layers into an object store
// and reads them back as layers. It needs nothing but the store: a repository
// opens on a bare machine.
//
//	r, err := repo.Open(ctx, store, repo.Key{Passphrase: secret})
//	b, err := r.Create(ctx, repo.Job{ID: id, Volume: volume, Source: snapshot})   // full
//	b, err = r.Create(ctx, repo.Job{…, Parent: b.ID, Changes: diff})              // increment
//	l, err := r.Layer(ctx, b.ID)                                                  // read some of it
//	err = r.Restore(ctx, b.ID, volume, repo.RestoreOptions{Blank: true})          // or all
//
// # Concepts
//
//	root ──► leaf (1 GiB) ──► frame (≤ 128 KiB) in a pack (≤ 32 MiB)
//	  │        └ delta over … over base
//	  └ names all leaves: those of the parent, but for the spans that changed
//
// A frame is 1 to 32 blocks of a volume, compressed and sealed as one. A pack
// is an object of many frames. A leaf maps the blocks of one span of the
// volume to frames; it is shared by all backups that did not touch the span. A
// root lists leaves; its Put is the commit. docs/format.md has every byte,
// docs/design.md, section 7, why it is so.
//
// A backup is full or incremental by the way it was made only: each names all
// its data, and any of them can be deleted.
//
// # Concurrency
//
// A Repo and a Layer are safe for concurrent use. Any number of processes on
// any number of hosts may use one store at once, without a lock: no name is
// ever written twice with different bytes.
//
// # Crashes
//
// A crash leaves a backup whole or not there. What it had stored is named by
// nothing and stays until pruning removes it.
//
// # Errors
//
// Damage is a DamageError with the object and the offset, and ErrCorrupt to
// errors.Is. What the store could not answer is the store's error and says
// nothing about the backup. fs.ErrNotExist means only that there is no such
// backup.
//
// # Hazards
//
//  1. An increment whose Changes leaves out a block that differs from the
//     parent is wrong, and nothing here can know.
//  2. A Layer reads from the network: closing it is what ends a read that the
//     store does not answer.
//  3. What opens the key slots is all there is. Lost, so are the backups.
package repo
