package argon2id

import "golang.org/x/sys/cpu"

// fast says that this machine has AVX2. Tests turn it off.
var fast = cpu.X86.HasAVX2

// mix XORs the compression of x and y onto out: see mixGo.
func mix(out, x, y, scratch *block) {
	if fast {
		mixAVX2(out, x, y, scratch)
		return
	}
	mixGo(out, x, y, scratch)
}

// mixAVX2 is mixGo, four words at a time and two rows or columns at once.
//
//go:noescape
func mixAVX2(out, x, y, scratch *block)
