#!/usr/bin/env bash
# Lints what is in packaging/ with the tools that are there: units, AppArmor profiles, manual pages, completions, recipes,
# the RPM spec and the Debian files. Touches nothing. What the options' own tests check (every key in the manual, every
# example is read) is not repeated here.
set -euo pipefail
cd "$(dirname "$0")/../packaging"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0
fail() { printf 'packaging: %s\n' "$*"; bad=1; }
have() { # TOOL WHAT: is it there? else says what is not checked
  command -v "$1" >/dev/null && return 0
  printf 'packaging: skipped: %s, because %s is not installed\n' "$2" "$1"
  return 1
}
quiet() { # WHAT COMMAND...: fails with all that the command says, if it fails or says anything
  local what=$1 said
  shift
  if ! said=$("$@" 2>&1) || [ -n "$said" ]; then fail "$what: $said"; fi
}

# Everything lands where the units, the manual and the program look for it, and nothing has privilege.
mkdir "$work/bins"
for bin in netreeve netreeve-dataplane netreeve-helper; do printf '#!/bin/sh\n' >"$work/bins/$bin"; done
if ./install.sh --bins "$work/bins" "$work/root" >"$work/log" 2>&1; then
  cd "$work/root"
  for program in $(grep -ho '/usr/\(lib\)\?exec[^ ]*' usr/lib/systemd/system/* etc/netreeve/* 2>/dev/null) \
    $(sed -n 's/^ExecStart=\([^ ]*\).*/\1/p' usr/lib/systemd/system/*) \
    $(sed -n 's/.*"\(\/usr\/libexec[^"]*\)".*/\1/p' "$OLDPWD"/../shared/src/client.rs); do
    [ -x ".$program" ] || fail "$program is named, and is not installed"
  done
  found=$(find . -perm /7000 -o -type l ! -exec test -e {} \; -print)
  [ -z "$found" ] || fail "setuid, setgid, sticky, or a link to nowhere: $found"
  # What the Debian packages take is all that there is.
  while read -r entry; do
    compgen -G "$entry" >/dev/null || case $entry in *doc/netreeve*) ;; *) fail "debian/*.install: no $entry" ;; esac
  done < <(cat "$OLDPWD"/debian/*.install)
  cd "$OLDPWD"
  while read -r file; do
    case $file in etc/apparmor.d/netreeve | usr/share/doc/*) continue ;; esac
    grep -qxF "$file" debian/*.install || grep -qxF "${file%/*}" debian/not-installed ||
      [ "${file%/*}" = usr/lib/systemd/system ] || fail "$file is installed, and is in no Debian package"
  done < <(cd "$work/root" && find . \( -type f -o -type l \) -printf '%P\n')
else
  fail "install.sh: $(cat "$work/log")"
fi

if have systemd-analyze "the units"; then
  # Their programs and pages are not on this machine.
  mkdir "$work/units"
  for unit in systemd/*; do
    sed -e "s#^ExecStart=[^ ]*#ExecStart=/bin/true#" -e '/^Documentation=/d' "$unit" >"$work/units/${unit##*/}"
  done
  cp "$work/units/netreeve@.service" "$work/units/netreeve@vm1.service"
  quiet "systemd-analyze verify" systemd-analyze verify --man=no \
    "$work"/units/netreeve-helper.{service,socket} "$work/units/netreeve@vm1.service"
  # UNIT MOST (exposure, in tenths). The helper's without the sockets that it makes for others (AF_INET, AF_INET6, no
  # IPAddressDeny=, which would follow them to their holders) would be 15.
  while read -r unit most; do
    systemd-analyze security --offline=true --threshold="$most" "systemd/$unit" >"$work/log" 2>&1 ||
      fail "systemd-analyze security: $(tail -n 1 "$work/log"), more than $most tenths"
  done <<<$'netreeve-helper.service 20\nnetreeve@.service 26'
fi

if have apparmor_parser "the AppArmor profiles" && [ -d /etc/apparmor.d/abi ]; then
  for profile in apparmor/* examples/apparmor-*; do
    cp "$profile" "$work/profile"
    if grep -q 'abi/4.0' "$profile" && [ ! -e /etc/apparmor.d/abi/4.0 ]; then
      echo "packaging: skipped: the word userns in $profile, because AppArmor here is older than 4.0"
      sed -i -e 's#abi/4.0#abi/3.0#' -e '/^ *userns,$/d' "$work/profile"
    fi
    apparmor_parser --skip-kernel-load --skip-cache --stdout "$work/profile" >/dev/null 2>"$work/log" ||
      fail "$profile: $(cat "$work/log")"
  done
fi

have mandoc "the manual pages" && for page in man/*.[1-9]; do quiet "$page" mandoc -T lint -W warning "$page"; done
have man "the manual pages with groff" && for page in man/*.[1-9]; do
  LC_ALL=C.UTF-8 man --warnings -E UTF-8 -l -Tutf8 -Z "$page" 2>"$work/log" >/dev/null || true
  [ ! -s "$work/log" ] || fail "$page: $(cat "$work/log")"
done

quiet "bash completion" bash -n completions/netreeve.bash
have zsh "zsh completion" && quiet "zsh completion" zsh -n completions/_netreeve
have fish "fish completion" && quiet "fish completion" fish -n completions/netreeve.fish
have xmllint "the libvirt domain" && quiet "libvirt domain" xmllint --noout examples/*.xml
have rpmspec "the RPM spec" && { rpmspec -P rpm/netreeve.spec >/dev/null 2>"$work/log" || fail "RPM spec: $(cat "$work/log")"; }
have shellcheck "the shell scripts" && quiet "shellcheck" shellcheck -S warning install.sh debian/build debian/*.postrm ../tests/units/{run,inside}
# One version everywhere.
version=$(sed -n 's/^version = "\(.*\)"/\1/p' ../Cargo.toml | head -n 1)
grep -q "^netreeve ($version-" debian/changelog || fail "debian/changelog is not at $version"
grep -q "^Version: *$version\$" rpm/netreeve.spec || fail "rpm/netreeve.spec is not at $version"

[ $bad = 0 ] && echo "packaging: clean"
exit $bad
