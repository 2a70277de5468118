package repo

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"varve/agent/object"
	"varve/layers"
)

// prose is text of some hundred words, drawn with the same seed each time.
func prose(n int) []byte {
	rnd := rand.New(rand.NewPCG(7, 7))
	words := make([]string, 400)
	for i := range words {
		words[i] = fmt.Sprintf("%x", rnd.Uint64()>>(8*rnd.IntN(7)))
	}
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = append(append(b, words[rnd.IntN(1+rnd.IntN(len(words)))]...), ' ')
	}
	return b[:n]
}

// A backup is compressed as it asks for, or else as the repository says, and
// reads the same.
func TestCompression(t *testing.T) {
	text := prose(2 << 20)
	stored := make(map[string]int64)
	for _, repository := range []Compression{0, Fastest, Default} {
		r, err := Init(t.Context(), object.NewMem(), Key{}, Params{NoEncryption: true, Compression: repository})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for _, asked := range []Compression{0, Fastest, Default} {
			b, err := r.Create(t.Context(), Job{
				ID: layers.NewID(), Volume: layers.NewID(), Source: flat{bytes.NewReader(text), int64(len(text))}, Compression: asked,
			})
			if err != nil {
				t.Fatal(err)
			}
			stored[fmt.Sprint(repository, asked)] = b.Stored
			l, err := r.Layer(t.Context(), b.ID)
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(text))
			if _, err := l.ReadAt(got, 0); err != nil || !bytes.Equal(got, text) {
				t.Errorf("compressed as %v, the backup reads otherwise: %v", asked, err)
			}
			l.Close()
		}
		want := "zstd, fastest"
		if repository == Default {
			want = "zstd, default"
		}
		if got := r.Describe().Compression; got != want {
			t.Errorf("a repository made for %v says %q", repository, got)
		}
	}
	fastest, thorough := stored[fmt.Sprint(Fastest, Fastest)], stored[fmt.Sprint(Fastest, Default)]
	if thorough >= fastest*99/100 {
		t.Fatalf("%d bytes by the default level, %d by the fastest", thorough, fastest)
	}
	for how, n := range stored {
		want := fastest
		if strings.HasSuffix(how, fmt.Sprint(Default)) || how == fmt.Sprint(Default, Compression(0)) {
			want = thorough
		}
		if n < want-want/200 || n > want+want/200 { // names and times differ
			t.Errorf("repository and backup %s: %d bytes, want about %d", how, n, want)
		}
	}
}

func TestUnknownCompression(t *testing.T) {
	if _, err := ParseCompression("ultra"); err == nil {
		t.Error("ultra is a compression")
	}
	for _, c := range []Compression{Fastest, Default} {
		if got, err := ParseCompression(c.String()); got != c || err != nil {
			t.Errorf("%v parses as %v, %v", c, got, err)
		}
	}
	r := testRepo(t, object.NewMem(), false)
	job := Job{ID: layers.NewID(), Volume: layers.NewID(), Source: noise{4096}, Compression: 3}
	if _, err := r.Create(t.Context(), job); err == nil {
		t.Error("a backup with compression 3 was made")
	}
}
