package object

import (
	"errors"
	"io"
	"net/http"
)

const (
	// maxAnswer bounds an answer that is not an object, such as a page of a
	// listing: ten thousand names of a kilobyte each are less.
	maxAnswer = 16 << 20
	// maxComplaint bounds an answer that says why something was not done.
	maxComplaint = 1 << 20
)

// bounded makes the body of an answer end in an error where no honest answer
// goes on: libraries take them into memory whole. The content of an object is
// asked for by its range, and read no further than that.
func bounded(r *http.Request, answer *http.Response) io.ReadCloser {
	switch {
	case answer.StatusCode >= 300:
		return &boundedBody{answer.Body, maxComplaint}
	case r.Header.Get("Range") == "":
		return &boundedBody{answer.Body, maxAnswer}
	}
	return answer.Body
}

type boundedBody struct {
	io.ReadCloser
	left int64 // bytes; below 0: it has gone on for too long
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errEndless
	}
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errEndless
	}
	return n, err
}

var errEndless = errors.New("the server's answer goes on and on: it is none of a store")
