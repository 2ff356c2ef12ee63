# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's Keystone, for a WSGI server."""

from __future__ import annotations

from . import wsgi

wsgi.prepare()

from keystone.wsgi.api import application  # noqa: E402

__all__ = ["application"]
