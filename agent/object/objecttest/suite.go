// Package objecttest is the test of what [object.Store] promises. Every
// implementation passes it:
//
//	func TestStore(t *testing.T) {
//		objecttest.Run(t, func(t testing.TB) object.Store { return object.NewMem() })
//	}
//
// [Flaky] and [Hook] make a good Store a bad one, for tests of what is built on
// top.
package objecttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/agent/object"
)

// Run tests the Stores that open returns. Each call of open returns one that is
// empty and shares nothing with the others; what it needs to be taken down it
// gives to t.Cleanup. The Store's listing must show what was put before.
func Run(t *testing.T, open func(t testing.TB) object.Store) {
	RunSmall(t, open)
	t.Run("ManyNames", func(t *testing.T) { testManyNames(t, open(t)) })
}

// RunSmall is Run without the thousands of objects that prove paging, for a
// Store that differs from one that passes Run in its log-in only.
func RunSmall(t *testing.T, open func(t testing.TB) object.Store) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, s object.Store)
	}{
		{"PutGet", testPutGet},
		{"Ranges", testRanges},
		{"Missing", testMissing},
		{"Overwrite", testOverwrite},
		{"List", testList},
		{"ListWhileUsing", testListWhileUsing},
		{"Delete", testDelete},
		{"Names", testNames},
		{"Cancel", testCancel},
		{"ConcurrentPuts", testConcurrentPuts},
		{"Large", testLarge},
		{"BufferNotKept", testBufferNotKept},
		{"ReadAll", testReadAll},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

// Bytes returns n bytes that seed determines and no compression shortens.
func Bytes(seed uint64, n int) []byte {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	data := make([]byte, n)
	rand.NewChaCha8(key).Read(data) // never fails
	return data
}

func put(t testing.TB, s object.Store, name string, data []byte) {
	t.Helper()
	if err := s.Put(t.Context(), name, data); err != nil {
		t.Fatal(err)
	}
}

// holds fails the test unless the object has exactly these bytes.
func holds(t testing.TB, s object.Store, name string, want []byte) {
	t.Helper()
	got, err := object.ReadAll(t.Context(), s, name, int64(len(want)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("object %s: got %d bytes that differ from the %d bytes put", name, len(got), len(want))
	}
}

func list(t testing.TB, s object.Store, prefix string) []string {
	t.Helper()
	var names []string
	for info, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, info.Name)
	}
	return names
}

func testPutGet(t *testing.T, s object.Store) {
	for _, size := range []int{0, 1, 511, 4096, 65536, 1<<20 + 1} {
		name := fmt.Sprintf("size/%d", size)
		data := Bytes(uint64(size), size)
		put(t, s, name, data)

		p := make([]byte, size)
		if n, err := s.Get(t.Context(), name, p, 0); n != size || err != nil && !(size == 0 && err == io.EOF) {
			t.Errorf("Get of all %d bytes: got %d, %v", size, n, err)
		}
		if !bytes.Equal(p, data) {
			t.Errorf("object of %d bytes: got other bytes than were put", size)
		}
		p = make([]byte, size+1)
		if n, err := s.Get(t.Context(), name, p, 0); n != size || err != io.EOF {
			t.Errorf("Get of one byte more than the %d there are: got %d, %v; want %d, EOF", size, n, err, size)
		}
		if !bytes.Equal(p[:size], data) {
			t.Errorf("object of %d bytes, read past its end: got other bytes than were put", size)
		}
	}
}

func testRanges(t *testing.T, s object.Store) {
	const size = 100_000
	data := Bytes(1, size)
	put(t, s, "r", data)
	for _, c := range []struct {
		off int64
		n   int
	}{
		{0, 1}, {0, size}, {1, 1}, {4096, 4096}, {size - 1, 1}, {size - 10, 10}, // inside
		{size - 10, 11}, {size - 1, 4096}, {0, 2 * size}, // over the end
		{size, 1}, {size, 4096}, {size + 1, 1}, {10 * size, 10}, {1 << 50, 1}, // behind it
		{0, 0}, {5, 0}, {size, 0}, {size + 1, 0}, // nothing asked
	} {
		var want []byte
		if c.off < size {
			want = data[c.off:min(size, c.off+int64(c.n))]
		}
		var wantErr error
		if c.off+int64(c.n) > size || c.off == size {
			wantErr = io.EOF
		}
		p := Bytes(2, c.n+8)
		after := bytes.Clone(p[c.n:])
		n, err := s.Get(t.Context(), "r", p[:c.n], c.off)
		if n != len(want) || err != wantErr || !bytes.Equal(p[:n], want) {
			t.Errorf("Get of [%d, +%d) of %d bytes: got %d bytes, %v; want %d right bytes, %v", c.off, c.n, size, n, err, len(want), wantErr)
		}
		if !bytes.Equal(p[c.n:], after) {
			t.Errorf("Get of [%d, +%d) wrote behind p", c.off, c.n)
		}
	}
	if _, err := s.Get(t.Context(), "r", make([]byte, 1), -1); err == nil || err == io.EOF {
		t.Errorf("Get at offset -1: got %v, want an error", err)
	}
}

func testMissing(t *testing.T, s object.Store) {
	put(t, s, "there/file", []byte("x"))
	for _, name := range []string{"no", "no/such/object", "there/no", "there"} {
		for _, n := range []int{0, 1, 1 << 20} {
			got, err := s.Get(t.Context(), name, make([]byte, n), 0)
			if got != 0 || !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Get of %d bytes of missing %q: got %d, %v; want 0, fs.ErrNotExist", n, name, got, err)
			}
			if err != nil && (!strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "get")) {
				t.Errorf("the error does not name the operation and the object %q: %v", name, err)
			}
		}
		if _, err := object.ReadAll(t.Context(), s, name, 10); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("ReadAll of missing %q: got %v", name, err)
		}
		if err := s.Delete(t.Context(), name); err != nil {
			t.Errorf("Delete of missing %q: %v", name, err)
		}
	}
	holds(t, s, "there/file", []byte("x"))
}

func testOverwrite(t *testing.T, s object.Store) {
	for i, size := range []int{10, 100_000, 50, 0, 3} {
		data := Bytes(uint64(i), size)
		put(t, s, "same/name", data)
		holds(t, s, "same/name", data)
	}
	if got := list(t, s, ""); !slices.Equal(got, []string{"same/name"}) {
		t.Errorf("after overwriting the list is %q", got)
	}
}

func testList(t *testing.T, s object.Store) {
	// In byte order '-' < '.' < '/' < '0', so a folder sorts between its
	// neighbours in a way that a walk of a tree easily gets wrong.
	names := []string{
		"a-", "a-b", "a.", "a.b/c", "a/-", "a/b", "a/b-c/d", "a/bb/c", "a0", "aa", "b/c/d/e/f/g", "b/c0", "repo",
		"v/0123456789abcdef/b/0000000000000001-1",
		"v/0123456789abcdef/k/1",
	}
	if !slices.IsSorted(names) {
		t.Fatal("the test's own names are out of order")
	}
	before := time.Now()
	for _, i := range rand.New(rand.NewPCG(1, 2)).Perm(len(names)) {
		put(t, s, names[i], make([]byte, 3*i))
	}
	for _, prefix := range []string{"", "a", "a-", "a/", "a/b", "a/b-c/", "a/bb/c", "a/bb/cc", "b", "b/c", "b/c/", "rep", "v/", "v/01", "x", "zz/"} {
		var want []string
		for _, name := range names {
			if strings.HasPrefix(name, prefix) {
				want = append(want, name)
			}
		}
		if got := list(t, s, prefix); !slices.Equal(got, want) {
			t.Errorf("List(%q): got %q, want %q", prefix, got, want)
		}
	}
	for info, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if want := 3 * slices.Index(names, info.Name); info.Size != int64(want) {
			t.Errorf("List says that %s has %d bytes, want %d", info.Name, info.Size, want)
		}
		if age := info.Modified.Sub(before); age < -time.Minute || age > time.Hour {
			t.Errorf("List says that %s was modified at %v, and it was put after %v", info.Name, info.Modified, before)
		}
	}
	for range s.List(t.Context(), "") {
		break // must stop without a panic
	}
}

func testListWhileUsing(t *testing.T, s object.Store) {
	for i := range 5 {
		put(t, s, fmt.Sprintf("n/%d", i), []byte{byte(i)})
	}
	count := 0
	for info, err := range s.List(t.Context(), "n/") {
		if err != nil {
			t.Fatal(err)
		}
		holds(t, s, info.Name, []byte{byte(count)})
		if err := s.Delete(t.Context(), info.Name); err != nil {
			t.Fatal(err)
		}
		count++
	}
	if count != 5 {
		t.Errorf("a list whose objects are deleted on the way yielded %d of 5", count)
	}
}

// parallel calls f(i) for each i below n, some at a time.
func parallel(t testing.TB, n int, f func(i int) error) {
	t.Helper()
	next := make(chan int)
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			for i := range next {
				if err := f(i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	group.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// testManyNames has more objects than a page of any store's listing, and
// deletes more than a bulk request takes.
func testManyNames(t *testing.T, s object.Store) {
	if testing.Short() {
		t.Skip("needs thousands of requests")
	}
	const count = 1030
	var names []string
	for i := range count {
		names = append(names, fmt.Sprintf("p/%02x/%05d", i>>8, i))
	}
	parallel(t, count, func(i int) error { return s.Put(t.Context(), names[i], []byte("x")) })
	if got := list(t, s, "p/"); !slices.Equal(got, names) {
		t.Errorf("List of %d objects: got %d, or in another order", count, len(got))
	}
	if got := list(t, s, "p/02/"); !slices.Equal(got, names[2<<8:3<<8]) {
		t.Errorf("List of 256 of the objects: got %d, or in another order", len(got))
	}
	missing := []string{"p/gone", "gone"}
	if err := s.Delete(t.Context(), append(missing, names[:count-1]...)...); err != nil {
		t.Fatal(err)
	}
	if got := list(t, s, ""); !slices.Equal(got, names[count-1:]) {
		t.Errorf("after deleting all but one, List yields %d objects", len(got))
	}
}

func testDelete(t *testing.T, s object.Store) {
	if err := s.Delete(t.Context()); err != nil {
		t.Errorf("Delete of nothing: %v", err)
	}
	for _, name := range []string{"a", "b", "c", "d/e"} {
		put(t, s, name, []byte(name))
	}
	if err := s.Delete(t.Context(), "a", "no", "d/e", "a"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "d/e"} {
		if _, err := s.Get(t.Context(), name, make([]byte, 1), 0); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Get of deleted %q: got %v, want fs.ErrNotExist", name, err)
		}
	}
	if got := list(t, s, ""); !slices.Equal(got, []string{"b", "c"}) {
		t.Errorf("after deleting, the list is %q", got)
	}
	put(t, s, "a", []byte("again"))
	holds(t, s, "a", []byte("again"))
}

func testNames(t *testing.T, s object.Store) {
	long := strings.Repeat("abcdefghi/", 19) + "0123456789"
	for _, name := range []string{"0", "a.b", ".hidden", "..a", "a..", "...", "-", "abcdefghijklmnopqrstuvwxyz0123456789-.", long} {
		put(t, s, name, []byte(name))
		holds(t, s, name, []byte(name))
	}
	count := len(list(t, s, ""))
	for _, name := range []string{
		"", "/", "/a", "a/", "x//y", "x/./y", "x/../y", ".", "..", "../x", "x/..", "A", "x_y", "x y", "x\x00y", "ä", "x\ny", "x%2fy", "x?y", "x#y", "x\\y",
		long + "1",
	} {
		_, getErr := s.Get(t.Context(), name, make([]byte, 1), 0)
		for op, err := range map[string]error{"Put": s.Put(t.Context(), name, []byte("x")), "Get": getErr, "Delete": s.Delete(t.Context(), name)} {
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s of name %q: got %v, want it refused", op, name, err)
			}
		}
	}
	if got := list(t, s, ""); len(got) != count {
		t.Errorf("refused names have left objects: %q", got)
	}
}

func testCancel(t *testing.T, s object.Store) {
	put(t, s, "a", []byte("a"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, getErr := s.Get(ctx, "a", make([]byte, 1), 0)
	var listErr error
	for _, listErr = range s.List(ctx, "") {
	}
	for op, err := range map[string]error{
		"Put": s.Put(ctx, "a", []byte("b")), "Get": getErr, "List": listErr, "Delete": s.Delete(ctx, "a"),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s with an ended context: got %v, want context.Canceled", op, err)
		}
	}
	holds(t, s, "a", []byte("a"))
}

func testConcurrentPuts(t *testing.T, s object.Store) {
	const writers = 8
	var contents [][]byte
	for i := range writers {
		contents = append(contents, Bytes(uint64(i), 200_000+i))
	}
	parallel(t, writers, func(i int) error {
		if err := s.Put(t.Context(), fmt.Sprintf("own/%d", i), contents[i]); err != nil {
			return err
		}
		return s.Put(t.Context(), "shared", contents[i])
	})
	for i := range writers {
		holds(t, s, fmt.Sprintf("own/%d", i), contents[i])
	}
	got, err := object.ReadAll(t.Context(), s, "shared", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(contents, func(c []byte) bool { return bytes.Equal(c, got) }) {
		t.Errorf("after %d Puts at once the object holds %d bytes that none of them put", writers, len(got))
	}
}

func testLarge(t *testing.T, s object.Store) {
	const size = 32 << 20
	data := Bytes(32, size)
	put(t, s, "p/ab/large", data)
	holds(t, s, "p/ab/large", data)
	p := make([]byte, 128<<10)
	if n, err := s.Get(t.Context(), "p/ab/large", p, size/2+1); n != len(p) || err != nil || !bytes.Equal(p, data[size/2+1:][:len(p)]) {
		t.Errorf("Get from the middle of a large object: got %d, %v, or wrong bytes", n, err)
	}
}

func testBufferNotKept(t *testing.T, s object.Store) {
	data := Bytes(1, 100_000)
	want := bytes.Clone(data)
	put(t, s, "a", data)
	clear(data)
	holds(t, s, "a", want)
	p := make([]byte, len(want))
	if _, err := s.Get(t.Context(), "a", p, 0); err != nil {
		t.Fatal(err)
	}
	clear(p)
	holds(t, s, "a", want)
}

func testReadAll(t *testing.T, s object.Store) {
	for _, size := range []int{0, 1, 65535, 65536, 65537, 200_000} {
		data := Bytes(uint64(size), size)
		put(t, s, "a", data)
		for _, limit := range []int{size, size + 1, 10 * size} {
			got, err := object.ReadAll(t.Context(), s, "a", int64(limit))
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("ReadAll of %d bytes with limit %d: got %d bytes, %v", size, limit, len(got), err)
			}
		}
		if size > 0 {
			if _, err := object.ReadAll(t.Context(), s, "a", int64(size-1)); err == nil || !strings.Contains(err.Error(), "larger") {
				t.Errorf("ReadAll of %d bytes with a limit of one less: got %v", size, err)
			}
		}
	}
}
