package layers

// A Run is the range [Off, Off+Len) in bytes with one number, whose meaning is
// told where runs are made. Len is never zero in a sequence of runs.
type Run struct {
	Off, Len int64
	Value    uint32
}

// End is the offset of the first byte after the run.
func (r Run) End() int64 { return r.Off + r.Len }
