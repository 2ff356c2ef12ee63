# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Sourced by the scripts in tests/: where things are, and the environment that every tool of ours runs in.
# Nothing of Ansible's is read from the user's home, or left there.
# shellcheck shell=bash
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
BUILD=$REPO/.build

export PATH=$REPO/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL=C.UTF-8
export ANSIBLE_COLLECTIONS_PATH=$BUILD
export ANSIBLE_HOME=$BUILD/ansible
unset PYTHONPATH ANSIBLE_CONFIG

# The collection under its name: .build/ansible_collections/kvmops/lifecycle is the repository.
link_tree() {
    mkdir -p "$BUILD/ansible_collections/kvmops"
    ln -sfn ../../.. "$BUILD/ansible_collections/kvmops/lifecycle"
}

# The same, as a copy of what git knows or would know, for tools that refuse a link: copy_tree DIRECTORY
# makes DIRECTORY/ansible_collections/kvmops/lifecycle.
copy_tree() {
    local target=$1/ansible_collections/kvmops/lifecycle
    rm -rf "$target"
    mkdir -p "$target"
    git -C "$REPO" ls-files -z --cached --others --exclude-standard |
        (cd "$REPO" && while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done) |
        tar -C "$REPO" --null --files-from=- --create | tar -C "$target" --extract
}
