#!/usr/bin/env bash
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Types of all Python code.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../env.sh"
cd "$REPO" || exit 1

collection=$BUILD/ansible_collections/kvmops/lifecycle
exec mypy --cache-dir "$BUILD/mypy" "$collection/plugins" "$collection/roles" tests
