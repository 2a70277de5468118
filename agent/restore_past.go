package agent

import (
	"fmt"

	"varve/agent/repo"
	"varve/catalog"
)

// A restore past damage (RestoreRequest.AllowDamaged) is for the day when a
// backup has lost something and the rest is wanted: what is lost becomes zeros,
// and the operation and the volume say which bytes those are.

const (
	// maxLost bounds the ranges that a restore remembers.
	maxLost = 1 << 14
	// lostListed are the ranges that the record of an operation has.
	lostListed = 400
)

// lose remembers a range that cannot be restored. The checkpoint that leaves it
// behind comes later.
func (s *restoration) lose(l repo.Loss) error {
	if s.state.Why == "" {
		s.state.Why = shorten(l.Err.Error())
	}
	s.state.Lost = append(s.state.Lost, l.Range)
	if len(s.state.Lost) == maxLost {
		s.state.Lost = repo.JoinRanges(s.state.Lost)
		if len(s.state.Lost) > maxLost/2 {
			s.state.Lost, s.state.More = s.state.Lost[:maxLost/2], true
		}
	}
	return nil
}

// tellLost writes into the operation what a restore past damage could not
// restore.
func (s *restoration) tellLost(op *operation) {
	s.state.Lost = repo.JoinRanges(s.state.Lost)
	if len(s.state.Lost) == 0 {
		return
	}
	loss := catalog.Loss{BackupID: s.backup.ID, Name: s.backup.Name, VolumeName: s.backup.VolumeName}
	for _, r := range s.state.Lost {
		loss.Bytes += r.Len
	}
	for _, r := range s.state.Lost[:min(len(s.state.Lost), lostListed)] {
		loss.Ranges = append(loss.Ranges, catalog.Range{Off: r.Off, Len: r.Len})
	}
	finding := catalog.Finding{Expected: "what was backed up", Found: s.state.Why, Backups: []catalog.Loss{loss}}
	op.change(func(r *catalog.Operation) {
		r.Findings, r.Damage = []catalog.Finding{finding}, int64(len(s.state.Lost))
	})
	much := fmt.Sprintf("%d bytes in %d ranges", loss.Bytes, len(s.state.Lost))
	if s.state.More {
		much = "more than " + much
	}
	s.left = fmt.Sprintf("%s of backup %s are lost and read as zeros here, all else is restored; the first damage is: %s", much, s.backup.Name, s.state.Why)
	if s.state.More || len(s.state.Lost) > lostListed {
		s.left += fmt.Sprintf("; all ranges are listed by: varve --target '%s' backup restore %s FILE --allow-damaged", s.target.URL, s.backup.ID)
	}
	s.left = shorten(s.left)
	op.addNote(s.left)
}

// checkPast refuses what a restore past damage cannot do.
func checkPast(r RestoreRequest) error {
	if r.AllowDamaged && r.Adopt {
		return fail(Invalid, "a volume that lost data cannot go on with the backups that have it: restore past damage without adopting, and make a full backup of the new volume")
	}
	return nil
}

// past is how a restore goes past damage; nil if it is not to.
func (s *restoration) past() func(repo.Loss) error {
	if !s.state.Past {
		return nil
	}
	return s.lose
}
