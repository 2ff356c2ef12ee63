# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's Glance, for a WSGI server."""

from __future__ import annotations

import os
from pathlib import Path

from . import wsgi

wsgi.prepare()

from glance.wsgi.api import application as glance  # noqa: E402

application = wsgi.Faults(glance, Path(os.environ["KVMOPS_LAB_FAULT"]))
