package repo

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"varve/layers"
)

const (
	wrappedMagic = "VARVVKEY"
	wrappedSize  = 152
	wrappedBound = 100
	firstEpoch   = 1
)

// wrappedKey is a volume's key as the store has it: docs/format.md 2.4.
type wrappedKey struct {
	domainEpoch uint32
	repository  layers.ID
	domain      layers.ID
	ref         keyRef
	created     time.Time
	nonce       [12]byte
	wrapped     [48]byte
}

func (w *wrappedKey) append(b []byte) []byte {
	start := len(b)
	b = append(b, wrappedMagic...)
	b = binary.LittleEndian.AppendUint16(b, Version)
	b = binary.LittleEndian.AppendUint16(b, wrappedSize)
	b = binary.LittleEndian.AppendUint32(b, w.domainEpoch)
	b = append(b, w.repository[:]...)
	b = append(b, w.ref.volume[:]...)
	b = append(b, w.domain[:]...)
	b = binary.LittleEndian.AppendUint32(b, w.ref.epoch)
	b = binary.LittleEndian.AppendUint64(b, w.ref.id)
	b = binary.LittleEndian.AppendUint64(b, uint64(unixMilli(w.created)))
	b = append(b, w.nonce[:]...)
	b = append(b, 0, 0, 0, 0)
	b = append(b, w.wrapped[:]...)
	return binary.LittleEndian.AppendUint32(b, checksum(b[start:]))
}

func (w *wrappedKey) bound() []byte { return w.append(nil)[:wrappedBound] }

func parseWrappedKey(b []byte) (*wrappedKey, error) {
	if err := checkFront(b, wrappedMagic, wrappedSize); err != nil {
		return nil, err
	}
	if n := int(binary.LittleEndian.Uint16(b[10:])); n != len(b) || n != wrappedSize {
		return nil, fmt.Errorf("%d bytes, says %d, expected %d", len(b), n, wrappedSize)
	}
	if err := checkSum(b); err != nil {
		return nil, err
	}
	w := &wrappedKey{
		domainEpoch: binary.LittleEndian.Uint32(b[12:]),
		repository:  layers.ID(b[16:32]),
		domain:      layers.ID(b[48:64]),
		ref: keyRef{
			volume: layers.ID(b[32:48]),
			epoch:  binary.LittleEndian.Uint32(b[64:]),
			id:     binary.LittleEndian.Uint64(b[68:]),
		},
		created: fromMilli(int64(binary.LittleEndian.Uint64(b[76:]))),
		nonce:   [12]byte(b[84:96]),
		wrapped: [48]byte(b[100:148]),
	}
	if [4]byte(b[96:100]) != [4]byte{} {
		return nil, errReserved
	}
	return w, nil
}

// A keyring has the keys of a repository: the master, and the volume keys that
// were asked for. It is safe for concurrent use.
type keyring struct {
	suite      suite
	repository layers.ID
	master     [32]byte

	mu      sync.Mutex
	volumes map[keyRef]*volumeKey

	asked singleflight.Group // for volume keys, by their names
}

func newKeyring(s suite, repository layers.ID, master [32]byte) *keyring {
	k := &keyring{suite: s, repository: repository, master: master, volumes: make(map[keyRef]*volumeKey)}
	k.add(keyRef{}, layers.ID{}, kdf("repository objects", master[:]))
	return k
}

// openMaster is the master key of a repository that is not encrypted.
func openMaster(repository layers.ID) [32]byte { return kdf("open master", repository[:]) }

func (k *keyring) head() [32]byte { return kdf("head", k.master[:]) }

func (k *keyring) domain(domain layers.ID, epoch uint32) [32]byte {
	return kdf("domain", k.master[:], domain[:], binary.LittleEndian.AppendUint32(nil, epoch))
}

// own is the key of objects of no volume.
func (k *keyring) own() *volumeKey {
	key, _ := k.known(keyRef{})
	return key
}

func (k *keyring) known(ref keyRef) (*volumeKey, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key, ok := k.volumes[ref]
	return key, ok
}

func (k *keyring) add(ref keyRef, domain layers.ID, key [32]byte) *volumeKey {
	v := &volumeKey{ref: ref, suite: k.suite, key: key, ids: kdf("frame id", k.master[:], domain[:])}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.volumes[ref] = v
	return v
}

// unwrap opens a stored volume key and keeps it.
func (k *keyring) unwrap(b []byte, want keyRef) (*volumeKey, error) {
	w, err := parseWrappedKey(b)
	if err != nil {
		return nil, err
	}
	if w.repository != k.repository || w.ref != want {
		return nil, errors.New("is the key of something else")
	}
	domain := k.domain(w.domain, w.domainEpoch)
	key, err := newGCM(domain[:]).Open(nil, w.nonce[:], w.wrapped[:], w.bound())
	if err != nil {
		return nil, errTag
	}
	return k.add(want, w.domain, [32]byte(key)), nil
}

// make draws a volume's key of an epoch, and returns it as it is to be stored.
func (k *keyring) make(volume layers.ID, epoch uint32) (ref keyRef, key [32]byte, stored []byte) {
	var id [8]byte
	rand.Read(id[:])
	rand.Read(key[:])
	ref = keyRef{volume: volume, epoch: epoch, id: binary.LittleEndian.Uint64(id[:])}
	w := &wrappedKey{domainEpoch: 1, repository: k.repository, ref: ref, created: time.Now()}
	rand.Read(w.nonce[:])
	domain := k.domain(layers.ID{}, w.domainEpoch)
	newGCM(domain[:]).Seal(w.wrapped[:0], w.nonce[:], key[:], w.bound())
	return ref, key, w.append(nil)
}

// volumeKey returns the key that ref names, with at most one request.
func (r *Repo) volumeKey(ctx context.Context, ref keyRef) (*volumeKey, error) {
	if key, ok := r.keys.known(ref); ok {
		return key, nil
	}
	if r.keys.suite == suiteOpen {
		return r.openVolumeKey(ref)
	}
	// Roots that are read together want the same key: one asks for it.
	name := volumeKeyName(ref)
	answer := r.keys.asked.DoChan(name, func() (any, error) { return r.readVolumeKey(context.WithoutCancel(ctx), name, ref) })
	select {
	case a := <-answer:
		if a.Err != nil {
			return nil, a.Err
		}
		return a.Val.(*volumeKey), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("read volume key: %w", context.Cause(ctx))
	}
}

func (r *Repo) readVolumeKey(ctx context.Context, name string, ref keyRef) (*volumeKey, error) {
	if key, ok := r.keys.known(ref); ok { // somebody read it since the caller looked
		return key, nil
	}
	b, err := r.readAll(ctx, name, wrappedSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, damaged(name, 0, errors.New("the volume's key is missing: what it encrypts cannot be read"))
	}
	if err != nil {
		return nil, fmt.Errorf("read volume key: %w", err)
	}
	key, err := r.keys.unwrap(b, ref)
	if err != nil {
		return nil, damaged(name, 0, err)
	}
	return key, nil
}

// openVolumeKey derives the key of a volume in a repository that is not
// encrypted.
func (r *Repo) openVolumeKey(ref keyRef) (*volumeKey, error) {
	if ref.epoch != firstEpoch || ref.id != 0 || ref.volume.IsZero() {
		return nil, fmt.Errorf("%w: no key %d-%x of volume %s in a repository that is not encrypted", ErrCorrupt, ref.epoch, ref.id, ref.volume)
	}
	return r.keys.add(ref, layers.ID{}, kdf("open volume", r.keys.master[:], ref.volume[:])), nil
}

// RotateVolumeKey makes a new key for a volume and returns its epoch: the
// objects of all backups that begin after it are sealed with that. What is
// stored stays under the keys that it has. A volume without backups is
// fs.ErrNotExist.
func (r *Repo) RotateVolumeKey(ctx context.Context, volume layers.ID) (epoch uint32, err error) {
	if !r.Encrypted() {
		return 0, ErrNotEncrypted
	}
	if _, err := r.list(ctx, volumePrefix(volume)); err != nil {
		return 0, err
	}
	newest, ok := r.index.newestKey(volume)
	if !ok {
		return 0, fmt.Errorf("no backup of volume %s: %w", volume, fs.ErrNotExist)
	}
	if _, err := r.volumeKey(ctx, newest); err != nil { // its name alone proves nothing
		return 0, err
	}
	if newest.epoch == math.MaxUint32 {
		return 0, fmt.Errorf("volume %s has had %d keys: there are no more epochs", volume, newest.epoch)
	}
	key, err := r.putVolumeKey(ctx, volume, newest.epoch+1)
	if err != nil {
		return 0, err
	}
	return key.ref.epoch, nil
}

// putVolumeKey draws a key, stores it, and keeps it for the next backups.
func (r *Repo) putVolumeKey(ctx context.Context, volume layers.ID, epoch uint32) (*volumeKey, error) {
	ref, key, stored := r.keys.make(volume, epoch)
	if err := r.store.Put(ctx, volumeKeyName(ref), stored); err != nil {
		return nil, fmt.Errorf("write volume key: %w", err)
	}
	r.index.addKey(ref)
	return r.keys.add(ref, layers.ID{}, key), nil
}
