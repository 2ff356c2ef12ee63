#!/usr/bin/env bash
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Runs the tests: tests/run.sh [--list] [PART...]. Without a part it runs them all. It ends with a table, and with an
# error when any part failed; whatever the tests started has been ended by then, also after Ctrl-C.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

# In this order: what fails fast comes first.
all=(lint types unit sanity build lab integration molecule)

parts=()
for argument in "$@"; do
    case " ${all[*]} --list " in
    *" $argument "*) parts+=("$argument") ;;
    *)
        echo "tests/run.sh: there is no part $argument, but: ${all[*]}" >&2
        exit 2
        ;;
    esac
done
if [[ " ${parts[*]} " == *" --list "* ]]; then
    printf '%s\n' "${all[@]}"
    exit
fi
[ ${#parts[@]} -gt 0 ] || parts=("${all[@]}")

# Nothing that this run starts is shared with another run.
export KVMOPS_LAB=run-$$
unset KVMOPS_LAB_DIR

# Every part is a process group of its own, so that all of it can be ended.
set -m
group=
warming=

# An interrupted pytest still runs what its fixtures have to clean up, which a terminated one does not.
end_part() {
    [ -z "$warming" ] || kill -KILL -- "-$warming" 2>/dev/null
    [ -n "$group" ] && kill -INT -- "-$group" 2>/dev/null || return 0
    local waited
    for ((waited = 0; waited < 120; waited++)); do
        kill -0 -- "-$group" 2>/dev/null || return 0
        sleep 0.5
    done
    kill -KILL -- "-$group" 2>/dev/null
}

tear_down() {
    end_part
    local name result=0
    for name in "$KVMOPS_LAB" "$KVMOPS_LAB"-{gw{0..3},a,b,warm}; do
        [ ! -e "$REPO/.lab/$name" ] || "$REPO/tests/lab/lab" down --name "$name" || result=1
    done
    # Bridges to image stores that tests had on this machine: they are daemons, and outlive who is killed.
    pkill -KILL -f "${TMPDIR:-/tmp}/kvmops-test-$KVMOPS_LAB-"
    rm -rf "${TMPDIR:-/tmp}/kvmops-test-$KVMOPS_LAB-"*
    return "$result"
}
logs=
trap 'trap "" INT TERM HUP; tear_down; rm -rf "$logs"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

"$REPO/tests/setup.sh" </dev/null &
group=$!
wait "$group" || exit 1
group=

# The first lab of all builds guest images and virtual environments. That takes minutes, in which parts that need no lab
# go on; a part that needs it waits, and builds itself what could not be built here.
warm_up() {
    renice -n 10 "$BASHPID"
    "$REPO/tests/lab/lab" up --name "$KVMOPS_LAB-warm" --hosts 1 --glance
    "$REPO/tests/lab/lab" down --name "$KVMOPS_LAB-warm"
}
case " ${parts[*]} " in
*" lab "* | *" integration "* | *" molecule "*)
    warm_up </dev/null >/dev/null 2>&1 &
    warming=$!
    ;;
esac

logs=$(mktemp -d)
table=$(printf '%-12s %-7s %7s' part result seconds)
passed=0
failed=()
for part in "${parts[@]}"; do
    case $part in
    lab | integration | molecule)
        [ -z "$warming" ] || wait "$warming"
        warming=
        ;;
    esac
    printf '\n== %s\n' "$part"
    start=$SECONDS
    "$REPO/tests/parts/$part.sh" </dev/null > >(exec tee --ignore-interrupts "$logs/$part") 2>&1 &
    group=$!
    if wait "$group"; then
        result=passed
        passed=$((passed + 1))
    else
        result=failed
        failed+=("$part")
    fi
    group=
    table+=$(printf '\n%-12s %-7s %7d' "$part" "$result" $((SECONDS - start)))
done

trap '' INT TERM HUP
trap - EXIT
echo
tear_down || {
    echo "tests/run.sh: the lab could not be taken down" >&2
    failed+=("tear-down")
}

# Where only the end of what was printed is kept, it has to tell why.
for part in "${failed[@]}"; do
    [ ! -e "$logs/$part" ] || { printf '\n== the end of %s, which failed\n' "$part" && tail -n 60 "$logs/$part"; }
done
rm -rf "$logs"
printf '\n%s\n\n%d passed, %d failed\n' "$table" "$passed" "${#failed[@]}"
[ "${#failed[@]}" = 0 ]
