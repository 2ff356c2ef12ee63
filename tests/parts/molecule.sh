#!/usr/bin/env bash
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# All molecule scenarios: half of them on one lab, half on another, at the same time. What waits for a guest leaves the
# CPUs to the others.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../env.sh"
cd "$REPO" || exit 1

lab=${KVMOPS_LAB:-molecule-$$}
unset KVMOPS_LAB KVMOPS_LAB_DIR
[ -t 1 ] || export NO_COLOR=1

# Also when molecule fails before, or in, its own "destroy".
# shellcheck disable=SC2317
tidy() {
    local half
    [ -z "$other" ] || kill "$other" 2>/dev/null
    wait
    for half in a b; do
        "$REPO/tests/lab/lab" down --name "$lab-$half"
        rm -rf "$BUILD/molecule/$lab-$half" "$BUILD/molecule/$lab-$half".*
    done
}
other=
trap tidy EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The scenarios would be no proof if they passed without hosts.
hosts=$(ansible-playbook -i /dev/null "$REPO/extensions/molecule/playbooks/hosts.yml" 2>&1)
if [[ $? != 2 || $hosts != *"no two hosts in the group"* ]]; then
    printf '%s\nmolecule: without hosts the scenarios would pass\n' "$hosts" >&2
    exit 1
fi

half() { # NAME SCENARIO...
    local name=$lab-$1 scenario words=()
    shift
    for scenario in default "$@"; do words+=(--scenario-name "$scenario"); done
    KVMOPS_LAB=$name MOLECULE_EPHEMERAL_DIRECTORY=$BUILD/molecule/$name molecule test "${words[@]}" --no-command-borders
}

mapfile -t all < <(cd extensions/molecule && printf '%s\n' */molecule.yml | sed 's|/.*||' | grep -v -x default)
mkdir -p "$BUILD/molecule"
evens=() odds=()
for number in "${!all[@]}"; do
    if ((number % 2)); then odds+=("${all[number]}"); else evens+=("${all[number]}"); fi
done
half b "${odds[@]}" >"$BUILD/molecule/$lab-b.log" 2>&1 &
other=$!
half a "${evens[@]}"
result=$?
wait "$other" || result=1
other=
cat "$BUILD/molecule/$lab-b.log"
exit $result
