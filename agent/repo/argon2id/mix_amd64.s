#include "textflag.h"

// The state of a round lies in eight registers: A, B, C and D of section 3.6
// for each of two rounds, of four words each. The rounds do not depend on each
// other, so one fills the gaps of the other.
//
// Of a row, A to D are its words 0-3, 4-7, 8-11 and 12-15. Columns are taken two
// by two: a register has the same pair of words of both, so A is v0 v1 and v2 v3
// of two columns in two registers, and so on.

// Bytes of a word turned right by 24 and by 16 bits, in both halves.
DATA turn24<>+0x00(SB)/8, $0x0201000706050403
DATA turn24<>+0x08(SB)/8, $0x0a09080f0e0d0c0b
DATA turn24<>+0x10(SB)/8, $0x0201000706050403
DATA turn24<>+0x18(SB)/8, $0x0a09080f0e0d0c0b
GLOBL turn24<>(SB), NOPTR+RODATA, $32

DATA turn16<>+0x00(SB)/8, $0x0100070605040302
DATA turn16<>+0x08(SB)/8, $0x09080f0e0d0c0b0a
DATA turn16<>+0x10(SB)/8, $0x0100070605040302
DATA turn16<>+0x18(SB)/8, $0x09080f0e0d0c0b0a
GLOBL turn16<>(SB), NOPTR+RODATA, $32

#define A0 Y0
#define B0 Y1
#define C0 Y2
#define D0 Y3
#define A1 Y4
#define B1 Y5
#define C1 Y6
#define D1 Y7
#define T0 Y8
#define T1 Y9
#define TURN24 Y14
#define TURN16 Y15

// p += q + 2*low(p)*low(q), twice.
#define MULADD(p0, q0, p1, q1) \
	VPMULUDQ p0, q0, T0; \
	VPMULUDQ p1, q1, T1; \
	VPADDQ   q0, p0, p0; \
	VPADDQ   q1, p1, p1; \
	VPADDQ   T0, T0, T0; \
	VPADDQ   T1, T1, T1; \
	VPADDQ   T0, p0, p0; \
	VPADDQ   T1, p1, p1

#define QUARTERS \
	MULADD(A0, B0, A1, B1); \
	VPXOR    A0, D0, D0; \
	VPXOR    A1, D1, D1; \
	VPSHUFD  $0xB1, D0, D0; \
	VPSHUFD  $0xB1, D1, D1; \
	MULADD(C0, D0, C1, D1); \
	VPXOR    C0, B0, B0; \
	VPXOR    C1, B1, B1; \
	VPSHUFB  TURN24, B0, B0; \
	VPSHUFB  TURN24, B1, B1; \
	MULADD(A0, B0, A1, B1); \
	VPXOR    A0, D0, D0; \
	VPXOR    A1, D1, D1; \
	VPSHUFB  TURN16, D0, D0; \
	VPSHUFB  TURN16, D1, D1; \
	MULADD(C0, D0, C1, D1); \
	VPXOR    C0, B0, B0; \
	VPXOR    C1, B1, B1; \
	VPADDQ   B0, B0, T0; \
	VPADDQ   B1, B1, T1; \
	VPSRLQ   $63, B0, B0; \
	VPSRLQ   $63, B1, B1; \
	VPXOR    T0, B0, B0; \
	VPXOR    T1, B1, B1

// func mixAVX2(out, x, y, scratch *block)
TEXT ·mixAVX2(SB), NOSPLIT, $0-32
	MOVQ out+0(FP), DI
	MOVQ x+8(FP), SI
	MOVQ y+16(FP), DX
	MOVQ scratch+24(FP), BX
	VMOVDQU turn24<>(SB), TURN24
	VMOVDQU turn16<>(SB), TURN16

	// Rows, two at a time: x XOR y goes onto out as it is and, mixed, to scratch.
	MOVQ $4, CX

rows:
#define LOAD(off, v) \
	VMOVDQU off(SI), v; \
	VPXOR   off(DX), v, v; \
	VPXOR   off(DI), v, T0; \
	VMOVDQU T0, off(DI)

	LOAD(0, A0)
	LOAD(32, B0)
	LOAD(64, C0)
	LOAD(96, D0)
	LOAD(128, A1)
	LOAD(160, B1)
	LOAD(192, C1)
	LOAD(224, D1)
	QUARTERS
	VPERMQ $0x39, B0, B0
	VPERMQ $0x39, B1, B1
	VPERMQ $0x4E, C0, C0
	VPERMQ $0x4E, C1, C1
	VPERMQ $0x93, D0, D0
	VPERMQ $0x93, D1, D1
	QUARTERS
	VPERMQ $0x93, B0, B0
	VPERMQ $0x93, B1, B1
	VPERMQ $0x4E, C0, C0
	VPERMQ $0x4E, C1, C1
	VPERMQ $0x39, D0, D0
	VPERMQ $0x39, D1, D1
	VMOVDQU A0, 0(BX)
	VMOVDQU B0, 32(BX)
	VMOVDQU C0, 64(BX)
	VMOVDQU D0, 96(BX)
	VMOVDQU A1, 128(BX)
	VMOVDQU B1, 160(BX)
	VMOVDQU C1, 192(BX)
	VMOVDQU D1, 224(BX)
	ADDQ $256, SI
	ADDQ $256, DX
	ADDQ $256, DI
	ADDQ $256, BX
	DECQ CX
	JNZ  rows

	// Columns, two at a time: mixed, they go onto out.
	SUBQ $1024, DI
	SUBQ $1024, BX
	MOVQ $4, CX

columns:
	VMOVDQU 0(BX), A0
	VMOVDQU 128(BX), A1
	VMOVDQU 256(BX), B0
	VMOVDQU 384(BX), B1
	VMOVDQU 512(BX), C0
	VMOVDQU 640(BX), C1
	VMOVDQU 768(BX), D0
	VMOVDQU 896(BX), D1
	QUARTERS

	// B is v4 v5, v6 v7 and becomes v5 v6, v7 v4; C changes places; D is v12 v13,
	// v14 v15 and becomes v15 v12, v13 v14.
	VPALIGNR $8, B0, B1, T0
	VPALIGNR $8, B1, B0, B1
	VMOVDQA  T0, B0
	VMOVDQA  C0, T0
	VMOVDQA  C1, C0
	VMOVDQA  T0, C1
	VPALIGNR $8, D1, D0, T0
	VPALIGNR $8, D0, D1, D1
	VMOVDQA  T0, D0
	QUARTERS

	// And back.
	VPALIGNR $8, B1, B0, T0
	VPALIGNR $8, B0, B1, B1
	VMOVDQA  T0, B0
	VMOVDQA  C0, T0
	VMOVDQA  C1, C0
	VMOVDQA  T0, C1
	VPALIGNR $8, D0, D1, T0
	VPALIGNR $8, D1, D0, D1
	VMOVDQA  T0, D0

#define ADD(off, v) \
	VPXOR   off(DI), v, v; \
	VMOVDQU v, off(DI)

	ADD(0, A0)
	ADD(128, A1)
	ADD(256, B0)
	ADD(384, B1)
	ADD(512, C0)
	ADD(640, C1)
	ADD(768, D0)
	ADD(896, D1)
	ADDQ $32, DI
	ADDQ $32, BX
	DECQ CX
	JNZ  columns

	VZEROUPPER
	RET
