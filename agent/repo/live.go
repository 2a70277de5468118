package repo

import "math/bits"

// A liveSet is which sections of a pack maps name, each once however often they
// do.
type liveSet struct {
	words []uint64 // a bit for each section
	bytes int64    // stored
}

func (l *liveSet) has(number uint32) bool {
	at := int(number / 64)
	return at < len(l.words) && l.words[at]>>(number%64)&1 != 0
}

func (l *liveSet) take(number, stored uint32) {
	if l.has(number) || number >= maxSections {
		return
	}
	for at := int(number / 64); at >= len(l.words); {
		l.words = append(l.words, 0)
	}
	l.words[number/64] |= 1 << (number % 64)
	l.bytes += int64(stored)
}

// count is how many sections are named.
func (l *liveSet) count() (n int) {
	for _, w := range l.words {
		n += bits.OnesCount64(w)
	}
	return n
}

// maxSections is more than a pack has; what says otherwise is not believed.
const maxSections = 1 << 20
