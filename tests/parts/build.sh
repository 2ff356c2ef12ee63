#!/usr/bin/env bash
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# The artefact: built, installed without a network, and the documentation of its modules and roles read from there.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

place=$(mktemp -d "$BUILD/artefact.XXXXXX")
trap 'rm -rf "$place"' EXIT

ansible-galaxy collection build --output-path "$place" "$REPO"
artefact=("$place"/*.tar.gz)

strangers=$(comm -23 \
    <(tar -tzf "${artefact[0]}" | grep -v '/$' | sort) \
    <({ git -C "$REPO" ls-files --cached --others --exclude-standard; printf '%s\n' FILES.json MANIFEST.json; } | sort))
if [ -n "$strangers" ]; then
    printf 'build: in the artefact, but not in git, or ignored by it (see build_ignore in galaxy.yml):\n%s\n' "$strangers"
    exit 1
fi

export ANSIBLE_COLLECTIONS_PATH=$place/installed
ansible-galaxy collection install --offline -p "$ANSIBLE_COLLECTIONS_PATH" "${artefact[0]}"
cd "$ANSIBLE_COLLECTIONS_PATH/ansible_collections/kvmops/lifecycle"

documented() { # documented KIND NAME
    echo "-- ansible-doc -t $1 kvmops.lifecycle.$2"
    ansible-doc -t "$1" "kvmops.lifecycle.$2" >"$place/doc"
    grep -qi "kvmops.lifecycle.$2" "$place/doc"
}

for module in plugins/modules/[!_]*.py; do
    documented module "$(basename "$module" .py)"
done
for role in roles/*; do
    documented role "$(basename "$role")"
done
