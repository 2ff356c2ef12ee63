#!/usr/bin/env bash
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Style of the code, the playbooks, the documentation, the changelog.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../env.sh"
cd "$REPO" || exit 1

# All checks are made, whatever the first ones say.
failed=0
check() {
    echo "-- $*"
    "$@" || failed=1
}

check ruff check --no-cache --output-format concise .
check ruff format --no-cache --check .
check ansible-lint --nocolor
# antsibull-docs keeps a log in the home.
mkdir -p "$BUILD/home"
check env HOME="$BUILD/home" antsibull-docs lint-collection-docs --plugin-docs --check-extra-docs-refs \
    --validate-collection-refs all --disallow-unknown-collection-refs .
check antsibull-changelog lint
exit "$failed"
