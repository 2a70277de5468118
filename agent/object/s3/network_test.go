package s3_test

import (
	"testing"

	"varve/agent/object/objecttest"
	"varve/e2e/testbed"
)

func TestNetwork(t *testing.T) {
	server := testbed.S3(t)
	proxy := testbed.NewProxy(t, server.URL)
	objecttest.RunNetwork(t, create(t, "http://"+proxy.Address, server.Env()), proxy)
}
