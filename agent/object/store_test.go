package object_test

import (
	"testing"
	"time"

	"varve/agent/object"
	"varve/agent/object/objecttest"
)

func TestMem(t *testing.T) {
	objecttest.Run(t, func(testing.TB) object.Store { return object.NewMem() })
}

func TestDir(t *testing.T) {
	objecttest.Run(t, func(t testing.TB) object.Store {
		s, err := object.CreateDir(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

// A store that fails one call in three is as good as any behind Retry, also
// when only one request may be under way.
func TestRetryAndLimit(t *testing.T) {
	objecttest.Run(t, func(testing.TB) object.Store {
		flaky := objecttest.Flaky(object.NewMem(), 1, 3)
		return object.Retry(object.Limit(flaky, 1), object.Policy{Base: time.Microsecond, Tries: 60})
	})
}
