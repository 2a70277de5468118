# build   bin/varve
# test    everything, against real servers; installs them first (e2e/setup.sh)
# check   what needs no server: a few minutes, before a commit
# soak    the random and the crash tests, for hours if wanted: make soak SEEDS=1000 (docs/testing.md)
# demo    the main job end to end, on real data, with what each step shows
# bench   speed and size beside other programs (docs/bench.md)
# clean   what the above made
#
# STRICT=1 make test fails where a test would be skipped for want of a tool.

GO ?= go

# Where data races would do harm. The tests in e2e drive other processes, which
# the race detector cannot see into; the crashes in layers are too many for it,
# and are tried again without.
RACED := ./layers/... ./nbd/... ./fuse/... ./catalog/... ./agent/... ./cmd/...

SEEDS ?= 20

.PHONY: build test check lint setup soak demo bench clean

# The version that the program says it has is git's, where git knows one.
VCS := $(if $(shell git describe --always 2>/dev/null),auto,false)

build:
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=$(VCS) -o bin/varve ./cmd/varve

test: setup lint build
	@failed=0; set -x; \
	$(GO) test -race -timeout 25m $(RACED) || failed=1; \
	$(GO) test -timeout 25m ./layers ./e2e/... || failed=1; \
	{ set +x; } 2>/dev/null; exit $$failed

check: lint build
	$(GO) test -race -short -timeout 10m $$($(GO) list $(RACED) | grep -v /agent/object/)

lint:
	$(GO) vet ./...
	@unformatted=$$(git ls-files -co --exclude-standard '*.go' | xargs gofmt -l) && \
	if [ -n "$$unformatted" ]; then echo "not in the form of gofmt:" $$unformatted; exit 1; fi

setup:
	e2e/setup.sh
	e2e/peers.sh

soak: setup build
	e2e/soak.sh $(SEEDS)

demo: build
	e2e/setup.sh mkfs.ext4 nbdfuse fusermount3 qemu-img
	e2e/demo/demo.sh bin/varve

# BENCH is for the harness: make bench BENCH='-quick -only nbd/'.
bench: build setup
	CGO_ENABLED=0 $(GO) build -trimpath -o .tools/bareserver ./e2e/bench/bareserver
	cd e2e/tools && GOBIN=$(CURDIR)/.tools GOWORK=off CGO_ENABLED=0 $(GO) install tool
	$(GO) run ./e2e/bench -varve bin/varve $(BENCH)

clean:
	rm -rf bin .tools
