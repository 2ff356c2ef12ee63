#!/usr/bin/env bash
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Everything the tests need on a fresh Debian 12, as root: the packages, the virtualenv .venv, the tree .build.
# Run it again at any time, also twice at once: what is there already costs nothing.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

lists=("$REPO/tests/packages.txt" "$REPO/tests/lab/packages.txt")
requirements=("$REPO/tests/requirements.txt" "$REPO/tests/constraints.txt")
log=$BUILD/setup.log

die() {
    echo "setup: $*" >&2
    exit 1
}

# Output is kept for the case of failure.
quietly() {
    "$@" >"$log" 2>&1 && return
    tail -n 40 "$log" >&2
    die "failed: $*"
}

# apt waits for dpkg's lock by itself, but not for the one of the package lists.
apt() {
    local attempt
    for attempt in 1 2 3 4 5 6; do
        [ "$attempt" = 1 ] || sleep 10
        DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 "$@" && return
    done
    return 1
}

missing_packages() {
    dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null |
        sed -n 's/^installed //p' | sort -u | comm -13 - <(printf '%s\n' "$@" | sort -u)
}

install_packages() {
    local list wanted missing
    for list in "${lists[@]}"; do
        [ -r "$list" ] || die "no list of packages at $list"
    done
    mapfile -t wanted < <(sed 's/[[:space:]]*#.*//; /^[[:space:]]*$/d' "${lists[@]}")
    mapfile -t missing < <(missing_packages "${wanted[@]}")
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || die "only root can install: ${missing[*]}"
    echo "setup: installing ${missing[*]}"
    quietly apt update
    quietly apt install --no-install-recommends "${missing[@]}"
    mapfile -t missing < <(missing_packages "${wanted[@]}")
    [ ${#missing[@]} = 0 ] || die "apt-get installed everything, and yet these are not there: ${missing[*]}"
}

make_virtualenv() {
    local stamp=$REPO/.venv/requirements.sha256 wanted
    wanted=$({ /usr/bin/python3 --version; cat "${requirements[@]}"; } | sha256sum)
    [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || return 0
    echo "setup: making .venv"
    rm -f "$stamp"
    quietly /usr/bin/python3 -m venv "$REPO/.venv"
    quietly "$REPO/.venv/bin/python" -m pip install --disable-pip-version-check -r "${requirements[0]}"
    echo "$wanted" >"$stamp"
}

mkdir -p "$BUILD"
exec 9>"$BUILD/setup.lock"
flock 9
# Nothing started from here may keep the lock: a package may start a daemon.
install_packages 9>&-
make_virtualenv 9>&-
link_tree
