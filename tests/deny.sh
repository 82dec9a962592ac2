#!/usr/bin/env bash
# cargo-deny over the lockfile: bans, licences and sources need no network; the advisories need a copy of their database
# and are left out, with a line that says so, where it cannot be had. $1 is the cargo to use.
set -eu
cd "$(dirname "$0")/.."
cargo=${1:-cargo}

if ! "$cargo" deny --version >/dev/null 2>&1; then
  echo "deny: cargo-deny is not installed, so licences, sources and advisories are NOT checked: cargo install --locked cargo-deny"
  exit 0
fi
"$cargo" deny --log-level error check bans licenses sources
if said=$("$cargo" deny --log-level error check advisories 2>&1); then
  echo "deny: bans, licences, sources and advisories are clean"
elif grep -qE 'failed to (fetch|clone|load) advisory database|advisory database .*(fetch|clone|open)' <<<"$said"; then
  echo "deny: bans, licences and sources are clean; the advisory database cannot be had here, so advisories are NOT checked"
else
  printf '%s\n' "$said"
  exit 1
fi
