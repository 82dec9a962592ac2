#!/usr/bin/env bash
# QEMU of other Debian suites, beside the installed one and without touching the system: downloaded by apt under a root of
# its own (signatures are checked as ever), unpacked into the cache, run by its own dynamic loader with its own libraries.
# About 45 MB to fetch and 10 s for each. One that is there stays as it is: remove its folder to fetch it anew.
#
#   tests/vmms.sh [SUITE ...]     bookworm, trixie, forky, sid, ...; default: forky, the newest that is consistent, and where
#                                 the installed one is older than 10, trixie before it: most tests want that
#   tests/vmms.sh check [SUITE ...]   only look: exit 1 if one is missing
#
# Each becomes $cache/qemu/SUITE/qemu-system-x86_64, a script that can be moved with its folder.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cache=${NETREEVE_CACHE:-$root/target/guest}
say() { printf 'vmms: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
there() { [ -e "$cache/qemu/$1/share/efi-virtio.rom" ]; }

only=${1-}
[ "$only" != check ] || shift
if [ $# = 0 ]; then
  set -- forky
  installed=$(qemu-system-x86_64 --version 2>/dev/null | sed -n 's/^QEMU emulator version \([0-9]*\).*/\1/p') || true
  [ "${installed:-0}" -ge 10 ] || set -- trixie "$@"
fi
if [ "$only" = check ]; then
  for suite in "$@"; do there "$suite" || exit 1; done
  exit 0
fi

# The mirror that this machine has Debian's own packages from.
# shellcheck disable=SC2016 # the words in dollars are apt's
mirror=${NETREEVE_MIRROR:-$(apt-get indextargets --format '$(SITE) $(ORIGIN) $(LABEL)' 'Created-By: Packages' |
  sed -n 's/ Debian Debian$//p' | head -n 1)}
keys=/usr/share/keyrings/debian-archive-keyring.gpg

[ -n "$mirror" ] || die "apt knows no mirror of Debian: name one, NETREEVE_MIRROR=URL $0"

# An apt that knows one suite and a machine on which nothing is installed.
configure_apt() { # suite, directory
  mkdir -p "$2/lists/partial" "$2/archives/partial"
  : >"$2/status"
  printf 'deb [arch=amd64 signed-by=%s] %s %s main\n' "$keys" "$mirror" "$1" >"$2/sources.list"
  cat >"$2/apt.conf" <<-END
	Dir::Etc::SourceList "$2/sources.list";
	Dir::Etc::SourceParts "/dev/null";
	Dir::Etc::Preferences "/dev/null";
	Dir::Etc::PreferencesParts "/dev/null";
	Dir::State "$2";
	Dir::State::status "$2/status";
	Dir::State::Lists "$2/lists";
	Dir::Cache "$2";
	Dir::Cache::Archives "$2/archives";
	Dir::Log "$2";
	Acquire::Languages "none";
	Acquire::Retries "3";
	APT::Architecture "amd64";
	APT::Architectures "amd64";
	APT::Install-Recommends "false";
	APT::Sandbox::User "root";
	END
}

# What the program and its modules are linked with, and nothing else, so that a copy is cheap.
gather() { # unpacked packages, where to
  local tree=$1 to=$2 path m
  mkdir -p "$to/lib" "$to/modules" "$to/share" "$to/vdeplug"
  path=$tree/lib/x86_64-linux-gnu:$tree/usr/lib/x86_64-linux-gnu
  find -L "$tree/lib" "$tree/usr/lib" -name ld-linux-x86-64.so.2 -exec cp -L {} "$to/ld.so" \; -quit 2>/dev/null || true
  [ -x "$to/ld.so" ] || die "libc6 has no ld-linux-x86-64.so.2: its layout has changed"
  cp "$tree/usr/bin/qemu-system-x86_64" "$to/qemu"
  for m in "$tree"/usr/lib/x86_64-linux-gnu/qemu/accel-*x86_64.so; do
    [ ! -e "$m" ] || cp "$m" "$to/modules/"
  done
  for m in "$to/qemu" "$to"/modules/*.so; do
    [ ! -e "$m" ] || "$to/ld.so" --library-path "$path" --list "$m"
  done | sed -n '/ld-linux/d; s/.* => \(\/.*\) (0x[0-9a-f]*)$/\1/p' | sort -u | while read -r m; do
    case $m in "$tree"/*) cp -L "$m" "$to/lib/" ;; *) die "$m is not one of the suite's own libraries" ;; esac
  done
  # What libvdeplug speaks to a switch by.
  m=$tree/usr/lib/x86_64-linux-gnu/vdeplug/libvdeplug_vde.so
  [ ! -e "$m" ] || cp -L "$m" "$to/vdeplug/"
  # The firmware of a PC without a screen; QEMU looks for it in one folder.
  for m in seabios/bios.bin seabios/bios-256k.bin qemu/kvmvapic.bin qemu/linuxboot_dma.bin qemu/linuxboot.bin qemu/pvh.bin; do
    [ ! -e "$tree/usr/share/$m" ] || cp -L "$tree/usr/share/$m" "$to/share/"
  done
  # What a NIC has for a firmware that starts from the network, if nobody says that it is to have none.
  find "$tree/usr" \( -name efi-virtio.rom -o -name efi-e1000.rom \) -exec cp -L {} "$to/share/" \;
  [ -e "$to/share/efi-virtio.rom" ] || die "ipxe-qemu has no efi-virtio.rom: its layout has changed"
  cat >"$to/qemu-system-x86_64" <<-'END'
	#!/bin/sh
	here=$(dirname "$0")
	export QEMU_MODULE_DIR="$here/modules" VDEPLUGIN_PATH="$here/vdeplug"
	exec "$here/ld.so" --library-path "$here/lib" "$here/qemu" -L "$here/share" "$@"
	END
  chmod 755 "$to/qemu-system-x86_64"
}

fetch() { # suite
  local to=$cache/qemu/$1 work deb
  ! there "$1" || return 0
  mkdir -p "$cache/qemu"
  work=$(mktemp -d "$cache/qemu/.$1.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -rf '$work'" EXIT
  chmod 755 "$work"
  say "fetching QEMU of Debian $1"
  configure_apt "$1" "$work/apt"
  export APT_CONFIG=$work/apt/apt.conf
  { apt-get -qq update && apt-get -qq -y --download-only install qemu-system-x86 ipxe-qemu; } </dev/null >"$work/log" 2>&1 ||
    { tail -n 8 "$work/log" >&2; die "apt could not fetch QEMU of Debian $1 from $mirror"; }
  for deb in "$work"/apt/archives/*.deb; do dpkg-deb -x "$deb" "$work/tree"; done
  gather "$work/tree" "$work/qemu"
  "$work/qemu/qemu-system-x86_64" --version | sed -n 's/^QEMU emulator version \([0-9.]*\).*/\1/p' >"$work/qemu/version"
  [ -s "$work/qemu/version" ] || die "QEMU of Debian $1 does not run here"
  chmod -R go+rX "$work/qemu"
  rm -rf "$to"
  mv -T "$work/qemu" "$to"
  rm -rf "$work"
  trap - EXIT
  say "QEMU $(cat "$to/version") is in $to"
}

for suite in "$@"; do
  case $suite in *[!a-z0-9-]* | '') die "'$suite' is no suite" ;; esac
  fetch "$suite"
done
