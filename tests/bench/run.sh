#!/usr/bin/env bash
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Measures the modules beside what a user would use instead, on a lab of its own, and writes docs/benchmarks.md:
# tests/bench/run.sh [--rounds N] [--print]. About half an hour; leave the machine alone meanwhile.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

"$REPO/tests/setup.sh" </dev/null

# The peer is in the PyPI package "ansible"; its modules need lxml on the host. Ansible itself is that of .venv for both.
peers=$BUILD/bench
wanted="ansible==12.3.0 lxml==6.1.3"
if [ "$(cat "$peers/stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "bench: installing $wanted"
    rm -rf "$peers"
    /usr/bin/python3 -m venv "$peers/venv"
    pip=("$peers/venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps)
    "${pip[@]}" "${wanted% *}"
    "${pip[@]}" --target "$peers/host" "${wanted#* }"
    ln -s "$("$peers/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" "$peers/collections"
    echo "$wanted" >"$peers/stamp"
fi
export ANSIBLE_COLLECTIONS_PATH=$BUILD:$peers/collections

export KVMOPS_LAB=bench-$$
trap '"$REPO/tests/lab/lab" down >/dev/null' EXIT
"$REPO/tests/lab/lab" up --hosts 1
cd "$REPO"
python -m tests.bench.bench "$peers/host" "$@"
