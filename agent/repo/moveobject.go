package repo

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"

	"varve/layers"
)

// A moveObject is a relocation object that was read. It never changes.
type moveObject struct {
	*relocations
	name     string
	id       objectID
	size     int64      // bytes
	replaces []objectID // relocations of the volume that say nothing it does not say
}

func relocationPrefix(volume layers.ID) string { return volumePrefix(volume) + "r/" }

func relocationName(volume layers.ID, id objectID) string {
	return relocationPrefix(volume) + id.String()
}

// parseRelocationName reads what relocationName wrote.
func parseRelocationName(name string) (volume layers.ID, id objectID, ok bool) {
	n, is := parseVolumeName(name)
	if !is {
		return volume, id, false
	}
	id, ok = n.relocation()
	return n.volume, id, ok
}

func (n volumeName) relocation() (id objectID, ok bool) {
	if n.kind != "r" || len(n.rest) != 2*len(id) {
		return id, false
	}
	_, err := hex.Decode(id[:], []byte(n.rest))
	return id, err == nil && relocationName(n.volume, id) == n.String()
}

// sealRelocations returns the object of relocations that stand for others too.
func (r *Repo) sealRelocations(id objectID, volume layers.ID, l *relocations, replaces []objectID) []byte {
	f := make(fields)
	f.setID(bodyVolume, volume)
	f.setTime(bodyTime, r.now())
	f.setText(bodyHost, hostName())
	f[bodyRows] = compress(nil, l.append(nil, volume))
	for i := range replaces {
		f[bodyReplaces] = append(f[bodyReplaces], replaces[i][:]...)
	}
	return r.sealObject(kindRelocation, id, f)
}

// writeRelocations makes relocations durable, and known to this Repo. What they
// name is durable already. It returns the name of the object.
func (r *Repo) writeRelocations(ctx context.Context, volume, session layers.ID, l *relocations, replaces []objectID) (string, error) {
	id := newObjectID(session)
	name, object := relocationName(volume, id), r.sealRelocations(id, volume, l, replaces)
	if err := r.store.Put(ctx, name, object); err != nil {
		return "", fmt.Errorf("write relocation: %w", err)
	}
	r.moves.add(volume, &moveObject{relocations: l, name: name, id: id, size: int64(len(object)), replaces: replaces})
	return name, nil
}

// maxReplaced bounds the relocations that one stands for.
const maxReplaced = 4096

// parseRelocation reads a relocation object.
func (r *Repo) parseRelocation(name string, b []byte) (*moveObject, error) {
	volume, id, ok := parseRelocationName(name)
	h, err := parseHeader(b)
	if err != nil {
		return nil, err
	}
	if !ok || h.id != id {
		return nil, fmt.Errorf("it is object %s", h.id)
	}
	f, err := r.openBody(b, kindRelocation)
	if err != nil {
		return nil, err
	}
	if of, err := f.id(bodyVolume); err != nil || of != volume {
		return nil, fmt.Errorf("it is of volume %s", of)
	}
	o := &moveObject{name: name, id: id}
	list := f[bodyReplaces]
	if len(list)%len(id) != 0 || len(list)/len(id) > maxReplaced {
		return nil, fmt.Errorf("what it replaces takes %d bytes, not %d for each of at most %d", len(list), len(id), maxReplaced)
	}
	for other := range slices.Chunk(list, len(id)) {
		o.replaces = append(o.replaces, objectID(other))
	}
	text, err := expand(f[bodyRows], relocationLimit)
	if err != nil {
		return nil, err
	}
	o.relocations, err = parseRelocations(text, volume)
	return o, err
}
