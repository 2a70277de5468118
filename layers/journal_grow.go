package layers

// growthRoom is how many times the large journal must be free on the disk before
// a volume takes one. A journal is for speed alone: the last of a disk is for the
// data, and for the others who are on it.
const growthRoom = 4

// growJournal replaces a small journal by a large one, once a volume has shown
// that it needs it and if the disk has room to spare. It is asked again after
// each checkpoint.
func (v *Volume) growJournal() error {
	if v.journal.end >= v.tuning.journalLarge {
		return nil
	}
	free, err := v.d.free()
	if err != nil || free < growthRoom*v.tuning.journalLarge {
		return err
	}
	large, err := createJournal(v.d, journalTemp, v.id, v.tuning.journalLarge)
	if err != nil {
		v.d.remove(journalTemp) // if it was made at all
		return err
	}
	if err := v.writeBack(); err != nil {
		large.f.close() // the first error is the one that counts
		v.d.remove(journalTemp)
		return err
	}
	return v.commits.alone(func() error {
		err := v.checkpoint() // leaves no record alive: nobody else commits
		v.checkpoints.Lock()  // a merge may checkpoint too, which moves the barrier
		defer v.checkpoints.Unlock()
		old := v.journal
		if err == nil {
			err = large.begin(old.gen, old.next.seq)
		}
		if err == nil {
			err = v.d.rename(journalTemp, journalName)
		}
		if err != nil {
			large.f.close() // the first error is the one that counts
			v.d.remove(journalTemp)
			return err
		}
		if err := v.syncDir(); err != nil {
			large.f.close()
			return err
		}
		v.ring.Lock()
		defer v.ring.Unlock()
		v.journal = large
		return old.f.close()
	})
}
