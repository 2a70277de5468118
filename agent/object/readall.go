package object

import (
	"context"
	"fmt"
	"io"
)

// firstRead is how much ReadAll asks for at first, in bytes: most objects that
// are read whole are smaller, and then one request is enough.
const firstRead = 64 << 10

// ReadAll reads an object whose size is not known. An object of more than limit
// bytes is an error, found before more than twice the limit was asked for.
func ReadAll(ctx context.Context, s Store, name string, limit int64) ([]byte, error) {
	if limit < 0 {
		panic("object: negative limit")
	}
	var data []byte
	for size := min(firstRead, limit+1); ; size = min(2*size, limit+1) {
		off := int64(len(data))
		grown := make([]byte, size)
		copy(grown, data)
		n, err := s.Get(ctx, name, grown[off:], off)
		if err != nil && err != io.EOF {
			return nil, err
		}
		data = grown[:off+int64(n)]
		switch {
		case int64(len(data)) > limit:
			return nil, fmt.Errorf("read %s: the object is larger than the %d bytes allowed", name, limit)
		case err == io.EOF:
			return data, nil
		}
	}
}
