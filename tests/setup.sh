#!/usr/bin/env bash
# Brings a fresh Debian 12 or 13 to where `make demo`, `make test` and `make bench` can run: packages, a Rust toolchain,
# and a Debian kernel for the QEMU guest and other QEMUs, unpacked beside the build and not installed. Safe to run
# again; when all is there it only looks (a tenth of a second). Quiet unless something has to be done; every refusal says what to do.
#
#   tests/setup.sh          what build, demo and test need
#   tests/setup.sh check    only look; exit 1 and one line for each thing that is missing
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cache=${NETREEVE_CACHE:-$root/target/guest}
mode=${1:-install}
rust_needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# ---- packages ----

# What each is for: the compiler and libraries of the BPF object; the guests; the peers; the tools of tests and demo.
packages=(
  gcc make m4 pkg-config clang llvm libelf-dev zlib1g-dev libbpf-dev
  user-mode-linux qemu-system-x86 busybox-static cpio xz-utils
  iperf3 tcpdump tshark iproute2 iputils-ping ethtool libcap2-bin util-linux procps strace bpftool
  dpdk dpdk-dev passt slirp4netns vde2 vdeplug vde-switch vde-wirefilter python3 python3-venv
)
# The drivers of DPDK carry the ABI in their names (23 in Debian 12, 25 in Debian 13): ask apt which one this suite has.
dpdk_drivers=(virtio vhost af-xdp af-packet tap null)

missing_of() { # of the packages named, those not installed
  local have
  have=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' "$@" 2>/dev/null | sed -n 's/^installed //p') || true
  local p
  for p in "$@"; do grep -qxF -- "$p" <<<"$have" || printf '%s\n' "$p"; done
}

missing_drivers() { # librte-net-NAMEnn of the drivers not installed; the bare name when apt must be asked first
  local have d
  have=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' 'librte-net-*' 2>/dev/null | sed -n 's/^installed //p') || true
  for d in "${dpdk_drivers[@]}"; do grep -qE "^librte-net-$d-?[0-9]+$" <<<"$have" || printf '%s\n' "$d"; done
}

install_packages() {
  local want drivers d name
  mapfile -t want < <(missing_of "${packages[@]}")
  mapfile -t drivers < <(missing_drivers)
  [ ${#want[@]} -gt 0 ] || [ ${#drivers[@]} -gt 0 ] || return 0
  if [ "$mode" = check ]; then
    for d in "${want[@]}"; do say "missing package: $d"; done
    for d in "${drivers[@]}"; do say "missing package: librte-net-$d (with the ABI number of this suite)"; done
    return 1
  fi
  [ "$(id -u)" = 0 ] || die "packages are missing (${want[*]} ${drivers[*]}) and this is not root: run 'sudo $0'"
  say "installing: ${want[*]} ${drivers[*]/#/librte-net-}"
  export DEBIAN_FRONTEND=noninteractive
  local apt=(apt-get -qq -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3)
  "${apt[@]}" update >/dev/null || say "apt-get update failed; trying with the lists at hand"
  for d in "${drivers[@]}"; do
    name=$(apt-cache pkgnames "librte-net-$d" | grep -E "^librte-net-$d-?[0-9]+$" | sort -V | tail -n 1)
    if [ -n "$name" ]; then want+=("$name"); else say "no DPDK driver $d in this suite: the tests that need it will say so"; fi
  done
  "${apt[@]}" install -y --no-install-recommends "${want[@]}" </dev/null >"$cache/apt.log" 2>&1 ||
    { tail -n 15 "$cache/apt.log" >&2; die "apt-get could not install them (all of its words: $cache/apt.log)"; }
}

# ---- the Rust toolchain ----

new_enough() { # cargo's version is at least the workspace's rust-version
  local have
  have=$("$1" --version 2>/dev/null | awk '{print $2}') && [ -n "$have" ] || return 1
  [ "$(printf '%s\n%s\n' "$rust_needed" "$have" | sort -V | head -n 1)" = "$rust_needed" ]
}

find_rust() {
  local c
  for c in cargo "${CARGO_HOME:-$HOME/.cargo}/bin/cargo"; do new_enough "$c" && return 0; done
  return 1
}

candidate() { LC_ALL=C apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: \([0-9].*\)/\1/p'; }

install_rust() {
  find_rust && return 0
  local how="install one by https://rustup.rs (user 'root' if root builds), then run this again"
  [ "$mode" = check ] && { say "no cargo $rust_needed or newer: $how"; return 1; }
  [ "$(id -u)" = 0 ] || die "no cargo $rust_needed or newer: $how"
  if [ -n "$(candidate rustup)" ]; then # Debian 13
    say "installing a Rust toolchain by Debian's rustup"
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 install -y --no-install-recommends rustup \
      </dev/null >>"$cache/apt.log" 2>&1 || die "apt-get could not install rustup (see $cache/apt.log); $how"
    rustup toolchain install stable --profile minimal -c rustfmt -c clippy </dev/null >>"$cache/apt.log" 2>&1 ||
      die "rustup could not fetch the stable toolchain (see $cache/apt.log); $how"
    rustup default stable </dev/null >>"$cache/apt.log" 2>&1 || true
  else # Debian 12 has neither rustup nor a cargo that is new enough
    die "no cargo $rust_needed or newer, and this Debian has none ($(candidate cargo || true)): $how"
  fi
  find_rust || die "the toolchain is still older than $rust_needed: $how"
}

# ---- the kernel of the QEMU guest ----

# Debian's cloud kernel, for its small size. Modules are unpacked plain, because busybox's insmod reads no xz. The first
# line must be there; of the others, what is missing is built in: newer kernels have the core of virtio so.
kernel_modules=(
  virtio_net l2tp_eth
  virtio virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci failover net_failover
  udp_tunnel ip6_udp_tunnel l2tp_core l2tp_netlink l2tp_ip l2tp_ip6
  tun veth llc stp bridge overlay vsock vmw_vsock_virtio_transport_common vsock_loopback
)

has_kernel() { # and it was unpacked with the modules that are wanted today
  [ -e "$cache/kernel/vmlinuz" ] && [ "$(cat "$cache/kernel/wanted" 2>/dev/null)" = "${kernel_modules[*]}" ]
}

download_kernel() { # into a directory, with apt's words in `log`
  local image
  image=$(LC_ALL=C apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: *\(linux-image-[0-9].*\)/\1/p' | head -n 1)
  [ -n "$image" ] || { echo "apt knows no linux-image-cloud-amd64" >"$1/log"; return 1; }
  say "fetching $image for the QEMU guest"
  (cd "$1" && apt-get -qq -o APT::Sandbox::User=root download "$image" </dev/null >"$1/log" 2>&1)
}

unpack_kernel() { # in a directory, as `kernel`; no set -e here: fetch_kernel is asked whether it worked
  local m
  # The lists may be older than the archive, or not there: it may be that nothing had to be installed.
  download_kernel "$1" || { [ "$(id -u)" = 0 ] &&
    apt-get -qq -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 update >/dev/null 2>&1
    download_kernel "$1"; } || { tail -n 5 "$1/log" >&2
    say "no kernel for the QEMU guest: run 'apt-get update' as root, with Debian's main section for amd64 in apt's sources"
    return 1; }
  dpkg-deb -x "$1"/linux-image-*.deb "$1/tree" && mkdir -p "$1/kernel/modules" &&
    cp "$1"/tree/boot/vmlinuz-* "$1/kernel/vmlinuz" || return 1
  for m in "${kernel_modules[@]}"; do
    m=$(find "$1/tree" -name "$m.ko" -o -name "$m.ko.xz" | head -n 1)
    case $m in
      *.xz) xz -dc "$m" >"$1/kernel/modules/$(basename "$m" .xz)" || return 1 ;;
      *.ko) cp "$m" "$1/kernel/modules/" || return 1 ;;
    esac
  done
  for m in "${kernel_modules[@]:0:2}"; do
    [ -e "$1/kernel/modules/$m.ko" ] ||
      { say "Debian's kernel has no $m module: its layout has changed"; return 1; }
  done
  printf '%s\n' "${kernel_modules[*]}" >"$1/kernel/wanted"
}

fetch_kernel() {
  has_kernel && return 0
  [ "$mode" = check ] && { say "missing: a kernel for the QEMU guest in $cache/kernel"; return 1; }
  local work done=1
  work=$(mktemp -d "$cache/kernel.XXXXXX")
  chmod 755 "$work" # apt downloads as its own user, where it can
  unpack_kernel "$work" && rm -rf "$cache/kernel" && mv "$work/kernel" "$cache/kernel" && done=0
  rm -rf "$work"
  return $done
}

# ---- other QEMUs ----

# Those of other suites, beside the distribution's. A machine that cannot have them is told by the tests.
fetch_qemu() {
  ! "$root/tests/vmms.sh" check || return 0
  [ "$mode" = check ] && { say "missing: other QEMUs in $cache/qemu: run tests/vmms.sh"; return 1; }
  # Not at every call: a machine without a network would wait each time.
  [ -z "$(find "$cache/qemu.failed" -mmin -60 2>/dev/null)" ] || return 0
  "$root/tests/vmms.sh" && rm -f "$cache/qemu.failed" && return 0
  touch "$cache/qemu.failed"
  say "going on without other QEMUs: the tests that want one will say so"
}

[ "$(uname -m)" = x86_64 ] || die "this is $(uname -m); the guests of tests and demo need amd64"
command -v dpkg-query >/dev/null || die "this is no Debian: install by hand: ${packages[*]}"
mkdir -p "$cache"
ok=0
install_packages || ok=1
install_rust || ok=1
fetch_kernel || ok=1
fetch_qemu || ok=1
exit $ok
