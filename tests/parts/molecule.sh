#!/usr/bin/env bash
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# All molecule scenarios, on one lab that they share.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../env.sh"
cd "$REPO" || exit 1

export KVMOPS_LAB=${KVMOPS_LAB:-molecule-$$}
unset KVMOPS_LAB_DIR

# Also when molecule fails before, or in, its own "destroy".
trap '"$REPO/tests/lab/lab" down; rm -f "$BUILD/molecule/$KVMOPS_LAB.yml"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The scenarios would be no proof if they passed without hosts.
hosts=$(ansible-playbook -i /dev/null "$REPO/extensions/molecule/playbooks/hosts.yml" 2>&1)
if [[ $? != 2 || $hosts != *"no two hosts in the group"* ]]; then
    printf '%s\nmolecule: without hosts the scenarios would pass\n' "$hosts" >&2
    exit 1
fi

[ -t 1 ] || export NO_COLOR=1
molecule test --all --no-command-borders
