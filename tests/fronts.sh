#!/usr/bin/env bash
# libvirt, Podman and a DHCPv6 client of Debian 13 beside the system, for `make fronts`: a tree of their own, made by
# debootstrap, in which programs run with namespaces of their own; nothing of it is installed here. About 120 MB to fetch,
# 700 MB on disk, four minutes. A tree that is there stays as it is: remove its folder to make it anew. Debian 12's own will
# not do: its libvirt (9.0) refuses `<backend type='passt'/>`, its Podman (4.3) has no pasta.
#
#   tests/fronts.sh                           makes the tree, as root
#   tests/fronts.sh enter DIR PROGRAM...      runs a program in it, as root, DIR being there too (and DIR/resolv.conf, if
#                                             there is one, in the place of /etc's); all ends with the program
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
suite=trixie
tree=${NETREEVE_CACHE:-$root/target/guest}/fronts/$suite
packages=(
  libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86
  podman crun uidmap catatonit iproute2 procps busybox-static netcat-openbsd isc-dhcp-client
)
# The tests' user (tests/src/scene.rs), who has more of them for containers.
user=64001

say() { printf 'fronts: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

make() {
  [ ! -e "$tree/made" ] || return 0
  [ "$(id -u)" = 0 ] || die "a tree is made by root: run 'sudo $0'"
  command -v debootstrap >/dev/null || die "debootstrap is missing: apt-get install debootstrap"
  # The mirror that this machine has Debian's own packages from.
  # shellcheck disable=SC2016 # the words in dollars are apt's
  local mirror=${NETREEVE_MIRROR:-$(apt-get indextargets --format '$(SITE) $(ORIGIN) $(LABEL)' 'Created-By: Packages' |
    sed -n 's/ Debian Debian$//p' | head -n 1)}
  [ -n "$mirror" ] || die "apt knows no mirror of Debian: name one, NETREEVE_MIRROR=URL $0"
  local draft=$tree.draft log=$tree.log
  rm -rf --one-file-system "$draft"
  mkdir -p "$draft"
  say "making a Debian $suite with ${packages[*]}"
  { debootstrap --variant=minbase "$suite" "$draft" "$mirror" &&
    # No services are started in there.
    printf '#!/bin/sh\nexit 101\n' >"$draft/usr/sbin/policy-rc.d" && chmod 755 "$draft/usr/sbin/policy-rc.d" &&
    DEBIAN_FRONTEND=noninteractive chroot "$draft" apt-get -y -o Acquire::Retries=3 --no-install-recommends \
      install "${packages[@]}"; } </dev/null >"$log" 2>&1 ||
    { tail -n 8 "$log" >&2; die "the tree could not be made (all of its words: $log)"; }
  echo "guest:x:$user:$user::/nonexistent:/bin/sh" >>"$draft/etc/passwd"
  echo "guest:x:$user:" >>"$draft/etc/group"
  echo "guest:200000:65536" | tee -a "$draft/etc/subuid" >>"$draft/etc/subgid"
  rm -rf "$draft/var/cache/apt" "$draft/var/lib/apt/lists"
  touch "$draft/made"
  mv -T "$draft" "$tree"
  say "it is in $tree"
}

enter() { # directory, program and arguments: in the namespaces that are wanted
  local dir=$1
  shift
  mount --bind "$tree" "$tree"
  mount --rbind /dev "$tree/dev"
  mount -t proc proc "$tree/proc"
  mount -t sysfs sysfs "$tree/sys"
  # Podman has no cgroups of its own here, and crun wants to see one hierarchy.
  mount -t cgroup2 none "$tree/sys/fs/cgroup"
  mount -t tmpfs -o mode=1777 tmp "$tree/tmp"
  mount -t tmpfs -o mode=1777 tmp "$tree/var/tmp"
  mount -t tmpfs -o mode=755 run "$tree/run"
  case $dir in /tmp/* | /run/*) ;; *) die "$dir is not below /tmp or /run" ;; esac
  mkdir -p "$tree$dir"
  mount --bind "$dir" "$tree$dir"
  [ ! -e "$dir/resolv.conf" ] || mount --bind "$dir/resolv.conf" "$tree/etc/resolv.conf"
  # In a root that is only changed (chroot) nobody may make user namespaces.
  cd "$tree"
  pivot_root . mnt
  umount -l /mnt
  mount -o remount,bind,ro /
  cd /
  exec "$@"
}

case ${1:-make} in
  make) make ;;
  enter)
    [ -e "$tree/made" ] || die "no libvirt and no Podman to test with: run 'tests/fronts.sh' as root (network: 120 MB)"
    shift
    exec unshare --mount --propagation private --pid --fork --kill-child "$0" inside "$@"
    ;;
  inside) shift; enter "$@" ;;
  *) die "see the head of $0" ;;
esac
