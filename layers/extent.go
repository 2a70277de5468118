package layers

// Kind says what a layer holds for a range of bytes. Its values are written to
// disk: see docs/format.md.
type Kind uint8

const (
	Absent Kind = 0 // the layer says nothing: the layers below show through
	Data   Kind = 1 // the layer holds the bytes
	Zero   Kind = 2 // the bytes are zero, and hide the layers below
)

// String returns absent, data or zero.
func (k Kind) String() string {
	switch k {
	case Absent:
		return "absent"
	case Data:
		return "data"
	case Zero:
		return "zero"
	}
	return "unknown"
}

// An Extent is the range [Off, Off+Len) in bytes with one Kind. Len is never
// zero in a sequence of extents.
type Extent struct {
	Off, Len int64
	Kind     Kind
}

// End is the offset of the first byte after the extent.
func (e Extent) End() int64 { return e.Off + e.Len }

// Clip returns the part of e inside [off, off+n), with Len 0 if there is none.
func (e Extent) Clip(off, n int64) Extent {
	start, end := max(e.Off, off), min(e.End(), off+n)
	if end <= start {
		return Extent{Off: start, Kind: e.Kind}
	}
	return Extent{Off: start, Len: end - start, Kind: e.Kind}
}
