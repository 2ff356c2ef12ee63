#!/usr/bin/env bash
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Measures the modules beside what a user would use instead, on a lab of its own, and writes docs/benchmarks.md (power:
# vm_power, vm_info), docs/benchmarks_snapshots.md (snapshots), docs/benchmarks_shelve.md (shelve, with room for
# 30 GiB), docs/benchmarks_migrate.md (migrate), docs/benchmarks_drain.md (drain) and docs/benchmarks_plan.md (plan, which
# needs no lab): tests/bench/run.sh [--what power|snapshots|shelve|migrate|drain|plan] [--rounds N] [--print] [--quick].
# Without --what: all of them, which takes more than an hour; leave the machine alone meanwhile. --quick is not for power.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

whats="power snapshots shelve migrate drain plan"
words=()
while [ $# -gt 0 ]; do
    case $1 in
    --what)
        whats=${2:?--what power, snapshots, shelve, migrate, drain or plan}
        shift
        ;;
    --what=*) whats=${1#*=} ;;
    *) words+=("$1") ;;
    esac
    shift
done
for what in $whats; do
    case $what in
    power | snapshots | shelve | migrate | drain | plan) ;;
    *)
        echo "bench: --what is power, snapshots, shelve, migrate, drain or plan" >&2
        exit 2
        ;;
    esac
done

"$REPO/tests/setup.sh" </dev/null
link_tree

# The peer is in the PyPI package "ansible"; its modules need lxml on the host. Ansible itself is that of .venv for both.
install_peers() { # DIRECTORY
    local peers=$1 wanted="ansible==12.3.0 lxml==6.1.3" pip
    [ "$(cat "$peers/stamp" 2>/dev/null)" != "$wanted" ] || return 0
    echo "bench: installing $wanted"
    rm -rf "$peers"
    /usr/bin/python3 -m venv "$peers/venv"
    pip=("$peers/venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps)
    "${pip[@]}" "${wanted% *}"
    "${pip[@]}" --target "$peers/host" "${wanted#* }"
    ln -s "$("$peers/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" "$peers/collections"
    echo "$wanted" >"$peers/stamp"
}

export KVMOPS_LAB=bench-$$
lab=$REPO/tests/lab/lab
cd "$REPO"

power() {
    install_peers "$BUILD/bench"
    "$lab" up --hosts 1 </dev/null
    ANSIBLE_COLLECTIONS_PATH=$BUILD:$BUILD/bench/collections python -m tests.bench.power "$BUILD/bench/host" "$@"
}

snapshots() {
    "$lab" up --hosts 1 --glance --private-size 24G </dev/null
    python -m tests.bench.snapshots "$@"
}

shelve() {
    "$lab" up --hosts 1 --glance --private-size 40G </dev/null
    python -m tests.bench.shelve "$@"
}

migrate() {
    "$lab" up --hosts 2 --private-size 24G </dev/null
    python -m tests.bench.migrate "$@"
}

drain() {
    "$lab" up --hosts 3 </dev/null
    python -m tests.bench.drain "$@"
}

plan() {
    PYTHONPATH=$BUILD python -m tests.bench.plan "$@"
}

for what in $whats; do
    trap '"$lab" down >/dev/null' EXIT
    "$what" "${words[@]}"
    "$lab" down >/dev/null
    trap - EXIT
done
