# Everything one does with this checkout, on Debian 12 with Rust and Go, as root. `make help` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install build test test-unit test-root e2e kernels cluster check critest demo bench bench-cluster clean

CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR
# Where the programs of `make build` are put together; e2e/, the demo and the benchmark take them from here.
BIN := $(CURDIR)/target/bin
HOST := $(shell rustc -vV | sed -n 's/^host: //p')

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{ printf "  %-13s %s\n", $$1, $$2 }'

install: ## install Debian packages, CRIU and a registry; quick when they are there
	@hack/install
	@hack/images

# The shim is static, so that one sealed copy serves every pod, and ends by abort: it has nothing to unwind to.
build: install ## build meridiand, meridian and meridian-shim into target/bin
	cargo build --release --workspace --exclude shim
	RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" cargo build --release --package shim --target $(HOST) --config 'profile.release.panic="abort"'
	@mkdir -p $(BIN)
	@install -t $(BIN) $(CARGO_TARGET_DIR)/release/{meridiand,meridian} $(CARGO_TARGET_DIR)/$(HOST)/release/meridian-shim

test: ## run everything CI runs and print one closing line: passed, failed, skipped
	@hack/test

test-unit: ## run the unit tests
	@hack/test unit

test-root: build ## run the tests of single crates that need root
	@hack/test root

e2e: build ## run the end-to-end tests against target/bin
	@hack/install workloads
	@hack/workloads
	@hack/test e2e

kernels: build ## run the kernel-dependent tests in virtual machines with Debian's kernels
	@hack/install kernels
	@hack/test kernels

cluster: build ## run the tests of a two-node Kubernetes cluster whose kubelets run Meridian
	@hack/test cluster

check: ## check format, lints, dependencies and documentation
	@hack/install deny
	@hack/test check

critest: build ## run cri-tools' critest, where it is on PATH, serially and in parallel
	@hack/install critest
	@hack/critest-images
	@hack/critest

demo: build ## move a pod between two nodes on this machine
	@hack/demo

bench: build ## measure beside containerd with runc and crun, into bench/results
	@hack/install peers
	@hack/bench

bench-cluster: build ## measure kubelets on Meridian beside kubelets on containerd, into bench/results
	@hack/install peers kubernetes
	@hack/bench -only cluster

clean: ## remove what was built in this checkout; the cache outside of it stays
	cargo clean
	rm -rf target bench/results/*.json
