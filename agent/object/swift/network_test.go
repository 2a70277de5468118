package swift_test

import (
	"testing"

	"varve/agent/object/objecttest"
	"varve/e2e/testbed"
)

func TestNetwork(t *testing.T) {
	server := testbed.Swift(t)
	proxy := testbed.NewProxy(t, server.URL)
	objecttest.RunNetwork(t, create(t, server.EnvVia(proxy.Address)), proxy)
}
