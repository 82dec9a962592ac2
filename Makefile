# The two commands of a newcomer are `make demo` and `make test`; both work as root on a fresh Debian 12 or 13.
.DELETE_ON_ERROR:
.SILENT:
.PHONY: help setup build demo test test-unit test-root test-ports test-crates test-units test-real vmms fronts test-fuzz soak bench bench-quick check fuzz doc deb

# The profile of the binaries under test: nearly the speed of release, a quarter of its build time.
PROFILE ?= fast
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
BINS := $(TARGET)/$(PROFILE)
CARGO := $(or $(shell command -v cargo 2>/dev/null),$(HOME)/.cargo/bin/cargo)
# Tests of the root and the real tier share the machine, its two cores and its clock: one at a time.
ALONE := --test-threads=1
# `cargo test` that ends a test that hangs (NETREEVE_TEST_LIMIT=seconds without a sign of life; 600).
TEST := $(CARGO) --config "target.'cfg(all())'.runner = '$(CURDIR)/tests/limit.py'" test
# Seconds for each fuzz target, in `make test` and in `make fuzz`.
FUZZ_SHORT ?= 5
FUZZ_LONG ?= 600

export NETREEVE_BIN_DIR := $(BINS)

# The integration tests in tests/tests: those called real* need guests and other foreign programs, the others do not.
tests := $(basename $(notdir $(wildcard tests/tests/*)))
real := $(filter real%,$(tests))

help: ## this list
	sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup:
	tests/setup.sh

build: setup ## the programs, in target/fast
	$(CARGO) build --quiet --profile $(PROFILE) --workspace --bins

demo: build ## guests on AF_XDP, tap, bridge and QEMU, a crash, and what the kernel says of our processes
	$(CARGO) run --quiet --profile $(PROFILE) -p netreeve-tests --bin demo

test: build test-unit test-root test-real test-fuzz ## every tier
	echo "every tier has passed"

test-unit: ## no privilege, no devices
	$(TEST) --no-fail-fast --workspace --lib --bins

# One after the other, and all of them with --keep-going.
test-root: test-ports test-crates test-units ## namespaces and real kernel objects

test-ports: build
	$(TEST) --no-fail-fast -p netreeve-tests $(addprefix --test ,$(filter-out $(real),$(tests))) -- $(ALONE)

test-crates: build
	$(TEST) --no-fail-fast -p netreeve-helper -p netreeve-dataplane --test '*' -- $(ALONE)

test-units: build
	tests/units/run

test-real: build ## guests, VMMs and other foreign programs
	$(TEST) --no-fail-fast --profile $(PROFILE) -p netreeve-tests $(addprefix --test ,$(real)) -- $(ALONE)

vmms: build ## the VMM's side with the QEMUs of Debian 12, 13 and testing
	tests/vmms.sh bookworm trixie forky
	$(TEST) --no-fail-fast --profile $(PROFILE) -p netreeve-tests --test real -- $(ALONE) --nocapture vmm::

fronts: build ## libvirt and Podman of Debian 13 on our passt and pasta, in a tree of their own: three minutes once it is made
	tests/fronts.sh
	$(TEST) --no-fail-fast --profile $(PROFILE) -p netreeve-tests --test real -- $(ALONE) --nocapture --include-ignored fronts::

test-fuzz: setup
	if [ -x tests/fuzz/run ]; then tests/fuzz/run $(FUZZ_SHORT); else echo "no fuzz targets in this tree"; fi

soak: build ## dataplane and VMM killed 200 times each under load; 10 GiB each way through a user network
	NETREEVE_TIMES=200 $(CARGO) test --profile $(PROFILE) -p netreeve-tests --test real -- $(ALONE) --nocapture \
	--include-ignored crash:: soak::

# Words for the bench: rows by a piece of their names, as in `make bench ONLY=tap`, or any others of its own in BENCH.
BENCH ?=
bench_words = $(if $(ONLY),--only '$(ONLY)') $(BENCH)

bench: build ## figures beside the raw limits and beside others, as ratios: forty minutes (ONLY=piece of a row's name)
	$(CARGO) run --quiet --profile $(PROFILE) -p netreeve-tests --bin bench -- $(bench_words)

bench-quick: build ## the same with fewer and shorter rounds: four minutes (BENCH=--list: what there is)
	$(CARGO) run --quiet --profile $(PROFILE) -p netreeve-tests --bin bench -- --quick $(bench_words)

fuzz: setup ## ten minutes for each fuzz target (FUZZ_LONG=seconds)
	if [ -x tests/fuzz/run ]; then tests/fuzz/run $(FUZZ_LONG); else echo "no fuzz targets in this tree" >&2; exit 1; fi

check: ## format, lints, licences and sources of dependencies, and the shape of the tree
	$(CARGO) fmt --all --check
	$(CARGO) clippy --quiet --workspace --all-targets -- -D warnings
	cd tests/xsk-peer && $(CARGO) fmt --check && \
	CARGO_TARGET_DIR=$(TARGET)/xsk-peer $(CARGO) clippy --quiet --release --locked -- -D warnings
	tests/deny.sh $(CARGO)
	$(CARGO) test --quiet -p netreeve-tests --test shape
	tests/packaging.sh

deb: ## Debian packages, in target/debian (NETREEVE_PROFILE=fast: sooner and slower; options: packaging/debian/build -h)
	packaging/debian/build
