# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""python3 -m kvmlab: the lab's command."""

from __future__ import annotations

import os
import sys

from .cli import main

os.environ.pop("PYTHONPATH", None)  # tests/lab/lab set it for us alone
sys.exit(main(sys.argv[1:]))
