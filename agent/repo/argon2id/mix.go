package argon2id

import "math/bits"

// mixGo is mix for any machine: the compression function G of RFC 9106, section
// 3.5, whose result is XORed onto out. In a first pass that is zero, so the rule
// is the same for all. x and y may be the same; scratch is overwritten.
func mixGo(out, x, y, scratch *block) {
	for i := range scratch {
		r := x[i] ^ y[i]
		scratch[i] = r
		out[i] ^= r
	}
	s := scratch
	for i := 0; i < blockWords; i += 16 { // rows
		round(&s[i], &s[i+1], &s[i+2], &s[i+3], &s[i+4], &s[i+5], &s[i+6], &s[i+7],
			&s[i+8], &s[i+9], &s[i+10], &s[i+11], &s[i+12], &s[i+13], &s[i+14], &s[i+15])
	}
	for i := 0; i < 16; i += 2 { // columns, of pairs
		round(&s[i], &s[i+1], &s[i+16], &s[i+17], &s[i+32], &s[i+33], &s[i+48], &s[i+49],
			&s[i+64], &s[i+65], &s[i+80], &s[i+81], &s[i+96], &s[i+97], &s[i+112], &s[i+113])
	}
	for i := range out {
		out[i] ^= s[i]
	}
}

// round is the permutation P of section 3.6: BLAKE2b's round, with a
// multiplication in it.
func round(v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13, v14, v15 *uint64) {
	quarter(v0, v4, v8, v12)
	quarter(v1, v5, v9, v13)
	quarter(v2, v6, v10, v14)
	quarter(v3, v7, v11, v15)
	quarter(v0, v5, v10, v15)
	quarter(v1, v6, v11, v12)
	quarter(v2, v7, v8, v13)
	quarter(v3, v4, v9, v14)
}

func quarter(a, b, c, d *uint64) {
	half := func(turn, then int) {
		*a += *b + 2*uint64(uint32(*a))*uint64(uint32(*b))
		*d = bits.RotateLeft64(*d^*a, -turn)
		*c += *d + 2*uint64(uint32(*c))*uint64(uint32(*d))
		*b = bits.RotateLeft64(*b^*c, -then)
	}
	half(32, 24)
	half(16, 63)
}
