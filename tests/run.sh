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

# An interrupted pytest still runs what its fixtures have to clean up, which a terminated one does not.
end_part() {
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
    for name in "$KVMOPS_LAB" "$KVMOPS_LAB"-gw{0,1,2}; do
        [ ! -e "$REPO/.lab/$name" ] || "$REPO/tests/lab/lab" down --name "$name" || result=1
    done
    return "$result"
}
trap 'trap "" INT TERM HUP; tear_down' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

"$REPO/tests/setup.sh" </dev/null &
group=$!
wait "$group" || exit 1
group=

table=$(printf '%-12s %-7s %7s' part result seconds)
passed=0
failed=0
for part in "${parts[@]}"; do
    printf '\n== %s\n' "$part"
    start=$SECONDS
    "$REPO/tests/parts/$part.sh" </dev/null &
    group=$!
    if wait "$group"; then
        result=passed
        passed=$((passed + 1))
    else
        result=failed
        failed=$((failed + 1))
    fi
    group=
    table+=$(printf '\n%-12s %-7s %7d' "$part" "$result" $((SECONDS - start)))
done

trap '' INT TERM HUP
trap - EXIT
echo
tear_down || {
    echo "tests/run.sh: the lab could not be taken down" >&2
    failed=$((failed + 1))
}

printf '\n%s\n\n%d passed, %d failed\n' "$table" "$passed" "$failed"
[ "$failed" = 0 ]
