package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
)

const (
	blockSize = 4 << 10
	fillSize  = 64 << 10 // of the writes that fill NBD volumes
	chunkSize = 1 << 20  // of other sequential work, and the longest run
)

// fillRandom fills p with bytes that depend on seed alone and do not compress.
func fillRandom(p []byte, seed uint64) {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	rand.NewChaCha8(key).Read(p) // never fails
}

// A run is a range of bytes to be overwritten with fillRandom of its seed.
type run struct {
	off, n int64
	seed   uint64
}

// overlay is what one layer of the NBD volumes overwrites: runs of 64 KiB at
// random places, 4 % of the volume. Sixteen blocks together and not one, so
// that qcow2 with its clusters of 64 KiB has to copy nothing.
func overlay(size int64, layer int) []run {
	random := rand.New(rand.NewPCG(uint64(layer), 1))
	runs := make([]run, size/fillSize/25)
	for i := range runs {
		runs[i] = run{off: random.Int64N(size/fillSize) * fillSize, n: fillSize, seed: random.Uint64()}
	}
	return runs
}

// base is the lowest layer of the NBD volumes: all of it, in writes of 64 KiB.
// Longer ones would make the kernel keep the files in folios of up to 2 MiB,
// in which an overwrite of 4 KiB costs ten times as much (ext4, Linux 6.18):
// the random writes would then measure how long a server's earlier writes were.
func base(size int64) []run {
	runs := make([]run, size/fillSize)
	for i := range runs {
		runs[i] = run{off: int64(i) * fillSize, n: fillSize, seed: uint64(i)}
	}
	return runs
}

// scattered is a change of one block in a hundred, drawn uniformly.
func scattered(size int64, seed uint64) []run {
	blocks := size / blockSize
	random := rand.New(rand.NewPCG(seed, 2))
	chosen := make(map[int64]bool)
	var runs []run
	for int64(len(runs)) < blocks/100 {
		if at := random.Int64N(blocks); !chosen[at] {
			chosen[at] = true
			runs = append(runs, run{off: at * blockSize, n: blockSize, seed: random.Uint64()})
		}
	}
	return runs
}

// clustered is a change of as many blocks as scattered, in runs of 64 KiB to
// 1 MiB, one at a random place of each of equal parts of the image.
func clustered(size int64, seed uint64) []run {
	random := rand.New(rand.NewPCG(seed, 3))
	var runs []run
	for left := size / blockSize / 100; left > 0; {
		n := min(left, 16+random.Int64N(241)) // blocks
		runs = append(runs, run{n: n * blockSize, seed: random.Uint64()})
		left -= n
	}
	part := size / int64(len(runs)) / blockSize // blocks
	for i := range runs {
		room := part - runs[i].n/blockSize
		runs[i].off = (int64(i)*part + random.Int64N(max(room, 1))) * blockSize
	}
	return runs
}

// total is the sum of the runs' lengths, in bytes.
func total(runs []run) (n int64) {
	for _, r := range runs {
		n += r.n
	}
	return n
}

// A device is what runs are written to: a file, or an NBD connection.
type device interface {
	WriteAt(p []byte, off int64) (int, error)
}

// overwrite writes the runs to d in order.
func overwrite(ctx context.Context, d device, runs []run) error {
	buf := make([]byte, chunkSize)
	for _, r := range runs {
		if err := ctx.Err(); err != nil {
			return err
		}
		fillRandom(buf[:r.n], r.seed)
		if _, err := d.WriteAt(buf[:r.n], r.off); err != nil {
			return err
		}
	}
	return nil
}

// digest is a checksum of all that a connection's export holds. Taking it also
// brings the export into the page cache.
func digest(ctx context.Context, c *conn) (string, error) {
	sum, buf := sha256.New(), make([]byte, chunkSize)
	for off := int64(0); off < c.size; off += chunkSize {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n := min(chunkSize, c.size-off)
		if _, err := c.ReadAt(buf[:n], off); err != nil {
			return "", err
		}
		sum.Write(buf[:n])
	}
	return fmt.Sprintf("%x", sum.Sum(nil)), nil
}
