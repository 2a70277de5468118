package repo

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"math"
	"strconv"
	"strings"

	"varve/layers"
)

// Names of objects: docs/format.md 2.1.
const (
	headName    = "repo"
	slotPrefix  = "k/"
	volumesRoot = "v/"
	sessionRoot = "s/"
	listRoot    = "g/"
)

// An objectID names a sealed object: 8 bytes of the backup that wrote it, its
// session, then 12 random ones.
type objectID [20]byte

func newObjectID(backup layers.ID) objectID {
	var id objectID
	copy(id[:8], backup[8:])
	rand.Read(id[8:]) // never fails: crypto/rand
	return id
}

func (id objectID) String() string { return hex.EncodeToString(id[:]) }

// A place says under which prefix a pack stands. Its values are written.
type place uint8

const (
	inData   place = 0 // p/
	inLeaves place = 1 // m/
)

// packName is the name of the object of a pack.
func packName(where place, id objectID) string {
	prefix := "p/"
	if where == inLeaves {
		prefix = "m/"
	}
	digits := id.String()
	return prefix + digits[38:] + "/" + digits
}

func slotName(id layers.ID) string { return slotPrefix + id.String() }

// parseSlotName reads what slotName wrote.
func parseSlotName(name string) (layers.ID, bool) {
	id, err := layers.ParseID(strings.TrimPrefix(name, slotPrefix))
	return id, err == nil && slotName(id) == name
}

// parsePack reads what packName wrote.
func parsePack(name string) (where place, id objectID, ok bool) {
	switch {
	case strings.HasPrefix(name, "p/"):
		where = inData
	case strings.HasPrefix(name, "m/"):
		where = inLeaves
	}
	digits := name[strings.LastIndexByte(name, '/')+1:]
	if len(digits) != 2*len(id) {
		return where, id, false
	}
	_, err := hex.Decode(id[:], []byte(digits))
	return where, id, err == nil && packName(where, id) == name
}

// A sessionID is the front of the names of all packs that a backup writes.
type sessionID [8]byte

func sessionOf(backup layers.ID) sessionID { return sessionID(backup[8:]) }
func (id objectID) session() sessionID     { return sessionID(id[:8]) }

func listName(id layers.ID) string { return listRoot + id.String() }

// parseList reads what listName wrote.
func parseList(name string) (layers.ID, bool) {
	id, err := layers.ParseID(strings.TrimPrefix(name, listRoot))
	return id, err == nil && listName(id) == name
}

func volumePrefix(volume layers.ID) string { return volumesRoot + volume.String() + "/" }

func volumeKeyName(ref keyRef) string {
	return fmt.Sprintf("%sk/%016x-%016x", volumePrefix(ref.volume), ref.epoch, ref.id)
}

func tombstoneName(volume, backup layers.ID) string {
	return volumePrefix(volume) + "d/" + backup.String()
}

// holdName is the name of one protection of a backup.
func holdName(volume, backup layers.ID, id objectID) string {
	return volumePrefix(volume) + "h/" + backup.String() + "-" + id.String()
}

func sessionName(backup layers.ID, n int64) string {
	return fmt.Sprintf("%s%s-%08d", sessionRoot, backup, n)
}

// parseSession reads what sessionName wrote.
func parseSession(name string) (backup layers.ID, n int64, ok bool) {
	text, found := strings.CutPrefix(name, sessionRoot)
	if !found || len(text) != 36+1+8 || text[36] != '-' {
		return backup, 0, false
	}
	backup, err := layers.ParseID(text[:36])
	if err != nil {
		return backup, 0, false
	}
	n, err = strconv.ParseInt(text[37:], 10, 64)
	return backup, n, err == nil && sessionName(backup, n) == name
}

// A rootName is what the name of a root says.
type rootName struct {
	volume layers.ID
	epoch  uint64 // of the writer's claim
	seq    uint64 // of the backup in its volume
	backup layers.ID
}

// parseRoot reads what rootName.String wrote.
func parseRoot(name string) (rootName, bool) {
	n, ok := parseVolumeName(name)
	if !ok {
		return rootName{}, false
	}
	return n.root()
}

func (n rootName) String() string {
	return fmt.Sprintf("%sb/%016x-%016x-%s", volumePrefix(n.volume), n.epoch, n.seq, n.backup)
}

// volumeName is a name below v/VOLUME/, cut at the slash: its kind is k, b, c, d,
// h, r or one of those that are laid out for later.
type volumeName struct {
	volume layers.ID
	kind   string
	rest   string
}

func parseVolumeName(name string) (volumeName, bool) {
	parts := strings.Split(name, "/")
	if len(parts) != 4 || parts[0]+"/" != volumesRoot {
		return volumeName{}, false
	}
	volume, err := layers.ParseID(parts[1])
	return volumeName{volume, parts[2], parts[3]}, err == nil && volume.String() == parts[1]
}

func (n volumeName) String() string { return volumePrefix(n.volume) + n.kind + "/" + n.rest }

func (n volumeName) root() (rootName, bool) {
	if n.kind != "b" || len(n.rest) != 16+1+16+1+36 || n.rest[16] != '-' || n.rest[33] != '-' {
		return rootName{}, false
	}
	epoch, err1 := strconv.ParseUint(n.rest[:16], 16, 64)
	seq, err2 := strconv.ParseUint(n.rest[17:33], 16, 64)
	backup, err3 := layers.ParseID(n.rest[34:])
	root := rootName{n.volume, epoch, seq, backup}
	return root, err1 == nil && err2 == nil && err3 == nil && root.String() == n.String()
}

func (n volumeName) tombstone() (layers.ID, bool) {
	if n.kind != "d" {
		return layers.ID{}, false
	}
	id, err := layers.ParseID(n.rest)
	return id, err == nil && id.String() == n.rest
}

// hold returns the backup that the name of a hold protects.
func (n volumeName) hold() (layers.ID, bool) {
	if n.kind != "h" || len(n.rest) != 36+1+40 || n.rest[36] != '-' {
		return layers.ID{}, false
	}
	id, err := layers.ParseID(n.rest[:36])
	return id, err == nil && id.String() == n.rest[:36]
}

// A claimName is what the name of a claim says.
type claimName struct {
	volume layers.ID
	epoch  uint64
	id     layers.ID
}

func (n claimName) String() string {
	return fmt.Sprintf("%sc/%016x-%s", volumePrefix(n.volume), n.epoch, n.id)
}

func (n volumeName) claim() (claimName, bool) {
	if n.kind != "c" || len(n.rest) != 16+1+36 || n.rest[16] != '-' {
		return claimName{}, false
	}
	epoch, err1 := strconv.ParseUint(n.rest[:16], 16, 64)
	id, err2 := layers.ParseID(n.rest[17:])
	name := claimName{n.volume, epoch, id}
	return name, err1 == nil && err2 == nil && epoch >= 2 && epoch <= math.MaxInt64 && name.String() == n.String()
}

func (c *Claim) name() claimName { return claimName{c.Volume, c.Epoch, c.ID} }

func (n volumeName) key() (keyRef, bool) {
	if n.kind != "k" || len(n.rest) != 16+1+16 || n.rest[16] != '-' {
		return keyRef{}, false
	}
	epoch, err1 := strconv.ParseUint(n.rest[:16], 16, 32)
	id, err2 := strconv.ParseUint(n.rest[17:], 16, 64)
	ref := keyRef{n.volume, uint32(epoch), id}
	return ref, err1 == nil && err2 == nil && volumeKeyName(ref) == n.String()
}
