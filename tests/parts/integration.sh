#!/usr/bin/env bash
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# The modules on real KVM hosts, as a playbook uses them.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../env.sh"
cd "$REPO" || exit 1

# Four at a time, each with a lab of its own: a test waits for guests as much as it works. Whoever has nothing left to
# do takes the next test, of whatever file: by files, the longest one decides.
# What fails is tried once more, and named at the end: with four labs on two CPUs a guest may be late for once, but what
# fails twice is broken.
pytest tests/integration -q -n 4 --dist loadgroup --reruns 1 -rfER
result=$?
# A worker that was killed has left its lab.
for worker in 0 1 2 3; do
    KVMOPS_LAB=${KVMOPS_LAB:-lab}-gw$worker "$REPO/tests/lab/lab" down >/dev/null || result=1
done
exit "$result"
