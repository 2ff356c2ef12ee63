#!/usr/bin/env bash
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Two KVM hosts on this machine, and a playbook that shows on them, with real VMs, what the collection does:
# tests/demo/story.yml. As root, on Debian 12; everything is set up before and taken down afterwards. It fails when
# anything is not as the story tells it.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

if [ "$(id -u)" != 0 ]; then
    echo "demo: please run it as root: it makes network namespaces and mounts" >&2
    exit 1
fi

export KVMOPS_LAB=demo-$$
unset KVMOPS_LAB_DIR
mkdir -p "$BUILD"
place=$(mktemp -d "$BUILD/demo.XXXXXX")

# What runs is a process group of its own, so that all of it can be ended.
set -m
group=

run() {
    "$@" </dev/null &
    group=$!
    local result=0
    wait "$group" || result=$?
    group=
    return "$result"
}

tear_down() {
    trap '' INT TERM HUP
    if [ -n "$group" ] && kill -INT -- "-$group" 2>/dev/null; then
        local waited
        for ((waited = 0; waited < 40; waited++)); do
            kill -0 -- "-$group" 2>/dev/null || break
            sleep 0.5
        done
        kill -KILL -- "-$group" 2>/dev/null
    fi
    local result=0
    "$REPO/tests/lab/lab" down >"$place/down.log" 2>&1 || result=1
    [ "$result" = 0 ] || cat "$place/down.log" >&2
    rm -rf "$place"
    return "$result"
}
trap tear_down EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

echo "Setting up: packages and a virtualenv (a few minutes the first time) ..."
run "$REPO/tests/setup.sh" || exit 1
set_up=$SECONDS

echo "Starting two KVM hosts, and an image service (a minute the first time) ..."
if ! run "$REPO/tests/lab/lab" up --hosts 2 --glance >"$place/up.log" 2>&1; then
    cat "$place/up.log" >&2
    exit 1
fi
"$REPO/tests/lab/lab" inventory >"$place/inventory.yml" || exit 1
up=$SECONDS

export ANSIBLE_CALLBACK_PLUGINS=$REPO/tests/demo/callback_plugins
export ANSIBLE_STDOUT_CALLBACK=story
# What is left of the story: a page about what was done with whole hosts.
report=$BUILD/demo-report
rm -f "$report.html" "$report.ndjson"
told='{"story_report": "'$report'", "story_lab": "'$REPO/tests/lab/lab'"}'
run ansible-playbook -i "$place/inventory.yml" --diff -e "$told" "$REPO/tests/demo/story.yml"
result=$?
told=$SECONDS

trap - EXIT
if ! tear_down; then
    echo "demo: the lab could not be taken down" >&2
    result=1
fi

printf '\nset up in %d s, two hosts up in %d s, story told in %d s, all taken down in %d s: %d s\n' \
    "$set_up" $((up - set_up)) $((told - up)) $((SECONDS - told)) "$SECONDS"
if [ "$result" = 0 ]; then
    echo "Everything was as told, and nothing of it is left running."
    echo "A report on the maintenance at its end, for a browser: $report.html"
else
    echo "The story did not come to its end as it should: see above." >&2
fi
exit "$result"
