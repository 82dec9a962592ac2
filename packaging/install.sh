#!/bin/sh
# Puts everything where a distribution has it, below DESTDIR: what every packager would otherwise write again.
#
#   packaging/install.sh --bins DIR [--unitdir DIR] [--libexec DIR] DESTDIR
#
# --bins: where cargo left the programs (target/release). Nothing becomes setuid and nothing gets capabilities.
set -eu
bins='' units=/usr/lib/systemd/system libexec=/usr/libexec/netreeve dest=''
while [ $# -gt 0 ]; do
  case $1 in
    --bins) bins=$2; shift 2 ;;
    --unitdir) units=$2; shift 2 ;;
    --libexec) libexec=$2; shift 2 ;;
    -*) echo "install.sh: unknown option $1" >&2; exit 64 ;;
    *) dest=$1; shift ;;
  esac
done
[ -n "$bins" ] && [ -n "$dest" ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 64; }
here=$(cd "$(dirname "$0")" && pwd)
doc=$dest/usr/share/doc/netreeve

put() { # MODE FILE TO
  install -D -m "$1" "$2" "$dest$3"
}

put 0755 "$bins/netreeve" /usr/bin/netreeve
put 0755 "$bins/netreeve-dataplane" "$libexec/netreeve-dataplane"
put 0755 "$bins/netreeve-helper" "$libexec/netreeve-helper"
ln -sf netreeve-helper "$dest$libexec/netreeve-bridge-helper"
ln -sf netreeve "$dest/usr/bin/netreeve-passt"
ln -sf netreeve "$dest/usr/bin/netreeve-pasta"
install -d "$dest/usr/sbin"
ln -sf "..${libexec#/usr}/netreeve-helper" "$dest/usr/sbin/netreeve-helper"

for unit in "$here"/systemd/*; do put 0644 "$unit" "$units/${unit##*/}"; done
if [ "$libexec" != /usr/libexec/netreeve ]; then
  sed -i "s#/usr/libexec/netreeve/#$libexec/#" "$dest$units"/netreeve*
fi
put 0644 "$here/sysusers.d/netreeve.conf" /usr/lib/sysusers.d/netreeve.conf
put 0644 "$here/tmpfiles.d/netreeve.conf" /usr/lib/tmpfiles.d/netreeve.conf
put 0644 "$here/examples/policy.conf" /etc/netreeve/policy.conf
for profile in "$here"/apparmor/*; do put 0644 "$profile" "/etc/apparmor.d/${profile##*/}"; done
for page in "$here"/man/*.[1-9]; do put 0644 "$page" "/usr/share/man/man${page##*.}/${page##*/}"; done
ln -sf netreeve.1 "$dest/usr/share/man/man1/netreeve-passt.1"
ln -sf netreeve.1 "$dest/usr/share/man/man1/netreeve-pasta.1"
ln -sf netreeve-helper.8 "$dest/usr/share/man/man8/netreeve-bridge-helper.8"
put 0644 "$here/completions/netreeve.bash" /usr/share/bash-completion/completions/netreeve
put 0644 "$here/completions/netreeve.fish" /usr/share/fish/vendor_completions.d/netreeve.fish
put 0644 "$here/completions/_netreeve" /usr/share/zsh/vendor-completions/_netreeve

install -d "$doc/examples"
cp -R "$here"/examples/. "$doc/examples/"
for text in README.md ARCHITECTURE.md SECURITY.md CHANGELOG.md; do install -m 0644 "$here/../$text" "$doc/"; done
