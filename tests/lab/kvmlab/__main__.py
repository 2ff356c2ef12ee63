# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's command."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

# As a program, not as a module: `-m` would take a kvmlab in the current directory.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

sys.exit(importlib.import_module("kvmlab.cli").main(sys.argv[1:]))
