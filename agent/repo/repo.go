package repo

import (
	"context"
	"errors"
	"fmt"

	"varve/agent/object"
	"varve/layers"
)

// Version is the format version that this package writes and reads:
// docs/format.md, part 2.
const Version = 1

var (
	// ErrNoRepository means that the store holds no repository.
	ErrNoRepository = errors.New("no repository")
	// ErrExists means that the store holds a repository already.
	ErrExists = errors.New("repository exists")
	// ErrKey means that no key slot opens with the passphrase.
	ErrKey = errors.New("wrong key")
	// ErrVersion means a format that a newer Varve wrote.
	ErrVersion = errors.New("unknown format version")
	// ErrCorrupt means that an object is damaged, missing or not the one that
	// was written under its name.
	ErrCorrupt = errors.New("corrupt")
	// ErrParentGone means that the parent of an incremental backup is not in
	// the repository, or is deleted: a full backup is the way on.
	ErrParentGone = errors.New("parent backup is gone")
	// ErrClosed means that the Repo or the Layer was closed.
	ErrClosed = errors.New("closed")
)

// Key opens a repository. The zero Key opens one that is not encrypted.
type Key struct {
	Passphrase string
}

// Params are chosen when a repository is made, and stay.
type Params struct {
	NoEncryption bool   // anybody who can read the store can read the backups
	Label        string // for people; at most 255 bytes of UTF-8
}

// A Repo is an open repository. It is safe for concurrent use.
type Repo struct {
	id layers.ID
}

// Init makes a repository in the store and opens it. A store that already has
// one is refused with ErrExists; without Params.NoEncryption the key needs a
// passphrase.
func Init(ctx context.Context, s object.Store, k Key, p Params) (*Repo, error) {
	return nil, fmt.Errorf("init repository: %w", errors.ErrUnsupported)
}

// Open opens the repository in the store. Errors: ErrNoRepository, ErrKey,
// ErrVersion, ErrCorrupt, and those of the store.
func Open(ctx context.Context, s object.Store, k Key) (*Repo, error) {
	return nil, fmt.Errorf("open repository: %w", errors.ErrUnsupported)
}

// ID names the repository. It never changes.
func (r *Repo) ID() layers.ID { return r.id }

// Encrypted reports whether the repository's content is encrypted.
func (r *Repo) Encrypted() bool { return false }

// Close ends every read of the repository's layers and forgets its keys.
func (r *Repo) Close() error { return nil }
