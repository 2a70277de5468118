package repo

import (
	"bytes"
	"testing"
)

// A frame is expanded to its length and no further than expandSlack beyond it,
// with slack and without; one that holds more or less is refused.
func TestExpandInto(t *testing.T) {
	rnd := newRand(t)
	text := make([]byte, frameBytes)
	for i := range text {
		text[i] = byte(rnd.IntN(1 + i%200)) // some of it shrinks
	}
	for _, n := range []int{1, 4096, frameBytes - 4096, frameBytes} {
		stored := compress(nil, text[:n])
		for _, slack := range []int{0, 1, expandSlack, 3 * expandSlack} {
			buf := bytes.Repeat([]byte{0xa5}, n+4*expandSlack)
			if err := expandInto(buf[:n:n+slack], stored); err != nil || !bytes.Equal(buf[:n], text[:n]) {
				t.Errorf("%d bytes with %d more: %v, or others", n, slack, err)
			}
			after := buf[n+min(slack, expandSlack):]
			if !bytes.Equal(after, bytes.Repeat([]byte{0xa5}, len(after))) {
				t.Errorf("%d bytes with %d more: bytes beyond were written", n, slack)
			}
			for _, other := range []int{n - 1, n + 1, n + expandSlack} {
				if other > len(text) {
					continue
				}
				if err := expandInto(buf[:n:n+slack], compress(nil, text[:other])); err == nil {
					t.Errorf("%d bytes are taken for %d", other, n)
				}
			}
		}
	}
}
